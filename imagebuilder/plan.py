"""Decides: a request and the data become a BuildPlan. Pure: no clock, environment, disk or network.

The plan says which layers there are, which steps each runs, which packages it asks for, where each component may
come from, and what the disk looks like. :mod:`imagebuilder.resolve` turns it into a lock with exact versions; the
ids of the layers follow from both (:func:`layer_ids`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from imagebuilder.compat import Compat, minor_of
from imagebuilder.content import content_id
from imagebuilder.diskplan import DiskPlan, disk_plan
from imagebuilder.errors import UsageError
from imagebuilder.model import BARE_LAYERS, FORMAT_VERSION, LAYERS, ROOT_BUILDERS, BuildRequest, Cell, plain
from imagebuilder.profile_data import Component, Profile, Repository, SourceImage
from imagebuilder.steps import Step, select
from imagebuilder.strict import did_you_mean
from imagebuilder.targets import Target

BELOW = {
    "runtime": "base", "kubernetes": "runtime", "initramfs": "base", "guest": "kubernetes", "site": "guest",
    "tools": "base",
}  # fmt: skip
# Made on the base alone, and laid over the others: with another kubelet it is the same, and other targets' runtime too.
ON_BASE = frozenset({"initramfs"})
BARE = ("cloud-init", "sudo")  # as in a cloud image: whoever goes on with it logs in as an ordinary user
NOT_FAST = "--root-builder is for the direct engine, and knows {}"
NOT_BARE = "--bare is for the direct engine, and takes no container images"
FILE_SOURCE = "file"  # --source kubernetes=file:<dir>: taken from a folder, whatever the profile lists


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """What an engine can make.

    Attributes:
        formats: those that it writes; ``none`` where the artifact is an image in a cloud.
        begins_with: ``bootstrap``, packages of the profile's archive, or ``image``, a source image of the profile.
    """

    name: str
    families: frozenset[str]
    architectures: frozenset[str]
    formats: frozenset[str]
    begins_with: Literal["bootstrap", "image"]


# Only engines that exist are here: a cell is offered when one of them can make it.
ENGINES = {
    "direct": Engine(
        name="direct",
        families=frozenset({"debian"}),
        architectures=frozenset({"amd64"}),
        formats=frozenset({"raw", "qcow2", "vmdk", "ova", "tar.gz", "vhd", "box"}),
        begins_with="bootstrap",
    ),
    "packer": Engine(
        name="packer",
        families=frozenset({"debian", "redhat"}),
        architectures=frozenset({"amd64", "arm64"}),
        formats=frozenset({"raw", "qcow2", "vmdk", "ova", "tar.gz", "vhd", "box", "none"}),
        begins_with="image",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPlan:
    """One layer: the packages that it asks for by name, and its steps."""

    name: str
    packages: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """Everything that is decided before anything is asked or done.

    Attributes:
        id: the build identifier, for instance ``debian-13-amd64-qemu-k1.35``.
        kubernetes: the version that was asked for: a minor, or an exact version.
        sources: per component the kinds of source that are tried, in order.
        containerd: the version that the image has (at least), from the data.
        settings: environment variables of the steps that the data decides.
    """

    id: str
    cell: Cell
    engine: str
    engine_reason: str
    profile: Profile
    target: Target
    kubernetes: str
    kubernetes_minor: str
    known_patch: str
    containerd: str
    pause_image: str
    sources: Mapping[str, tuple[str, ...]]
    layers: tuple[LayerPlan, ...]
    disk: DiskPlan
    settings: Mapping[str, str]
    request: BuildRequest

    def layer(self, name: str) -> LayerPlan:
        """Return one layer by name; an empty one where the image goes without it."""
        found = (layer for layer in self.layers if layer.name == name)
        return next(found, LayerPlan(name=name, packages=(), steps=()))

    def component(self, name: str) -> Component:
        """Return a component of the profile."""
        return self.profile.components[name]

    def repository(self, name: str) -> Repository | None:
        """Return a repository of the profile, or None."""
        return self.profile.repositories.get(name)

    @property
    def source_image(self) -> SourceImage | None:
        """Return what Packer starts from, or None."""
        return self.profile.source_images.of(self.target.source_kind)

    def as_data(self) -> dict[str, Any]:
        """Return the plan as plain data, for ``plan --json``; paths of this machine are left out."""
        return {
            "id": self.id,
            "cell": plain(self.cell),
            "engine": {"name": self.engine, "reason": self.engine_reason},
            "kubernetes": {"asked": self.kubernetes, "minor": self.kubernetes_minor, "known_patch": self.known_patch},
            "containerd": self.containerd,
            "pause_image": self.pause_image,
            "sources": {name: list(kinds) for name, kinds in self.sources.items()},
            "layers": [
                {"name": layer.name, "packages": list(layer.packages), "steps": [step.key for step in layer.steps]}
                for layer in self.layers
            ],
            "disk": plain(self.disk),
            "source_image": plain(self.source_image) if self.engine == "packer" else None,
            "settings": dict(self.settings),
        }


def plan(
    request: BuildRequest, *, profile: Profile, target: Target, compat: Compat, steps: Sequence[Step]
) -> BuildPlan:
    """Decide what a bake does.

    Raises:
        UsageError: an engine, component or source that does not exist, or a cell that no engine can make.
        IncompatibleError: this kubelet cannot run on the image's containerd; the hint names the nearest good pair.
    """
    cell = Cell(os=profile.name, release=profile.release, arch=profile.arch, target=target.name)
    engine, reason = choose_engine(request.engine, profile, target)
    if request.bare and (engine != "direct" or request.images):
        raise UsageError(NOT_BARE, hint="imagebuilder bake --bare --os debian --target qemu")
    _check_root_builder(request, engine)
    if request.bare:
        request = replace(request, packages=(*request.packages, *BARE))
    sources = choose_sources(profile, request.sources)
    docker = sources["docker"][0]
    containerd = profile.containerd_version(docker)
    kubernetes = request.kubernetes or compat.newest_minor_for(containerd)
    known = compat.minor(kubernetes)
    compat.check(kubernetes, containerd)
    minor = minor_of(kubernetes)
    disk = disk_plan(request, profile, target, engine)
    return BuildPlan(
        id=f"{cell}-bare" if request.bare else f"{cell}-k{minor}",
        cell=cell, engine=engine, engine_reason=reason, profile=profile, target=target,
        kubernetes=kubernetes, kubernetes_minor=minor, known_patch=known.patch, containerd=containerd,
        pause_image=known.pause, sources={} if request.bare else sources,
        layers=_layers(request, profile, target, steps, docker, _facts(request, profile, target, engine, disk)),
        disk=disk, settings=_settings(profile, target, known.pause, minor), request=request,
    )  # fmt: skip


def _check_root_builder(request: BuildRequest, engine: str) -> None:
    builder = request.root_builder
    if builder not in ROOT_BUILDERS or (engine != "direct" and builder != ROOT_BUILDERS[0]):
        raise UsageError(NOT_FAST.format(" and ".join(ROOT_BUILDERS)), hint=f"--root-builder {ROOT_BUILDERS[0]}")


def choose_engine(asked: str, profile: Profile, target: Target, *, nearest: Cell | None = None) -> tuple[str, str]:
    """Return the engine and why.

    Args:
        asked: the engine's name, or ``auto`` for the first of the target's that can.
        profile: of the cell.
        target: of the cell.
        nearest: a cell that can be made, for the hint when this one cannot.

    Raises:
        UsageError: there is no such engine, or none can make this cell; the reasons are in the context.
    """
    reasons = why_none(asked, profile, target)
    for name, reason in reasons.items():
        if not reason:
            why = "asked for" if asked != "auto" else f"the first of {target.name}'s engines that can make this cell"
            return name, why
    cell = f"{profile.title} {profile.release} {profile.arch} for {target.title}"
    hint = "imagebuilder list cells"
    if nearest:
        where = f"--os {nearest.os}-{nearest.release} --arch {nearest.arch} --target {nearest.target}"
        hint = f"the nearest that can be made: {where}; all: {hint}"
    raise UsageError(
        f"no engine can make {cell}",
        context="\n".join(f"{name}: {reason}" for name, reason in reasons.items()),
        hint=hint,
    )


def why_none(asked: str, profile: Profile, target: Target) -> dict[str, str]:
    """Return, per engine that may be taken, why it cannot make a cell: an empty string when it can.

    Raises:
        UsageError: there is no such engine.
    """
    if asked not in ("auto", *ENGINES):
        raise UsageError(f'there is no engine "{asked}"{did_you_mean(asked, ENGINES)}', hint="--engine auto")
    names = [name for name in target.engines if name in ENGINES] if asked == "auto" else [asked]
    return {name: why_not(ENGINES[name], profile, target) for name in names}


def why_not(engine: Engine, profile: Profile, target: Target) -> str:
    """Return why an engine cannot make a cell, or an empty string when it can."""
    if profile.arch not in target.architectures:
        return f"{target.title} has no {profile.arch} machines ({', '.join(target.architectures)})"
    if engine.name not in target.engines:
        return f"the target {target.name} is not made by the {engine.name} engine"
    facts = (
        (profile.family, engine.families, "does not know the family"),
        (profile.arch, engine.architectures, "cannot run programs of the architecture"),
        (target.format, engine.formats, "does not write the format"),
    )
    reasons = [
        f"the {engine.name} engine {text} {value} yet ({', '.join(sorted(known))})"
        for value, known, text in facts
        if value not in known
    ]
    if engine.begins_with == "image" and profile.source_images.of(target.source_kind) is None:
        kind = target.source_kind
        reasons.append(profile.missing_images.get(kind, f"{profile.title} states no source image of the kind {kind}"))
    if engine.begins_with == "bootstrap" and profile.bootstrap is None and profile.family in engine.families:
        reasons.append(f"{profile.title} does not say yet how the {engine.name} engine begins ([bootstrap])")
    return "; ".join(reasons)


def choose_sources(profile: Profile, forced: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the kinds of source to try per component; a forced kind stands alone.

    Raises:
        UsageError: a component or a kind that the profile does not have.
    """
    chosen = {name: tuple(component.sources) for name, component in profile.components.items()}
    for name, source in forced.items():
        if name not in chosen:
            raise UsageError(f'there is no component "{name}"{did_you_mean(name, chosen)}', hint="--source NAME=KIND")
        kind = source.partition(":")[0]
        allowed = (*chosen[name], FILE_SOURCE) if profile.components[name].programs else chosen[name]
        if kind not in allowed:
            raise UsageError(
                f'{name} has no source "{kind}"{did_you_mean(kind, allowed)}',
                hint=f"--source {name}={'|'.join(allowed)}",
            )
        if kind == FILE_SOURCE and not source.partition(":")[2]:
            raise UsageError(f"--source {name}=file: names no folder", hint=f"--source {name}=file:DIR")
        chosen[name] = (source,)
    return chosen


