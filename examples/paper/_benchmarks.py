"""Puts ../benchmarks on the path: what these scripts share with the benchmarks lies there.

Standard library only: the documentation is built with it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
