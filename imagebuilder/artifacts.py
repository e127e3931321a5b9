"""A finished disk becomes an artifact: a disk format of the engine, or a Vagrant box around one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imagebuilder import __version__
from imagebuilder.content import aside
from imagebuilder.direct.formats import FORMATS, Subject
from imagebuilder.direct.jobs import installed_packages
from imagebuilder.direct.sparse import OnProgress
from imagebuilder.direct.virtual import DiskSource
from imagebuilder.plan import BuildPlan
from imagebuilder.resolve import Lock

if TYPE_CHECKING:
    from imagebuilder.publish.boxes import BoxSpec

BOX = "box"


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How a disk is packed: all that the artifact's bytes depend on, besides the disk.

    Attributes:
        format: of the artifact.
        subject: what formats say of the image.
        box: what the box says of itself, where it is one.
    """

    format: str
    subject: Subject
    box: BoxSpec | None = None


def packing(plan: BuildPlan, *, kubernetes: str, containerd: str, seed: str, size: int = 0) -> Packing:
    """Decide how a plan's disk is packed.

    Args:
        plan: what was decided.
        kubernetes: the version in it.
        containerd: the version in it.
        seed: what the identifiers of formats are derived from.
        size: of the disk in bytes, where it is not the plan's.
    """
    subject = Subject(name=plan.id, seed=seed)
    if plan.disk.format != BOX:
        return Packing(format=plan.disk.format, subject=subject)
    from imagebuilder.publish.boxes import BoxSpec

    info = {
        "build": plan.id,
        "name": f"{plan.profile.name}-{plan.profile.release}-k{plan.kubernetes_minor}",
        "os": f"{plan.profile.title} {plan.profile.release}",
        "kubernetes": kubernetes,
        "containerd": containerd,
        "tool": f"imagebuilder {__version__}",
    }
    box = BoxSpec(
        provider=plan.target.box_provider, name=plan.id, arch=plan.cell.arch, virtual_size=size or plan.disk.size,
        seed=seed, info=info,
    )  # fmt: skip
    return Packing(format=BOX, subject=subject, box=box)


def containerd_version(plan: BuildPlan, lock: Lock) -> str:
    """Return the version of containerd that is in the image."""
    names = ("containerd", "containerd.io")
    return next((package.version for _, package in installed_packages(lock) if package.name in names), plan.containerd)


def write_artifact(disk: DiskSource, out: Path, packed: Packing, on_progress: OnProgress | None = None) -> None:
    """Write the artifact of a disk; it appears under its name only when whole.

    Raises:
        ArtifactError: it is no disk.
    """
    if packed.box is None:
        FORMATS[packed.format].writer(disk, out, on_progress, subject=packed.subject)
        return
    from imagebuilder.publish.boxes import PROVIDERS, pack_box

    provider = PROVIDERS[packed.box.provider]
    with aside(out) as scratch:
        inner = scratch / provider.disk
        FORMATS[provider.format].writer(disk, inner, on_progress, subject=packed.subject, lasting=False)
        text = description(packed.box, inner) if provider.described else ""
        pack_box(packed.box, inner, out, description=text)


def description(box: BoxSpec, disk: Path) -> str:
    """Return the OVF description of a VirtualBox box."""
    from imagebuilder.direct import ovf
    from imagebuilder.direct.vmdk import image_uuid

    machine = ovf.Machine(
        name=box.name, disk=disk.name, disk_uuid=str(image_uuid(box.seed)), file_size=disk.stat().st_size,
        capacity=box.virtual_size, memory_mib=box.memory_mib, cpus=box.cpus,
    )  # fmt: skip
    return ovf.render(machine, ovf.VIRTUALBOX)
