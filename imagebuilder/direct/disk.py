"""A stack of layers becomes a disk: partitions, boot loaders and the root file system, without mounts on the host.

The disk is planned, not written: what writes a format reads it from the layers. Only the boot loaders are made by
programs; these come from the image's own distribution (the *tools tree*: the base layer with a few packages unpacked
on top), so the host's versions do not matter.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imagebuilder.direct.fulldisk import full_disk_named
from imagebuilder.direct.layers import Layer
from imagebuilder.direct.sandbox import Bind, Mount, Overlay, command
from imagebuilder.direct.virtual import Piece, VirtualDisk, pieces_of_file, shifted
from imagebuilder.errors import ArtifactError
from imagebuilder.process import Runner

if TYPE_CHECKING:
    from imagebuilder.direct import gpt

SCRIPT = Path(__file__).with_name("write-disk.sh")
VOLUMES = {"containerd": "/var/lib/containerd"}  # where an overlay cannot be: containerd makes overlays of its own
VERSION = 3  # of what is planned here; part of an artifact's id, not of a layer's: raise it when disks change
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
        drivers: of the small initramfs, which is made where the root tree has none; empty where it must have one.
    """

    size: int
    seed: str
    arch: str
    firmware: tuple[str, ...]
    kernel_arguments: tuple[str, ...]
    vendor: str
    epoch: int
    drivers: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Early:
    """What of a disk needs no more than the base layer and the tools tree; it is made beside the layers above.

    Attributes:
        spec: what the disk is.
        work: an empty folder for everything in between.
        runner: runs the programs.
        log: their output.
    """

    spec: DiskSpec
    work: Path
    runner: Runner
    log: Path
    tools: Sequence[Layer] = ()
    _pool: ThreadPoolExecutor
    _boot: Future[Path] = field(default_factory=Future)
    _guess: Future[Initramfs | None] = field(default_factory=Future)

    def start(self, tools: Sequence[Layer]) -> None:
        """Make boot loaders and initramfs, without waiting for them; what goes wrong is said where they are taken.

        Args:
            tools: the tools tree, whose lowest layer is the base.
        """
        self.tools = tools
        self._boot = self._pool.submit(_make_boot_loaders, self.spec, tools, self.work, self.runner, self.log)
        self._guess = self._pool.submit(_guessed, self.spec, tools)

    def boot(self) -> Path:
        """Return the folder with ``boot.img``, ``core.img`` and ``esp.img``.

        Raises:
            CommandError: a program failed.
            HostError: the disk of this host is full.
        """
        with full_disk_named(self.work):
            return self._boot.result()

    def initramfs(self, layers: Sequence[Layer], kernel: str) -> bytes:
        """Return the small initramfs; nothing where the root tree has one, for instance of a script of the site's.

        Raises:
            ArtifactError: the root tree has none, and none can be made.
        """
        from imagebuilder.direct.initramfs import module_folders

        guess = self._guess.result()
        if guess and (guess.kernel, guess.folders) == (kernel, module_folders(layers, kernel)):
            return b"" if has_initramfs(layers, kernel) else guess.data
        return own_initramfs(self.spec, layers, self.tools, kernel)


@dataclass(frozen=True, kw_only=True, slots=True)
class Initramfs:
    """A small initramfs, and all that it was made from, but for the tools tree."""

    kernel: str
    folders: Sequence[Path]
    data: bytes


@contextlib.contextmanager
def begin(spec: DiskSpec, work: Path, runner: Runner, log: Path) -> Iterator[Early]:
    """Hand out what begins a disk; at the end of the block nothing of it goes on. See :class:`Early`."""
    with ThreadPoolExecutor(2, thread_name_prefix="early") as pool:
        try:
            yield Early(spec=spec, work=work, runner=runner, log=log, _pool=pool)
        finally:
            pool.shutdown(cancel_futures=True)


def _guessed(spec: DiskSpec, tools: Sequence[Layer]) -> Initramfs | None:
    """Return the initramfs if the layers above the base change neither the kernel nor its modules, as they seldom do.

    Nothing is raised: what is wrong with the whole tree is said when that is there.
    """
    from imagebuilder.direct.initramfs import module_folders

    with contextlib.suppress(ArtifactError, OSError):
        base = tools[:1]
        kernel = find_kernel(base)
        if data := own_initramfs(spec, base, tools, kernel):
            return Initramfs(kernel=kernel, folders=module_folders(base, kernel), data=data)
    return None


def write_disk(early: Early, layers: Sequence[Layer]) -> VirtualDisk:
    """Return the disk, to be read while the layers, and what was begun, are there.

    Args:
        early: what was begun, and started.
        layers: the root tree, the lowest layer first.

    Raises:
        CommandError: a program failed.
        HostError: the disk of this host is full.
        ArtifactError: the root tree has no kernel, or more than one, or no initramfs can be made for it, or it does
            not fit.
    """
    from imagebuilder.direct import gpt  # and the like below: an unchanged artifact does not wait for them

    layout = gpt.layout(early.spec.size, early.spec.seed, arch=early.spec.arch)
    root = _root_pieces(early, layers, layout)
    pieces = [*_boot_pieces(early.spec, layout, early.boot()), *shifted(root, layout.root.offset)]
    return VirtualDisk(early.spec.size, pieces, layers)


