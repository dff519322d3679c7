"""A plan's batches, and windows without a plan.

In: a forward function, a call, a plan. Out: the outcome of every window that is asked for, checked
against the forward function.

May use: plan, call, operators, capture, kernels.
"""

from .base import Base
from .batches import RunStatistics
from .begun import Begun
from .captured_model import CapturedModel, ModelCache
from .check import Stale
from .execution import Execution
from .few_windows import FewWindows
from .group import Selection
from .input_run import Answer, InputRun, Untouched
from .naive import Fallback, naive_maps
from .refused import check_refused

__all__ = [
    "Answer",
    "Base",
    "Begun",
    "CapturedModel",
    "Execution",
    "Fallback",
    "FewWindows",
    "InputRun",
    "ModelCache",
    "RunStatistics",
    "Selection",
    "Stale",
    "Untouched",
    "check_refused",
    "naive_maps",
]
