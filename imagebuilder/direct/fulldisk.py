"""A full disk, said as what it is, whichever program met it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from imagebuilder.errors import CommandError, HostError, StepError

# How programs say it, and how apt does.
NO_SPACE = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "You don't have enough free space")


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn the failure of a program, or of ours, that found no space below ``folder`` into an error that says so.

    Raises:
        HostError: the disk is full.
    """
    try:
        yield
    except (CommandError, StepError, OSError) as error:
        said = str(error) if isinstance(error, OSError) else error.context
        if not any(words in said for words in NO_SPACE):
            raise
        raise HostError(f"no space is left below {folder}", context=said, hint=f"df -h {folder}") from error
