"""OS profiles: TOML files, merged along one chain of ``inherits``, for one cell.

The order of a merge: the family's file, then the heirs', each with its ``append``; then the ``[[when]]``
blocks that match, the family's first. Tables merge, lists replace, ``append`` adds to lists. Then the
placeholders are filled in. Files whose name starts with ``_`` are families, not operating systems.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from imagebuilder import resources
from imagebuilder.errors import DataError, UsageError
from imagebuilder.profile_data import Profile, ProfileData, Release
from imagebuilder.strict import (
    did_you_mean,
    expand,
    label,
    read_toml,
    unknown_keys,
    validate,
    wrong,
)

MATCHERS = ("arch", "release", "target", "init")
PLACEHOLDERS = ("os", "release", "version", "suite", "arch", "machine", "target", "init")  # filled in when loaded
LATE = ("minor",)  # known only when the Kubernetes version is; see Repository and Component
_LATE_TABLES = ("repositories", "components")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # what most of the world calls our architectures


def profile_names(folder: Path | None = None) -> tuple[str, ...]:
    """Return the names of all operating systems, sorted."""
    return _names(folder or resources.folder("os_profiles"))


def releases(os: str, *, folder: Path | None = None) -> Mapping[str, Release]:
    """Return an operating system's releases, in the order of its file.

    Raises:
        UsageError: there is no such operating system.
        DataError: its files do not follow the schema.
    """
    data = _common(folder or resources.folder("os_profiles"), os)
    return data.releases


def architectures(os: str, *, folder: Path | None = None) -> tuple[str, ...]:
    """Return the architectures that an operating system is built for.

    Raises:
        UsageError: there is no such operating system.
        DataError: its files do not follow the schema.
    """
    return _common(folder or resources.folder("os_profiles"), os).architectures


def load_profile(os: str, *, release: str, arch: str, target: str, folder: Path | None = None) -> Profile:
    """Return the profile of one cell. An empty ``release`` means the profile's default.

    Raises:
        UsageError: no such operating system, release or architecture; the nearest one is named.
        DataError: a file does not follow the schema.
    """
    return _load(folder or resources.folder("os_profiles"), os, release, arch, target)


@cache
def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.toml") if not path.stem.startswith("_")))


@cache
def _load(folder: Path, os: str, release: str, arch: str, target: str) -> Profile:
    common = _common(folder, os)
    release = release or common.default_release
    _known("release", release, common.releases, f"{common.title} has no release")
    _known("arch", arch, common.architectures, f"{common.title} is not built for")
    blocks = tuple(_matching(folder, os, {"arch": arch, "release": release, "target": target}))
    named = target if _names_target(folder, os) else ""  # else one profile serves all targets that match alike
    return _profile(folder, os, release, arch, named, blocks)


@cache
def _profile(
    folder: Path, os: str, release: str, arch: str, target: str, blocks: tuple[tuple[str, int], ...]
) -> Profile:
    chosen = _common(folder, os).releases[release]
    tree = _merged(folder, os)
    for name, index in blocks:
        block = dict(_chain(folder, os))[name]["when"][index]
        tree = _apply(tree, block, MATCHERS, f"{label(folder / f'{name}.toml')}: when.{index}")
    values = {
        "os": os, "release": release, "version": chosen.version or release, "suite": chosen.suite, "arch": arch,
        "machine": MACHINES.get(arch, arch), "target": target, "init": tree["init"],
    }  # fmt: skip
    where = label(folder / f"{os}.toml")
    problems: list[str] = []
    filled = {key: _fill(value, values, (key,), problems) for key, value in tree.items()}
    own = {"name": os, "release": release, "suite": chosen.suite, "arch": arch}
    return validate({**filled, **own}, Profile, where, problems=[f"{where}: {line}" for line in problems])


@cache
def _names_target(folder: Path, os: str) -> bool:
    return any("{target}" in repr(raw) for _, raw in _chain(folder, os))


def _known(option: str, name: str, known: Collection[str], said: str) -> None:
    if name not in known:
        raise UsageError(f'{said} "{name}"{did_you_mean(name, known)}', hint=f"{option}: {', '.join(known)}")


@cache
def _common(folder: Path, os: str) -> ProfileData:
    """Return a profile without its ``[[when]]`` blocks: what holds in every cell."""
    _known("os", os, _names(folder), "there is no operating system")
    chain = _chain(folder, os)
    problems = [line for name, raw in chain for line in _problems(raw, label(folder / f"{name}.toml"))]
    where = label(folder / f"{os}.toml")
    try:
        tree = _merged(folder, os)
    except DataError as error:
        raise wrong(where, [*problems, error.message]) from error
    data = validate(tree, ProfileData, where, problems=problems)
    if data.default_release not in data.releases:
        raise wrong(where, [f'{where}: default_release: "{data.default_release}" is not in releases'])
    return data


@cache
def _chain(folder: Path, os: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return (name, content) of a profile's files, the root of the chain first."""
    chain: dict[str, dict[str, Any]] = {}
    name, heir = os, ""
    while name:
        if name in chain:
            raise DataError(f"{label(folder / f'{heir}.toml')}: inherits: {' -> '.join([*chain, name])} is a cycle")
        path = folder / f"{name}.toml"
        if not path.is_file():
            known = sorted(file.stem for file in folder.glob("*.toml"))
            where = label(folder / f"{heir}.toml")
            raise DataError(f'{where}: inherits: there is no profile "{name}"{did_you_mean(name, known)}')
        chain[name] = read_toml(path)
        parent = chain[name].get("inherits", "")
        if not isinstance(parent, str):
            raise DataError(f"{label(path)}: inherits: should be one name (got {parent!r:.60})")
        name, heir = parent, name
    return tuple(reversed(chain.items()))


