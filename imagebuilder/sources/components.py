"""Reads ``components/<name>/``: a wrapper Go module and the TOML file that says what to build from it."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagebuilder.content import content_id, sha256_bytes
from imagebuilder.errors import DataError, UnresolvableError
from imagebuilder.model import ModuleBuild

KEYS = ("version", "programs", "stamp")
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
VERSION = re.compile(r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?")
PACKAGE = re.compile(r"[a-z0-9][A-Za-z0-9.-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)+")
VARIABLE = re.compile(r"[a-z0-9][A-Za-z0-9._/-]*\.[A-Za-z_][A-Za-z0-9_]*")
VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]*")  # no space or quote: the linker splits its flags at them
MAJOR = re.compile(r"/v[2-9][0-9]*$|/v1[0-9]+$")
FILES = ("go.mod", "go.sum")


def load_module(components_dir: Path, name: str) -> ModuleBuild:
    """Return one component's build.

    Raises:
        UnresolvableError: there is no wrapper of that name.
        DataError: the wrapper is not of its schema; all that is wrong is said at once.
    """
    folder = components_dir / name
    if not NAME.fullmatch(name) or not (folder / "component.toml").is_file():
        raise UnresolvableError(
            f"there is no wrapper module for {name}", hint=f"there are: {', '.join(names(components_dir))}"
        )
    where = f"components/{name}/component.toml"
    try:
        data = tomllib.loads((folder / "component.toml").read_text(encoding="utf-8"))
        files = {file: (folder / file).read_bytes() for file in FILES}
    except (ValueError, OSError) as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    if problems := list(_problems(data)):
        raise DataError(f"{where} is not of its schema", context="\n".join(f"{where}: {p}" for p in problems))
    programs, stamp = tuple(data["programs"]), tuple(sorted(data.get("stamp", {}).items()))
    digest = content_id(
        {
            "name": name,
            "version": data["version"],
            "programs": programs,
            "stamp": stamp,
            "files": {file: sha256_bytes(content) for file, content in files.items()},
        }
    )
    return ModuleBuild(name=name, version=data["version"], programs=programs, stamp=stamp, digest=digest)


def names(components_dir: Path) -> tuple[str, ...]:
    """Return the names of all components."""
    return tuple(sorted(path.parent.name for path in components_dir.glob("*/component.toml")))


def program_names(module: ModuleBuild) -> tuple[str, ...]:
    """Return the names of the programs that a build gives."""
    return tuple(_program_name(program) for program in module.programs)


def _program_name(package: str) -> str:
    """Return what ``go build`` names a program: a major version (``.../server/v3``) is no name."""
    return MAJOR.sub("", package).rpartition("/")[2]


def go_line(components_dir: Path, name: str) -> str:
    """Return the Go version that a wrapper asks for: the ``go`` line of its go.mod.

    Raises:
        DataError: it has none.
    """
    text = (components_dir / name / "go.mod").read_text(encoding="utf-8")
    if found := re.search(r"^go (\d+\.\d+(?:\.\d+)?)$", text, re.MULTILINE):
        return found.group(1)
    raise DataError(f"components/{name}/go.mod has no go line")


def _problems(data: dict[str, Any]) -> Iterator[str]:
    for key in data.keys() - set(KEYS):
        near = difflib.get_close_matches(key, KEYS, 1)
        yield f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    version, programs, stamp = data.get("version"), data.get("programs"), data.get("stamp", {})
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        yield "version: must be an exact version, such as '1.35.8'"
    if not isinstance(programs, list) or not programs:
        yield "programs: must be a list of Go package paths"
    else:
        bad = [item for item in programs if not isinstance(item, str) or not PACKAGE.fullmatch(item)]
        yield from (f"programs: {item!r} is no Go package path" for item in bad)
        last = [_program_name(item) for item in programs if isinstance(item, str)]
        yield from (f"programs: two of them are named {item!r}" for item in sorted(set(last)) if last.count(item) > 1)
    if not isinstance(stamp, dict):
        yield "stamp: must be a table of variable = value"
        return
    for variable, value in stamp.items():
        if not VARIABLE.fullmatch(variable):
            yield f"stamp: {variable!r} is no Go variable, such as 'example.com/package.Name'"
        if not isinstance(value, str) or not VALUE.fullmatch(value):
            yield f"stamp.{variable}: must be text without spaces and quotes"
