"""`KryptonFeatureAblation`: Captum's feature ablation for regions of any shape, sooner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, overload

import torch
from captum._utils.common import _format_additional_forward_args, _format_tensor_into_tuples
from captum._utils.gradient import _forward_layer_eval
from captum.attr import Attribution, DataLoaderAttribution, FeatureAblation, LayerFeatureAblation
from captum.attr._core.dataloader_attr import InputRole, _perturb_inputs
from captum.log import log_usage
from torch import Tensor, nn

from ._approximate import Approximation
from ._call import (
    PREDICTED,
    ArgumentError,
    Call,
    Features,
    OcclusionMap,
    Settings,
    make_features,
    mean_of,
)
from ._engine import Engine
from ._fallback import FallbackWarnings, averaged_maps
from ._run import Fallback
from .fills import every_baseline

__all__ = [
    "KryptonDataLoaderAttribution",
    "KryptonFeatureAblation",
    "KryptonLayerFeatureAblation",
]

_EXACT = Approximation()
_Masks = Tensor | tuple[Tensor, ...] | None


class KryptonFeatureAblation(FeatureAblation):  # type: ignore[misc]
    """Attributions equal to `captum.attr.FeatureAblation`'s, in a fraction of the time.

    A feature is a set of cells that are replaced together: a superpixel, an organ, a lesion, a
    region of an atlas. As with `KryptonOcclusion`, the model is captured as a graph, and for every
    feature only the part of each value that its bounding box can reach is computed again
    (incremental inference, Section 4.1 of the KRYPTON paper). What cannot be captured runs through
    Captum's own code, with a `KryptonFallbackWarning`; so do features over several inputs.

    Args:
        forward_func: the model, or any callable that Captum's FeatureAblation takes.
        memory_budget: bytes that activations may take, for the choice of the batch size; a
            quarter of the free memory where left out.
        winograd: whether convolutions may run by Winograd's algorithm, where they are faster by it.
            Results then differ in rounding only.
        self_check: whether the first map of a graph is compared with the forward function itself
            on a few features; a difference leads to Captum's path.
        cuda_graphs: as in `KryptonOcclusion`.
        compile_pointwise: as in `KryptonOcclusion`.

    Examples:
        >>> ablation = KryptonFeatureAblation(model)
        >>> attribution = ablation.attribute(x, feature_mask=segments)
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
    ) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func must be callable, not {type(forward_func).__name__}")
        super().__init__(forward_func)
        self.settings = Settings(
            memory_budget, winograd, self_check, cuda_graphs, compile_pointwise
        )
        self._engine = Engine(forward_func, self.settings)
        self._warn = FallbackWarnings()

    def like(self, forward_func: Callable[..., Any]) -> KryptonFeatureAblation:
        """The same settings for another forward function."""
        return KryptonFeatureAblation(forward_func, **asdict(self.settings))

    @overload
    def attribute(
        self,
        inputs: Tensor,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        feature_mask: _Masks = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool | None = ...,
    ) -> Tensor: ...

    @overload
    def attribute(
        self,
        inputs: tuple[Tensor, ...],
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        feature_mask: _Masks = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool | None = ...,
    ) -> tuple[Tensor, ...]: ...

    @log_usage()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        feature_mask: _Masks = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Attributions by feature ablation: the drop of the outcome when a feature is replaced.

        Every argument is Captum's, in Captum's order. What may be left out besides:

        Args:
            inputs: the input, (N, ...), or a tuple of inputs.
            baselines: what replaces a feature: a number, a tensor of shape (N, ...) or (1, ...), or
                a fill (see `captum_krypton.fills`), or one of these for each input. Default: 0.
            target: the outcome's index, as in Captum. Default: the class predicted for the
                untouched input, for each example, where the forward gives several outputs an
                example. None means None: every output is an outcome.
            additional_forward_args: further arguments of the forward function.
            feature_mask: for each input a tensor of integers, of a shape that broadcasts to the
                input's: cells with one number are one feature. A first dimension of N gives every
                example features of its own. Default: every cell is a feature.
            perturbations_per_eval: features evaluated together at most. Default: chosen for the
                memory budget.
            show_progress: whether to show a progress bar over the features; None for a late one.

        Returns:
            Of the outcome's type and the input's shape (or (outcomes, *input shape)), a tuple for a
            tuple. A value that is not finite inside a feature is replaced by the baseline; Captum's
            formula would keep it.

        Raises:
            AssertionError: for arguments that Captum refuses; see `ArgumentError`.
            IndexError: for a target that the output does not have.
        """
        others = target, additional_forward_args, feature_mask, perturbations_per_eval
        samples = _samples(inputs, baselines, *others)
        attributions = self._attributions(samples, show_progress)
        return attributions if isinstance(inputs, tuple) else attributions[0]

    @overload
    def heatmap(
        self,
        inputs: Tensor,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        feature_mask: _Masks = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool | None = ...,
    ) -> OcclusionMap: ...

    @overload
    def heatmap(
        self,
        inputs: tuple[Tensor, ...],
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        feature_mask: _Masks = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool | None = ...,
    ) -> tuple[OcclusionMap, ...]: ...

    @torch.no_grad()
    def heatmap(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        feature_mask: _Masks = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool | None = None,
    ) -> OcclusionMap | tuple[OcclusionMap, ...]:
        """The outcome with every feature replaced, and how it was made.

        Takes the arguments of `attribute`. All examples must have the same features.

        Returns:
            An `OcclusionMap`, whose `scores` (N, features), or (N, outputs..., features), are in
            the order of the mask's numbers; a tuple of them for a tuple of inputs.

        Raises:
            AssertionError: for arguments that Captum refuses, and masks that differ between
                examples or share a number between inputs; see `ArgumentError`.
            IndexError: for a target that the output does not have.
        """
        others = target, additional_forward_args, feature_mask, perturbations_per_eval
        samples = _samples(inputs, baselines, *others)
        maps = self._maps(samples, show_progress)
        return maps if isinstance(inputs, tuple) else maps[0]

    def _attributions(self, samples: list[Features], show: bool | None) -> tuple[Tensor, ...]:
        """The attributions of each input, averaged over samples that differ in their baselines."""
        features = samples[0]
        try:
            if features.is_shared:
                raise Fallback("a feature has cells of several inputs")
            if features.rows_differ:
                raise Fallback("inputs have different numbers of rows")
            if getattr(self, "_min_examples_per_batch_grouped", None) is not None:  # not in 0.8
                raise Fallback("features with few examples are to be skipped")
            rows = [
                self._of_row(list(calls), show)
                for calls in zip(*(sample.calls for sample in samples), strict=True)
            ]
        except Fallback as fallback:
            if any(features.call.own_mean):
                raise ArgumentError(f"baselines cannot be mean_patch() here: {fallback}") from None
            self._warn(fallback)
            made = [self._captum(sample, show) for sample in samples]
            made = made if features.call.is_tuple else [(one,) for one in made]
            return tuple(map(mean_of, zip(*made, strict=True)))
        return tuple(map(torch.cat, zip(*rows, strict=True)))

    def _of_row(self, calls: list[Call], show: bool | None) -> list[Tensor]:
        """The attributions of each input, where all examples have the same features."""
        sampled = self._engine.samples(calls, show, _EXACT)
        attributions = [
            [heat.attribution(heat.reference.dtype) for heat in maps] for maps in sampled
        ]
        return list(map(mean_of, zip(*attributions, strict=True)))

    def _maps(self, samples: list[Features], show: bool | None) -> tuple[OcclusionMap, ...]:
        """The map of each input, averaged over samples that differ in their baselines."""
        features = samples[0]
        if features.differ or features.is_shared or features.rows_differ:
            raise ArgumentError(
                "feature_mask must be the same for all examples, a feature must lie in one input, "
                "and inputs must have as many rows: make a map for each example, or use `attribute`"
            )
        calls = [sample.calls[0] for sample in samples]
        return averaged_maps(self._engine, self._warn, calls, show, _EXACT)

    def _captum(self, features: Features, show: bool | None) -> Any:
        """Captum's own path, for what the engine cannot do."""
        call: Call = features.call
        masks = None if features.masks[0] is None else features.masks
        return FeatureAblation.attribute.__wrapped__(
            self,
            call.inputs if call.is_tuple else call.inputs[0],
            baselines=call.baselines if call.is_tuple else call.baselines[0],
            target=self._engine.resolved_target(call),
            additional_forward_args=call.extra or None,
            feature_mask=masks if call.is_tuple or masks is None else masks[0],
            perturbations_per_eval=call.perturbations or 1,
            show_progress=bool(show),
        )


