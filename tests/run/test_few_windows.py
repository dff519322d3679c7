"""A model's first windows, where they are too few for a graph to pay: the forward function runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._call.arguments import make_call
from captum_krypton._capture import record
from captum_krypton._run import FewWindows, few_windows
from captum_krypton._run.begun import Begun
from captum_krypton._run.execution import Execution

WINDOWS = {"sliding_window_shapes": (2, 4, 4), "strides": (2, 4, 4)}  # 9 of a 12 x 12 image


@pytest.fixture(autouse=True)
def setup_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_ROWS", 24)
    # Whatever the machine is busy with.
    monkeypatch.setattr(few_windows, "_LONG_SECONDS", float("inf"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 144, 5))
    return nn.Sequential(*layers).double().eval()


def image(examples: int = 1) -> Tensor:
    return torch.randn(examples, 2, 12, 12, dtype=torch.float64)


class Calls:
    """A forward function that remembers how many rows each call had."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self.forward, self.rows = forward, list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        self.rows.append(x.shape[0])
        return self.forward(x)


def assert_as_captum(explainer: KryptonOcclusion, forward: Any, x: Tensor, **more: Any) -> None:
    expected = Occlusion(forward).attribute(x, **WINDOWS, **more)
    got = explainer.attribute(x, **WINDOWS, **more)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("more", [{"target": 3}, {"target": None}, {"perturbations_per_eval": 3}])
@pytest.mark.parametrize("examples", [1, 2])
def test_first_windows_equal_captum(examples: int, more: dict[str, Any]) -> None:
    model, x = network(), image(examples)
    explainer = KryptonOcclusion(model)
    assert_as_captum(explainer, model, x, **{"target": 3, **more})
    fresh = KryptonOcclusion(model).heatmap(x, **WINDOWS, **{"target": 3, **more})
    assert fresh.report.path == "naive"
    assert fresh.report.windows == 9
    assert "too few" in fresh.report.reasons[0]


def test_windows_of_earlier_maps_count() -> None:
    explainer = KryptonOcclusion(network())
    paths = [explainer.heatmap(image(), **WINDOWS).report.path for _ in range(4)]
    assert paths == ["naive", "naive", "incremental", "incremental"]


def test_another_shape_counts_for_itself() -> None:
    model = nn.Sequential(*network()[:2], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    explainer = KryptonOcclusion(model)
    assert explainer.heatmap(image(2), **WINDOWS).report.path == "naive"
    assert explainer.heatmap(image(1), **WINDOWS).report.path == "incremental"  # 18 + 9 rows
    other = torch.randn(1, 2, 8, 12, dtype=torch.float64)
    assert explainer.heatmap(other, **WINDOWS).report.path == "naive"


def test_many_windows_go_by_the_graph() -> None:
    explainer = KryptonOcclusion(network())
    heat = explainer.heatmap(image(), sliding_window_shapes=(2, 4, 4), strides=(2, 2, 2))
    assert heat.report.path == "incremental"
    assert explainer.heatmap(image(), **WINDOWS).report.path == "incremental"  # the graph is there


def test_explain_shows_the_plan_of_the_graph() -> None:
    explainer = KryptonOcclusion(network())
    assert explainer.explain(image(), **WINDOWS, run=True).plans
    assert explainer.heatmap(image(), **WINDOWS).report.path == "incremental"


def test_windows_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(network())
    heat = KryptonOcclusion(calls).heatmap(image(), **WINDOWS)
    assert heat.report.path == "naive"
    assert calls.rows == [1, 4, 4, 1, 1]  # the untouched input, nine windows, one of them alone
    assert (heat.report.batches, heat.report.batch_size) == (3, 4)
    calls.rows.clear()
    KryptonOcclusion(calls).heatmap(image(), **WINDOWS, perturbations_per_eval=1)
    assert calls.rows == [1] * 10
    calls.rows.clear()
    monkeypatch.setattr(few_windows, "_LONG_SECONDS", 0.0)
    assert KryptonOcclusion(calls).heatmap(image(), **WINDOWS).report.batches == 9
    assert calls.rows == [1] * 10
    heat = KryptonOcclusion(calls).heatmap(image(), (2, 4, 4), (2, 3, 3))  # 16 windows
    assert heat.report.path == "incremental"


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.flip(0),
        lambda x: x[:1].expand_as(x),
        lambda x: x[-1:].expand_as(x),
        lambda x: x - x[-1:] / 2,
        lambda x: x * len(x),
        lambda x: x + torch.arange(len(x), dtype=x.dtype).reshape(-1, 1, 1, 1),
    ],
)
def test_rows_that_are_mixed_go_by_captum(mix: Callable[[Tensor], Tensor]) -> None:
    model = network()

    def forward(x: Tensor) -> Tensor:
        return model(mix(x))

    explainer = KryptonOcclusion(forward)
    with pytest.warns(UserWarning, match="Captum's own path"):
        assert_as_captum(explainer, forward, image(), target=3)


