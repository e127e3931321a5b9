"""``imagebuilder cache``: what the cache holds, and how to get rid of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from imagebuilder.cli.output import json_option, print_json, size, table
from imagebuilder.cli.settings import Settings, cache_option

if TYPE_CHECKING:
    from imagebuilder.cli.cachefolder import Contents, Removed

SHORT = 12  # digits of an id that are shown
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def duration(value: str) -> float:
    """Return the seconds of ``90s``, ``30m``, ``12h``, ``7d`` or ``2w``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value.strip())
    if not found:
        raise click.BadParameter(f'"{value}" is not a duration: write it like 7d or 12h')
    return float(found[1]) * UNITS[found[2]]


@click.group("cache")
@cache_option
def command() -> None:
    """Show or empty the cache."""


@command.command("list")
@json_option
@cache_option
@click.pass_obj
def show(settings: Settings, as_json: bool) -> None:
    """List the layers, and what everything else takes."""
    import dataclasses

    from imagebuilder.cli.cachefolder import CacheFolder
    from imagebuilder.process import RealRunner

    contents = CacheFolder(settings.cache, RealRunner()).contents()
    if as_json:
        layers = [dataclasses.asdict(layer) for layer in contents.layers]
        print_json({
            "folder": str(settings.cache), "size": contents.size, "layers": layers, "areas": dict(contents.areas),
        })  # fmt: skip
    else:
        click.echo(render(contents))
        click.echo(f"\n{size(contents.size)} in {settings.cache}")


def render(contents: Contents) -> str:
    """Return the table of layers and folders."""
    from imagebuilder.cli.cachefolder import age

    rows = [(f"layer {layer.name}", layer.id[:SHORT], size(layer.size), age(layer.used)) for layer in contents.layers]
    rows += [(name, "", size(count), "") for name, count in contents.areas]
    return table(rows, ("what", "id", "size", "last used")) if rows else "the cache is empty"


@command.command("prune")
@click.option(
    "--unused-for", type=duration, default="7d", show_default=True, metavar="TIME",
    help="Remove layers that no bake has used for this long: 12h, 7d, ...",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Remove everything that is not in use.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@cache_option
@click.pass_obj
def prune(settings: Settings, unused_for: float, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Remove what has not been used for some time, or all."""
    from imagebuilder.cli.cachefolder import CacheFolder
    from imagebuilder.process import RealRunner

    folder = CacheFolder(settings.cache, RealRunner())
    removed = folder.empty(dry_run=dry_run) if everything else folder.prune(unused_for, dry_run=dry_run)
    if as_json:
        print_json(as_data(removed, dry_run))
    else:
        click.echo(describe(removed, dry_run))


def as_data(removed: Removed, dry_run: bool) -> dict[str, object]:
    """Return what was removed as plain data."""
    return {
        "dry_run": dry_run,
        "size": removed.size,
        "layers": [{"id": layer.id, "name": layer.name, "size": layer.size} for layer in removed.layers],
        "areas": dict(removed.areas),
        "kept": list(removed.kept),
    }


def describe(removed: Removed, dry_run: bool) -> str:
    """Return what was removed, for people."""
    rows = [(f"layer {layer.name}", layer.id[:SHORT], size(layer.size)) for layer in removed.layers]
    rows += [(name, "", size(count)) for name, count in removed.areas]
    rows += [("kept, in use", name[:SHORT], "") for name in removed.kept]
    last = f"{size(removed.size)} {'would be' if dry_run else ''} removed".replace("  ", " ")
    return "\n".join(filter(None, [table(rows), last]))
