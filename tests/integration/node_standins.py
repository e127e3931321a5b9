"""A node in a folder: what its firmware says, its disks, and strict stand-ins for the programs that the agent runs.

``mount`` stands in for the kernel's: the machines that run the tests may have neither loop devices nor these file
systems. It reads the real images with xorriso and mtools, and refuses any option but the ones that must be there.
"""

from __future__ import annotations

from pathlib import Path

from imagebuilder.agent.agent import AZURE_TAG, SourceHost

MOUNT = """#!/bin/sh
set -eu
echo "mount $*" >> {log}
[ $# = 6 ] && [ "$1 $3 $4" = "-t -o ro,nosuid,nodev,noexec" ] && [ -d "$6" ] || {{ echo "refused: $*" >&2; exit 64; }}
[ "$(stat -c %a "$6")" = 700 ] || {{ echo "others can look into $6" >&2; exit 64; }}
case $2 in
    iso9660 | udf) xorriso -osirrox on -indev "$5" -extract / "$6" > /dev/null 2>&1 ;;
    vfat) MTOOLS_SKIP_CHECK=1 mcopy -s -n -i "$5" ::/ "$6/" ;;
    *) echo "unknown filesystem type '$2'" >&2; exit 32 ;;
esac
"""
UMOUNT = """#!/bin/sh
set -eu
echo "umount $*" >> {log}
[ $# = 1 ] && [ -d "$1" ] || {{ echo "refused: $*" >&2; exit 64; }}
rm -rf "$1"/*
"""
# open-vm-tools: one argument with the whole request; what is not there is an error with these words.
RPCTOOL = """#!/bin/sh
set -eu
echo "rpctool $*" >> {log}
[ $# = 1 ] || exit 64
set -- $1
case "$1 $#" in
    "info-get 2") [ -e "{values}/$2" ] || {{ echo "No value found" >&2; exit 1; }}; cat "{values}/$2" ;;
    "info-set 3") printf %s "$3" > "{values}/$2" ;;
    *) echo "unknown command $1" >&2; exit 64 ;;
esac
"""

FIRMWARE = {
    "aws": {"sys_vendor": "Amazon EC2"},
    "gce": {"sys_vendor": "Google", "product_name": "Google Compute Engine"},
    "azure": {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": AZURE_TAG},
    "openstack": {"sys_vendor": "OpenStack Foundation", "product_name": "OpenStack Nova"},
    "vsphere": {"sys_vendor": "VMware, Inc.", "product_name": "VMware7,1"},
    "digitalocean": {"sys_vendor": "DigitalOcean"},
    "hcloud": {"sys_vendor": "Hetzner", "product_name": "vServer"},
    "bare": {"sys_vendor": "Dell Inc.", "product_name": "PowerEdge R650"},
}


class Node:
    """A folder that looks like a machine to the agent."""

    def __init__(self, folder: Path, kind: str = "bare") -> None:
        self.root, self.log, self.values = folder / "node", folder / "log", folder / "guestinfo"
        self.values.mkdir(parents=True)
        self.log.touch()
        (self.root / "run").mkdir(parents=True)
        for name, value in FIRMWARE[kind].items():
            self.put(f"/sys/class/dmi/id/{name}", value.encode() + b"\n")
        self.host = SourceHost(str(self.root), sandbox="")
        # More than the agent's own: a good answer is one on a busy machine, too.
        self.host.connect_seconds = self.host.read_seconds = self.host.source_seconds = 60.0
        self.host.disk_seconds = self.host.fetch_seconds = self.host.scope_seconds = 60.0
        for name, text in (("mount", MOUNT), ("umount", UMOUNT), ("vmware-rpctool", RPCTOOL)):
            self.program(name, text)
        self.host.commands["vmtoolsd"] = str(folder / "no-vmtoolsd")
        self.host.services = {name: [] for name in self.host.services}  # never the real ones

    def hurry(self) -> None:
        """Let the agent give up soon, where a test has nothing to wait for."""
        self.host.connect_seconds = self.host.read_seconds = 0.5
        self.host.source_seconds = self.host.disk_seconds = self.host.fetch_seconds = 2.0

    def program(self, name: str, text: str) -> None:
        """Put a program in the place of another."""
        path = self.root.parent / name
        path.write_text(text.format(log=self.log, values=self.values))
        path.chmod(0o755)
        self.host.commands[name] = str(path)

    def put(self, name: str, data: bytes) -> None:
        """Write a file of the machine."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def disk(self, name: str, data: bytes) -> None:
        """Attach a disk."""
        self.put(f"/dev/{name}", data)
        self.put(f"/sys/class/block/{name}/size", str(len(data) // 512).encode())

    def calls(self) -> list[str]:
        """Return the first words of what the programs were told, in order."""
        return [line.split()[0] for line in self.log.read_text().splitlines()]
