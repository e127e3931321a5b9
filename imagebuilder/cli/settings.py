"""What holds for every verb: where the cache is, and whether to show tracebacks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

NAME = "imagebuilder"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def default_cache(environment: Mapping[str, str], home: Path) -> Path:
    """Return the cache folder where none is given: our own variable, XDG's, then ``~/.cache``."""
    if own := environment.get("IMAGEBUILDER_CACHE_DIR"):
        return Path(own).absolute()
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared).absolute() / NAME
    return home / ".cache" / NAME


@dataclass(kw_only=True)
class Settings:
    """Global options; the group fills them in, and some verbs take them too. ``file`` is the user's, where named."""

    cache: Path = field(default_factory=lambda: default_cache(os.environ, Path.home()))
    debug: bool = False
    file: Path | None = None


def take_cache(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """Keep ``--cache-dir`` in the settings; the verb's wins over the group's."""
    if value is not None:
        context.ensure_object(Settings).cache = value.absolute()


def cache_option(function: _Function) -> _Function:
    """Add ``--cache-dir``; its value is in the settings."""
    return click.option(
        "--cache-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        expose_value=False,
        callback=take_cache,
        help="Where layers and downloads are kept.  [$IMAGEBUILDER_CACHE_DIR, else ~/.cache/imagebuilder]",
    )(function)
