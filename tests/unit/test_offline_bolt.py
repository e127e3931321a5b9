"""containerd's metadata is read as bolt writes it, and damaged ones end in an error."""

from __future__ import annotations

import random
import struct
import time

import pytest

from imagebuilder.errors import ArtifactError
from imagebuilder.verify.offline.bolt import lookup
from tests.offline_image import bolt

MANY = {f"image-{number:04}".encode(): {b"target": {b"digest": b"sha256:%064d" % number}} for number in range(500)}
LARGE = bolt({b"v1": {b"images": MANY, b"note": b"x" * 9000}})


@pytest.mark.parametrize("number", [0, 249, 250, 499])
def test_a_value_below_a_branch_is_found(number: int) -> None:
    path = [b"v1", b"images", f"image-{number:04}".encode(), b"target", b"digest"]
    assert lookup(LARGE, path) == b"sha256:%064d" % number


def test_a_value_of_several_pages_is_whole() -> None:
    assert lookup(LARGE, [b"v1", b"note"]) == b"x" * 9000


@pytest.mark.parametrize(
    "path", [[b"v2"], [b"v1", b"images", b"image-9"], [b"v1", b"note", b"x"], [b"v1", b"images"], [b"v1", b"image"]]
)
def test_what_is_not_there_is_none(path: list[bytes]) -> None:
    assert lookup(LARGE, path) is None


def test_the_newer_meta_page_counts_and_a_damaged_one_does_not() -> None:
    old, new = bolt({b"a": b"1"}), bolt({b"a": b"2"})
    data = bytearray(new)
    data[:4096] = old[:4096]  # of an earlier transaction; both lead to the same page
    assert lookup(bytes(data), [b"a"]) == b"2"
    data[4096 + 40] ^= 1  # the root of the newer one
    assert lookup(bytes(data), [b"a"]) == b"2"
    data[40] ^= 1
    with pytest.raises(ArtifactError, match="neither meta page"):
        lookup(bytes(data), [b"a"])


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"SQLite format 3\0" * 999, LARGE[:60]])
def test_what_is_no_database_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        lookup(data, [b"a"])


def test_a_branch_that_leads_to_itself_is_refused() -> None:
    at = next(at for at in range(0, len(LARGE), 4096) if struct.unpack_from("<H", LARGE, at + 8) == (1,))
    data = bytearray(LARGE)
    struct.pack_into("<Q", data, at + 16 + 8, at // 4096)
    with pytest.raises(ArtifactError, match="used twice"):
        lookup(bytes(data), [b"v1", b"images", b"none"])


def test_damaged_databases_end_soon_and_well() -> None:
    chance, start = random.Random(7), time.monotonic()
    for _ in range(300):
        data = bytearray(LARGE)
        for _ in range(chance.randint(1, 30)):
            data[chance.randrange(8192, len(data))] = chance.randrange(256)
        try:
            value = lookup(
                bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]), [b"v1", b"images", b"x"]
            )
        except ArtifactError:
            continue
        assert value is None
    assert time.monotonic() - start < 60
