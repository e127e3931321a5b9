"""Names and versions of boxes, as Vagrant takes them.

Versions are RubyGems': Vagrant makes a ``Gem::Version`` of each, and sorts by it (lib/vagrant/box_metadata.rb).
Names are ``user/name``, which Vagrant's shorthand wants; what may stand in them is narrower here, as both become
folders and parts of addresses.
"""

from __future__ import annotations

import re
from typing import TypeAlias
from urllib.parse import urlsplit

from imagebuilder.errors import UsageError

Key: TypeAlias = tuple[tuple[int, int, str], ...]

MAX_LENGTH = 80  # letters of a name's part, or of a version: file names end at 255 bytes
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_TAKEN = (".json", ".html", ".box")  # a folder of such a name would stand where one of our files goes
# Gem::Version::VERSION_PATTERN of RubyGems.
_VERSION = re.compile(r"[0-9]+(?:\.[0-9a-zA-Z]+)*(?:-[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?")
_SEGMENT = re.compile(r"[0-9]+|[a-z]+", re.IGNORECASE)
ARCHITECTURES = ("arm64", "amd64")  # in a catalog's order: Vagrant 2.3 knows none, and takes the last entry
PROVIDER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def check_name(name: str) -> str:
    """Return a box's name.

    Raises:
        UsageError: Vagrant, or the catalog's folders, would not take it.
    """
    parts = name.split("/")
    good = len(parts) == len(("user", "name")) and all(_good_part(part) for part in parts)
    if not good:
        context = (
            "two parts of letters, digits, dots, dashes and underscores; each begins and ends with a letter or digit"
        )
        raise UsageError(f'"{name}" is no name for a box', context=context, hint="--name user/debian-13")
    return name


def _good_part(part: str) -> bool:
    return (
        len(part) <= MAX_LENGTH
        and _PART.fullmatch(part) is not None
        and ".." not in part
        and not part.lower().endswith(_TAKEN)
    )


def check_version(version: str) -> str:
    """Return a version.

    Raises:
        UsageError: it is none to RubyGems, and so none to Vagrant.
    """
    if len(version) > MAX_LENGTH or not version.isascii() or not _VERSION.fullmatch(version):
        context = "numbers first, then numbers or words, with dots between: 1.2.0, 20261124.0, 1.0.0-rc1"
        raise UsageError(f'"{version}" is no version to Vagrant', context=context, hint="--version 1.0.0")
    return version


def version_key(version: str) -> Key:
    """Return what sorts versions as RubyGems does; equal keys are the same version in other words."""
    segments = _SEGMENT.findall(version.replace("-", ".pre."))
    words = next((at for at, segment in enumerate(segments) if not segment.isdigit()), len(segments))
    kept = [*_without_zeros(segments[:words]), *_without_zeros(segments[words:])]
    # A word is older than a number, and what is missing counts as the number 0.
    key = [(1, int(segment), "") if segment.isdigit() else (0, 0, segment) for segment in kept]
    return (*key, (1, 0, ""))


def _without_zeros(segments: list[str]) -> list[str]:
    end = len(segments)
    while end and segments[end - 1].isdigit() and int(segments[end - 1]) == 0:
        end -= 1
    return segments[:end]


def check_url(url: str) -> str:
    """Return the address of a catalog, without a slash at its end.

    Raises:
        UsageError: it is none that Vagrant can fetch from. Relative addresses do not work: Vagrant takes a box's
            address as it stands in the catalog, and a relative one for a file of the user's machine (vagrant#10719).
    """
    try:
        parts = urlsplit(url)
        whole = bool(parts.hostname) if parts.scheme in ("http", "https") else parts.path.startswith("/")
        parts.port  # noqa: B018 - raises when it is none
    except ValueError:
        parts, whole = urlsplit(""), False
    good = (
        parts.scheme in ("http", "https", "file") and whole and url.isascii() and url.isprintable() and " " not in url
    )
    if not good or parts.query or parts.fragment:
        raise UsageError(f'"{url}" is no address of a catalog', hint="--url https://boxes.example.com/vagrant")
    if parts.username or parts.password:
        raise UsageError("the address holds a user or a password, which all would read", hint="leave it out of --url")
    return url.rstrip("/")
