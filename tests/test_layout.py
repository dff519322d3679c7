"""The package's layout: which wing may use which, and how."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from layout import (
    MOST_AT_THE_TOP,
    MOST_LINES,
    TOP,
    Sources,
    Table,
    check_docstrings,
    check_faces,
    check_folders,
    check_imports,
    check_lengths,
    check_names,
    check_operators,
    check_table,
    read,
)

# Each may use those that it names, by their faces alone: the names in their `__init__`. The last
# line of a wing's docstring says the same. What may use the top level is a front.
WINGS: Table = {
    "_kernels": (),
    "_capture": ("_kernels",),
    "_operators": ("_capture", "_kernels"),
    "_call": ("_operators",),
    "_plan": ("_call", "_operators", "_capture", "_kernels"),
    "_run": ("_plan", "_call", "_operators", "_capture", "_kernels"),
    "_approximate": ("_run", "_plan", "_call", "_operators"),
    TOP: ("_approximate", "_run", "_plan", "_call", "_operators", "_capture", "_kernels"),
    "_command": (TOP,),
    "__main__": ("_command",),
    "data": (TOP,),
    "monai": (TOP,),
}

Check = Callable[[Sources, Table], list[str]]
CHECKS: dict[str, Check] = {
    "imports": check_imports,
    "table": check_table,
    "docstrings": check_docstrings,
    "folders": check_folders,
    "names": check_names,
    "faces": check_faces,
    "lengths": lambda sources, table: check_lengths(sources),
    "operators": lambda sources, table: check_operators(sources),
}


@pytest.fixture(scope="module")
def project() -> Sources:
    return read()


@pytest.mark.parametrize("rule", CHECKS)
def test_the_project_keeps(rule: str, project: Sources) -> None:
    problems = CHECKS[rule](project, WINGS)
    assert not problems, "\n".join(["", *problems])


@pytest.mark.parametrize(
    "path",
    [
        "captum_krypton/__init__.py",
        "captum_krypton/_plan/plan.py",
        "csrc/cpu/gather_patches.cpp",
        "csrc/cuda/gather_patches.cu",
        "examples/quickstart.py",
        "tests/kernels/test_gather_patches.py",
    ],
)
def test_all_of_the_project_is_read(path: str, project: Sources) -> None:
    assert path in project


# A package of two wings that keeps every rule, and what breaks one.

SMALL: Table = {"_kernels": (), "_plan": ("_kernels",), TOP: ("_plan", "_kernels")}
KERNELS = "captum_krypton/_kernels/__init__.py"
PLAN = "captum_krypton/_plan/__init__.py"
MODULE = "captum_krypton/_plan/cost.py"
MAIN = "captum_krypton/_main.py"
GOOD = {
    "captum_krypton/__init__.py": "from ._main import main\n",
    MAIN: "from ._kernels import pool\nfrom ._plan import cost\n\nmain = (pool, cost)\n",
    KERNELS: '"""Low.\n\nMay use: no other wing.\n"""\n\nfrom .pool import pool\n\n'
    '__all__ = ["pool"]\n',
    "captum_krypton/_kernels/pool.py": "pool = other = 1\n",
    PLAN: '"""High.\n\nMay use: kernels.\n"""\n\nfrom .cost import cost\n\n__all__ = ["cost"]\n',
    MODULE: "import math\nfrom .._kernels import pool\nfrom . import rates\n\ncost = pool\n",
    "captum_krypton/_plan/rates.py": "from __future__ import annotations\n",
    "csrc/cpu/pool.cpp": "STABLE_TORCH_LIBRARY_IMPL(captum_krypton, CPU, library) {}\n",
    "csrc/cpu/helper.cpp": "int helper();\n",
    "tests/test_long.py": "\n" * MOST_LINES,
}


@pytest.mark.parametrize("rule", CHECKS)
def test_a_good_package(rule: str) -> None:
    assert CHECKS[rule](GOOD, SMALL) == []


def problems_of(rule: str, changes: dict[str, str | None], table: Table = SMALL) -> str:
    """What a rule has against the good package once it is changed; None takes a file away."""
    changed = {path: text for path, text in {**GOOD, **changes}.items() if text is not None}
    return "\n".join(CHECKS[rule](changed, table))


@pytest.mark.parametrize(
    ("path", "line", "message"),
    [
        (
            KERNELS,
            "from .._plan import cost",
            "_kernels may use no wing. To change that: ",
        ),
        (MODULE, "from .._kernels.pool import pool", "only the face of _kernels"),
        (MODULE, "from .._kernels import other", "other is not in `__all__` of captum_krypton/_ke"),
        (MODULE, "from .. import _kernels", "import names: `from .._kernels import ...`"),
        (MODULE, "from .._kernels import *", "name what is imported"),
        (MODULE, "from .._plan import cost", "its own modules as `from .module import ...`"),
        (MODULE, "from .._plan.rates import rate", "its own modules as `from .module import ...`"),
        (MODULE, "from .._main import main", "never the top level"),
        (MODULE, "from .. import main", "never the top level"),
        (MODULE, "from . import cast", "there is no module cast in _plan"),
        (MODULE, "from .cast import cast", "there is no module cast in _plan"),
        (MODULE, "from captum_krypton._kernels import pool", "by dots, not by its name"),
        (MODULE, "import captum_krypton._kernels", "by dots, not by its name"),
        (MAIN, "from ._plan.rates import rate", "only the face of _plan"),
        (MAIN, "from . import _plan", "import names: `from ._plan import ...`"),
        (MAIN, "from ._lost import lost", "there is no module _lost at the top level"),
        (
            "captum_krypton/_kernels/pool.py",
            "def late():\n    from .._plan import cost",
            "pool.py:3: `from .._plan import cost`: _kernels may use no wing",
        ),
        (
            "captum_krypton/_kernels/pool.py",
            "if TYPE_CHECKING:\n    from .._plan import cost",
            "pool.py:3: `from .._plan import cost`: _kernels may use no wing",
        ),
    ],
)
def test_an_import_that_may_not_be(path: str, line: str, message: str) -> None:
    found = problems_of("imports", {path: f"{GOOD[path]}{line}\n"})
    assert found.startswith(f"{path}:") and message in found
    assert len(found.splitlines()) == 1


FRONTS: Table = {**SMALL, "data": (TOP,), "_command": ("data", TOP), "__main__": ("_command",)}
FRONT = "captum_krypton/data/__init__.py"
BEFORE = {
    "captum_krypton/__init__.py": 'from ._main import main\n\n__all__ = ["main"]\n',
    FRONT: '"""Many.\n\nMay use: top level.\n"""\n\nfrom .mapper import Mapper\n\n'
    '__all__ = ["Mapper"]\n',
    "captum_krypton/data/mapper.py": "from .. import main\n\nMapper = main\n",
    "captum_krypton/_command/__init__.py": '"""A terminal.\n\nMay use: data, top level.\n"""\n\n'
    'from .run import run\n\n__all__ = ["run"]\n',
    "captum_krypton/_command/run.py": "from .. import main\nfrom ..data import Mapper\n\n"
    "run = main, Mapper\n",
    "captum_krypton/__main__.py": "from ._command import run\n\nrun()\n",
}


@pytest.mark.parametrize("rule", CHECKS)
def test_fronts(rule: str) -> None:
    assert problems_of(rule, {**BEFORE}, FRONTS) == ""


@pytest.mark.parametrize(
    ("path", "line", "message"),
    [
        (
            "captum_krypton/data/mapper.py",
            "from .. import pool",
            "pool is not in `__all__` of capt",
        ),
        ("captum_krypton/data/mapper.py", "from .._main import main", "never the top level"),
        ("captum_krypton/data/mapper.py", "from .._plan import cost", "data may use top level."),
        (MAIN, "from ._command import run", "top level may use _plan, _kernels."),
        ("captum_krypton/__main__.py", "from ._main import main", "no module _main in __main__"),
    ],
)
def test_what_a_front_may_not_use(path: str, line: str, message: str) -> None:
    before = {**GOOD, **BEFORE}
    assert message in problems_of("imports", {**BEFORE, path: f"{before[path]}{line}\n"}, FRONTS)


def test_tables_that_say_too_much() -> None:
    circle: Table = {**SMALL, "_kernels": ("_plan",)}
    found = problems_of("table", {}, circle)
    assert "the table has a cycle: " in found
    assert "lets _kernels use _plan, and no module of it does" in found
    alone = problems_of("table", {MODULE: "cost = 1\n"})
    assert "lets _plan use _kernels, and no module of it does" in alone
    assert "cycle" not in alone


@pytest.mark.parametrize(
    "docstring",
    ["", "High.", "May use: kernels, run.", "May use: no other wing.", "May use: kernels.\n\nEnd."],
)
def test_docstrings_that_say_otherwise(docstring: str) -> None:
    found = problems_of("docstrings", {PLAN: f'"""{docstring}"""\n'})
    assert found.startswith(f"{PLAN}: ") and "it is 'May use: kernels.'" in found
    allowed: Table = {**SMALL, "_kernels": ("_plan",)}
    assert "it is 'May use: plan.'" in problems_of("docstrings", {}, allowed)


def test_folders_and_modules_in_the_wrong_place() -> None:
    inside = {"captum_krypton/_plan/deep/__init__.py": ""}
    assert "captum_krypton/_plan/deep: no wing" in problems_of("folders", inside)
    beside = {"captum_krypton/_other/__init__.py": ""}
    assert "captum_krypton/_other: no wing" in problems_of("folders", beside)
    more: Table = {**SMALL, "_run": ()}
    assert "the table has _run, which is no folder" in problems_of("folders", {}, more)
    full = {f"captum_krypton/_{n}.py": "" for n in range(MOST_AT_THE_TOP - 2)}
    assert not problems_of("folders", {**full})
    found = problems_of("folders", {**full, "captum_krypton/_more.py": ""})
    assert f"{MOST_AT_THE_TOP + 1} modules at the top level" in found and "_more" in found


def test_a_module_with_an_underscore() -> None:
    found = problems_of("names", {"captum_krypton/_plan/_cost.py": ""})
    assert found == "captum_krypton/_plan/_cost.py: a module of a wing has no leading underscore"


@pytest.mark.parametrize(
    ("imported", "named", "message"),
    [
        ("pool", "", "pool is in an import and not in `__all__`"),
        ("pool", "pool, other", "other is in `__all__` and not in an import"),
        ("pool, other", "pool, other", "other is on the face, and no other part of the package"),
    ],
)
def test_faces_that_are_wrong(imported: str, named: str, message: str) -> None:
    names = [name for name in named.split(", ") if name]
    text = f"from .pool import {imported}\n\n__all__ = {names}\n"
    assert f"{KERNELS}: {message}" in problems_of("faces", {KERNELS: text})


@pytest.mark.parametrize("path", ["csrc/long.h", "tests/long.py", "captum_krypton/_plan/long.py"])
def test_a_file_that_is_too_long(path: str) -> None:
    found = problems_of("lengths", {path: "\n" * (MOST_LINES + 1)})
    assert found.startswith(f"{path}: {MOST_LINES + 1} lines")


@pytest.mark.parametrize("path", ["csrc/cpu/join.cpp", "csrc/cuda/join.cu"])
def test_an_operator_without_a_module(path: str) -> None:
    found = problems_of("operators", {path: GOOD["csrc/cpu/pool.cpp"]})
    assert found.startswith(f"{path}: ") and "captum_krypton/_kernels/join.py" in found
