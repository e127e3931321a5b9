"""Payload folders: the programs of one component, in the cache, under the id of what made them.

``<cache>/payloads/<id>/`` holds the programs and ``payload.json``, which states each one's hash and size. A
folder is filled aside, fsynced and renamed, so a name under ``payloads/`` that does not start with a dot is
whole. What a killed run left aside is removed by the next one: its lock has died with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder.content import (
    ASIDE,
    boot_id,
    content_id,
    drop_aside,
    fsync_directory,
    mark_used,
    require_writable,
    sha256_file,
    sha256_files,
    write_atomic,
)
from imagebuilder.errors import CacheError, HostError
from imagebuilder.model import LockedFile, plain

FORMAT = 1  # of payload.json; part of every id
INFO = "payload.json"
MAX_INFO = 1 << 20  # bytes of payload.json: 18 programs take 3 KiB
PROGRAM_MODE = 0o755


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """What a payload folder holds.

    Attributes:
        id: content id of what it was made from.
        origin: plain facts for the manifest: source kind, version, toolchain; ``boot`` where it was not synced.
        programs: name, hash and size of each program; ``path`` is its name in the folder.
    """

    id: str
    origin: Mapping[str, str]
    programs: tuple[LockedFile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Filling:
    """A payload in the making: programs go to ``folder``, anything else to ``scratch``.

    Attributes:
        hashes: sha256 of programs that were hashed already, by name.
    """

    folder: Path
    scratch: Path
    hashes: dict[str, str] = field(default_factory=dict)


def payload_id(inputs: Mapping[str, object]) -> str:
    """Return the id of a payload made from ``inputs``: plain data, all that decides its bytes."""
    return content_id({"payload": FORMAT, **plain(inputs)})


def find(cache_dir: Path, wanted: str, say: Callable[[str], None] | None = None) -> Path | None:
    """Return the folder of a payload that is there and whole, or None.

    The check is cheap: names, kinds and sizes. A broken folder is removed, to be made again, and ``say`` is told.

    Raises:
        CacheError: it is broken, and the cache is read-only.
    """
    folder = cache_dir / "payloads" / wanted
    if not folder.is_dir():
        return None
    try:
        if read(folder).id == wanted:
            mark_used(folder / INFO)
            return folder
        problem = "it is that of another id"
    except CacheError as error:
        problem = error.message
    require_writable(cache_dir, f"lose a damaged payload ({problem})")
    discard(folder)
    if say:
        say(f"{problem}: it was removed, and is made again")
    return None


def read(folder: Path) -> Payload:
    """Return what a payload folder holds, after the cheap check.

    Raises:
        CacheError: it is not what its payload.json says.
    """
    try:
        with (folder / INFO).open("rb") as stream:
            data = json.loads(stream.read(MAX_INFO))
        programs = tuple(LockedFile(**program) for program in data["programs"])
        payload = Payload(id=str(data["id"]), origin=dict(data["origin"]), programs=programs)
        names = {INFO, *(program.name for program in programs)}
        if names != {path.name for path in folder.iterdir()} or not all(_fits(folder, program) for program in programs):
            raise CacheError(f"the payload {folder.name} is not whole")
        if payload.origin.get("boot", boot_id()) != boot_id():
            raise CacheError(f"the payload {folder.name} may not have reached the disk before the last power cut")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"the payload {folder.name} cannot be read", context=str(error)) from error
    return payload


def verify(folder: Path) -> Payload:
    """Return what a payload folder holds, after hashing every program.

    Raises:
        CacheError: it is not what its payload.json says.
    """
    payload = read(folder)
    found = sha256_files([folder / program.name for program in payload.programs])
    for program, digest in zip(payload.programs, found, strict=True):
        if digest != program.sha256:
            raise CacheError(
                f"{program.name} in the cache is not the one that was put there",
                hint=f"rm -r {folder}",
            )
    return payload


@contextlib.contextmanager
def filling(cache_dir: Path, wanted: str, origin: Mapping[str, str]) -> Iterator[Filling]:
    """Make a payload: fill ``folder`` in the block; it is committed when the block ends without an error.

    When another process commits the same id first, its folder stays and ours is dropped. What is cheap to make
    again is not synced: it says so by a ``boot`` in its ``origin``, see :func:`content.boot_id`.
    """
    root = cache_dir / "payloads"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        aside, lock = _locked_folder(root, wanted)
    except OSError as error:
        raise HostError(f"cannot write to {root}: {error.strerror}", hint=f"df -h {root}") from error
    try:
        work = Filling(folder=aside / "payload", scratch=aside / "scratch")
        work.folder.mkdir()
        work.scratch.mkdir()
        yield work
        _commit(work, root / wanted, origin)
    finally:
        drop_aside(aside, lock)


def _commit(work: Filling, target: Path, origin: Mapping[str, str]) -> None:
    folder = work.folder
    programs = [_describe(path, work.hashes, sync="boot" not in origin) for path in sorted(folder.iterdir())]
    info = {"id": target.name, "origin": dict(origin), "programs": plain(programs)}
    write_atomic(folder / INFO, json.dumps(info, indent=1, sort_keys=True) + "\n")
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    fsync_directory(target.parent)


def _describe(path: Path, hashes: Mapping[str, str], *, sync: bool) -> LockedFile:
    path.chmod(PROGRAM_MODE)
    with path.open("rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        size = os.fstat(stream.fileno()).st_size
    digest = hashes.get(path.name) or sha256_file(path)
    return LockedFile(name=path.name, path=path.name, sha256=digest, size=size)


def _fits(folder: Path, program: LockedFile) -> bool:
    status = (folder / program.name).lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == program.size and bool(status.st_mode & 0o100)


def _locked_folder(root: Path, wanted: str) -> tuple[Path, int]:
    """Make a folder aside and lock it; a sweep that came in between has removed it: make another."""
    while True:
        aside = Path(tempfile.mkdtemp(prefix=f".{wanted[:12]}.", suffix=ASIDE, dir=root))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if aside.is_dir():
                    return aside, lock
            except BaseException:  # see content: a lock that nobody drops would keep it from our own sweep
                os.close(lock)
                raise
            os.close(lock)


def _sweep(root: Path) -> None:
    """Remove folders aside whose owner has died."""
    for aside in root.glob(".*"):
        with contextlib.suppress(OSError):
            lock = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(aside, ignore_errors=True)
            finally:
                os.close(lock)


def discard(folder: Path) -> None:
    """Take a broken folder out of the way in one rename, then remove it."""
    aside = Path(tempfile.mkdtemp(prefix=".broken.", suffix=ASIDE, dir=folder.parent))
    with contextlib.suppress(OSError):
        folder.rename(aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)
