"""Looks at the cache folder and empties it; nothing that is locked, or that is not ours, is touched."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.content import require_writable
from imagebuilder.direct.layers import INFO, Layer, LayerStore, disk_usage, remove_tree
from imagebuilder.direct.seals import SEAL, damage_of
from imagebuilder.errors import CacheError, ImagebuilderError
from imagebuilder.process import Runner
from imagebuilder.sources import payload
from imagebuilder.sources.archive import inspect_archive

OURS = frozenset({"layers", "tmp", "locks"})  # what every cache has: the layer store makes them
AREAS = ("payloads", "images", "debs", "apt", "go", "toolchains", "resolved", "logs")  # can all be made again
SINGLE = {"payloads": payload.INFO, "images": "", "debs": ""}  # in what its last use is seen
WHOLE = ("go", "toolchains")  # the rest is small, or of use to people
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
    def kinds(self) -> dict[str, int]:
        """Return the bytes of each kind of thing, the layers first."""
        return {"layers": sum(layer.size for layer in self.layers), **dict(self.areas)}

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What reading the cache has shown.

    Attributes:
        checked: how many layers, payloads and images were read.
        unsealed: layers that were made before layers had seals: of these nothing is known.
        damaged: what was removed, a line for each.
        kept: what is damaged, but in use; a line for each.
    """

    checked: int
    unsealed: int
    damaged: tuple[str, ...]
    kept: tuple[str, ...]


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

    def shrink(self, keep: int, *, dry_run: bool = False) -> Removed:
        """Remove what has been unused for longest, until the cache takes at most ``keep`` bytes.

        Layers, programs, images and packages go one by one; while a bake runs, only layers, because the others have
        no lock of their own. Where that is not enough, the folders that others are made from go whole.
        """
        require_writable(self.path, "lose anything")
        contents, busy = self.contents(), any(self._locked())
        over, things = contents.size - keep, [] if busy else list(self._things())
        layers = {layer.id: layer for layer in self._store}
        steps = sorted([*((use.used, use.id, use.size) for use in contents.layers), *things])
        chosen: list[Layer] = []
        gone: dict[str, int] = {}
        for _, name, size in steps:
            if over <= 0:
                break
            over -= size
            if name in layers:
                chosen.append(layers[name])
            else:
                kind = name.partition("/")[0]
                gone[kind] = gone.get(kind, 0) + size
                if not dry_run:
                    remove_tree(self.path / name)
        areas = [name for name, _ in contents.areas if name in WHOLE and over > 0 and not busy]
        removed = self._remove(chosen, areas, dry_run=dry_run)
        return Removed(layers=removed.layers, areas=(*gone.items(), *removed.areas), kept=removed.kept)

    def _things(self) -> Iterator[tuple[float, str, int]]:
        """Yield last use, path in the cache and bytes of what is no layer, but can be removed by itself."""
        for kind, info in SINGLE.items():
            for path in (self.path / kind).glob("[!.]*"):
                with contextlib.suppress(FileNotFoundError):
                    yield (path / info).stat().st_mtime, f"{kind}/{path.name}", disk_usage(path)

    def verify(self) -> Verified:
        """Read all layers, programs and images, and remove what is not as it was put there.

        Packages are not read: each is hashed whenever it is used.
        """
        checked, damaged, kept, unsealed = 0, list[str](), list[str](), 0
        for layer in self._store:
            checked, unsealed = checked + 1, unsealed + (SEAL not in layer.info)
            if damage := damage_of(layer.path, layer.info, full=True):
                (damaged if self._store.remove(layer) else kept).append(
                    f"layer {layer.info.get('name', '')} {layer.id[:12]}: {damage}"
                )
        for path, problem in self._damaged_things():
            checked += 1
            if problem:
                remove_tree(path)
                damaged.append(f"{path.relative_to(self.path)}: {problem}")
        return Verified(checked=checked, unsealed=unsealed, damaged=tuple(damaged), kept=tuple(kept))

    def _damaged_things(self) -> Iterator[tuple[Path, str]]:
        """Yield programs and images, with what is wrong with each; an empty string where nothing is."""
        checks = (("payloads", payload.verify), ("images", inspect_archive))
        for kind, check in checks:
            for path in sorted((self.path / kind).glob("[!.]*")):
                try:
                    check(path)
                except FileNotFoundError:  # another process removed it
                    continue
                except ImagebuilderError as error:
                    yield path, error.message
                else:
                    yield path, ""

    def empty(self, *, dry_run: bool = False) -> Removed:
        """Remove everything; while a bake runs, nothing, because what it stands on has no lock of its own."""
        require_writable(self.path, "lose anything")
        layers, areas = list(self._store), [name for name, _ in self.contents().areas]
        if any(self._locked()):
            return Removed(layers=(), areas=(), kept=(*(layer.id for layer in layers), *areas))
        return self._remove(layers, areas, dry_run=dry_run)

    def _remove(self, layers: list[Layer], areas: list[str], *, dry_run: bool) -> Removed:
        require_writable(self.path, "lose anything")
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