def _layers(
    request: BuildRequest, profile: Profile, target: Target, steps: Sequence[Step], docker: str, facts: Sequence[str]
) -> tuple[LayerPlan, ...]:
    packages = {
        "base": (*profile.packages.base, profile.kernel[target.kernel]),
        "runtime": tuple(profile.runtime_packages(docker)),
        "kubernetes": (),  # only when the sources taken are packages: resolve adds them
        # Not the site's, which changes often: cloud-init and its libraries take longer than all of that. And not below
        # Kubernetes: targets share that.
        "guest": target.packages(profile.name, profile.family),
        "site": request.packages,
    }
    chosen = select(steps, profile.family, target.name, facts)
    layers = (
        LayerPlan(
            name=name,
            packages=packages.get(name, ()),
            steps=tuple(step for step in chosen if step.layer == name and profile.init in step.inits),
        )
        for name in (BARE_LAYERS if request.bare else LAYERS)
    )
    return tuple(layer for layer in layers if layer.steps)


def _facts(request: BuildRequest, profile: Profile, target: Target, engine: str, disk: DiskPlan) -> list[str]:
    """Return what is true of a cell, of what the ``when:`` of a step may ask for."""
    cloud_init = target.cloud_init or request.bare
    known = {
        "cloud_init": cloud_init,
        "guest_packages": bool(target.packages(profile.name, profile.family)),
        "no_cloud_init": not cloud_init,
        f"{disk.initramfs}_initramfs": True,
        "repositories": engine == "packer",  # the direct engine has a repository of its own, of what is locked
        "subscription": profile.subscription,
        "vagrant": bool(target.box_provider),
        "vm_build": engine == "packer",
    }
    return [name for name, true in known.items() if true]


