"""The doors by which values leave torch: they are seen while a forward function runs.

A dispatch mode sees operators. `numpy()`, DLPack, a storage, another thread are none: what becomes
of the values behind them is the user's secret, and may decide a branch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Doors"]

# Functions that give what a tensor holds to others than torch. Numbers that they read one by one
# (`item`, `bool`, `equal`) are operators, and seen as such.
_FUNCTIONS: dict[Any, str] = {
    getattr(Tensor, name): f"Tensor.{name}"
    for name in (
        "__array__",
        "__deepcopy__",
        "__dlpack__",
        "__reduce_ex__",
        "__repr__",
        "_typed_storage",
        "apply_",
        "data_ptr",
        "map_",
        "map2_",
        "numpy",
        "storage",
        "tolist",
        "untyped_storage",
    )
    if hasattr(Tensor, name)
}
_FUNCTIONS[Tensor.__cuda_array_interface__.__get__] = "Tensor.__cuda_array_interface__"

# Functions of C that no such mode sees: the old form of DLPack, and what hands work to a thread.
_BUILTINS = {
    "_to_dlpack": "torch.utils.dlpack.to_dlpack",
    "_to_dlpack_versioned": "torch.utils.dlpack.to_dlpack",
    "start_new_thread": "another thread",
    "start_joinable_thread": "another thread",
}
_SUBMIT = ("submit", "concurrent/futures/thread.py")


class Doors(TorchFunctionMode):
    """Tells of every tensor whose values leave torch's operators.

    Args:
        leaves: told the door's name, and the tensor where it is known which.
        profile: whether functions of C are seen, too, which takes some microseconds a call. Not so
            where a profiler runs that could not be put back, such as cProfile's.
    """

    def __init__(
        self, leaves: Callable[[str, Tensor | None], None], *, profile: bool = True
    ) -> None:
        super().__init__()
        self._leaves, self._profiles = leaves, profile
        self._before: Any = None

    def __enter__(self) -> Doors:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._before = sys.getprofile()
        self._profiles = self._profiles and (self._before is None or callable(self._before))
        if self._profiles:
            sys.setprofile(self._profile)
        return self

    def __exit__(self, *error: object) -> None:
        if self._profiles:
            sys.setprofile(self._before)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        door = _FUNCTIONS.get(func)
        if door is not None and args and isinstance(args[0], Tensor):
            with torch._C.DisableTorchFunction():
                self._leaves(door, args[0])
        return func(*args, **(kwargs or {}))

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            door = _BUILTINS.get(argument.__name__)
            if door is not None and frame.f_code.co_name != "__dlpack__":  # seen as such
                self._leaves(door, None)
        elif event == "call" and frame.f_code.co_name == _SUBMIT[0]:
            if frame.f_code.co_filename.replace("\\", "/").endswith(_SUBMIT[1]):
                self._leaves("another thread", None)
