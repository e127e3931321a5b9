"""Reads the data that a request needs, and plans it. The one place where planning meets the data folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from imagebuilder.compat import load_compat
from imagebuilder.model import BuildRequest, Cell
from imagebuilder.plan import BuildPlan, cells, plan
from imagebuilder.profile_data import Profile
from imagebuilder.profiles import load_profile, profile_names, releases
from imagebuilder.steps import load_steps
from imagebuilder.targets import load_target, target_names


def plan_request(request: BuildRequest) -> BuildPlan:
    """Return the plan of a request.

    Raises:
        UsageError: a name that does not exist; the nearest one is named.
        IncompatibleError: versions that cannot run together.
        DataError: a data file does not follow its schema.
    """
    target = load_target(request.target)
    profile = load_profile(request.os, release=request.release, arch=request.arch, target=request.target)
    return plan(request, profile=profile, target=target, compat=load_compat(), steps=load_steps())


def all_cells() -> list[tuple[Cell, Mapping[str, str]]]:
    """Return every cell with, per engine, why it cannot make it; an empty string when it can."""
    targets = [load_target(name) for name in target_names()]
    return [found for target in targets for found in cells(_profiles(target.name), [target])]


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
        for arch in load_profile(name, release=release, arch="amd64", target=target).architectures
    ]