def test_rows_that_are_mixed_are_noticed_behind_an_input_of_one_window() -> None:
    model = network()

    def forward(a: Tensor, b: Tensor) -> Tensor:
        return model(a) + model(b - b.mean(0, keepdim=True))

    inputs = (image(), image())
    windows = {
        "sliding_window_shapes": ((2, 12, 12), (2, 4, 4)),
        "strides": ((2, 12, 12), (2, 4, 4)),
    }
    expected = Occlusion(forward).attribute(inputs, target=1, **windows)
    with pytest.warns(UserWarning, match="Captum's own path"):
        got = KryptonOcclusion(forward).attribute(inputs, target=1, **windows)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_random_numbers_are_drawn_as_captum_draws_them() -> None:
    model = network()

    def forward(x: Tensor) -> Tensor:
        return model(nn.functional.dropout(x, 0.2, training=True))

    x, more = image(), {"target": 3, "perturbations_per_eval": 1}
    torch.manual_seed(5)
    expected = Occlusion(forward).attribute(x, **WINDOWS, **more)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="random"):
        got = KryptonOcclusion(forward).attribute(x, **WINDOWS, **more)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_model_in_training_mode_is_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), *network()).double().train()
    before = model[0].running_mean.clone()
    with pytest.warns(UserWarning, match="training mode"):
        heat = KryptonOcclusion(model).heatmap(image(), **WINDOWS)
    assert heat.report.path == "captum"
    assert not torch.equal(model[0].running_mean, before)  # as Captum leaves it


def test_a_tensor_that_is_not_one_row_an_example() -> None:
    model = network()

    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return model(x * scale.sum())

    explainer, scale = KryptonOcclusion(forward), torch.ones(3, dtype=torch.float64)
    heat = explainer.heatmap(image(), **WINDOWS, additional_forward_args=(scale,))
    assert heat.report.path == "incremental"


def test_tuple_of_inputs() -> None:
    model = network()

    def forward(a: Tensor, b: Tensor) -> Tensor:
        return model(a) + model(b).square()

    inputs = (image(), image())
    windows = {"sliding_window_shapes": ((2, 4, 4),) * 2, "strides": ((2, 4, 4),) * 2, "target": 1}
    expected = Occlusion(forward).attribute(inputs, **windows)
    explainer = KryptonOcclusion(forward)
    got = explainer.attribute(inputs, **windows)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert KryptonOcclusion(forward).heatmap(inputs, **windows)[1].report.path == "naive"


def test_a_target_that_the_output_does_not_have() -> None:
    with pytest.raises(IndexError):
        KryptonOcclusion(network()).attribute(image(), **WINDOWS, target=5)


def test_an_error_of_the_forward_reaches_the_user() -> None:
    def forward(x: Tensor) -> Tensor:
        raise RuntimeError("broken forward")

    with pytest.raises(RuntimeError, match="broken forward"), pytest.warns(UserWarning):
        KryptonOcclusion(forward).attribute(image(), **WINDOWS, target=0)


def test_progress_counts_windows(capsys: pytest.CaptureFixture[str]) -> None:
    KryptonOcclusion(network()).attribute(image(), **WINDOWS, target=0, show_progress=True)
    assert "9/9" in capsys.readouterr().err


class Clock:
    """What `time.perf_counter` says: a batch of `rows` windows takes `rows * of_row` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(few_windows, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(few_windows, "_SETUP_SECONDS", 0.5)
        monkeypatch.setattr(few_windows, "_LEAST_SECONDS", 0.02)

    def run(
        self, spent: few_windows._Spent, of_row: float, first: float = 0.0, step: int = 3
    ) -> int:
        """Runs a map's nine windows, `step` at a time; how many were run."""
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows

        call = make_call(image(), *WINDOWS.values(), None, 1, None, None)
        watching = spent.watched(advance, call)
        for number in range(9 // step):
            self.now += step * of_row + (first if number == 0 else 0.0)
            watching(step)
        return done


def test_on_a_gpu_seconds_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, spent = Clock(monkeypatch), few_windows._Spent()
    assert clock.run(spent, of_row=0.02, first=3.0) == 9  # loading libraries does not count
    assert spent.total == pytest.approx(0.18)
    assert spent.allows(9)
    assert clock.run(spent, of_row=0.02) == 9
    with pytest.raises(few_windows._GraphPaysError):  # 0.36 are spent, and 0.18 more are too many
        clock.run(spent, of_row=0.02)
    assert not spent.allows(9)


def test_on_a_gpu_a_long_map_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, spent = Clock(monkeypatch), few_windows._Spent()
    with pytest.raises(few_windows._GraphPaysError):
        clock.run(spent, of_row=0.1)
    assert clock.now == pytest.approx(0.6)  # after the second batch
    assert not spent.allows(9)


def test_on_a_gpu_maps_that_take_hardly_any_time_never_need_a_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, spent = Clock(monkeypatch), few_windows._Spent()
    for _ in range(1000):
        assert spent.allows(9)
        assert clock.run(spent, of_row=0.001, step=9) == 9  # one batch
    assert spent.total > 0.5
    assert not spent.allows(900)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_windows, "_on_gpu", lambda call: True)
    monkeypatch.setattr(few_windows, "_SETUP_SECONDS", 1e9)


