"""Libraries that a map can do without, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, extra: str, used_by: str) -> Any:
    """A module of a library that is not installed with this package.

    Args:
        module: its name.
        extra: the extra of this package that installs it.
        used_by: what needs it, for the message.

    Raises:
        ImportError: where the library is not installed; it says how to install it. A library that
            is there and fails says so itself.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise ImportError(
            f"{used_by} needs {library}, which is not installed: "
            f"pip install 'captum-krypton[{extra}]'"
        ) from error
