"""What the sources say of the package's layout, beside a table of what each wing may use.

A wing is a folder of the package and its face the names in its `__init__`. A wing that may use the
top level is a front: it takes from the package what a user would. Sources are texts by their paths;
none is imported. Every check returns what it found wrong, a line each.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "captum_krypton"
TOP = "top level"
MAIN = "__main__"
FILES = {TOP, MAIN}  # in a table, what is no folder
HERE = "tests/test_layout.py"
MOST_LINES = 500
MOST_AT_THE_TOP = 8
NOTHING = "no other wing"  # how a docstring says that it may use none

Sources = Mapping[str, str]
Table = Mapping[str, tuple[str, ...]]


def read() -> dict[str, str]:
    """The sources of this project."""
    found = [
        path
        for folder, kinds in {
            PACKAGE: ("py",),
            "examples": ("py",),
            "tests": ("py",),
            "csrc": ("h", "cpp", "cu", "cuh"),
        }.items()
        for kind in kinds
        for path in sorted((ROOT / folder).rglob(f"*.{kind}"))
    ]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in found}


@dataclass(frozen=True)
class Import:
    """One name that a module of the package takes from the package, wherever in it.

    Args:
        path: the module that imports.
        line: where in it.
        wing: the wing that it belongs to, or `TOP`.
        level: of the import: how many dots; 0 is by the package's name.
        module: what follows the dots; empty in `from . import name`.
        name: what is imported; empty in `import module`.
    """

    path: str
    line: int
    wing: str
    level: int
    module: str
    name: str

    def __str__(self) -> str:
        start = f"from {'.' * self.level}{self.module} " if self.name else ""
        return f"{self.path}:{self.line}: `{start}import {self.name or self.module}`"

    def other(self, table: Table) -> str | None:
        """The other wing that the name comes from, if it comes from one."""
        up = 1 if self.wing in FILES else 2
        if self.level != up:
            return None
        first = self.module.partition(".")[0] or self.name
        if up == 2 and not self.module and first not in table:
            return TOP
        return first if first in table and first != self.wing else None


def wing_of(path: str) -> str:
    if path == f"{PACKAGE}/{MAIN}.py":
        return MAIN
    return PurePosixPath(path).parts[1] if path.count("/") > 1 else TOP


def modules(sources: Sources, wing: str) -> dict[str, str]:
    """The paths of a wing's modules by their names, or those at the top level."""
    return {
        PurePosixPath(path).stem: path
        for path in sources
        if path.startswith(f"{PACKAGE}/") and wing_of(path) == wing
    }


def imports(sources: Sources) -> Iterator[Import]:
    """All of the package from the package: those in functions and for types alone count too."""
    for path, text in sources.items():
        if not path.startswith(f"{PACKAGE}/"):
            continue
        wing = wing_of(path)
        for node in ast.walk(ast.parse(text, path)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] == PACKAGE:
                        yield Import(path, node.lineno, wing, 0, alias.name, "")
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level or module.partition(".")[0] == PACKAGE:
                    for alias in node.names:
                        yield Import(path, node.lineno, wing, node.level, module, alias.name)


def face(sources: Sources, wing: str) -> tuple[list[str], list[str]]:
    """What the `__init__` of a wing, or the package, imports, and its `__all__`."""
    folder = PACKAGE if wing == TOP else f"{PACKAGE}/{wing}"
    tree = ast.parse(sources.get(f"{folder}/__init__.py", ""))
    taken = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return taken, list(ast.literal_eval(node.value))
    return taken, []


def _one_import(found: Import, sources: Sources, table: Table) -> str | None:
    """What is wrong with an import, if anything."""
    if found.level == 0:
        return "name the package by dots, not by its name"
    if found.name == "*":
        return "name what is imported"
    other = found.other(table)
    if other == TOP and TOP in table[found.wing]:
        if found.name not in face(sources, TOP)[1]:
            return f"{found.name} is not in `__all__` of {PACKAGE}/__init__.py"
        return None
    if other not in (None, TOP):
        if not found.module:
            return f"import names: `from {'.' * found.level}{other} import ...`"
        if "." in found.module:
            return f"only the face of {other}: `from {'.' * found.level}{other} import ...`"
        if other not in table[found.wing]:
            allowed = ", ".join(table[found.wing]) or "no wing"
            return f"{found.wing} may use {allowed}. To change that: the table of {HERE}"
        if found.name not in face(sources, other)[1]:
            return f"{found.name} is not in `__all__` of {PACKAGE}/{other}/__init__.py"
        return None
    if found.level > 1:
        return "a wing uses its own modules as `from .module import ...`, and never the top level"
    own = modules(sources, found.wing)
    if (found.module or found.name) not in own:
        where = "at the top level" if found.wing == TOP else f"in {found.wing}"
        return f"there is no module {found.module or found.name} {where}"
    return None


