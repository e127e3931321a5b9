"""A layer's archive: what goes in comes out, in the same bytes each time, and a hostile one writes nothing outside."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.content import at_most
from imagebuilder.direct.remote import members
from imagebuilder.direct.remote.archive import END, read_archive, write_archive
from imagebuilder.direct.remote.members import Member, decode, encode, extended_size
from imagebuilder.direct.seals import seal_of, walk
from imagebuilder.errors import ArtifactError

NAMES = st.binary(min_size=1, max_size=30).map(lambda name: name.translate(None, b"/\0")).filter(
    lambda name: name not in (b"", b".", b"..")
)  # fmt: skip
TIMES = st.integers(0, (1 << 33) * 10**9 - 1)
MODES = st.integers(0, 0o7777)
ROOT = os.geteuid() == 0
AS_ROOT = pytest.mark.skipif(not ROOT, reason="makes owners and devices")


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    return empty(tmp_path / "layer")


def empty(folder: Path) -> Path:
    for name in ("root", "volumes"):
        (folder / name).mkdir(parents=True)
    return folder


def packed(layer: Path) -> tuple[bytes, int]:
    out = io.BytesIO()
    unpacked = write_archive(layer, out)
    return out.getvalue(), unpacked


def through(layer: Path, folder: Path) -> Path:
    data, unpacked = packed(layer)
    read_archive(io.BytesIO(data), empty(folder), unpacked=unpacked)
    return folder


def attributes(layer: Path) -> dict[bytes, dict[str, bytes]]:
    found = {}
    for name, _ in walk(layer):
        path = os.fsencode(layer) + b"/" + name
        if keys := os.listxattr(path, follow_symlinks=False):
            found[name] = {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
    return found


def inodes(layer: Path) -> list[int]:
    """For each name the place of the first name of the same file."""
    first: dict[int, int] = {}
    return [first.setdefault(status.st_ino, place) for place, (_, status) in enumerate(walk(layer))]


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Folders first, so that what follows finds its place."""
    folders = [b"root", b"volumes"]
    things: list[tuple[Any, ...]] = [("folder", name, draw(MODES), draw(TIMES)) for name in folders]
    taken = set(folders)
    files: list[bytes] = []
    for name in draw(st.lists(NAMES, max_size=12)):
        path = draw(st.sampled_from(folders)) + b"/" + name
        if path in taken:
            continue
        taken.add(path)
        kind = draw(st.sampled_from(("folder", "file", "symlink", "link", "pipe")))
        if kind == "folder":
            folders.append(path)
            things.append((kind, path, draw(MODES), draw(TIMES)))
        elif kind == "file":
            files.append(path)
            things.append((kind, path, draw(MODES), draw(TIMES), draw(st.binary(max_size=2000))))
        elif kind == "pipe":
            things.append((kind, path, draw(MODES), draw(TIMES)))
        elif kind == "symlink":
            things.append((kind, path, draw(TIMES), draw(st.binary(min_size=1, max_size=200)).replace(b"\0", b"/")))
        elif files:
            things.append((kind, path, draw(st.sampled_from(files))))
    return things


def make(things: list[tuple[Any, ...]], layer: Path) -> None:
    base = os.fsencode(layer) + b"/"
    for kind, name, *rest in things:
        path = base + name
        if kind == "folder":
            os.makedirs(path, exist_ok=True)
        elif kind == "file":
            with open(path, "wb") as stream:
                stream.write(rest[2])
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "symlink":
            os.symlink(rest[1], path)
            os.utime(path, ns=(0, rest[0]), follow_symlinks=False)
        else:
            os.link(base + rest[0], path)
    for kind, name, *rest in reversed(things):
        if kind in ("folder", "file", "pipe"):
            os.chmod(base + name, rest[0] if ROOT or kind == "file" else rest[0] | 0o700)
            os.utime(base + name, ns=(0, rest[1]))