def test_a_map_that_is_given_up_goes_by_the_graph(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(), image()
    assert KryptonOcclusion(model).heatmap(x, **WINDOWS).report.path == "naive"
    monkeypatch.setattr(few_windows, "_SETUP_SECONDS", 1e-12)
    monkeypatch.setattr(few_windows, "_LEAST_SECONDS", 0.0)
    calls = Calls(model)
    explainer = KryptonOcclusion(calls)
    assert_as_captum(explainer, model, x, target=3)
    assert calls.rows[:3] == [1, 4, 4]
    assert 1 not in calls.rows[3:4]  # a third batch would have one window
    assert explainer.heatmap(x, **WINDOWS).report.path == "incremental"


@pytest.mark.parametrize("examples", [1, 2])
def test_what_was_begun_is_part_of_the_map(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    """Each window runs once: by the forward function or by the graph, but for the checked one."""
    monkeypatch.setattr(few_windows, "_SETUP_SECONDS", 1e-12)
    monkeypatch.setattr(few_windows, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(Begun, "go_on", lambda begun, seconds: begun.run_batch())
    ran: list[int] = []
    evaluate = Execution.evaluate

    def counting(run: Execution, images: Any, base: Any, progress: Any, selected: Any) -> Tensor:
        ran.append(int(selected.sum()))
        return evaluate(run, images, base, progress, selected)

    monkeypatch.setattr(Execution, "evaluate", counting)
    model, x = network(), image(examples)
    calls, windows = Calls(model), {"sliding_window_shapes": (2, 4, 4), "strides": (2, 2, 1)}
    explainer = KryptonOcclusion(calls)
    expected = Occlusion(model).attribute(x, **windows, target=3)
    heat = explainer.heatmap(x, **windows, target=3)
    torch.testing.assert_close(heat.attribution(), expected, rtol=0, atol=1e-7)  # float32
    assert heat.report.path == "incremental" and heat.report.checked_windows == 1
    batch = 4 // examples
    assert calls.rows == [examples, 4, 4, 2, 3, 4, examples]  # two records, one more batch
    assert ran == [examples * (heat.report.windows - 3 * batch + 1)]


def test_later_batches_are_as_large_as_there_is_room(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FewWindows, "_rows_that_fit", lambda few, untouched: 16)
    model, x = network(), image(2)
    calls, windows = Calls(model), {"sliding_window_shapes": (2, 4, 4), "strides": (2, 2, 1)}
    expected = Occlusion(model).attribute(x, **windows, target=3)
    heat = KryptonOcclusion(calls).heatmap(x, **windows, target=3)
    torch.testing.assert_close(heat.attribution(), expected, rtol=0, atol=1e-7)  # float32
    assert heat.report.path == "naive"
    # 45 windows of two examples; then one of them alone, and among others.
    assert calls.rows == [2, 4, 4, *[16] * 5, 2, 2, 16]
    calls.rows.clear()
    KryptonOcclusion(calls).heatmap(x, **windows, target=3, perturbations_per_eval=2)
    assert max(calls.rows) == 4


def test_large_batches_after_single_windows_are_looked_at_too(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_windows, "_ROWS_TOGETHER", {"cpu": 2})
    monkeypatch.setattr(FewWindows, "_rows_that_fit", lambda few, untouched: 16)
    calls, windows = Calls(network()), {"sliding_window_shapes": (2, 4, 4), "strides": (2, 2, 2)}
    assert KryptonOcclusion(calls).heatmap(image(2), **windows).report.path == "naive"
    # 25 windows of two examples: two by themselves, then eight at a time; one alone, and again.
    assert calls.rows == [2, 2, 2, 16, 16, 14, 2, 16]


def test_the_room_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    few = FewWindows(network())
    made = record(network(), (image(2),), (True,))
    assert few._rows_that_fit(made) == 0  # the host's memory is no measure
    result = SimpleNamespace(is_cuda=True, device=torch.device("cuda"), shape=made.result.shape)
    of_row = 8 * (2 * 144 + 2 * 4 * 144 + 5)  # image, two of four channels, scores, at least
    found = []
    for room in (0, of_row, 100 * of_row, 10**6 * of_row):
        monkeypatch.setattr(few_windows, "default_memory_budget", lambda device, r=room: r)
        found.append(few._rows_that_fit(replace(made, result=result)))  # type: ignore[type-var]
        assert found[-1] == 1 or found[-1] * of_row <= room
    assert found[:2] == [1, 1] and found[2] in (16, 32, 64) and found[3] == 512


def test_what_was_begun_checks_the_graph(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_SECONDS", 1e-12)
    monkeypatch.setattr(few_windows, "_LEAST_SECONDS", 0.0)
    scores = Begun.scores
    monkeypatch.setattr(Begun, "scores", lambda begun, windows: scores(begun, windows) + 1e-3)
    with pytest.warns(UserWarning, match="differs from the forward function"):
        assert_as_captum(KryptonOcclusion(network()), network(), image(), target=3)


def test_in_16_bits_nothing_that_was_begun_is_kept(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_SECONDS", 1e-12)
    monkeypatch.setattr(few_windows, "_LEAST_SECONDS", 0.0)
    model, x = network().to(torch.bfloat16), image().to(torch.bfloat16)
    few = FewWindows(model)
    call = make_call(x, *WINDOWS.values(), None, 1, None, None)
    assert few.takes(call, "kind")
    assert few.maps(call, "kind", None) is None
    call = make_call(image(), *WINDOWS.values(), None, 1, None, None)
    few = FewWindows(network())
    assert few.takes(call, "kind") and isinstance(few.maps(call, "kind", None), Begun)


def test_what_fails_meanwhile_is_left_to_the_graph(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_SECONDS", 1e-12)
    monkeypatch.setattr(few_windows, "_LEAST_SECONDS", 0.0)
    model, going = network(), False

    def forward(x: Tensor) -> Tensor:
        if going:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(x)  # type: ignore[no-any-return]

    go_on = Begun.go_on

    def failing(begun: Begun, seconds: float) -> None:
        nonlocal going
        begun.of_window, going = 1e-9, True
        before = begun.windows
        go_on(begun, 1.0)
        assert begun.windows == before
        going = False

    monkeypatch.setattr(Begun, "go_on", failing)
    assert_as_captum(KryptonOcclusion(forward), model, image(), target=3)


def test_the_device_goes_on_for_as_long_as_it_is_asked() -> None:
    begun = Begun(lambda windows: torch.tensor(windows)[:, None], [3, 0, 1, 2, 4, 5, 6], 2)
    begun.go_on(1e9)  # nobody knows yet how long a window takes
    assert begun.windows == []
    begun.run_batch()
    begun.of_window = 0.5
    begun.go_on(1.9)
    assert begun.windows == [3, 0, 1, 2] and begun.left == 3
    assert begun.scores([2, 3]).tolist() == [[2], [3]]
    begun.go_on(1e9)
    assert begun.left == 0 and begun.scores([6, 0]).tolist() == [[6], [0]]


def test_a_budget_of_memory_is_kept_by_the_graph(as_on_a_gpu: None) -> None:
    explainer = KryptonOcclusion(network(), memory_budget=1 << 24)
    assert explainer.heatmap(image(), **WINDOWS).report.path == "incremental"


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x - 0.01 * x.mean(0, keepdim=True),
        lambda x: x.flip(0),
        lambda x: x[-1:].expand_as(x),
        lambda x: x * len(x),
        lambda x: x + torch.arange(len(x), dtype=x.dtype).reshape(-1, 1, 1, 1),
    ],
)
def test_rows_that_are_mixed_are_noticed_on_a_gpu(
    as_on_a_gpu: None, mix: Callable[[Tensor], Tensor]
) -> None:
    model = network()

    def forward(x: Tensor) -> Tensor:
        return model(mix(x))

    explainer = KryptonOcclusion(forward)
    # One window at a time nothing is mixed, and nothing is shown for maps that follow.
    explainer.heatmap(image(), **WINDOWS, perturbations_per_eval=1)
    with pytest.warns(UserWarning, match="Captum's own path"):
        assert_as_captum(explainer, forward, image(), target=3)
