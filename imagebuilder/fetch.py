"""Brings what a lock names into the cache: programs, container images, packages. Everything is checked on arrival."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from imagebuilder import resources
from imagebuilder.content import aside, content_id, locked, mark_used, require_writable, sha256_file
from imagebuilder.errors import ArtifactError, ImagebuilderError, UnreachableError, UnresolvableError, UntrustedError
from imagebuilder.events import Progress, Stage
from imagebuilder.images import Compose
from imagebuilder.model import LockedPackage, plain
from imagebuilder.plan import FILE_SOURCE, BuildPlan
from imagebuilder.process import Runner
from imagebuilder.repositories import archive_of
from imagebuilder.resolve import LAYER_OF, Lock, LockedImage, Taken, recipe_of
from imagebuilder.sources import apt, gomodules
from imagebuilder.sources.asker import Asker
from imagebuilder.sources.debs import check_package, present
from imagebuilder.sources.download import Downloader

IMAGE_EPOCH = 0  # of composed images: their bytes follow from their content alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """An OCI archive in the cache, and the id of what it holds."""

    id: str
    path: Path
    reference: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Materials:
    """What the layers are made from, apart from packages: payload folders per component, and image archives."""

    payloads: Mapping[str, Path]
    pause: Archive | None
    images: tuple[Archive, ...]


@dataclass(kw_only=True)
class Fetcher:
    """Brings things into ``cache``; with ``offline`` it takes only what is there. ``asker`` is as of a resolver."""

    cache: Path
    runner: Runner
    progress: Progress
    log: Path
    downloader: Downloader = field(default_factory=Downloader)
    asker: Asker | None = None
    offline: bool = False
    _before: frozenset[Path] = frozenset()  # programs and images that others have left in the cache

    def materials(self, plan: BuildPlan, lock: Lock) -> Materials:
        """Return programs and images, fetched, built or composed where the cache does not have them.

        Raises:
            UnreachableError, UntrustedError, UnresolvableError, CommandError: as the sources raise them.
        """
        self._before = frozenset(path for name in ("payloads", "images") for path in (self.cache / name).glob("*"))
        payloads = {}
        for name, taken in lock.taken.items():
            if folder := self._payload(name, taken, plan):
                payloads[name] = folder
        return Materials(
            payloads=payloads,
            pause=self._image(lock.pause, plan, lock) if lock.pause else None,
            images=tuple(self._image(image, plan, lock) for image in lock.images),
        )

    def mend(self, damaged: Sequence[Path], plan: BuildPlan, lock: Lock) -> None:
        """Make anew what is damaged, in the same places.

        Raises:
            UnreachableError, UntrustedError, UnresolvableError, CommandError: as the sources raise them.
        """
        from imagebuilder.sources import payload

        for path in damaged:
            payload.discard(path)
        if damaged:
            self.materials(plan, lock)

    def damaged(self, materials: Materials, layers: Collection[str]) -> list[Path]:
        """Read all that is in the cache of what these layers are made from, and return what is damaged; it is said.

        What came into the cache meanwhile was hashed on its way, and is not read again.

        Raises:
            CacheError: it is damaged, and the cache is read-only.
        """
        from imagebuilder.sources import payload
        from imagebuilder.sources.archive import inspect_archive

        archives = [materials.pause] if materials.pause and "kubernetes" in layers else []
        archives += materials.images if "site" in layers else ()
        checks: list[tuple[Callable[[Path], object], Path]] = [
            *((payload.verify, folder) for name, folder in materials.payloads.items() if LAYER_OF[name] in layers),
            *((inspect_archive, archive.path) for archive in archives),
        ]
        found = []
        for check, path in checks:
            if path not in self._before:
                continue
            try:
                check(path)
            except ImagebuilderError as error:
                require_writable(self.cache, f"lose what is damaged ({error.message})")
                self.progress.note(f"{error.message}: it was removed, and is made again")
                found.append(path)
        return found

    def repository(
        self, packages: Sequence[LockedPackage], out: Path, stage: Stage, *, plan: BuildPlan, lock: Lock
    ) -> Path:
        """Make an apt repository of these packages in ``out``; one that is damaged in the cache is fetched again.

        Raises:
            UnreachableError, UntrustedError: as the archive's mirror gives cause.
        """
        from imagebuilder.sources.debs import make_repository  # which an unchanged artifact does not have to wait for

        try:
            make_repository(packages, self.packages(packages, plan, lock, stage), plan.profile.suite, out, self.runner)
        except UntrustedError as error:  # which removed it
            stage.note(f"{error.message}: it is fetched again")
            shutil.rmtree(out, ignore_errors=True)
            make_repository(packages, self.packages(packages, plan, lock, stage), plan.profile.suite, out, self.runner)
        return out

    def packages(self, packages: Sequence[LockedPackage], plan: BuildPlan, lock: Lock, stage: Stage) -> Path:
        """Return the folder that holds these packages' files, fetched where missing.

        Raises:
            UnreachableError, UntrustedError: as the archive's mirror gives cause.
        """
        store = self.cache / "debs"
        if self.offline and (missing := [p.filename for p in packages if not (store / p.filename).is_file()]):
            raise UnreachableError(
                f"--offline: {len(missing)} packages are not in the cache",
                context="\n".join(missing[:10]), hint="run it once without --offline",
            )  # fmt: skip
        folder = apt.AptFolder(self.cache / "apt" / lock.apt_folder, archive_of(plan), self.runner, self.asker)
        if all(present(store / package.filename, package.size) for package in packages):
            return store
        require_writable(self.cache, "take packages")
        waiting = partial(stage.note, "another bake fetches packages: waiting for it")
        with locked(self.cache / "locks" / "debs", waiting):
            folder.fetch(packages, store, stage, self.log)
        return store

    def all_packages(self, plan: BuildPlan, lock: Lock) -> None:
        """Bring every package of a lock into the cache, before anything is built from one.

        Raises:
            UnreachableError, UntrustedError, UnresolvableError: one of them is not to be had.
        """
        with self.progress.stage("packages", "Packages that are locked") as stage:
            self.packages([package for packages in lock.packages.values() for package in packages], plan, lock, stage)

    def _payload(self, name: str, taken: Taken, plan: BuildPlan) -> Path | None:
        component, arch = plan.component(name), plan.cell.arch
        if taken.kind.startswith(f"{FILE_SOURCE}:"):
            from imagebuilder.sources import local  # as all of these: only what is asked for is waited for

            return local.load(taken.kind, component.programs, arch=arch, cache_dir=self.cache)
        if taken.files:
            from imagebuilder.sources.binaries import Binaries

            base = plan.request.mirrors.get("binaries", "")
            place = Binaries(self.downloader, **({"base": base} if base else {}))
            return place.fetch(taken.files, self.cache, arch=arch, progress=self.progress)
        if taken.module:
            components = resources.folder("components")
            module = gomodules.load_module(components, taken.module)
            return gomodules.build(
                module, components_dir=components, cache_dir=self.cache, runner=self.runner,
                progress=self.progress, arch=arch, downloader=self.downloader,
            )  # fmt: skip
        return None

    def _image(self, image: LockedImage, plan: BuildPlan, lock: Lock) -> Archive:
        if image.kind == "file":
            from imagebuilder.sources.archive import inspect_archive

            info = inspect_archive(Path(image.source))
            return Archive(
                id=sha256_file(Path(image.source)), path=Path(image.source), reference=", ".join(info.references)
            )
        data = recipe_of(image, plan) if image.kind == "compose" else None
        packages = packages_of(image, lock)
        path = archive_path(self.cache, image, plan, lock)
        with self.progress.stage(f"image:{image.reference}", f"Image {image.reference}") as stage:
            stage.cached = path.is_file()
            if stage.cached:
                mark_used(path)
            else:
                require_writable(self.cache, f"take the image {image.reference}")
            if not stage.cached and data is not None and data.compose is not None:
                self._compose(image, data.compose, packages, plan, lock, path, stage)
            elif not stage.cached:
                from imagebuilder.sources.registry import Registry

                Registry(self.downloader, mirrors=plan.request.mirrors).pull(
                    image.source, plan.cell.arch, path, on_progress=lambda done, all_: stage.update(done, all_, "B")
                )
        return Archive(id=path.stem, path=path, reference=image.reference)

    def _compose(
        self, image: LockedImage, recipe: Compose, packages: Sequence[LockedPackage], plan: BuildPlan, lock: Lock,
        out: Path, stage: Stage,
    ) -> None:  # fmt: skip
        from imagebuilder.sources.debfile import extract
        from imagebuilder.sources.oci import ComposeSpec, compose

        store = self.packages(packages, plan, lock, stage)
        spec = ComposeSpec(
            reference=image.reference, entrypoint=recipe.entrypoint, cmd=recipe.cmd, user=recipe.user,
            arch=plan.cell.arch,
        )  # fmt: skip
        with aside(out) as scratch:
            tree = scratch / "tree"
            paths = [store / package.filename for package in packages]
            for path, package in zip(paths, packages, strict=True):
                check_package(path, package)
            try:
                extract(paths, tree, scratch / "data.tar", self.runner)
            except ArtifactError:  # what we will not read, dpkg may
                shutil.rmtree(tree, ignore_errors=True)
                for path in paths:
                    self.runner.run(["dpkg-deb", "--extract", path, tree], log=self.log)
            files = [(item.target, _inside(tree, item.source), int(item.mode, 8)) for item in recipe.files]
            for number, text in enumerate(recipe.texts):
                path = scratch / str(number)
                path.write_text(text.text)
                files.append((text.target, path, int(text.mode, 8)))
            compose(spec, files, out, epoch=IMAGE_EPOCH)


def packages_of(image: LockedImage, lock: Lock) -> list[LockedPackage]:
    """Return the packages that the files of a composed image come from; none for other kinds."""
    return [package for package in lock.packages["images"] if package.name in image.packages]


def archive_path(cache: Path, image: LockedImage, plan: BuildPlan, lock: Lock) -> Path:
    """Return where the cache has the archive of an image that is pulled or composed; its name is its content id.

    Raises:
        DataError: the image's file does not follow its schema.
    """
    recipe = plain(recipe_of(image, plan)) if image.kind == "compose" else image.source
    archive_id = content_id([image.reference, recipe, [package.exact for package in packages_of(image, lock)]])
    return cache / "images" / f"{archive_id}.tar"


def _inside(tree: Path, wanted: str) -> Path:
    """Return a file of an unpacked package, below /usr too; links that lead out of the tree are refused."""
    for name in (wanted, f"/usr{wanted}"):  # packages moved from /bin to /usr/bin between releases
        path = (tree / name.lstrip("/")).resolve()
        if path.is_relative_to(tree.resolve()) and path.is_file():
            return path
    raise UnresolvableError(
        f"the packages of this image have no file {wanted}", hint="check compose.files of the image's TOML file"
    )
