"""Paths over file systems whose folders lead from names to numbers: what ext4 and FAT have in common.

A folder must have one path only: a file system in which a folder is within itself has endless paths. Folders that
were read are kept, since all else asks for paths in them; how much there may be is bounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from imagebuilder.errors import ArtifactError
from imagebuilder.verify.tree import Entry

MAX_PATH = 4096  # characters: PATH_MAX of Linux; nothing on a node is deeper
MAX_NAMES = 1_000_000  # in all folders; a node has 50,000, and these take 150 MB
MAX_CHARACTERS = 100_000_000  # of the paths of all files; a node has 3,000,000
MAX_CONTENT = 1 << 30  # bytes of one file that are given out at once

Node = TypeVar("Node")


class _Folder(NamedTuple, Generic[Node]):
    """What is in a folder: the names to look up, and those to show."""

    nodes: dict[str, Node]
    names: list[str]


class Folders(ABC, Generic[Node]):
    """A :class:`~imagebuilder.verify.tree.Tree` over nodes, each of which is a file or a folder.

    Args:
        root: the node of the root folder.
        what: it is called in messages.
        fold: returns a name or a path as it is looked up, where upper and lower case are the same.
    """

    def __init__(self, root: Node, what: str, fold: Callable[[str], str] | None = None) -> None:
        self._root, self._what, self._fold = root, what, fold
        self._folders: dict[str, _Folder[Node]] = {}  # by path
        self._paths: dict[Hashable, str] = {}  # of folders, by identity
        self._names = self._characters = 0

    @abstractmethod
    def _children(self, node: Node) -> dict[str, Node]:
        """Return what is in a folder, without ``.`` and ``..``."""

    @abstractmethod
    def _entry(self, node: Node) -> Entry:
        """Return what a node is."""

    @abstractmethod
    def _content(self, node: Node, limit: int) -> bytes:
        """Return the first bytes of a regular file, which has at least ``limit``."""

    @abstractmethod
    def _identity(self, node: Node) -> Hashable:
        """Return what two nodes have in common only when they are the same folder."""

    def entry(self, path: str) -> Entry | None:
        """Return what stands at a path; see :class:`~imagebuilder.verify.tree.Tree`."""
        node = self._node(path)
        return None if node is None else self._entry(node)

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, sorted."""
        folder = self._folder(self._plain(path))
        return [] if folder is None else list(folder.names)

    def content(self, path: str, limit: int) -> bytes:
        """Return the first ``limit`` bytes of a regular file; empty for all else.

        Raises:
            ArtifactError: the file system is damaged, or that is more than is given out at once.
        """
        node = self._node(path)
        if node is None or not (entry := self._entry(node)).is_file:
            return b""
        wanted = min(entry.size, limit)
        if wanted > MAX_CONTENT:
            raise self._damaged(f"{path} would give {wanted} bytes at once")
        return self._content(node, wanted) if wanted > 0 else b""

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"the {self._what} file system in the image is damaged, or no node's: {what}")

    def _plain(self, path: str) -> str:
        """Return a path without slashes at its end or twice, as it is looked up; the root is empty."""
        if "//" in path or path.endswith("/") or not path.startswith("/"):
            path = "".join(f"/{name}" for name in path.split("/") if name)
        return self._fold(path) if self._fold else path

    def _node(self, path: str) -> Node | None:
        plain = self._plain(path)
        if not plain:
            return self._root
        parent, _, name = plain.rpartition("/")
        folder = self._folder(parent)
        return None if folder is None else folder.nodes.get(name)

    def _folder(self, path: str) -> _Folder[Node] | None:
        """Return the folder at a plain path, with those above it read before; None where there is none."""
        above, missing = path, list[str]()
        while (folder := self._folders.get(above)) is None and above:
            above, _, name = above.rpartition("/")
            missing.append(name)
        if folder is None:
            folder = self._load("", self._root)
        while missing:
            name = missing.pop()
            node = folder.nodes.get(name)
            if node is None or not self._entry(node).is_folder:
                return None
            above = f"{above}/{name}"
            folder = self._load(above, node)
        return folder

    def _load(self, path: str, node: Node) -> _Folder[Node]:
        if len(path) > MAX_PATH:
            raise self._damaged("its folders are too deep")
        first = self._paths.setdefault(self._identity(node), path)
        if first != path:
            raise self._damaged(f"the folder {path} is {first or '/'}, too")
        children = self._children(node)
        nodes = {self._fold(name): child for name, child in children.items()} if self._fold else children
        self._names += len(nodes)
        self._characters += len(path) * (len(nodes) + 1) + sum(map(len, nodes))
        if len(nodes) < len(children):
            raise self._damaged(f"the folder {path or '/'} has two files of the same name")
        if self._names > MAX_NAMES or self._characters > MAX_CHARACTERS:
            raise self._damaged(f"its folders have more than {MAX_NAMES} names, or too long ones")
        return self._folders.setdefault(path, _Folder(nodes, sorted(children)))
