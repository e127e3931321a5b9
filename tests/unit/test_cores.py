"""How many cores are used, and whether a folder of the cache may be changed."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from memory_disk import MemoryDisk

from imagebuilder import content
from imagebuilder.content import at_most, cores, require_writable, sha256_file, sha256_files, writable
from imagebuilder.direct import clusters
from imagebuilder.direct.qcow2 import write_qcow2
from imagebuilder.errors import CacheError
from imagebuilder.model import LockedFile
from imagebuilder.sources import payload


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.usefixtures("eight")
def test_all_cores_are_used_unless_somebody_bounds_them() -> None:
    assert cores() == 8
    with at_most(3):
        assert cores() == 3
        with at_most(None):
            assert cores() == 8
        assert cores() == 3
    with at_most(64):
        assert cores() == 8
    with pytest.raises(ZeroDivisionError), at_most(1):
        raise ZeroDivisionError
    assert cores() == 8


class Pools:
    """Stands for the pool of threads, and notes how many each may have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        for module in (content, clusters):
            real = module.ThreadPoolExecutor
            monkeypatch.setattr(module, "ThreadPoolExecutor", self._wrapped(real))

    def _wrapped(self, real: type) -> object:
        def make(size: int, **options: str) -> object:
            if options.get("thread_name_prefix") != "flush":
                self.sizes.append(size)
            return real(size, **options)

        return make


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("jobs", "threads"), [(None, 8), (1, 1), (5, 5)])
def test_hashing_and_compressing_keep_to_the_bound_and_the_bytes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int | None, threads: int
) -> None:
    disk = MemoryDisk(bytes(range(256)) * 4096)
    write_qcow2(disk, tmp_path / "before.qcow2", threads=2)
    pools = Pools(monkeypatch)
    with at_most(jobs):
        write_qcow2(disk, tmp_path / "disk.qcow2")
        assert sha256_files([tmp_path / "disk.qcow2"]) == [sha256_file(tmp_path / "before.qcow2")]
    assert pools.sizes == [threads, threads]
    assert threading.active_count() < 8


def test_a_folder_that_is_not_there_can_be_written_where_it_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writable(tmp_path / "a/b/c")
    require_writable(tmp_path / "a/b/c", "take it")
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: bool(asked.append(path)))
    with pytest.raises(CacheError, match="is read-only: it cannot take it"):
        require_writable(tmp_path / "a/b/c", "take it")
    assert asked == [tmp_path]


def make_file(folder: Path) -> None:
    with content.writing(folder / "image.tar"):
        pass


def make_folder(folder: Path) -> None:
    with content.aside(folder / "image.tar"):
        pass


def make_payload(folder: Path) -> None:
    with payload.filling(folder, "0" * 64, {}):
        pass


@pytest.mark.parametrize(
    ("make", "module", "word"),
    [
        (make_file, fcntl, "flock"), (make_folder, fcntl, "flock"), (make_folder, shutil, "rmtree"),
        (make_payload, fcntl, "flock"), (make_payload, shutil, "rmtree"),
    ],
)  # fmt: skip
def test_what_a_ctrl_c_cuts_short_while_it_is_locked_can_be_swept(
    make: Callable[[Path], None], module: ModuleType, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(module, word)

    def stopped(*args: Any, **options: Any) -> None:
        if word == "flock":
            real(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(module, word, stopped)
        make(tmp_path)
    assert list(tmp_path.rglob("*.part"))
    content.sweep_asides(tmp_path)
    content.sweep_asides(tmp_path, "*/")
    assert list(tmp_path.rglob("*.part")) == []
    assert caught.value, "and all that it knows of, as while it is on its way"


def test_a_damaged_payload_is_removed_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    wanted = payload.payload_id({"kind": "test"})
    with payload.filling(tmp_path, wanted, {"kind": "test"}) as work:
        (work.folder / "kubelet").write_bytes(b"program")
    folder = payload.find(tmp_path, wanted, said.append)
    assert folder is not None
    assert [type(program) for program in payload.read(folder).programs] == [LockedFile]
    (folder / "kubelet").write_bytes(b"cut")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(CacheError, match="read-only: it cannot lose a damaged payload"):
            payload.find(tmp_path, wanted, said.append)
    assert said == []
    assert payload.find(tmp_path, wanted, said.append) is None
    assert said == [f"the payload {wanted} is not whole: it was removed, and is made again"]
    assert not folder.exists()
