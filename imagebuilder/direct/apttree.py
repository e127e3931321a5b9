"""apt for hosts that have none: a tree in the cache, unpacked from the archive's own packages, in which apt is asked.

What it says is what a Debian host's apt says: it works on the same apt folder, with the same options. The tree is found
without apt (:mod:`imagebuilder.sources.aptseed`) and is a layer of the store, under the hash of its packages. No
maintainer script has run in it: apt needs none. It sees the apt folders, and nothing else of the cache or the host.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from imagebuilder import process
from imagebuilder.content import aside, content_id, read_checked, write_checked
from imagebuilder.direct.debcache import DebCache, mapped
from imagebuilder.direct.fastroot import folder_inside, open_packages, plan_tree
from imagebuilder.direct.layers import Layer, LayerStore, removed_afterwards
from imagebuilder.direct.rootwriter import write_root
from imagebuilder.direct.sandbox import Bind, Mount, Overlay, Tmpfs, command
from imagebuilder.errors import CacheError
from imagebuilder.events import Progress, Stage
from imagebuilder.model import LockedPackage, plain
from imagebuilder.process import Runner
from imagebuilder.sources import aptseed
from imagebuilder.sources.apt import Archive, folder_key
from imagebuilder.sources.connection import certificates
from imagebuilder.sources.download import Downloader

TREE_VERSION = 1  # part of its id: raise it when the tree's content changes
TREE_SECONDS = 7 * 86400.0  # that a tree is used before the archive is asked for a newer apt
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"  # in the tree
USERS = {"passwd": "passwd.master", "group": "group.master"}  # of base-passwd, whose script would copy them
HIDDEN = ("dev", "proc", "sys")  # what a sandbox has of its own
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")  # environ(7); apt knows them, in lower case only


class AptTrees:
    """apt in trees, one per archive; an :class:`imagebuilder.sources.asker.Asker`.

    Args:
        cache: the cache folder.
        runner: runs what decompresses packages.
        progress: gets a stage for a tree that is made.
        downloader: asks mirrors.
        shown: folders that mirrors are in; apt sees them, too.
    """

    knows_default = False

    def __init__(
        self, cache: Path, runner: Runner, progress: Progress, *, downloader: Downloader | None = None,
        shown: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        # As apt's configuration names it.
        self._cache, self._runner, self._progress, self._shown = cache.resolve(), runner, progress, shown
        self._downloader = downloader or Downloader()
        self._lock, self._trees = threading.Lock(), dict[str, Layer]()
        self._store: LayerStore | None = None  # which keeps others from removing what is in use

    @contextlib.contextmanager
    def asking(
        self, argv: Sequence[str], archive: Archive, *, network: bool, env: Mapping[str, str], cwd: Path | None
    ) -> Iterator[list[str]]:
        """See :class:`imagebuilder.sources.asker.Asker`."""
        tree = self.tree_for(archive)
        with aside(self._cache / "apt/asked") as scratch:
            for name in ("root", "upper", "work"):
                (scratch / name).mkdir()
            mounts = self._mounts(tree, scratch, cwd)
            # Its own folder for temporary files: that ends with it.
            variables = {**_proxies(), **{key: value for key, value in env.items() if key != "TMPDIR"}}
            program, *words = argv
            inside = [
                "/usr/bin/env", "-C", str(cwd.resolve() if cwd else "/"),
                program, "-o", f"Acquire::https::CAInfo={AUTHORITIES}", *words,
            ]  # fmt: skip
            yield command(scratch / "root", mounts, inside, variables, network=network)

    def _mounts(self, tree: Layer, scratch: Path, cwd: Path | None) -> list[Mount]:
        """Return what apt sees: the tree, and of this host its own folders, where they are, and who is trusted."""
        from requests.utils import DEFAULT_CA_BUNDLE_PATH  # 190 ms

        mounts: list[Mount] = [
            Overlay(lower=[tree.root], upper=scratch / "upper", work=scratch / "work"),
            Tmpfs(target="/tmp"),  # noqa: S108 - the tree's: before the folders that may be in there
            *(Bind(source=path, target=str(path)) for path in self._shown if path.is_dir()),
        ]
        own = self._cache / "apt"
        places = [own, *([cwd.resolve()] if cwd and not cwd.resolve().is_relative_to(own) else [])]
        mounts += [Bind(source=path, target=str(path), writable=True) for path in places]
        authorities = Path(DEFAULT_CA_BUNDLE_PATH if (found := certificates()) is True else str(found))
        if authorities.is_file():
            mounts.append(Bind(source=authorities.resolve(), target=AUTHORITIES))
        return mounts

    def tree_for(self, archive: Archive) -> Layer:
        """Return the tree of an archive, made where the cache has none that is young enough.

        Raises:
            CacheError: the cache folder is where apt could not see it.
            ToolMissingError: no mirror of it is named.
            UntrustedError, UnreachableError, UnresolvableError: as :func:`imagebuilder.sources.aptseed.ask`.
            ArtifactError: its packages do not make a tree.
        """
        if self._cache.parts[1] in HIDDEN:
            message = f"a tree with apt, which this host does not have, cannot show it the cache folder {self._cache}"
            raise CacheError(message, hint="choose another one with --cache-dir")
        key = folder_key(archive)
        with self._lock:
            if key not in self._trees:
                self._store = self._store or LayerStore(self._cache)
                with self._progress.stage("apt-tree", "apt, which this host does not have") as stage:
                    self._trees[key] = self._found(archive, self._store, stage)
            return self._trees[key]

    def _found(self, archive: Archive, store: LayerStore, stage: Stage) -> Layer:
        note = self._cache / "apt/trees" / f"{folder_key(archive)}.json"
        date, packages = _noted(note)
        young = packages and 0 <= time.time() - note.stat().st_mtime < TREE_SECONDS
        if young and (tree := store.use(_id(packages), stage.note)):
            stage.cached = True
            return tree
        if seed := aptseed.ask(archive, self._downloader, date):
            date, packages = seed.date, seed.packages
        tree = store.use(_id(packages), stage.note) or self._make(packages, store, stage)
        write_checked(note, {"date": date, "packages": plain(packages)})
        return tree

    def _make(self, packages: Sequence[LockedPackage], store: LayerStore, stage: Stage) -> Layer:
        tree_id, debs = _id(packages), self._cache / "debs"
        with store.building(tree_id, stage.note) as folder:
            if folder is not None:
                aptseed.bring(packages, debs, stage)
                scratch = folder / "scratch"
                scratch.mkdir()
                with removed_afterwards(scratch):
                    fill(folder / "root", packages, debs, DebCache(store.unpacked, scratch, self._runner), stage)
                store.commit(folder, {"name": "apt", "id": tree_id})
        store.settle()
        tree = store.use(tree_id)
        if tree is None:
            raise CacheError(f"layer {tree_id} vanished from the cache", hint="run the command again")
        return tree


def fill(root: Path, packages: Sequence[LockedPackage], debs: Path, cache: DebCache, stage: Stage) -> None:
    """Unpack packages into an empty folder, and give it the users that apt looks up.

    Args:
        root: the folder.
        packages: whose files are in ``debs``, their hashes right.
        debs: the folder.
        cache: for decompressed archives.
        stage: gets the progress.

    Raises:
        ArtifactError: a package is not fit to be unpacked, or two do not go together.
    """
    opened = open_packages(packages, cache, debs, stage)
    write_root(plan_tree(opened), lambda number: mapped(opened[number].data), root)
    for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
        folder_inside(root, name)
    for name, master in USERS.items():
        if (found := root / "usr/share/base-passwd" / master).is_file() and not (root / "etc" / name).exists():
            shutil.copyfile(found, root / "etc" / name)


def _id(packages: Sequence[LockedPackage]) -> str:
    return content_id({"name": "apt", "version": TREE_VERSION, "packages": [package.exact for package in packages]})


def _noted(note: Path) -> tuple[str, tuple[LockedPackage, ...]]:
    """Return the date of the index and the packages of the tree that an archive had before, where that is known."""
    try:
        kept = read_checked(note)
        return str(kept["date"]), tuple(LockedPackage(**package) for package in kept["packages"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ()


def _proxies() -> dict[str, str]:
    env = process.base_environment()
    return {name: value for name in PROXIES if (value := env.get(name) or env.get(name.upper()))}
