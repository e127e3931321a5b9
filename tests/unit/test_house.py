"""The rules of the house: what imports what, how long things are, and what must not be in our files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "imagebuilder"

# DESIGN, section 9: imports go downward in this list, or stay within a line.
LEVELS = (
    {"cli", "__main__"},
    {"artifacts", "bake", "bake_packer", "templates", "release", "doctor", "schema"},
    {"verify"},  # boots the artifact with a data package made for it
    {"direct", "packer", "publish", "datapackage", "pki"},
    {"vm"},
    {
        "cells",
        "diskplan",
        "plan",
        "recipe_env",
        "repositories",
        "resolve",
        "fetch",
        "lockfile",
        "locked",
        "compressors",
    },
    {"profile_data", "profiles", "targets", "steps", "images", "compat", "config", "strict", "sources"},
    {"process", "userns", "events", "resources", "content", "gzips"},
    {"model", "errors", "__init__"},
)
ROOMS = LEVELS[3]  # none of them imports another
ALONE = "agent"  # runs in the image: the standard library only
MODULE_LINES, FUNCTION_LINES, RECIPE_LINES, DATA_LINES, STEP_LINES = 400, 40, 60, 64, 110
DATA_FOLDERS = ("os_profiles", "targets", "verification")
RECIPES = {"bake.py", "release.py"}
# Copied into images as one file, which needs nothing but Python there: it cannot be split, nor use process.py.
ONE_FILE = PACKAGE / "agent/agent.py"
STARTERS = tuple(f"os.{name}" for name in ("system", "popen", "exec", "spawn", "fork", "posix_spawn"))

SOURCES = sorted(PACKAGE.rglob("*.py"))


def cases(paths: list[Path]) -> list[Any]:
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in paths]


def part_of(path: Path) -> str:
    """The name in ``LEVELS`` that a module belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def level_of(part: str) -> int:
    return next(index for index, parts in enumerate(LEVELS) if part in parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, also within functions and for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_used(tree: ast.AST) -> set[str]:
    known = set().union(*LEVELS)
    names = [name.split(".") for name in imported(tree) if name.split(".")[0] == "imagebuilder"]
    return {words[1] if len(words) > 1 and words[1] in known else "__init__" for words in names}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its decorators and its docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", cases(SOURCES))
def test_imports_go_downward(path: Path) -> None:
    part, used = part_of(path), parts_used(ast.parse(path.read_text()))
    if part == ALONE:
        assert not used
        return
    assert any(part in parts for parts in LEVELS), f"say in LEVELS where {part} belongs"
    assert {other for other in used if level_of(other) < level_of(part)} == set()
    if part in ROOMS:
        assert used & ROOMS <= {part}


@pytest.mark.parametrize("path", cases(SOURCES))
def test_only_process_starts_programs(path: Path) -> None:
    if path in (PACKAGE / "process.py", ONE_FILE):  # the agent has its own one helper, and a test for it
        return
    tree = ast.parse(path.read_text())
    assert {name for name in imported(tree) if name.split(".")[0] in ("subprocess", "pty")} == set()
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in attributes if name.startswith(STARTERS)} == set()


@pytest.mark.parametrize("path", cases(SOURCES))
def test_modules_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert path == ONE_FILE or len(text.splitlines()) <= MODULE_LINES
    limit = RECIPE_LINES if path.name in RECIPES and path.parent == PACKAGE else FUNCTION_LINES
    found = {function.name: length(function) for function in functions(ast.parse(text))}
    assert {name: lines for name, lines in found.items() if lines > limit} == {}


@pytest.mark.parametrize("path", cases(SOURCES))
def test_everything_public_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, "the module"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    bodies = [tree.body, *(node.body for node in classes)]
    public = [
        node
        for body in bodies
        for node in body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize(
    "path",
    cases(
        [
            path
            for folder in ("os_profiles", "targets", "verification")
            for path in sorted((ROOT / folder).glob("*.toml"))
        ]
    ),
)
def test_data_files_are_short(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= DATA_LINES


@pytest.mark.parametrize("path", cases(sorted((ROOT / "provision").rglob("*.sh"))))
def test_steps_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= STEP_LINES


# A developer's own folders; not the dot files of a guest's root.
OWN = re.compile(r"(?<![\w}.*>$)])/(?:root/(?!\.)|work/|home/\w+/)[\w.-][\w./-]*")
FOLDERS = ("imagebuilder", "os_profiles", "targets", "provision", "components", "docs", "examples", "bench", "packer",
           "verification", "tests", ".github")  # fmt: skip
SKIPPED = {"__pycache__", ".venv", "_data"}


def our_files() -> list[Path]:
    inside = [path for name in FOLDERS for path in sorted((ROOT / name).rglob("*")) if path.is_file()]
    top = [path for path in sorted(ROOT.iterdir()) if path.is_file()]
    return [path for path in (*top, *inside) if not SKIPPED & set(path.relative_to(ROOT).parts)]


def test_no_paths_of_a_developers_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in our_files()
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), start=1)
        for match in OWN.finditer(line)
        if path != Path(__file__).resolve() and "home/me" not in match[0]
    ]
    assert found == []