def _settings(profile: Profile, target: Target, pause: str, minor: str) -> dict[str, str]:
    modules = target.initramfs_modules
    return {
        "IB_ARCH": profile.arch,
        "IB_FAMILY": profile.family,
        # Without the target: images for several of them share the layer that says it.
        "IB_IMAGE_ID": f"{profile.name}-{profile.release}-{profile.arch}-k{minor}",
        "IB_INIT": profile.init,
        "IB_HOLD_PACKAGES": " ".join(profile.hold),
        "IB_INITRAMFS_MODULES": modules if isinstance(modules, str) else " ".join(modules),
        "IB_KUBELET_DEFAULTS": profile.paths.kubelet_defaults,
        "IB_MASKED_GENERATORS": " ".join(profile.masked_generators),
        "IB_MASKED_SERVICES": " ".join((*profile.masked_services, *target.masked_services)),
        "IB_PAUSE_IMAGE": pause,
        "IB_UNWANTED_PACKAGES": " ".join(profile.packages.unwanted),
    }


def layer_ids(plan: BuildPlan, inputs: Mapping[str, Mapping[str, Any]], provision: Mapping[str, str]) -> dict[str, str]:
    """Return the content id of every layer, each over its parent's.

    Args:
        plan: what was decided.
        inputs: per layer what was resolved: packages with hashes, payloads, images, files of the site.
        provision: sha256 of every file below ``provision/``, by its path there.
    """
    ids: dict[str, str] = {}
    top = ""  # stands for all layers so far
    for layer in plan.layers:
        names = {name for step in layer.steps for name in step.inputs}
        own = ids[layer.name] = content_id(
            {
                "format": FORMAT_VERSION,
                "name": layer.name,
                "parent": ids["base"] if layer.name in ON_BASE else top,
                "settings": {key: value for key, value in sorted(plan.settings.items()) if key in names},
                "files": {path: provision[path] for path in used_files(layer, plan.profile, provision)},
                "inputs": plain(inputs[layer.name]),
            }
        )
        top = content_id([top, own]) if layer.name in ON_BASE else own
    return ids


