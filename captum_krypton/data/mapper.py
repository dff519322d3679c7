"""`OcclusionMapper`: a batch of columns in, the same with maps out."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import PREDICTED, KryptonOcclusion, OcclusionMap
from .columns import ADDED, Form, columns_of, flat, form_of, kept
from .rows import Broken, Explained, RowError, checked, name_of, target_of
from .workers import assigned_cores, assigned_device

__all__ = ["OcclusionMapper"]

_logger = logging.getLogger("captum_krypton")
_ERRORS = ("raise", "row", "skip")
# What is wrong with the worker, not with the row that it was at.
_NOT_THE_ROW = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)


class OcclusionMapper:
    """Adds occlusion maps to batches of images, as data frameworks hand them out.

    A batch is a dict of columns, arrays whose first axis is the rows. An object of this class is
    called with one and returns it with columns added, the others untouched:

    - `occlusion_scores`: the outcome with each window covered, float32 (float64 where the model
      computes in it): (N, grid...), or an object array of arrays where grids differ.
    - `occlusion_reference`: the outcome of the untouched image, (N,).
    - `occlusion_target`: which output that is, int64; -1 where the model has one alone; where it is
      a tuple, JSON such as `[3, 10, 20]`.
    - `occlusion_estimated_ssim`: the map's own estimate of its similarity to the exact one,
      float64; not a number where nothing was estimated.
    - `occlusion_seconds`: what the map took, float64.
    - `occlusion_path`: how it was made, see `Report.path`.
    - `occlusion_error`, with `errors="row"`: why there is no map; empty where there is one.

    It can be pickled where its arguments can; captures stay behind. The model is made, or moved to
    the device, on the first batch, and captured once for each shape of image; threads of a process
    take turns.

    Args:
        model: a module, in evaluation mode, or a function of no arguments that makes one (or any
            forward function). The module is moved to `device`.
        transform: from what a row's image column holds to a tensor (C, H, W), without a batch
            dimension. Arrays come as copies of their own. Default: uint8 (H, W, C) or (H, W) become
            float32 (C, H, W) in 0..1, and floats stay as they are.
        column: the column with the images.
        target: the outcome's index for all rows, an integer or a tuple; or the name of the column
            that has each row's. Default: the predicted class.
        sliding_window_shapes: as in `KryptonOcclusion.attribute`.
        strides: as in `KryptonOcclusion.attribute`.
        baselines: as in `KryptonOcclusion.attribute`; tensors are moved to the device.
        device: where maps are made. Default: the GPU that Ray or Spark assigns to the worker, the
            CPU in workers of Ray without one; elsewhere a GPU where PyTorch sees one, else the CPU.
        threads: PyTorch's threads in the worker. Default: the cores that Ray or Spark assigns to
            it; elsewhere PyTorch's setting is left alone.
        errors: what happens to a row without a map (an image that cannot be decoded, is of a shape
            that the model does not take, or holds values that are not finite; a target that there
            is none of): "raise" a `RowError` that names it, keep the "row" with its reason in
            `occlusion_error`, or "skip" it, with a warning in the log of `captum_krypton`.
        prefix: what the names of added columns begin with.
        settings: keyword arguments of `KryptonOcclusion`, such as `quality` and `budget`.

    Raises:
        TypeError: for arguments of the wrong type, and settings that there are none of.
        ValueError: for another value of `errors`, and settings out of their range.

    Examples:
        >>> mapper = OcclusionMapper(load_model, quality=0.9)
        >>> maps = mapper({"image": images})["occlusion_scores"]
    """

    def __init__(  # noqa: D107
        self,
        model: nn.Module | Callable[[], Callable[..., Any]],
        *,
        transform: Callable[[Any], Tensor] | None = None,
        column: str = "image",
        target: Any = PREDICTED,
        sliding_window_shapes: tuple[int, ...] | None = None,
        strides: int | tuple[int, ...] | None = None,
        baselines: Any = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
        errors: Literal["raise", "row", "skip"] = "raise",
        prefix: str = "occlusion_",
        **settings: Any,
    ) -> None:
        if not callable(model):
            raise TypeError(
                f"model must be a module or a function that makes one, not {type(model).__name__}"
            )
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable, not {type(transform).__name__}")
        if not isinstance(target, (str, type(PREDICTED))):
            target = target_of(target)
        if errors not in _ERRORS:
            raise ValueError(f"errors must be one of {_ERRORS}, not {errors!r}")
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(f"threads must be an integer of at least 1, or None, not {threads!r}")
        KryptonOcclusion(_nothing, **settings)  # refuses now what it would refuse on the workers
        self.model, self.transform = model, transform
        self.column, self.target = column, target
        self.sliding_window_shapes, self.strides = sliding_window_shapes, strides
        self.baselines = baselines
        self.device = None if device is None else torch.device(device)
        self.threads, self.errors, self.prefix = threads, errors, prefix
        self.settings = settings
        self._worker = _Worker(os.getpid())

    def __getstate__(self) -> dict[str, Any]:
        """The arguments, without what this process has made of them."""
        return {name: value for name, value in vars(self).items() if name != "_worker"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The arguments, in a process that makes its own model of them."""
        vars(self).update(state, _worker=_Worker(os.getpid()))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its maps.

        Args:
            batch: columns by their names, of N rows each: arrays or lists.

        Returns:
            All columns of the batch, and those added. Fewer rows where `errors="skip"` and some
            are broken.

        Raises:
            KeyError: where the batch has no column of that name.
            ValueError: where columns differ in length, or one has a name that is to be added.
            RowError: with `errors="raise"`, for the first row that is broken.
        """
        columns = {name: batch[name] for name in batch}
        rows = self._explained(columns, self._count(columns))
        if self.errors == "skip":
            places = [place for place, row in enumerate(rows) if isinstance(row, Explained)]
            if len(places) < len(rows):
                columns = {name: kept(column, places) for name, column in columns.items()}
                rows = [rows[place] for place in places]
        added = columns_of(rows, self._worker.form or self._first_form())
        return {**columns, **{self.prefix + name: added[name] for name in self._added}}

    def make_predict_fn(self) -> Callable[..., list[dict[str, Any]]]:
        """What `pyspark.ml.functions.predict_batch_udf` takes.

        Returns:
            A function of the image column, and of the target column where there is one, that
            returns a dict for each row, as `spark_schema` says.

        Raises:
            ValueError: with `errors="skip"`: a function of Spark's has to return every row.
        """
        if self.errors == "skip":
            raise ValueError(
                'errors="skip" drops rows, which a predict_batch_udf cannot do: use "row", and '
                f"filter by {self.prefix}error"
            )
        if not isinstance(self.target, str):
            return lambda images: self._rows_for_spark({self.column: images})
        name = self.target
        return lambda images, targets: self._rows_for_spark({self.column: images, name: targets})

    @property
    def spark_schema(self) -> str:
        """The columns of `make_predict_fn`, in Spark's words (DDL).

        Scores are flat there; `occlusion_grid` has their shape.
        """
        kinds = {
            "scores": "array<float>",
            "reference": "double",
            "target": "string" if isinstance(self.target, tuple) else "bigint",
            "estimated_ssim": "double",
            "seconds": "double",
            "path": "string",
            "error": "string",
            "grid": "array<int>",
        }
        return ", ".join(f"{self.prefix}{name} {kinds[name]}" for name in (*self._added, "grid"))

    @property
    def _added(self) -> tuple[str, ...]:
        return (*ADDED, "error") if self.errors == "row" else ADDED

    def _rows_for_spark(self, columns: dict[str, Any]) -> list[dict[str, Any]]:
        made = self(columns)
        added = {name: made[name] for name in (self.prefix + name for name in self._added)}
        return flat(added, f"{self.prefix}scores", f"{self.prefix}grid")

    def _count(self, columns: Mapping[str, Any]) -> int:
        """The rows of a batch, whose columns are checked."""
        wanted = [self.column, *([self.target] if isinstance(self.target, str) else [])]
        for name in wanted:
            if name not in columns:
                raise KeyError(f"the batch has no column {name!r}, only {sorted(columns)}")
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a batch must have one length, not {lengths}")
        taken = [name for name in columns if name in {self.prefix + one for one in self._added}]
        if taken:
            raise ValueError(f"the batch has columns {taken} already: pass another `prefix`")
        return lengths[self.column]

    def _explained(self, columns: Mapping[str, Any], count: int) -> list[Explained | Broken]:
        if self._worker.pid != os.getpid():  # a fork may have come while a thread held the lock
            self._worker = _Worker(os.getpid())
        worker = self._worker
        with worker.lock:
            self._set_threads()
            worker.start(self)
            return [self._row(worker, columns, place, count) for place in range(count)]

    def _set_threads(self) -> None:
        wanted = self.threads or assigned_cores()
        if wanted is not None and torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    def _row(
        self, worker: _Worker, columns: Mapping[str, Any], place: int, count: int
    ) -> Explained | Broken:
        try:
            target = self.target
            if isinstance(target, str):
                target = target_of(columns[target][place])
            row = worker.explained(checked(columns[self.column][place], self.transform), target)
        except _NOT_THE_ROW:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            named = f"{name_of(columns, place, count)}: {reason}"
            if self.errors == "raise":
                raise RowError(named) from error
            if self.errors == "skip":
                _logger.warning("skipped %s", named)
            return Broken(reason)
        worker.form = form_of(row)
        return row

    def _first_form(self) -> Form:
        """What broken rows look like before any map was made: of no size."""
        window = self.sliding_window_shapes
        axes = 2 if not isinstance(window, tuple) else max(1, len(window) - 1)
        return Form((0,) * axes, np.dtype(np.float32), isinstance(self.target, tuple))


class _Worker:
    """What a process keeps from batch to batch.

    Attributes:
        pid: the process.
        lock: who holds it makes maps.
        form: what the last map's columns looked like.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.lock = threading.Lock()
        self.form: Form | None = None
        self._explain: Callable[[Tensor, Any], OcclusionMap] | None = None
        self._forward: Callable[..., Any] = _nothing
        self._device = torch.device("cpu")
        self._taken: set[tuple[Any, ...]] = set()

    def start(self, mapper: OcclusionMapper) -> None:
        """Makes the model, once; what fails here is no row's fault."""
        if self._explain is not None:
            return
        self._device = mapper.device or assigned_device()
        forward = mapper.model if isinstance(mapper.model, nn.Module) else mapper.model()
        if not callable(forward):
            raise TypeError(f"model must make a module, not {type(forward).__name__}")
        if isinstance(forward, nn.Module):
            if any(module.training for module in forward.modules()):
                raise ValueError("model is in training mode: call its `eval()`")
            forward = forward.to(self._device)
        baselines = mapper.baselines
        if isinstance(baselines, Tensor):
            baselines = baselines.to(self._device)
        occlusion = KryptonOcclusion(forward, **mapper.settings)
        self._forward = forward
        self._explain = lambda x, target: occlusion.heatmap(
            x, mapper.sliding_window_shapes, mapper.strides, baselines, target
        )

    def explained(self, image: Tensor, target: Any) -> Explained:
        """The map of an input (C, H, W)."""
        assert self._explain is not None
        x = image[None].to(self._device)
        self._check(x)
        heat = self._explain(x, target)
        report = heat.report
        reference, found = heat.reference.reshape(-1), heat.target
        if len(reference) != 1:
            raise ValueError(
                f"the model returns {tuple(heat.reference.shape[1:])} outcomes for an image, "
                "expected one: pass a `target`"
            )
        if isinstance(found, Sequence) and not isinstance(found, tuple):
            (found,) = found
        return Explained(
            _as_numpy(heat.scores[0]),
            float(reference),
            None if found is None else target_of(found),
            math.nan if report.estimated_ssim is None else report.estimated_ssim,
            report.seconds,
            report.path,
        )

    @torch.no_grad()
    def _check(self, x: Tensor) -> None:
        """Has the forward function itself refuse an image of a new shape, before any capture."""
        kind = tuple(x.shape), x.dtype
        if kind not in self._taken:
            self._forward(x)
            self._taken.add(kind)


def _as_numpy(scores: Tensor) -> NDArray[Any]:
    wide = scores.detach().cpu()
    return (wide if wide.dtype == torch.float64 else wide.float()).numpy()


def _nothing(*arguments: Any) -> Any:
    raise AssertionError("this stands for a model in a check of settings")
