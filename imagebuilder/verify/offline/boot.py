"""What firmware, boot loader, kernel and systemd need to come up from the disk.

References: GPT's BIOS boot partition (gnu.org/software/grub/manual, "BIOS installation"), the UEFI specification's
"Removable Media Boot Behavior" (3.5.1.1), fstab(5), the kernel's boot protocol (Documentation/arch/x86/boot.rst).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from imagebuilder.direct.gpt import BIOS_BOOT_TYPE
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.model import Found, Image, OfflineCheck
from imagebuilder.verify.offline.files import drop_ins, kernel_arguments, menu_lines, names, settings
from imagebuilder.verify.tree import Tree, read, resolve, text

LOADERS = {"amd64": "BOOTX64.EFI", "arm64": "BOOTAA64.EFI"}
GRUB_LOADERS = {"amd64": "grubx64.efi", "arm64": "grubaa64.efi"}
_FALLBACK = {"amd64": "fbx64.efi", "arm64": "fbaa64.efi"}
SWAP_TYPES = ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "0x82")
SWAP_FILES = ("/swapfile", "/swap.img", "/swap", "/var/swap", "/.swapfile")
_CORE = 31 << 10  # bytes: GRUB's core with ext4 and GPT is larger than what fits behind an MBR
_LOADER_LIMIT = 16 << 20
_PE = b"MZ"
# cpio as it is, or packed with zstd, gzip, xz, lz4, lzma, bzip2 or lzo: what the kernel's lib/decompress.c knows.
_ARCHIVES = (
    b"070701",
    b"\x28\xb5\x2f\xfd",
    b"\x1f\x8b",
    b"\xfd7zXZ",
    b"\x02\x21\x4c\x18",
    b"\x5d\0\0",
    b"BZh",
    b"\x89LZO",
)
_MAGIC_BYTES = 6
_X86_MAGIC = (0x202, b"HdrS")
_CGROUP_V1 = re.compile(
    r"systemd\.(unified_cgroup_hierarchy=(0|no|false)|legacy_systemd_cgroup_controller\b.*)|cgroup_no_v2=.*"
)
_STABLE = ("UUID=", "PARTUUID=", "LABEL=", "PARTLABEL=", "/dev/disk/by-", "/dev/mapper/")
_VIRTUAL = frozenset({"tmpfs", "proc", "sysfs", "devpts", "cgroup2", "overlay", "none", "bpf", "hugetlbfs", "mqueue"})


def fstab(root: Tree) -> list[list[str]]:
    """Return the lines of /etc/fstab as words: what, where, type, and more."""
    return [words for line in settings(root, "/etc/fstab") if len(words := line.split()) > 2]


def _uuids(root: Tree) -> set[str]:
    return {words[0].lower() for words in fstab(root) if words[0].startswith("UUID=")}


def kernels(root: Tree) -> list[str]:
    """Return the versions of the kernels in /boot.

    Raises:
        ArtifactError: /boot is a file system of its own.
    """
    if any(words[1] == "/boot" for words in fstab(root)):
        raise ArtifactError("/boot is a file system of its own, which is not read")
    return [name.removeprefix("vmlinuz-") for name in names(root, "/boot") if name.startswith("vmlinuz-")]


def bios_code(image: Image) -> Found:
    """Look at the first sector, and for the partition that it reads on from."""
    if "bios" not in image.subject.firmware:
        return
    if b"GRUB" not in image.disk.boot_code:
        yield "the first sector has no boot code of GRUB"
    if image.disk.table == "gpt":
        sizes = [one.size for one in image.disk.partitions if one.type == str(BIOS_BOOT_TYPE)]
        if not any(size >= _CORE for size in sizes):
            yield f"there is no BIOS boot partition of {_CORE} bytes or more, where GRUB's core is"


def efi_loader(image: Image) -> Found:
    """Look at what the firmware finds on the EFI system partition, and where that goes on."""
    if "uefi" not in image.subject.firmware:
        return
    if image.esp is None:
        yield "there is no EFI system partition"
        return
    esp, arch = image.esp, image.subject.arch
    loader = read(esp, f"/EFI/BOOT/{LOADERS[arch]}", _LOADER_LIMIT) or b""
    if not loader.startswith(_PE):
        yield f"there is no EFI program /EFI/BOOT/{LOADERS[arch]}"
    grub = GRUB_LOADERS[arch]
    # shim has the name of what it starts in UTF-16, and takes it from its own folder; with fallback beside it, from the
    # vendor's.
    if grub.encode("utf-16-le") in loader:
        folders = ["BOOT"] if not read(esp, f"/EFI/BOOT/{_FALLBACK[arch]}", _LOADER_LIMIT) else names(esp, "/EFI")
        if not any(esp.content(f"/EFI/{name}/{grub}", len(_PE)) == _PE for name in folders):
            yield f"shim is there, and {grub} is not beside it"
    configurations = [text(esp, f"/EFI/{name}/grub.cfg") for name in names(esp, "/EFI")]
    if not any(configurations):
        yield "there is no /EFI/*/grub.cfg, without which GRUB does not find the root file system"
    known = {uuid.removeprefix("uuid=") for uuid in _uuids(image.root)}
    for words in (line.split() for one in configurations for line in one.split("\n")):
        looks = words[:1] in (["search"], ["search.fs_uuid"])
        if looks and known and not known & {word.lower() for word in words}:
            yield f"GRUB on the EFI system partition looks for what /etc/fstab does not name: {' '.join(words)}"


def kernel_files(image: Image) -> Found:
    """Look whether each kernel has its initramfs and its modules."""
    found = kernels(image.root)
    if not found:
        yield "there is no kernel in /boot"
    for version in found:
        at, magic = _X86_MAGIC
        start = read_start(image.root, f"/boot/vmlinuz-{version}", at + len(magic))
        if not start or (image.subject.arch == "amd64" and start[at:] != magic):
            yield f"/boot/vmlinuz-{version} is no kernel"
        initramfs = (f"/boot/initrd.img-{version}", f"/boot/initramfs-{version}.img")
        starts = [start for path in initramfs if (start := read_start(image.root, path, _MAGIC_BYTES))]
        if not starts:
            yield f"the kernel {version} has no initramfs: neither {' nor '.join(initramfs)}"
        elif not starts[0].startswith(_ARCHIVES):
            yield f"the initramfs of the kernel {version} is none: no archive begins with {starts[0].hex()}"
        if not text(image.root, f"/lib/modules/{version}/modules.dep"):
            yield f"the kernel {version} has no /lib/modules/{version}/modules.dep"


def read_start(root: Tree, path: str, limit: int) -> bytes:
    """Return the first bytes of a file, links followed; empty where there is none."""
    found = resolve(root, path)
    return root.content(found[0], limit) if found else b""


def boot_menu(image: Image) -> Found:
    """Look whether what GRUB is told to load is there, and whether the root it names is that of /etc/fstab."""
    if any(words[1] == "/boot" for words in fstab(image.root)):
        raise ArtifactError("/boot is a file system of its own, which is not read")
    lines = menu_lines(image.root)
    for command, what in (("linux", "kernel"), ("initrd", "initramfs")):
        named = [word for line in lines if line[0] == command for word in line[1 : 2 if command == "linux" else None]]
        if not named:
            yield f"the boot menu names no {what}"
        for word in dict.fromkeys(named):
            path = re.sub(r"^\(.*?\)", "", word)
            if "$" not in path and not any(read_start(image.root, top + path, 1) for top in ("", "/boot")):
                yield f"the boot menu names {path}, which is not there"
    yield from _roots(image)


def _roots(image: Image) -> Iterator[str]:
    """Yield a line for every root= of the boot menu by which the root file system is not found for sure."""
    given = {word.partition("=")[2].strip("\"'") for word in kernel_arguments(image.root) if word.startswith("root=")}
    mounted = {words[0].lower() for words in fstab(image.root) if words[1] == "/"}
    partitions = {f"partuuid={one.uuid}" for one in image.disk.partitions}
    if not given:
        yield "the boot menu names no root="
    for root in sorted(given):
        if not root.startswith(("UUID=", "PARTUUID=", "LABEL=")):
            yield f"the boot menu has root={root}: the name of a device is another on another machine"
        elif root.lower() not in mounted | partitions:
            yield f"the boot menu has root={root}, /etc/fstab has {', '.join(sorted(mounted)) or 'none'} for /"


def mounts(image: Image) -> Found:
    """Look at what /etc/fstab mounts by the name of a device."""
    lines = fstab(image.root)
    if not any(words[1] == "/" for words in lines):
        yield "/etc/fstab has no line for /"
    for words in lines:
        if words[2] != "swap" and words[0] not in _VIRTUAL and not words[0].startswith(_STABLE):
            yield f"/etc/fstab mounts {words[1]} from {words[0]}: the name of a device is another on another machine"


def swap(image: Image) -> Found:
    """Look for swap: in /etc/fstab, as a file, as a partition, in memory."""
    for words in fstab(image.root):
        if words[2] == "swap":
            yield f"/etc/fstab has swap on {words[0]}"
    yield from (f"{path} is there" for path in SWAP_FILES if image.root.entry(path) is not None)
    for one in image.disk.partitions:
        if one.type in SWAP_TYPES:
            yield f"partition {one.number} is for swap"
    generators = [path for path in ("/etc/systemd/zram-generator.conf", "/usr/lib/systemd/zram-generator.conf")
                  if image.root.entry(path) is not None]  # fmt: skip
    if generators and text(image.root, generators[0]).strip():
        yield f"{generators[0]} makes swap in memory"


def cgroup_v1(image: Image) -> Found:
    """Look for kernel arguments that bring the old cgroups back."""
    return (
        f"the boot menu has {word}"
        for word in dict.fromkeys(kernel_arguments(image.root))
        if _CGROUP_V1.fullmatch(word)
    )


def root_grows(image: Image) -> Found:
    """Look for one of the ways in which the root grows: systemd-repart, or growpart."""
    root = image.root
    said = {line.replace(" ", "") for path in drop_ins(root, "repart.d") for line in settings(root, path)}
    if "Type=root" in said and read_start(root, "/usr/bin/systemd-repart", 1):
        if not any("growfs" in words[3] for words in fstab(root) if words[1] == "/" and len(words) > 3):
            yield "the root partition grows, and its file system does not: no x-systemd.growfs in /etc/fstab"
    elif not (read_start(root, "/usr/bin/growpart", 1) and read_start(root, "/usr/libexec/imagebuilder/grow-part", 1)):
        yield "nothing grows the root at boot: neither systemd-repart with a partition of Type=root, nor growpart"


CHECKS = (
    OfflineCheck(
        id="bios-code",
        proves="A BIOS finds GRUB: its boot code in the first sector, room for its core in a BIOS boot partition.",
        why="Without them the machine shows a black screen, and no log says why.",
        link="https://www.gnu.org/software/grub/manual/grub/html_node/BIOS-installation.html",
        fix="grub-install --target=i386-pc DISK, with a BIOS boot partition of 1 MiB on GPT.",
        run=bios_code,
    ),
    OfflineCheck(
        id="efi-loader",
        proves="UEFI finds shim and GRUB at the path for removable media, and GRUB its configuration.",
        why="A fresh machine has no boot entries: firmware looks there only. Secure Boot needs the signed shim.",
        link="https://uefi.org/specs/UEFI/2.10/03_Boot_Manager.html#removable-media-boot-behavior",
        fix="grub-install --target=x86_64-efi --removable; a grub.cfg beside it that searches the root by its UUID.",
        run=efi_loader,
    ),
    OfflineCheck(
        id="kernel-files",
        proves="There is a kernel, and each has its modules and its initramfs, which is one.",
        why="A kernel that was removed or replaced halfway boots to a panic, on the first reboot of a node.",
        link="https://www.kernel.org/doc/html/latest/admin-guide/initrd.html",
        fix="Install the kernel package again, then update-initramfs -c -k VERSION or dracut --kver VERSION.",
        run=kernel_files,
    ),
    OfflineCheck(
        id="boot-menu",
        proves="GRUB's menu names files that are there, and finds the root file system by its UUID.",
        why="A name such as /dev/sda1 is another on another hypervisor; a file that is gone is a prompt of GRUB's.",
        link="https://uapi-group.org/specifications/specs/boot_loader_specification/",
        fix="update-grub, or grub2-mkconfig -o /boot/grub2/grub.cfg.",
        run=boot_menu,
    ),
    OfflineCheck(
        id="fstab",
        proves="/etc/fstab mounts the root, and nothing by the name of a device.",
        why="The order of disks is another on each hypervisor: a node would hang in emergency mode.",
        link="https://man7.org/linux/man-pages/man5/fstab.5.html",
        fix="Write UUID=... (blkid says it) in place of the device.",
        run=mounts,
    ),
    OfflineCheck(
        id="no-swap",
        proves="There is no swap: no line in /etc/fstab, no file, no partition, none in memory.",
        why="kubelet does not start with swap unless told to; memory limits of pods assume none.",
        link="https://kubernetes.io/docs/concepts/cluster-administration/swap-memory-management/",
        fix="Remove it, as provision/steps/base/50-no-swap.sh does.",
        run=swap,
    ),
    OfflineCheck(
        id="no-cgroup-v1",
        proves="No kernel argument brings the old cgroups back.",
        why="kubelet refuses them from 1.35 on.",
        link="https://kubernetes.io/docs/concepts/architecture/cgroups/",
        fix="Remove systemd.unified_cgroup_hierarchy=0 from the kernel's arguments.",
        run=cgroup_v1,
    ),
    OfflineCheck(
        id="root-grows",
        proves="The root partition and its file system grow to the disk at boot.",
        why="The image is small: a node that does not grow runs out of disk with its first images.",
        link="https://www.freedesktop.org/software/systemd/man/latest/repart.d.html",
        fix="See provision/steps/base/80-grow-root.sh.",
        run=root_grows,
    ),
)
