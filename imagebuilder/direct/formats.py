"""The disk formats an image can be written in: a table, one row per format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imagebuilder.direct.qcow2 import write_qcow2
from imagebuilder.direct.sparse import OnProgress
from imagebuilder.direct.virtual import DiskSource, materialize


class Writer(Protocol):
    """How a format is written."""

    def __call__(self, disk: DiskSource, out: Path, on_progress: OnProgress | None = None) -> None:
        """Write the disk to ``out``, which appears only when whole.

        Args:
            disk: what to write, a multiple of 512 bytes.
            out: the file to make or replace.
            on_progress: called with bytes done and bytes in all; holes do not count.

        Raises:
            ArtifactError: it is no disk, or what it is made from changed meanwhile.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A disk format.

    Attributes:
        name: as in targets and on the command line; also what ``qemu-img`` calls it.
        extension: of file names, with its dot.
        writer: makes it from a disk.
    """

    name: str
    extension: str
    writer: Writer


def _write_qcow2(disk: DiskSource, out: Path, on_progress: OnProgress | None = None) -> None:
    """Compress the disk at the fastest level: the next one takes half as much again for 4% less."""
    write_qcow2(disk, out, on_progress=on_progress)


_ROWS = (
    Format(name="raw", extension=".raw", writer=materialize),
    Format(name="qcow2", extension=".qcow2", writer=_write_qcow2),
)
FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
