"""The package file: the same bytes every time, read back as it was, and no damage goes unnoticed."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.datapackage.checks import check_signature
from imagebuilder.datapackage.format import MAX_UNPACKED, pack, unpack
from imagebuilder.datapackage.manifest import ALLOWED_FILES, ALLOWED_FOLDERS, Manifest, check_path, parse_manifest
from imagebuilder.errors import PackageError
from tests.vectors.make import FILES, canonical, entries, key, manifest, package, sign, tar, zipped

CODES = {"E_SIZE", "E_FORMAT", "E_PATH", "E_DIGEST", "E_KEY", "E_SIGNATURE"}
WHOLE = package()
ARCHIVE = gzip.decompress(WHOLE)
TRUSTED = key("signing").public_key()
NAMES = st.text("abcXYZ0189._@+:=-", min_size=1, max_size=100).filter(lambda name: name not in (".", ".."))
PATHS = st.one_of(
    st.sampled_from(ALLOWED_FILES),
    st.builds(lambda folder, parts: folder + "/".join(parts), st.sampled_from(ALLOWED_FOLDERS),
              st.lists(NAMES, min_size=1, max_size=3)),
).filter(lambda path: len(path) <= 200)  # fmt: skip
CONTENTS = st.dictionaries(PATHS, st.binary(max_size=2000), max_size=8)


def parsed(said: Mapping[str, Any]) -> Manifest:
    return parse_manifest(canonical(said))


def packed(files: Mapping[str, bytes]) -> bytes:
    said = manifest(files)
    return pack(parsed(said), files, sign(canonical(said)))


def test_bytes_are_those_of_the_standard_librarys_tar() -> None:
    ours = packed(FILES)
    assert gzip.decompress(ours) == tar(entries(manifest()))
    assert ours[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    with tarfile.open(fileobj=io.BytesIO(ours)) as archive:
        assert archive.getnames() == ["manifest.json", "manifest.sig", *(f"files{path}" for path in sorted(FILES))]


@given(files=CONTENTS)
def test_what_is_packed_is_read_back(files: dict[str, bytes]) -> None:
    try:
        data = packed(files)
    except PackageError as error:
        assert error.code == "E_PATH"  # a file as a folder, or a name that tar cannot split
        return
    found = unpack(data)
    assert dict(found.files) == files
    assert found.manifest_bytes == canonical(manifest(files)) == found.manifest.to_bytes()
    assert packed(files) == data


def accepted(data: bytes) -> bool:
    """Read damaged bytes: either they are refused with a code, or what they say is what was signed."""
    try:
        found = unpack(data)
        check_signature(found, TRUSTED)
    except PackageError as error:
        assert error.code in CODES
        return False
    assert (found.manifest_bytes, dict(found.files)) == (canonical(manifest()), FILES)
    return True


@settings(max_examples=1000)
@given(data=st.data())
def test_damage_of_the_packed_bytes_is_refused(data: st.DataObject) -> None:
    whole = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([None, len(whole) // 2, len(whole) - 1]))
    accepted(bytes(whole[:cut]))


@settings(max_examples=2000)
@given(data=st.data())
def test_damage_of_the_archive_is_refused(data: st.DataObject) -> None:
    """Other than that of the packed bytes, this gets past the checksum of gzip."""
    whole = bytearray(ARCHIVE)
    kind = data.draw(st.sampled_from(["bytes", "cut", "copy", "insert"]))
    at, end = (data.draw(st.integers(0, len(whole) - 1)) for _ in range(2))
    if kind == "bytes":
        whole[at] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del whole[min(at, end) : max(at, end)]
    elif kind == "copy":
        block = 512
        to, source = at // block * block, end // block * block
        whole[to : to + block] = whole[source : source + block]
    else:
        whole[at:at] = data.draw(st.binary(min_size=1, max_size=1024))
    assert bytes(whole) == ARCHIVE or not accepted(stored(bytes(whole)))


@given(data=st.binary(max_size=4096))
def test_noise_is_refused(data: bytes) -> None:
    for noise in (data, b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + data, zipped(data)):
        with pytest.raises(PackageError) as caught:
            unpack(noise)
        assert caught.value.code in CODES


def test_every_archive_byte_counts() -> None:
    """No byte of the archive can be another one: what is not content has one spelling."""
    assert accepted(stored(ARCHIVE))
    changed = (ARCHIVE[:at] + bytes([byte ^ 1]) + ARCHIVE[at + 1 :] for at, byte in enumerate(ARCHIVE))
    assert [at for at, data in enumerate(changed) if accepted(stored(data))] == []


def stored(data: bytes) -> bytes:
    """Pack without compressing, which takes most of the time."""
    return gzip.compress(data, compresslevel=0, mtime=0)


def test_a_bomb_costs_no_memory() -> None:
    bomb = gzip.compress(bytes(256 << 20), compresslevel=1, mtime=0)
    bomb = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + bomb[10 : 1 << 20]
    tracemalloc.start()
    try:
        with pytest.raises(PackageError, match=r"E_SIZE.*unpacked"):
            unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_UNPACKED
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("path", "good"),
    [
        pytest.param("/etc/kubernetes/pki/ca.crt", True, id="folder"),
        pytest.param("/etc/default/kubelet", True, id="file"),
        pytest.param("/etc/containerd/certs.d/registry.example:5000/hosts.toml", True, id="port"),
        pytest.param("/etc/containerd/config.toml", False, id="beside"),
        pytest.param("/var/lib/kubelet/config.yaml.d", False, id="longer"),
        pytest.param("/etc/kubernetes", False, id="the-folder-itself"),
        pytest.param("/etc/kubernetes/..", False, id="dots"),
        pytest.param("/etc/kubernetes/...", True, id="three-dots"),
        pytest.param("/etc/kubernetes/a b", False, id="space"),
        pytest.param("", False, id="empty"),
    ],
)
def test_allow_list(path: str, good: bool) -> None:
    if good:
        check_path(path)
        return
    with pytest.raises(PackageError) as caught:
        check_path(path)
    assert caught.value.code == "E_PATH"


def test_pack_makes_nothing_that_a_reader_refuses() -> None:
    said = manifest()
    with pytest.raises(PackageError, match="E_DIGEST"):
        pack(parsed(said), {**FILES, "/var/lib/kubelet/config.yaml": b"other"}, sign(canonical(said)))
    with pytest.raises(PackageError, match="E_FORMAT"):
        pack(parsed(said), {}, sign(canonical(said)))
    noise = b"".join(hashlib.sha256(bytes([at & 255, at >> 8])).digest() for at in range(40_000))
    with pytest.raises(PackageError, match="E_SIZE"):
        packed({"/etc/kubernetes/noise": noise})
