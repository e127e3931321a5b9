"""The recipe of a bake: plan -> lock -> materials -> layers -> disk -> artifact -> manifest."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from imagebuilder import __version__, process, resources
from imagebuilder.artifacts import containerd_version, packing, write_artifact
from imagebuilder.content import (
    ASIDE,
    at_most,
    canonical_json,
    content_id,
    sha256_bytes,
    sha256_file,
    sweep_asides,
    write_atomic,
)  # fmt: skip
from imagebuilder.direct.disk import VERSION, DiskSpec, begin, write_disk
from imagebuilder.direct.elsewhere import Elsewhere, Sharing, places
from imagebuilder.direct.fulldisk import full_disk_named
from imagebuilder.direct.jobs import installed_packages, layer_jobs
from imagebuilder.direct.layerjob import LayerJob
from imagebuilder.direct.layers import Layer, LayerStore, remove_tree
from imagebuilder.direct.sandbox import require_tools
from imagebuilder.errors import CacheError, ImagebuilderError, UsageError
from imagebuilder.events import Progress
from imagebuilder.fetch import Fetcher
from imagebuilder.model import FORMAT_VERSION, plain
from imagebuilder.plan import BuildPlan
from imagebuilder.process import Runner
from imagebuilder.resolve import Lock, Resolver
from imagebuilder.sources.asker import Asker, HostApt
from imagebuilder.userns import require_privileges

ASIDES_IN = ("*/", "apt/*/", "apt/*/*/")  # of the cache: where a killed bake may leave what was on the way
NEW = ".new"  # name of the artifact beside its place, until it is whole
OURS = (".stamp", "SHA256SUMS", "manifest.json")
LOGS_KEPT = 20  # bakes whose logs stay in the cache
UMASK = 0o022  # of all that is made for an image; the caller's own must not show in it


@dataclass(frozen=True, kw_only=True, slots=True)
class BakeOptions:
    """How to bake, apart from what.

    Attributes:
        output: the folder that gets ``<build identifier>/``.
        cache: the cache folder.
        refresh: ask the mirrors again.
        offline: take everything from the cache.
        locked: a lock file: take exactly what it names.
        jobs: how many cores compress and hash at most; None is all.
        sharing: with whom layers are shared.
        var_files: values of Packer's variables, credentials among them; only their paths are handed on.
    """

    output: Path
    cache: Path
    refresh: bool = False
    offline: bool = False
    locked: Path | None = None
    jobs: int | None = None
    sharing: Sharing = field(default_factory=Sharing)
    var_files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BakeResult:
    """A finished bake: its folder, the artifact in it, the manifest, and whether it was there already.

    ``artifact`` is None when it is an image in a cloud: the manifest has its identifier.
    """

    folder: Path
    artifact: Path | None
    manifest: dict[str, Any]
    unchanged: bool


def bake(plan: BuildPlan, *, options: BakeOptions, runner: Runner, progress: Progress) -> BakeResult:
    """Bake an image with the plan's engine; what follows is the direct one.

    Returns:
        The artifact's folder: the disk, ``manifest.json`` and ``SHA256SUMS``.

    Raises:
        PrivilegeError: not root, and not in a user namespace either (:mod:`imagebuilder.userns`).
        ImagebuilderError: any other class of :mod:`imagebuilder.errors`; nothing half-written is left.
    """
    with at_most(options.jobs):
        return _choose(plan, options, runner, progress)


def _choose(plan: BuildPlan, options: BakeOptions, runner: Runner, progress: Progress) -> BakeResult:
    if plan.engine == "packer":
        require_unlocked(options)
        from imagebuilder.bake_packer import bake_packer  # and Jinja2 with it, which the direct engine does not need

        return bake_packer(plan, options=options, runner=runner, progress=progress)
    require_privileges("baking with the direct engine")
    require_tools()
    cache, folder = options.cache.absolute(), options.output.absolute() / plan.id
    with (
        fixed_umask(), full_disk_named(cache), LayerStore(cache) as store, _still_there(cache),
        places(options.sharing, offline=options.offline) as elsewhere,
    ):  # fmt: skip
        sweep(store, cache)
        logs = cache if store.writable else options.output.absolute()
        try:
            return _bake(plan, options, store, elsewhere, folder, runner, progress, new_log(logs / "logs", plan.id))
        except KeyboardInterrupt:  # it may come just when something was made, before it is known what removes it
            with contextlib.suppress(OSError, ImagebuilderError):
                sweep(store, cache)
            raise


def sweep(store: LayerStore, cache: Path) -> None:
    """Remove what bakes that are no more have left in the cache folder."""
    store.sweep()
    for place in ("", *ASIDES_IN):
        sweep_asides(cache, place)


@contextlib.contextmanager
def fixed_umask() -> Iterator[None]:
    """Let the umask be the same for whoever bakes, while the block runs."""
    before = os.umask(UMASK)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def _still_there(cache: Path) -> Iterator[None]:
    """Say so when whatever failed did because somebody removed the cache folder meanwhile."""
    try:
        yield
    except (OSError, ImagebuilderError) as error:
        if (cache / "locks").is_dir():
            raise
        message = f"the cache folder {cache} was removed while it was used"
        raise CacheError(message, context=str(error), hint="run the command again: it makes a new one") from error


def require_unlocked(options: BakeOptions) -> None:
    """Refuse a lock file for the packer engine, whose machine installs what its sources have when it runs.

    Raises:
        UsageError: one was given.
    """
    if options.locked is not None:
        raise UsageError("--locked is for the direct engine", hint="imagebuilder list cells")


def _bake(
    plan: BuildPlan, options: BakeOptions, store: LayerStore, elsewhere: Sequence[Elsewhere], folder: Path,
    runner: Runner, progress: Progress, log: Path,
) -> BakeResult:  # fmt: skip
    # 1. what exactly
    cache = options.cache.absolute()
    asker = asker_for(plan, cache=cache, runner=runner, progress=progress)
    resolver = Resolver(
        cache=cache, runner=runner, progress=progress, log=log, asker=asker, refresh=options.refresh,
        offline=options.offline,
    )  # fmt: skip
    lock = resolver.resolve(plan) if options.locked is None else _locked(options.locked, plan, resolver)
    fetcher = Fetcher(
        cache=cache, runner=runner, progress=progress, log=log, asker=asker, offline=options.offline
    )  # fmt: skip
    if options.locked is not None and not options.offline:
        fetcher.all_packages(plan, lock)
    materials = fetcher.materials(plan, lock)
    jobs = layer_jobs(plan, lock, materials, resources.folder("provision"))
    spec = disk_spec(plan, lock, jobs)
    packed = packing(plan, kubernetes=lock.kubernetes, containerd=containerd_version(plan, lock), seed=spec.seed)
    tools_used = [package.exact for package in lock.packages["tools"]]
    stack = [job.id for job in jobs]
    artifact_id = content_id([FORMAT_VERSION, VERSION, plain(spec), plain(packed), stack, tools_used])
    if found := unchanged(folder, artifact_id):
        return found

    # 2. the root tree
    from imagebuilder.direct.engine import DirectEngine  # which an unchanged artifact does not have to wait for

    engine = DirectEngine(
        store=store, runner=runner, progress=progress, provision=resources.folder("provision"),
        suite=plan.profile.suite, arch=plan.cell.arch, log=log, elsewhere=elsewhere,
        make_repository=partial(fetcher.repository, plan=plan, lock=lock),
    )  # fmt: skip
    artifact = folder / f"{plan.id}.{plan.disk.extension}"
    with (
        store.scratch(f"disk-{artifact_id}", progress.note) as work, begin(spec, work, runner, log) as early,
    ):  # fmt: skip
        with ThreadPoolExecutor(1, thread_name_prefix="read") as beside:
            missing = {job.name for job in jobs if store.get_quietly(job.id) is None}
            damaged = beside.submit(fetcher.damaged, materials, missing)  # of what the layers above are made from
            (base,) = engine.build(jobs[:1])
            fetcher.mend(damaged.result(), plan, lock)
        layers, tools = engine.build_upper(jobs[1:], base, lock.packages["tools"], early.start)
        store.sync()
        # 3. the disk and the artifact
        with new_file(folder) as new:
            with progress.stage("disk", "Disk: partitions, boot loaders, root file system"):
                disk = write_disk(early, layers)
            with progress.stage("pack", f"Artifact: {plan.disk.format}") as stage, full_disk_named(folder):
                write_artifact(disk, new, packed, lambda done, all_: stage.update(done, all_, "B"))
            with progress.stage("manifest", "Manifest and checksums"), full_disk_named(folder):
                store.settle()
                result = publish(folder, artifact, artifact_id, manifest_data(plan, lock, layers, progress))
    # 4. what others can use
    if options.sharing.push:
        give([*layers, *tools[1:]], elsewhere, store, progress)
    return result


def asker_for(plan: BuildPlan, *, cache: Path, runner: Runner, progress: Progress) -> Asker:
    """Return this host's apt, or where it has none that of a tree in the cache: which is made once it is asked."""
    if process.find("apt-get"):
        return HostApt()
    from imagebuilder.direct.apttree import AptTrees
    from imagebuilder.sources.addresses import local_path

    shown = [path.absolute() for mirror in plan.request.mirrors.values() if (path := local_path(mirror))]
    return AptTrees(cache, runner, progress, shown=shown)


