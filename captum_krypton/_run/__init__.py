"""A plan's batches, and windows without a plan.

In: a forward function, a call, a plan. Out: the outcome of every window that is asked for, checked
against the forward function.

May use: plan, call, operators, capture, kernels.
"""

from .base import Base
from .batches import RunStatistics
from .check import Stale
from .compiled import CompileCache, Compiled
from .execution import Execution
from .few_windows import FewWindows
from .group import Selection
from .input_run import InputRun, Untouched
from .naive import Fallback, naive_maps

__all__ = [
    "Base",
    "CompileCache",
    "Compiled",
    "Execution",
    "Fallback",
    "FewWindows",
    "InputRun",
    "RunStatistics",
    "Selection",
    "Stale",
    "Untouched",
    "naive_maps",
]
