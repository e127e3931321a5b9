"""What a package's size is for each transport, after encoding, and what is left of the transport's limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagebuilder import resources
from imagebuilder.errors import UsageError
from imagebuilder.strict import Strict, Strings, did_you_mean, label, read_toml, validate

FILE_NAME = "transports.toml"


class Transport(Strict):
    """How a package reaches a machine."""

    title: str
    targets: Strings = Field(description="Targets whose machines it reaches.")
    encoding: Literal["raw", "base64"]
    overhead: int = Field(default=0, ge=0, description="Bytes within the limit that are not the package's.")
    limit: int = Field(ge=0, description="Bytes after encoding; 0 is none.")


class _Table(Strict):
    transports: Mapping[str, Transport]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A package's size on one transport.

    Attributes:
        name: of the transport.
        size: bytes after encoding.
        limit: bytes, or 0 for none.
    """

    name: str
    title: str
    size: int
    limit: int

    @property
    def left(self) -> int | None:
        """Return the bytes that are left, below zero where it does not fit; None without a limit."""
        return self.limit - self.size if self.limit else None

    @property
    def fits(self) -> bool:
        """Return whether the transport takes it."""
        return self.left is None or self.left >= 0


def load_transports() -> Mapping[str, Transport]:
    """Return all transports, by name.

    Raises:
        DataError: the file does not follow the schema.
    """
    return _load(resources.folder("components"))


@cache
def _load(folder: Path) -> Mapping[str, Transport]:
    path = folder / FILE_NAME
    return validate({"transports": read_toml(path)}, _Table, label(path)).transports


def fits(size: int) -> list[Fit]:
    """Return what a package of so many bytes is on each transport."""
    return [
        Fit(name=name, title=one.title, size=one.overhead + encoded(size, one.encoding), limit=one.limit)
        for name, one in load_transports().items()
    ]


def fit(size: int, transport: str) -> Fit:
    """Return what a package is on one transport.

    Raises:
        UsageError: there is no such transport.
    """
    known = load_transports()
    if transport not in known:
        hint = f"one of: {', '.join(known)}"
        raise UsageError(f'there is no transport "{transport}"{did_you_mean(transport, known)}', hint=hint)
    return next(one for one in fits(size) if one.name == transport)


def encoded(size: int, encoding: str) -> int:
    """Return the bytes that so many become; base64 without line feeds (RFC 4648, section 4)."""
    return -(-size // 3) * 4 if encoding == "base64" else size
