"""From a Lock to a lock file and back: what was found is written down, and later taken again, or refused.

What a lock file names is taken from the cache, or from the same sources as ever, by its hash. What is not to be had
any more is found out before anything is built, all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from imagebuilder import __version__, compressors, resources
from imagebuilder.content import content_id, locked, require_writable, sha256_bytes, sha256_file
from imagebuilder.errors import (
    DataError,
    ImagebuilderError,
    UnreachableError,
    UnresolvableError,
    UntrustedError,
    UsageError,
)
from imagebuilder.events import Stage
from imagebuilder.fetch import archive_path
from imagebuilder.lockfile import (
    FORMAT,
    MIRROR,
    Compressor,
    Image,
    LockFile,
    Package,
    Program,
    Source,
    differences,
    kind_of,
    plan_digest,
    wishes_of,
)
from imagebuilder.model import LAYERS, LockedFile, LockedPackage, plain
from imagebuilder.plan import FILE_SOURCE, BuildPlan
from imagebuilder.recipe_env import REPOSITORY_OF
from imagebuilder.repositories import Repositories
from imagebuilder.resolve import (
    MAX_AGE,
    ImageRequest,
    Lock,
    LockedImage,
    Resolver,
    Taken,
    image_data,
    pause_request,
    recipe_of,
    wrapper_module,
)
from imagebuilder.sources import gomodules
from imagebuilder.sources.apturis import file_name
from imagebuilder.sources.binaries import BASE, Binaries
from imagebuilder.sources.debs import present
from imagebuilder.sources.references import parse as parse_reference
from imagebuilder.sources.registry import Registry
from imagebuilder.userns import require_privileges

PACKAGE_SETS = (*LAYERS, "tools", "images")
AGAIN = "imagebuilder lock, with the same options, writes it anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """A thing that is not as it was locked: what about it, and whether its hash is another."""

    text: str
    hash: bool = False


def make_lock(plan: BuildPlan, resolver: Resolver) -> LockFile:
    """Return the lock file of a plan: asks the sources, unless they were asked in the last hours.

    Raises:
        UsageError: another engine than the direct one makes it.
        PrivilegeError: not root, and not in a user namespace either.
        ImagebuilderError: as :meth:`Resolver.resolve` raises them.
    """
    _require_direct(plan)
    lock = resolver.resolve(plan)
    return LockFile(
        format=FORMAT, tool=__version__, plan=plan_digest(plan), wishes=wishes_of(plan), epoch=lock.epoch,
        sources_list=sha256_bytes(lock.apt_sources.encode()),
        sources={name: _source(name, taken, plan, resolver) for name, taken in lock.taken.items()},
        packages={
            layer: tuple(
                Package(name=p.name, version=p.version, arch=p.arch, sha256=p.sha256, size=p.size) for p in packages
            )
            for layer, packages in lock.packages.items()
        },
        compressors={name: Compressor(**plain(found)) for name, found in _compressors(plan).items()},
        pause=_image(lock.pause, plan) if lock.pause else None,
        images=tuple(_image(image, plan) for image in lock.images),
    )  # fmt: skip


def take_locked(lock: LockFile, plan: BuildPlan, resolver: Resolver, name: str) -> Lock:
    """Return what a lock file names, after it proved to be for this plan and to be had.

    Args:
        lock: the file.
        plan: what is asked for now.
        resolver: where the cache is, and whether anybody may be asked.
        name: of the file, for people.

    Raises:
        UsageError: it is for another plan; the context names each wish that differs.
        UnresolvableError: things are not to be had any more; the context names each.
        UntrustedError: likewise, and one of them has another hash now.
        UnreachableError: nobody answers, or nobody may be asked.
    """
    _require_direct(plan)
    if lines := differences(lock, plan):
        raise UsageError(f"{name} is for something else than what is asked for", context="\n".join(lines), hint=AGAIN)
    with resolver.progress.stage("resolve", f"Versions as locked in {name}") as stage:
        found = _Taking(lock, plan, resolver, stage).take()
        stage.cached = True
        return found


def _require_direct(plan: BuildPlan) -> None:
    if plan.engine != "direct":
        raise UsageError(
            f"the {plan.engine} engine installs what its sources have when it runs: there is nothing to lock",
            hint="a lock file is for the direct engine: imagebuilder list cells",
        )
    require_privileges("asking an archive for exact versions")


def _source(name: str, taken: Taken, plan: BuildPlan, resolver: Resolver) -> Source:
    """Return what is written down about a component's source."""
    programs: Sequence[LockedFile] = taken.files
    if taken.kind.startswith(f"{FILE_SOURCE}:"):
        programs = _programs(Path(taken.kind.partition(":")[2]), plan.component(name).programs)
    module = build = toolchain = ""
    if taken.module:
        module = wrapper_module(taken.module).digest
        build, toolchain = _identity(taken.module, plan, resolver)
    return Source(
        kind=kind_of(taken.kind), version=taken.version, packages=taken.packages, module=module, build=build,
        toolchain=toolchain, programs=tuple(Program(name=p.name, sha256=p.sha256, size=p.size) for p in programs),
    )  # fmt: skip


