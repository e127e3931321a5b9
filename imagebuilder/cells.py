"""Reads the data that a request needs, and plans it. The one place where planning meets the data folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache

from imagebuilder.compat import load_compat
from imagebuilder.model import BuildRequest, Cell
from imagebuilder.plan import BuildPlan, cells, choose_engine, plan, why_none
from imagebuilder.profile_data import Profile
from imagebuilder.profiles import architectures, load_profile, profile_names, releases
from imagebuilder.steps import load_steps
from imagebuilder.targets import load_target, target_names

# How much of a request a near cell should keep: what runs before where, and both before on which machine.
_WEIGHTS = {"os": 16, "target": 8, "arch": 4, "release": 2}


def plan_request(request: BuildRequest) -> BuildPlan:
    """Return the plan of a request.

    Raises:
        UsageError: a name that does not exist, or a cell that no engine can make; the nearest one is named.
        IncompatibleError: versions that cannot run together.
        DataError: a data file does not follow its schema.
    """
    target = load_target(request.target)
    profile = load_profile(request.os, release=request.release, arch=request.arch, target=request.target)
    if "" not in why_none(request.engine, profile, target).values():
        cell = Cell(os=profile.name, release=profile.release, arch=profile.arch, target=target.name)
        choose_engine(request.engine, profile, target, nearest=nearest_cell(cell, request.engine))
    return plan(request, profile=profile, target=target, compat=load_compat(), steps=load_steps())


@cache
def all_cells() -> tuple[tuple[Cell, Mapping[str, str]], ...]:
    """Return every cell with, per engine, why it cannot make it; an empty string when it can."""
    targets = [load_target(name) for name in target_names()]
    return tuple(found for target in targets for found in cells(_profiles(target.name), [target]))


def nearest_cell(cell: Cell, engine: str) -> Cell | None:
    """Return the cell that keeps most of this one and that an engine, ``auto`` for any, can make."""
    good = [
        found for found, reasons in all_cells() if not all(reasons.values() if engine == "auto" else [reasons[engine]])
    ]
    return max(good, key=lambda found: _likeness(found, cell), default=None)


def _likeness(one: Cell, other: Cell) -> int:
    default = load_profile(one.os, release="", arch=one.arch, target=one.target).release
    same = sum(weight for name, weight in _WEIGHTS.items() if getattr(one, name) == getattr(other, name))
    return same + (one.release == default)


def plan_cells(request: BuildRequest, *, engine: str) -> Iterator[BuildPlan]:
    """Yield the plan of every cell that an engine can make; what the request names narrows the choice.

    Raises:
        UsageError, IncompatibleError, DataError: as :func:`plan_request` does.
    """
    for cell, reasons in all_cells():
        wanted = (request.os, request.release, request.arch, request.target)
        names = (cell.os, cell.release, cell.arch, cell.target)
        if reasons[engine] or any(want not in ("", name) for want, name in zip(wanted, names, strict=True)):
            continue
        yield plan_request(
            replace(request, os=cell.os, release=cell.release, arch=cell.arch, target=cell.target, engine=engine)
        )


def split_os(text: str) -> tuple[str, str]:
    """Split ``--os``: ``debian-13`` into OS and release, ``debian`` into OS and an empty release."""
    name, _, release = text.partition("-")
    return name, release


def _profiles(target: str) -> list[Profile]:
    return [
        load_profile(name, release=release, arch=arch, target=target)
        for name in profile_names()
        for release in releases(name)
        for arch in architectures(name)
    ]
