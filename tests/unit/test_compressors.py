"""What a lock file says of compressors: what they write counts, not what they are called."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from fake_runner import FakeRunner

from imagebuilder import compressors, locked
from imagebuilder.artifacts import BOX
from imagebuilder.cells import plan_request
from imagebuilder.compressors import Compressor, used
from imagebuilder.direct.formats import FORMATS
from imagebuilder.events import Progress
from imagebuilder.lockfile import LockFile, read_lock, text_of
from imagebuilder.model import BuildRequest
from imagebuilder.plan import BuildPlan
from imagebuilder.resolve import Lock, Resolver

SHA = "0123456789abcdef" * 4


def test_every_format_says_what_it_is_compressed_by() -> None:
    assert set(compressors.USED_BY) == {*FORMATS, BOX}


@pytest.mark.parametrize(
    ("disk_format", "small", "names"),
    [("raw", False, []), ("raw", True, ["zstd"]), ("qcow2", False, ["zstd"]), ("tar.gz", True, ["zlib", "zstd"])],
)
def test_only_those_count_that_the_image_depends_on(disk_format: str, small: bool, names: list[str]) -> None:
    assert list(used(disk_format, small_initramfs=small)) == names


def test_the_sample_is_compressible_and_the_same_always() -> None:
    data = compressors.sample()
    assert compressors.sample() == data
    assert len(data) // 8 < len(zlib.compress(data, 1)) < len(data) // 2


def other_zlib(monkeypatch: pytest.MonkeyPatch) -> None:
    compress = zlib.compress
    monkeypatch.setattr(compressors.zlib, "compress", lambda data, level: compress(data, level + 1))


def other_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    make = zstandard.ZstdCompressor
    monkeypatch.setattr(zstandard, "ZstdCompressor", lambda level: make(level=level + 1))


@pytest.mark.parametrize(("name", "change"), [("zlib", other_zlib), ("zstd", other_zstd)])
def test_what_writes_other_bytes_has_another_sample(
    name: str, change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = used(BOX, small_initramfs=True)
    change(monkeypatch)
    after = used(BOX, small_initramfs=True)
    assert [key for key in after if after[key] != before[key]] == [name]
    assert after[name].version == before[name].version


def made(monkeypatch: pytest.MonkeyPatch, plan: BuildPlan, tmp_path: Path) -> tuple[LockFile, Resolver]:
    """Return the lock file of an image with no packages."""
    monkeypatch.setattr(locked, "require_privileges", lambda _: None)
    nothing = Lock(epoch=1, taken={}, packages={}, pause=None, images=(), apt_sources="", apt_folder="")
    resolver = Resolver(
        cache=tmp_path, runner=FakeRunner({}), progress=Progress(), log=tmp_path / "log", offline=True
    )  # fmt: skip
    monkeypatch.setattr(resolver, "resolve", lambda _: nothing)
    path = tmp_path / "imagebuilder.lock"
    path.write_text(text_of(locked.make_lock(plan, resolver)))
    return read_lock(path), resolver


def test_a_compressor_that_writes_other_bytes_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = plan_request(BuildRequest(os="debian", target="qemu"))
    lock, resolver = made(monkeypatch, plan, tmp_path)
    assert list(lock.compressors) == ["zstd"]
    here = used("qcow2", small_initramfs=True)["zstd"]
    changed: dict[str, Compressor] = {}
    monkeypatch.setattr(compressors, "used", lambda *_, **__: changed)
    taking = locked._Taking(lock, plan, resolver, Progress().stage("resolve", "x").__enter__())

    changed["zstd"] = replace(here, version="9.9")
    assert list(taking._moved_compressors()) == [], "that writes the same"
    changed["zstd"] = Compressor(version="9.9", sample=SHA)
    (moved,) = taking._moved_compressors()
    assert moved.text == f"zstd: locked with {here.version}; 9.9 is here, and writes other bytes"