def _programs(folder: Path, names: Sequence[str]) -> list[LockedFile]:
    """Return the programs of a folder of the user's; those that are missing are left out."""
    paths = [folder / name for name in names if (folder / name).is_file()]
    return [
        LockedFile(name=path.name, path=str(path), sha256=sha256_file(path), size=path.stat().st_size)
        for path in paths
    ]  # fmt: skip


def _identity(module: str, plan: BuildPlan, resolver: Resolver) -> tuple[str, str]:
    return gomodules.identity(
        wrapper_module(module), components_dir=resources.folder("components"), cache_dir=resolver.cache,
        runner=resolver.runner, arch=plan.cell.arch,
    )  # fmt: skip


def _compressors(plan: BuildPlan) -> dict[str, compressors.Compressor]:
    return compressors.used(plan.disk.format, small_initramfs=bool(plan.disk.drivers))


def _image(image: LockedImage, plan: BuildPlan) -> Image:
    """Return what is written down about an image."""
    if image.kind == "registry":
        digest = parse_reference(image.source).digest.removeprefix("sha256:")
    elif image.kind == "compose":
        digest = content_id(plain(recipe_of(image, plan)))
    else:
        digest = sha256_file(Path(image.source))
    return Image.model_validate({"name": image.reference, "kind": image.kind, "digest": digest})