def _samples(inputs: Any, baselines: Any, *others: Any) -> list[Features]:
    """The checked arguments with each sample of the baselines."""
    return [
        make_features(inputs, baseline, *others) for baseline in every_baseline(inputs, baselines)
    ]


class KryptonLayerFeatureAblation(LayerFeatureAblation):  # type: ignore[misc]
    """Attributions equal to `captum.attr.LayerFeatureAblation`'s, in a fraction of the time.

    What comes before the layer is run once; from there on it is as in `KryptonFeatureAblation`.
    With a feature a channel it is the ablation of Ablation-CAM (Desai and Ramaswamy 2020).

    Args:
        forward_func: the model, or a callable that runs it.
        layer: the module whose output (or input) is ablated.
        device_ids: as in Captum, which makes attributions of DataParallel models.
        settings: the keyword arguments of `KryptonFeatureAblation`.

    Examples:
        >>> ablation = KryptonLayerFeatureAblation(vgg16, vgg16.features[28])
        >>> channels = torch.arange(512).reshape(1, 512, 1, 1)
        >>> attribution = ablation.attribute(x, target=3, layer_mask=channels)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(forward_func, layer, device_ids)
        self._ablations = {
            of_input: KryptonFeatureAblation(_FromLayer(forward_func, layer, of_input), **settings)
            for of_input in (False, True)
        }

    @log_usage()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        layer_baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        layer_mask: _Masks = None,
        attribute_to_layer_input: bool = False,
        perturbations_per_eval: int | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Attributions of a layer's values: the drop of the outcome when some are replaced.

        Every argument is Captum's, in Captum's order.

        Args:
            inputs: the input, (N, ...), or a tuple of inputs.
            layer_baselines: what replaces a feature, as `baselines` of `KryptonFeatureAblation`.
            target: the outcome's index, as in `KryptonFeatureAblation`.
            additional_forward_args: further arguments of the forward function.
            layer_mask: for the layer's values, as `feature_mask` of `KryptonFeatureAblation`.
            attribute_to_layer_input: whether the layer's input is ablated, not its output.
            perturbations_per_eval: features evaluated together at most. Default: chosen for the
                memory budget.

        Returns:
            Of the shape of the layer's values; a tuple where there are several.

        Raises:
            AssertionError: for arguments that Captum refuses; see `ArgumentError`.
        """
        tensors = _format_tensor_into_tuples(inputs)
        extra = _format_additional_forward_args(additional_forward_args) or ()
        values = _forward_layer_eval(
            self.forward_func,
            tensors,
            self.layer,
            extra or None,
            device_ids=self.device_ids,
            attribute_to_layer_input=attribute_to_layer_input,
        )
        made: tuple[Tensor, ...] = self._ablations[attribute_to_layer_input].attribute(
            values,
            layer_baselines,
            target,
            (*tensors, *extra, len(values)),
            layer_mask,
            perturbations_per_eval,
        )
        return made if len(made) > 1 else made[0]


