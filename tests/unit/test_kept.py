"""Kept clusters: the same image with them and without, and nothing that is damaged, or of more than one layer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from imagebuilder.direct.archives import write_tar_gz
from imagebuilder.direct.clusters import CLUSTER
from imagebuilder.direct.kept import FOLDER, Blobs, kept
from imagebuilder.direct.layers import Layer
from imagebuilder.direct.qcow2 import write_qcow2
from imagebuilder.direct.virtual import FileSlice, Piece, VirtualDisk
from imagebuilder.direct.vmdk import write_vmdk

BATCH = 64  # clusters
SIZE = 4 * BATCH * CLUSTER
TEXT = b"what a layer holds " * (SIZE // 19)


def layer(folder: Path, name: str) -> Layer:
    path = folder / "layers" / name
    (path / "root").mkdir(parents=True)
    (path / "root/file").write_bytes(Random(name).randbytes(CLUSTER) + TEXT)
    return Layer(id=name, path=path, info={})


def piece(offset: int, length: int, source: Layer | bytes, start: int = 0) -> Piece:
    if isinstance(source, Layer):
        return Piece(offset, length, FileSlice(os.fsencode(source.root / "file"), start))
    return Piece(offset, length, source)


def files(*layers: Layer) -> list[Path]:
    return sorted(path for item in layers for path in item.path.glob(f"{FOLDER}/*"))


def refuse(batch: range) -> Blobs:
    raise AssertionError(f"{batch} was made again")


Write = Callable[[VirtualDisk, Path, int], None]


def qcow2(disk: VirtualDisk, out: Path, threads: int) -> None:
    write_qcow2(disk, out, threads=threads)


def vmdk(disk: VirtualDisk, out: Path, threads: int) -> None:
    write_vmdk(disk, out, seed="seed", threads=threads)


def tar_gz(disk: VirtualDisk, out: Path, threads: int) -> None:
    write_tar_gz(disk, out, threads=threads)


def image(disk: VirtualDisk, out: Path, threads: int, write: Write = qcow2) -> bytes:
    write(disk, out, threads)
    return out.read_bytes()


@pytest.mark.parametrize("write", [qcow2, vmdk, tar_gz])
def test_an_image_is_the_same_with_kept_clusters_and_without(write: Write, tmp_path: Path) -> None:
    base, upper = layer(tmp_path, "base"), layer(tmp_path, "upper")
    middle = SIZE // 2 + 3 * CLUSTER + 4096
    pieces = [
        piece(0, 8192, b"x" * 8192), piece(8192, middle - 8192, base, 100), piece(middle, SIZE - middle - 5, upper),
    ]  # fmt: skip
    out = tmp_path / "image"
    plain = image(VirtualDisk(SIZE, pieces), out, 1, write)
    assert files(base, upper) == []
    assert image(VirtualDisk(SIZE, pieces, [base, upper]), out, 3, write) == plain
    there = files(base, upper)
    assert [path.parent.parent.name for path in there] == ["base", "upper"], "the others are of two layers, or of none"
    again = {path: path.stat().st_mtime_ns for path in there}
    assert image(VirtualDisk(SIZE, pieces, [base, upper]), out, 2, write) == plain
    assert {path: path.stat().st_mtime_ns for path in files(base, upper)} == again


def made(batch: range) -> Blobs:
    return [(index, b"%d " % index * 9) for index in batch if index % 3]


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    base = layer(tmp_path, "base")
    disk = VirtualDisk(SIZE, [piece(0, SIZE, base)], [base])
    batch = range(BATCH, 2 * BATCH)
    first = kept(disk, [base], "kind", CLUSTER).of(batch, made)
    assert kept(disk, [base], "kind", CLUSTER).of(batch, refuse) == first == made(batch)
    assert kept(disk, [base], "kind", CLUSTER).of(range(5, 5), lambda batch: []) == []


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:], id="a-bit"),
        pytest.param(lambda data: data + b"x", id="longer"),
        pytest.param(lambda data: sealed(b""), id="nothing-in-it"),
        pytest.param(lambda data: sealed(b"\x01\x00"), id="no-entries"),
        pytest.param(lambda data: sealed(b"\x01\x00\xff\xff\x00\x00\x00\x00"), id="outside-of-the-batch"),
        pytest.param(lambda data: sealed(b"\x01\x00\x00\x00\x09\x00\x00\x00x"), id="less-than-it-says"),
        pytest.param(lambda data: sealed(data[32:] + b"x"), id="more-than-it-says"),
    ],
)
def test_what_is_damaged_is_made_again(change: Change, tmp_path: Path) -> None:
    base = layer(tmp_path, "base")
    disk = VirtualDisk(SIZE, [piece(0, SIZE, base)], [base])
    batch = range(BATCH)
    kept(disk, [base], "kind", CLUSTER).of(batch, made)
    (path,) = files(base)
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    assert kept(disk, [base], "kind", CLUSTER).of(batch, made) == made(batch)
    assert path.read_bytes() == whole
    assert files(base) == [path]


def sealed(body: bytes) -> bytes:
    return hashlib.sha256(body).digest() + body


def test_what_is_kept_is_told_apart_by_all_that_its_bytes_follow_from(tmp_path: Path) -> None:
    base = layer(tmp_path, "base")
    half = BATCH * CLUSTER // 2
    ways = {
        "one": ([piece(0, SIZE, base)], "kind"),
        "another-kind": ([piece(0, SIZE, base)], "level 3"),
        "further-in-the-file": ([piece(0, SIZE, base, 1)], "kind"),
        "later": ([piece(1, SIZE - 1, base)], "kind"),
        "shorter": ([piece(0, half, base)], "kind"),
        "with-a-hole": ([piece(0, half, base), piece(half + 1, 5, base, half + 1)], "kind"),
    }
    for count, (pieces, kind) in enumerate(ways.values(), start=1):
        kept(VirtualDisk(SIZE, pieces, [base]), [base], kind, CLUSTER).of(range(BATCH), made)
        assert len(files(base)) == count
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "layers").rename(elsewhere)
    moved = Layer(id="base", path=elsewhere / "base", info={})
    disk = VirtualDisk(SIZE, [piece(0, SIZE, moved)], [moved])
    assert kept(disk, [moved], "kind", CLUSTER).of(range(BATCH), refuse) == made(range(BATCH))


def test_only_batches_of_one_layer_are_kept(tmp_path: Path) -> None:
    base, upper, stranger = (layer(tmp_path, name) for name in ("base", "upper", "stranger"))
    others: tuple[list[Piece], ...] = (
        [piece(0, 99, base), piece(99, 99, upper)], [piece(0, 99, base), piece(99, 9, b"in memory")],
        [piece(0, 99, stranger)], [],
    )  # fmt: skip
    for pieces in others:
        disk = VirtualDisk(SIZE, pieces, [base, upper])
        assert kept(disk, [base, upper], "kind", CLUSTER).of(range(BATCH), made) == made(range(BATCH))
    assert files(base, upper, stranger) == []


def test_where_nothing_can_be_kept_nothing_is(tmp_path: Path) -> None:
    base = layer(tmp_path, "base")
    (base.path / FOLDER).write_text("in the way, as a read-only file system is\n")
    disk = VirtualDisk(SIZE, [piece(0, SIZE, base)], [base])
    assert kept(disk, [base], "kind", CLUSTER).of(range(BATCH), made) == made(range(BATCH))
    (base.path / FOLDER).unlink()
    found = kept(disk, [base], "kind", CLUSTER)
    (base.path / FOLDER).rmdir()  # while the disk is written
    assert found.of(range(BATCH), made) == made(range(BATCH))
    assert files(base) == []


def test_nothing_is_kept_beside_a_layer_that_is_not_to_be_written_to(tmp_path: Path) -> None:
    shared = replace(layer(tmp_path, "shared"), writable=False)
    before = sorted(shared.path.rglob("*"))
    plain = image(VirtualDisk(SIZE, [piece(0, SIZE, shared)]), tmp_path / "image", 1)
    assert image(VirtualDisk(SIZE, [piece(0, SIZE, shared)], [shared]), tmp_path / "image", 2) == plain
    assert sorted(shared.path.rglob("*")) == before
