"""What captum-krypton takes on a disk, and what PyTorch takes beside it.

    python examples/benchmarks/install_size.py --wheel dist/captum_krypton-*.whl

It measures the environment that runs it, which has the wheel. `bash .ci/wheel --sizes FILE` makes
such environments, with nothing else in them, and runs it there. Sizes are those of the files as
installed, without what Python caches; PyTorch's are with all that it requires.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from _installed import required, size
from _shared import machine

PACKAGE = "captum-krypton"


def measure(wheel: Path) -> dict[str, Any]:
    """Bytes of the wheel, of what it installs, and of what it requires.

    Args:
        wheel: the wheel that was installed.
    """
    package, everything = distribution(PACKAGE), required(PACKAGE)
    of_torch = required("torch")
    others = everything.keys() - of_torch.keys() - {PACKAGE}
    return {
        "cuda": torch.version.cuda,
        "wheel": wheel.stat().st_size,
        "package": size(package),
        "kernels": size(package, ".so", ".pyd"),
        "torch": sum(size(found) for found in of_torch.values()),
        "others": sum(size(everything[name]) for name in others),
        "machine": machine(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True, help="the wheel that was installed")
    parser.add_argument("--json", type=Path, help="this build of PyTorch's place in a JSON file")
    options = parser.parse_args(arguments)
    made = {str(torch.__version__): measure(options.wheel)}
    if options.json is None:
        print(json.dumps(made, indent=1))
        return 0
    earlier = json.loads(options.json.read_text()) if options.json.exists() else {}
    options.json.write_text(json.dumps(earlier | made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
