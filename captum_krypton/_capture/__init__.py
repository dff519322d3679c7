"""TODO."""

from .capture import Capture, capture, current_state, graph_of, record, refuse_training
from .graph import BatchInt, Graph, Node, Value, ValueId, is_pointwise, resolve
from .recorder import NotCapturable, Recording
from .simplify import simplified
from .watch import watched

__all__ = [
    "BatchInt",
    "Capture",
    "Graph",
    "Node",
    "NotCapturable",
    "Recording",
    "Value",
    "ValueId",
    "capture",
    "current_state",
    "graph_of",
    "is_pointwise",
    "record",
    "refuse_training",
    "resolve",
    "simplified",
    "watched",
]