class _Taking:
    """One lock file, taken."""

    def __init__(self, lock: LockFile, plan: BuildPlan, resolver: Resolver, stage: Stage) -> None:
        self._lock, self._plan, self._with, self._stage = lock, plan, resolver, stage
        self._repositories = Repositories(
            plan, cache=resolver.cache, runner=resolver.runner, downloader=resolver.downloader, log=resolver.log,
            asker=resolver.asker,
        )  # fmt: skip

    def take(self) -> Lock:
        plan = self._plan
        taken = {name: self._taken(name) for name in plan.sources}
        pause = pause_request(plan)
        images = [image_data(text, plan) for text in plan.request.images]
        if (self._lock.pause is None) != (pause is None) or len(self._lock.images) != len(images):
            raise DataError("the lock file does not have the images that it says it is for", hint=AGAIN)
        packages = {layer: tuple(map(_package, self._lock.packages.get(layer, ()))) for layer in PACKAGE_SETS}
        lock = Lock(
            epoch=self._lock.epoch, taken=taken, packages=packages, apt_sources="", apt_folder="",
            pause=self._taken_image(self._lock.pause, pause) if self._lock.pause and pause else None,
            images=tuple(map(self._taken_image, self._lock.images, images)), notes=("everything as locked",),
        )  # fmt: skip
        moved = [*self._moved_compressors(), *self._moved_here(lock), *self._moved_there(lock)]
        sources = self._repositories.folder.default_sources()
        if sha256_bytes(sources.encode()) != self._lock.sources_list:
            moved.append(Moved(text="the image's sources.list: the default mirror is another", hash=True))
        _refuse(moved)
        return replace(lock, apt_sources=sources, apt_folder=self._repositories.folder.path.name)

    def _taken(self, name: str) -> Taken:
        """Return where a component comes from; folders, modules and addresses are the plan's, not the file's."""
        source = self._lock.sources.get(name)
        kinds = {kind_of(kind): kind for kind in self._plan.sources[name]}
        if source is None or source.kind not in kinds:
            raise DataError(f"the lock file does not say where {name} comes from", hint=AGAIN)
        kind, arch = kinds[source.kind], self._plan.cell.arch
        asked, version = self._plan.kubernetes, source.version
        if name == "kubernetes" and asked not in (version, version.rpartition(".")[0]):
            raise DataError(f"the lock file has Kubernetes {version or 'of no version'}, not {asked}", hint=AGAIN)
        component = self._plan.component(name)
        module = component.module_for(self._plan.kubernetes_minor) if kind == "go-modules" else ""
        base = f"{BASE}/release/v{source.version}/bin/linux/{arch}"
        files = tuple(
            LockedFile(name=item.name, path=f"{base}/{item.name}", sha256=item.sha256, size=item.size)
            for item in source.programs
            if kind == "binaries"
        )
        if {item.name for item in files} != set(component.programs if kind == "binaries" else ()):
            raise DataError(f"the lock file does not have the programs of {name}", hint=AGAIN)
        return Taken(kind=kind, version=source.version, packages=source.packages, module=module, files=files)

    def _taken_image(self, image: Image, request: ImageRequest) -> LockedImage:
        data, archive = request.data, request.data is None and request.text.endswith(".tar")
        reference = data.reference if data else request.text
        composed = data.compose if data else None
        if (image.kind == "file") != archive or (image.kind == "compose" and composed is None):
            raise DataError(f"the lock file says that {image.name} is made in another way than it is", hint=AGAIN)
        if image.kind != "registry":
            name = Path(request.text).name if archive else reference
            packages = composed.packages if composed else ()
            return LockedImage(reference=name, kind=image.kind, source=request.text, packages=packages)
        source = replace(parse_reference(reference), digest=f"sha256:{image.digest}")
        return LockedImage(reference=reference, kind="registry", source=str(source))

    def _moved_compressors(self) -> Iterator[Moved]:
        """Yield the compressors of this machine that write other bytes."""
        for name, found in _compressors(self._plan).items():
            kept = self._lock.compressors.get(name)
            if kept and kept.sample != found.sample:
                yield Moved(text=f"{name}: locked with {kept.version}; {found.version} is here, and writes other bytes")

    def _moved_here(self, lock: Lock) -> Iterator[Moved]:
        """Yield what is another on this machine: Go modules, the toolchain, files of the user's."""
        for name, taken in lock.taken.items():
            source = self._lock.sources[name]
            if taken.module and wrapper_module(taken.module).digest != source.module:
                yield Moved(text=f"{name}: its Go modules are not those of this version of imagebuilder", hash=True)
            elif taken.module:
                build, toolchain = _identity(taken.module, self._plan, self._with)
                if build != source.build:
                    yield Moved(text=f"{name}: locked as built by {source.toolchain or 'no Go'}, here is {toolchain}")
            if kind_of(taken.kind) == FILE_SOURCE:
                folder = Path(taken.kind.partition(":")[2])
                now = {item.name: item.sha256 for item in _programs(folder, self._plan.component(name).programs)}
                was = {item.name: item.sha256 for item in source.programs}
                for program in sorted(now.keys() | was.keys()):
                    if now.get(program) != was.get(program):
                        yield Moved(text=f"{name}: {folder / program} is not the file that was locked", hash=True)
        pairs = [*zip(lock.images, self._lock.images, strict=True)]
        if lock.pause and self._lock.pause:
            pairs.append((lock.pause, self._lock.pause))
        for image, kept in pairs:
            if image.kind != "registry" and _image(image, self._plan).digest != kept.digest:
                yield Moved(text=f"image {image.reference}: {image.source} is not the file that was locked", hash=True)

    def _moved_there(self, lock: Lock) -> Iterator[Moved]:
        """Yield what sources do not have any more; nobody is asked for what is in the cache."""
        store = self._with.cache / "debs"
        missing = [
            package
            for packages in lock.packages.values()
            for package in packages
            if not present(store / package.filename, package.size)
        ]
        if self._with.offline:
            self._require_known()
            return
        if missing or not self._known():
            require_writable(self._with.cache, "take packages of the lock file")
            waiting = partial(self._stage.note, "another bake asks for versions: waiting for it")
            with locked(self._with.cache / "locks" / "resolve", waiting):
                yield from self._moved_packages(lock, missing)
        yield from self._moved_binaries(lock)
        yield from self._moved_images(lock)

    def _known(self) -> bool:
        return self._lock.wishes.archive == MIRROR or self._repositories.folder.path.is_dir()

    def _require_known(self) -> None:
        if not self._known():
            raise UnreachableError("--offline: this archive was never asked", hint="run it once without --offline")

    def _moved_packages(self, lock: Lock, missing: Sequence[LockedPackage]) -> list[Moved]:
        fresh = self._repositories.folder.age() > MAX_AGE
        if fresh:
            self._repositories.update()
        moved = self._not_in_index(lock, missing)
        if moved and not fresh:  # the index may be older than the lock
            self._repositories.update()
            moved = self._not_in_index(lock, missing)
        return moved

    def _not_in_index(self, lock: Lock, missing: Sequence[LockedPackage]) -> list[Moved]:
        for taken in lock.taken.values():
            if repository := REPOSITORY_OF.get(taken.kind):
                self._repositories.add(repository)
        if not missing:
            return []
        known = self._repositories.folder.known(package.name for package in missing)
        return [found for package in missing if (found := _moved_package(package, known))]

    def _moved_binaries(self, lock: Lock) -> Iterator[Moved]:
        base = self._plan.request.mirrors.get("binaries", "")
        place = Binaries(self._with.downloader, **({"base": base} if base else {}))
        for name, taken in lock.taken.items():
            if not taken.files or place.cached(taken.files, self._with.cache, arch=self._plan.cell.arch):
                continue
            try:
                stated = place.lock(taken.version, [item.name for item in taken.files], self._plan.cell.arch)
            except UnresolvableError as error:
                yield Moved(text=f"{name} {taken.version}: {error.message}")
                continue
            for was, now in zip(taken.files, stated, strict=True):
                if was.sha256 != now.sha256:
                    yield Moved(text=f"{name}: {was.name} {taken.version} has another sha256 now", hash=True)

    def _moved_images(self, lock: Lock) -> Iterator[Moved]:
        registry = Registry(self._with.downloader, mirrors=self._plan.request.mirrors)
        for image in (lock.pause, *lock.images):
            if image is None or image.kind != "registry":
                continue
            if archive_path(self._with.cache, image, self._plan, lock).is_file():
                continue
            try:
                registry.resolve_reference(image.source, self._plan.cell.arch)
            except (UnresolvableError, UntrustedError) as error:
                yield Moved(text=f"image {image.source}: {error.message}", hash=isinstance(error, UntrustedError))