def _problems(raw: Mapping[str, Any], where: str) -> list[str]:
    """Return what is wrong with one file as written, before anything is merged."""
    data = {key: value for key, value in raw.items() if key not in ("inherits", "append", "when")}
    lines = unknown_keys(data, ProfileData, where)
    lines += unknown_keys(raw.get("append", {}), ProfileData, where, at=("append",))
    blocks = raw.get("when", [])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        return [*lines, f"{where}: when: write each block under its own [[when]]"]
    for index, block in enumerate(blocks):
        at = ("when", str(index))
        lines += [f"{where}: {'.'.join(at)}.{key}: {text}" for key, text in _bad_matchers(block)]
        override = {key: value for key, value in block.items() if key not in (*MATCHERS, "append")}
        lines += unknown_keys(override, ProfileData, where, at=at)
        lines += unknown_keys(block.get("append", {}), ProfileData, where, at=(*at, "append"))
    return lines


def _bad_matchers(block: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [key for key in MATCHERS if key in block]
    if not found:
        return [("arch", f"missing: a block needs at least one of {', '.join(MATCHERS)}")]
    return [
        (key, f"should be a string or a list of strings (got {block[key]!r:.60})")
        for key in found
        if not all(isinstance(item, str) for item in _as_list(block[key]))
    ]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@cache
def _merged(folder: Path, os: str) -> dict[str, Any]:
    """Return the chain's tables as one, ``append`` done, ``[[when]]`` not. Never change it in place."""
    tree: dict[str, Any] = {}
    for name, raw in _chain(folder, os):
        tree = _apply(tree, raw, ("inherits", "when"), label(folder / f"{name}.toml"))
    return tree


def _matching(folder: Path, os: str, facts: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Yield the ``[[when]]`` blocks that match, as (file's name, index), in the order in which they apply."""
    known = {**facts, "init": _merged(folder, os)["init"]}
    for name, raw in _chain(folder, os):
        for index, block in enumerate(raw.get("when", [])):
            if all(known[key] in _as_list(block[key]) for key in MATCHERS if key in block):
                yield name, index


def _apply(tree: dict[str, Any], change: Mapping[str, Any], but: Collection[str], where: str) -> dict[str, Any]:
    override = {key: value for key, value in change.items() if key not in (*but, "append")}
    return append(merge(tree, override), change.get("append", {}), f"{where}: append")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` overridden: tables merge, everything else is replaced. Neither is changed."""
    tree = dict(base)
    for key, value in over.items():
        old = tree.get(key)
        tree[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return tree


def append(base: Mapping[str, Any], more: Any, where: str) -> dict[str, Any]:
    """Return ``base`` with the lists of ``more`` added to its own; a list that is not there begins empty.

    Raises:
        DataError: ``more`` adds something else than lists, or to something else than a list.
    """
    if not isinstance(more, Mapping):
        raise DataError(f"{where}: should be a table (got {more!r:.60})")
    tree = dict(base)
    for key, value in more.items():
        if isinstance(value, Mapping):
            inner = tree.get(key, {})
            if not isinstance(inner, Mapping):
                raise DataError(f"{where}.{key}: is not a table in what it adds to")
            tree[key] = append(inner, value, f"{where}.{key}")
        elif isinstance(value, list) and isinstance(tree.get(key, []), list):
            tree[key] = [*tree.get(key, []), *value]
        else:
            raise DataError(f"{where}.{key}: only lists can be added, and only to lists")
    return tree


def _fill(value: Any, placeholders: Mapping[str, str], at: tuple[str, ...], problems: list[str]) -> Any:
    """Return ``value`` with its placeholders filled in; what cannot be goes to ``problems``."""
    if isinstance(value, list):
        return [_fill(item, placeholders, (*at, str(index)), problems) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: _fill(item, placeholders, (*at, key), problems) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    try:
        return expand(value, placeholders, late=LATE if at[0] in _LATE_TABLES else ())
    except DataError as error:
        problems.append(f"{'.'.join(at)}: {error.message}")
        return value
