"""The layer store: root trees as a stack of content-addressed layers.

``layers/<id>/`` holds ``root/`` (what the layer adds, in overlayfs's own form), ``volumes/<name>/`` (folders that
cannot live in an overlay, whole) and ``layer.json``, written last. A layer enters the store by one rename, so
whatever is there is whole. Half-built ones are in ``tmp/`` and belong to whoever holds the lock of that id.

Its info has a seal (:mod:`imagebuilder.direct.seals`). A layer that is not as its seal says is removed when it is
asked for, and said so: it counts as not there. A store on a read-only file system can be used, not added to. A store
is of the user who made it: root, or an ordinary one in his namespace (:mod:`imagebuilder.userns`), never of both.

A layer is used while it is still on its way to the disk. Until it has arrived, a file in it names the boot of this
machine in which it was made: after a power cut it counts as not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from imagebuilder import process
from imagebuilder.content import (
    boot_id,
    canonical_json,
    fsync_directory,
    mark_used,
    require_writable,
    wait_for_lock,
    writable,
)  # fmt: skip
from imagebuilder.direct.seals import SEAL, damage_of, seal_of
from imagebuilder.errors import CacheError, HostError
from imagebuilder.model import plain

INFO = "layer.json"
BEING_MADE = "another bake makes the same: waiting for it"
UNSYNCED = "unsynced"  # beside it, while the layer is on its way to the disk
Say = Callable[[str], None]  # takes a line for people


def silent(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A finished layer: id, folder, the plain data of its ``layer.json``, and whether more may be put beside that."""

    id: str
    path: Path
    info: Mapping[str, Any]
    writable: bool = True

    @property
    def root(self) -> Path:
        """Return the folder with what the layer adds to its parents."""
        return self.path / "root"

    @property
    def volumes(self) -> Path:
        """Return the folder of volumes."""
        return self.path / "volumes"


