"""OCI archives: the same bytes each time, and nothing believed that is read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from imagebuilder.content import sha256_bytes, sha256_file
from imagebuilder.errors import ArtifactError, DataError, UntrustedError, UsageError
from imagebuilder.sources.manifests import Descriptor, MalformedError, choose, parse_index, parse_manifest
from imagebuilder.sources.oci import ComposeSpec, compose, inspect_archive
from imagebuilder.sources.references import parse

SPEC = ComposeSpec(reference="registry.k8s.io/pause:3.10.1", entrypoint=("/pause",), user="65535:65535")
Members = dict[str, bytes]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "pause").write_bytes(b"program")
    compose(SPEC, [("/pause", tmp_path / "pause", 0o755)], tmp_path / "pause.tar", epoch=1_700_000_000)
    return tmp_path / "pause.tar"


def members(path: Path) -> Members:
    with tarfile.open(path, "r:") as archive:
        return {
            entry.name: stream.read() for entry in archive if entry.isfile() and (stream := archive.extractfile(entry))
        }


def rewrite(path: Path, files: Members, extra: tarfile.TarInfo | None = None) -> Path:
    with tarfile.open(path, "w:", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        if extra is not None:
            archive.addfile(extra)
    return path


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two" / "deeper"
    for folder, order in ((one, 1), (two, -1)):
        folder.mkdir(parents=True)
        files = []
        for name in ("b", "a"):
            (folder / name).write_bytes(name.encode() * 1000)
            files.append((f"/usr/bin/{name}", folder / name, 0o755))
        compose(SPEC, files[::order], folder / "out.tar", epoch=1)
    assert sha256_file(one / "out.tar") == sha256_file(two / "out.tar")
    assert sorted(path.name for path in one.iterdir()) == ["a", "b", "out.tar"]


def test_what_is_composed_is_what_its_readers_expect(archive: Path) -> None:
    files = members(archive)
    index, docker = json.loads(files["index.json"]), json.loads(files["manifest.json"])
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert index["manifests"][0]["annotations"] == {
        "io.containerd.image.name": "registry.k8s.io/pause:3.10.1",
        "org.opencontainers.image.ref.name": "3.10.1",
    }
    assert docker[0]["RepoTags"] == ["registry.k8s.io/pause:3.10.1"]
    config = json.loads(files[docker[0]["Config"]])
    assert config["config"] == {"Entrypoint": ["/pause"], "User": "65535:65535"}
    assert config["rootfs"]["diff_ids"] == [f"sha256:{sha256_bytes(files[docker[0]['Layers'][0]])}"]
    assert config["created"] == "2023-11-14T22:13:20Z"


def test_the_layer_is_owned_by_root_and_dated(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    image = compose(SPEC, [("/usr/bin/f", tmp_path / "f", 0o4755)], tmp_path / "out.tar", epoch=7)
    layer = members(tmp_path / "out.tar")[f"blobs/sha256/{image.layers[0].digest[7:]}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        found = [(entry.name, entry.mode, entry.uid, entry.uname, entry.mtime) for entry in tar]
    assert found == [("usr", 0o755, 0, "", 7), ("usr/bin", 0o755, 0, "", 7), ("usr/bin/f", 0o4755, 0, "", 7)]


@pytest.mark.parametrize(
    "paths", [["relative"], ["/../up"], ["/"], ["/a", "//a"], ["/a", "/a/b"], ["/" + "x" * 101]], ids=str
)
def test_paths_that_no_image_can_have(tmp_path: Path, paths: list[str]) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(DataError):
        compose(SPEC, [(path, tmp_path / "f", 0o755) for path in paths], tmp_path / "out.tar", epoch=0)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_inspect_tells_what_was_composed(archive: Path) -> None:
    info = inspect_archive(archive)
    assert info.references == ("registry.k8s.io/pause:3.10.1",)
    assert info.arch == "amd64"
    assert info.digests[0] == json.loads(members(archive)["index.json"])["manifests"][0]["digest"]
    assert info.sizes[0] > 10_000


def flip_layer(files: Members) -> Members:
    layer = json.loads(files["manifest.json"])[0]["Layers"][0]
    return files | {layer: files[layer].replace(b"program", b"prog-am")}


def lose_layer(files: Members) -> Members:
    layer = json.loads(files["manifest.json"])[0]["Layers"][0]
    return {name: data for name, data in files.items() if name != layer}


def edit_index(change: Callable[[dict[str, object]], object]) -> Callable[[Members], Members]:
    def edit(files: Members) -> Members:
        index = json.loads(files["index.json"])
        change(index["manifests"][0])
        return files | {"index.json": json.dumps(index).encode()}

    return edit


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (flip_layer, UntrustedError, "bytes are not those of its name"),
        (lose_layer, ArtifactError, "is missing"),
        (edit_index(lambda item: item.update(size=1)), ArtifactError, "another size"),
        (edit_index(lambda item: item.update(size=True)), ArtifactError, "is no size"),
        (edit_index(lambda item: item.update(digest="md5:0")), ArtifactError, "no sha256 digest"),
        (edit_index(lambda item: item.pop("annotations")), ArtifactError, "has no name"),
        (edit_index(lambda item: item.update(Size=1)), ArtifactError, "there twice"),
        (lambda files: files | {"index.json": b"[" * 100_000}, ArtifactError, "not JSON"),
        (lambda files: files | {"index.json": b" " * (5 << 20)}, ArtifactError, "larger than"),
        (lambda files: files | {"../evil": b""}, ArtifactError, "leads outside"),
        (lambda files: files | {"/etc/evil": b""}, ArtifactError, "leads outside"),
        (lambda files: files | {"./index.json": b""}, ArtifactError, "there twice"),
        (lambda files: files | {"blobs/sha512/00": b""}, ArtifactError, "no sha256 blob"),
        (lambda files: {name: data for name, data in files.items() if name != "oci-layout"}, ArtifactError, "no oci"),
    ],
)
def test_nothing_is_believed(
    archive: Path, edit: Callable[[Members], Members], error: type[Exception], says: str
) -> None:
    rewrite(archive, edit(members(archive)))
    with pytest.raises(error) as caught:
        inspect_archive(archive)
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_only_files_and_folders(archive: Path, kind: bytes) -> None:
    extra = tarfile.TarInfo("link")
    extra.type, extra.linkname = kind, "/etc/passwd"
    with pytest.raises(ArtifactError, match="neither a file nor a folder"):
        inspect_archive(rewrite(archive, members(archive), extra))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is cut off|no oci-layout|no OCI"),
        (b"\x1f\x8b" + b"x" * 510, "compressed"),
        (b"x" * 512, "not a tar"),
        (b"\0" * 1024, "no oci-layout"),
    ],
)
def test_files_that_are_no_archive(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ArtifactError, match=says):
        inspect_archive(tmp_path / "x.tar")


@pytest.mark.parametrize("at", [600, 5000, 9000])
def test_an_archive_that_is_cut_off(archive: Path, at: int) -> None:
    archive.write_bytes(archive.read_bytes()[:at])
    with pytest.raises(ArtifactError):
        inspect_archive(archive)


def test_a_pax_header_must_not_rename(archive: Path) -> None:
    with tarfile.open(archive, "w:", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("x" * 300))
    with pytest.raises(ArtifactError, match="pax"):
        inspect_archive(archive)


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        inspect_archive(tmp_path / "no.tar")


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/a/b", "docker.io/a/b:latest"),
        ("flannel/flannel:v0.28.0", "docker.io/flannel/flannel:v0.28.0"),
        ("registry.k8s.io/pause:3.10.1", "registry.k8s.io/pause:3.10.1"),
        ("localhost/x", "localhost/x:latest"),
        ("127.0.0.1:5000/x:1", "127.0.0.1:5000/x:1"),
        ("x@sha256:" + "0" * 64, "docker.io/library/x@sha256:" + "0" * 64),
        ("x:1@sha256:" + "0" * 64, "docker.io/library/x:1@sha256:" + "0" * 64),
    ],
)
def test_references_in_full(text: str, full: str) -> None:
    assert str(parse(text)) == full
    assert str(parse(full)) == full


@pytest.mark.parametrize(
    "text", ["", "X", "a b", "a:", "a@", "a@sha256:0", "a/../b", "-a", "a//b", "http://a/b", "a:" + "x" * 129, "/a"]
)
def test_no_references(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def descriptor(arch: str, variant: str = "", system: str = "linux") -> Descriptor:
    return Descriptor(
        media_type="", digest=f"{arch}{variant}", size=0, os=system, arch=arch, variant=variant, annotations={}
    )


def test_the_platform_is_chosen() -> None:
    items = [descriptor("amd64", system="windows"), descriptor("arm64", "v8"), descriptor("arm", "v7")]
    assert choose([*items, descriptor("amd64", "v3"), descriptor("amd64")], "amd64") == descriptor("amd64")
    assert choose(items, "arm64") == descriptor("arm64", "v8")
    assert choose([*items, descriptor("amd64", "v3")], "amd64") is None


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b'{"schemaVersion":1}', b'{"schemaVersion":2}', b"\xff"])
def test_malformed_documents(data: bytes) -> None:
    for parser in (parse_index, parse_manifest):
        with pytest.raises(MalformedError):
            parser(data)
