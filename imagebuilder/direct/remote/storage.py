"""What keeps layers elsewhere, and the time that it gets.

A storage is asked in a thread of its own, which is left behind when its time is over: libraries time each system call,
not the whole, and a server can always send one more byte. What is left behind writes into files that nobody reads.
"""

from __future__ import annotations

import io
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Protocol, TypeVar

from imagebuilder.content import CHUNK
from imagebuilder.errors import ImagebuilderError, UsageError

T = TypeVar("T")
LOOK_SECONDS = 0.2  # between two looks at how far it is
CONNECT_SECONDS = 5.0  # until a server has answered; a bake that has no network waits no longer
STALL_SECONDS = 15.0  # without a byte


class RemoteError(Exception):
    """A storage that cannot do what it is asked for: the bake goes on without it. The text says why, in a few words."""


class Watch:
    """Counts the bytes of a transfer, and ends it when nobody waits for it any more."""

    def __init__(self) -> None:
        self.done = 0
        self.given_up = False

    def step(self, count: int) -> None:
        """Count ``count`` bytes more.

        Raises:
            RemoteError: nobody waits.
        """
        if self.given_up:
            raise RemoteError("given up")
        self.done += count


class Storage(Protocol):
    """Keeps archives by their sha256, and a statement for each layer. Every method may raise RemoteError or OSError."""

    def statement(self, layer_id: str, max_size: int) -> bytes | None:
        """Return what is said of a layer; None when it is not there.

        Raises:
            RemoteError: it is larger than ``max_size``, or cannot be had.
        """

    def archive(self, layer_id: str, sha256: str) -> AbstractContextManager[Iterator[bytes]]:
        """Open an archive; its pieces are as the storage sends them, whatever that is."""

    def has(self, sha256: str) -> bool:
        """Tell whether an archive is there."""

    def push(self, layer_id: str, statement: bytes, archive: io.RawIOBase, sha256: str) -> None:
        """Put an archive there, and then the statement; who sees the statement can have the archive."""


def within(seconds: float, work: Callable[[Watch], T], show: Callable[[int], None] = lambda done: None) -> T:
    """Return what ``work`` returns.

    Args:
        seconds: that it may take.
        work: is handed the watch that it has to step.
        show: is called now and then with the bytes so far.

    Raises:
        RemoteError: it was not done in time, and the thread is left behind; or it ended in a way that has no name.
        ImagebuilderError, OSError: as ``work`` raises them.
    """
    watch, results = Watch(), queue.SimpleQueue[tuple[T | None, Exception | None]]()

    def run() -> None:
        try:
            results.put((work(watch), None))
        except (ImagebuilderError, RemoteError, OSError) as error:
            results.put((None, error))
        except Exception as error:  # of a library that met an answer which nobody thought of
            results.put((None, RemoteError(f"its answer is not understood ({type(error).__name__}: {error!s:.80})")))

    threading.Thread(target=run, name="remote cache", daemon=True).start()
    until = time.monotonic() + seconds
    try:
        while True:
            try:
                result, error = results.get(timeout=max(0.001, min(LOOK_SECONDS, until - time.monotonic())))
                break
            except queue.Empty:
                show(watch.done)
                if time.monotonic() >= until:
                    raise RemoteError(f"it was not done within {seconds:.0f} s") from None
    finally:
        watch.given_up = True
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # there is one where there is no error


class Watched(io.RawIOBase):
    """A file that is read for a transfer, and counted."""

    def __init__(self, stream: IO[bytes], watch: Watch) -> None:
        self._stream, self._watch = stream, watch
        self.size = stream.seek(0, io.SEEK_END)
        stream.seek(0)

    def __len__(self) -> int:
        return self.size

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Return some bytes."""
        data = self._stream.read(CHUNK if size is None or size < 0 else size)
        self._watch.step(len(data))
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return where it is."""
        return self._stream.tell()


def open_storage(url: str) -> Storage:
    """Return the storage at an address: ``s3://BUCKET[/PREFIX]``, or ``oci://HOST[:PORT]/REPOSITORY``.

    Raises:
        UsageError: it is of no kind that is known.
        ToolMissingError: the library for it is not installed.
    """
    from imagebuilder.direct.remote.registry import open_registry
    from imagebuilder.direct.remote.s3 import open_s3

    kinds: dict[str, Callable[[str], Storage]] = {"s3": open_s3, "oci": open_registry}
    kind, found, rest = url.partition("://")
    if "@" in rest.partition("/")[0]:
        message = "the address of a remote cache has no user and no password"
        raise UsageError(message, hint="boto3 and docker's config.json have places for them")
    if not found or not rest or kind not in kinds:
        message = "the address of a remote cache is like s3://bucket/prefix or oci://registry.example:5000/layers"
        raise UsageError(message, hint='[cache] remote = "s3://bucket/prefix"')
    return kinds[kind](rest)
