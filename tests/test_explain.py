"""What `KryptonOcclusion.explain` says of a plan, before it runs."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_krypton import Budget, DrillDown, Explanation, KryptonOcclusion
from captum_krypton._explain import OperatorRow
from captum_krypton._kernels import panel_size

WINDOWS = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.first(x).relu()
        x = (self.second(x) + x).relu()
        return self.head(self.third(x).flatten(2).softmax(2).mean(2))


@pytest.fixture
def network() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


def test_one_row_an_operator(network: Residual) -> None:
    explanation = KryptonOcclusion(network).explain(torch.rand(1, 3, 32, 24), **WINDOWS, target=1)
    ((rows, totals),) = explanation.plans
    assert explanation.fallback == ""
    assert [row.operator.removeprefix("aten.") for row in rows[:5]] == [
        "convolution+clamp",
        "convolution+add+clamp",
        "convolution",
        "reshape",
        "_softmax",
    ]
    first, second, third, _, softmax = rows[:5]
    assert [row.kind for row in rows[:5]] == ["local", "local", "local", "global", "global"]
    assert (first.output, first.patch, first.read) == ((8, 32, 24), (6, 6), (8, 8))
    assert (second.output, second.patch, second.read) == ((8, 32, 24), (8, 8), (10, 10))
    assert (third.output, third.patch) == ((8, 16, 12), (5, 5))
    assert softmax.patch == ()
    assert first.macs_full == 32 * 24 * 9 * 3 * 8
    assert 0 < first.macs_incremental <= 36 * 9 * 3 * 8
    assert "windows 48 (1 x 8 x 6)" in totals
    full = sum(row.macs_full for row in rows)
    assert f"full {full:,}" in totals
    assert "aten._softmax" in totals.splitlines()[-1]


def test_totals_are_the_reports(network: Residual) -> None:
    explainer, x = KryptonOcclusion(network), torch.rand(1, 3, 32, 24)
    ((rows, totals),) = explainer.explain(x, **WINDOWS, target=1).plans
    report = explainer.heatmap(x, **WINDOWS, target=1).report
    speedup = sum(row.macs_full for row in rows) / sum(row.macs_incremental for row in rows)
    assert math.isclose(report.theoretical_speedup, speedup, rel_tol=1e-6)
    assert f"theoretical speed-up {report.theoretical_speedup:.2f}" in totals
    assert f"groups {report.groups}" in totals


def test_where_rates_come_from(network: Residual) -> None:
    ((_, totals),) = KryptonOcclusion(network).explain(torch.rand(1, 3, 32, 24), **WINDOWS).plans
    assert "rates: guessed (KRYPTON_MEASURE=0)" in totals.splitlines()


def test_windows_are_not_run(network: Residual) -> None:
    x = torch.rand(1, 3, 32, 24)
    explainer = KryptonOcclusion(network)
    explainer.explain(x, **WINDOWS, target=1)
    assert network.calls <= 4  # the capture's two calls, and the untouched input


def test_a_table_for_people(network: Residual) -> None:
    text = str(KryptonOcclusion(network).explain(torch.rand(1, 3, 32, 24), **WINDOWS, target=1))
    lines = text.splitlines()
    head = "operator kind output patch read-in algorithm MACs full MACs incremental ms predicted"
    assert lines[0].split() == head.split()
    algorithm = "direct" if panel_size() else "torch"
    assert lines[1].split()[:6] == [
        *("convolution+clamp", "local", "8x32x24", "6x6", "8x8"),
        algorithm,
    ]
    assert len(lines[1].split()) == 9


def test_predicted_times_add_up(network: Residual) -> None:
    ((rows, totals),) = KryptonOcclusion(network).explain(torch.rand(1, 3, 32, 24), **WINDOWS).plans
    (said,) = re.findall(r"predicted time: (\S+) s", totals)
    assert all(row.measured is None and row.seconds >= 0 for row in rows)
    assert 0 < sum(row.seconds for row in rows) < float(said)  # which counts calls and the base


def test_measured_times(network: Residual) -> None:
    x = torch.rand(2, 3, 32, 24)
    explanation = KryptonOcclusion(network).explain(x, **WINDOWS, target=1, run=True)
    ((rows, _),) = explanation.plans
    assert all(row.measured is not None and row.measured > 0 for row in rows)
    head, first, *_ = str(explanation).splitlines()
    assert head.endswith("ms measured")
    assert len(first.split()) == 10


@pytest.mark.parametrize(
    "settings, said",
    [
        ({}, ""),
        ({"projective_field_threshold": 0.2}, "over more than 0.2 of a volume's side"),
        ({"drill_down": DrillDown(0.1, 4)}, "runs 20 windows in stage one (one of 3 along"),
        ({"quality": 0.9}, "estimated SSIM is 0.9"),
        ({"budget": Budget(windows=120)}, "within Budget(windows=120, seconds=None)"),
    ],
)
def test_approximations_are_named(network: Residual, settings: dict[str, Any], said: str) -> None:
    x = torch.rand(1, 3, 48, 36)
    krypton = KryptonOcclusion(network, **settings)
    for run in (False, True):
        ((rows, totals),) = krypton.explain(x, **WINDOWS, target=1, run=run).plans
        assert said in totals
        assert ("approximate" in totals) == bool(settings)
        if "projective_field_threshold" in settings:
            assert rows[1].patch == (8, 7) and rows[2].patch == (5, 4)


def test_each_input_has_a_plan() -> None:
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return (a.relu() * 2).flatten(1).sum(1, keepdim=True) + b.flatten(1).mean(1, keepdim=True)

    inputs = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 12, 12)
    explanation = KryptonOcclusion(forward).explain(
        inputs, ((3, 4, 4), (3, 4, 4)), ((3, 4, 4), (3, 4, 4)), target=0
    )
    assert [totals.split()[1] for _, totals in explanation.plans] == ["4", "9"]


def test_a_fallback_is_named() -> None:
    explanation = KryptonOcclusion(lambda x: (x + torch.rand_like(x)).flatten(1)).explain(
        torch.rand(1, 3, 8, 8), **WINDOWS, target=0
    )
    assert explanation.plans == ()
    assert str(explanation).startswith("Captum's own path: ")
    assert "random" in explanation.fallback


@pytest.mark.parametrize(
    ("norm", "window", "said"),
    [
        (nn.GroupNorm(2, 8), 4, "aten.native_group_norm"),
        (nn.InstanceNorm2d(8), 4, "aten.native_batch_norm"),  # of one row
        (nn.GroupNorm(2, 8), 24, "aten.native_group_norm"),
        (nn.BatchNorm2d(8), 4, ""),
    ],
)
def test_what_a_norm_leaves_to_be_saved(norm: nn.Module, window: int, said: str) -> None:
    """Statistics of whole volumes change everything behind them."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    windows = {"sliding_window_shapes": (3, window, window), "strides": (3, window, window)}
    text = str(KryptonOcclusion(network.eval()).explain(torch.randn(1, 3, 32, 32), **windows))
    lines = [line for line in text.splitlines() if "come after it, and are not saved" in line]
    assert len(lines) == (1 if said else 0)
    assert all(line.startswith(said) for line in lines)


ROWS = (OperatorRow("aten.relu", "local", (4, 8), (3,), (3,), 1000, 10.0, "torch", 0.1, None),)


def test_a_notebook_shows_a_plan_as_a_table() -> None:
    explanation = Explanation(((ROWS, "windows 4\nrates: <measured>"),))
    html = explanation._repr_html_()
    assert html.count("<tr>") == 1 + len(ROWS)
    box, table = html.index("overflow:auto"), html.index("<table>")
    assert box < table < html.index("</div>") < html.index("windows 4")  # the totals do not scroll
    assert "<th style='text-align:left'>operator</th>" in html
    assert "<td style='text-align:right'>1,000</td>" in html
    assert "rates: &lt;measured&gt;" in html
    assert repr(explanation) == "<Explanation: 1 operators; print it>"
    assert "<p>Captum&#x27;s own path: &lt;why&gt;</p>" == Explanation((), "<why>")._repr_html_()
