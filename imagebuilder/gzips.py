"""Gzip streams that are the same every time: no name, no time, no system in the header (RFC 1952).

Pieces of a stream may be compressed by themselves, by any thread: each ends at a byte, and refers to nothing before it.
"""

from __future__ import annotations

import functools
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
_CRC = 4  # bytes of a piece before what is compressed
_POLYNOMIAL, _ONE, _X = 0xEDB88320, 1 << 31, 1 << 30  # of CRC-32: the lowest power is the highest bit


def piece(data: bytes | memoryview, level: int) -> bytes:
    """Return what :meth:`Writer.splice` takes: the CRC-32 of the data, and the data compressed."""
    deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH)
    return zlib.crc32(data).to_bytes(_CRC, "little") + packed


def _times(left: int, right: int) -> int:
    """Return the product of two polynomials, modulo that of CRC-32."""
    product, bit = 0, _ONE
    while bit:
        if left & bit:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
        bit >>= 1
    return product


@functools.lru_cache(maxsize=64)
def _power(exponent: int) -> int:
    """Return a power of x, modulo the polynomial of CRC-32."""
    if not exponent:
        return _ONE
    half = _power(exponent // 2)
    square = _times(half, half)
    return _times(square, _X) if exponent % 2 else square


def joined_crc(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of two pieces of data, one after the other, from that of each and the second's bytes."""
    return _times(_power(8 * length), first) ^ second


class Writer(io.RawIOBase):
    """A gzip stream on top of another stream, which stays open."""

    def __init__(self, stream: IO[bytes], level: int = LEVEL) -> None:
        super().__init__()
        self._stream, self._crc, self._length, self._open = stream, 0, 0, False
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
        self._length, self._open = self._length + len(data), True
        self._stream.write(self._deflate.compress(data))
        return len(data)

    def splice(self, piece: bytes, length: int) -> None:
        """Write a piece that is compressed already.

        Args:
            piece: as :func:`piece` makes it.
            length: of the data, in bytes.
        """
        if self._open:  # what follows it is not to refer to what is before it: the reader's window is another
            self._stream.write(self._deflate.flush(zlib.Z_FULL_FLUSH))
            self._open = False
        self._crc = joined_crc(self._crc, int.from_bytes(piece[:_CRC], "little"), length)
        self._length += length
        self._stream.write(memoryview(piece)[_CRC:])

    def finish(self) -> None:
        """Write the end of the stream."""
        self._stream.write(self._deflate.flush())
        self._stream.write(self._crc.to_bytes(4, "little") + (self._length & 0xFFFFFFFF).to_bytes(4, "little"))
