"""The pictures of docs/gallery.md, each by the lines that stand beside it there.

    python examples/benchmarks/gallery.py --folder docs/images/gallery

Runs the page's Python blocks from top to bottom. What a block leaves as `figure` is the picture
that the page shows after it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from _tables import ROOT

PAGE = ROOT / "docs" / "gallery.md"
BLOCK = re.compile(
    r"^```python\n(.*?)^```$|!\[[^\]]*\]\(images/gallery/([\w-]+\.png)\)", re.M | re.S
)


def pictures(page: str) -> list[tuple[str, str]]:
    """The page's blocks of code, each with the name of the picture after it, or an empty one."""
    found: list[tuple[str, str]] = []
    for code, picture in BLOCK.findall(page):
        found = [*found[:-1], (found[-1][0], picture)] if picture else [*found, (code, "")]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the blocks, and write what they draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="gallery", help="where the pictures go")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    torch.manual_seed(0)
    folder, names = Path(options.folder), dict[str, Any]()
    folder.mkdir(parents=True, exist_ok=True)
    for code, picture in pictures(PAGE.read_text()):
        exec(compile(code, str(PAGE), "exec"), names)
        if picture:
            names["figure"].savefig(folder / picture, dpi=110, bbox_inches="tight")
            print(f"wrote {folder / picture}")


if __name__ == "__main__":
    main()
