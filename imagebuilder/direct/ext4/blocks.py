"""Handing out blocks: in ascending order, so that what is used ends at one place."""

from __future__ import annotations

from imagebuilder.direct.ext4.geometry import BLOCK, Geometry
from imagebuilder.errors import ArtifactError

HINT = "raise size_gib of the target, or leave packages out"
MAX_RUN = 32768  # blocks of one initialised extent (doc "ifork", ee_len)


class Allocator:
    """Hands out the free blocks of a geometry.

    Attributes:
        cursor: every block before it is taken, fixed or not; after it only fixed ones are.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._runs = geometry.free()
        self._size = geometry.blocks
        self.cursor, self._end = next(self._runs)

    def take(self, count: int) -> list[tuple[int, int]]:
        """Return ``count`` blocks as runs ``(start, length)``.

        Raises:
            ArtifactError: there are no more.
        """
        found = []
        while count:
            length = min(count, self._end - self.cursor, MAX_RUN)
            if length:
                found.append((self.cursor, length))
                self.cursor += length
                count -= length
            else:
                self.cursor, self._end = self._next()
        return found

    def one(self) -> int:
        """Return one block."""
        return self.take(1)[0][0]

    def _next(self) -> tuple[int, int]:
        run = next(self._runs, None)
        if run is None:
            what = f"the root tree does not fit a root partition of {self._size * BLOCK >> 20} MiB"
            raise ArtifactError(what, hint=HINT)
        return run