class _FromLayer:
    """A model as a function of the values of one of its layers.

    Args:
        forward: the model, or a callable that runs it.
        layer: the layer.
        of_input: whether the values are the layer's input, not its output.
    """

    def __init__(self, forward: Callable[..., Any], layer: nn.Module, of_input: bool) -> None:
        self.forward, self.layer, self.of_input = forward, layer, of_input

    def __call__(self, *arguments: Any) -> Any:
        """Runs the model with the layer's values, its own arguments and the number of values."""
        number = arguments[-1]
        values, own = arguments[:number], arguments[number:-1]

        def replaced(module: nn.Module, before: Any, after: Any = None) -> Any:
            found = before if after is None else after
            copies = tuple(value.clone() for value in values)  # they may be overwritten
            return copies if isinstance(found, tuple) else copies[0]

        if self.of_input:
            handle = self.layer.register_forward_pre_hook(replaced)
        else:
            handle = self.layer.register_forward_hook(replaced)
        try:
            return self.forward(*own)
        finally:
            handle.remove()


class KryptonDataLoaderAttribution(DataLoaderAttribution):  # type: ignore[misc]
    """Attributions equal to `captum.attr.DataLoaderAttribution`'s, in a fraction of the time.

    Which region does a whole data set's metric rest on? Every batch is read once, and its outcomes
    with each feature replaced are made as by `KryptonFeatureAblation`; Captum reads the data once
    for every feature (or `perturbations_per_pass` of them).

    Args:
        attr_method: the ablation of one batch.

    Examples:
        >>> population = KryptonDataLoaderAttribution(KryptonFeatureAblation(model))
        >>> population.attribute(loader, feature_mask=atlas, to_metric=accuracy)
    """

    def __init__(self, attr_method: KryptonFeatureAblation) -> None:
        if not isinstance(attr_method, KryptonFeatureAblation):
            raise TypeError(
                f"attr_method must be a KryptonFeatureAblation, not {type(attr_method).__name__}"
            )
        Attribution.__init__(self, attr_method.forward_func)
        self.attr_method = _OverBatches(attr_method, self._forward_with_dataloader)


