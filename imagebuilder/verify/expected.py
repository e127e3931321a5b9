"""The stated lists of a family, from ``verification/``: what may be there, and why what looks wrong is none."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from pydantic import Field

from imagebuilder import resources
from imagebuilder.errors import DataError
from imagebuilder.strict import Strict, Strings, label, read_toml, validate
from imagebuilder.verify.model import Expected


class Lists(Strict):
    """The lists of one place; see :class:`imagebuilder.verify.model.Expected`."""

    setuid: Strings = Field(default=(), description="Files with the set-uid or set-gid bit.")
    world_writable: Strings = Field(default=(), description="Files and folders that anyone may write.")
    units: Strings = Field(default=(), description="Units of systemd that are enabled.")
    sockets: Strings = Field(default=(), description="proto/port that may listen on more than loopback.")
    journal: Strings = Field(default=(), description="Regular expressions of lines of priority err that are known.")
    secrets: dict[str, str] = Field(default={}, description="Paths that look like secrets, with the reason.")


class ExpectedFile(Lists):
    """A file of ``verification/``: its lists, and more of them for some targets, releases and engines.

    The key of an addition has one or more names, with ``*`` where wanted: ``[target."aws vagrant-*"]``.
    """

    target: dict[str, Lists] = Field(default={}, description="Additions by target.")
    release: dict[str, Lists] = Field(default={}, description="Additions by release.")
    engine: dict[str, Lists] = Field(default={}, description="Additions by what made the image.")


def load_expected(family: str, os: str, target: str, release: str, engine: str = "direct") -> Expected:
    """Return what is expected of an image.

    Args:
        family: its file is read first.
        os: its file is added, where there is one of another name than the family's.
        target: of the image; empty where nobody said, then no addition for a target is taken.
        release: of the OS.
        engine: that made the image.

    Raises:
        DataError: a file is missing or not of its schema.
    """
    folder = resources.folder("verification")
    names = [family, *([os] if os != family and (folder / f"{os}.toml").is_file() else [])]
    parts = [part for name in names for part in _parts(name, target, release, engine)]
    secrets = {path: reason for part in parts for path, reason in part.secrets.items()}
    empty = [path for path, reason in secrets.items() if not reason.strip()]
    if empty:
        raise DataError(f"{label(folder)}: secrets: no reason for {', '.join(empty)}")
    return Expected(
        setuid=tuple(one for part in parts for one in part.setuid),
        world_writable=tuple(one for part in parts for one in part.world_writable),
        units=tuple(one for part in parts for one in part.units),
        sockets=tuple(one for part in parts for one in part.sockets),
        journal=tuple(one for part in parts for one in part.journal),
        secrets=secrets,
    )


def _parts(name: str, target: str, release: str, engine: str) -> Iterator[Lists]:
    path = resources.folder("verification") / f"{name}.toml"
    whole = validate(read_toml(path), ExpectedFile, label(path))
    yield whole
    for value, table in ((target, whole.target), (release, whole.release), (engine, whole.engine)):
        for patterns, part in table.items():
            if value and any(fnmatchcase(value, pattern) for pattern in patterns.split()):
                yield part
