"""What a map must leave alone, and what needs no fall-back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._capture import eager
from captum_krypton._run import few_windows

WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2), "target": 1}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()


@pytest.mark.parametrize("few", [0, 1000])
def test_random_numbers_of_other_threads_stay_drawn(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_ROWS", few)
    model, drawn = network(), list[Tensor]()

    def forward(x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: drawn.append(torch.rand(2)))
        if sys.getprofile() is None:  # not while it is looked at: it would be refused
            thread.start()
            thread.join()
        out: Tensor = model(x)
        return out

    KryptonOcclusion(forward).attribute(torch.rand(1, 3, 12, 12), **WINDOWS)
    after = torch.rand(2)
    assert len(drawn) > 0
    assert not any(torch.equal(after, earlier) for earlier in drawn)


def test_no_random_number_is_drawn() -> None:
    model, x = network(), torch.rand(1, 3, 12, 12)
    before = torch.get_rng_state()
    KryptonOcclusion(model).attribute(x, **WINDOWS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_an_interrupted_capture_is_made_again(error: type[BaseException]) -> None:
    model, fails = network(), [True]

    def forward(x: Tensor) -> Tensor:
        if fails and x.shape[0] == 3:
            fails.clear()
            raise error("stop")
        out: Tensor = model(x)
        return out

    x, explainer = torch.rand(1, 3, 12, 12), KryptonOcclusion(forward)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                explainer.attribute(x, **WINDOWS)
        else:
            explainer.attribute(x, **WINDOWS)
    assert explainer.heatmap(x, **WINDOWS).report.path == "incremental"


def test_an_import_goes_on_after_an_interrupt(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread is interrupted while a module is imported, which is whole all the same."""
    (tmp_path / "slow_to_import.py").write_text(
        "import signal, threading, time\n"
        "signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)\n"
        "time.sleep(0.5)\n"
        "whole = True\n"
    )
    program = (
        "import signal\n"
        "from captum_krypton._capture import eager\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    eager._import_whole('slow_to_import')\n"
        "    print('not interrupted')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
        "eager._import_whole('slow_to_import')\n"
        "import slow_to_import\n"
        "print(slow_to_import.whole)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["interrupted", "True"], done.stderr


def test_a_failing_import_says_so() -> None:
    with pytest.raises(ModuleNotFoundError):
        eager._import_whole("there_is_no_such_module")


class Recurrent(nn.Module):
    """The columns of an image, one after another."""

    def __init__(self, cell: type[nn.Module], batch_first: bool, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = cell(3 * 12, 5, layers, batch_first=batch_first, bidirectional=True)
        self.head = nn.Linear(10, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        order = (0, 3, 1, 2) if self.batch_first else (3, 0, 1, 2)
        out: Tensor = self.rnn(x.permute(order).flatten(2))[0]
        result: Tensor = self.head(out.sum(1 if self.batch_first else 0))
        return result


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("check", [True, False])
def test_recurrent_layers(
    cell: type[nn.Module], batch_first: bool, layers: int, check: bool
) -> None:
    model, x = Recurrent(cell, batch_first, layers).eval(), torch.rand(2, 3, 12, 12)
    explainer = KryptonOcclusion(model, self_check=check)
    expected = Occlusion(model).attribute(x, **WINDOWS)
    for at_once in (1, 3, None):
        heat = explainer.heatmap(x, **WINDOWS, perturbations_per_eval=at_once)
        assert heat.report.path != "captum"
        torch.testing.assert_close(heat.attribution(), expected, rtol=1e-4, atol=1e-6)


def test_every_plan_is_checked() -> None:
    model = network()
    explainer = KryptonOcclusion(model)
    asked = [(1, None), (1, None), (2, None), (2, 1), (1, 1), (1, None)]
    checked = [
        explainer.heatmap(
            torch.rand(rows, 3, 12, 12), **WINDOWS, perturbations_per_eval=at_once
        ).report.checked_windows
        for rows, at_once in asked
    ]
    assert checked == [1, 0, 1, 1, 1, 0]


def dynamic(x: Tensor) -> Tensor:
    """One kernel an example, as a grouped convolution."""
    rows, channels = x.shape[:2]
    kernels = x.mean((2, 3)).repeat_interleave(9, 1).reshape(rows * channels, 1, 3, 3)
    flat = x.reshape(1, rows * channels, *x.shape[2:])
    out = nn.functional.conv2d(flat, kernels, groups=rows * channels, padding=1)
    return out.view(rows, channels, *x.shape[2:]).relu().mean((2, 3))


VIEWS = {
    "expanded": lambda x: x.unsqueeze(0).expand(3, *x.shape)[1],
    "expanded behind": lambda x: x.unsqueeze(-1).expand(*x.shape, 4)[..., 0],
    "expanded channel": lambda x: x[:, :1].clone().expand(-1, 3, -1, -1)[:, 2],
    "split": lambda x: torch.unsafe_split(x, 1, 1)[1],
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_that_are_changed_in_place(view: str) -> None:
    model = network()

    def forward(x: Tensor) -> Tensor:
        y = x - 0.4
        seen = VIEWS[view](y)
        seen.relu_().mul_(2)
        out: Tensor = model(y)
        return out + seen.flatten(1).sum(1, keepdim=True)

    x = torch.rand(2, 3, 12, 12)
    heat = KryptonOcclusion(forward).heatmap(x, **WINDOWS)
    assert heat.report.path != "captum", heat.report.reasons
    expected = Occlusion(forward).attribute(x, **WINDOWS)
    torch.testing.assert_close(heat.attribution(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("few", [0, 1000])
def test_forwards_that_need_no_fall_back(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_ROWS", few)
    x = torch.rand(1, 3, 12, 12)
    frozen = _frozen(network())
    for forward in (dynamic, strided, frozen, quantised(), nn.DataParallel(network())):
        heat = KryptonOcclusion(forward).heatmap(x, **WINDOWS)
        assert heat.report.path != "captum", heat.report.reasons
        expected = Occlusion(forward).attribute(x, **WINDOWS)
        torch.testing.assert_close(heat.attribution(), expected, rtol=1e-4, atol=1e-5)


def strided(x: Tensor) -> Tensor:
    return x.mean((2, 3)) + x.contiguous().as_strided((len(x), 3), (432, 144), 7)


def quantised() -> nn.Module:
    """Dynamically: every layer takes its scale from the rows that it sees."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear})
    return made


def _frozen(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(torch.jit.script(model))


@pytest.mark.parametrize("unread", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"quality": 0.9}, {"projective_field_threshold": 0.5}])
def test_an_input_that_nothing_reads(unread: int, settings: dict[str, Any]) -> None:
    model = network()
    inputs = (torch.rand(2, 3, 12, 12), torch.rand(2, 3, 12, 12))
    windows = {k: (v, v) for k, v in WINDOWS.items() if k != "target"}
    explainer = KryptonOcclusion(lambda a, b: model(b if unread == 0 else a), **settings)
    maps = explainer.heatmap(inputs, **windows, target=1)
    assert maps[unread].attribution().shape == inputs[unread].shape
    assert not maps[unread].attribution().any()
    assert maps[1 - unread].attribution().any()
    assert len(explainer.explain(inputs, **windows, target=1).plans) == 1


def test_an_outcome_that_depends_on_nothing() -> None:
    x, explainer = torch.rand(2, 3, 12, 12), KryptonOcclusion(lambda x: torch.ones(len(x), 3))
    assert not explainer.attribute(x, **WINDOWS).any()
    assert explainer.explain(x, **WINDOWS, run=True).plans == ()
    maps = list(explainer.growing(x[:1], **WINDOWS))
    assert not maps[-1].attribution().any()