class _OverBatches:
    """What Captum asks for every feature, answered for all of them batch by batch.

    Args:
        ablation: the ablation of one batch.
        captum: Captum's own forward function over the data set.
    """

    def __init__(self, ablation: KryptonFeatureAblation, captum: Callable[..., Any]) -> None:
        self.ablation, self.captum = ablation, captum

    @torch.no_grad()
    def attribute(
        self,
        feature_indices: Tensor,
        perturbations_per_eval: int,
        additional_forward_args: tuple[Any, ...],
    ) -> Tensor:
        """How much the metric drops without each feature.

        Args:
            feature_indices: (1, features), ones.
            perturbations_per_eval: features a pass over the data, where Captum's path is taken.
            additional_forward_args: the data set and what is asked of it, as Captum has it.

        Returns:
            (outputs of the metric, features).
        """
        loader, roles, baselines, masks, reduce, to_metric, _, inputs_of = additional_forward_args
        if any(len(inputs) > 1 for inputs in inputs_of.values()):
            fallback = Fallback("a feature has cells of several inputs")
            self.ablation._warn(fallback)
            made: Tensor = FeatureAblation(self.captum).attribute(
                feature_indices,
                perturbations_per_eval=perturbations_per_eval,
                additional_forward_args=additional_forward_args,
            )
            return made
        number, ablation = feature_indices.shape[1], self._in_order(roles)
        states: list[Any] = [None] * (number + 1)  # of each feature, and of all being there
        for batch in loader:
            elements = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
            outputs = self._outputs(ablation, elements, roles, baselines, masks)
            for feature, state in enumerate(states):
                replaced = tuple(
                    (mask != feature).to(feature_indices.dtype)
                    if i in inputs_of.get(feature, ())
                    else None
                    for i, mask in enumerate(masks)
                )
                seen = _perturb_inputs(elements, roles, baselines, replaced)
                output = outputs.get(feature, outputs[None])
                states[feature] = reduce(state, output, seen)
        *metrics, whole = (to_metric(state) if to_metric else state for state in states)
        return torch.stack([(whole - metric).reshape(-1) for metric in metrics], -1)

    def _in_order(self, roles: tuple[int, ...]) -> KryptonFeatureAblation:
        """The ablation of a forward function that takes what is ablated first."""
        read = [i for i, role in enumerate(roles) if role != InputRole.no_forward]
        asked = sorted(read, key=lambda i: roles[i] != InputRole.need_attr)
        if asked == read:
            return self.ablation
        forward, places = self.ablation.forward_func, [asked.index(i) for i in read]
        return self.ablation.like(lambda *values: forward(*(values[i] for i in places)))

    @staticmethod
    def _outputs(
        ablation: KryptonFeatureAblation,
        elements: tuple[Any, ...],
        roles: tuple[int, ...],
        baselines: tuple[Any, ...],
        masks: tuple[Tensor, ...],
    ) -> dict[int | None, Tensor]:
        """The outputs of a batch without each feature, and under None with all."""
        named = list(zip(elements, roles, strict=True))
        inputs = tuple(value for value, role in named if role == InputRole.need_attr)
        extra = tuple(value for value, role in named if role == InputRole.need_forward)
        maps = ablation.heatmap(inputs, baselines, None, extra or None, masks)
        found: dict[int | None, Tensor] = {None: maps[0].reference}
        for heat, mask in zip(maps, masks, strict=True):
            features = torch.unique(mask).tolist()
            found |= dict(zip(features, heat.scores.unbind(-1), strict=True))
        return found
