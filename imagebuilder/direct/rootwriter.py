"""Writes a planned tree into an empty folder: folders, files on all cores, links last, so that none is followed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from imagebuilder.content import CHUNK
from imagebuilder.direct.rootplan import Placed, RootPlan
from imagebuilder.sources.debtar import Data

WORKERS = min(4, os.cpu_count() or 1)  # more do not help: every second step of each holds the interpreter
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NANO = 1_000_000_000

Open = Callable[[int], AbstractContextManager[Data]]  # opens a package's archive, by the package's number


def write_root(plan: RootPlan, open_data: Open, root: Path) -> None:
    """Write a tree, with modes, owners and times.

    Args:
        plan: what goes where.
        open_data: gives the archive that a package's offsets are in; a few are open at a time.
        root: an empty folder that nobody else writes to.

    Raises:
        OSError: the file system does not take it; nothing is there twice, as the folder was empty.
    """
    base = os.fsencode(root) + b"/"
    for path in plan.folders:
        if path:
            os.mkdir(base + path, 0o700)  # noqa: PTH102 - bytes: names need not be UTF-8
    by_package: dict[int, list[Placed]] = {}
    for placed in plan.files:
        by_package.setdefault(placed.package, []).append(placed)
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda item: _write_files(item[1], open_data(item[0]), base), by_package.items()))
    for placed, target in plan.links:
        os.link(base + target, base + placed.path, follow_symlinks=False)
    for placed in plan.symlinks:
        path = base + placed.path
        os.symlink(placed.member.target, path)  # noqa: PTH211
        os.chown(path, placed.member.uid, placed.member.gid, follow_symlinks=False)
        os.utime(path, ns=_times(placed), follow_symlinks=False)
    for path, folder in reversed(plan.folders.items()):  # a folder's time, once nothing more gets into it
        if folder is None:
            os.chmod(base + path, 0o755)  # noqa: PTH101, S103
        else:
            os.chown(base + path, folder.member.uid, folder.member.gid)
            os.chmod(base + path, folder.member.mode)  # noqa: PTH101
            os.utime(base + path, ns=_times(folder))


def _times(placed: Placed) -> tuple[int, int]:
    return placed.member.mtime * NANO, placed.member.mtime * NANO


def _write_files(files: Iterable[Placed], opened: AbstractContextManager[Data], base: bytes) -> None:
    with opened as data:
        for placed in files:
            _write_file(placed, data, base)


def _write_file(placed: Placed, data: Data, base: bytes) -> None:
    member = placed.member
    descriptor = os.open(base + placed.path, CREATE, 0o600)
    try:
        position, end = member.offset, member.offset + member.size
        while position < end:
            position += os.write(descriptor, data[position : min(end, position + CHUNK)])
        os.fchown(descriptor, member.uid, member.gid)
        os.fchmod(descriptor, member.mode)  # after the owner: that takes set-user-ID away
        os.utime(descriptor, ns=_times(placed))
    finally:
        os.close(descriptor)
