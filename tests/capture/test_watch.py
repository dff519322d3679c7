"""What a forward function did when it was captured, and what it does at a later call."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._capture.watch import watched
from captum_krypton._run import few_windows

WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2), "target": 1}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 0.2}


class Changing(nn.Module):
    """Reads Python values that no parameter shows, in many ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.numbers, self.array = [1.0, 1.0, 1.0], np.ones(3)
        self.order, self.sign, self.first = [0, 1, 2], 1.0, True
        self.deep, self.late = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.p, self.q = nn.Linear(36, 5), nn.Linear(36, 5)
        self.large = 0.0

    def forward(self, x: Tensor) -> Tensor:
        untouched = x
        x = x * torch.tensor(self.numbers, dtype=x.dtype).view(1, 3, 1, 1)
        x = x * torch.from_numpy(self.array).to(x.dtype).view(1, 3, 1, 1)
        x = x[:, torch.as_tensor(self.order)]
        x = x * x.new_tensor([self.sign])
        conv = self.deep if self.first else self.late
        y = F.adaptive_avg_pool2d(conv(x).relu(), 3).flatten(1)
        a, b = self.p(y), self.q(y)
        out = torch.sub(a, b) if self.first else torch.sub(b, a)
        if self.large:
            out = torch.cat([untouched.mean((1, 2, 3))[:, None] * self.large, out[:, 1:]], 1)
        return out


CHANGES: dict[str, Callable[[Changing], object]] = {
    "a list": lambda m: m.numbers.__setitem__(0, 3.0),
    "an array": lambda m: m.array.__setitem__(1, -2.0),
    "an order": lambda m: m.order.reverse(),
    "a number": lambda m: setattr(m, "sign", -1.0),
    "another module, and swapped operands": lambda m: setattr(m, "first", False),
    "a list of another value each": lambda m: setattr(m, "numbers", [0.5, 2.0, 1.5]),
}


def assert_same(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    off = (got.double() - expected.double()).abs().max()
    assert off <= TOLERANCE[dtype] * expected.double().abs().max()


@given(data=st.data())
def test_what_no_parameter_shows_is_noticed(data: st.DataObject) -> None:
    """Also where the untouched outcome hardly changes, or other outputs are much larger."""
    dtype = data.draw(st.sampled_from(DTYPES))
    change = CHANGES[data.draw(st.sampled_from(sorted(CHANGES)))]
    model = Changing()
    model.large = data.draw(st.sampled_from([0.0, 1e4]))
    model = model.to(dtype).eval()
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    arguments = dict(WINDOWS)
    if data.draw(st.booleans()):
        x[:, data.draw(st.integers(0, 2))] = 0  # this channel shows nothing of the untouched image
        arguments["baselines"] = 1.0
    explainer = KryptonOcclusion(model)
    for _ in range(data.draw(st.integers(1, 2))):
        explainer.attribute(x, **arguments)
    change(model)
    got = explainer.attribute(x, **arguments)
    assert_same(got, Occlusion(model).attribute(x, **arguments), dtype)


@pytest.mark.parametrize("change", CHANGES)
def test_notes_tell_a_change(change: str) -> None:
    model, x = Changing().eval(), torch.rand(1, 3, 12, 12)
    leaves = tuple(model.parameters())
    before = watched(model, (x,), leaves)[1]
    assert watched(model, (x + 1,), leaves)[1] == before  # whatever the image
    CHANGES[change](model)
    assert watched(model, (x,), leaves)[1] != before


def test_notes_tell_the_wiring() -> None:
    """The same operators on tensors of the same kinds, connected in another way."""
    x = torch.rand(2, 3)
    functions = [
        lambda x: (x.exp() - x.sin()) * x,
        lambda x: (lambda a, b: (b - a) * x)(x.exp(), x.sin()),
        lambda x: (lambda a, b: (a - b) * a)(x.exp(), x.sin()),
        lambda x: (lambda a, b: ((a - b) * x, a)[1])(x.exp(), x.sin()),
    ]
    notes = [watched(function, (x,), ())[1] for function in functions]
    assert all(notes[i] != notes[j] for i in range(4) for j in range(i))
    assert watched(functions[0], (x,), ())[1] == notes[0]


def test_a_door_that_opens_later_is_noticed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 3)).eval()
    careful = [False]

    def forward(x: Tensor) -> Tensor:
        if careful[0] and x.numpy().max() > 2:
            x = -x
        return model(x)

    x, explainer = torch.rand(1, 3, 12, 12), KryptonOcclusion(forward)
    explainer.attribute(x, **WINDOWS)
    careful[0] = True
    arguments = {**WINDOWS, "baselines": 3.0}  # the untouched image takes the branch it took
    with pytest.warns(UserWarning, match="takes values out of a tensor"):
        got = explainer.attribute(x, **arguments)
    assert_same(got, Occlusion(forward).attribute(x, **arguments), torch.float32)


class Box:
    """An argument that holds memory; `__slots__` or not, hashable or not."""

    def __init__(self) -> None:
        self.tensor = torch.rand(64)


class Unhashable(Box):
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("make", [Box, Unhashable])
@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: [b], lambda b: {"box": (b, 1)}])
@pytest.mark.parametrize("kind", ["few", "graph", "fall-back"])
def test_additional_arguments_are_freed(
    make: type[Box], wrap: Callable[[Any], Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_ROWS", 10**6 if kind == "few" else 0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 3)).eval()

    def forward(x: Tensor, box: Any) -> Tensor:
        out: Tensor = model(x)
        return out + torch.rand_like(out) * 0 if kind == "fall-back" else out

    box = make()
    alive, explainer = weakref.ref(box), KryptonOcclusion(forward)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        arguments = {**WINDOWS, "additional_forward_args": (wrap(box),)}
        explainer.attribute(torch.rand(1, 3, 12, 12), **arguments)
    del arguments
    del box
    gc.collect()
    assert alive() is None


def test_other_values_of_an_argument_are_told_apart() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 3)).eval()

    def forward(x: Tensor, how: Any) -> Tensor:
        out: Tensor = model(x)
        return out * how["scale"] + how["shift"][0]

    x, explainer = torch.rand(1, 3, 12, 12), KryptonOcclusion(forward)
    for scale in (-1, -2, 1, True, 1.0):  # hash(-1) == hash(-2)
        arguments = {**WINDOWS, "additional_forward_args": ({"scale": scale, "shift": [0.5]},)}
        got = explainer.attribute(x, **arguments)
        assert_same(got, Occlusion(forward).attribute(x, **arguments), torch.float32)
