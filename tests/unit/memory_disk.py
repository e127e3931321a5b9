"""A disk in memory, as strict as a file: what lies outside of it is an error."""

from __future__ import annotations

from collections.abc import Iterator

from imagebuilder.errors import ArtifactError


class MemoryDisk:
    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def extents(self) -> Iterator[tuple[int, int]]:
        yield 0, len(self.data)

    def read_into(self, offset: int, view: memoryview) -> None:
        if not 0 <= offset <= len(self.data) - len(view):
            raise ArtifactError(f"{len(view)} bytes at {offset} of {len(self.data)}")
        view[:] = self.data[offset : offset + len(view)]