def _package(package: Package) -> LockedPackage:
    return LockedPackage(
        name=package.name, version=package.version, arch=package.arch, sha256=package.sha256, size=package.size,
        filename=file_name(package.name, package.version, package.arch), uri="",
    )  # fmt: skip


def _moved_package(package: LockedPackage, known: Mapping[tuple[str, str, str], set[str]]) -> Moved | None:
    hashes = known.get((package.name, package.version, package.arch))
    if hashes is None:
        others = [version for name, version, _ in known if name == package.name]
        return Moved(text=f"{package.name} {package.version}: the archive has {', '.join(others) or 'none'}")
    if package.sha256 not in hashes:
        return Moved(text=f"{package.name} {package.version}: has another sha256 now", hash=True)
    return None


def _refuse(moved: Sequence[Moved]) -> None:
    """Raise the one error for all that moved."""
    if not moved:
        return
    kind: type[ImagebuilderError] = UntrustedError if any(item.hash for item in moved) else UnresolvableError
    count = "1 thing is" if len(moved) == 1 else f"{len(moved)} things are"
    raise kind(
        f"{count} not as locked; nothing was built", context="\n".join(item.text for item in moved),
        hint=f"{AGAIN}; a mirror that keeps old versions still has them: --mirror NAME=URL",
    )  # fmt: skip
