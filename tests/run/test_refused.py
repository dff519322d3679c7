"""Inputs in a form that the model does not take: what is said of them."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_krypton import KryptonFallbackWarning, KryptonFeatureAblation, KryptonOcclusion

IMAGE = torch.rand(3, 8, 8)


class Net(nn.Module):
    """Takes (N, 3, 8, 8) of float32 and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.conv(x)).amax((2, 3)))
        return out


FORMS = {
    "no batch": (IMAGE, "inputs[None]"),
    "bytes": ((IMAGE * 255).byte()[None], "inputs.to(torch.float32), scaled and normalized"),
    "float64": (IMAGE.double()[None], "inputs.to(torch.float32)"),
    "channels last": (IMAGE.permute(1, 2, 0)[None], "inputs.movedim(-1, 1)"),
    "a picture": (
        (IMAGE.permute(1, 2, 0) * 255).byte(),
        "inputs.movedim(-1, 0)[None].to(torch.float32), scaled and normalized",
    ),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("target", [{}, {"target": 0}], ids=["predicted", "given"])
def test_says_which_form_the_model_takes(name: str, target: dict[str, int]) -> None:
    inputs, words = FORMS[name]
    krypton = KryptonOcclusion(Net().eval())
    kind, shape = str(inputs.dtype).removeprefix("torch."), tuple(inputs.shape)
    said = re.escape(f"inputs of shape {shape} and {kind} make forward_func fail with")
    for method in krypton.attribute, krypton.heatmap, krypton.explain:
        with pytest.raises(ValueError, match=f"{said}.*; it takes {re.escape(words)}"):
            method(inputs, **target)


def test_features_too() -> None:
    ablation = KryptonFeatureAblation(Net().eval())
    mask = torch.arange(8) // 4
    with pytest.raises(ValueError, match="it takes inputs.to"):
        ablation.attribute((IMAGE * 255).byte()[None], target=0, feature_mask=mask)


def test_the_form_it_names_makes_a_map() -> None:
    krypton = KryptonOcclusion(Net().eval())
    picture = FORMS["a picture"][0]
    scores = krypton.heatmap(picture.movedim(-1, 0)[None].to(torch.float32)).scores
    assert scores.shape[0] == 1 and scores.isfinite().all()


def test_other_failures_are_the_models_own() -> None:
    krypton = KryptonOcclusion(Net().eval())
    with pytest.warns(KryptonFallbackWarning, match="5 channels"):
        with pytest.raises(RuntimeError, match="5 channels") as caught:
            krypton.heatmap(torch.rand(1, 5, 8, 8))
    assert not isinstance(caught.value, ValueError)


def test_two_axes_have_no_batch_either() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dim() != 3:
                raise TypeError("three axes")
            return x.mean(2)

    with pytest.raises(ValueError, match=r"three axes\); it takes inputs\[None\]"):
        KryptonOcclusion(Mean().eval()).heatmap(IMAGE[0])


def test_a_window_for_an_image_without_a_batch() -> None:
    krypton = KryptonOcclusion(Net().eval())
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), of which the first .* inputs\[None\]"):
        krypton.attribute(IMAGE, (3, 4, 4), target=0)
    with pytest.raises(AssertionError, match="should be a tuple with 3 dimensions.$"):
        krypton.attribute(IMAGE[None], (4, 4), target=0)


@pytest.mark.parametrize("inputs", [IMAGE[None], IMAGE[None].double()], ids=["float32", "float64"])
def test_a_model_that_fails_on_copies_alone_goes_captums_way(inputs: Tensor) -> None:
    """Its random numbers are as without us, also where other forms were tried."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1:
                raise RuntimeError("one at a time")
            return x.mean((2, 3)).to(self.weight.dtype) * self.weight + torch.rand(1)

    from captum.attr import Occlusion

    def attributions(method: type[Any]) -> Tensor:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KryptonFallbackWarning)
            out: Tensor = method(One().eval()).attribute(inputs, (3, 4, 4), target=0)
        return out

    torch.testing.assert_close(attributions(KryptonOcclusion), attributions(Occlusion))
