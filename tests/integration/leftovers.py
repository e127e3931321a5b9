"""What a bake left behind: processes, mounts, locks and files on the way, as far as they have to do with one folder."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator
from pathlib import Path

PATIENCE = 5.0  # seconds until nothing of a killed bake may run any more
ON_THE_WAY = re.compile(r"\.part$|^\.new|^\.broken|^\.go\.|^\.[0-9a-f]{12}\.|^mmdebstrap|^tmp")
LOCK = re.compile(r"^\d+: (?:-> )?FLOCK +\w+ +\w+ +(\d+) [0-9a-f]+:[0-9a-f]+:(\d+) ", re.MULTILINE)  # proc(5)


def left_running(folder: Path) -> list[str]:
    """Return processes, mounts and locks that have to do with a folder: of this and of every other namespace."""
    mine = {os.getpid(), os.getppid()}
    found = {line for pid in _pids() if pid not in mine for line in _traces(pid, str(folder))}
    inodes = {path.stat().st_ino: path for path in (*folder.rglob("locks/*"), *folder.rglob(".*.part"))}
    for pid, inode in LOCK.findall(Path("/proc/locks").read_text()):
        if int(inode) in inodes and int(pid) not in mine:
            found.add(f"lock of {inodes[int(inode)]} by {pid}")
    return sorted(found)


def left_on_disk(folder: Path) -> list[str]:
    """Return what lies in a folder and is not meant to stay; roots of layers and repositories are not looked into."""
    found = []
    for parent, names, files in os.walk(folder):
        if Path(parent).parent.name in ("layers", "apt"):
            names.clear()
        found += [f"{parent}/{name}" for name in (*names, *files) if ON_THE_WAY.search(name) and name != "tmp"]
        if Path(parent).name == "tmp":
            found += [f"{parent}/{name}" for name in (*names, *files)]
    return sorted(set(found))


def nothing_runs(folder: Path, before: Collection[str] = ()) -> None:
    """Wait until nothing has to do with a folder any more but what had ``before``, for a moment at most.

    Raises:
        AssertionError: something has.
    """
    deadline = time.monotonic() + PATIENCE
    while (found := sorted({*left_running(folder)} - {*before})) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found == []


def _pids() -> Iterator[int]:
    yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _traces(pid: int, folder: str) -> Iterator[str]:
    """Yield what a process has to do with a folder: its words, its places, its open files, its mounts."""
    here = f"/proc/{pid}"
    try:
        words = Path(here, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        places = [os.readlink(f"{here}/{name}") for name in ("root", "cwd", "exe")]
        places += [os.readlink(f"{here}/fd/{name}") for name in os.listdir(f"{here}/fd")]
        mounts = Path(here, "mountinfo").read_text()
    except OSError:  # it has ended meanwhile, or is ending
        return
    if folder in words or any(place.startswith(folder) for place in places):
        yield f"process {pid}: {words[:200]}"
    yield from (f"mount: {line.split()[4]}" for line in mounts.splitlines() if folder in line)
