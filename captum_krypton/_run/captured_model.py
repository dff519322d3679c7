"""A captured model with all that is worth keeping between calls: constants, rules, plans."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._call import Call, Part, Settings, part_of, signature
from .._capture import (
    BatchInt,
    NotCapturable,
    ValueId,
    captured,
    current_state,
    narrowed,
    simplified,
)
from .._kernels import backend_info, panel_size, rates_of, trim
from .._operators import Kind, Means
from .._plan import Analysis, Plan, Room, analyse, fused, make_plan
from .begun import Begun
from .group import Material
from .interpreter import prepare_constants
from .layout import prefers_channels_last
from .pace import Pace
from .replay_cache import ReplayCache

__all__ = ["CapturedModel", "ModelCache"]

T = TypeVar("T")

# What follows a recording until the first batch, a plan above all, by what the recording took.
_AS_LONG_AGAIN = 1.5
_KEPT = 4  # captures kept for one KryptonOcclusion; each holds folded weights
_KEPT_PLANS = 64  # for one capture; one cell of an output is another plan than the next


class CapturedModel:
    """A model captured for one kind of input.

    Args:
        forward: the forward function.
        call: the arguments.
        begun: windows that the device may go on with while the host does the rest.
    """

    def __init__(self, forward: Callable[..., Any], call: Call, begun: Begun | None = None) -> None:
        started = time.perf_counter()
        self.capture = captured(forward, call.arguments, call.batched, call.baselines)
        if begun is not None:
            begun.go_on(_AS_LONG_AGAIN * (time.perf_counter() - started))
        self.graph = simplified(self.capture.graph)
        if any(isinstance(s, BatchInt) for s in self.graph.shapes[self.graph.output][1:]):
            raise NotCapturable("the outcome's shape depends on the batch size")
        first = call.inputs[0]
        self.channels_last = prefers_channels_last(first)
        self.constants = prepare_constants(self.graph, self.channels_last)
        self.graph.constants = self.constants  # else every weight is there in two layouts
        self.replays = ReplayCache(len(call.inputs))
        self._budgets: dict[torch.device, int] = {}
        self.packs: dict[tuple[ValueId, Hashable], Any] = {}
        self.checked: set[tuple[Any, ...]] = set()
        self.paces: dict[tuple[Any, ...], Pace] = {}
        self.notes: dict[tuple[Any, ...], list[Any]] = {}
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()
        self._analyses: OrderedDict[tuple[Any, ...], Analysis] = OrderedDict()
        trim()  # the recorded activations

    @cached_property
    def digest(self) -> str:
        """A digest of the captured graph and its weights."""
        return self.capture.graph.digest()

    @cached_property
    def reads(self) -> tuple[bool, ...]:
        """For each batched argument, whether the outcome depends on it."""
        read = {v for node in self.graph.nodes for v in node.operands()} | {self.graph.output}
        return tuple(value in read for value in self.graph.inputs)

    def part(self, call: Call, position: int, target: Any) -> Part | None:
        """The part of the output that a target names; None where windows change all of it.

        Args:
            call: the arguments.
            position: which input is occluded.
            target: Captum's target.
        """
        output = self.graph.output
        part = part_of(target, self.graph.size(output, 1)[1:])
        if part is None:
            return None
        kinds = self._analysis(position, call.grids[position].axes, True, None).kinds
        return part if kinds[output] is Kind.LOCAL else None

    def plan_of(
        self,
        call: Call,
        position: int,
        settings: Settings,
        threshold: float = 1.0,
        part: Part | None = None,
    ) -> Plan:
        """The plan for occluding one of the inputs with a user's settings.

        `part` is what is read of the output.
        """
        device = call.inputs[position].device
        rows = None if call.perturbations is None else call.perturbations * call.examples
        room = Room.on(device, settings.memory_budget, rows)
        kept = self._budgets.setdefault(device, room.memory_budget)
        replayed = settings.cuda_graphs and device.type == "cuda"  # they take memory themselves
        if replayed or kept // 2 <= room.memory_budget <= 2 * kept:
            room = replace(room, memory_budget=kept)  # so that a plan is used again
        else:
            self._budgets[device] = room.memory_budget
        return self.plan(
            call, position, room=room, winograd=settings.winograd, threshold=threshold, part=part
        )

    def plan(
        self,
        call: Call,
        position: int,
        *,
        room: Room,
        winograd: bool,
        threshold: float = 1.0,
        part: Part | None = None,
    ) -> Plan:
        """The plan for occluding one of the inputs: the cheaper of patches and whole volumes.

        Plans of one input that differ in their threshold share their analysis, and so a base. A
        plan for whole volumes is exact whatever the threshold.
        """
        grid = call.grids[position]
        means = self._means(call.inputs[position].device, winograd)
        key = (position, grid, call.examples, room, means, threshold, part)

        def made() -> Plan:
            axes = grid.axes
            exact = self._analysis(position, axes, True, part)
            reached = exact.reaches(tuple(grid.along(dim) for dim in axes)).reached(grid.paired)
            plans = [
                make_plan(
                    self._analysis(position, axes, incremental, part),
                    grid,
                    axes,
                    means=means,
                    room=room,
                    images=call.examples,
                    element_bytes=call.inputs[position].element_size(),
                    threshold=threshold if self._crops(position, axes, incremental, part) else 1.0,
                    reached=reached,
                )
                for incremental in (True, False)
            ]
            return min(plans, key=lambda plan: plan.seconds)

        return _kept(self._plans, key, made)

    def material(
        self, plan: Plan, baseline: Tensor | float, own_mean: bool = False, compiles: bool = False
    ) -> Material:
        """What the windows of a plan are computed from.

        Args:
            plan: the plan.
            baseline: what windows are filled with.
            own_mean: whether they are filled with their own mean instead.
            compiles: whether torch.compile makes what follows a convolution of PyTorch's own.
        """
        fill = None if isinstance(baseline, Tensor) else baseline
        constants = plan.analysis.graph.constants
        return Material(plan, constants, self.packs, fill, self.channels_last, own_mean, compiles)

    def _crops(
        self, position: int, axes: tuple[int, ...], incremental: bool, part: Part | None
    ) -> bool:
        """Whether there are operators whose changes a threshold could crop."""
        rules = self._analysis(position, axes, incremental, part).rules
        return any(rule is not None and not rule.is_global for rule in rules)

    def _analysis(
        self, position: int, axes: tuple[int, ...], incremental: bool, part: Part | None
    ) -> Analysis:
        def made() -> Analysis:
            graph = self.graph if part is None else narrowed(self.graph, part)
            occluded, dims = graph.inputs[position], tuple(axis + 1 for axis in axes)
            analysis = analyse(graph, occluded, dims, incremental=incremental)
            return analyse(fused(analysis), occluded, dims) if incremental else analysis

        return _kept(self._analyses, (position, axes, incremental, part), made)

    def _means(self, device: torch.device, winograd: bool) -> Means:
        kernels = self.channels_last and device.type == "cpu" and panel_size() > 0
        on_gpu = self.channels_last and device.type == "cuda"
        pools = on_gpu and backend_info("cuda").name == "cuda"
        return Means(rates_of(device), kernels, winograd, pools)


def _kept(cache: OrderedDict[tuple[Any, ...], T], key: tuple[Any, ...], make: Callable[[], T]) -> T:
    """What is kept under a key, made where it is not; what was asked for longest ago goes."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > _KEPT_PLANS:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


