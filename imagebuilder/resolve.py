"""Asks: a BuildPlan becomes a Lock, with exact versions and hashes of everything that comes from outside.

What was found is kept for a few hours under the plan's content, so that a second bake asks nobody. Nothing but
indexes is fetched here; :mod:`imagebuilder.fetch` brings the files.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from imagebuilder import resources
from imagebuilder.compat import load_compat, minor_of, parse_version
from imagebuilder.content import canonical_json, content_id, locked, read_checked, require_writable, write_checked
from imagebuilder.errors import ImagebuilderError, UnreachableError, UnresolvableError, UsageError
from imagebuilder.events import Progress, Stage
from imagebuilder.images import ImageData, load_image
from imagebuilder.model import FORMAT_VERSION, LAYERS, LockedFile, LockedPackage, ModuleBuild, plain
from imagebuilder.plan import BELOW, FILE_SOURCE, BuildPlan
from imagebuilder.process import Runner
from imagebuilder.recipe_env import REPOSITORY_OF
from imagebuilder.repositories import Repositories
from imagebuilder.sources import apt, gomodules
from imagebuilder.sources.asker import Asker
from imagebuilder.sources.download import Downloader
from imagebuilder.sources.references import parse as parse_reference

MAX_AGE = 6 * 3600.0  # seconds that an answer is good for: Debian's archive is updated four times a day
LAYER_OF = {"docker": "runtime", "cni": "runtime", "kubernetes": "kubernetes", "crictl": "kubernetes"}
PAUSE_RECIPE = "images/pause.toml"  # below components/


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """The source that a component comes from.

    Attributes:
        kind: the kind of source, or ``file:<dir>``.
        version: where it is known before fetching.
        packages: names of packages, when they come as such.
        module: folder below ``components/``, when built from modules.
        files: when they are release binaries.
    """

    kind: str
    version: str = ""
    packages: tuple[str, ...] = ()
    module: str = ""
    files: tuple[LockedFile, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedImage:
    """A container image: pulled by digest, composed, or an archive of the user's.

    Attributes:
        reference: the name by which pods use it.
        source: for ``registry`` the reference with its digest; for ``compose`` and ``file`` the file, which for
            an image of ours is relative to ``components/``.
        packages: for ``compose``: names of the packages that its files come from.
    """

    reference: str
    kind: str
    source: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """What was found.

    Attributes:
        epoch: date of the newest package index, in seconds since 1970: the time of all that is built.
        packages: exact packages per layer, and for ``tools`` and ``images``.
        apt_sources: the image's own sources.list.
        apt_folder: name of the apt folder that has all of the packages.
        notes: for people: which sources were given up, and why.
    """

    epoch: int
    taken: Mapping[str, Taken]
    packages: Mapping[str, tuple[LockedPackage, ...]]
    pause: LockedImage | None
    images: tuple[LockedImage, ...]
    apt_sources: str
    apt_folder: str
    notes: tuple[str, ...] = field(default=())

    @property
    def kubernetes(self) -> str:
        """Return the exact Kubernetes version; empty for a bare image."""
        return self.taken["kubernetes"].version if "kubernetes" in self.taken else ""


@dataclass(kw_only=True)
class Resolver:
    """Everything that asking needs.

    Attributes:
        cache: the cache folder.
        log: file for the output of programs.
        asker: runs apt's programs; None is this host's own.
        refresh: ask again, whatever was found before.
        offline: take only what was found before, however old.
    """

    cache: Path
    runner: Runner
    progress: Progress
    log: Path
    downloader: Downloader = field(default_factory=Downloader)
    asker: Asker | None = None
    refresh: bool = False
    offline: bool = False

    def resolve(self, plan: BuildPlan) -> Lock:
        """Return the lock of a plan.

        Raises:
            UnreachableError: no source of a component answered; the context has a line for each.
            UnresolvableError, UntrustedError: a source answered, but not with what is needed.
        """
        images = [image_data(text, plan) for text in plan.request.images]
        path = self.cache / "resolved" / f"{_question(plan, images)}.json"
        with self.progress.stage("resolve", "Asking for versions") as stage:
            if lock := self._remembered(path, stage):
                return lock
            if self.offline:
                raise UnreachableError(
                    "--offline: nothing is known yet about this plan",
                    hint="run it once without --offline",
                )
            require_writable(self.cache, "take an answer about versions, and has none that is younger than 6 h")
            waiting = partial(stage.note, "another bake asks for versions: waiting for it")
            with locked(self.cache / "locks" / "resolve", waiting):
                lock = _Asking(self, plan, stage).lock(images)
            write_checked(path, plain(lock))
            return lock

    def _remembered(self, path: Path, stage: Stage) -> Lock | None:
        from pydantic import TypeAdapter

        if self.refresh or not path.is_file():
            return None
        age = time.time() - path.stat().st_mtime
        if not self.offline and not 0 <= age < MAX_AGE:
            return None
        try:
            lock = TypeAdapter(Lock).validate_json(canonical_json(read_checked(path)))
        except ValueError:
            return None  # damaged, or of another version of this program
        if any(taken.module and wrapper_module(taken.module).version != taken.version for taken in lock.taken.values()):
            return None  # the wrapper modules are newer than this answer
        stage.cached = True
        stage.summary = f"Versions as found {age / 60:.0f} min ago (--refresh asks again)"
        return lock


def _question(plan: BuildPlan, images: Sequence[ImageRequest]) -> str:
    """Return the content id of all that an answer depends on, apart from what the sources have."""
    request = plan.request
    folders = [
        Path(kind.partition(":")[2], program)
        for name, kinds in plan.sources.items()
        for kind in kinds
        if kind.startswith(f"{FILE_SOURCE}:")
        for program in plan.component(name).programs
    ]
    stats = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in folders if path.is_file()]
    return content_id(
        [
            FORMAT_VERSION, plan.as_data(), plain(plan.profile), dict(request.mirrors), dict(request.keys),
            [plain(image) for image in (pause_request(plan), *images) if image], stats,
        ]
    )  # fmt: skip


def wrapper_module(name: str) -> ModuleBuild:
    """Return a wrapper Go module of ours, as it is now.

    Raises:
        DataError: there is none of that name, or it is not of its schema.
    """
    return gomodules.load_module(resources.folder("components"), name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """One ``--image``: data of an image TOML file, or the path of an archive, or a reference."""

    text: str
    data: ImageData | None = None


def image_data(text: str, plan: BuildPlan) -> ImageRequest:
    """Read what one ``--image`` names.

    Raises:
        UsageError: it looks like a file, but is none.
        DataError: its file does not follow the schema.
    """
    path = Path(text)
    if path.suffix in (".toml", ".tar"):
        if not path.is_file():
            raise UsageError(f"--image {text}: there is no such file", hint=f"ls {path.parent}")
        data = load_image(path.absolute(), plan.pause_image) if path.suffix == ".toml" else None
        return ImageRequest(text=str(path.absolute()), data=data)
    parse_reference(text)
    return ImageRequest(text=text)


def pause_request(plan: BuildPlan) -> ImageRequest | None:
    """Return what asks for the pause image; None for a bare image."""
    if plan.request.bare:
        return None
    path = resources.folder("components") / PAUSE_RECIPE
    return ImageRequest(text=PAUSE_RECIPE, data=load_image(path, plan.pause_image))


def recipe_of(image: LockedImage, plan: BuildPlan) -> ImageData:
    """Return the recipe of a composed image; an answer that is remembered outlives a checkout of ours.

    Raises:
        DataError: it does not follow the schema.
    """
    path = resources.folder("components") / image.source  # a path of the user's is absolute, and stays
    return load_image(path, plan.pause_image)


class _Asking:
    """One resolution."""

    def __init__(self, resolver: Resolver, plan: BuildPlan, stage: Stage) -> None:
        self._with, self._plan, self._stage = resolver, plan, stage
        self._notes: list[str] = []
        self._repositories = Repositories(
            plan, cache=resolver.cache, runner=resolver.runner, downloader=resolver.downloader, log=resolver.log,
            asker=resolver.asker,
        )  # fmt: skip

    @property
    def _folder(self) -> apt.AptFolder:
        return self._repositories.folder

    def lock(self, images: Sequence[ImageRequest]) -> Lock:
        if self._with.refresh or self._folder.age() > MAX_AGE:
            self._repositories.update()
        epoch = self._folder.epoch()
        with self._repositories.prepared():
            taken = {name: self._take(name) for name in self._plan.sources}
            pause = self._image(wanted) if (wanted := pause_request(self._plan)) else None
            locked = tuple(self._image(image) for image in images)
        packages = self._packages(taken, [*([pause] if pause else []), *locked])
        found = {package.name: package.version for package in packages["runtime"]}
        if containerd := found.get("containerd", found.get("containerd.io", "")):  # the plan knew the profile's only
            load_compat().check(taken["kubernetes"].version, containerd)
        return Lock(
            epoch=epoch, apt_sources=self._folder.default_sources(), apt_folder=self._folder.path.name, taken=taken,
            packages=packages, pause=pause, images=locked, notes=tuple(self._notes),
        )  # fmt: skip

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._stage.note(text)

    def _take(self, name: str) -> Taken:
        """Return the first source of a component that answers; each one that does not is told in one line."""
        kinds, reasons = self._plan.sources[name], []
        for kind in kinds:
            try:
                taken = self._ask(name, kind)
            except (UnreachableError, UnresolvableError) as error:
                reasons.append((kind, error))
                if len(kinds) > 1:
                    self._note(f"{name}: {kind} given up: {error.message}")
                continue
            self._note(f"{name}: from {kind}{f' {taken.version}' if taken.version else ''}")
            return taken
        context = "\n".join(f"{kind}: {error.message}" for kind, error in reasons)
        kind_of_error = UnresolvableError if isinstance(reasons[-1][1], UnresolvableError) else UnreachableError
        raise kind_of_error(
            f"no source of {name} has it", context=context, hint=reasons[-1][1].hint or f"--source {name}=KIND"
        )

    def _ask(self, name: str, kind: str) -> Taken:
        component = self._plan.component(name)
        if kind.startswith(f"{FILE_SOURCE}:"):
            return self._ask_folder(name, kind)
        if kind == "go-modules":
            module = component.module_for(self._plan.kubernetes_minor)
            build = wrapper_module(module)
            if name == "kubernetes":
                self._wanted(build.version, "the wrapper module builds")
            gomodules.check_reachable(
                build, components_dir=resources.folder("components"), cache_dir=self._with.cache,
                runner=self._with.runner, arch=self._plan.cell.arch, downloader=self._with.downloader,
            )  # fmt: skip
            return Taken(kind=kind, version=build.version, module=module)
        if kind == "binaries":
            return self._ask_binaries(component.programs)
        if repository := REPOSITORY_OF.get(kind):
            self._repositories.add(repository)
        names = component.packages.get(kind, ())
        if name == "docker":
            names = self._plan.profile.runtime_packages(kind)
        if name == "kubernetes" and self._plan.kubernetes.count(".") == 2:
            names = tuple(f"{package}={self._plan.kubernetes}-*" for package in names)
        version = ""
        if kind in REPOSITORY_OF or name == "kubernetes":  # the distribution's own are asked for with all the rest
            found = {package.name: package.version for package in self._folder.find(names)}
            if "kubelet" in found:
                version = ".".join(map(str, parse_version(found["kubelet"])))
                self._wanted(version, f"{kind} has kubelet")
        return Taken(kind=kind, version=version, packages=tuple(names))

    def _ask_folder(self, name: str, kind: str) -> Taken:
        version = ""
        if name == "kubernetes":
            kubelet = Path(kind.partition(":")[2]) / "kubelet"
            if not kubelet.is_file():
                raise UnresolvableError(f"there is no {kubelet}", hint=f"ls {kubelet.parent}")
            said = self._with.runner.run([kubelet.absolute(), "--version"], capture=True).stdout.split()
            version = said[-1].removeprefix("v") if said else ""
            self._wanted(version, f"{kubelet} is")
        return Taken(kind=kind, version=version)

    def _ask_binaries(self, programs: Sequence[str]) -> Taken:
        from imagebuilder.sources.binaries import Binaries  # as below: an answer that is known does not wait for it

        base = self._plan.request.mirrors.get("binaries", "")
        place = Binaries(self._with.downloader, **({"base": base} if base else {}))
        asked = self._plan.kubernetes
        version = asked if asked.count(".") == 2 else place.resolve_version(asked)
        files = place.lock(version, programs, self._plan.cell.arch)
        return Taken(kind="binaries", version=version, files=files)

    def _wanted(self, version: str, what: str) -> None:
        asked = self._plan.kubernetes
        if version != asked and not (asked.count(".") == 1 and minor_of(version) == asked):
            raise UnresolvableError(f"{what} {version}, not {asked}", hint=f"--kubernetes {version}, or another source")

    def _image(self, request: ImageRequest) -> LockedImage:
        data = request.data
        if data is None and request.text.endswith(".tar"):
            return LockedImage(reference=Path(request.text).name, kind="file", source=request.text)
        reference = data.reference if data else request.text
        kinds: tuple[str, ...] = data.sources if data else ("registry",)
        problem: ImagebuilderError | None = None
        for kind in kinds:
            if kind == "compose" and data and data.compose:
                return LockedImage(reference=reference, kind=kind, source=request.text, packages=data.compose.packages)
            try:
                from imagebuilder.sources.registry import Registry

                registry = Registry(self._with.downloader, mirrors=self._plan.request.mirrors)
                found = registry.resolve_reference(reference, self._plan.cell.arch)
                return LockedImage(reference=reference, kind="registry", source=found.reference)
            except (UnreachableError, UnresolvableError) as error:
                problem = error
                self._note(f"image {reference}: registry given up: {error.message}")
        assert problem is not None
        raise problem

    def _packages(
        self, taken: Mapping[str, Taken], images: Sequence[LockedImage]
    ) -> dict[str, tuple[LockedPackage, ...]]:
        plan, profile = self._plan, self._plan.profile
        wanted = {layer.name: list(layer.packages) for layer in plan.layers}
        wanted["runtime"] = []  # the plan has those of docker's first source; taken has those of the one that answered
        for name, source in taken.items():
            wanted[LAYER_OF[name]] += source.packages
        roots: dict[str, tuple[str, ...]] = {"base": ("?essential", "apt", *wanted["base"])}
        for layer in LAYERS[1:]:
            roots[layer] = (*roots[BELOW[layer]], *wanted.get(layer, ()))
        roots["tools"] = (*roots["base"], *profile.packages.tools)
        # A layer that asks for nothing new needs no answer of its own; apt takes two seconds for each.
        different = {layer: names for layer, names in roots.items() if names != roots.get(BELOW.get(layer, ""))}
        composed = sorted({name for image in images for name in image.packages})
        with ThreadPoolExecutor(2) as pool:
            running = {layer: pool.submit(self._folder.solve, names) for layer, names in different.items()}
            found = pool.submit(self._folder.find, composed) if composed else None
            solved = {layer: future.result() for layer, future in running.items()}
        for layer in LAYERS[1:]:
            solved.setdefault(layer, solved[BELOW[layer]])
        packages = apt.by_layer(solved, BELOW)
        packages["images"] = found.result() if found else ()
        return packages


def forget(cache: Path) -> None:
    """Forget all answers; the next bake asks again."""
    shutil.rmtree(cache / "resolved", ignore_errors=True)
