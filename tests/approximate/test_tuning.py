"""Tuning (Section 4.4), on maps that are known and on a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import small_network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from captum_krypton import KryptonOcclusion, Tuning, ssim
from captum_krypton._approximate.tuning import THRESHOLDS, chosen, sample, tuned

QUESTION: dict[str, Any] = {"sliding_window_shapes": (3, 6, 6), "strides": (3, 2, 2)}


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 24, 20, generator=torch.Generator().manual_seed(seed))


@given(
    curve=st.tuples(st.floats(-2, 0), st.floats(0.5, 1)),
    target=st.one_of(st.floats(0.1, 0.99), st.just(1.0)),
)
def test_the_chosen_threshold_is_the_smallest_that_meets_the_target(
    curve: tuple[float, float], target: float
) -> None:
    """On exact parabolas, against a search over all hundredths."""

    def quality(threshold: Any) -> Any:
        return np.minimum(curve[1] + curve[0] * (1 - np.asarray(threshold)) ** 2, 1)

    table = [quality(THRESHOLDS).tolist()] * 2
    found = chosen(THRESHOLDS, table, target)
    meets = [t / 100 for t in range(40, 100) if quality(t / 100) >= target - 1e-9]
    assert found in (1.0, 0.4) or quality(found) >= target - 1e-9
    if target < 1:  # at 1, rounding decides
        assert found == pytest.approx(min(meets, default=1.0), abs=0.0101)


def test_quality_that_falls_in_steps() -> None:
    """Two thirds of the thresholds look alike: the curve meets the target where no image does."""
    plain = np.random.default_rng(0).normal(size=(12, 12))

    def maps(image: Tensor, threshold: float) -> Tensor:
        step = 0.0 if threshold > 0.85 else 0.25 if threshold > 0.55 else 1.2
        noise = np.random.default_rng(int(image.sum())).normal(size=plain.shape)
        return torch.from_numpy(plain + step * noise)

    images = [torch.full((1,), float(number)) for number in range(3)]
    at = [ssim(plain, maps(images[0], t).numpy()) for t in THRESHOLDS]
    target = (at[2] + 1) / 2  # above the second step
    threshold, table, own, _ = tuned(maps, images, [], target, THRESHOLDS, lambda: None)
    assert chosen(THRESHOLDS, table, target) < 0.85 < threshold == 0.9
    assert own == [row[1] for row in table]
    assert np.mean(own) >= target


def test_a_tuning_from_images_to_a_map(tmp_path: Path) -> None:
    network = small_network()
    krypton = KryptonOcclusion(network)
    tuning = krypton.tune(images(4), 0.9, held_out=images(3, seed=1), **QUESTION)
    assert 0.4 <= tuning.threshold <= 1
    assert np.shape(tuning.ssim) == (4, 7)
    assert [row[0] for row in tuning.ssim] == [1.0] * 4
    assert (len(tuning.at_threshold), len(tuning.held_out)) == (4, 3)
    assert tuning.predicted(tuning.threshold) >= 0.9 or tuning.threshold == 1
    assert np.mean(tuning.at_threshold) >= 0.9

    first = images(1)
    exact = krypton.heatmap(first, **QUESTION)
    for threshold, quality in zip(tuning.thresholds, tuning.ssim[0], strict=True):
        other = KryptonOcclusion(network, projective_field_threshold=threshold)
        made = other.heatmap(first, **QUESTION)
        assert ssim(exact.scores[0], made.scores[0]) == pytest.approx(quality)

    path = tmp_path / "tuning.json"
    tuning.save(path)
    loaded = Tuning.load(path)
    assert loaded == tuning
    tuned = KryptonOcclusion(network, tuning=loaded)
    heat = tuned.heatmap(first, **QUESTION)
    assert heat.report.threshold == tuning.threshold
    assert ssim(exact.scores[0], heat.scores[0]) == pytest.approx(tuning.at_threshold[0])
    figure = loaded.plot()
    assert len(figure.axes) == 2

    with pytest.raises(ValueError, match=r"tuning is for windows .*\(3, 6, 6\)"):
        tuned.heatmap(first, sliding_window_shapes=(3, 5, 5), strides=(3, 2, 2))
    with pytest.raises(ValueError, match="tuning is for another model"):
        KryptonOcclusion(other_weights(network), tuning=loaded).attribute(first, **QUESTION)
    with pytest.raises(ValueError, match="exclude each other"):
        KryptonOcclusion(network, tuning=loaded, projective_field_threshold=0.5)
    with pytest.raises(TypeError, match="tuning must be a Tuning"):
        KryptonOcclusion(network, tuning=0.9)  # type: ignore[arg-type]


def other_weights(network: nn.Module) -> nn.Module:
    other = small_network()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    return other


def test_files_that_hold_no_tuning(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text in ("", "[]", "{}", json.dumps({"format": 2}), json.dumps({"format": 1, "a": 1})):
        path.write_text(text)
        with pytest.raises(ValueError, match="other.json' holds no tuning"):
            Tuning.load(path)


def test_sources_of_images() -> None:
    whole = images(5)
    labels = torch.arange(5)
    sources: list[Any] = [
        whole,
        list(whole),
        [whole[:2], whole[2:]],
        DataLoader(TensorDataset(whole, labels), batch_size=2),
        TensorDataset(whole, labels),
    ]
    for source in sources:
        for limit in (3, 5, 30):
            taken = list(sample(source, limit))
            assert torch.equal(torch.cat(taken), whole[:limit])
    with pytest.raises(TypeError, match="holds str"):
        list(sample(["a"], 3))


def test_what_tune_refuses() -> None:
    krypton = KryptonOcclusion(small_network())
    with pytest.raises(ValueError, match="target_ssim must be"):
        krypton.tune(images(1), 1.5, **QUESTION)
    with pytest.raises(ValueError, match="thresholds must be three"):
        krypton.tune(images(1), thresholds=(1.0, 0.5), **QUESTION)
    with pytest.raises(ValueError, match="images must have one shape"):
        krypton.tune(images(1), held_out=torch.rand(1, 3, 32, 32), **QUESTION)
    with pytest.raises(ValueError, match="images must have finite outcomes"):
        krypton.tune(torch.full_like(images(1), torch.nan), **QUESTION)
    with pytest.raises(ValueError, match="images must hold one"):
        krypton.tune([], **QUESTION)

    def fails(x: Tensor) -> Tensor:
        return x.flatten(1) * torch.rand(())

    with pytest.raises(ValueError, match="forward_func cannot be tuned: .*random"):
        KryptonOcclusion(fails).tune(images(1), **QUESTION)
