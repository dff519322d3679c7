"""The command line: `python -m captum_krypton`.

May use: top level.
"""

from .cli import main

__all__ = ["main"]
