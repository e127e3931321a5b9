"""How verbs print results: tables for people, one JSON value per line for programs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])
KIB = 1024


def json_option(function: _Function) -> _Function:
    """Add ``--json``; the function gets it as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one value per line.")(function)


def print_json(value: Any) -> None:
    """Print one value on a line of its own."""
    click.echo(json.dumps(value, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]], headings: Sequence[str] = (), indent: str = "") -> str:
    """Return rows as aligned columns, the last one ragged; pipes get the same as terminals."""
    every = [list(headings), *map(list, rows)] if headings else [list(row) for row in rows]
    if not every:
        return ""
    widths = [functools.reduce(max, (len(row[at]) for row in every), 0) for at in range(len(every[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in every)
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)


def size(count: float) -> str:
    """Return a number of bytes for people: ``412.3 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < KIB:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= KIB
    return f"{count:.1f} GiB"