def _root_pieces(early: Early, layers: Sequence[Layer], layout: gpt.Layout) -> list[Piece]:
    from imagebuilder.direct.ext4.layout import lay_out
    from imagebuilder.direct.ext4.superblock import Identity
    from imagebuilder.direct.tree import merge

    kernel, upper = find_kernel(layers), early.work / "upper"
    upper.mkdir()
    write_boot_files(upper, early.spec, layout, kernel, early.initramfs(layers, kernel))
    tree = merge([upper, *(layer.root for layer in reversed(layers))], volumes(layers[-1]))
    return lay_out(tree, layout.root.size, Identity(uuid=layout.root_uuid, label="root", epoch=early.spec.epoch))


def _make_boot_loaders(spec: DiskSpec, tools: Sequence[Layer], work: Path, runner: Runner, log: Path) -> Path:
    """Return the folder with ``boot.img``, ``core.img`` and ``esp.img``."""
    from imagebuilder.direct import gpt

    layout = gpt.layout(spec.size, spec.seed, arch=spec.arch)
    mnt, out, out_work, empty, upper, upper_work = (
        work / name for name in ("mnt", "out", "out-work", "empty", "tools-upper", "tools-work")
    )
    for folder in (mnt, out, out_work, empty, upper, upper_work):
        folder.mkdir()
    mounts: list[Mount] = [
        Overlay(lower=[layer.root for layer in reversed(tools)], upper=upper, work=upper_work),
        Overlay(lower=[empty], upper=out, work=out_work, target="/output"),
        Bind(source=SCRIPT, target="/run/write-disk.sh"),
    ]
    env = {
        "ROOT_UUID": str(layout.root_uuid), "ESP_SERIAL": f"{layout.esp_serial:08x}",
        "ESP_KIB": str(layout.esp.size // 1024), "EFI_VENDOR": spec.vendor, "EFI_ARCH": spec.arch,
        "SOURCE_DATE_EPOCH": str(spec.epoch),
    }  # fmt: skip
    runner.run(command(mnt, mounts, ["/bin/sh", "/run/write-disk.sh"], env), log=log, timeout=900)
    return out


def _boot_pieces(spec: DiskSpec, layout: gpt.Layout, out: Path) -> list[Piece]:
    """Return all but the root file system."""
    from imagebuilder.direct import gpt

    texts = gpt.gpt_pieces(layout)
    if "bios" in spec.firmware:
        boot, core = ((out / name).read_bytes() for name in ("boot.img", "core.img"))
        texts += gpt.bios_boot_pieces(layout, boot, core)
    esp = shifted(pieces_of_file(out / "esp.img"), layout.esp.offset)
    return [*(Piece(offset, len(data), data) for offset, data in texts), *esp]


def volumes(layer: Layer) -> dict[str, Path]:
    """Return a layer's volumes by the path where they belong."""
    return {path: layer.volumes / name for name, path in VOLUMES.items() if (layer.volumes / name).is_dir()}


def find_kernel(layers: Sequence[Layer]) -> str:
    """Return the version of the one kernel in the tree.

    Raises:
        ArtifactError: there is none, or more than one.
    """
    names = {path.name for layer in layers for path in (layer.root / "boot").glob("vmlinuz-*")}
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "none"
        raise ArtifactError(f"the root tree must have one kernel; found: {found}", hint="check the kernel packages")
    return names.pop().removeprefix("vmlinuz-")


def has_initramfs(layers: Sequence[Layer], kernel: str) -> bool:
    """Tell whether a layer has an initramfs for the kernel."""
    return any((layer.root / "boot" / f"initrd.img-{kernel}").is_file() for layer in layers)


def own_initramfs(spec: DiskSpec, layers: Sequence[Layer], tools: Sequence[Layer], kernel: str) -> bytes:
    """Return the small initramfs; nothing where the root tree has one, for instance of a script of the site's.

    Raises:
        ArtifactError: the root tree has none, and none can be made.
    """
    if has_initramfs(layers, kernel):
        return b""
    if not spec.drivers:
        raise ArtifactError(f"kernel {kernel} has no initramfs", hint="check the step initramfs/10-initramfs")
    from imagebuilder.direct.initramfs import small_initramfs

    return small_initramfs(layers, tools, kernel, spec.drivers, spec.epoch)


def write_boot_files(root: Path, spec: DiskSpec, layout: gpt.Layout, kernel: str, initramfs: bytes = b"") -> None:
    """Write what names this disk's identifiers, ``/etc/fstab`` and ``/boot/grub/grub.cfg``; the initramfs, if any."""
    grub = grub_cfg(layout, kernel, spec.kernel_arguments)
    files = {"etc/fstab": fstab(layout).encode(), "boot/grub/grub.cfg": grub.encode()}
    if initramfs:
        files[f"boot/initrd.img-{kernel}"] = initramfs
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        (root / name).chmod(0o644)
    (root / "boot/efi").mkdir()
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (spec.epoch, spec.epoch))


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
