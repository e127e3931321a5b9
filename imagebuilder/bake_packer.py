"""The recipe of a bake with Packer: plan -> supplies -> folder -> packer -> artifact -> manifest."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagebuilder import __version__
from imagebuilder.artifacts import BOX, packing, write_artifact
from imagebuilder.bake import BakeOptions, BakeResult, new_file, new_log, publish, publish_manifest
from imagebuilder.content import content_id
from imagebuilder.direct.layers import LayerStore
from imagebuilder.direct.virtual import RawFile
from imagebuilder.errors import ArtifactError, UnreachableError, UntrustedError, UsageError
from imagebuilder.events import Progress
from imagebuilder.fetch import Fetcher
from imagebuilder.model import plain
from imagebuilder.packer.checks import check_folder
from imagebuilder.packer.engine import Built, PackerEngine, read_manifest
from imagebuilder.packer.folder import digest, write_folder
from imagebuilder.packer.render import PACKERS, Supplies, hcl_of, render_folder
from imagebuilder.packer.syntax import read
from imagebuilder.plan import FILE_SOURCE, BuildPlan
from imagebuilder.process import Runner, require
from imagebuilder.resolve import Resolver
from imagebuilder.sources.download import Downloader
from imagebuilder.verify.disks import open_image
from imagebuilder.verify.inventory import installed_packages
from imagebuilder.vm.accel import accelerator

SUMS_SIZE = 4 << 20  # bytes of a list of checksums: the longest seen has a few hundred KiB
_SOURCE_VALUE = re.compile(r'(?:^|[\s{,])"?(source_\w+)"?\s*[=:]\s*"([^"\n]*)"')  # of HCL and of JSON
_SUM = re.compile(r"\b([0-9a-f]{128}|[0-9a-f]{64})\b", re.I)


def bake_packer(plan: BuildPlan, *, options: BakeOptions, runner: Runner, progress: Progress) -> BakeResult:
    """Bake an image with Packer.

    Returns:
        The artifact's folder: the disk, where there is one, ``manifest.json`` and ``SHA256SUMS``.

    Raises:
        ImagebuilderError: any class of :mod:`imagebuilder.errors`; nothing half-written is left.
    """
    cache, folder = options.cache.absolute(), options.output.absolute() / plan.id
    store, log = LayerStore(cache), new_log(cache / "logs", plan.id)
    store.sweep()
    engine = PackerEngine(runner=runner, progress=progress, log=log, downloads=cache / "packer")
    engine.version()  # before anything is asked or fetched
    # 1. what the machine is given
    plan, supplies = _supplies(plan, options, runner, progress, log)
    # 2. the folder
    with progress.stage("template", "Folder for Packer"):
        files = render_folder(plan, supplies)
        for packer in PACKERS:
            check_folder(hcl_of(files, packer))
    check_private(options.var_files, hcl_of(files)["variables.pkr.hcl"])
    with store.scratch(f"packer-{content_id(plan.id)[:16]}") as scratch:
        work = scratch / "folder"
        write_folder(work, files, name=plan.id)
        # 3. packer
        built = engine.build(work, plugin=plan.target.plugin, var_files=options.var_files)
        # 4. the artifact
        with progress.stage("manifest", "Manifest and checksums"):
            artifact_id = content_id([plan.id, {path: digest(item) for path, item in files.items()}])
            manifest = manifest_data(plan, supplies, built, progress, options.var_files)
            disk = _disk(built)
            if disk is None:
                return publish_manifest(folder, artifact_id, manifest)
            if packages := installed(disk, scratch):
                manifest["packages"] = packages
            with new_file(folder) as new:
                name = _place(disk, new, plan, manifest["capabilities"], artifact_id, runner, log)
                return publish(folder, folder / name, artifact_id, manifest)


def _supplies(
    plan: BuildPlan, options: BakeOptions, runner: Runner, progress: Progress, log: Path
) -> tuple[BuildPlan, Supplies]:
    """Return the plan with the sources that answered, and what was fetched from them."""
    cache = options.cache.absolute()
    supplies = Supplies()
    bootstrap = plan.profile.bootstrap
    if plan.profile.package_format == "deb" and bootstrap and Path(bootstrap.keyring).is_file():
        resolver = Resolver(
            cache=cache, runner=runner, progress=progress, log=log, refresh=options.refresh, offline=options.offline
        )
        lock = resolver.resolve(plan)
        fetcher = Fetcher(cache=cache, runner=runner, progress=progress, log=log, offline=options.offline)
        materials = fetcher.materials(plan, lock)
        plan = replace(plan, sources={name: (taken.kind,) for name, taken in lock.taken.items()})
        supplies = Supplies(
            kubernetes=lock.kubernetes, payloads=materials.payloads,
            pause=materials.pause.path if materials.pause else None,
            images=tuple(image.path for image in materials.images),
        )  # fmt: skip
    else:
        # Their archives cannot be asked from here: the machine installs packages, and pulls the pause image.
        _refuse_others(plan)
        supplies = Supplies(images=tuple(Path(image) for image in plan.request.images))
    with progress.stage("source-image", "Source image: its checksum") as stage:
        checksum = "" if options.offline else source_checksum(plan)
        stage.summary = f"Source image: {checksum[:19] or 'Packer reads its checksum itself'}"
    values = {"accelerator": accelerator(runner, cache).name} if plan.target.builder == "qemu" else {}
    return plan, replace(supplies, checksum=checksum, values=values)


def check_private(var_files: Sequence[Path], variables: str) -> None:
    """Refuse files with secrets that others can read.

    Raises:
        UsageError: one of them can be read by others, or not at all.
    """
    blocks = read("variables.pkr.hcl", variables).body.blocks
    secret = {block.labels[0] for block in blocks if block.body.text("sensitive") == "true"}
    for path in var_files:
        try:
            named = {
                name
                for name in secret
                if re.search(rf'(?m)(?:^|[\s{{,])"?{re.escape(name)}"?\s*[=:]', path.read_text())
            }
            shared = path.stat().st_mode & 0o077
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--var-file {path} cannot be read: {error}", hint=f"ls -l {path}") from error
        if named and shared:
            said = f"--var-file {path} holds {', '.join(sorted(named))}, and others can read it"
            raise UsageError(said, hint=f"chmod 600 {path}")


def _refuse_others(plan: BuildPlan) -> None:
    if others := [image for image in plan.request.images if not image.endswith(".tar")]:
        raise UsageError(f"--image {others[0]}: for {plan.profile.title}, give an OCI archive", hint="FILE.tar")
    if files := [name for name, kinds in plan.sources.items() if kinds[0].startswith(f"{FILE_SOURCE}:")]:
        raise UsageError(f"--source {files[0]}=file: {plan.profile.title} takes packages only", hint="leave it out")


def source_checksum(plan: BuildPlan, downloader: Downloader | None = None) -> str:
    """Return the checksum of the source image that the publisher states now, or an empty string without an answer.

    Raises:
        UntrustedError: the publisher's list does not name the image.
    """
    image = plan.profile.source_images.of(plan.target.source_kind)
    url, sums = getattr(image, "url", ""), getattr(image, "checksum_url", "")
    if not sums:
        return ""
    try:
        text = (downloader or Downloader()).get_bytes(sums, max_size=SUMS_SIZE).body.decode(errors="replace")
    except UnreachableError:
        return ""  # the values may name another image; if they do not, packer says that it cannot read the list
    return checksum_in(text, url.rpartition("/")[2], sums)


def checksum_in(text: str, name: str, where: str) -> str:
    """Return the checksum of one file from a list: of GNU's ``sum  name``, or BSD's ``SHA256 (name) = sum``.

    Raises:
        UntrustedError: the list does not name the file.
    """
    for line in text.splitlines():
        words = re.split(r"[\s()*=]+", line)
        found = _SUM.search(line)
        if found and (name in words or f"./{name}" in words or len(words) == 1):
            value = found[1].lower()
            return f"sha{len(value) * 4}:{value}"
    raise UntrustedError(f"{where} states no checksum of {name}", hint="the profile's source_images name another image")


def _disk(built: Built) -> Path | None:
    """Return the disk that packer left, or None when the artifact is an image elsewhere.

    Raises:
        ArtifactError: it says that there is a file, but there is none.
    """
    names = [str(file["name"]) for build in read_manifest(built.folder) for file in build.get("files") or ()]
    files = [built.folder / name for name in names if not name.endswith(".checksum")]
    if not files:
        return None
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ArtifactError(
            f"packer says that it wrote {missing[0].name}, but it is not there", hint=f"ls {built.folder}"
        )
    return max(files, key=lambda path: path.stat().st_size)


def installed(disk: Path, scratch: Path) -> list[dict[str, str]]:
    """Return the packages of a finished disk for its manifest; none where its file system is not one that is read."""
    try:
        with open_image(disk, scratch) as opened:
            packages = installed_packages(opened.root)
    except ArtifactError:
        return []
    return [{"name": one.name, "version": one.version, "arch": one.arch} for one in packages]


def _place(disk: Path, new: Path, plan: BuildPlan, has: Mapping[str, Any], seed: str, runner: Runner, log: Path) -> str:
    """Make the artifact of the disk that packer left, and return its name; boxes are packed as the direct engine's."""
    if plan.disk.format != BOX:
        shutil.move(disk, new)
        return f"{plan.id}{''.join(disk.suffixes[-1:])}"
    require("qemu-img", package="qemu-utils")
    raw = disk.with_suffix(".raw")
    runner.run(["qemu-img", "convert", "-O", "raw", disk, raw], log=log)
    with RawFile(raw) as source:
        packed = packing(
            plan, kubernetes=has["kubelet"], containerd=has["containerd"], seed=seed, size=source.size
        )  # fmt: skip
        write_artifact(source, new, packed)
    return f"{plan.id}.{plan.disk.extension}"