def give(layers: Sequence[Layer], elsewhere: Sequence[Elsewhere], store: LayerStore, progress: Progress) -> None:
    """Push layers to where they are shared; whatever goes wrong there is said, and no more."""
    with progress.stage("push", "Layers for the remote cache") as stage:
        count = sum(place.push(layers, store, stage) for place in elsewhere)
        stage.summary = f"Layers for the remote cache: {count} pushed"


def _locked(path: Path, plan: BuildPlan, resolver: Resolver) -> Lock:
    from imagebuilder.locked import take_locked
    from imagebuilder.lockfile import read_lock  # and its schema, which other bakes do not need

    return take_locked(read_lock(path), plan, resolver, path.name)


def disk_spec(plan: BuildPlan, lock: Lock, jobs: Sequence[LayerJob]) -> DiskSpec:
    """Return the disk: its identifiers follow from the stack of layers that it holds."""
    return DiskSpec(
        size=plan.disk.size, seed=jobs[-1].id, arch=plan.cell.arch, firmware=plan.disk.firmware,
        kernel_arguments=plan.disk.kernel_arguments, vendor=plan.profile.name, epoch=lock.epoch,
        drivers=plan.disk.drivers,
    )  # fmt: skip


@contextlib.contextmanager
def new_file(folder: Path) -> Iterator[Path]:
    """Hand out where the new artifact is written; nothing half-written stays, also none of a bake killed before."""

    def clear() -> None:
        for name in (NEW, *OURS):
            for path in folder.glob(f".{name}.*{ASIDE}"):
                remove_tree(path)
        remove_tree(folder / NEW)

    folder.mkdir(parents=True, exist_ok=True)
    try:
        clear()
        yield folder / NEW
    finally:
        clear()


