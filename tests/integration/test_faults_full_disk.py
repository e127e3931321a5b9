"""A disk that is full at any stage of a bake: an error that says so, nothing left, and the next bake just works."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinybake
from leftovers import left_on_disk, left_running, nothing_runs
from smallstack import wait_for
from tinybake import Baked, What
from tinydistro import World, marks, serving

from imagebuilder import process
from imagebuilder.content import sha256_file
from imagebuilder.errors import CommandError, HostError
from imagebuilder.process import RealRunner

pytestmark = [*marks, pytest.mark.skipif(not shutil.which("nsenter"), reason="not installed: nsenter")]
ROOM = 256 << 20  # bytes: enough for all of it
PAGE = 4096
STAGES = {"resolve", "layer:base", "layer:runtime", "layer:kubernetes", "layer:site", "layer:tools", "disk"}


class SmallDisk:
    """A file system of a size of its own at a folder, in a mount namespace of its own: nobody else sees it."""

    def __init__(self, folder: Path, holder: process.Child) -> None:
        self.folder, self._holder = folder, holder
        self.inside = ["nsenter", "--mount", f"--target={holder.pid}", "--"]
        self.before = left_running(folder)
        self.seen = Path(f"/proc/{holder.pid}/root{folder}")  # from outside

    @property
    def used(self) -> int:
        """Return how many bytes are in use."""
        there = os.statvfs(self.seen)
        return (there.f_blocks - there.f_bfree) * there.f_frsize

    def fill(self, room: int) -> None:
        """Leave so many bytes of room, while others may be writing."""
        for _ in range(100):
            with contextlib.suppress(CommandError):  # it has more in use by now than it was to hold
                return self.resize(self.used + room)
        raise AssertionError("it never stood still")

    def resize(self, size: int) -> None:
        """Give it a size in bytes; a whole number of pages, and not none, which would be no limit."""
        size = max(size + -size % PAGE, PAGE)
        RealRunner().run([*self.inside, "mount", "-o", f"remount,size={size}", str(self.folder)])

    def empty(self) -> None:
        """Remove all that is on it."""
        for path in self.seen.iterdir():
            shutil.rmtree(path)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount a file system with enough room on an empty folder."""
    folder.mkdir()
    script = 'mount -t tmpfs -o size="$2" tmpfs "$1" && echo mounted && exec sleep 600'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", folder, str(ROOM)]
    holder = process.spawn(argv)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        # unshare became the shell, which became sleep: the namespace is that of this very process, or of its child.
        yield SmallDisk(folder, holder)
    finally:
        process.stop(holder)
        holder.communicate()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving(tmp_path_factory.mktemp("tiny")) as made:
        yield made


def baking_on(
    world: World, disk: SmallDisk, place: Path, on_disk: str, what: What | None = None
) -> contextlib.AbstractContextManager[process.Child]:
    folders = {name: disk.folder if name == on_disk else place / name for name in ("cache", "out")}
    arguments = ["--target", "qemu", "--cache-dir", folders["cache"], "--output", folders["out"]]
    return tinybake.baking(world.folder, arguments, what, wrapper=disk.inside)


def baked(world: World, disk: SmallDisk, place: Path, on_disk: str) -> Baked:
    with baking_on(world, disk, place, on_disk) as child:
        said, _ = child.communicate(timeout=tinybake.SECONDS)
        return Baked(code=child.returncode, said=said.decode())


def image(out: Path) -> str:
    (path,) = out.glob("*/tiny-*")
    return sha256_file(path)


def says_that_the_disk_is_full(found: Baked) -> None:
    assert found.code == HostError.exit_code, found.said
    assert re.search(r"^error: .*space", found.said, re.MULTILINE), found.said
    assert "\nhint: df -h" in found.said, found.said


@pytest.mark.parametrize("room", [0, 64 << 10], ids=["at-once", "a-little-later"])
def test_a_cache_that_is_full_at_any_stage(world: World, tmp_path: Path, room: int) -> None:
    """From a stage's begin on, the disk has so many bytes of room; a little may be all that what is left needs."""
    with small_disk(tmp_path / "cache") as disk:
        first = baked(world, disk, tmp_path, "cache")
        assert first.code == 0, first.said
        right = image(tmp_path / "out")
        for stage in sorted(STAGES):
            disk.empty()
            shutil.rmtree(tmp_path / "out")
            with baking_on(world, disk, tmp_path, "cache", What(pause_at=f"begin {stage}")) as child:
                lines = wait_for(child, "paused")
                disk.fill(room)
                said, _ = child.communicate(b"\n", timeout=tinybake.SECONDS)
            found = Baked(code=child.returncode, said="\n".join([*lines, said.decode()]))
            if not room or found.code:
                says_that_the_disk_is_full(found)
                assert not list(tmp_path.glob("out/*/*"))
            else:
                assert image(tmp_path / "out") == right
            if not room:
                assert stage in found.failed
            nothing_runs(disk.folder, disk.before)
            assert left_on_disk(disk.seen) == []
            disk.resize(ROOM)
            found = baked(world, disk, tmp_path, "cache")
            assert found.code == 0, found.said
            assert image(tmp_path / "out") == right


def test_an_output_folder_that_is_full(world: World, tmp_path: Path) -> None:
    with small_disk(tmp_path / "out") as disk:
        first = baked(world, disk, tmp_path, "out")
        assert first.code == 0, first.said
        right = image(disk.seen)
        (path,) = disk.seen.glob("*/tiny-*")
        whole = path.stat().st_blocks * 512  # it has holes
        for size, stage in ((whole // 2, "pack"), (whole + PAGE, "manifest")):
            disk.empty()
            disk.resize(size)
            found = baked(world, disk, tmp_path, "out")
            says_that_the_disk_is_full(found)
            assert found.failed == [stage]
            assert not list(disk.seen.glob("*/manifest.json")), "a folder without one is not whole"
            assert left_on_disk(disk.seen) == []
            assert str(disk.folder) in found.said.splitlines()[-3], "which disk it is"
            nothing_runs(disk.folder, disk.before)
            disk.resize(ROOM)
            found = baked(world, disk, tmp_path, "out")
            assert found.code == 0, found.said
            assert image(disk.seen) == right
