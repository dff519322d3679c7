"""What an installation takes on a disk."""

from __future__ import annotations

import json
from typing import Any

from . import DATA


def install_line() -> str:
    """What `install_size.py` measured, in words."""
    made: dict[str, dict[str, Any]] = json.loads((DATA / "install.json").read_text())
    # Newest first; versions of PyTorch have three numbers.
    order = sorted(made, key=lambda name: [*map(int, name.split("+")[0].split("."))], reverse=True)
    cuda = next(name for name in order if made[name]["cuda"])
    plain = next(name for name in order if not made[name]["cuda"])
    ours, where = made[cuda], made[cuda]["machine"]
    return (
        f"The wheel is a download of {_words(ours['wheel'])}. Installed it takes "
        f"{_words(ours['package'])}, of which the kernels are {_words(ours['kernels'])}; what it "
        f"requires besides PyTorch takes {_words(ours['others'])}. PyTorch takes "
        f"{_words(made[cuda]['torch'])} with CUDA ({cuda}), and {_words(made[plain]['torch'])} as "
        f"a build for CPUs ({plain}); measured on {where['system']}, {where['date']}."
    )


def _words(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{float(f'{count / scale:.2g}'):g} {unit}"
    return f"{count / 1e3:.0f} kB"