@settings(max_examples=40)
@given(things=trees())
def test_any_tree_that_goes_in_comes_out(things: list[tuple[Any, ...]]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        make(things, folder / "layer")
        out = through(folder / "layer", folder / "out")
        assert seal_of(out) == seal_of(folder / "layer")
        assert inodes(out) == inodes(folder / "layer")
        assert packed(out) == packed(folder / "layer")
    finally:
        shutil.rmtree(folder)


@AS_ROOT
def test_owners_whiteouts_opaque_folders_and_devices_come_out(layer: Path, tmp_path: Path) -> None:
    (layer / "root/etc").mkdir()
    (layer / "root/dev").mkdir()
    os.mknod(layer / "root/etc/gone", stat.S_IFCHR, os.makedev(0, 0))
    os.link(layer / "root/etc/gone", layer / "root/etc/gone-too")  # as newer kernels do
    os.mknod(layer / "root/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (layer / "root/su").write_text("x")
    os.chown(layer / "root/su", 100, 65534)
    (layer / "root/su").chmod(0o6755)
    (layer / "root/big").write_bytes(bytes(3_000_001))
    kept = {
        b"root/etc": {"trusted.overlay.opaque": b"y"},
        b"root/su": {"security.capability": bytes.fromhex("0100000200200000000000000000000000000000")},
        b"volumes": {"trusted.overlay.opaque": b"y", "user.note": b"a=b\n\0\xff"},
    }
    for name, values in kept.items():
        for key, value in values.items():
            os.setxattr(os.fsencode(layer) + b"/" + name, key, value)
    os.setxattr(layer / "root/etc", "trusted.overlay.origin", b"\0of this machine")
    os.setxattr(layer / "root", "trusted.overlay.impure", b"y")
    out = through(layer, tmp_path / "out")
    assert seal_of(out) == seal_of(layer)
    assert attributes(out) == kept
    assert inodes(out) == inodes(layer)
    assert packed(out) == packed(layer)


@AS_ROOT
def test_a_volume_keeps_the_overlays_that_it_holds(layer: Path, tmp_path: Path) -> None:
    (layer / "volumes/containerd").mkdir()
    os.setxattr(layer / "volumes/containerd", "trusted.overlay.origin", b"1")
    assert attributes(through(layer, tmp_path / "out")) == {b"volumes/containerd": {"trusted.overlay.origin": b"1"}}


def test_the_number_of_cores_does_not_show(layer: Path) -> None:
    (layer / "root/file").write_bytes(os.urandom(1000) * 9000)
    with at_most(1):
        one = packed(layer)
    assert packed(layer) == one


def test_other_tars_read_it(layer: Path) -> None:
    long = "n" * 200
    (layer / "root" / long).write_text("content")
    (layer / "root/link").symlink_to("t" * 150)
    data, unpacked = packed(layer)
    raw = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert len(raw) == unpacked
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert archive.getnames() == ["root", "volumes", "root/link", f"root/{long}"]
        assert archive.getmember("root/link").linkname == "t" * 150
        content = archive.extractfile(f"root/{long}")
        assert content is not None
        assert content.read() == b"content"


def test_what_no_archive_can_have_is_refused_when_it_is_written(layer: Path) -> None:
    os.mknod(layer / "root/socket", stat.S_IFSOCK | 0o600)
    with pytest.raises(ArtifactError, match="no file, folder, link or device: b'root/socket'"):
        packed(layer)


@AS_ROOT
@pytest.mark.parametrize("key", ["trusted.overlay.redirect", "trusted.overlay.metacopy"])
def test_overlays_that_the_disk_writer_refuses_are_refused(layer: Path, key: str) -> None:
    os.setxattr(layer / "root", key, b"/x")
    with pytest.raises(ArtifactError, match=key):
        packed(layer)


def member(path: bytes, kind: bytes = members.FILE, **changes: Any) -> Member:
    return Member(**({"path": path, "kind": kind, "mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0} | changes))


LEAVES = member(b"root/a", members.SYMLINK, mode=0o777, target=b"../../outside")
FOLDERS = [member(b"root", members.FOLDER), member(b"volumes", members.FOLDER)]


def zipped(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


def unchecked(one: Member, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return the headers of a member that a good writer would not write."""
    with monkeypatch.context() as context:
        context.setattr(members, "check", lambda member: None)
        return encode(one)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("before")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"file": "before"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "outside"]


UP = b"../" * 40
HOSTILE: Mapping[str, tuple[list[Member], str]] = {
    "parent": ([member(b"root/../../outside/file", size=0)], "leads elsewhere"),
    "absolute": ([member(b"/outside/file")], "outside of the layer"),
    "beside": ([member(b"layer.json")], "outside of the layer"),
    "empty part": ([member(b"root//file")], "leads elsewhere"),
    "dot": ([member(b"root/./file")], "leads elsewhere"),
    "no parent": ([member(b"root/a/b")], "not there"),
    "through a link": ([LEAVES, member(b"root/a/new")], "not there"),
    "link as a folder": ([LEAVES, member(b"root/a", members.FOLDER)], "twice"),
    "twice": ([member(b"root/a"), member(b"root/a")], "twice"),
    "folder twice": ([member(b"root", members.FOLDER)], "twice"),
    "hard link out": ([member(b"root/a", members.LINK, target=b"../outside/file")], "outside of the layer"),
    "hard link up": ([member(b"root/a", members.LINK, target=b"root/../../outside/file")], "leads elsewhere"),
    "hard link to nothing": ([member(b"root/a", members.LINK, target=b"root/b")], "nothing before it"),
    "hard link to itself": ([member(b"root/a", members.LINK, target=b"root/a")], "nothing before it"),
    "hard link to a folder": ([member(b"root/a", members.LINK, target=b"root")], "nothing before it"),
    "disk": ([member(b"root/sda", members.DEVICE, device=(8, 0))], "not made with"),
    "memory": ([member(b"root/mem", members.DEVICE, device=(1, 1))], "not made with"),
    "block device": ([member(b"root/sda", b"4", device=(8, 0))], "no file, folder, link"),
    "long name": ([member(b"root/" + b"a" * 256)], "leads elsewhere"),
    "deep": ([member(b"root" + b"/a" * 200)], "too long"),
    "nul": ([member(b"root/a\0b")], "leads elsewhere"),
    "label": ([member(b"root/a", xattrs=(("security.selinux", b"x"),))], "does not belong"),
    "redirect": ([member(b"root/a", xattrs=(("trusted.overlay.redirect", b"/"),))], "does not belong"),
    "attribute twice": ([member(b"root/a", xattrs=(("user.a", b"1"), ("user.a", b"2")))], "does not belong"),
    "folder with a content": ([member(b"root/a", members.FOLDER, size=1)], "does not have"),
    "file with a target": ([member(b"root/a", target=b"b")], "does not have"),
    "late": ([member(b"root/a", mtime_ns=(1 << 33) * 10**9)], "not octal"),
    "link with a mode": ([member(b"root/a", members.SYMLINK, target=b"b")], "out of bounds"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(
    name: str, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, words = HOSTILE[name]
    raw = b"".join(unchecked(one, monkeypatch) for one in (*FOLDERS, *listed)) + END
    with pytest.raises(ArtifactError, match=words):
        read_archive(io.BytesIO(zipped(raw)), empty(tmp_path / "out"), unpacked=len(raw))


def test_an_archive_without_a_layers_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"without it: b'root'"):
        read_archive(io.BytesIO(zipped(END)), empty(tmp_path / "out"), unpacked=len(END))


SAMPLE = b"".join(
    [*map(encode, FOLDERS), encode(member(b"root/a", size=3)), b"abc", bytes(509),
     encode(member(b"root/b", members.SYMLINK, mode=0o777, target=b"a", mtime_ns=1_700_000_000_123_456_789)), END]
)  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "stated", "words"),
    [
        pytest.param(SAMPLE + b"x", len(SAMPLE), "after its end", id="more than stated"),
        pytest.param(SAMPLE + b"x", len(SAMPLE) + 1, "after its end", id="more"),
        pytest.param(SAMPLE[:-1], len(SAMPLE), "cut off", id="less than stated"),
        pytest.param(SAMPLE[:-512], len(SAMPLE) - 512, "cut off", id="half an end"),
        pytest.param(SAMPLE[:-1024], len(SAMPLE) - 1024, "cut off", id="no end"),
        pytest.param(SAMPLE.replace(b"abc\0", b"abc\1"), len(SAMPLE), "padding", id="hidden bytes"),
    ],
)
def test_an_archive_has_the_length_that_was_stated(raw: bytes, stated: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=words):
        read_archive(io.BytesIO(zipped(raw)), empty(tmp_path / "out"), unpacked=stated)


def test_what_is_no_zstd_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not compressed as they are"):
        read_archive(io.BytesIO(SAMPLE), empty(tmp_path / "out"), unpacked=len(SAMPLE))


def test_unpacking_ends_at_its_time(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        read_archive(io.BytesIO(zipped(SAMPLE)), empty(tmp_path / "out"), unpacked=len(SAMPLE), until=0)


@settings(max_examples=200)
@given(place=st.integers(0, len(SAMPLE) - 1), value=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_means_something_else(place: int, value: int) -> None:
    raw = bytearray(SAMPLE)
    raw[place] ^= value
    folder = Path(tempfile.mkdtemp())
    try:
        read_archive(io.BytesIO(zipped(bytes(raw))), empty(folder / "out"), unpacked=len(raw))
        again = zstandard.ZstdDecompressor().decompressobj().decompress(packed(folder / "out")[0])
        assert again == bytes(raw)  # no byte is without a meaning
    except ArtifactError:
        pass
    finally:
        shutil.rmtree(folder)


@given(
    path=st.lists(NAMES, max_size=8).map(lambda names: b"/".join([b"root", *names])), mtime=TIMES, mode=MODES,
    size=st.integers(0, (1 << 33) - 1), xattrs=st.dictionaries(st.sampled_from(("user.a", "user.b")), st.binary()),
)  # fmt: skip
def test_what_is_spelt_is_read_back(path: bytes, mtime: int, mode: int, size: int, xattrs: dict[str, bytes]) -> None:
    if path == b"root":
        path = b"root/x"
    one = member(path, mtime_ns=mtime, mode=mode, size=size, xattrs=tuple(sorted(xattrs.items())))
    data = encode(one)
    length = extended_size(data[:512])
    assert length is not None
    assert decode(data[:512], data[512 : 512 + length], data[-512:]) == one


@given(extended=st.binary(max_size=200))
def test_no_extended_header_breaks_the_reader(extended: bytes) -> None:
    good = encode(member(b"root/a"))
    with pytest.raises(ArtifactError):
        decode(good[:512], extended, good[-512:])