class LayerStore:
    """Layers in a cache folder. All methods are safe against other processes that use the same folder.

    Used in a ``with`` block: at its end all layers are on the disk, and others may remove them again.

    Args:
        cache: the cache folder; made when it is not there.
        start: starts a program in the background, as :func:`process.spawn` does.
        read_only: take layers from it, and make and remove none, whoever may.
    """

    def __init__(
        self, cache: Path, start: Callable[..., process.Child] = process.spawn, *, read_only: bool = False
    ) -> None:
        self._start = start
        self._made: list[str] = []  # not begun to be brought to the disk
        self._syncing: dict[str, process.Child] = {}
        self._used: list[int] = []  # open lock files
        weakref.finalize(self, _close, self._used)
        self.unpacked = cache / "debs/unpacked"  # of the packages beside it; see direct.debcache
        self.layers, self.staging, self.locks = (cache / name for name in ("layers", "tmp", "locks"))
        self.writable = not read_only and writable(cache)
        try:
            for folder in (self.layers, self.staging, self.locks) if not read_only else ():
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"the cache folder {cache} cannot be used: {error.strerror}"
            raise CacheError(message, hint="choose another one with --cache-dir") from error
        # Their owners are numbers, which mean others to another user, in another user namespace. To him all would be
        # damaged, and he could read no mark of overlayfs. So they are not shared, not even read-only.
        if self.layers.is_dir() and self.layers.stat().st_uid != os.geteuid():
            message = f"the layers in the cache folder {cache} are another user's"
            raise CacheError(message, hint="choose another one with --cache-dir")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.settle()
        finally:
            for child in self._syncing.values():
                process.stop(child)
            _close(self._used)

    def sync(self) -> None:
        """Begin to bring the layers that were made to the disk.

        Not before there are no more to make: what waits for its own files in the next one would wait for these too.
        """
        if self._made:
            command = ["sync", "-f", str(self.layers)]
            child = self._start(command, stdout=process.NOWHERE, stderr=process.NOWHERE)
            self._syncing |= dict.fromkeys(self._made, child)
            self._made.clear()

    def settle(self) -> None:
        """Wait until every layer that was made is on the disk.

        Raises:
            HostError: one did not get there; it is no layer any more.
        """
        self.sync()
        for layer_id, child in list(self._syncing.items()):
            path = self.layers / layer_id
            if child.wait() != 0:
                (path / INFO).unlink(missing_ok=True)
                raise HostError(f"layer {layer_id} cannot be written to the disk", hint="dmesg | tail")
            del self._syncing[layer_id]
            (path / UNSYNCED).unlink(missing_ok=True)
            fsync_directory(path)
            fsync_directory(self.layers)

    def use(self, layer_id: str, say: Say = silent) -> Layer | None:
        """Return a finished layer that is as its seal says, or None; a damaged one is removed.

        Until the store's block ends, no other process removes it.

        Args:
            layer_id: which.
            say: is told when another bake has to be waited for, and when a damaged layer was removed.

        Raises:
            CacheError: it is damaged, and cannot be removed now.
        """
        lock = self._share(layer_id, say)
        try:
            layer = self.get(layer_id)
            damage = damage_of(layer.path, layer.info) if layer else ""
        except CacheError as error:
            layer, damage = None, error.message
        if layer is None or damage:
            _close(lock)
            if damage:
                self._drop(layer_id, damage, say)
            return None
        self._used += lock
        # Else its maker was stopped, or is still at it.
        if self.writable and (layer.path / UNSYNCED).exists() and layer_id not in self._syncing:
            self._made.append(layer_id)
        return layer

    def _share(self, layer_id: str, say: Say) -> list[int]:
        """Return the descriptor that keeps others from removing a layer; none where nobody can remove one."""
        try:
            flags = os.O_RDWR | os.O_CREAT if self.writable else os.O_RDONLY
            lock = os.open(self.locks / layer_id, flags, 0o644)
        except FileNotFoundError:
            return []
        wait_for_lock(lock, fcntl.LOCK_SH, lambda: say(BEING_MADE))
        return [lock]

    def _drop(self, layer_id: str, damage: str, say: Say) -> None:
        path = self.layers / layer_id
        message = f"layer {layer_id[:12]} in the cache is damaged ({damage})"
        if not self.writable:
            raise CacheError(f"{message}, and the cache is read-only", hint="choose another one with --cache-dir")
        if not self.remove(Layer(id=layer_id, path=path, info={})):
            raise CacheError(f"{message}, and another bake uses it", hint="run the command again when that has ended")
        say(f"{message}: it was removed, and is made again")

    def get(self, layer_id: str) -> Layer | None:
        """Return a finished layer, marked as used now, or None."""
        path = self.layers / layer_id
        try:
            info = json.loads((path / INFO).read_bytes())
            if not isinstance(info, dict):
                raise ValueError("not an object")
            if _lost(path):
                return None
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CacheError(f"{path / INFO} is not a JSON object", hint=f"rm -r {path}") from error
        mark_used(path / INFO)
        return Layer(id=layer_id, path=path, info=info, writable=self.writable)

    @contextlib.contextmanager
    def building(self, layer_id: str, say: Say = silent) -> Iterator[Path | None]:
        """Hand out an empty folder to fill, or None when another process finished the layer meanwhile.

        The folder's content becomes the layer through :meth:`commit`; otherwise it is removed at the end.

        Raises:
            CacheError: the cache is read-only.
        """
        require_writable(self.layers.parent, f"take the layer {layer_id[:12]}")
        with self.lock(layer_id, say=say):
            if self.get(layer_id) is not None:
                yield None
                return
            folder = self.staging / layer_id
            remove_tree(folder)
            with removed_afterwards(folder):
                for name in ("root", "volumes"):
                    (folder / name).mkdir(parents=True)
                yield folder

    def commit(self, folder: Path, info: Mapping[str, Any]) -> Layer:
        """Turn a filled folder into the layer that it is named after: all else out, info last, rename.

        Raises:
            CacheError: its info has a seal, and that is of another content.
        """
        for path in folder.iterdir():
            if path.name not in ("root", "volumes"):
                remove_tree(path) if path.is_dir() else path.unlink()
        info = {SEAL: (seal := plain(seal_of(folder))), **info}
        if info[SEAL] != seal:
            raise CacheError(f"layer {folder.name[:12]} is not as its seal says")
        (folder / INFO).write_bytes(canonical_json(info))  # on the disk with the rest
        (folder / UNSYNCED).write_text(boot_id())
        target = self.layers / folder.name
        remove_tree(target)  # one without an info file, or lost in a power cut, or broken by hand
        folder.rename(target)
        self._made.append(folder.name)
        return Layer(id=folder.name, path=target, info=info)

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = True, say: Say = silent) -> Iterator[bool]:
        """Hold the lock of a name; the kernel drops it when this process dies. Yields False when not waiting."""
        with (self.locks / name).open("w") as stream:
            if wait:
                wait_for_lock(stream.fileno(), fcntl.LOCK_EX, lambda: say(BEING_MADE))
            else:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield False
                    return
            yield True

    @contextlib.contextmanager
    def scratch(self, name: str, say: Say = silent) -> Iterator[Path]:
        """Hand out an empty folder, and remove it at the end: on the cache's file system, where that is writable."""
        if not self.writable:
            with tempfile.TemporaryDirectory(prefix="imagebuilder-") as elsewhere:
                yield Path(elsewhere)
            return
        with self.lock(name, say=say):
            folder = self.staging / name
            remove_tree(folder)
            with removed_afterwards(folder):
                folder.mkdir()
                yield folder

    def sweep(self) -> None:
        """Remove what killed builds left behind."""
        if not self.writable:
            return
        for folder in self.staging.iterdir():
            with self.lock(folder.name, wait=False) as held:
                if held:
                    remove_tree(folder)

    def __iter__(self) -> Iterator[Layer]:
        """Yield all finished layers, the longest unused first."""
        for _, layer_id in sorted((_last_use(path), path.parent.name) for path in self.layers.glob(f"*/{INFO}")):
            if layer := self.get_quietly(layer_id):
                yield layer

    def get_quietly(self, layer_id: str) -> Layer | None:
        """Return a layer without marking it as used."""
        path = self.layers / layer_id
        try:
            info = json.loads((path / INFO).read_bytes())
        except (OSError, ValueError):
            return None
        return Layer(id=layer_id, path=path, info=info) if isinstance(info, dict) and not _lost(path) else None

    def remove(self, layer: Layer) -> bool:
        """Remove a layer, unless a bake uses it; it disappears from the store before its files do.

        Raises:
            CacheError: the cache is read-only.
        """
        require_writable(self.layers.parent, "lose layers")
        with self.lock(layer.id, wait=False) as held:
            if not held:
                return False
            aside = self.staging / layer.id
            remove_tree(aside)
            with contextlib.suppress(FileNotFoundError):
                layer.path.rename(aside)
            remove_tree(aside)
            return True

    def unused_since(self, seconds: float) -> list[Layer]:
        """Return the layers that no bake has used for ``seconds``."""
        return [layer for layer in self if _last_use(layer.path / INFO) < time.time() - seconds]


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _lost(layer: Path) -> bool:
    """Tell whether this machine was started anew before a layer was on the disk."""
    try:
        return (layer / UNSYNCED).read_text("ascii") != boot_id()
    except FileNotFoundError:
        return False


