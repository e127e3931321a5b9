"""Gzip streams that are the same every time: no name, no time, no system in the header (RFC 1952)."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import IO, Self

OnProgress = Callable[[int, int], None]
# Of a disk that is compressed already, the fastest level still saves 1 or 2%, at 60 MB/s; storing runs at the disk's
# speed, and what a box must be is gzip, not small.
LEVEL = 0
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


class Writer(io.RawIOBase):
    """A gzip stream on top of another stream, which stays open."""

    def __init__(self, stream: IO[bytes], level: int = LEVEL) -> None:
        super().__init__()
        self._stream, self._crc, self._length = stream, 0, 0
        self._deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        stream.write(_HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]  # of bytes, not of other numbers
        """Compress bytes into the stream below."""
        self._crc = zlib.crc32(data, self._crc)
        self._length += len(data)
        self._stream.write(self._deflate.compress(data))
        return len(data)

    def finish(self) -> None:
        """Write the end of the stream."""
        self._stream.write(self._deflate.flush())
        self._stream.write(self._crc.to_bytes(4, "little") + (self._length & 0xFFFFFFFF).to_bytes(4, "little"))
