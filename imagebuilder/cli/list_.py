"""``imagebuilder list``: what can be built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from imagebuilder.cli.output import json_option, print_json, table

WHAT = ("os", "targets", "cells", "kubernetes")
Rows = list[dict[str, Any]]


@click.command("list")
@click.argument("what", type=click.Choice(WHAT), metavar="os|targets|cells|kubernetes")
@json_option
def command(what: str, as_json: bool) -> None:
    """List what can be built: os, targets, cells or kubernetes."""
    rows = LISTS[what]()
    if as_json:
        for row in rows:
            print_json(row)
    else:
        headings = [name.replace("_", " ") for name in rows[0]] if rows else []
        click.echo(table([[_text(value) for value in _short(row).values()] for row in rows], headings))


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return "; ".join(dict.fromkeys(value.values()))
    return str(value)


def _short(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row for people: why an engine cannot make a cell is of interest where none can."""
    return {**row, "why_not": {}} if row.get("why_not") and row["engines"] else row


def systems() -> Rows:
    """Return a row per release of each operating system, the default one marked."""
    from imagebuilder.profiles import load_profile, profile_names, releases
    from imagebuilder.targets import target_names

    rows: Rows = []
    for name in profile_names():
        for number, release in releases(name).items():
            profile = load_profile(name, release=number, arch="amd64", target=target_names()[0])
            default = number == profile.default_release
            docker = profile.components["docker"].sources[0]
            rows.append({
                "os": f"{name}-{number}", "title": profile.title, "family": profile.family, "suite": release.suite,
                "architectures": list(profile.architectures),
                "containerd": profile.containerd_version(docker), "docker_from": docker,
                "support_until": release.eol, "default": "yes" if default else "no",
            })  # fmt: skip
    return rows


def targets() -> Rows:
    """Return a row per target."""
    from imagebuilder.targets import load_target, target_names

    return [
        {
            "target": target.name, "format": target.format, "size": f"{target.size_gib} GiB",
            "architectures": list(target.architectures), "firmware": list(target.firmware),
            "engines": list(target.engines), "builder": target.builder, "source": target.source_kind,
            "summary": target.summary,
        }
        for target in map(load_target, target_names())
    ]  # fmt: skip


def cells() -> Rows:
    """Return a row per cell: the engines that can make it, and why others of its target's cannot."""
    from imagebuilder.cells import all_cells
    from imagebuilder.targets import load_target

    return [
        {
            "os": f"{cell.os}-{cell.release}", "arch": cell.arch, "target": cell.target,
            "engines": [name for name, reason in engines.items() if not reason],
            "why_not": {name: engines[name] for name in load_target(cell.target).engines if engines[name]},
        }
        for cell, engines in all_cells()
    ]  # fmt: skip


def kubernetes() -> Rows:
    """Return a row per known Kubernetes minor, the newest first."""
    from imagebuilder.compat import load_compat

    compat = load_compat()
    return [
        {
            "kubernetes": name, "newest_known": compat.kubernetes[name].patch,
            "containerd": str(compat.kubernetes[name].containerd), "pause_image": compat.kubernetes[name].pause,
        }
        for name in reversed(compat.minors())
    ]  # fmt: skip


LISTS: Mapping[str, Callable[[], Rows]] = {
    "os": systems, "targets": targets, "cells": cells, "kubernetes": kubernetes,
}  # fmt: skip
