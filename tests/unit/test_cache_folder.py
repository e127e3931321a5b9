"""The cache verb: what it shows, what it removes, and what it leaves alone."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.__main__ import main
from imagebuilder.cli.cache import duration
from imagebuilder.direct.layers import LayerStore
from imagebuilder.direct.seals import SEAL
from imagebuilder.errors import ArtifactError
from imagebuilder.sources.payload import filling
from imagebuilder.vm.artifact import find_artifact

DAY = 86400.0
Capture = pytest.CaptureFixture[str]


def layer(cache: Path, digit: str, name: str, days: float) -> str:
    layer_id = digit * 64
    folder = cache / "layers" / layer_id
    (folder / "root").mkdir(parents=True)
    (folder / "root" / "file").write_bytes(b"x" * 8192)
    (folder / "layer.json").write_text(json.dumps({"name": name}))
    used = time.time() - days * DAY
    os.utime(folder / "layer.json", (used, used))
    return layer_id


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with two layers, an old and a new one, and Go's read-only modules."""
    folder = tmp_path / "cache"
    for name in ("layers", "tmp", "locks", "go/mod"):
        (folder / name).mkdir(parents=True)
    (folder / "go/mod/file").write_bytes(b"x" * 4096)
    (folder / "go/mod").chmod(0o555)
    (folder / "accelerator.json").write_text("{}")
    layer(folder, "a", "base", 10)
    layer(folder, "b", "site", 1)
    return folder


def run(cache: Path, capsys: Capture, *words: str) -> Any:
    assert main(["cache", *words, "--cache-dir", str(cache), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def layers(cache: Path) -> list[str]:
    return sorted(path.name[0] for path in (cache / "layers").iterdir())


def test_list(cache: Path, capsys: Capture) -> None:
    data = run(cache, capsys, "list")
    assert [found["name"] for found in data["layers"]] == ["site", "base"]
    assert data["size"] == sum(found["size"] for found in data["layers"]) + data["areas"]["go"]
    assert data["kinds"] == {"layers": data["size"] - data["areas"]["go"], "go": data["areas"]["go"]}
    assert main(["cache", "--cache-dir", str(cache), "list"]) == 0
    out = capsys.readouterr().out
    assert "layer base  aaaaaaaaaaaa" in out
    assert "10 d ago" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("all ")] == [
        ["all", "layers"],
        ["all", "go"],
    ]
    assert out.splitlines()[-1].endswith(f"KiB in {cache}")


@pytest.mark.parametrize(
    ("words", "left"),
    [
        pytest.param([], ["b"], id="default"),
        pytest.param(["--unused-for", "12h"], [], id="half-a-day"),
        pytest.param(["--older-than", "2d"], ["b"], id="two-days"),
        pytest.param(["--keep-bytes", "10GB"], ["a", "b"], id="room-enough"),
        pytest.param(["--keep-bytes", "28 KiB"], ["b"], id="the-longest-unused-goes"),
        pytest.param(["--keep-bytes", "28KiB", "--dry-run"], ["a", "b"], id="dry-size"),
        pytest.param(["--unused-for", "2w"], ["a", "b"], id="two-weeks"),
        pytest.param(["--dry-run"], ["a", "b"], id="dry"),
        pytest.param(["--all", "--dry-run"], ["a", "b"], id="dry-all"),
    ],
)
def test_prune(cache: Path, words: Sequence[str], left: list[str], capsys: Capture) -> None:
    run(cache, capsys, "prune", *words)
    assert layers(cache) == left
    assert (cache / "go/mod/file").is_file()


def test_prune_says_what_it_did(cache: Path, capsys: Capture) -> None:
    assert main(["cache", "--cache-dir", str(cache), "prune", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("KiB would be removed\n")
    data = run(cache, capsys, "prune")
    assert [found["id"] for found in data["layers"]] == ["a" * 64]
    assert (data["dry_run"], data["areas"], data["kept"]) == (False, {}, [])


def test_all_empties_the_cache_and_it_stays_one(cache: Path, capsys: Capture) -> None:
    data = run(cache, capsys, "prune", "--all")
    assert layers(cache) == []
    assert not (cache / "go/mod").exists()
    assert data["areas"]["go"] > 0
    assert run(cache, capsys, "list")["size"] == 0


def test_what_is_locked_stays(cache: Path, capsys: Capture) -> None:
    with (cache / "locks" / ("a" * 64)).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert run(cache, capsys, "prune", "--unused-for", "1s")["kept"] == ["a" * 64]
        assert layers(cache) == ["a"]
        assert set(run(cache, capsys, "prune", "--all")["kept"]) == {"a" * 64, "go"}
    assert layers(cache) == ["a"]


def test_a_payload_in_the_making_stays(cache: Path, capsys: Capture) -> None:
    aside = cache / "payloads" / ".new"
    aside.mkdir(parents=True)
    descriptor = os.open(aside, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert run(cache, capsys, "prune", "--all")["kept"] == ["payloads"]
        assert aside.is_dir()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("holiday.jpg", "not ours: holiday.jpg", id="foreign"),
        pytest.param("images", "a link: images", id="link"),
        pytest.param("", "missing: locks", id="other"),
    ],
)
def test_a_folder_that_is_no_cache_is_refused(cache: Path, name: str, said: str, capsys: Capture) -> None:
    if name == "images":
        (cache / name).symlink_to(cache.parent)
    elif name:
        (cache / name).touch()
    else:
        (cache / "locks").rmdir()
    assert main(["cache", "prune", "--all", "--cache-dir", str(cache)]) == 12
    assert said in capsys.readouterr().err
    assert layers(cache) == ["a", "b"]


def test_no_cache_at_all(tmp_path: Path, capsys: Capture) -> None:
    assert main(["cache", "list", "--cache-dir", str(tmp_path / "none")]) == 12
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("7d", 604800)])
def test_duration(text: str, seconds: float) -> None:
    assert duration(text) == seconds


