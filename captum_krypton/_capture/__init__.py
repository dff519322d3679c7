"""From a forward function to a graph.

In: a forward function and its arguments. Out: a `Graph` of ATen operators that is valid for every
batch size, and whether it still says what the function does; or why there can be none.

May use: kernels.
"""

from .capture import Capture, captured, graph_of, record
from .graph import BatchInt, Graph, Node, Value, ValueId, is_convolution, is_pointwise, resolve
from .narrow import narrowed
from .recorder import NotCapturable, Recording
from .simplify import simplified
from .state import current_state, refuse_modules
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
    "captured",
    "current_state",
    "graph_of",
    "is_convolution",
    "is_pointwise",
    "narrowed",
    "record",
    "refuse_modules",
    "resolve",
    "simplified",
    "watched",
]
