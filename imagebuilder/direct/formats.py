"""The disk formats an image can be written in: a table, one row per format.

A writer is imported when it writes: a bake that finds its artifact unchanged does not wait for any.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from imagebuilder.direct.sparse import OnProgress
from imagebuilder.direct.virtual import DiskSource, materialize


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What some formats say about the image.

    Attributes:
        name: of the image, for the descriptions that have one.
        seed: what the format's own identifiers are derived from.
    """

    name: str = "image"
    seed: str = ""


NOBODY = Subject()
Told: TypeAlias = OnProgress | None


class Writer(Protocol):
    """How a format is written."""

    def __call__(
        self, disk: DiskSource, out: Path, on_progress: Told = None, *, subject: Subject = NOBODY, lasting: bool = True
    ) -> None:  # fmt: skip
        """Write the disk to ``out``, which appears only when whole.

        Args:
            disk: what to write, a multiple of 512 bytes.
            out: the file to make or replace.
            on_progress: called with bytes done and bytes in all; holes do not count.
            subject: what the image is.
            lasting: see :func:`content.writing`; not what goes into an archive, and is removed.

        Raises:
            ArtifactError: it is no disk, or what it is made from changed meanwhile.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A disk format.

    Attributes:
        name: as in targets and on the command line.
        extension: of file names, with its dot.
        writer: makes it from a disk.
        qemu: what ``qemu-img`` calls it, or an empty string where it is an archive.
    """

    name: str
    extension: str
    writer: Writer
    qemu: str = ""


def _write_raw(
    disk: DiskSource, out: Path, on_progress: Told = None, *, subject: Subject = NOBODY, lasting: bool = True
) -> None:  # fmt: skip
    """Copy the disk, with a hole wherever it is zero."""
    materialize(disk, out, on_progress, lasting=lasting)


def _write_qcow2(
    disk: DiskSource, out: Path, on_progress: Told = None, *, subject: Subject = NOBODY, lasting: bool = True
) -> None:  # fmt: skip
    """Compress the disk at the fastest level: the next one takes half as much again for 4% less."""
    from imagebuilder.direct.qcow2 import write_qcow2

    write_qcow2(disk, out, on_progress=on_progress, lasting=lasting)


def _write_vmdk(
    disk: DiskSource, out: Path, on_progress: Told = None, *, subject: Subject = NOBODY, lasting: bool = True
) -> None:  # fmt: skip
    from imagebuilder.direct.vmdk import write_vmdk

    write_vmdk(disk, out, seed=subject.seed, on_progress=on_progress, lasting=lasting)


def _write_vhd(
    disk: DiskSource, out: Path, on_progress: Told = None, *, subject: Subject = NOBODY, lasting: bool = True
) -> None:  # fmt: skip
    from imagebuilder.direct.vhd import write_vhd

    write_vhd(disk, out, seed=subject.seed, on_progress=on_progress, lasting=lasting)


def _write_ova(
    disk: DiskSource, out: Path, on_progress: Told = None, *, subject: Subject = NOBODY, lasting: bool = True
) -> None:  # fmt: skip
    from imagebuilder.direct.archives import write_ova

    write_ova(disk, out, name=subject.name, seed=subject.seed, on_progress=on_progress, lasting=lasting)


def _write_tar_gz(
    disk: DiskSource, out: Path, on_progress: Told = None, *, subject: Subject = NOBODY, lasting: bool = True
) -> None:  # fmt: skip
    from imagebuilder.direct.archives import write_tar_gz

    write_tar_gz(disk, out, on_progress=on_progress, lasting=lasting)


_ROWS = (
    Format(name="raw", extension=".raw", writer=_write_raw, qemu="raw"),
    Format(name="qcow2", extension=".qcow2", writer=_write_qcow2, qemu="qcow2"),
    Format(name="vmdk", extension=".vmdk", writer=_write_vmdk, qemu="vmdk"),
    Format(name="vhd", extension=".vhd", writer=_write_vhd, qemu="vpc"),
    Format(name="ova", extension=".ova", writer=_write_ova),
    Format(name="tar.gz", extension=".tar.gz", writer=_write_tar_gz),
)
FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
