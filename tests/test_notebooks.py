"""The notebooks: each runs, and the one that is kept is its source, executed."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image
from scripts import EXAMPLES

import captum_krypton

NOTEBOOKS = EXAMPLES / "notebooks"
NAMES = sorted(file.stem for file in NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that runs notebooks, whose kernels import this package on one thread."""
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    monkeypatch.setenv("PYTHONPATH", str(Path(captum_krypton.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import execute

    return execute


def kept(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def cells(notebook: NotebookNode) -> list[tuple[str, str, str]]:
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


def kinds(notebook: NotebookNode) -> list[list[tuple[str, Any]]]:
    """Of each cell's outputs: what they are, and in which media types."""
    return [
        [
            (output.output_type, output.get("name") or sorted(output.data))
            for output in cell.get("outputs", ())
        ]
        for cell in notebook.cells
    ]


def texts(notebook: NotebookNode) -> str:
    """All that is printed or shown in words, pictures left out."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            found += [output.get("text", "")]
            data = output.get("data", {})
            found += [data[media] for media in data if media.startswith("text/")]
    return re.sub(r"base64,[^'\"]+", "", "\n".join(found))


def pictures(notebook: NotebookNode) -> list[Image.Image]:
    made = [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in made]


def test_there_are_notebooks_of_all_sources(execute: ModuleType) -> None:
    sources = {file.stem for file in NOTEBOOKS.glob("*.py")} - {"execute"}
    assert sources == set(NAMES) == set(execute.NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_as_it_is_kept(name: str, execute: ModuleType) -> None:
    made = execute.executed(name)
    nbformat.validate(made)
    assert kinds(made) == kinds(kept(name))
    assert "stderr" not in str(kinds(made))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_the_source_executed(name: str, execute: ModuleType) -> None:
    notebook = kept(name)
    assert cells(notebook) == cells(execute.read_source(name))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_small_and_of_no_machine(name: str) -> None:
    file, notebook = NOTEBOOKS / f"{name}.ipynb", kept(name)
    assert file.stat().st_size < 300_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert not re.search(
        r"(?:^|[\s'\"])/(?:home|root|tmp|usr|work|var|Users)\b|[A-Z]:\\", texts(notebook)
    )
    assert "stderr" not in str(kinds(notebook))
    shown = pictures(notebook)
    assert shown
    for picture in shown:
        assert picture.width <= 750
        assert len(picture.convert("L").getcolors()) > 10  # not an empty page


@pytest.fixture
def written(tmp_path: Path, execute: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a source of a notebook that is tried."""
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    return lambda text: (tmp_path / "tried.py").write_text(text)


def test_a_notebook_that_raises_is_an_error_and_is_not_written(
    written: Any, tmp_path: Path, execute: ModuleType
) -> None:
    written("# %%\nprint('before')\n\n# %%\nraise ValueError('in a cell')\n")
    with pytest.raises(CellExecutionError, match="in a cell"):
        execute.main(["tried"])
    assert [file.name for file in tmp_path.iterdir()] == ["tried.py"]


def test_a_notebook_is_written_without_traces_of_the_machine(
    written: Any, tmp_path: Path, execute: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    written(
        "# %% [markdown]\n# # Title\n\n# %%\nimport pathlib, sys\n\n"
        "pathlib.Path('left.txt').write_text('x')\nprint(sys.executable)\n\n"
        "# %%\nfrom captum_krypton._call import new_figure\n\n"
        "figure = new_figure(14, 2)\nfigure.subplots().plot([1, 2])\nfigure\n"
    )
    execute.main(["tried"])
    assert capsys.readouterr().out.startswith("wrote tried.ipynb")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tried.ipynb", "tried.py"]
    notebook = nbformat.read(tmp_path / "tried.ipynb", as_version=4)
    title, prints, draws = notebook.cells
    assert (title.cell_type, title.source) == ("markdown", "# Title")
    assert prints.outputs[0].text == f"{sys.executable}\n"  # the kernel is of this environment
    assert [picture.width for picture in pictures(notebook)] == [750]
    assert not prints.metadata and "execution" not in str(draws.metadata)
