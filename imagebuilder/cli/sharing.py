"""The options that say with whom layers are shared, and the verbs that share: ``cache push`` and ``cache pull``."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagebuilder.cli.output import json_option, print_json
from imagebuilder.cli.settings import Settings, cache_option

if TYPE_CHECKING:
    from imagebuilder.direct.elsewhere import Sharing
    from imagebuilder.direct.remote.cache import RemoteCache
    from imagebuilder.events import Stage

OPTIONS = (
    click.option("--remote-cache", "remote", default=None, metavar="URL",
                 help="Where builders share layers: s3://BUCKET/PREFIX or oci://HOST:PORT/REPOSITORY; see [cache] in"
                 " imagebuilder.toml for keys."),
    click.option("--lower-cache", "lower", multiple=True, metavar="DIR", type=click.Path(path_type=Path),
                 help="Another cache folder, which may be read-only, to use the layers of; repeatable."),
    click.option("--push/--no-push", default=None, help="Give the remote cache the layers that it does not have."),
)  # fmt: skip


def sharing_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options; the function gets one ``sharing``, with what the user's file says too."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        remote, lower, push = (kwargs.pop(name) for name in ("remote", "lower", "push"))
        settings = click.get_current_context().ensure_object(Settings)
        return function(*args, sharing=make_sharing(settings, remote, lower, push), **kwargs)

    for option in reversed(OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def make_sharing(settings: Settings, remote: str | None, lower: tuple[Path, ...], push: bool | None) -> Sharing:
    """Return with whom layers are shared: the command line over the file, but folders are the file's and these.

    Raises:
        DataError: the file does not follow its schema.
    """
    from imagebuilder.cli.request import read_config
    from imagebuilder.direct.elsewhere import Sharing

    said = read_config(settings.file, Path.cwd()).cache
    return Sharing(
        lower=(*said.lower, *(path.absolute() for path in lower)),
        remote=said.remote if remote is None else remote,
        push=said.push if push is None else push,
        trust=() if isinstance(said.trust, str) else said.trust, anyone=isinstance(said.trust, str),
        sign=said.sign, seconds=said.seconds,
    )  # fmt: skip


def _verb_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add what both verbs have; they get a Sharing."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        settings = click.get_current_context().ensure_object(Settings)
        settings.file = kwargs.pop("file")
        return function(*args, sharing=make_sharing(settings, kwargs.pop("remote"), (), None), **kwargs)

    for option in (
        json_option,
        click.option("--file", type=click.Path(path_type=Path), metavar="FILE",
                     help="The file whose [cache] is meant.  [default: ./imagebuilder.toml, if any]"),
        click.option("--remote-cache", "remote", default=None, metavar="URL",
                     help="The remote cache.  [default: [cache] remote of the file]"),
    ):  # fmt: skip
        wrapper = option(wrapper)
    return wrapper


@click.command("push")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_verb_options
@cache_option
@click.pass_obj
def push(settings: Settings, sharing: Sharing, ids: tuple[str, ...], as_json: bool) -> None:
    """Give the remote cache layers that it does not have: those whose ids begin like this, or all."""
    from dataclasses import replace

    from imagebuilder.direct.layers import LayerStore
    from imagebuilder.errors import UsageError

    with LayerStore(settings.cache) as store, _asking(replace(sharing, push=True), as_json) as (remote, stage):
        chosen = [layer.id for layer in store if not ids or layer.id.startswith(ids)]
        if not chosen:
            raise UsageError("the cache has no such layer", hint="imagebuilder cache list")
        count = remote.push([layer for one in chosen if (layer := store.use(one, stage.note))], store, stage)
    if as_json:
        print_json({"pushed": count, "remote": remote.name})
    else:
        click.echo(f"{count} of {len(chosen)} layers were pushed to {remote.name}")


@click.command("pull")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@_verb_options
@cache_option
@click.pass_obj
def pull(settings: Settings, sharing: Sharing, ids: tuple[str, ...], as_json: bool) -> None:
    """Take layers from the remote cache into this one, by their whole ids."""
    from imagebuilder.direct.layers import LayerStore
    from imagebuilder.errors import UnresolvableError, UsageError

    if wrong := [one for one in ids if not re.fullmatch("[0-9a-f]{64}", one)]:
        raise UsageError(f'"{wrong[0][:80]}" is no id of a layer', hint="imagebuilder cache list --json")
    with LayerStore(settings.cache) as store, _asking(sharing, as_json) as (remote, stage):
        missing = [one for one in ids if not (store.use(one, stage.note) or remote.take(one, None, store, stage))]
    if missing:
        raise UnresolvableError(f"{remote.name} does not have all of these layers", context="\n".join(missing))
    if as_json:
        print_json({"pulled": list(ids), "remote": remote.name})
    else:
        click.echo(f"{len(ids)} layers are in {settings.cache}")


@contextlib.contextmanager
def _asking(sharing: Sharing, as_json: bool) -> Iterator[tuple[RemoteCache, Stage]]:
    """Hand out the remote cache; in a bake its faults are passed over, here they are errors.

    Raises:
        UsageError, DataError, HostError, ToolMissingError: as :func:`open_remote` has it.
        UnreachableError: it could not do all that it was asked for.
    """
    from imagebuilder.cli.monitors import choose_monitor
    from imagebuilder.direct.remote.cache import open_remote
    from imagebuilder.errors import UnreachableError, UsageError
    from imagebuilder.events import Progress

    if not sharing.remote:
        raise UsageError("no remote cache is named", hint="--remote-cache URL, or [cache] remote in imagebuilder.toml")
    remote = open_remote(sharing)
    with Progress(choose_monitor(as_json)).stage("remote", f"Layers of {remote.name}") as stage:
        yield remote, stage
        if remote.fault:
            raise UnreachableError(f"{remote.name}: {remote.fault}", hint="its time is [cache] seconds")
