"""Windows to groups, groups to batches, and what they cost.

In: a graph, windows, the rates of a machine. Out: a `Plan`. Nothing is run here.

May use: call, operators, capture, kernels.
"""

from .analysis import Analysis, analyse
from .batch_size import Room, default_memory_budget
from .fuse import fused
from .group_plan import GroupPlan
from .plan import Plan, make_plan

__all__ = [
    "Analysis",
    "GroupPlan",
    "Plan",
    "Room",
    "analyse",
    "default_memory_budget",
    "fused",
    "make_plan",
]
