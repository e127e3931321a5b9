"""A file system that is only read: the same few questions for a disk's, for one in memory, and for one with changes.

Paths are absolute, in the file system's own terms (``/etc/fstab``); a link is followed within the tree only, so that
nothing of the host is ever seen.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from imagebuilder.errors import ArtifactError

READ_LIMIT = 4 << 20  # bytes: no file of text on a node is larger
LINK_LIMIT = 40  # links on the way to one file, as the kernel has it


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What stands at a path. ``target`` is where a symbolic link leads; ``capability`` its file capabilities, raw."""

    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    target: str = ""
    capability: bytes = b""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


class Tree(Protocol):
    """A file system, read only."""

    def entry(self, path: str) -> Entry | None:
        """Return what stands at a path, a last link not followed, links before it not either; None where nothing is.

        Raises:
            ArtifactError: the file system is damaged.
        """

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no such folder."""

    def content(self, path: str, limit: int) -> bytes:
        """Return the first ``limit`` bytes of the regular file at a path, no link followed; empty for all else."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A tree with changes on top: a path's new entry and content, or None where it is gone.

    It is how a check is proven: the image is broken in just one way, and only that check may say so.
    """

    base: Tree
    changes: Mapping[str, tuple[Entry, bytes] | None]

    def entry(self, path: str) -> Entry | None:
        """Return what stands at a path."""
        if path in self.changes:
            change = self.changes[path]
            return change[0] if change else None
        return self.base.entry(path)

    def names(self, path: str) -> list[str]:
        """Return the names in a folder."""
        entry = self.entry(path)
        if entry is None or not entry.is_folder:
            return []
        names, start = set(self.base.names(path)), path.rstrip("/") + "/"
        for changed, change in self.changes.items():
            if changed.startswith(start) and "/" not in changed[len(start) :]:
                (names.add if change else names.discard)(changed[len(start) :])
        return sorted(names)

    def content(self, path: str, limit: int) -> bytes:
        """Return the first bytes of a file."""
        if path in self.changes:
            change = self.changes[path]
            return change[1][:limit] if change else b""
        return self.base.content(path, limit)


def file(content: str | bytes = b"", *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> tuple[Entry, bytes]:
    """Return a change: a regular file."""
    data = content.encode() if isinstance(content, str) else content
    return Entry(mode=stat.S_IFREG | mode, uid=uid, gid=gid, size=len(data)), data


def folder(*, mode: int = 0o755, uid: int = 0, gid: int = 0) -> tuple[Entry, bytes]:
    """Return a change: a folder."""
    return Entry(mode=stat.S_IFDIR | mode, uid=uid, gid=gid), b""


def link(target: str) -> tuple[Entry, bytes]:
    """Return a change: a symbolic link."""
    return Entry(mode=stat.S_IFLNK | 0o777, target=target, size=len(target)), b""


class Empty:
    """A tree with a root folder and nothing in it: with ``Changed`` on top, a tree in memory."""

    def entry(self, path: str) -> Entry | None:
        """Return the root."""
        return Entry(mode=stat.S_IFDIR | 0o755) if path == "/" else None

    def names(self, path: str) -> list[str]:
        """Return no names."""
        return []

    def content(self, path: str, limit: int) -> bytes:
        """Return no bytes."""
        return b""


def in_memory(files: Mapping[str, tuple[Entry, bytes]]) -> Changed:
    """Return a tree of these, with the folders on the way to them."""
    changes: dict[str, tuple[Entry, bytes] | None] = {}
    for path in sorted(files):
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            changes.setdefault("/" + "/".join(parts[:depth]), folder())
        changes[path] = files[path]
    return Changed(Empty(), changes)


def resolve(tree: Tree, path: str) -> tuple[str, Entry] | None:
    """Return the path that a path leads to with all links followed, and what stands there; None where nothing is.

    Raises:
        ArtifactError: the links lead in a circle.
    """
    todo, at, links = path.strip("/").split("/")[::-1], "", 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = at.rpartition("/")[0]
            continue
        entry = tree.entry(f"{at}/{name}")
        if entry is None:
            return None
        if not entry.is_link:
            at = f"{at}/{name}"
            continue
        links += 1
        if links > LINK_LIMIT:
            raise ArtifactError(f"{path} in the image leads in a circle")
        if entry.target.startswith("/"):
            at = ""
        todo += entry.target.split("/")[::-1]
    found = tree.entry(at or "/")
    return (at or "/", found) if found else None


def read(tree: Tree, path: str, limit: int = READ_LIMIT) -> bytes | None:
    """Return a regular file's bytes, links followed; None where there is no such file.

    Raises:
        ArtifactError: it is larger than ``limit``.
    """
    found = resolve(tree, path)
    if found is None or not found[1].is_file:
        return None
    if found[1].size > limit:
        raise ArtifactError(f"{path} in the image has {found[1].size} bytes, more than the {limit} expected")
    return tree.content(found[0], limit)


def text(tree: Tree, path: str) -> str:
    """Return a file as text; empty where there is none."""
    return (read(tree, path) or b"").decode("utf-8", "replace")


def walk(tree: Tree, top: str = "/") -> Iterator[tuple[str, Entry]]:
    """Yield every path below ``top``, itself included, in order; no link is followed.

    Raises:
        ArtifactError: the file system is damaged.
    """
    entry = tree.entry(top)
    if entry is None:
        return
    stack = [(top, entry)]
    while stack:
        path, entry = stack.pop()
        yield path, entry
        if entry.is_folder:
            start = path.rstrip("/")
            inner = ((f"{start}/{name}", tree.entry(f"{start}/{name}")) for name in tree.names(path))
            stack += reversed([(name, one) for name, one in inner if one is not None])