# --- artifacts ---

QCOW2 = b"QFI\xfb" + bytes(508)
RAW = bytes(510) + b"\x55\xaa"


def bake(folder: Path, manifest: object, disk: bytes = QCOW2) -> Path:
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "x.disk").write_bytes(disk)
    return folder


@pytest.mark.parametrize(("disk", "form"), [(QCOW2, "qcow2"), (RAW, "raw")])
def test_disk_and_folder_are_found(tmp_path: Path, disk: bytes, form: str) -> None:
    bake(tmp_path, {"id": "debian-x", "artifact": {"file": "x.disk", "format": form}}, disk)
    found = find_artifact(tmp_path)
    assert (found.disk, found.disk_format, found.name) == (tmp_path / "x.disk", form, "debian-x")
    assert find_artifact(tmp_path / "x.disk").disk_format == form


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        pytest.param({"artifact": {"file": "x.disk", "format": "raw"}}, "but its manifest says raw", id="other-format"),
        pytest.param({"artifact": {"file": "x.disk", "format": "vhd"}}, "does not name a disk", id="unknown-format"),
        pytest.param({"artifact": {"file": "../x.disk", "format": "qcow2"}}, "does not name a disk", id="outside"),
        pytest.param({"artifact": {"file": "lost", "format": "qcow2"}}, "No such file", id="lost"),
        pytest.param([], "is not a manifest", id="list"),
        pytest.param({}, "does not name a disk", id="empty"),
    ],
)
def test_bad_folder_is_refused(tmp_path: Path, manifest: object, said: str) -> None:
    bake(tmp_path, manifest)
    with pytest.raises(ArtifactError) as caught:
        find_artifact(tmp_path)
    assert said in caught.value.message


def test_what_is_no_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.qcow2").write_bytes(b"text")
    for path in (tmp_path / "x.qcow2", tmp_path / "lost", tmp_path):
        with pytest.raises(ArtifactError):
            find_artifact(path)


def payload(cache: Path, days: float) -> Path:
    """Put a program into the cache, last used some days ago."""
    with filling(cache, "9" * 64, {"kind": "test"}) as work:
        (work.folder / "kubelet").write_bytes(b"k" * 8192)
    folder = cache / "payloads" / ("9" * 64)
    used = time.time() - days * DAY
    os.utime(folder / "payload.json", (used, used))
    return folder


