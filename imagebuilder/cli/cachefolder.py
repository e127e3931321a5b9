"""Looks at the cache folder and empties it; nothing that is locked, or that is not ours, is touched."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.direct.layers import INFO, Layer, LayerStore, disk_usage, remove_tree
from imagebuilder.errors import CacheError
from imagebuilder.process import Runner

OURS = frozenset({"layers", "tmp", "locks"})  # what every cache has: the layer store makes them
AREAS = ("payloads", "images", "debs", "apt", "go", "toolchains", "resolved", "logs")  # can all be made again
FILES = frozenset({"accelerator.json"})  # small answers that are remembered


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerUse:
    """A layer, the bytes it takes on disk, and when a bake last used it, in seconds since 1970."""

    id: str
    name: str
    size: int
    used: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What the cache holds: its layers, and the bytes of every other folder."""

    layers: tuple[LayerUse, ...]
    areas: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """Return all bytes."""
        return sum(layer.size for layer in self.layers) + sum(size for _, size in self.areas)


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """What a prune took away, or would: layers, other folders, and what it kept because it is in use."""

    layers: tuple[LayerUse, ...]
    areas: tuple[tuple[str, int], ...]
    kept: tuple[str, ...]

    @property
    def size(self) -> int:
        """Return the bytes that are free now."""
        return sum(layer.size for layer in self.layers) + sum(size for _, size in self.areas)


class CacheFolder:
    """A cache folder that exists and is ours.

    Raises:
        CacheError: the folder holds something that we did not put there.
    """

    def __init__(self, path: Path, runner: Runner) -> None:
        self.path = path
        check_ours(path)
        self._store = LayerStore(path)

    def contents(self) -> Contents:
        """Return what is in it."""
        layers = tuple(sorted(map(use_of, self._store), key=lambda layer: -layer.used))
        sizes = ((name, disk_usage(self.path / name)) for name in (*AREAS, "tmp") if (self.path / name).is_dir())
        return Contents(layers=layers, areas=tuple((name, size) for name, size in sizes if size))

    def prune(self, unused_for: float, *, dry_run: bool = False) -> Removed:
        """Remove the layers that no bake has used for ``unused_for`` seconds."""
        layers = self._store.unused_since(unused_for)
        return self._remove(layers, [], dry_run=dry_run)

    def empty(self, *, dry_run: bool = False) -> Removed:
        """Remove everything; while a bake runs, nothing, because what it stands on has no lock of its own."""
        layers, areas = list(self._store), [name for name, _ in self.contents().areas]
        if any(self._locked()):
            return Removed(layers=(), areas=(), kept=(*(layer.id for layer in layers), *areas))
        return self._remove(layers, areas, dry_run=dry_run)

    def _remove(self, layers: list[Layer], areas: list[str], *, dry_run: bool) -> Removed:
        locked = set(self._locked())
        gone: list[LayerUse] = []
        kept = [layer.id for layer in layers if layer.id in locked]
        for layer in layers:
            if layer.id not in locked:
                use = use_of(layer)
                if dry_run or self._store.remove(layer):
                    gone.append(use)
                else:
                    kept.append(layer.id)
        emptied: list[tuple[str, int]] = []
        for name in areas:
            if _lock_in(self.path / name):
                kept.append(name)
                continue
            emptied.append((name, disk_usage(self.path / name)))
            if not dry_run:
                _make_writable(self.path / name)
                remove_tree(self.path / name)
                (self.path / name).mkdir()
        return Removed(layers=tuple(gone), areas=tuple(emptied), kept=tuple(kept))

    def _locked(self) -> Iterator[str]:
        """Yield the names whose lock some process holds."""
        for path in self._store.locks.iterdir():
            with self._store.lock(path.name, wait=False) as held:
                if not held:
                    yield path.name


def check_ours(path: Path) -> None:
    """Refuse a folder that does not look like a cache of ours.

    Raises:
        CacheError: it is none; the context names what does not belong.
    """
    hint = "name the cache folder with --cache-dir"
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise CacheError(f"there is no cache in {path}: {error.strerror}", hint=hint) from error
    foreign = sorted(names - OURS - FILES - set(AREAS))
    links = sorted(name for name in names if (path / name).is_symlink())
    if foreign or links or not names >= OURS:
        wrong = [*(f"not ours: {name}" for name in foreign), *(f"a link: {name}" for name in links)]
        missing = [f"missing: {name}" for name in sorted(OURS - names)]
        raise CacheError(
            f"{path} does not look like a cache of imagebuilder; nothing in it was touched",
            context="\n".join([*wrong, *missing][:10]), hint=hint,
        )  # fmt: skip


def use_of(layer: Layer) -> LayerUse:
    """Return what a layer takes, and when it was last used."""
    used = (layer.path / INFO).stat().st_mtime
    return LayerUse(id=layer.id, name=str(layer.info.get("name", "")), size=disk_usage(layer.path), used=used)


def age(used: float) -> str:
    """Return how long ago something was used, for people."""
    seconds = max(0.0, time.time() - used)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "just now"


def _lock_in(folder: Path) -> bool:
    """Tell whether a process holds the lock of a folder that is being filled in here."""
    for aside in folder.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(aside, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
    return False


def _make_writable(folder: Path) -> None:
    """Give folders back the mode that their removal needs: Go keeps its modules read-only."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink() and not os.access(path, os.W_OK):
                path.chmod(0o755)
