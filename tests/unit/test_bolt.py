"""containerd's metadata is read as bolt writes it, and damaged ones end in an error."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.direct import imagestore
from imagebuilder.direct.bolt import Bucket, lookup, read, write
from imagebuilder.errors import ArtifactError
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


NAMES = st.binary(min_size=1, max_size=40)
BUCKETS = st.recursive(
    st.builds(
        Bucket,
        sequence=st.integers(0, 2**63),
        items=st.dictionaries(NAMES, st.binary(max_size=20) | st.just(b"x" * 6000)),
    ),
    lambda inner: st.builds(
        Bucket, sequence=st.integers(0, 9), items=st.dictionaries(NAMES, st.binary(max_size=9) | inner)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.dictionaries(NAMES, BUCKETS, max_size=4))
def test_what_is_written_is_read_back(items: dict[bytes, bytes | Bucket]) -> None:
    data = write(Bucket(items=items))
    assert read(data) == Bucket(items=items)
    assert len(data) % 4096 == 0
    assert write(read(data)) == data


def test_a_database_of_another_layout_is_written_as_any_other_with_the_same_content() -> None:
    found = read(LARGE)
    assert lookup(write(found), [b"v1", b"images", b"image-0250", b"target", b"digest"]) == b"sha256:%064d" % 250
    assert len(found.items[b"v1"].items[b"images"].items) == 500  # type: ignore[union-attr]
    assert write(read(write(found))) == write(found)


def test_a_page_says_how_many_more_it_takes() -> None:
    data = write(Bucket(items={b"large": b"x" * 9000}))
    number, flags, count, overflow = struct.unpack_from("<QHHI", data, 3 * 4096)
    assert (number, flags, count, overflow, len(data)) == (3, 2, 1, 2, 6 * 4096)


def test_a_bucket_that_is_in_itself_is_refused() -> None:
    inner = Bucket(items={b"deep": Bucket(items={b"x": b"y" * 2000}), b"more": b"z" * 2000})
    data = bytearray(write(Bucket(items={b"top": inner})))
    deep = data.index(b"deep") + len(b"deep")
    struct.pack_into("<Q", data, deep, data[deep] + 1)  # the page after it, which has this bucket
    with pytest.raises(ArtifactError, match="in itself"):
        read(bytes(data))


def test_damaged_databases_are_read_to_an_end() -> None:
    chance = random.Random(8)
    for _ in range(200):
        data = bytearray(LARGE)
        for _ in range(chance.randint(1, 30)):
            data[chance.randrange(8192, len(data))] = chance.randrange(256)
        try:
            found = read(bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]))
        except ArtifactError:
            continue
        assert isinstance(found, Bucket)


def store_of(folder: Path, nanoseconds: int) -> Path:
    """A store whose metadata is of some moment."""
    moment = struct.pack(">BqIh", 1, 63_900_000_000, nanoseconds, -1)
    image = {b"createdat": moment, b"updatedat": moment, b"labels": {b"createdat": b"a label"}}
    path = folder / imagestore.DATABASES[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(bolt({b"v1": {b"k8s.io": {b"images": {b"pause": image}}}}))
    path.chmod(0o600)
    return folder


def test_two_stores_with_the_same_images_become_the_same_bytes(tmp_path: Path) -> None:
    one, other = (store_of(tmp_path / str(number), number) for number in (1, 2))
    name = imagestore.DATABASES[0]
    assert (one / name).read_bytes() != (other / name).read_bytes()
    for store in (one, other, tmp_path / "nothing"):
        imagestore.settle(store)
    assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (one / name).stat().st_mode & 0o777 == 0o600
    path = [b"v1", b"k8s.io", b"images", b"pause"]
    assert lookup((one / name).read_bytes(), [*path, b"createdat"]) == imagestore.EPOCH
    assert lookup((one / name).read_bytes(), [*path, b"labels", b"createdat"]) == b"a label"
    assert not (tmp_path / "nothing").exists()


def test_a_store_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagestore, "LARGEST", 99)
    with pytest.raises(ArtifactError, match="more than 99 bytes"):
        imagestore.settle(store_of(tmp_path, 1))
