"""The dates of an apt folder's indexes, and the rule that they do not go back.

An archive signs every index that it ever had: whoever serves an old one can keep a machine from updates, with a valid
signature. So an index that is older than the one that the cache has from the same address is not taken. The servers
behind one address do not all have the newest at the same time: within ``LAG`` what the cache has is used; an index
that is older than that is refused. Format: https://wiki.debian.org/DebianRepository/Format, "Date".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from imagebuilder.errors import UntrustedError

LAG = 48 * 3600  # seconds: Debian's archive is updated four times a day; a mirror is given a day or two
LISTS = "var/lib/apt/lists"


def release_dates(folder: Path) -> dict[str, str]:
    """Return the date of each index in an apt folder, as its Release file writes it, by the file's name."""
    dates = {}
    for path in sorted((folder / LISTS).glob("*Release")):
        if found := re.search(r"^Date: (.+)$", path.read_text("utf-8", "replace"), re.MULTILINE):
            dates[path.name] = found[1].strip()
    return dates


def newest_date(folder: Path) -> str:
    """Return the newest of the dates, or an empty string."""
    return max(release_dates(folder).values(), key=seconds_of, default="")


def seconds_of(date: str) -> int:
    """Return a date in seconds since 1970; 0 when it is none."""
    from email.utils import parsedate_to_datetime

    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (TypeError, ValueError):
        return 0


def goes_back(before: Mapping[str, str], after: Mapping[str, str], who: str) -> bool:
    """Tell whether one of the indexes is a little older than it was: what was there is to be used then.

    Args:
        before: the dates by file name, as :func:`release_dates` gives them.
        after: those that ``who`` gives now.
        who: the archive or its address.

    Raises:
        UntrustedError: one of them is older by more than ``LAG``.
    """
    steps = {name: seconds_of(before[name]) - seconds_of(after[name]) for name in before.keys() & after.keys()}
    for name, step in sorted(steps.items()):
        if step > LAG:
            raise UntrustedError(
                f"{who} gives an index that is older than the one that it gave before",
                context=f"before: {before[name]}\nnow:    {after[name]}",
                hint="name another mirror with --mirror; if the old index is wanted, another cache with --cache-dir",
            )
    return any(step > 0 for step in steps.values())
