"""Package files: the archives in them are found and decompressed, and nothing that is too much, or behind it."""

from __future__ import annotations

import io
import lzma
import zlib
from pathlib import Path

import pytest
from debs import ar, control, deb, entry, folder, link, symlink, tar
from fake_runner import Failed, FakeRunner
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.direct.debcache import DebCache
from imagebuilder.errors import ArtifactError
from imagebuilder.sources.debfile import Part, control_text, extract, parts, unpack

NOBODY = FakeRunner()  # no program may be started
CONTROL = control("Package: a\nVersion: 1\nArchitecture: all\n")
DATA = tar(folder(b"./"), entry(b"./a", b"x" * 3000))


def unpacked(tmp_path: Path, data: bytes, compression: str, limit: int = 1 << 20) -> bytes:
    path = tmp_path / "part"
    path.write_bytes(b"before" + data + b"after")
    with (tmp_path / "out").open("w+b") as out:
        unpack(path, Part(compression, 6, len(data)), out, NOBODY, limit=limit)
    return (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("compression", ["", ".gz", ".xz"])
def test_a_packages_archives_are_found_and_decompressed(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(deb(CONTROL, DATA, compression))
    found = DebCache(tmp_path / "cache", tmp_path, NOBODY).get(path, "0" * 64)
    assert found.control == CONTROL
    assert found.data.read_bytes() == DATA
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.deb", "cache"]


@pytest.mark.parametrize("compression", ["", ".gz", ".xz"])
def test_a_packages_control_file_is_read_without_a_program(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(deb(CONTROL, DATA, compression))
    assert control_text(path, tmp_path / "scratch", NOBODY) == "Package: a\nVersion: 1\nArchitecture: all\n"
    assert [item.name for item in tmp_path.iterdir()] == ["a.deb"]
    path.write_bytes(deb(tar(entry(b"./other", b"x")), DATA, compression))
    with pytest.raises(ArtifactError, match="no control file"):
        control_text(path, tmp_path / "scratch", NOBODY)


def test_zstd_is_left_to_its_program_which_the_kernel_limits(tmp_path: Path) -> None:
    def answer(words: list[str]) -> str:
        assert words[:5] == ["prlimit", "--fsize=1000", "zstd", "-q", "-d"]
        assert Path(words[-1]).read_bytes() == b"packed"
        Path(words[-2]).write_bytes(b"plain")
        return ""

    path = tmp_path / "part"
    path.write_bytes(b"packed")
    with (tmp_path / "out").open("w+b") as out:
        unpack(path, Part(".zst", 0, 6), out, FakeRunner({("zstd",): answer}), limit=1000)
    assert (tmp_path / "out").read_bytes() == b"plain"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "part"]

    def fail(words: list[str]) -> str:
        raise Failed("File size limit exceeded")

    with (tmp_path / "out").open("w+b") as out, pytest.raises(ArtifactError, match="damaged, or too large"):
        unpack(path, Part(".zst", 0, 6), out, FakeRunner({("zstd",): fail}), limit=1000)


BINARY, BOTH = ("debian-binary", b"2.0\n"), [("control.tar", CONTROL), ("data.tar", DATA)]
BAD = {
    "no-ar": (b"nothing", "no ar archive"),
    "empty": (b"", "no ar archive"),
    "no-members": (ar([]), "missing"),
    "another-format": (ar([("debian-binary", b"3.0\n"), *BOTH]), "format 2"),
    "not-first": (ar([*BOTH, BINARY]), "format 2"),
    "no-data": (ar([BINARY, BOTH[0]]), "missing"),
    "twice": (ar([BINARY, *BOTH, BOTH[1]]), "comes twice"),
    "another-compression": (ar([BINARY, ("control.tar.rar", b"x"), BOTH[1]]), "unknown compression"),
    "a-stranger": (ar([BINARY, ("evil", b"x"), *BOTH]), "no member 'evil'"),
    "too-many": (ar([BINARY, *[("_ours", b"x")] * 20, *BOTH]), "too many"),
    "longer-than-the-file": (ar([BINARY, *BOTH])[:-600], "longer"),
    "a-broken-header": (ar([BINARY, *BOTH]).replace(b"`\n", b"``"), "header is wrong"),
    "a-size-that-is-none": (ar([BINARY, *BOTH]).replace(b"4         `", b"-4        `"), "header is wrong"),
}


@pytest.mark.parametrize(("data", "why"), [pytest.param(*value, id=key) for key, value in BAD.items()])
def test_what_is_no_package_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ArtifactError, match=why):
        parts(io.BytesIO(data))


def test_members_for_others_are_passed_over() -> None:
    data = ar([BINARY, ("_gpgorigin", b"odd"), *BOTH])
    found = parts(io.BytesIO(data))
    part = found["data"]
    assert data[part.offset : part.offset + part.size] == DATA


@given(st.binary(max_size=400))
def test_any_bytes_are_no_package(data: bytes) -> None:
    for start in (b"", b"!<arch>\n", ar([BINARY])):
        with pytest.raises(ArtifactError):
            parts(io.BytesIO(start + data))


def raw_gzip(data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    return machine.compress(data) + machine.flush()


@pytest.mark.parametrize(
    ("data", "compression"),
    [
        pytest.param(bytes(1 << 16), "", id="stored"),
        pytest.param(raw_gzip(bytes(64 << 20)), ".gz", id="gzip-bomb"),
        pytest.param(lzma.compress(bytes(64 << 20)), ".xz", id="xz-bomb"),
    ],
)
def test_no_archive_grows_over_its_limit(data: bytes, compression: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="too large"):
        unpacked(tmp_path, data, compression, limit=50_000)
    assert (tmp_path / "out").stat().st_size <= 50_000


@pytest.mark.parametrize(("pack", "compression"), [(raw_gzip, ".gz"), (lzma.compress, ".xz")], ids=["gzip", "xz"])
def test_a_damaged_archive_is_refused(pack: object, compression: str, tmp_path: Path) -> None:
    assert callable(pack)
    good = pack(DATA)
    assert unpacked(tmp_path, good, compression) == DATA
    for bad in (good[:-20], good + b"more", good + good, good[:10] + b"\xff" + good[11:], b""):
        with pytest.raises(ArtifactError, match=r"damaged|too soon|follows"):
            unpacked(tmp_path, bad, compression)


def test_an_error_names_the_package(tmp_path: Path) -> None:
    path = tmp_path / "a_1_all.deb"
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"^a_1_all\.deb: .*no ar archive"):
        DebCache(tmp_path / "cache", tmp_path, NOBODY).get(path, "0" * 64)


def extracted(tmp_path: Path, *data: bytes) -> Path:
    paths = [tmp_path / f"{number}.deb" for number in range(len(data))]
    for path, entries in zip(paths, data, strict=True):
        path.write_bytes(deb(CONTROL, entries))
    tree = tmp_path / "tree"
    extract(paths, tree, tmp_path / "scratch", NOBODY)
    return tree


def test_packages_are_extracted_into_one_tree(tmp_path: Path) -> None:
    one = tar(
        folder(b"./"), entry(b"./usr/bin/a", b"a" * 3000), link(b"./usr/bin/hard", b"./usr/bin/a"),
        symlink(b"./bin", b"usr/bin"), symlink(b"./out", b"/etc"),
    )  # fmt: skip
    tree = extracted(tmp_path, one, tar(folder(b"./usr/"), entry(b"./usr/bin/b", b"b")))
    assert (tree / "bin/a").read_bytes() == b"a" * 3000
    assert (tree / "bin/hard").samefile(tree / "usr/bin/a")
    assert (tree / "usr/bin/b").read_bytes() == b"b"
    assert (tree / "out").readlink() == Path("/etc")
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(tar(entry(b"./out/file", b"x")), id="file"),
        pytest.param(tar(symlink(b"./out/link", b"x")), id="link"),
        pytest.param(tar(entry(b"./out", b"x")), id="in-its-place"),
        pytest.param(tar(entry(b"./a", b"x")), id="twice"),
        pytest.param(tar(entry(b"./../a", b"x")), id="outside"),
        pytest.param(b"", id="empty"),
    ],
)
def test_nothing_is_written_through_a_link_or_over_another_file(others: bytes, tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    one = tar(entry(b"./a", b"a"), symlink(b"./out", str(outside).encode()))
    with pytest.raises(ArtifactError):
        extracted(tmp_path, one, others)
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.deb", "1.deb", "outside", "tree"]
