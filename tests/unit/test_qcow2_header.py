"""What reading a foreign qcow2 header promises: the specification's meaning, or an error."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.direct.qcow2 import CLUSTER, parse_header, read_header
from imagebuilder.errors import ArtifactError


@dataclass(frozen=True)
class Fields:
    """A right header of a 1 GiB disk, each field to be replaced by a wrong one."""

    magic: bytes = b"QFI\xfb"
    version: int = 3
    backing: int = 0
    bits: int = 16
    size: int = 1 << 30
    encryption: int = 0
    l1_size: int = 2
    l1_offset: int = CLUSTER
    refcount_offset: int = 2 * CLUSTER
    incompatible: int = 8
    order: int = 4
    length: int = 112
    compression: int = 1

    def pack(self) -> bytes:
        return struct.pack(
            ">4sIQIIQIIQQIIQQQQIIB7x", self.magic, self.version, self.backing, 0, self.bits, self.size,
            self.encryption, self.l1_size, self.l1_offset, self.refcount_offset, 1, 0, 0,
            self.incompatible, 0, 0, self.order, self.length, self.compression,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "compression"),
    [
        pytest.param(Fields(), "zstd", id="zstd"),
        pytest.param(Fields(incompatible=0, compression=0), "zlib", id="zlib, explicit"),
        pytest.param(Fields(incompatible=0, compression=7, length=104), "zlib", id="zlib, header ends before"),
        pytest.param(Fields(version=2, incompatible=1 << 40), "zlib", id="version 2 has no feature bits"),
    ],
)
def test_compression_is_read_as_the_specification_says(fields: Fields, compression: str) -> None:
    header = parse_header(fields.pack(), 1 << 20)
    assert (header.compression, header.virtual_size) == (compression, 1 << 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"magic": b"QFI\x00"}, "no qcow2", id="magic"),
        pytest.param({"version": 1}, "version 1", id="version 1"),
        pytest.param({"version": 4}, "version 4", id="version 4"),
        pytest.param({"backing": 512}, "backing file", id="backing file"),
        pytest.param({"encryption": 2}, "encrypted", id="encrypted"),
        pytest.param({"bits": 8}, "clusters of 2\\^8 ", id="clusters too small"),
        pytest.param({"bits": 0xFFFFFFFF}, "clusters of 2\\^4294967295 ", id="clusters absurd"),
        pytest.param({"size": 0}, "disk of 0 bytes", id="no size"),
        pytest.param({"size": (1 << 64) - 1}, "L1 entries", id="size absurd"),
        pytest.param({"l1_size": 1}, "1 L1 entries", id="L1 too short"),
        pytest.param({"l1_size": 0xFFFFFFFF}, "L1 entries", id="L1 absurd"),
        pytest.param({"l1_offset": 0}, "a table at 0", id="L1 in the header"),
        pytest.param({"l1_offset": CLUSTER + 8}, "a table", id="L1 unaligned"),
        pytest.param({"l1_offset": 1 << 20}, "cut short", id="L1 behind the end"),
        pytest.param({"refcount_offset": 1 << 20}, "cut short", id="refcounts behind the end"),
        pytest.param({"incompatible": 1 | 8}, "in use", id="dirty"),
        pytest.param({"incompatible": 2 | 8}, "corrupt", id="corrupt"),
        pytest.param({"incompatible": 4 | 8}, "not known", id="external data"),
        pytest.param({"incompatible": 1 << 63 | 8}, "not known", id="unknown feature"),
        pytest.param({"order": 7}, "damaged header", id="refcounts too wide"),
        pytest.param({"length": 96}, "damaged header", id="header too short"),
        pytest.param({"length": 109}, "damaged header", id="header length odd"),
        pytest.param({"length": 104}, "not announced", id="compression announced and absent"),
        pytest.param({"compression": 2}, "compression 2", id="unknown compression"),
        pytest.param({"incompatible": 0}, "not announced", id="compression not announced"),
    ],
)
def test_header_that_cannot_be_trusted_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        parse_header(replace(Fields(), **change).pack(), 1 << 20)  # type: ignore[arg-type]


@given(length=st.integers(0, 103))
def test_header_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ArtifactError):
        parse_header(Fields().pack()[:length], length)


@given(data=st.binary(max_size=120), seed=st.integers(0, 111), file_size=st.integers(0, 1 << 22))
def test_any_bytes_are_a_header_or_an_artifact_error(data: bytes, seed: int, file_size: int) -> None:
    mixed = Fields().pack()[:seed] + data
    try:
        header = parse_header(mixed, file_size)
    except ArtifactError:
        return
    assert header.l1_offset + 8 * header.l1_entries <= file_size
    assert header.virtual_size > 0


def test_empty_file_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ArtifactError, match="empty is no qcow2 image"):
        read_header(tmp_path / "empty")