def _last_use(info: Path) -> float:
    """Return when a layer was used; now, when another process just removed it."""
    try:
        return info.stat().st_mtime
    except FileNotFoundError:
        return time.time()


@contextlib.contextmanager
def removed_afterwards(folder: Path) -> Iterator[None]:
    """Remove a folder of the staging area at the end. What went wrong before is not hidden by what goes wrong here."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(HostError):  # a thread may still write into it: the next bake sweeps
            remove_tree(folder)
        raise
    remove_tree(folder)


def remove_tree(path: Path) -> None:
    """Remove a folder (or file) of ours if it is there. A mount below it would be a bug: nothing crosses file systems.

    Raises:
        HostError: something in it could not be removed.
    """
    try:
        device = path.lstat().st_dev
    except FileNotFoundError:
        return
    try:
        if not path.is_dir() or path.is_symlink():
            path.unlink()
            return
        for folder, names, _ in os.walk(path):
            for name in names:
                below = Path(folder, name)
                if below.lstat().st_dev != device:
                    raise HostError(f"{below} is another file system; it is left alone", hint=f"umount {below}")
        shutil.rmtree(path)
    except OSError as error:
        raise HostError(f"{path} cannot be removed: {error.strerror}", hint=f"rm -r {path}") from error


def disk_usage(path: Path) -> int:
    """Return the bytes that a folder, or one file, takes on disk; hard links are counted once."""
    seen: set[tuple[int, int]] = set()
    total = 0 if path.is_dir() else path.lstat().st_blocks * 512
    for folder, names, files in os.walk(path):
        for name in [*names, *files]:
            stat = Path(folder, name).lstat()
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                total += stat.st_blocks * 512
    return total
