"""`KryptonOcclusion`: Captum's arguments in, Captum's attributions out, sooner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from captum.attr import Occlusion
from captum.log import log_usage
from torch import Tensor
from tqdm.auto import tqdm

from ._approximate import (
    THRESHOLDS,
    Approximation,
    Budget,
    DrillDown,
    Tuning,
    as_grids,
    check_libraries,
    sample,
    torch_version,
    tuned,
)
from ._call import (
    PREDICTED,
    ArgumentError,
    Call,
    OcclusionMap,
    Settings,
    WindowGrid,
    make_call,
    make_region_call,
    mean_of,
)
from ._engine import Engine
from ._explain import Explanation, explain
from ._fallback import FallbackWarnings, averaged_maps
from ._kernels import calibration_of
from ._plan import Plan
from ._run import Fallback, RunStatistics, naive_maps
from .fills import every_baseline, only_baseline

__all__ = ["KryptonOcclusion"]

_Windows = tuple[int, ...] | tuple[tuple[int, ...], ...] | None
_Strides = int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None


class KryptonOcclusion(Occlusion):  # type: ignore[misc]
    """Occlusion attributions equal to `captum.attr.Occlusion`'s, in a fraction of the time.

    The model is captured as a graph and its values for the untouched input are kept; for every
    window only the part of each value that the window can reach is computed again (incremental
    inference, Section 4.1 of the KRYPTON paper). What cannot be captured runs through Captum's own
    code, with a `KryptonFallbackWarning`.

    Args:
        forward_func: the model, or any callable that Captum's Occlusion takes.
        memory_budget: bytes that activations may take, for the choice of the batch size; a
            quarter of the free memory where left out.
        winograd: whether convolutions may run by Winograd's algorithm, where they are faster by it.
            Results then differ in rounding only.
        self_check: whether the first map of a graph is compared with the forward function itself
            on a few windows; a difference leads to Captum's path.
        cuda_graphs: whether batches on a GPU are captured as CUDA graphs and replayed. A model then
            keeps the values of its last images and of a batch on the device from map to map.
        compile_pointwise: whether torch.compile makes one pass of what follows a convolution of
            PyTorch's own: bias, sum, activation and clamp; where it cannot, there is a warning. On
            the CPU, the package's own kernels do that anyway, but for float64.
        projective_field_threshold: tau, in (0, 1] (Section 4.2): what a window changes is
            followed over at most this share of a volume's side. Below 1 maps are approximate.
        drill_down: which windows to run, the rest being interpolated (Section 4.3). Maps are
            approximate then.
        tuning: what `tune` found for this model and these windows: its threshold is taken.
        quality: the structural similarity to the exact map, in (0, 1], that every map is to have by
            its own estimate. As few windows are run as that takes; with a threshold, all are run
            with it, and as few of them exactly, which corrects the rest.
        budget: what the map of one image may cost; the best map within it is made.

    Examples:
        >>> krypton = KryptonOcclusion(model)
        >>> attribution = krypton.attribute(x)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        memory_budget: int | None = None,
        winograd: bool = True,
        self_check: bool = True,
        cuda_graphs: bool = True,
        compile_pointwise: bool = False,
        projective_field_threshold: float = 1.0,
        drill_down: DrillDown | None = None,
        tuning: Tuning | None = None,
        quality: float | None = None,
        budget: Budget | None = None,
    ) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func must be callable, not {type(forward_func).__name__}")
        super().__init__(forward_func)
        self.settings = Settings(
            memory_budget, winograd, self_check, cuda_graphs, compile_pointwise
        )
        self.approximation = Approximation.of(
            projective_field_threshold, drill_down, tuning, quality, budget
        )
        self._engine = Engine(forward_func, self.settings)
        self._warn = FallbackWarnings()

    @overload
    def attribute(
        self,
        inputs: Tensor,
        sliding_window_shapes: _Windows = ...,
        strides: _Strides = ...,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool | None = ...,
    ) -> Tensor: ...

    @overload
    def attribute(
        self,
        inputs: tuple[Tensor, ...],
        sliding_window_shapes: _Windows = ...,
        strides: _Strides = ...,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool | None = ...,
    ) -> tuple[Tensor, ...]: ...

    @log_usage()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        sliding_window_shapes: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        strides: int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None = None,
        baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Attributions by occlusion: the mean drop of the outcome over the windows on a cell.

        Every argument is Captum's, in Captum's order. What may be left out besides:

        Args:
            inputs: the input, (N, ...), or a tuple of inputs, occluded one after another.
            sliding_window_shapes: the window's shape without the batch dimension, or one for each
                input. Default: all channels, a square of a fourteenth of the shorter side.
            strides: distance of neighbouring windows, a number or one a dimension, or one of these
                for each input. Default: a quarter of the default window, or 1 where the window is
                given (Captum's default).
            baselines: what covers a window: a number, a tensor of shape (N, ...) or (1, ...), or
                a fill (see `captum_krypton.fills`), or one of these for each input. Default: 0.
            target: the outcome's index, as in Captum. Default: the class predicted for the
                untouched input, for each example, where the forward gives several outputs an
                example. None means None: every output is an outcome.
            additional_forward_args: further arguments of the forward function.
            perturbations_per_eval: windows evaluated together at most. Default: chosen for the
                memory budget.
            show_progress: whether to show a progress bar over the windows; None for one after ten
                seconds, on a terminal or in a notebook.

        Returns:
            float32, of the input's shape (or (outcomes, *input shape)), a tuple for a tuple.
            A value that is not finite inside a window is replaced by the baseline; Captum's
            formula would keep it.

        Raises:
            AssertionError: for arguments that Captum refuses; see `ArgumentError`.
            IndexError: for a target that the output does not have.
        """
        others = target, additional_forward_args, perturbations_per_eval
        calls = [
            make_call(inputs, sliding_window_shapes, strides, baseline, *others)
            for baseline in every_baseline(inputs, baselines)
        ]
        attributions = self._attributions(calls, show_progress)
        return attributions if isinstance(inputs, tuple) else attributions[0]

    @overload
    def heatmap(
        self,
        inputs: Tensor,
        sliding_window_shapes: _Windows = ...,
        strides: _Strides = ...,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool | None = ...,
        *,
        windows: Sequence[Any] | Tensor | None = ...,
    ) -> OcclusionMap: ...

    @overload
    def heatmap(
        self,
        inputs: tuple[Tensor, ...],
        sliding_window_shapes: _Windows = ...,
        strides: _Strides = ...,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool | None = ...,
    ) -> tuple[OcclusionMap, ...]: ...

    @torch.no_grad()
    def heatmap(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        sliding_window_shapes: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        strides: int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None = None,
        baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool | None = None,
        *,
        windows: Sequence[Any] | Tensor | None = None,
    ) -> OcclusionMap | tuple[OcclusionMap, ...]:
        """The outcome at every window (the paper's M, Eq. 6), and how it was made.

        Takes the arguments of `attribute`, and `windows`: for one input, any regions instead of a
        grid. They are a list of boxes, each a tuple of slices (as `numpy.s_` and
        `scipy.ndimage.find_objects` give them), one for each dimension but the batch (and the
        channels); or masks that may overlap, a tensor (regions, ...) of bool that broadcasts to the
        input's shape. Maps are exact then.

        Returns:
            An `OcclusionMap`; a tuple of them for a tuple of inputs. Of regions, `scores` is
            (N, regions), or (N, outputs..., regions).

        Raises:
            AssertionError: for arguments that Captum refuses; see `ArgumentError`.
            IndexError: for a target that the output does not have.
        """
        others = target, additional_forward_args, perturbations_per_eval
        calls = []
        for baseline in every_baseline(inputs, baselines):
            if windows is None:
                call = make_call(inputs, sliding_window_shapes, strides, baseline, *others)
            elif sliding_window_shapes is None and strides is None:
                call = make_region_call(inputs, windows, baseline, *others)
            else:
                raise ArgumentError("windows excludes sliding_window_shapes and strides")
            calls.append(call)
        maps = self._maps(calls, show_progress)
        return maps if isinstance(inputs, tuple) else maps[0]

    def growing(
        self,
        inputs: Tensor,
        sliding_window_shapes: tuple[int, ...] | None = None,
        strides: int | tuple[int, ...] | None = None,
        baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        perturbations_per_eval: int | None = None,
    ) -> Iterator[OcclusionMap]:
        """Ever better maps of one image, to be looked at while they grow.

        The first one is there after an eighth of the windows, or more where there are few (with a
        threshold, after all of them with it); each that follows has run the windows that it gains
        most from. They end with the exact map, or where the settings `quality` or `budget` say.
        Stop whenever one is good enough: nothing runs on. Inputs may be written over meanwhile; the
        model must stay as it is.

        Takes the arguments of `attribute`, for one input with one example.

        Returns:
            An iterator of `OcclusionMap`; `report.estimated_ssim` is how good one is by its own
            estimate.

        Raises:
            AssertionError: for arguments that Captum refuses, several inputs or examples, or a
                `KryptonOcclusion` with `drill_down`; see `ArgumentError`.
            IndexError: for a target that the output does not have.
            ImportError: without SciPy (the extra `approximate`).
            RuntimeError: (while it runs) where the model or autocast has changed since it began.
        """
        call = make_call(
            inputs,
            sliding_window_shapes,
            strides,
            only_baseline(inputs, baselines),
            target,
            additional_forward_args,
            perturbations_per_eval,
        )
        if len(call.inputs) != 1 or call.examples != 1:
            raise ArgumentError(
                f"inputs must be one input with one example, not {len(call.inputs)} with "
                f"{call.examples}"
            )
        if self.approximation.drill_down is not None:
            raise ArgumentError("growing maps choose their windows themselves: no drill_down")
        check_libraries("a growing map")
        return self._growing(call)

    @torch.no_grad()
    def _growing(self, call: Call) -> Iterator[OcclusionMap]:
        try:
            yield from self._engine.growing(call, self.approximation)
        except Fallback as fallback:
            self._warn(fallback)
            yield from naive_maps(self.forward_func, call, str(fallback), False)

    @torch.no_grad()
    def explain(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        sliding_window_shapes: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        strides: int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None = None,
        baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool | None = None,
        *,
        run: bool = False,
    ) -> Explanation:
        """The plan for a map; print it.

        Takes the arguments of `attribute`. With `run=True` the map is made too, and every
        operator's measured time stands beside the predicted one. Without it, nothing but the
        untouched input is run.

        Returns:
            One row an operator (output, patch and read-in size, algorithm, multiply-accumulates
            full and incremental, time), the totals with the theoretical speed-up (Eq. 13-17), and
            why operators are global or the whole map falls back.
        """
        call = make_call(
            inputs,
            sliding_window_shapes,
            strides,
            only_baseline(inputs, baselines),
            target,
            additional_forward_args,
            perturbations_per_eval,
        )
        try:
            if not run:
                plans = self._engine.plans(call, self.approximation)
                return explain(plans, self.approximation, _origins(call, plans))
            ran: list[tuple[Plan, RunStatistics]] = []
            self._engine.maps(call, show_progress, self.approximation, ran)
            plans = tuple(plan for plan, _ in ran)
            spent = tuple(statistics.spent for _, statistics in ran)
            return explain(plans, self.approximation, _origins(call, plans), spent)
        except Fallback as fallback:
            return Explanation((), str(fallback))

    @torch.no_grad()
    def tune(
        self,
        images: Tensor | Iterable[Any],
        target_ssim: float = 0.9,
        *,
        limit: int = 30,
        held_out: Tensor | Iterable[Any] = (),
        thresholds: tuple[float, ...] = THRESHOLDS,
        sliding_window_shapes: tuple[int, ...] | None = None,
        strides: int | tuple[int, ...] | None = None,
        baselines: Any = None,
        show_progress: bool = False,
    ) -> Tuning:
        """The projective field threshold for a quality, from a sample of images (Section 4.4).

        Makes the heat map of the predicted class of every image, exactly and at every threshold,
        and fits a second degree curve to their structural similarity. Where the curve meets the
        target but the sample's mean does not, the next larger threshold tried is taken.

        Args:
            images: the sample: a tensor (N, ...), or an iterable of tensors (N, ...), of images
                (C, H, W), or of tuples that start with one, such as a DataLoader's.
            target_ssim: the quality to reach, in (0, 1].
            limit: how many images to take at most.
            held_out: further images, as many at most, to measure the chosen threshold on.
            thresholds: the thresholds to try.
            sliding_window_shapes: as in `attribute`.
            strides: as in `attribute`.
            baselines: as in `attribute`.
            show_progress: whether to show a progress bar over the images.

        Returns:
            A `Tuning`, for `KryptonOcclusion(model, tuning=...)`.

        Raises:
            ValueError: where an argument is out of range, no image is given, or the forward
                function cannot be captured.
            ImportError: without scikit-image (the extra `approximate`).
        """
        calls: list[Call] = []

        def heat(image: Tensor, threshold: float) -> Tensor:
            call = make_call(
                image,
                sliding_window_shapes,
                strides,
                only_baseline(image, baselines),
                PREDICTED,
                None,
                None,
            )
            if calls and as_grids(call) != as_grids(calls[0]):
                raise ArgumentError(
                    f"images must have one shape, but have {tuple(calls[0].inputs[0].shape[1:])} "
                    f"and {tuple(image.shape[1:])}"
                )
            calls.append(call)
            (made,) = self._engine.maps(call, False, Approximation(threshold), [])
            return made.scores[0]

        taken, others = list(sample(images, limit)), list(sample(held_out, limit))
        bar = tqdm(desc="images", total=len(taken) + len(others), disable=not show_progress)
        try:
            with bar:
                threshold, table, own, kept = tuned(
                    heat, taken, others, target_ssim, thresholds, bar.update
                )
            digest = self._engine.digest(calls[0])
        except Fallback as fallback:
            raise ArgumentError(f"forward_func cannot be tuned: {fallback}") from None
        return Tuning(
            target_ssim,
            threshold,
            tuple(thresholds),
            tuple(map(tuple, table)),
            tuple(own),
            tuple(kept),
            as_grids(calls[0]),
            digest,
            torch_version(),
        )

    def _maps(self, calls: list[Call], show: bool | None) -> tuple[OcclusionMap, ...]:
        """The map of each input, averaged over calls that differ in their baselines."""
        return averaged_maps(self._engine, self._warn, calls, show, self.approximation)

    def _attributions(self, calls: list[Call], show: bool | None) -> tuple[Tensor, ...]:
        """The attributions of each input, averaged over calls that differ in their baselines."""
        try:
            maps = self._engine.samples(calls, show, self.approximation)
            sampled = [tuple(heat.attribution() for heat in made) for made in maps]
        except Fallback as fallback:
            self._warn(fallback)
            sampled = [self._fallen_back(call, fallback, show) for call in calls]
        return tuple(map(mean_of, zip(*sampled, strict=True)))

    def _fallen_back(self, call: Call, fallback: Fallback, show: bool | None) -> tuple[Tensor, ...]:
        """The attributions of each input by the forward function itself."""
        if any(call.own_mean):  # Captum has no such baseline
            maps = naive_maps(self.forward_func, call, str(fallback), show)
            return tuple(heat.attribution() for heat in maps)
        made = self._captum(call, show)
        return made if call.is_tuple else (made,)

    def _captum(self, call: Call, show: bool | None) -> Any:
        """Captum's own path, for what the engine cannot do."""
        target = self._engine.resolved_target(call)
        grids = [grid for grid in call.grids if isinstance(grid, WindowGrid)]
        return Occlusion.attribute.__wrapped__(
            self,
            call.inputs if call.is_tuple else call.inputs[0],
            sliding_window_shapes=tuple(grid.window for grid in grids),
            strides=tuple(grid.stride for grid in grids),
            baselines=call.baselines if call.is_tuple else call.baselines[0],
            target=target,
            additional_forward_args=call.extra or None,
            perturbations_per_eval=call.perturbations or 1,
            show_progress=bool(show),
        )


def _origins(call: Call, plans: tuple[Plan, ...]) -> tuple[str, ...]:
    """Where the rates come from that each plan is made with: those of the inputs' device."""
    return (calibration_of(call.inputs[0].device).origin,) * len(plans)
