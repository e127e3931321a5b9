"""Vagrant boxes: packed the same way every time, and read with distrust.

Format: developer.hashicorp.com/vagrant/docs/boxes/format, for libvirt the "version 1" box of vagrant-libvirt.
vagrant-qemu (0.3.12) registers itself with the box format "libvirt": a box whose metadata said "qemu" would never
be found by it, so that both are libvirt boxes to Vagrant, with defaults for both providers.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from imagebuilder import gzips
from imagebuilder.content import CHUNK, content_id, writing
from imagebuilder.publish.vagrantfiles import vagrantfile

GIB = 1 << 30
METADATA, INFO, VAGRANTFILE, OVF = "metadata.json", "info.json", "Vagrantfile", "box.ovf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """What a provider wants in its boxes.

    Attributes:
        name: of the target's ``box_provider``.
        metadata: the provider's name in ``metadata.json`` and in catalogs.
        format: of the disk, one of the formats of the direct engine.
        disk: the disk's name in the box.
        described: whether an OVF description goes with the disk.
    """

    name: str
    metadata: str
    format: str
    disk: str
    described: bool = False


PROVIDERS: Mapping[str, Provider] = {
    row.name: row
    for row in (
        Provider(name="libvirt", metadata="libvirt", format="qcow2", disk="box.img"),
        Provider(name="qemu", metadata="libvirt", format="qcow2", disk="box.img"),
        Provider(name="virtualbox", metadata="virtualbox", format="vmdk", disk="box-disk001.vmdk", described=True),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxSpec:
    """What a box says of itself.

    Attributes:
        provider: one of ``PROVIDERS``.
        name: of the machine.
        arch: ``amd64`` or ``arm64``.
        virtual_size: of the disk, in bytes.
        seed: what identifiers are derived from.
        info: what ``vagrant box list --box-info`` prints.
        memory_mib, cpus: that a machine gets unless its Vagrantfile says otherwise.
    """

    provider: str
    name: str
    arch: str
    virtual_size: int
    seed: str
    info: Mapping[str, str] = field(default_factory=dict)
    memory_mib: int = 2048
    cpus: int = 2

    @property
    def base_mac(self) -> str:
        """Return the MAC address of the first card: VirtualBox's own prefix, the rest from the seed."""
        return "080027" + content_id(["mac", self.seed])[:6].upper()

    def texts(self) -> dict[str, str]:
        """Return the small files of the box by name, but for the description."""
        row = PROVIDERS[self.provider]
        metadata: dict[str, object] = {"provider": row.metadata, "architecture": self.arch}
        if row.format == "qcow2":
            # In whole GiB, rounded up: the volume is made of this size before the disk is uploaded into it.
            metadata |= {"format": "qcow2", "virtual_size": -(-self.virtual_size // GIB)}
        return {
            METADATA: _json(metadata),
            INFO: _json(dict(self.info)),
            VAGRANTFILE: vagrantfile(row.metadata, self.arch, self.base_mac, self.memory_mib, self.cpus),
        }


def pack_box(
    spec: BoxSpec, disk: Path, out: Path, *, description: str = "", on_progress: gzips.OnProgress | None = None
) -> None:
    """Write a box; it appears under its name only when whole. The same arguments give the same bytes.

    Args:
        spec: what the box says of itself.
        disk: in the provider's format.
        out: the box to make or replace.
        description: the OVF description, for the providers that want one.
        on_progress: called with bytes of the disk done, and all of them.
    """
    row = PROVIDERS[spec.provider]
    texts = spec.texts() | ({OVF: description} if row.described else {})
    with (
        writing(out) as stream,
        gzips.Writer(stream) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        # What describes the disk comes first, so that a reader knows what it is before it has read it all.
        for name, text in sorted(texts.items()):
            data = text.encode()
            tar.addfile(_member(name, len(data)), io.BytesIO(data))
        size = disk.stat().st_size
        with disk.open("rb") as source:
            tar.addfile(_member(row.disk, size), _Counted(source, size, on_progress))


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)  # mtime, uid and gid 0, no names
    member.size, member.mode = size, 0o644
    return member


class _Counted(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, source: IO[bytes], size: int, on_progress: gzips.OnProgress | None) -> None:
        self._source, self._size, self._on_progress, self._done, self._told = source, size, on_progress, 0, 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self._done += len(data)
        if self._on_progress is not None and (self._done - self._told >= CHUNK or self._done == self._size):
            self._told = self._done
            self._on_progress(self._done, self._size)
        return data
