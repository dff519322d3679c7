"""README.md's table of speed and what an installation takes, from the measurements in docs/data.

python examples/benchmarks/readme_table.py           # writes it anew
python examples/benchmarks/readme_table.py --check   # exit status 1 if it is out of date
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from _tables import ROOT
from _tables.gpu import gpu, gpu_line
from _tables.install import install_line
from _tables.speed import comparisons, speed_table
from _tables.volumes import volume_line, volume_results

COMMAND = "python examples/benchmarks/readme_table.py"


def between(text: str, name: str, parts: list[str]) -> str:
    """A text with new paragraphs between the two lines that name them."""
    begin, end = f"<!-- {name}: {COMMAND} -->", f"<!-- end of {name} -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return "\n\n".join([f"{head}{begin}", *parts, f"{end}{tail}"])


def update_readme(text: str) -> str:
    """README.md with what was measured between its markers."""
    text = between(text, "install size", [install_line()])
    speed = [speed_table(comparisons()), volume_line(volume_results()), gpu_line(gpu())]
    return between(text, "speed table", speed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = update_readme(before)
    if options.check:
        if before != after:
            print("README.md: a table or a size differs from docs/data; run readme_table.py")
        return int(before != after)
    readme.write_text(after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
