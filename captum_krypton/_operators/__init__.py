"""One rule a kind of operator: how far a change reaches, what is read, how a patch is computed.

In: an operator of the graph and what is known of its operands. Out: its `Rule`, or None where it
has none: a global operator is right, only slower.

May use: capture, kernels.
"""

from .regions import (
    Box,
    Floats,
    Integers,
    Interval,
    Mask,
    Positions,
    Reach,
    align,
    crop,
    exact,
    hull,
    numbers,
    same_boxes,
)
from .rule import (
    Algorithm,
    Boxes,
    Dims,
    Frame,
    Kind,
    Means,
    PatchRule,
    Rule,
    Step,
    View,
    along,
    batch_rows,
    whole_step,
)
from .table import rule_for
from .whole_volume import read_by_kernels, whole

__all__ = [
    "Algorithm",
    "Box",
    "Boxes",
    "Dims",
    "Floats",
    "Frame",
    "Integers",
    "Interval",
    "Kind",
    "Mask",
    "Means",
    "PatchRule",
    "Positions",
    "Reach",
    "Rule",
    "Step",
    "View",
    "align",
    "along",
    "batch_rows",
    "crop",
    "exact",
    "hull",
    "numbers",
    "read_by_kernels",
    "rule_for",
    "same_boxes",
    "whole",
    "whole_step",
]