def test_to_keep_few_bytes_programs_and_packages_go_by_their_last_use_too(cache: Path, capsys: Capture) -> None:
    program = payload(cache, 5)
    (cache / "debs").mkdir()
    for name, days in (("old_1_all.deb", 20), ("new_1_all.deb", 0)):
        (cache / "debs" / name).write_bytes(b"d" * 8192)
        os.utime(cache / "debs" / name, (time.time() - days * DAY,) * 2)
    size = run(cache, capsys, "list")["size"]

    data = run(cache, capsys, "prune", "--keep-bytes", str(size - 1))
    assert list(data["areas"]) == ["debs"]
    assert (layers(cache), program.is_dir()) == (["a", "b"], True)
    run(cache, capsys, "prune", "--keep-bytes", str(size - 8192 - 1))
    assert (layers(cache), program.is_dir()) == (["b"], True)
    size = run(cache, capsys, "list")["size"]
    run(cache, capsys, "prune", "--keep-bytes", str(size - 1))
    assert (layers(cache), program.is_dir()) == (["b"], False)
    assert [path.name for path in (cache / "debs").iterdir()] == ["new_1_all.deb"]
    assert (cache / "go/mod/file").is_file(), "what takes longest to make again goes last"
    run(cache, capsys, "prune", "--keep-bytes", "0")
    assert run(cache, capsys, "list")["size"] == 0


def test_while_a_bake_runs_only_layers_go(cache: Path, capsys: Capture) -> None:
    program = payload(cache, 30)
    with (cache / "locks" / ("b" * 64)).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert run(cache, capsys, "prune", "--keep-bytes", "0")["kept"] == ["b" * 64]
    assert (layers(cache), program.is_dir()) == (["b"], True)
    assert (cache / "go/mod/file").is_file()


@pytest.mark.parametrize("words", [["--keep-bytes", "much"], ["--keep-bytes", "1GB", "--all"]])
def test_a_prune_that_cannot_be_meant_is_refused(cache: Path, words: Sequence[str], capsys: Capture) -> None:
    assert main(["cache", "prune", *words, "--cache-dir", str(cache)]) == 2
    assert layers(cache) == ["a", "b"]


def test_verify_reads_all_and_removes_what_is_damaged(cache: Path, capsys: Capture) -> None:
    program = payload(cache, 1)
    assert main(["cache", "verify", "--cache-dir", str(cache)]) == 0
    said = capsys.readouterr().out
    assert "3 layers, payloads and images were read: none is damaged" in said
    assert "2 layers were made by an older version" in said

    store = LayerStore(cache)
    with store.building("c" * 64) as folder:
        assert folder is not None
        (folder / "root/file").write_text("right")
        made = store.commit(folder, {"name": "runtime"})
    before = (made.root / "file").stat()
    (made.root / "file").write_text("wrong")
    os.utime(made.root / "file", ns=(before.st_atime_ns, before.st_mtime_ns))
    (program / "kubelet").write_bytes(b"x" * 8192)
    (cache / "images").mkdir()
    (cache / "images/some.tar").write_bytes(b"no archive")
    assert main(["cache", "verify", "--cache-dir", str(cache)]) == 1
    said = capsys.readouterr().err
    assert "3 of 5 in the cache are damaged" in said
    for line in ("removed: layer runtime cccccccccccc: its files", "removed: payloads/999", "removed: images/some.tar"):
        assert line in said
    assert (layers(cache), program.exists(), list((cache / "images").iterdir())) == (["a", "b"], False, [])
    assert main(["cache", "verify", "--cache-dir", str(cache)]) == 0


def test_a_damaged_layer_that_is_in_use_stays_and_is_named(cache: Path, capsys: Capture) -> None:
    (cache / "layers" / ("a" * 64) / "layer.json").write_text(json.dumps({"name": "base", SEAL: {}}))
    with (cache / "locks" / ("a" * 64)).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert main(["cache", "verify", "--cache-dir", str(cache)]) == 1
    assert "in use, kept: layer base aaaaaaaaaaaa" in capsys.readouterr().err
    assert layers(cache) == ["a", "b"]


def test_a_read_only_cache_can_be_looked_at(cache: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebuilder.content.os.access", lambda path, mode: mode != os.W_OK)
    assert len(run(cache, capsys, "list")["layers"]) == 2
    assert main(["cache", "verify", "--cache-dir", str(cache)]) == 0
    for words in ([], ["--all"], ["--keep-bytes", "0"]):
        assert main(["cache", "prune", *words, "--cache-dir", str(cache)]) == 12
        assert "is read-only: it cannot lose anything" in capsys.readouterr().err
