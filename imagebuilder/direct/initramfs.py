"""The small initramfs: busybox, the drivers that reach the root disk, and a script that mounts it and hands over.

It is made from the image's own kernel and the tools tree's busybox, by nobody's tools but ours, and is the same bytes
for the same kernel, busybox and list of drivers. Roots on LVM, RAID or encrypted disks are not for it.
"""

from __future__ import annotations

import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import zstandard

from imagebuilder.direct.cpio import Member, archive, file, folder, symlink
from imagebuilder.direct.kernelmodules import Index, load_order, module_name, read_index
from imagebuilder.direct.layers import Layer
from imagebuilder.direct.tree import merge
from imagebuilder.errors import ArtifactError

SCRIPT = Path(__file__).with_name("initramfs.sh")
BUSYBOX = "usr/bin/busybox"
# What the script calls. In its shell a person gets the others of busybox's too.
APPLETS = (
    "sh", "mount", "insmod", "findfs", "switch_root", "sleep", "cat", "cttyhack", "setsid", "reboot",
)  # fmt: skip
FOLDERS = ("bin", "dev", "modules", "proc", "root", "sys")
INDEX_FILES = ("modules.dep", "modules.builtin", "modules.softdep", "modules.alias")
_ELF = b"\x7fELF"
_INDEX_LIMIT = 16 << 20  # bytes: modules.alias of a generic kernel is 1.4 MB
_FILE_LIMIT = 32 << 20  # bytes of busybox, and of a module as it is loaded; the largest here, ext4, is below 2 MB
_TOTAL_LIMIT = 128 << 20  # bytes of all of it
_MEMORY = 256 << 20  # bytes that unpacking a module may take: xz -9 takes 65 MiB
_LEVEL = 9  # of zstd: 3 MB in a tenth of a second, and a tenth larger than at level 19, which takes one


def small_initramfs(
    layers: Sequence[Layer], tools: Sequence[Layer], kernel: str, drivers: Sequence[str], epoch: int
) -> bytes:
    """Return the initramfs of a kernel.

    Args:
        layers: the root tree, the lowest layer first.
        tools: the tools tree, likewise; it has the statically linked busybox.
        kernel: the version.
        drivers: names of modules; those that they need are added.
        epoch: the time of everything in it, in seconds since 1970.

    Raises:
        ArtifactError: there is no busybox, or the kernel does not have one of the drivers.
    """
    modules = kernel_files(layers, kernel)
    members = list(_members(_busybox(tools), modules, kernel, drivers))
    if sum(len(member.data) for member in members) > _TOTAL_LIMIT:
        raise ArtifactError(f"the initramfs would be larger than {_TOTAL_LIMIT >> 20} MiB", hint="--initramfs stock")
    return zstandard.ZstdCompressor(level=_LEVEL).compress(archive(members, epoch))


def module_folders(layers: Sequence[Layer], kernel: str) -> list[Path]:
    """Return the folders that have modules of a kernel, the topmost layer's first."""
    folders = [layer.root / "usr/lib/modules" / kernel for layer in reversed(layers)]
    return [path for path in folders if path.is_dir()]


def kernel_files(layers: Sequence[Layer], kernel: str) -> Mapping[str, bytes]:
    """Return where the files of a kernel's modules are on this host, by their path below ``/lib/modules/VERSION``."""
    found = module_folders(layers, kernel)
    if not found:
        raise ArtifactError(f"the root tree has no /lib/modules/{kernel}", hint="check the kernel packages")
    return {os.fsdecode(entry.path): entry.host for entry in merge(found) if stat.S_ISREG(entry.mode)}


def _members(busybox: bytes, files: Mapping[str, bytes], kernel: str, drivers: Sequence[str]) -> Iterator[Member]:
    order = load_order(_index(files, kernel), drivers)
    yield from (folder(name) for name in FOLDERS)
    # What the kernel opens for the script's output, before there is anything that could make it.
    yield Member(name="dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1))
    yield file("init", SCRIPT.read_bytes(), program=True)
    yield file("bin/busybox", busybox, program=True)
    yield from (symlink(f"bin/{name}", "busybox") for name in APPLETS)
    yield file("modules/order", "".join(f"{module_name(path)}\n" for path in order).encode())
    for path in order:
        yield file(f"modules/{module_name(path)}.ko", _module(files, path))


def _index(files: Mapping[str, bytes], kernel: str) -> Index:
    if "modules.dep" not in files:
        raise ArtifactError(
            f"/lib/modules/{kernel} has no modules.dep", hint=f"depmod {kernel}, in a step of the image"
        )
    texts = (
        _read(files[name], _INDEX_LIMIT).decode("utf-8", "replace") if name in files else "" for name in INDEX_FILES
    )
    return read_index(*texts)


def _module(files: Mapping[str, bytes], path: str) -> bytes:
    """Return a module as the kernel takes it: not compressed, its signature still at its end.

    Raises:
        ArtifactError: it is not there, too large, or not whole.
    """
    if path not in files:
        raise ArtifactError(f"the kernel's modules.dep names {path}, which is not there")
    data = _read(files[path], _FILE_LIMIT)
    try:
        data = _UNPACK[path.rpartition(".")[2]](data)
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError) as error:
        raise ArtifactError(f"the kernel's module {path} is damaged: {error}") from error
    if not data.startswith(_ELF) or len(data) > _FILE_LIMIT:
        raise ArtifactError(f"the kernel's module {path} is none, or too large")
    return data


def _unxz(data: bytes) -> bytes:
    return lzma.LZMADecompressor(memlimit=_MEMORY).decompress(data, _FILE_LIMIT + 1)


def _gunzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, _FILE_LIMIT + 1)


def _unzstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(data) as stream:
        return bytes(stream.read(_FILE_LIMIT + 1))


_UNPACK: Mapping[str, Callable[[bytes], bytes]] = {"ko": bytes, "xz": _unxz, "gz": _gunzip, "zst": _unzstd}


def _busybox(tools: Sequence[Layer]) -> bytes:
    # Debian 12's package has it in /bin, which is a link: it was unpacked through that.
    for layer in reversed(tools):
        path = layer.root / BUSYBOX
        if path.is_file() and not path.is_symlink():
            data = _read(os.fsencode(path), _FILE_LIMIT)
            if not data.startswith(_ELF):
                raise ArtifactError(f"/{BUSYBOX} of the tools tree is no program")
            return data
    raise ArtifactError(
        f"the tools tree has no /{BUSYBOX}, which the small initramfs starts",
        hint="busybox-static belongs to packages.tools of the profile; or --initramfs stock",
    )


def _read(path: bytes, limit: int) -> bytes:
    with open(path, "rb") as stream:  # noqa: PTH123 - bytes: names need not be UTF-8
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ArtifactError(f"{os.fsdecode(path)} is larger than {limit >> 20} MiB")
    return data
