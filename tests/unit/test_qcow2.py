"""What the qcow2 writer promises, seen by a second, much simpler reader."""

from __future__ import annotations

import os
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.direct import clusters as clusters_module
from imagebuilder.direct import qcow2
from imagebuilder.direct.formats import FORMATS
from imagebuilder.direct.qcow2 import CLUSTER, read_header
from imagebuilder.direct.virtual import RawFile
from imagebuilder.errors import ArtifactError

NOISE = Random(1).randbytes(CLUSTER)  # no compressor makes it smaller
TEXT = b"the quick brown fox jumps over the lazy dog. " * (CLUSTER // 45 + 1)
PIECES = {"hole": b"", "zeros": bytes(CLUSTER), "text": TEXT[:CLUSTER], "noise": NOISE, "byte": b"x"}

# Runs of clusters of one kind, so that all neighbourhoods occur; a byte is at an odd place of its cluster.
patterns = st.lists(st.tuples(st.sampled_from(sorted(PIECES)), st.integers(1, 70)), min_size=1, max_size=8)


def write_qcow2(raw: Path, out: Path, **options: Any) -> None:
    with RawFile(raw) as disk:
        qcow2.write_qcow2(disk, out, **options)


def make_disk(path: Path, pattern: list[tuple[str, int]], cut: int = 0) -> Path:
    """Write runs of clusters to a sparse file, ``cut`` sectors shorter than whole clusters."""
    position = 0
    with path.open("wb") as stream:
        for kind, count in pattern:
            for number in range(count):
                stream.seek(position + (number * 777 if kind == "byte" else 0))
                stream.write(PIECES[kind])
                position += CLUSTER
        stream.truncate(position - cut * 512)
    return path


@dataclass
class Image:
    """A qcow2 file as read by the specification's text, without any checks."""

    data: bytes
    size: int
    clusters: dict[int, bytes]
    offsets: dict[int, int]
    compressed: int
    plain: int
    refcounts: list[int]
    references: list[int]

    @property
    def content(self) -> bytes:
        """Whole clusters, so what follows a disk's odd end counts too."""
        count = -(-self.size // CLUSTER)
        return b"".join(self.clusters.get(index, bytes(CLUSTER)) for index in range(count))


def read_image(path: Path) -> Image:
    """Read everything, counting each reference to each cluster of the file."""
    data = path.read_bytes()
    size, l1_size, l1_offset = struct.unpack_from(">QxxxxIQ", data, 24)
    table_offset, table_clusters = struct.unpack_from(">QI", data, 48)
    references = [0] * (len(data) // CLUSTER)

    def refer(start: int, end: int) -> None:
        for cluster in range(start // CLUSTER, (end - 1) // CLUSTER + 1):
            references[cluster] += 1

    def entries(offset: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f">{count}Q", data, offset)

    refer(0, CLUSTER)
    refer(l1_offset, l1_offset + 8 * l1_size)
    refer(table_offset, table_offset + table_clusters * CLUSTER)
    image = Image(
        data=data, size=size, clusters={}, offsets={}, compressed=0, plain=0, refcounts=[], references=references
    )
    for table, l1_entry in enumerate(entries(l1_offset, l1_size)):
        l2_offset = l1_entry & 0x00FFFFFFFFFFFE00
        if not l2_offset:
            continue
        assert l1_entry >> 63, "referred to once, but not marked so"
        refer(l2_offset, l2_offset + CLUSTER)
        for index, entry in enumerate(entries(l2_offset, CLUSTER // 8), table * CLUSTER // 8):
            if entry & 1 << 62:
                start, further = entry & (1 << 54) - 1, entry >> 54 & 0xFF
                end = (start // 512 + further + 1) * 512
                refer(start, end)
                frame = zstandard.ZstdDecompressor().decompressobj()
                image.clusters[index] = frame.decompress(data[start:end])
                image.offsets[index] = start
                image.compressed += 1
            elif entry:
                assert entry >> 63, "referred to once, but not marked so"
                start = entry & 0x00FFFFFFFFFFFE00
                refer(start, start + CLUSTER)
                image.clusters[index] = data[start : start + CLUSTER]
                image.offsets[index] = start
                image.plain += 1
    for block in entries(table_offset, table_clusters * CLUSTER // 8):
        if block:
            refer(block, block + CLUSTER)
            image.refcounts += struct.unpack_from(f">{CLUSTER // 2}H", data, block)
    return image


def whole_clusters(raw: Path) -> bytes:
    content = raw.read_bytes()
    return content + bytes(-len(content) % CLUSTER)


def convert(folder: Path, pattern: list[tuple[str, int]], *, cut: int = 0, threads: int = 2) -> Image:
    raw = make_disk(folder / "disk.raw", pattern, cut)
    write_qcow2(raw, folder / "disk.qcow2", threads=threads)
    return read_image(folder / "disk.qcow2")


@settings(deadline=None, max_examples=40)
@given(pattern=patterns, cut=st.integers(0, 127))
def test_any_sparse_disk_reads_the_same_and_its_refcounts_are_right(pattern: list[tuple[str, int]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        image = convert(Path(name), pattern, cut=cut)
        assert image.content == whole_clusters(Path(name, "disk.raw"))
        assert len(image.data) % CLUSTER == 0
        assert image.refcounts[: len(image.references)] == image.references
        assert not any(image.refcounts[len(image.references) :])
        assert image.references.count(0) == 0, "a cluster of the file is used by nobody"


@settings(deadline=None, max_examples=15)
@given(pattern=patterns, threads=st.integers(1, 8))
def test_number_of_threads_does_not_change_a_byte(pattern: list[tuple[str, int]], threads: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        one = convert(Path(name), pattern, threads=1)
        many = convert(Path(name), pattern, threads=threads)
        assert one.data == many.data


def test_zeros_on_disk_and_holes_give_the_same_file(tmp_path: Path) -> None:
    zeros = convert(tmp_path, [("text", 3), ("zeros", 200), ("text", 1)])
    holes = convert(tmp_path, [("text", 3), ("hole", 200), ("text", 1)])
    assert zeros.data == holes.data
    assert zeros.compressed == 4


def test_end_within_a_cluster_reads_as_zeros_whatever_was_read_before(tmp_path: Path) -> None:
    image = convert(tmp_path, [("noise", 65)], cut=100, threads=1)
    assert image.clusters[64] == NOISE[: CLUSTER - 100 * 512] + bytes(100 * 512)


def test_extents_that_share_a_cluster_give_one_cluster(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    with raw.open("wb") as stream:
        for offset in (0, CLUSTER // 2):
            stream.seek(offset)
            stream.write(b"x" * 4096)
        stream.truncate(CLUSTER)
    totals: list[int] = []
    write_qcow2(raw, tmp_path / "disk.qcow2", on_progress=lambda done, total: totals.append(total))
    assert totals == [CLUSTER]
    assert read_image(tmp_path / "disk.qcow2").content == raw.read_bytes()


def test_clusters_lie_in_the_order_of_the_disk(tmp_path: Path) -> None:
    image = convert(tmp_path, [("text", 150), ("hole", 10), ("text", 5)])
    assert list(image.offsets.values()) == sorted(image.offsets.values())
    assert list(image.offsets) == sorted(image.offsets)


def test_empty_disk_has_no_data(tmp_path: Path) -> None:
    image = convert(tmp_path, [("hole", 100)])
    assert (image.compressed, image.plain) == (0, 0)
    assert len(image.data) == 4 * CLUSTER, "header, L1 table, refcount table, refcount block"


def test_only_clusters_that_do_not_shrink_are_stored_plain(tmp_path: Path) -> None:
    image = convert(tmp_path, [("noise", 5), ("text", 7), ("byte", 2)])
    assert (image.plain, image.compressed) == (5, 9)


def test_room_before_a_plain_cluster_is_used(tmp_path: Path) -> None:
    image = convert(tmp_path, [("text", 1), ("noise", 1)] * 50)
    # 50 plain clusters, all 50 compressed ones in the first gap, and 5 of tables; without gaps it is 100.
    assert len(image.data) == (50 + 1 + 5) * CLUSTER


def test_disk_larger_than_one_l2_table_is_whole(tmp_path: Path) -> None:
    image = convert(tmp_path, [("text", 1), ("hole", 3 * 8192), ("noise", 1)])
    assert image.clusters == {0: PIECES["text"], 1 + 3 * 8192: NOISE}
    assert struct.unpack_from(">I", image.data, 36) == (4,)
    # Two L2 tables only: those of the first and of the last cluster.
    assert len(image.data) == (2 + 1 + 1 + 2 + 2) * CLUSTER


def test_refcount_blocks_count_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if a block held 8 refcounts: 8 clusters of data and 5 of tables need a second and a third one.
    monkeypatch.setattr(qcow2, "_REFCOUNTS", 8)
    write_qcow2(make_disk(tmp_path / "disk.raw", [("noise", 11)]), tmp_path / "disk.qcow2")
    data = (tmp_path / "disk.qcow2").read_bytes()
    # Header, L1, 11 of data, L2, refcount table: 15; two blocks would be 17 of 16, three are 18 of 24.
    assert len(data) == 18 * CLUSTER
    table = struct.unpack_from(">Q", data, 48)[0]
    assert struct.unpack_from(">4Q", data, table) == (*(15 * CLUSTER + at * CLUSTER for at in range(3)), 0)


def test_header_is_what_qemu_reads(tmp_path: Path) -> None:
    data = convert(tmp_path, [("text", 4)]).data
    assert data[:8] == b"QFI\xfb\x00\x00\x00\x03"
    assert struct.unpack_from(">IQ", data, 20) == (16, 4 * CLUSTER)
    assert struct.unpack_from(">QQQII", data, 72) == (8, 0, 0, 4, 112)
    assert data[104:120] == b"\x01" + bytes(15), "zstd, padding, end of header extensions"


def test_higher_level_is_smaller_and_reads_the_same(tmp_path: Path) -> None:
    sources = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    raw = tmp_path / "disk.raw"
    raw.write_bytes(sources[: 50 * CLUSTER])
    sizes = []
    for level in (1, 19):
        write_qcow2(raw, tmp_path / "disk.qcow2", level=level)
        image = read_image(tmp_path / "disk.qcow2")
        assert image.content == whole_clusters(raw)
        sizes.append(len(image.data))
    assert sizes[1] < sizes[0]


def test_progress_counts_up_to_the_clusters_with_data(tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw", [("text", 150), ("hole", 5000), ("text", 1)])
    calls: list[tuple[int, int]] = []
    write_qcow2(raw, tmp_path / "out", on_progress=lambda done, total: calls.append((done, total)))
    total = calls[0][1]
    assert 151 * CLUSTER <= total < 400 * CLUSTER
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (total, total)
    assert len(calls) >= 3


def test_work_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_disk(tmp_path / "disk.raw", [("text", 64 * 40)])
    read = written = most = 0

    class Counting(clusters_module.Compressor):
        def __call__(self, batch: range) -> list[tuple[int, bytes]]:
            nonlocal read, most
            read += 1
            most = max(most, read - written)
            return super().__call__(batch)

    def progress(done: int, total: int) -> None:
        nonlocal written
        if not written:
            time.sleep(0.5)  # long enough for the threads to do all that they were given
        written += 1

    monkeypatch.setattr(clusters_module, "Compressor", Counting)
    write_qcow2(raw, tmp_path / "out", threads=2, on_progress=progress)
    assert read == written == 40
    assert 1 <= most <= 2 * 3 + 1


@pytest.mark.parametrize("size", [0, 1, 511, 65537])
def test_file_that_is_no_disk_is_refused_and_nothing_appears(tmp_path: Path, size: int) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(size))
    with pytest.raises(ArtifactError, match=f"of {size} bytes is no disk"):
        write_qcow2(raw, tmp_path / "out" / "disk.qcow2")
    assert not (tmp_path / "out").exists()


def test_disk_cut_short_meanwhile_is_refused_and_the_old_image_stays(tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw", [("text", 64 * 20)])
    out = tmp_path / "disk.qcow2"
    out.write_bytes(b"old")
    with pytest.raises(ArtifactError, match="cut short"):
        write_qcow2(raw, out, threads=1, on_progress=lambda *_: os.truncate(raw, 64 * CLUSTER))
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.qcow2", "disk.raw"]


@pytest.mark.parametrize(
    "clusters", [pytest.param(64 * 12, id="of an early round"), pytest.param(20, id="of the last round")]
)
def test_failed_flush_is_not_lost(clusters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_disk(tmp_path / "disk.raw", [("noise", clusters)])
    calls = 0

    def flush(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(clusters_module, "_FLUSH", 4 * CLUSTER)
    monkeypatch.setattr(os, "fdatasync", flush)
    with pytest.raises(OSError, match="No space left"):
        write_qcow2(raw, tmp_path / "disk.qcow2")
    assert not (tmp_path / "disk.qcow2").exists()


def test_header_that_was_written_is_read(tmp_path: Path) -> None:
    convert(tmp_path, [("text", 3)], cut=1)
    header = read_header(tmp_path / "disk.qcow2")
    assert (header.version, header.virtual_size) == (3, 3 * CLUSTER - 512)
    assert (header.cluster_size, header.compression) == (CLUSTER, "zstd")
    assert (header.l1_entries, header.l1_offset) == (1, CLUSTER)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_writes_without_touching_the_disk_and_reports_its_end(name: str, tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw", [("text", 70), ("hole", 30), ("noise", 1)])
    before = raw.read_bytes()
    calls: list[tuple[int, int]] = []
    out = tmp_path / "made" / f"image{FORMATS[name].extension}"
    with RawFile(raw) as disk:
        FORMATS[name].writer(disk, out, lambda done, total: calls.append((done, total)))
    assert raw.read_bytes() == before
    assert out.stat().st_ino != raw.stat().st_ino
    assert calls[-1][0] == calls[-1][1] > 70 * CLUSTER
    assert list(out.parent.iterdir()) == [out]


def test_raw_format_is_the_disk_with_holes(tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw", [("text", 2), ("zeros", 400), ("hole", 300)])
    with RawFile(raw) as disk:
        FORMATS["raw"].writer(disk, tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == raw.read_bytes()
    assert (tmp_path / "copy.raw").stat().st_blocks * 512 <= 4 * CLUSTER


def test_formats_are_found_by_their_names() -> None:
    assert {name: (row.name, row.extension) for name, row in FORMATS.items()} == {
        "raw": ("raw", ".raw"),
        "qcow2": ("qcow2", ".qcow2"),
        "vmdk": ("vmdk", ".vmdk"),
        "vhd": ("vhd", ".vhd"),
        "ova": ("ova", ".ova"),
        "tar.gz": ("tar.gz", ".tar.gz"),
    }
