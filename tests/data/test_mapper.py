"""`OcclusionMapper` on batches of arrays, against plain loops."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mapped import WINDOWS, as_inputs, load_model, plain_map, some_images
from torch import Tensor, nn

from captum_krypton import Budget
from captum_krypton.data import OcclusionMapper, RowError

ADDED = ["scores", "reference", "target", "estimated_ssim", "seconds", "path"]


def mapper_of(model: Any = load_model, **arguments: Any) -> OcclusionMapper:
    return OcclusionMapper(model, **{**WINDOWS, "device": "cpu", **arguments})


@torch.no_grad()
def predicted(model: nn.Module, x: Tensor) -> list[int]:
    return [int(index) for index in model(x).argmax(1)]


def test_maps_are_those_of_a_plain_loop() -> None:
    images, model = some_images(3), load_model()
    batch = {"image": images, "path": ["a", "b", "c"], "number": np.arange(3)}
    made = mapper_of()(batch)
    assert list(made) == [*batch, *(f"occlusion_{name}" for name in ADDED)]
    assert all(made[name] is batch[name] for name in batch)
    x = as_inputs(images)
    targets = predicted(model, x)
    assert made["occlusion_target"].tolist() == targets
    with torch.no_grad():
        want = [float(model(x)[row, target]) for row, target in enumerate(targets)]
    np.testing.assert_allclose(made["occlusion_reference"], want, rtol=1e-5, atol=1e-6)
    for row, target in enumerate(targets):
        want_map = plain_map(model, x[row], target)
        np.testing.assert_allclose(made["occlusion_scores"][row], want_map, rtol=1e-5, atol=1e-6)
    assert set(made["occlusion_path"]) == {"incremental"}
    assert (made["occlusion_estimated_ssim"] == 1).all()
    assert (made["occlusion_seconds"] > 0).all()


def test_types_of_columns() -> None:
    made = mapper_of()({"image": some_images(2)})
    kinds = {
        name: (made[f"occlusion_{name}"].dtype.str, made[f"occlusion_{name}"].shape)
        for name in ADDED
    }
    assert kinds == {
        "scores": ("<f4", (2, 7, 7)),
        "reference": ("<f4", (2,)),
        "target": ("<i8", (2,)),
        "estimated_ssim": ("<f8", (2,)),
        "seconds": ("<f8", (2,)),
        "path": ("<U11", (2,)),
    }


@pytest.mark.parametrize("column", ["label", None])
def test_targets_of_rows_and_of_all(column: str | None) -> None:
    images, labels = some_images(2), np.array([4, 0])
    made = mapper_of(target=column or 4)({"image": images, "label": labels})
    wanted = labels.tolist() if column else [4, 4]
    assert made["occlusion_target"].tolist() == wanted
    for row, target in enumerate(wanted):
        want = plain_map(load_model(), as_inputs(images)[row], target)
        np.testing.assert_allclose(made["occlusion_scores"][row], want, rtol=1e-5, atol=1e-6)


def dense_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


@pytest.mark.parametrize("target", [(1, 5, 6), "place", "predicted"])
def test_targets_with_several_indices_are_text(target: Any) -> None:
    images = some_images(2)
    places = [(1, 5, 6), (0, 31, 2)]
    arguments = {} if target == "predicted" else {"target": target}
    made = mapper_of(dense_model, **arguments)({"image": images, "place": places})
    found = [tuple(json.loads(text)) for text in made["occlusion_target"]]
    with torch.no_grad():
        outputs = dense_model()(as_inputs(images)).numpy()
    largest = [np.unravel_index(one.argmax(), one.shape) for one in outputs]
    assert found == {"place": places, "predicted": largest}.get(str(target), [places[0]] * 2)
    want = [outputs[row][place] for row, place in enumerate(found)]
    np.testing.assert_allclose(made["occlusion_reference"], want, rtol=1e-5, atol=1e-6)


class OneNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = load_model()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, 3]


def test_a_model_with_one_outcome_has_no_target() -> None:
    made = mapper_of(OneNumber().eval())({"image": some_images(2)})
    assert made["occlusion_target"].tolist() == [-1, -1]
    want = plain_map(load_model(), as_inputs(some_images(2))[1], 3)
    np.testing.assert_allclose(made["occlusion_scores"][1], want, rtol=1e-5, atol=1e-6)


def test_images_of_several_shapes() -> None:
    images = np.empty(3, object)
    images[:] = [some_images(1, side)[0] for side in (32, 24, 32)]
    made = mapper_of()({"image": images})
    assert made["occlusion_scores"].dtype == object
    assert [scores.shape for scores in made["occlusion_scores"]] == [(7, 7), (5, 5), (7, 7)]
    for image, scores, target in zip(
        images, made["occlusion_scores"], made["occlusion_target"], strict=True
    ):
        want = plain_map(load_model(), as_inputs(image[None])[0], int(target))
        np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-6)


def test_images_of_one_shape_in_an_object_array() -> None:
    images = np.empty(2, object)
    images[:] = list(some_images(2))
    assert mapper_of()({"image": images})["occlusion_scores"].shape == (2, 7, 7)


def test_no_rows() -> None:
    mapper = mapper_of(errors="row")
    empty = {"image": some_images(0), "name": []}
    first = mapper(empty)
    assert {len(column) for column in first.values()} == {0}
    full = mapper({"image": some_images(2), "name": ["a", "b"]})
    again = mapper(empty)
    assert again["occlusion_scores"].shape == (0, 7, 7)
    assert {n: c.dtype.kind for n, c in again.items() if n != "name"} == {
        n: c.dtype.kind for n, c in full.items() if n != "name"
    }
    assert list(first) == list(full)


def test_a_tensor_of_floats_is_an_input_already() -> None:
    x = as_inputs(some_images(2))
    made = mapper_of()({"image": x})
    want = mapper_of()({"image": some_images(2)})
    np.testing.assert_array_equal(made["occlusion_scores"], want["occlusion_scores"])


def test_quality_and_its_estimate() -> None:
    made = mapper_of(strides=(3, 2, 2), quality=0.5)({"image": some_images(1)})
    assert 0.5 <= made["occlusion_estimated_ssim"][0] <= 1
    cropped = mapper_of(projective_field_threshold=0.6)({"image": some_images(1)})
    assert np.isnan(cropped["occlusion_estimated_ssim"]).all()  # nothing was estimated


def test_double_precision_stays() -> None:
    made = mapper_of(
        load_model().double(), transform=lambda a: torch.from_numpy(a).double().movedim(-1, 0) / 255
    )({"image": some_images(1)})
    assert made["occlusion_scores"].dtype == made["occlusion_reference"].dtype == np.float64


def test_baselines() -> None:
    images = some_images(1)
    for baselines in (0.5, torch.full((1, 3, 32, 32), 0.5)):
        made = mapper_of(target=2, baselines=baselines)({"image": images})
        want = plain_map(load_model(), as_inputs(images)[0], 2, fill=0.5)
        np.testing.assert_allclose(made["occlusion_scores"][0], want, rtol=1e-5, atol=1e-6)


# Broken rows


def broken_batch() -> dict[str, Any]:
    """Six rows; those at 1, 2, 3 and 5 cannot be explained, each for a reason of its own."""
    images = np.empty(6, object)
    images[:] = list(some_images(6))
    images[1] = images[1][..., :2]  # two channels
    images[2] = np.full((3, 32, 32), np.nan, np.float32)
    images[3] = b"not an image"
    return {
        "image": images,
        "path": np.array([f"{row}.png" for row in range(6)], object),
        "label": [0, 1, 2, 3, 4, 5],  # the network has five classes
        "number": np.arange(6),
    }


REASONS = ["", "RuntimeError: ", "not finite", "type bytes", "", "IndexError: "]


def test_a_broken_row_is_kept_with_its_reason() -> None:
    batch = broken_batch()
    made = mapper_of(target="label", errors="row")(batch)
    assert all(made[name] is batch[name] for name in batch)
    for found, reason in zip(made["occlusion_error"], REASONS, strict=True):
        assert reason in found and bool(found) is bool(reason)
    assert made["occlusion_target"].tolist() == [0, -1, -1, -1, 4, -1]
    assert made["occlusion_scores"].shape == (6, 7, 7)
    for row, reason in enumerate(REASONS):
        for name in ("scores", "reference", "seconds"):
            assert bool(np.isnan(made[f"occlusion_{name}"][row]).all()) is bool(reason)
        assert made["occlusion_path"][row] == ("" if reason else "incremental")


def test_a_broken_row_is_skipped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    batch = broken_batch()
    with caplog.at_level(logging.WARNING, "captum_krypton"):
        made = mapper_of(target="label", errors="skip")(batch)
    assert made["path"].tolist() == ["0.png", "4.png"]
    assert made["label"] == [0, 4] and made["number"].tolist() == [0, 4]
    assert {len(column) for column in made.values()} == {2}
    assert "occlusion_error" not in made
    whole = mapper_of(target="label")(
        {name: [column[0], column[4]] for name, column in batch.items()}
    )
    np.testing.assert_array_equal(made["occlusion_scores"], whole["occlusion_scores"])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert all(f"{row}.png" in text for row, text in zip((1, 2, 3, 5), said, strict=True))


def test_a_broken_row_is_named() -> None:
    with pytest.raises(RowError, match=r"^row 1 of 6 \(path='1.png'\): RuntimeError: ") as caught:
        mapper_of(target="label")(broken_batch())
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("errors", ["row", "skip"])
@pytest.mark.parametrize("after_a_good_one", [False, True])
def test_a_batch_in_which_every_row_is_broken(errors: Any, after_a_good_one: bool) -> None:
    mapper = mapper_of(errors=errors)
    if after_a_good_one:
        mapper({"image": some_images(1)})
    made = mapper({"image": [b"one", b"two"], "number": np.arange(2)})
    count = 2 if errors == "row" else 0
    assert {len(column) for column in made.values()} == {count}
    shape = (7, 7) if after_a_good_one else (0, 0)
    assert made["occlusion_scores"].shape == (count, *shape)
    assert made["occlusion_scores"].dtype == np.float32
    assert made["occlusion_target"].dtype == np.int64


def test_a_broken_row_among_several_shapes() -> None:
    images = [some_images(1)[0], b"broken", some_images(1, 24)[0]]
    made = mapper_of(errors="row")({"image": images})
    assert [scores.shape for scores in made["occlusion_scores"]] == [(7, 7), (0, 0), (5, 5)]


def refuse(image: Any) -> Tensor:
    raise OSError("cannot identify image file")


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (refuse, "OSError: cannot identify image file"),
        (lambda image: image, "TypeError: transform must return a tensor .* not ndarray"),
        (lambda image: torch.zeros(3, 32, 32, dtype=torch.int64), "floats, not of torch.int64"),
        (lambda image: torch.zeros(3, 0, 32), r"an input is \(C, H, W\), not \(3, 0, 32\)"),
    ],
)
def test_what_a_transform_may_do_wrong(transform: Callable[[Any], Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        mapper_of(transform=transform)({"image": some_images(1)})


def test_a_transform_may_write_to_its_image() -> None:
    def transform(image: Any) -> Tensor:
        image[:] = 0
        return torch.from_numpy(image).movedim(-1, 0).float()

    images = some_images(1)
    before = images.copy()
    mapper_of(transform=transform)({"image": images})
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("target", [1.5, "cat", [1.5], None])
def test_cells_that_are_no_targets(target: Any) -> None:
    with pytest.raises(RowError, match="a target is an integer or a tuple of integers, not "):
        mapper_of(target="label")({"image": some_images(1), "label": [target]})


def test_several_outcomes_want_a_target() -> None:
    with pytest.raises(RowError, match=r"returns \(32, 32\) outcomes .* expected one: pass a `tar"):
        mapper_of(dense_model, target=(1,))({"image": some_images(1)})


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, torch.AcceleratorError])
def test_what_is_not_the_rows_fault_is_raised(error: Any) -> None:
    def transform(image: Any) -> Tensor:
        raise error("no memory")

    with pytest.raises(error):
        mapper_of(transform=transform, errors="skip")({"image": some_images(1)})


# Batches and arguments that are wrong as a whole


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"picture": [1]}, KeyError, "no column 'image', only"),
        ({"image": some_images(1)}, KeyError, "no column 'label', only"),
        ({"image": some_images(2), "label": [1]}, ValueError, "one length"),
        (
            {"image": some_images(1), "label": [1], "occlusion_path": ["a"]},
            ValueError,
            r"has columns \['occlusion_path'\] already: pass another `prefix`",
        ),
    ],
)
def test_batches_that_are_wrong(batch: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        mapper_of(target="label", errors="skip")(batch)


def test_another_prefix_and_column() -> None:
    mapper = mapper_of(prefix="map_", column="picture")
    made = mapper({"picture": some_images(1), "occlusion_path": ["here before"]})
    assert made["occlusion_path"] == ["here before"] and made["map_scores"].shape == (1, 7, 7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a module or a function"),
        ({"transform": 3}, TypeError, "transform must be callable, not int"),
        ({"target": None}, TypeError, "a target is an integer or"),
        ({"target": 1.0}, TypeError, "a target is an integer or"),
        ({"errors": "ignore"}, ValueError, "errors must be one of"),
        ({"threads": 0}, ValueError, "threads must be an integer of at least 1"),
        ({"quality": 1.5}, ValueError, "quality must be above 0"),
        ({"budget": 3}, TypeError, "budget must be a Budget"),
        ({"qualty": 0.9}, TypeError, "qualty"),
    ],
)
def test_arguments_are_refused_before_anything_runs(
    arguments: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        mapper_of(**arguments)


@pytest.mark.parametrize("errors", ["raise", "skip"])
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (load_model().train(), ValueError, "training mode: call its `eval"),
        (lambda: 3, TypeError, "model must make a module, not int"),
        (lambda: open("there/is/none"), FileNotFoundError, "there/is/none"),
    ],
)
def test_models_that_are_no_rows_fault(model: Any, error: Any, message: str, errors: Any) -> None:
    with pytest.raises(error, match=message):
        mapper_of(model, errors=errors)({"image": some_images(1)})


# One object, in and between processes


def test_the_model_is_made_once_and_captured_once() -> None:
    calls, made = [], []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = load_model()

        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return self.network(x)

    def load() -> nn.Module:
        made.append(1)
        return Counting().eval()

    mapper = mapper_of(load)
    mapper({"image": some_images(1)})
    first = len(calls)
    mapper({"image": some_images(3, seed=1)})
    assert made == [1]
    assert (len(calls) - first) / 3 < first  # later maps run the forward function less often


def test_a_pickled_mapper_is_the_same_without_what_it_made() -> None:
    mapper = mapper_of(target=1, errors="row", strides=(3, 2, 2), budget=Budget(windows=120))
    fresh = len(pickle.dumps(mapper))
    want = mapper({"image": some_images(2)})
    assert len(pickle.dumps(mapper)) == fresh
    made = pickle.loads(pickle.dumps(mapper))({"image": some_images(2)})
    assert list(made) == list(want)
    np.testing.assert_array_equal(made["occlusion_scores"], want["occlusion_scores"])
    assert made["occlusion_target"].tolist() == [1, 1]


def test_threads_take_turns() -> None:
    inside, together = [0], [0]

    def transform(image: Any) -> Tensor:
        inside[0] += 1
        together[0] = max(together[0], inside[0])
        done.wait(0.01)
        inside[0] -= 1
        return torch.from_numpy(image).movedim(-1, 0).float() / 255

    done = threading.Event()
    mapper, images = mapper_of(transform=transform), some_images(6)
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        results[number] = mapper({"image": images[2 * number : 2 * number + 2]})

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert together == [1]
    want = mapper_of()({"image": images})["occlusion_scores"]
    found = np.concatenate([results[number]["occlusion_scores"] for number in range(3)])
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("threads", [None, 2])
def test_threads_of_torch(threads: int | None) -> None:
    before = torch.get_num_threads()
    try:
        mapper_of(threads=threads)({"image": some_images(1)})
        assert torch.get_num_threads() == (threads or before)
    finally:
        torch.set_num_threads(before)


def test_a_batch_of_a_later_process_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    mapper = mapper_of()
    mapper({"image": some_images(1)})
    with mapper._worker.lock:  # as a thread of the parent may have held it at a fork
        monkeypatch.setattr("os.getpid", lambda: -1)
        made = mapper({"image": some_images(1)})
    assert made["occlusion_scores"].shape == (1, 7, 7)


# For Spark


def test_rows_for_spark() -> None:
    images, mapper = some_images(2), mapper_of(target="label", errors="row")
    rows = mapper.make_predict_fn()(images, np.array([1, 9]))
    want = mapper({"image": images, "label": np.array([1, 9])})
    names = [field.split()[0] for field in mapper.spark_schema.split(", ")]
    assert [list(row) for row in rows] == [names, names]
    np.testing.assert_array_equal(
        rows[0]["occlusion_scores"].reshape(rows[0]["occlusion_grid"]), want["occlusion_scores"][0]
    )
    assert [row["occlusion_target"] for row in rows] == [1, -1]
    assert "IndexError" in rows[1]["occlusion_error"]
    alone = mapper_of().make_predict_fn()(images)
    assert [list(row["occlusion_grid"]) for row in alone] == [[7, 7], [7, 7]]


def test_spark_cannot_skip_rows() -> None:
    with pytest.raises(ValueError, match="drops rows"):
        mapper_of(errors="skip").make_predict_fn()