def source_image(plan: BuildPlan, checksum: str, var_files: Sequence[Path]) -> dict[str, Any]:
    """Return what the build started from: the profile's image, unless values of the user's name another one."""
    named: dict[str, str] = {}
    for path in var_files:
        for name, value in _SOURCE_VALUE.findall(path.read_text()):
            named[name] = value
    if named:
        return {"kind": plan.target.source_kind, "statedBy": "var-file", **named}
    image = plain(plan.profile.source_images.of(plan.target.source_kind))
    return {"kind": plan.target.source_kind, "statedBy": "profile", "checksum": checksum, **image}


def manifest_data(
    plan: BuildPlan, supplies: Supplies, built: Built, progress: Progress, var_files: Sequence[Path] = ()
) -> dict[str, Any]:
    """Return the manifest without the artifact's own facts."""
    exact = plan.kubernetes if plan.kubernetes.count(".") == 2 else plan.known_patch
    return {
        "apiVersion": "imagebuilder/v1",
        "kind": "Image",
        "id": plan.id,
        "tool": {"name": "imagebuilder", "version": __version__, "packer": built.packer},
        "cell": plain(plan.cell),
        "artifact": {"format": plan.disk.format, "virtualSize": plan.disk.size, **_images(built)},
        "capabilities": {
            "kubelet": supplies.kubernetes or exact,
            "containerd": plan.containerd,
            "runtimes": ["containerd", "docker"],
            "init": plan.profile.init,
            "arch": plan.cell.arch,
            "firmware": list(plan.disk.firmware),
            "pauseImage": plan.pause_image,
        },
        "sources": {name: {"kind": kinds[0]} for name, kinds in plan.sources.items()},
        "sourceImage": source_image(plan, supplies.checksum, var_files),
        "layers": [{"name": layer.name, "steps": [step.key for step in layer.steps]} for layer in plan.layers],
        "timings": progress.timings,
    }


def _images(built: Built) -> dict[str, Sequence[dict[str, str]]]:
    """Return the identifiers of images in a cloud, for the manifest."""
    found = [build for build in read_manifest(built.folder) if build.get("artifact_id") and not build.get("files")]
    made = [{"builder": str(build.get("builder_type", "")), "id": str(build["artifact_id"])} for build in found]
    return {"images": made} if made else {}