def used_files(layer: LayerPlan, profile: Profile, provision: Mapping[str, str]) -> list[str]:
    """Return the files below ``provision/`` that a layer is made from: its steps, the library, and what they use."""
    own = {step.path.relative_to(step.path.parents[2]).as_posix() for step in layer.steps}
    own |= {"lib.sh", "run-steps.sh", f"family/{profile.family}.sh", f"init/{profile.init}.sh"}
    folders = [
        f"family/{profile.family}/",
        *(
            f"services/{use.partition('/')[2]}/{profile.init}/" if use.startswith("services/") else use
            for step in layer.steps
            for use in step.uses
        ),
    ]
    own |= {path for path in provision if any(path == use or path.startswith(f"{use.rstrip('/')}/") for use in folders)}
    return sorted(own)


def cells(profiles: Sequence[Profile], targets: Sequence[Target]) -> Iterator[tuple[Cell, dict[str, str]]]:
    """Yield every cell with, per engine, why it cannot make it (an empty string when it can).

    ``profiles`` has one for each OS, release and architecture.
    """
    for profile in profiles:
        for target in targets:
            cell = Cell(os=profile.name, release=profile.release, arch=profile.arch, target=target.name)
            yield cell, {name: why_not(engine, profile, target) for name, engine in ENGINES.items()}
