"""Values that leave torch's operators: no map is made as though they were constants."""

from __future__ import annotations

import copy
import cProfile
import pickle
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, List  # noqa: UP035

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._capture import NotCapturable, captured
from captum_krypton._capture.probe import probe_rows
from captum_krypton._run import few_windows

WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2), "target": 1}
FEW: dict[str, Any] = {**WINDOWS, "strides": (3, 4, 4)}

# Ways to a number of Python from a tensor of one element.
NUMBERS: dict[str, Callable[[Tensor], float]] = {
    "item": lambda t: t.item(),
    "float": float,
    "numpy": lambda t: float(t.numpy()),
    "numpy by force": lambda t: float(t.numpy(force=True)),
    "asarray": lambda t: float(np.asarray(t)),
    "tolist": lambda t: t.reshape(1).tolist()[0],
    "dlpack": lambda t: float(np.from_dlpack(t)),
    "capsule": lambda t: float(torch.from_dlpack(torch.utils.dlpack.to_dlpack(t.clone()))),
    "storage": lambda t: float(t.clone().untyped_storage().tolist()[3]) + 1,
    "repr": lambda t: float(repr(t.clone()).split("(")[1].split(",")[0].rstrip(")")),
    "format": lambda t: float(f"{t:.4f}"),
    "pickle": lambda t: float(pickle.loads(pickle.dumps(t.clone()))),
    "deepcopy": lambda t: float(copy.deepcopy(t.clone())),
    "a thread": lambda t: ThreadPoolExecutor(1).submit(t.item).result(),
    "equal": lambda t: 1.0 + torch.equal(t, t.round()),
    "nonzero": lambda t: 1.0 + len((t > 2).reshape(1).nonzero()),
    "unique": lambda t: float(len(torch.unique(torch.stack([t, t.clamp(max=2)])))),
    "masked_select": lambda t: 1.0 + torch.masked_select(t, t > 2).numel(),
    "bincount": lambda t: float(len(torch.bincount(t.long().reshape(1)))),
    "sparse": lambda t: 1.0 + (t * (t > 2)).reshape(1).to_sparse()._nnz(),
    "where": lambda t: 1.0 + len(torch.where(t.reshape(1) > 2)[0]),
    "repeat_interleave": lambda t: float(
        len(torch.repeat_interleave(torch.ones(1), t.long().reshape(1)))
    ),
}
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": Tensor.max,
    "mean": lambda t: t.mean() + 1,
    "norm": Tensor.norm,
    "quantile": lambda t: t.quantile(0.99) + 1,
    "last": lambda t: t.flatten()[-1] + 1,
    "largest place": lambda t: t.argmax().float() / 100 + 1,
}
USES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "a factor": lambda x, v: x / (v + 0.1),
    "a branch": lambda x, v: x if v > 2 else -x,
    "a bound": lambda x, v: x.clamp(max=0.5 * v),
    "a tensor": lambda x, v: x * torch.tensor(v + 0.1, dtype=x.dtype),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(36, 5)).eval()


def image() -> Tensor:
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    x[..., 2, 3] = 4.0
    return x


