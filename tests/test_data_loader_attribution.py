"""Attributions of a metric over a data set, beside Captum's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import DataLoaderAttribution, FeatureAblation
from small_networks import small_network
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from captum_krypton import (
    KryptonDataLoaderAttribution,
    KryptonFallbackWarning,
    KryptonFeatureAblation,
)

IMAGES = torch.randn(7, 3, 12, 12, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(7) % 5
MASK = (torch.arange(12)[:, None] // 4 * 3 + torch.arange(12) // 4).reshape(1, 1, 12, 12)
HITS = {"input_roles": (0, 2), "reduce": lambda state, output, inputs: hits(state, output, inputs)}


def hits(state: Tensor | None, output: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """Images and hits so far, and the brightness of what was seen."""
    image, label = inputs
    right = (output.argmax(1) == label).sum()
    now = torch.stack([torch.tensor(float(len(label))), right.float(), image.mean()])
    return now if state is None else state + now


def both(model: Any, loader: DataLoader[Any], **arguments: Any) -> tuple[Any, Any]:
    ours = KryptonDataLoaderAttribution(KryptonFeatureAblation(model))
    theirs = DataLoaderAttribution(FeatureAblation(model))
    return ours.attribute(loader, **arguments), theirs.attribute(loader, **arguments)


def loader(*tensors: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=3)


QUESTIONS: dict[str, dict[str, Any]] = {
    "every output": {"input_roles": (0, 2)},
    "states": {**HITS},
    "accuracy": {**HITS, "to_metric": lambda state: state[1] / state[0]},
    "baseline": {**HITS, "baselines": 0.5},
    "features alone": {**HITS, "return_input_shape": False},
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_attributions_are_captums(kind: str) -> None:
    ours, theirs = both(
        small_network(), loader(IMAGES, LABELS), feature_mask=MASK * 2, **QUESTIONS[kind]
    )
    if not isinstance(ours, Tensor):
        (ours,), (theirs,) = ours, theirs
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_is_not_ablated_may_come_first() -> None:
    model = small_network()

    def scaled(scale: Tensor, x: Tensor) -> Tensor:
        out: Tensor = model(x) * scale[:, None]
        return out

    data = loader(LABELS.float(), IMAGES)
    (ours,), (theirs,) = both(scaled, data, input_roles=(1, 0), feature_mask=MASK)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_feature_over_several_inputs_is_captums() -> None:
    model = small_network()
    data, masks = loader(IMAGES, IMAGES.flip(-1)), (MASK, MASK)
    with pytest.warns(KryptonFallbackWarning, match="several inputs"):
        ours, theirs = both(lambda x, y: model(x + y), data, feature_mask=masks)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_data_are_read_once() -> None:
    read: list[int] = []

    class Watched(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    data = DataLoader(Watched(IMAGES, LABELS), batch_size=3)
    ours = KryptonDataLoaderAttribution(KryptonFeatureAblation(small_network()))
    ours.attribute(data, feature_mask=MASK, **HITS)
    first = 3  # for the shapes
    assert len(read) == first + len(IMAGES)


def test_another_method_is_refused() -> None:
    with pytest.raises(TypeError, match="attr_method must be a KryptonFeatureAblation"):
        KryptonDataLoaderAttribution(FeatureAblation(small_network()))
