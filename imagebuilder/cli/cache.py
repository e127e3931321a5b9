"""``imagebuilder cache``: what the cache holds, and how to get rid of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from imagebuilder.cli import sharing
from imagebuilder.cli.output import json_option, print_json, size, table
from imagebuilder.cli.settings import Settings, cache_option

if TYPE_CHECKING:
    from imagebuilder.cli.cachefolder import Contents, Removed

SHORT = 12  # digits of an id that are shown
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
WEEK = UNITS["w"]


def duration(value: str) -> float:
    """Return the seconds of ``90s``, ``30m``, ``12h``, ``7d`` or ``2w``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value.strip())
    if not found:
        raise click.BadParameter(f'"{value}" is not a duration: write it like 7d or 12h')
    return float(found[1]) * UNITS[found[2]]


def amount(value: str) -> int:
    """Return the bytes of ``10GB`` or ``4GiB``."""
    from imagebuilder.config import size_in_bytes

    try:
        return int(size_in_bytes(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.group("cache")
@cache_option
def command() -> None:
    """Show, empty or share the cache."""
    from imagebuilder.userns import enter_where_possible

    enter_where_possible()  # not all that is in an ordinary user's layers is his outside of his namespace


command.add_command(sharing.push)
command.add_command(sharing.pull)


@command.command("list")
@json_option
@cache_option
@click.pass_obj
def show(settings: Settings, as_json: bool) -> None:
    """List the layers, what each kind of thing takes, and all of it."""
    import dataclasses

    from imagebuilder.cli.cachefolder import CacheFolder
    from imagebuilder.process import RealRunner

    contents = CacheFolder(settings.cache, RealRunner()).contents()
    if as_json:
        layers = [dataclasses.asdict(layer) for layer in contents.layers]
        print_json({
            "folder": str(settings.cache), "size": contents.size, "kinds": contents.kinds, "layers": layers,
            "areas": dict(contents.areas),
        })  # fmt: skip
    else:
        click.echo(render(contents))
        click.echo(f"\n{size(contents.size)} in {settings.cache}")


def render(contents: Contents) -> str:
    """Return the table of layers and folders."""
    from imagebuilder.cli.cachefolder import age

    rows = [(f"layer {layer.name}", layer.id[:SHORT], size(layer.size), age(layer.used)) for layer in contents.layers]
    rows += [(f"all {name}", "", size(count), "") for name, count in contents.kinds.items() if count]
    return table(rows, ("what", "id", "size", "last used")) if rows else "the cache is empty"


@command.command("prune")
@click.option(
    "--older-than", "--unused-for", "unused_for", type=duration, default=None, metavar="TIME",
    help="Remove layers that no bake has used for this long: 12h, 7d, ...  [default: 7d, where nothing else is asked]",
)  # fmt: skip
@click.option(
    "--keep-bytes", type=amount, default=None, metavar="SIZE",
    help="Remove what was unused for longest, until the cache takes no more than this: 10GB, 4GiB, ...",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Remove everything that is not in use.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@cache_option
@click.pass_obj
def prune(
    settings: Settings, unused_for: float | None, keep_bytes: int | None, everything: bool, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Remove what has not been used for some time, what is too much, or all."""
    from imagebuilder.cli.cachefolder import CacheFolder
    from imagebuilder.errors import UsageError
    from imagebuilder.process import RealRunner

    if sum((unused_for is not None, keep_bytes is not None, everything)) > 1:
        raise UsageError("--older-than, --keep-bytes and --all do not go together", hint="one after the other")
    folder = CacheFolder(settings.cache, RealRunner())
    if everything:
        removed = folder.empty(dry_run=dry_run)
    elif keep_bytes is not None:
        removed = folder.shrink(keep_bytes, dry_run=dry_run)
    else:
        removed = folder.prune(WEEK if unused_for is None else unused_for, dry_run=dry_run)
    if as_json:
        print_json(as_data(removed, dry_run))
    else:
        click.echo(describe(removed, dry_run))


@command.command("verify")
@json_option
@cache_option
@click.pass_obj
def verify(settings: Settings, as_json: bool) -> None:
    """Read all of the cache, and remove what is damaged; the next bake makes it again."""
    import dataclasses

    from imagebuilder.cli.cachefolder import CacheFolder
    from imagebuilder.errors import CheckFailedError
    from imagebuilder.process import RealRunner

    found = CacheFolder(settings.cache, RealRunner()).verify()
    if as_json:
        print_json(dataclasses.asdict(found))
    elif not found.damaged and not found.kept:
        click.echo(f"{found.checked} layers, payloads and images were read: none is damaged")
    if found.unsealed and not as_json:
        click.echo(f"{found.unsealed} layers were made by an older version, and have nothing to be held to")
    if found.damaged or found.kept:
        lines = [*(f"removed: {line}" for line in found.damaged), *(f"in use, kept: {line}" for line in found.kept)]
        message = f"{len(lines)} of {found.checked} in the cache are damaged"
        raise CheckFailedError(message, context="\n".join(lines), hint="the next bake makes them again")


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
