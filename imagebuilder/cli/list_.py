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
        click.echo(table([[_text(value) for value in row.values()] for row in rows], headings))


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return "; ".join(text or name for name, text in value.items())
    return str(value)


def systems() -> Rows:
    """Return a row per release of each operating system, the default one marked."""
    from imagebuilder.profiles import load_profile, profile_names, releases
    from imagebuilder.targets import target_names

    rows: Rows = []
    for name in profile_names():
        for number, release in releases(name).items():
            profile = load_profile(name, release=number, arch="amd64", target=target_names()[0])
            default = number == profile.default_release
            rows.append({
                "os": f"{name}-{number}", "title": profile.title, "suite": release.suite,
                "architectures": list(profile.architectures), "containerd": release.containerd,
                "support_until": release.eol, "default": "yes" if default else "no",
            })  # fmt: skip
    return rows


def targets() -> Rows:
    """Return a row per target."""
    from imagebuilder.targets import load_target, target_names

    return [
        {
            "target": target.name, "format": target.format, "size": f"{target.size_gib} GiB",
            "firmware": list(target.firmware), "summary": target.summary,
        }
        for target in map(load_target, target_names())
    ]  # fmt: skip


def cells() -> Rows:
    """Return a row per cell: the engines that can make it, or why none can."""
    from imagebuilder.cells import all_cells

    return [
        {
            "os": f"{cell.os}-{cell.release}", "arch": cell.arch, "target": cell.target,
            "engines": [name for name, reason in engines.items() if not reason],
            "why_not": {name: reason for name, reason in engines.items() if reason},
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
