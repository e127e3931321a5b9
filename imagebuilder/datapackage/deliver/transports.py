"""The ways by which a package reaches a machine, per target, as data: ``transports.toml`` beside this module."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from imagebuilder.errors import UsageError
from imagebuilder.strict import Strict, nearest, read_toml, validate

FILE = Path(__file__).with_name("transports.toml")
Form = Literal["mime", "raw", "base64", "smbios", "cidata", "config-drive", "secret", "kernel-line", "mesos"]


class Way(Strict):
    """One way to hand over a package."""

    title: str = Field(description="What it is, for people.")
    form: Form = Field(description="What is written.")
    limit: int = Field(default=0, ge=0, description="Bytes that the platform takes; 0 where it does not matter.")
    measured: Literal["file", "base64"] = Field(
        default="file", description="What the limit counts: the file's bytes, or those of its base64."
    )
    command: str = Field(description="What puts it there, with the placeholders file, name and folder.")
    note: str = Field(default="", description="What else one must know, with the same placeholders.")

    def measure(self, size: int) -> int:
        """Return what the platform counts for a file of ``size`` bytes."""
        return size if self.measured == "file" else -(-size // 3) * 4


Ways = Annotated[tuple[Way, ...], Field(strict=False, min_length=1)]


class Transports(Strict):
    """The whole file."""

    target: Mapping[str, Ways] = Field(description="The ways of each target, the preferred one first.")


@cache
def _load() -> Transports:
    return validate(read_toml(FILE), Transports, FILE.name)


def targets() -> tuple[str, ...]:
    """Return the names of all targets that a package can be delivered to, sorted."""
    return tuple(sorted(_load().target))


def ways(target: str) -> tuple[Way, ...]:
    """Return the ways to a target, the preferred one first.

    Raises:
        UsageError: there is no such target.
        DataError: the file does not follow the schema.
    """
    known = _load().target
    if target not in known:
        near = nearest(target, known)
        meant = f' (did you mean "{near}"?)' if near else ""
        raise UsageError(f'no package goes to "{target}"{meant}', hint=f"--target {' | '.join(targets())}")
    return known[target]


def render_markdown() -> str:
    """Return the table of all ways for the documentation."""
    rows = [
        f"| {target} | {way.title} | {way.form} | {_limit(way)} | {_sentence(way.note)} |\n"
        for target in targets()
        for way in ways(target)
    ]
    return "| Target | Way | Form | Limit in bytes | |\n|---|---|---|---|---|\n" + "".join(rows)


def _limit(way: Way) -> str:
    return f"{way.limit:,}{' of base64' if way.measured == 'base64' else ''}" if way.limit else ""


def _sentence(note: str) -> str:
    return note.replace("{name}", "NAME").replace("{file}", "FILE")
