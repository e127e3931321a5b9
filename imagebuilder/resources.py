"""Finds the data folders, in a checkout and in an installed package alike."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from imagebuilder.errors import DataError

FOLDERS = ("os_profiles", "targets", "provision", "components", "packer", "verification")


@cache
def data_root() -> Path:
    """Return the folder that holds the data folders.

    Raises:
        DataError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for root in (package / "_data", package.parent):
        if all((root / folder).is_dir() for folder in FOLDERS):
            return root
    raise DataError(
        f"the data folders ({', '.join(FOLDERS)}) are missing beside {package}",
        hint="install imagebuilder again: pip install --force-reinstall imagebuilder",
    )


def agent() -> Path:
    """Return the program that the image gets to inject data packages; it stands alone."""
    return Path(__file__).resolve().parent / "agent" / "agent.py"


def folder(name: str) -> Path:
    """Return one data folder by name (see ``FOLDERS``)."""
    return data_root() / name
