"""The disk formats an image can be written in: a table, one row per format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from imagebuilder import content
from imagebuilder.direct.qcow2 import write_qcow2
from imagebuilder.direct.sparse import OnProgress, copy_sparse


class Writer(Protocol):
    """How a format is written."""

    def __call__(self, raw: Path, out: Path, on_progress: OnProgress | None = None) -> None:
        """Write the raw disk to ``out``, which appears only when whole; ``raw`` stays.

        Args:
            raw: a sparse raw disk, a multiple of 512 bytes.
            out: the file to make or replace.
            on_progress: called with bytes done and bytes in all; holes do not count.

        Raises:
            ArtifactError: ``raw`` is no disk.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A disk format.

    Attributes:
        name: as in targets and on the command line; also what ``qemu-img`` calls it.
        extension: of file names, with its dot.
        writer: makes it from a raw disk.
    """

    name: str
    extension: str
    writer: Writer


def _write_raw(raw: Path, out: Path, on_progress: OnProgress | None = None) -> None:
    """Copy the disk, with a hole wherever it is zero."""
    with content.writing(out) as stream:
        stream.truncate(raw.stat().st_size)
        copy_sparse(raw, cast(BinaryIO, stream), 0, on_progress=on_progress)


def _write_qcow2(raw: Path, out: Path, on_progress: OnProgress | None = None) -> None:
    """Compress the disk at the fastest level: the next one takes half as much again for 4% less."""
    write_qcow2(raw, out, on_progress=on_progress)


_ROWS = (
    Format(name="raw", extension=".raw", writer=_write_raw),
    Format(name="qcow2", extension=".qcow2", writer=_write_qcow2),
)
FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
