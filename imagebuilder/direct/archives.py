"""Disks in archives: OVA for hypervisors, and the sparse tar that Google's cloud takes.

References: DMTF DSP0243 1.1, section 5.3 (an OVA is a USTAR archive: description, then checksums, then disks);
GNU tar's manual, "Storing Sparse Files", "Old GNU Format".
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from imagebuilder import content, gzips
from imagebuilder.direct import ovf
from imagebuilder.direct.clusters import CLUSTER, Compressor, batches, disk_size, in_order, pour
from imagebuilder.direct.sparse import OnProgress
from imagebuilder.direct.virtual import DiskSource
from imagebuilder.direct.vmdk import image_uuid, write_vmdk

BLOCK = 512  # bytes: a tar's unit
RECORD = 20 * BLOCK  # tar files are padded to this
GCE_DISK = "disk.raw"  # the one name that the cloud takes
_IN_HEADER, _IN_EXTENSION = 4, 21  # pieces that a sparse header, and each block after it, have room for


def write_ova(
    disk: DiskSource, out: Path, *, name: str, seed: str, on_progress: OnProgress | None = None, lasting: bool = True
) -> None:  # fmt: skip
    """Write an OVA: the description ``<name>.ovf``, ``<name>.mf`` with sha256 sums, and the disk as a VMDK.

    Raises:
        ArtifactError: it is no disk.
    """
    with content.aside(out) as scratch:
        vmdk = scratch / f"{name}-disk001.vmdk"
        write_vmdk(disk, vmdk, seed=seed, on_progress=on_progress, lasting=False)
        machine = ovf.Machine(
            name=name, disk=vmdk.name, disk_uuid=str(image_uuid(seed)), file_size=vmdk.stat().st_size,
            capacity=disk.size,
        )  # fmt: skip
        text = ovf.render(machine, ovf.VMWARE).encode()
        sums = ((f"{name}.ovf", content.sha256_bytes(text)), (vmdk.name, content.sha256_file(vmdk)))
        manifest = "".join(f"SHA256({file})= {digest}\n" for file, digest in sums).encode()
        with (
            content.writing(out, lasting=lasting) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for member, data in ((f"{name}.ovf", text), (f"{name}.mf", manifest)):
                tar.addfile(_member(member, len(data)), io.BytesIO(data))
            with vmdk.open("rb") as file:
                tar.addfile(_member(vmdk.name, vmdk.stat().st_size), file)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)  # mtime, uid and gid 0, no names
    member.size, member.mode = size, 0o644
    return member


def write_tar_gz(
    disk: DiskSource, out: Path, *, level: int = 1, threads: int | None = None, on_progress: OnProgress | None = None,
    lasting: bool = True,
) -> None:  # fmt: skip
    """Write a gzip-compressed tar with the one sparse member ``disk.raw``; the same disk gives the same bytes.

    Args:
        disk: what to write, a multiple of 512 bytes.
        out: the archive to make or replace.
        level: of zlib, 1 to 9.
        threads: that read and compress; by default one for each core. The result does not depend on it.
        on_progress: called from this thread with bytes done and bytes in all; holes do not count.
        lasting: see :func:`content.writing`.

    Raises:
        ArtifactError: it is no disk, or was cut short meanwhile.
    """
    size = disk_size(disk)
    pieces = list(_data(disk, threads))
    with content.writing(out, lasting=lasting) as stream, gzips.Writer(stream, level) as packed:
        header = sparse_header(pieces, size)
        packed.write(header)
        pour(
            disk, _Member(disk, packed, stream), stream, lambda: lambda cluster: gzips.piece(cluster, level),
            threads=threads, on_progress=on_progress, kind=f"deflate {level} {zlib.ZLIB_RUNTIME_VERSION}",
            lasting=lasting,
        )  # fmt: skip
        end = len(header) + sum(length for _, length in pieces) + 2 * BLOCK
        packed.write(bytes(2 * BLOCK + -end % RECORD))


class _Member:
    """The data of the sparse member, one cluster after the other."""

    def __init__(self, disk: DiskSource, packed: gzips.Writer, stream: IO[bytes]) -> None:
        self._disk, self._packed, self._stream = disk, packed, stream

    @property
    def end(self) -> int:
        """Return the bytes written so far."""
        return self._stream.tell()

    def add(self, index: int, blob: bytes) -> None:
        """Store the disk's cluster ``index``, compressed as a piece of a gzip stream."""
        start = index * CLUSTER
        if start + CLUSTER <= self._disk.size:
            self._packed.splice(blob, CLUSTER)
            return
        rest = bytearray(self._disk.size - start)  # the disk ends within the cluster, and the member with it
        self._disk.read_into(start, memoryview(rest))
        self._packed.write(memoryview(rest))


def _data(disk: DiskSource, threads: int | None) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what is not zero, in whole clusters: the holes of this file system do not matter."""
    looking = Compressor(disk, lambda: lambda cluster: b"")
    run: tuple[int, int] | None = None
    for _, found in in_order(looking, batches(disk), threads):
        for index, _ in found:
            offset = index * CLUSTER
            length = min(CLUSTER, disk.size - offset)
            if run and sum(run) == offset:
                run = run[0], run[1] + length
                continue
            if run:
                yield run
            run = offset, length
    if run:
        yield run


def sparse_header(pieces: list[tuple[int, int]], size: int) -> bytes:
    """Return the header of the sparse member, with the blocks that list the pieces which do not fit in it."""
    # GNU tar ends the list with an empty piece at the end of the file where the file ends with a hole.
    listed = [*pieces, (size, 0)] if not pieces or sum(pieces[-1]) < size else list(pieces)
    rest = listed[_IN_HEADER:]
    header = bytearray(BLOCK)
    header[: len(GCE_DISK)] = GCE_DISK.encode()
    header[100:108], header[108:116], header[116:124] = b"0000644\0", _number(0, 8), _number(0, 8)
    header[124:136], header[136:148] = _number(sum(length for _, length in pieces), 12), _number(0, 12)
    header[156:157], header[257:265] = b"S", b"ustar  \0"
    header[386 : 386 + 24 * _IN_HEADER] = _pieces(listed[:_IN_HEADER], _IN_HEADER)
    header[482], header[483:495] = bool(rest), _number(size, 12)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    blocks = [bytes(header)]
    while rest:
        now, rest = rest[:_IN_EXTENSION], rest[_IN_EXTENSION:]
        blocks.append(_pieces(now, _IN_EXTENSION) + bytes([bool(rest)]) + bytes(7))
    return b"".join(blocks)


def _pieces(pieces: list[tuple[int, int]], room: int) -> bytes:
    return b"".join(_number(offset, 12) + _number(length, 12) for offset, length in pieces).ljust(24 * room, b"\0")


def _number(value: int, width: int) -> bytes:
    """Return a number of a tar header: octal, or base 256 where that is too short (GNU tar, "Extensions")."""
    digits = f"{value:0{width - 1}o}"
    return f"{digits}\0".encode() if len(digits) < width else b"\x80" + value.to_bytes(width - 1, "big")