def check_imports(sources: Sources, table: Table) -> list[str]:
    """Across wings by the table, and by their faces; within one from its modules."""
    problems = []
    for found in imports(sources):
        if found.wing in table and (wrong := _one_import(found, sources, table)):
            problems.append(f"{found}: {wrong}")
    return problems


def check_table(sources: Sources, table: Table) -> list[str]:
    """No cycle, and no permission that nobody uses."""
    problems = []
    try:
        TopologicalSorter(table).prepare()
    except CycleError as error:
        circle = " uses ".join(reversed(error.args[1]))
        problems.append(f"{HERE}: the table has a cycle: {circle}")
    used = {(found.wing, found.other(table)) for found in imports(sources)}
    for wing, allowed in table.items():
        for other in allowed:
            if (wing, other) not in used:
                problems.append(
                    f"{HERE}: the table lets {wing} use {other}, and no module of it does: "
                    "take it out there and in the docstring"
                )
    return problems


def check_docstrings(sources: Sources, table: Table) -> list[str]:
    """The last line of a wing's docstring says what the table says."""
    problems = []
    for wing in set(table) - FILES:
        path = f"{PACKAGE}/{wing}/__init__.py"
        last = (ast.get_docstring(ast.parse(sources.get(path, ""))) or "").rpartition("\n")[2]
        expected = ", ".join(name.removeprefix("_") for name in table[wing]) or NOTHING
        said = re.fullmatch(r"May use: (.+)\.", last)
        if said is None or set(said[1].split(", ")) != set(expected.split(", ")):
            problems.append(
                f"{path}: the docstring ends with {last!r}; by the table of {HERE} it is "
                f"'May use: {expected}.'"
            )
    return problems


def check_folders(sources: Sources, table: Table) -> list[str]:
    """Every folder is a wing of the table; what is at the top level is little."""
    wings = set(table) - FILES
    files = [PurePosixPath(path) for path in sources if path.startswith(f"{PACKAGE}/")]
    found = {path.parent for path in files} - {PurePosixPath(PACKAGE)}
    problems = [
        f"{folder}: no wing in the table of {HERE}; it has {', '.join(sorted(wings))}"
        for folder in sorted(found)
        if folder.parent != PurePosixPath(PACKAGE) or folder.name not in wings
    ]
    problems += [
        f"{HERE}: the table has {wing}, which is no folder of {PACKAGE}"
        for wing in sorted(wings - {folder.name for folder in found})
    ]
    top = sorted(modules(sources, TOP))
    if len(top) > MOST_AT_THE_TOP:
        problems.append(
            f"{PACKAGE}: {len(top)} modules at the top level, {', '.join(top)}; at most "
            f"{MOST_AT_THE_TOP} may be there, the others in wings"
        )
    return problems


def check_names(sources: Sources, table: Table) -> list[str]:
    """Wings are private already: their modules have plain names."""
    return [
        f"{path}: a module of a wing has no leading underscore"
        for wing in set(table) - FILES
        for name, path in modules(sources, wing).items()
        if name.startswith("_") and name != "__init__"
    ]


def check_faces(sources: Sources, table: Table) -> list[str]:
    """A face is what `__init__` imports, and what others in the package use, or users."""
    used = {(found.other(table), found.name) for found in imports(sources)}
    problems = []
    for wing in set(table) - FILES:
        path = f"{PACKAGE}/{wing}/__init__.py"
        taken, named = face(sources, wing)
        for name in sorted(set(taken) ^ set(named)):
            have, lack = ("an import", "`__all__`") if name in taken else ("`__all__`", "an import")
            problems.append(f"{path}: {name} is in {have} and not in {lack}")
        problems += [
            f"{path}: {name} is on the face, and no other part of the package uses it; "
            "import it from its module"
            for name in named
            if wing.startswith("_") and (wing, name) not in used
        ]
    return problems


def check_lengths(sources: Sources) -> list[str]:
    lines = {path: text.count("\n") for path, text in sources.items()}
    return [
        f"{path}: {count} lines; at most {MOST_LINES} ({HERE}). Cut it by subject"
        for path, count in lines.items()
        if count > MOST_LINES
    ]


def check_operators(sources: Sources, wing: str = "_kernels") -> list[str]:
    """What registers an operator is named as the operator's module in Python."""
    named = modules(sources, wing)
    return [
        f"{path}: it registers operators, and there is no {PACKAGE}/{wing}/"
        f"{PurePosixPath(path).stem}.py for their schemas"
        for path, text in sources.items()
        if path.startswith("csrc/")
        and "STABLE_TORCH_LIBRARY_IMPL(" in text
        and PurePosixPath(path).stem not in named
    ]
