"""A stack of layers becomes a disk: partitions, boot loaders and the root file system, without mounts on the host.

The programs that do it come from the image's own distribution (the *tools tree*: the base layer with a few packages
unpacked on top), so the host's versions do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.content import write_atomic
from imagebuilder.direct import gpt
from imagebuilder.direct.layers import Layer, full_disk_named
from imagebuilder.direct.sandbox import Bind, Mount, Overlay, command
from imagebuilder.direct.sparse import copy_sparse
from imagebuilder.errors import ArtifactError
from imagebuilder.process import Runner

SCRIPT = Path(__file__).with_name("write-disk.sh")
VOLUMES = {"containerd": "/var/lib/containerd"}  # where an overlay cannot be: containerd makes overlays of its own
FOLDERS = ("mnt", "out", "out-work", "empty", "upper", "work", "tools-upper", "tools-work")  # of one disk's scratch
SERIAL = "serial --unit=0 --speed=115200\nterminal_input serial console\nterminal_output serial console\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskSpec:
    """What a disk is made from, apart from its layers.

    Attributes:
        size: bytes.
        seed: all identifiers (GPT, partitions, file systems) are derived from it.
        kernel_arguments: without root=.
        vendor: name of the distribution's folder on the EFI system partition.
        epoch: the time of everything that is written here, in seconds since 1970.
    """

    size: int
    seed: str
    arch: str
    firmware: tuple[str, ...]
    kernel_arguments: tuple[str, ...]
    vendor: str
    epoch: int


def write_disk(
    spec: DiskSpec, layers: Sequence[Layer], tools: Sequence[Layer], work: Path, runner: Runner, log: Path
) -> Path:
    """Write ``work/disk.raw``, a sparse file of ``spec.size`` bytes, and return its path.

    Args:
        spec: what the disk is.
        layers: the root tree, the lowest layer first.
        tools: the tools tree, the lowest layer first.
        work: an empty folder for everything in between.
        runner: runs the programs.
        log: their output.

    Raises:
        CommandError: a program failed.
        HostError: the disk is full.
        ArtifactError: the root tree has no kernel, or more than one.
    """
    layout = gpt.layout(spec.size, spec.seed, arch=spec.arch)
    folders = {
        name: work / name for name in ("mnt", "out", "out-work", "empty", "upper", "work", "tools-upper", "tools-work")
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    write_boot_files(folders["upper"], spec, layout, find_kernel(layers))
    raw = folders["out"] / "disk.raw"
    with raw.open("wb") as stream:
        stream.truncate(spec.size)
    mounts: list[Mount] = [
        _stack(tools, "/", folders["tools-upper"], folders["tools-work"]),
        _stack(layers, "/image", folders["upper"], folders["work"]),
        Overlay(lower=[folders["empty"]], upper=folders["out"], work=folders["out-work"], target="/output"),
        Bind(source=SCRIPT, target="/run/write-disk.sh"),
        *volume_mounts(layers[-1], "/image"),
    ]
    env = {
        "ROOT_UUID": str(layout.root_uuid), "ROOT_OFFSET": str(layout.root.offset),
        "ROOT_KIB": str(layout.root.size // 1024), "ESP_SERIAL": f"{layout.esp_serial:08x}",
        "ESP_KIB": str(layout.esp.size // 1024), "EFI_VENDOR": spec.vendor, "EFI_ARCH": spec.arch,
        "SOURCE_DATE_EPOCH": str(spec.epoch),
    }  # fmt: skip
    with full_disk_named(work):
        runner.run(command(folders["mnt"], mounts, ["/bin/sh", "/run/write-disk.sh"], env), log=log, timeout=900)
    with raw.open("r+b") as stream:
        gpt.write_gpt(stream, layout)
        if "bios" in spec.firmware:
            boot, core = ((folders["out"] / name).read_bytes() for name in ("boot.img", "core.img"))
            gpt.write_bios_boot(stream, layout, boot, core)
        copy_sparse(folders["out"] / "esp.img", stream, layout.esp.offset)
    return raw


def volume_mounts(layer: Layer, below: str = "") -> list[Mount]:
    """Return the mounts that put a layer's volumes where they belong, read-only."""
    return [
        Bind(source=layer.volumes / name, target=f"{below}{path}")
        for name, path in VOLUMES.items()
        if (layer.volumes / name).is_dir()
    ]


def find_kernel(layers: Sequence[Layer]) -> str:
    """Return the version of the one kernel in the tree.

    Raises:
        ArtifactError: there is none, or more than one.
    """
    names = {path.name for layer in layers for path in (layer.root / "boot").glob("vmlinuz-*")}
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "none"
        raise ArtifactError(f"the root tree must have one kernel; found: {found}", hint="check the kernel packages")
    version = names.pop().removeprefix("vmlinuz-")
    if not any((layer.root / "boot" / f"initrd.img-{version}").is_file() for layer in layers):
        raise ArtifactError(f"kernel {version} has no initramfs", hint="check the step base/90-initramfs")
    return version


def write_boot_files(root: Path, spec: DiskSpec, layout: gpt.Layout, kernel: str) -> None:
    """Write what names this disk's identifiers: ``/etc/fstab`` and ``/boot/grub/grub.cfg``."""
    write_atomic(root / "etc/fstab", fstab(layout))
    write_atomic(root / "boot/grub/grub.cfg", grub_cfg(layout, kernel, spec.kernel_arguments))
    (root / "boot/efi").mkdir()
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def fstab(layout: gpt.Layout) -> str:
    """Return /etc/fstab. The EFI partition is not mounted at boot: nothing on a node reads it."""
    esp = f"{layout.esp_serial >> 16:04X}-{layout.esp_serial & 0xFFFF:04X}"
    return (
        f"UUID={layout.root_uuid} / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\n"
        f"UUID={esp} /boot/efi vfat umask=0077,noauto,nofail 0 0\n"
    )


def grub_cfg(layout: gpt.Layout, kernel: str, arguments: Sequence[str]) -> str:
    """Return GRUB's configuration: one entry, no menu, the serial line too where the target has one."""
    serial = SERIAL if any(argument.startswith("console=ttyS") for argument in arguments) else ""
    line = " ".join([f"root=UUID={layout.root_uuid}", "ro", *arguments])
    return (
        f"{serial}set timeout=0\n"
        f"search --no-floppy --fs-uuid --set=root {layout.root_uuid}\n"
        'menuentry "Linux" {\n'
        f"  linux /boot/vmlinuz-{kernel} {line}\n"
        f"  initrd /boot/initrd.img-{kernel}\n"
        "}\n"
    )


def _stack(layers: Sequence[Layer], target: str, upper: Path, work: Path) -> Overlay:
    return Overlay(lower=[layer.root for layer in reversed(layers)], upper=upper, work=work, target=target)
