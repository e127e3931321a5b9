"""The root tree of an image as a list, merged from layers the way overlayfs merges them.

Reference: the kernel's Documentation/filesystems/overlayfs.rst ("doc" below). A name in a layer hides the same
name below it; two directories merge, and the upper one's mode, owner and times count. A whiteout (a character
device 0/0) hides without being there; an opaque directory does not merge with what is below.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from imagebuilder.errors import ArtifactError

# Doc "whiteouts and opaque directories" and "User xattr": who mounts without root marks with user.overlay.
PREFIXES = ("trusted.overlay.", "user.overlay.")
REFUSED = ("redirect", "metacopy", "whiteout")  # features that our mounts do not turn on


class Entry(NamedTuple):
    """A name in the tree.

    Attributes:
        path: below the root, without a slash before it; the root is empty.
        parent: place in the list of the directory that it is in; the root is its own.
        mode: with the bits of the kind, as in ``st_mode``.
        size: bytes of a file.
        rdev: of a device node.
        target: of a symbolic link.
        xattrs: extended attributes, sorted by name; what overlayfs keeps for itself is not there.
        link: place in the list of the first name of the same file; its own where there is none before.
        host: where its content is read.
        layer: which layer it is from: the topmost is 0, volumes are below it.
    """

    path: bytes
    parent: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    rdev: int
    target: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    link: int
    host: bytes
    layer: int = 0


class _Found(NamedTuple):
    """A name in one layer."""

    layer: int  # the topmost is 0; what is below zero is a volume and taken as it is
    host: bytes
    stat: os.stat_result


def merge(layers: Sequence[Path], volumes: Mapping[str, Path] | None = None) -> list[Entry]:
    """Return the merged tree: the root, then every directory followed by what is in it, by name.

    Args:
        layers: folders in overlayfs's form, the topmost first.
        volumes: folders that are put whole at an absolute path, whatever the layers have there. Nothing in
            them is a whiteout: they may hold overlays of their own.

    Raises:
        ArtifactError: a layer uses a feature of overlayfs that is not known here, or a volume has no place.
    """
    return _Merger(volumes or {}).merge(layers)


class _Merger:
    """Walks all layers at once."""

    def __init__(self, volumes: Mapping[str, Path]) -> None:
        self._entries: list[Entry] = []
        self._links: dict[tuple[int, int, int], int] = {}
        self._volumes: dict[bytes, dict[bytes, _Found]] = {}  # by directory, then name
        for number, (path, folder) in enumerate(sorted(volumes.items()), start=1):
            above, _, name = os.fsencode(path).strip(b"/").rpartition(b"/")
            host = os.fsencode(folder)
            self._volumes.setdefault(above, {})[name] = _Found(-number, host, os.lstat(host))

    def merge(self, layers: Sequence[Path]) -> list[Entry]:
        hosts = [os.fsencode(layer) for layer in layers]
        top = [_Found(number, host, os.lstat(host)) for number, host in enumerate(hosts)]
        todo: list[tuple[bytes, int, list[_Found]]] = [(b"", 0, top)]
        while todo:
            path, parent, found = todo.pop()
            place = len(self._entries)
            if not stat.S_ISDIR(found[0].stat.st_mode):
                self._add(path, parent, found[0], _xattrs(found[0]))
                continue
            attributes, folders = _merged(found)
            self._add(path, parent, found[0], attributes)
            children = self._children(path, folders)
            prefix = path + b"/" if path else b""
            todo.extend((prefix + name, place, children[name]) for name in sorted(children, reverse=True))
        if self._volumes:
            names = ", ".join(sorted(os.fsdecode(b"/" + path) for path in self._volumes))
            raise ArtifactError(f"the root tree has no folder {names}, where a volume belongs")
        return self._entries

    def _add(self, path: bytes, parent: int, found: _Found, xattrs: tuple[tuple[str, bytes], ...]) -> None:
        status, place = found.stat, len(self._entries)
        mode, link, target = status.st_mode, place, b""
        if status.st_nlink > 1 and not stat.S_ISDIR(mode):
            link = self._links.setdefault((found.layer, status.st_dev, status.st_ino), place)
        if stat.S_ISLNK(mode):
            target = os.readlink(found.host)  # noqa: PTH115 - bytes: names need not be UTF-8
        self._entries.append(
            Entry(path, parent, mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_size,
                  status.st_rdev, target, xattrs, link, found.host, found.layer)
        )  # fmt: skip

    def _children(self, path: bytes, folders: Sequence[_Found]) -> dict[bytes, list[_Found]]:
        """Return what is in a directory: for each name where it was found, more than one only for directories."""
        volumes = self._volumes.pop(path, {})
        children = {name: [found] for name, found in volumes.items()}
        hidden = set(volumes)  # names of which no lower layer is asked
        for folder in folders:
            with os.scandir(folder.host) as items:
                for item in items:
                    name = item.name
                    if name not in hidden:
                        found = _Found(folder.layer, item.path, item.stat(follow_symlinks=False))
                        if _take(found, children.get(name, ())):
                            children.setdefault(name, []).append(found)
                        if not stat.S_ISDIR(found.stat.st_mode):
                            hidden.add(name)
        return children


def _take(found: _Found, above: Sequence[_Found]) -> bool:
    """Tell whether a name is seen in the merged tree, given the directories of that name above it."""
    mode = found.stat.st_mode
    if stat.S_ISDIR(mode):
        return True
    whiteout = found.layer >= 0 and stat.S_ISCHR(mode) and found.stat.st_rdev == 0
    return not above and not whiteout


def _merged(found: Sequence[_Found]) -> tuple[tuple[tuple[str, bytes], ...], list[_Found]]:
    """Return the attributes of a directory and where its content is: down to the first that is opaque."""
    folders: list[_Found] = []
    attributes: tuple[tuple[str, bytes], ...] = ()
    for folder in found:
        own = _raw_xattrs(folder)
        seen = _visible(own, folder)
        attributes = attributes if folders else seen
        folders.append(folder)
        if folder.layer >= 0 and _opaque(own, folder):
            break
    return attributes, folders


def _raw_xattrs(found: _Found) -> list[tuple[str, bytes]]:
    try:
        names = os.listxattr(found.host, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:  # a file system without them
            return []
        raise
    return [(name, os.getxattr(found.host, name, follow_symlinks=False)) for name in sorted(names)] if names else []


def _xattrs(found: _Found) -> tuple[tuple[str, bytes], ...]:
    own = _raw_xattrs(found)
    return _visible(own, found) if own else ()


def _visible(own: Sequence[tuple[str, bytes]], found: _Found) -> tuple[tuple[str, bytes], ...]:
    """Leave out what overlayfs hides, and refuse what would change the merge; a volume's own overlays keep their marks.

    Raises:
        ArtifactError: the layer was mounted with a feature that is not known here.
    """
    if found.layer < 0:
        return tuple(sorted((_as_root_has_it(name), value) for name, value in own))
    for name, _ in own:
        if name.startswith(PREFIXES) and name.rpartition(".")[2] in REFUSED:
            what = f"{os.fsdecode(found.host)} has the attribute {name}"
            raise ArtifactError(f"{what}, which the layers of this project do not use", hint="build the layer again")
    return tuple(item for item in own if not item[0].startswith(PREFIXES))


def _as_root_has_it(name: str) -> str:
    """Return the name of an attribute as the image's root would have set it, who mounts what is in a volume."""
    trusted, user = PREFIXES
    return trusted + name.removeprefix(user) if name.startswith(user) else name


def _opaque(own: Sequence[tuple[str, bytes]], found: _Found) -> bool:
    for name, value in own:
        if name.startswith(PREFIXES) and name.endswith(".opaque"):
            if value != b"y":
                what = f"{os.fsdecode(found.host)} is opaque in a way that is not known: {value!r}"
                raise ArtifactError(what, hint="build the layer again")
            return True
    return False