def assert_right_or_told(forward: Callable[..., Tensor], x: Tensor, **windows: Any) -> None:
    expected = Occlusion(forward).attribute(x.clone(), **windows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        got = KryptonOcclusion(forward).attribute(x.clone(), **windows)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@given(data=st.data())
def test_no_door_is_missed(data: st.DataObject) -> None:
    number = NUMBERS[data.draw(st.sampled_from(sorted(NUMBERS)))]
    statistic = STATISTICS[data.draw(st.sampled_from(sorted(STATISTICS)))]
    use = USES[data.draw(st.sampled_from(sorted(USES)))]
    model = network()

    def forward(x: Tensor) -> Tensor:
        return model(use(x, number(statistic(x))))

    with pytest.raises(NotCapturable):
        captured(forward, (image(),), (True,), (0,))
    assert_right_or_told(forward, image(), **WINDOWS)


@pytest.mark.parametrize("door", NUMBERS)
def test_every_door_to_a_branch(door: str) -> None:
    model = network()

    def forward(x: Tensor) -> Tensor:
        return model(x if NUMBERS[door](x.max()) > 2 else -x)

    with pytest.raises(NotCapturable, match="takes values|reads|depend|layout|thread"):
        captured(forward, (image(),), (True,), (0,))
    assert_right_or_told(forward, image(), **WINDOWS)


@pytest.mark.parametrize("door", ["item", "numpy", "tolist", "dlpack", "repr"])
def test_what_does_not_depend_on_the_inputs_may_be_read(door: str) -> None:
    model = network()
    scale = nn.Parameter(torch.tensor(2.5), requires_grad=False)

    def forward(x: Tensor) -> Tensor:
        return model(x) * NUMBERS[door](scale)

    assert len(captured(forward, (image(),), (True,), (0,)).graph.nodes) > 3


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_lists_of_torchscript() -> None:
    @torch.jit.script
    def turned(x: Tensor) -> Tensor:
        values: List[float] = x.flatten().tolist()  # noqa: UP006
        largest = 0.0
        for value in values:
            if value > largest:
                largest = value
        return x if largest > 2 else -x

    model = network()
    for forward in (lambda x: model(turned(x)), turned):
        with pytest.raises(NotCapturable, match="tolist"):
            captured(forward, (image(),), (True,), (0,))


@pytest.mark.parametrize("bound", [1.0, 2.0, 3.0])
def test_a_branch_behind_an_unknown_door(bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no door shows, a second recording of faint rows does."""
    monkeypatch.setattr("captum_krypton._capture.doors._FUNCTIONS", {})
    model = network()

    def forward(x: Tensor) -> Tensor:
        return model(x if x.numpy().max() > bound else -x)

    with pytest.raises(NotCapturable, match="other operators"):
        captured(forward, (image(),), (True,), (0,))


@given(data=st.data())
def test_rows_to_record_with_differ_in_every_statistic(data: st.DataObject) -> None:
    """Of two recordings' batches, whatever statistic a function takes."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.uint8]))
    shape = (1, *data.draw(st.tuples(st.integers(1, 3), st.integers(6, 9), st.integers(6, 9))))
    noise = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    kind = data.draw(st.sampled_from(["noise", "constant", "sparse"]))
    x = torch.rand(shape, generator=noise) * (200 if dtype is torch.uint8 else 3)
    if kind == "constant" and dtype is not torch.uint8:
        x = torch.full(shape, data.draw(st.sampled_from([0.0, 1.0, -3.0])))
    elif kind == "sparse":
        x = x * (torch.rand(shape, generator=noise) < 0.2)
    x = x.to(dtype)
    few, many = (probe_rows(x, 0, *of).double() for of in ((0, 2), (2, 3)))
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    for rows in (few, many):
        assert rows.min() >= low - 1e-6
        assert rows.max() <= (high if high > low else low + 1) * 1.01 + 1e-6
    if kind == "constant" and dtype is not torch.uint8:
        assert len({float(row.sum()) for row in (*few, *many)}) >= 3
        return
    statistics: list[Callable[[Tensor], Tensor]] = [Tensor.max, Tensor.sum, Tensor.norm]
    statistics += [lambda t: t.flatten(1).argmax(1).sum()] if kind == "noise" else []
    for statistic in statistics:
        assert statistic(few) != statistic(many)


def mixed(x: Tensor, how: str) -> Tensor:
    return {
        "largest": lambda: x / x.max(),
        "mean": lambda: x - x.mean(),
        "norm": lambda: x / x.norm(),
        "batch standardised": lambda: (x - x.mean(0, keepdim=True)) / (x.std(0, correction=0) + 1),
        "softmax of the batch": lambda: x.softmax(0),
        "a branch": lambda: x if x.max().item() > 2 else -x,
        "sorted rows": lambda: x.sort(0).values,
        "products of rows": lambda: x + (x.flatten(1) @ x.flatten(1).T).mean(),
        "cumulative": lambda: x.cumsum(0),
        "batch norm": lambda: F.batch_norm(x, None, None, training=True),
    }[how]()


@pytest.mark.parametrize(
    "how",
    [
        "largest",
        "mean",
        "norm",
        "batch standardised",
        "softmax of the batch",
        "a branch",
        "sorted rows",
        "products of rows",
        "cumulative",
        "batch norm",
    ],
)
@pytest.mark.parametrize("windows", [FEW, WINDOWS], ids=["few", "many"])
def test_rows_that_mix(how: str, windows: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_ROWS", 24)
    monkeypatch.setattr(few_windows, "_LONG_SECONDS", float("inf"))
    model = network()

    def forward(x: Tensor) -> Tensor:
        return model(mixed(x, how))

    assert_right_or_told(forward, image(), **windows)


def test_a_profiler_of_the_user_stays() -> None:
    def profile(frame: Any, event: str, argument: Any) -> None:
        return None

    sys.setprofile(profile)
    try:
        KryptonOcclusion(network()).attribute(image(), **WINDOWS)
        assert sys.getprofile() is profile
        with pytest.raises(NotCapturable):
            captured(lambda x: x / x.numpy().max(), (image(),), (True,))
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)


def test_a_profiler_of_c_goes_on() -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        heat = KryptonOcclusion(network()).heatmap(image(), **WINDOWS)
    finally:
        profiler.disable()
    assert heat.report.path == "incremental"
    called = {entry.code.co_name for entry in profiler.getstats() if hasattr(entry.code, "co_name")}
    assert "heatmap" in called
    assert "evaluate" in called  # of the end of the map: it was not turned off
