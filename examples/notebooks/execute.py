"""Runs the notebooks: from the scripts in this folder to notebooks with their outputs.

    python examples/notebooks/execute.py
    python examples/notebooks/execute.py quickstart cohort

A notebook's source is a script in Jupytext's percent format. The notebook beside it is the same
cells, executed; it is written, and never edited. Files that cells write go to a temporary folder.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # where Jupyter is going to look, unasked

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from captum_krypton import backend_info

FOLDER = Path(__file__).resolve().parent
NAMES = ("quickstart", "medical-volume", "superpixels", "cohort")
WIDTH = 750  # at most, of a picture in a notebook, so that its file is small
STEP = 4  # between the values of a colour, of 256: not seen, and smaller by a third
# Neither a file of this machine, which measured rates name, nor a bar of progress.
QUIET = {"KRYPTON_MEASURE": "0", "TQDM_DISABLE": "1"}
EMBEDDED = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=]+")


class OwnKernel(AsyncKernelManager):
    """The kernel of this environment, whatever others there are."""

    def __init__(self, **given: Any) -> None:
        super().__init__(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport_encryption="auto",
            **given,
        )


def read_source(name: str) -> NotebookNode:
    """The notebook that a script is, without outputs; the same each time."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"{name}-{number}", {}
    return notebook


def executed(name: str) -> NotebookNode:
    """The notebook of a script with its outputs, of which pictures are small.

    Raises:
        nbclient.exceptions.CellExecutionError: where a cell raises.
    """
    notebook = read_source(name)
    metadata = dict(notebook.metadata)
    backend_info()  # compiles the kernels where nothing has yet, so that no notebook tells of it
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            kernel_manager_class=OwnKernel,
            timeout=300,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env={**os.environ, **QUIET, "IPYTHONDIR": folder})
    notebook.metadata = metadata
    for bundle in bundles(notebook):
        shrink(bundle)
    return notebook


def bundles(notebook: NotebookNode) -> Iterator[dict[str, Any]]:
    """What a notebook displays, each by its media types."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "data" in output:
                yield output.data


def shrink(bundle: dict[str, Any]) -> None:
    """Makes the pictures of a display small."""
    if "image/png" in bundle:
        bundle["image/png"] = smaller(bundle["image/png"])
    if "text/html" in bundle:
        bundle["text/html"] = EMBEDDED.sub(lambda png: smaller(png[0]), bundle["text/html"])


def smaller(png: str) -> str:
    """A PNG in base64, of fewer pixels and fewer colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, WIDTH * picture.height // picture.width))
    picture = picture.point(lambda value: min(255, (value + STEP // 2) // STEP * STEP))
    made = io.BytesIO()
    picture.save(made, format="PNG", optimize=True)
    return base64.b64encode(made.getvalue()).decode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Execute and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help="which (default: all)")
    options = parser.parse_args(arguments)
    for name in options.names:
        file = FOLDER / f"{name}.ipynb"
        nbformat.write(executed(name), file)
        print(f"wrote {file.name}, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
