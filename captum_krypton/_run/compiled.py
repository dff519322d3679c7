"""A captured model with all that is worth keeping between calls: constants, rules, plans."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .._call import Call, WindowGrid
from .._capture import BatchInt, Capture, NotCapturable, ValueId, capture, current_state, simplified
from .._kernels import PackedWeight, backend_info, panel_size, rates_of, trim
from .._operators import Algorithm, Means
from .._plan import Analysis, Plan, analyse, fused, make_plan
from .interpreter import prepare_constants
from .layout import channels_last
from .resident import Residents

__all__ = ["Compiled", "CompileCache", "signature"]

# Larger batches leave the caches and wait for memory; see docs/design.md.
_BATCH_BYTES = {"cpu": 1 << 26}
_KEPT = 4  # captures kept for one KryptonOcclusion; each holds folded weights


class Compiled:
    """A model captured for one kind of input."""

    def __init__(self, forward: Callable[..., Any], call: Call) -> None:
        self.capture: Capture = capture(
            forward, call.arguments, call.batched, call.baselines
        )
        self.graph = simplified(self.capture.graph)
        if any(isinstance(s, BatchInt) for s in self.graph.shapes[self.graph.output][1:]):
            raise NotCapturable("the outcome's shape depends on the batch size")
        first = call.inputs[0]
        self.last = channels_last(first)
        self.constants = prepare_constants(self.graph, self.last)
        self.graph.constants = self.constants  # else every weight is there in two layouts
        self.residents = Residents(len(call.inputs))
        self.budgets: dict[torch.device, int] = {}
        self.packs: dict[tuple[ValueId, Algorithm], PackedWeight] = {}
        self.checked: set[tuple[Any, ...]] = set()
        self.notes: dict[tuple[Any, ...], list[Any]] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._analyses: dict[tuple[Any, ...], Analysis] = {}
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

    def plan(
        self,
        call: Call,
        position: int,
        *,
        memory_budget: int,
        most_rows: int,
        winograd: bool,
        threshold: float = 1.0,
    ) -> Plan:
        """The plan for occluding one of the inputs: the cheaper of patches and whole volumes.

        Plans of one input that differ in their threshold share their analysis, and so a base. A
        plan for whole volumes is exact whatever the threshold.
        """
        grid = call.grids[position]
        means = self._means(call.inputs[position].device, winograd)
        key = (position, grid, call.examples, memory_budget, most_rows, means, threshold)
        if key not in self._plans:
            tensor = call.inputs[position]
            axes = window_axes(grid)
            plans = [
                make_plan(
                    self._analysis(position, axes, incremental),
                    grid,
                    axes,
                    means=means,
                    images=call.examples,
                    memory_budget=memory_budget,
                    batch_bytes=_BATCH_BYTES.get(tensor.device.type),
                    most_rows=most_rows,
                    element_bytes=tensor.element_size(),
                    threshold=threshold if self._crops(position, axes, incremental) else 1.0,
                )
                for incremental in (True, False)
            ]
            self._plans[key] = min(plans, key=lambda plan: plan.seconds)
        return self._plans[key]

    def _crops(self, position: int, axes: tuple[int, ...], incremental: bool) -> bool:
        """Whether there are operators whose changes a threshold could crop."""
        rules = self._analysis(position, axes, incremental).rules
        return any(rule is not None and not rule.is_global for rule in rules)

    def _analysis(self, position: int, axes: tuple[int, ...], incremental: bool) -> Analysis:
        key = (position, axes, incremental)
        if key not in self._analyses:
            occluded, dims = self.graph.inputs[position], tuple(axis + 1 for axis in axes)
            analysis = analyse(self.graph, occluded, dims, incremental=incremental)
            if incremental:
                analysis = analyse(fused(analysis), occluded, dims)
            self._analyses[key] = analysis
        return self._analyses[key]

    def _means(self, device: torch.device, winograd: bool) -> Means:
        kernels = self.last and device.type == "cpu" and panel_size() > 0
        pools = self.last and device.type == "cuda" and backend_info("cuda").name == "cuda"
        return Means(rates_of(device), kernels, winograd, pools)


def window_axes(grid: WindowGrid) -> tuple[int, ...]:
    """The dimensions (without the batch) that are tracked: all but the channels, 3 at most."""
    first = 1 if len(grid.shape) > 1 else 0
    return tuple(range(first, len(grid.shape)))[-3:]


def signature(call: Call) -> tuple[Any, ...]:
    """What of a call a capture depends on: kinds and shapes of tensors, values of the rest.

    It holds none of the arguments. That two objects have one hash, one after another, does no harm:
    what a graph was made from is compared at every call.
    """
    return tuple(
        (tuple(argument.shape[1:]), argument.dtype, argument.device)
        if isinstance(argument, Tensor) and batched
        else _name(argument)
        for argument, batched in zip(call.arguments, call.batched, strict=True)
    )


_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def _name(argument: Any) -> Any:
    """A value that tells an argument from others, and keeps nothing of it alive."""
    if type(argument) in _PLAIN:
        return type(argument), argument
    if isinstance(argument, (tuple, list)):
        return type(argument), tuple(map(_name, argument))
    if isinstance(argument, dict):
        return type(argument), tuple((_name(k), _name(v)) for k, v in argument.items())
    try:
        return type(argument), hash(argument)
    except TypeError:
        return type(argument), id(argument)


class CompileCache:
    """The latest captures of one forward function.

    A capture is used as long as nothing that it depends on has changed: parameters, buffers,
    modes and hooks are compared at every call, contents included.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[Any, ...], Compiled] = OrderedDict()
        self._refusals: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {}

    def knows(self, key: tuple[Any, ...]) -> bool:
        """Whether a capture was made or refused for the kind of input with this `signature`."""
        return key in self._entries or key in self._refusals

    def get(self, forward: Callable[..., Any], call: Call, *, renew: bool = False) -> Compiled:
        """The model captured for this kind of input.

        Args:
            forward: the forward function.
            call: the arguments.
            renew: capture again even if there is a capture.

        Raises:
            NotCapturable: where the forward function cannot be captured.
        """
        key = signature(call)
        if not renew and key in self._entries:
            compiled = self._entries[key]
            if compiled.capture.is_current(forward):
                self._entries.move_to_end(key)
                return compiled
        self._entries.pop(key, None)
        reason, state = self._refusals.get(key, ("", None))
        if reason and state == current_state(forward, ()):
            raise NotCapturable(reason)
        try:
            compiled = Compiled(forward, call)
        except NotCapturable as refusal:
            self._refusals[key] = (str(refusal), current_state(forward, ()))
            raise
        self._entries[key] = compiled
        while len(self._entries) > _KEPT:
            self._entries.popitem(last=False)
        return compiled

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


def default_memory_budget(device: torch.device) -> int:
    """A quarter of the memory that is free now, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 4
    try:
        pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 30
    return max(pages * size // 4, 1 << 28)
