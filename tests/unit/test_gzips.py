"""Gzip streams of pieces that were compressed by themselves: any reader sees one stream with a right checksum."""

from __future__ import annotations

import gzip
import io
import zlib

from hypothesis import given
from hypothesis import strategies as st

from imagebuilder import gzips

data = st.one_of(st.binary(max_size=300), st.text("ab", max_size=2000).map(str.encode))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_of_two_pieces_give_that_of_both(first: bytes, second: bytes) -> None:
    joined = gzips.joined_crc(zlib.crc32(first), zlib.crc32(second), len(second))
    assert joined == zlib.crc32(first + second)


@given(st.lists(st.tuples(st.booleans(), data), max_size=12), st.integers(0, 9))
def test_what_is_written_and_what_is_spliced_in_come_out_in_their_order(
    parts: list[tuple[bool, bytes]], level: int
) -> None:
    stream = io.BytesIO()
    with gzips.Writer(stream, level) as packed:
        for spliced, part in parts:
            packed.splice(gzips.piece(part, level), len(part)) if spliced else packed.write(part)
    assert gzip.decompress(stream.getvalue()) == b"".join(part for _, part in parts)