def unchanged(folder: Path, artifact_id: str) -> BakeResult | None:
    """Return the result of an earlier bake of just this artifact, when it is still as it was written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        stamp = json.loads((folder / ".stamp").read_bytes())
        artifact = folder / manifest["artifact"]["file"]
        if stamp == stamp_of(artifact, artifact_id) and (folder / "SHA256SUMS").is_file():
            return BakeResult(folder=folder, artifact=artifact, manifest=manifest, unchanged=True)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def stamp_of(artifact: Path, artifact_id: str) -> dict[str, Any]:
    """Return what changes when a file is touched, without reading it."""
    stat = artifact.stat()
    return {"id": artifact_id, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}


def publish(folder: Path, artifact: Path, artifact_id: str, manifest: dict[str, Any]) -> BakeResult:
    """Put the new artifact in place, its manifest last: a folder with a manifest is whole."""
    new = folder / NEW
    digest = sha256_file(new)
    (folder / "manifest.json").unlink(missing_ok=True)
    new.replace(artifact)
    manifest["artifact"] |= {
        "id": artifact_id,
        "file": artifact.name,
        "size": artifact.stat().st_size,
        "sha256": digest,
    }
    _write_manifest(folder, manifest, f"{digest}  {artifact.name}\n")
    write_atomic(folder / ".stamp", canonical_json(stamp_of(artifact, artifact_id)))
    return BakeResult(folder=folder, artifact=artifact, manifest=manifest, unchanged=False)


def publish_manifest(folder: Path, artifact_id: str, manifest: dict[str, Any]) -> BakeResult:
    """Publish an image that is in a cloud: a folder with the manifest alone."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest["artifact"] |= {"id": artifact_id}
    _write_manifest(folder, manifest, "")
    return BakeResult(folder=folder, artifact=None, manifest=manifest, unchanged=False)


