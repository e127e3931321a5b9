"""What a platform counts of a payload on each way to a target: the bytes are really encoded, and then measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from imagebuilder.datapackage.deliver.encodings import FORMS, Payload
from imagebuilder.datapackage.deliver.transports import Way, targets, ways

NO_LINE = "the address of the file is not known: --pointer-url URL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A payload on one way.

    Attributes:
        size: bytes that the platform counts.
    """

    way: Way
    size: int

    @property
    def left(self) -> int | None:
        """Return the bytes that are left, below zero where it does not fit; None without a limit."""
        return self.way.limit - self.size if self.way.limit else None

    @property
    def fits(self) -> bool:
        """Return whether the platform takes it."""
        return self.left is None or self.left >= 0

    @property
    def why(self) -> str:
        """Return why it cannot be used, or an empty string."""
        return "" if self.fits else f"{self.size:,} bytes after encoding, and {self.way.limit:,} are allowed"


def fits(payload: Payload, only: Iterable[str] = ()) -> Mapping[str, tuple[Fit, ...]]:
    """Return what a payload is on the ways to every target, the preferred one first.

    Each form is made once, whatever the number of targets that take it. A kernel line is left out where the payload
    has no address.

    Args:
        payload: what is delivered.
        only: the targets to look at; all of them by default.

    Raises:
        UsageError: there is no such target.
    """
    chosen = {target: ways(target) for target in tuple(only) or targets()}
    forms = {_made(way) for found in chosen.values() for way in found} - (set() if payload.url else {"kernel-line"})
    sizes = {form: len(FORMS[form][1](payload)) for form in forms}
    return {
        target: tuple(Fit(way=way, size=way.measure(sizes[_made(way)])) for way in found if _made(way) in sizes)
        for target, found in chosen.items()
    }


def _made(way: Way) -> str:
    """Return the form to make: Mesos fetches the package as it is, and nobody counts what lies beside it."""
    return "raw" if way.form == "mesos" else way.form
