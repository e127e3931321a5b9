"""How ``imagebuilder data`` shows what a package is for each target, after encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imagebuilder.cli.output import size, table

if TYPE_CHECKING:
    from imagebuilder.datapackage.deliver.fits import Fit

Fits = Mapping[str, Sequence["Fit"]]
HEADINGS = ("target", "form", "encoded", "limit", "left")


def fit_data(fit: Fit) -> dict[str, Any]:
    """Return a way and what is left of it as plain data; without a limit, ``limit`` and ``left`` are None."""
    return {
        "title": fit.way.title, "form": fit.way.form, "bytes": fit.size, "limit": fit.way.limit or None,
        "left": fit.left, "fits": fit.fits,
    }  # fmt: skip


def fits_data(found: Fits) -> dict[str, list[dict[str, Any]]]:
    """Return all ways of all targets as plain data."""
    return {target: [fit_data(fit) for fit in ways] for target, ways in found.items()}


def render_fits(found: Fits) -> str:
    """Return a line per target: what its preferred way takes, and which other one has room where that has none."""
    return table([_row(target, ways) for target, ways in found.items()], HEADINGS)


def other_way(ways: Sequence[Fit]) -> str:
    """Return the form of the first way that has room, or an empty string."""
    return next((fit.way.form for fit in ways if fit.fits), "")


def _row(target: str, ways: Sequence[Fit]) -> tuple[str, ...]:
    first, other = ways[0], other_way(ways)
    if first.left is None:
        left = ""
    elif first.fits:
        left = size(first.left)
    else:
        left = f"too large by {size(-first.left)}" + (f"; fits as {other}" if other else "")
    return target, first.way.form, size(first.size), size(first.way.limit) if first.way.limit else "none", left