def _write_manifest(folder: Path, manifest: dict[str, Any], sums: str) -> None:
    text = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
    write_atomic(folder / "SHA256SUMS", f"{sums}{sha256_bytes(text)}  manifest.json\n")
    write_atomic(folder / "manifest.json", text)


def manifest_data(plan: BuildPlan, lock: Lock, layers: Sequence[Layer], progress: Progress) -> dict[str, Any]:
    """Return the manifest without the artifact's own facts."""
    packages = installed_packages(lock)
    return {
        "apiVersion": "imagebuilder/v1",
        "kind": "Image",
        "id": plan.id,
        "tool": {"name": "imagebuilder", "version": __version__},
        "cell": plain(plan.cell),
        "artifact": {"format": plan.disk.format, "virtualSize": plan.disk.size} | _box(plan),
        "capabilities": {
            "kubelet": lock.kubernetes,
            "containerd": containerd_version(plan, lock) if lock.kubernetes else "",
            "runtimes": ["containerd", "docker"] if lock.kubernetes else [],
            "init": plan.profile.init,
            "arch": plan.cell.arch,
            "firmware": list(plan.disk.firmware),
            "pauseImage": lock.pause.reference if lock.pause else "",
        },
        "sources": {name: {"kind": taken.kind, "version": taken.version} for name, taken in lock.taken.items()},
        "notes": list(lock.notes),
        "layers": [{"name": layer.info["name"], "id": layer.id, "steps": layer.info["steps"]} for layer in layers],
        "images": [image.reference for image in (lock.pause, *lock.images) if image],
        "packages": [
            {"name": p.name, "version": p.version, "arch": p.arch, "sha256": p.sha256, "layer": layer}
            for layer, p in packages
        ],
        "epoch": lock.epoch,
        "timings": progress.timings,
    }


def _box(plan: BuildPlan) -> dict[str, str]:
    return {"boxProvider": plan.target.box_provider} if plan.target.box_provider else {}


def new_log(folder: Path, name: str) -> Path:
    """Return the path of a new log file, and drop the oldest ones."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = []
    for path in folder.glob("*.log"):
        with contextlib.suppress(FileNotFoundError):  # dropped by another bake meanwhile
            logs.append((path.stat().st_mtime, path))
    for _, path in sorted(logs)[: max(0, len(logs) + 1 - LOGS_KEPT)]:
        path.unlink(missing_ok=True)
    return folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