class ModelCache:
    """The latest captures of one forward function.

    A capture is used as long as nothing that it depends on has changed: parameters, buffers,
    modes and hooks are compared at every call, contents included.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[Any, ...], CapturedModel] = OrderedDict()
        self._refusals: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {}

    def knows(self, key: tuple[Any, ...]) -> bool:
        """Whether a capture was made or refused for the kind of input with this `signature`."""
        return key in self._entries or key in self._refusals

    def get(
        self,
        forward: Callable[..., Any],
        call: Call,
        *,
        renew: bool = False,
        begun: Begun | None = None,
    ) -> CapturedModel:
        """The model captured for this kind of input.

        Args:
            forward: the forward function.
            call: the arguments.
            renew: capture again even if there is a capture.
            begun: windows that the device may go on with meanwhile.

        Raises:
            NotCapturable: where the forward function cannot be captured.
        """
        key = signature(call)
        if not renew and key in self._entries:
            model = self._entries[key]
            if model.capture.is_current(forward):
                self._entries.move_to_end(key)
                return model
        self._entries.pop(key, None)
        reason, state = self._refusals.get(key, ("", None))
        if reason and state == current_state(forward, ()):
            raise NotCapturable(reason)
        try:
            model = CapturedModel(forward, call, begun)
        except NotCapturable as refusal:
            self._refusals[key] = (str(refusal), current_state(forward, ()))
            raise
        self._entries[key] = model
        while len(self._entries) > _KEPT:
            self._entries.popitem(last=False)
        return model

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
