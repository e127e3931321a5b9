"""Content ids, checksums and the one way to put a file on disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from imagebuilder.errors import CacheError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # proc_sys_kernel(5)
ASIDE = ".part"  # ends the hidden names of what is not finished yet
CHUNK = 1 << 20  # bytes per read: large enough that hashing, not system calls, is the cost
_ZEROS = memoryview(bytes(CHUNK))


def canonical_json(value: Any) -> bytes:
    """Return the one JSON spelling of ``value``: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_id(value: Any) -> str:
    """Return the content id of plain data: 64 hex digits, sha256 over its canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Return the sha256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits. Holes are not read: the page cache would fill up with zeros."""
    digest, buffer, done = hashlib.sha256(), memoryview(bytearray(CHUNK)), 0
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        for start, end in data_extents(stream.fileno(), size):
            _add_zeros(digest, start - done)
            done = stream.seek(start)
            while done < end and (read := stream.readinto(buffer[: end - done])):
                digest.update(buffer[:read])
                done += read
        _add_zeros(digest, size - done)
    return digest.hexdigest()


def _add_zeros(digest: hashlib._Hash, count: int) -> None:
    for left in range(count, 0, -CHUNK):
        digest.update(_ZEROS[:left])


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data: ascending, disjoint ``(start, end)`` in bytes, ``end`` exclusive; lseek(2).

    What lies between is a hole and reads as zeros; an extent may hold zeros too. A file system that knows no
    holes gives one extent. The descriptor's position moves: read with ``os.pread``.

    Args:
        fd: a descriptor open for reading.
        size: bytes of the file to look at.
    """
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        if start >= size:
            return
        position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, position


class _Cores:
    """How many cores this process may use for its own work; None is all that there are."""

    limit: int | None = None


def cores() -> int:
    """Return how many threads compress and hash: one for each core that this process may run on, or fewer."""
    there = len(os.sched_getaffinity(0))
    return min(there, _Cores.limit or there)


@contextlib.contextmanager
def at_most(jobs: int | None) -> Iterator[None]:
    """Let :func:`cores` be ``jobs`` at most while the block runs; None is no limit."""
    before, _Cores.limit = _Cores.limit, jobs
    try:
        yield
    finally:
        _Cores.limit = before


def sha256_files(paths: Sequence[Path]) -> list[str]:
    """Return the sha256 of each file, on all cores that may be used."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(sha256_file, paths))


def boot_id() -> str:
    """Return what names this boot of the machine: what was written, but not synced, lives as long as it."""
    return BOOT_ID.read_text("ascii").strip()


def fsync_directory(path: Path) -> None:
    """Make renames and new names in ``path`` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def writing(path: Path, *, mode: int = 0o644, lasting: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under its name only when it is whole.

    The bytes go to a hidden file in the same folder, which is fsynced and renamed when the block ends, or
    removed when the block raises; see :func:`sweep_asides`. A file that is not ``lasting`` is not fsynced: nobody
    reads it after a crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, fd = _locked_aside(lambda: tempfile.mkstemp(prefix=f".{path.name}.", suffix=ASIDE, dir=path.parent))
    try:
        with os.fdopen(fd, "w+b") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            if lasting:
                os.fsync(stream.fileno())
        part.replace(path)
        if lasting:
            fsync_directory(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_checked(path: Path, data: Any) -> None:
    """Write JSON data for :func:`read_checked`."""
    write_atomic(path, canonical_json({"data": data, "sha256": content_id(data)}))


def read_checked(path: Path) -> Any:
    """Return what :func:`write_checked` wrote.

    Raises:
        ValueError: it is not that any more.
        OSError: it cannot be read.
    """
    kept = json.loads(path.read_bytes())
    if not isinstance(kept, dict) or kept.keys() != {"data", "sha256"} or content_id(kept["data"]) != kept["sha256"]:
        raise ValueError(f"{path} is damaged")
    return kept["data"]


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Hand out an empty, hidden folder beside ``path``, and remove it at the end; see :func:`sweep_asides`."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def make() -> tuple[int, str]:
        while True:
            name = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=ASIDE, dir=path.parent)
            with contextlib.suppress(FileNotFoundError):  # a sweep came in between
                return os.open(name, os.O_RDONLY | os.O_DIRECTORY), name

    folder, lock = _locked_aside(make)
    try:
        yield folder
    finally:
        drop_aside(folder, lock)


def drop_aside(folder: Path, lock: int) -> None:
    """Remove a folder aside, and then drop its lock, also when a Ctrl-C cuts that short: a sweep may have the rest."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _locked_aside(make: Callable[[], tuple[int, str]]) -> tuple[Path, int]:
    """Make something aside and lock it; a sweep that came in between has removed it: make another."""
    while True:
        descriptor, name = make()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.lexists(name):
                return Path(name), descriptor
        except BaseException:  # a Ctrl-C: a lock that nobody drops would keep it from every sweep of ours
            os.close(descriptor)
            raise
        os.close(descriptor)


def sweep_asides(folder: Path, below: str = "") -> None:
    """Remove what killed processes left on the way: whoever is alive holds a lock of its own.

    Args:
        folder: where it lies.
        below: a pattern of folders in it that ends with a slash, where it lies in those.
    """
    for path in folder.glob(f"{below}.*{ASIDE}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock file; others wait. The kernel drops it when this process dies, so none is ever stale.

    Args:
        path: the lock file; made when it is not there.
        waiting: called once when another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        wait_for_lock(stream.fileno(), fcntl.LOCK_EX, waiting)
        yield


def wait_for_lock(descriptor: int, kind: int, waiting: Callable[[], None] | None = None) -> None:
    """Take a lock of flock(2); ``waiting`` is called once when somebody else holds it."""
    if waiting:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waiting()
    fcntl.flock(descriptor, kind)


def mark_used(path: Path) -> None:
    """Give a file of the cache the time of its last use, for whoever prunes; on a read-only file system it stays."""
    with contextlib.suppress(OSError):
        os.utime(path)


def writable(folder: Path) -> bool:
    """Tell whether a folder can be written to, or made: root can all but where the file system is read-only."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def require_writable(cache: Path, what: str) -> None:
    """Refuse to change a cache folder that is read-only; ``what`` it cannot do is named, such as "take packages".

    Raises:
        CacheError: it is.
    """
    if not writable(cache):
        raise CacheError(
            f"the cache folder {cache} is read-only: it cannot {what}",
            hint="run it once where the folder can be written, or choose another one with --cache-dir",
        )


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Write a whole file aside, fsync it, and rename it to ``path``."""
    with writing(path, mode=mode) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
