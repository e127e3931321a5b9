"""Bakes a small stack, through the command line, and says all of the tree; twice, that must be the same.

usage: samebake.py CACHE OUT BUILDER JOBS. OUT gets the disk in all formats, ``sums.json`` and ``tree.json``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import smallstack

import imagebuilder.bake
from imagebuilder.__main__ import main
from imagebuilder.artifacts import BOX, Packing, write_artifact
from imagebuilder.content import at_most, sha256_file
from imagebuilder.direct.disk import volumes
from imagebuilder.direct.formats import FORMATS, Subject
from imagebuilder.direct.layers import Layer
from imagebuilder.direct.tree import Entry, merge
from imagebuilder.direct.virtual import RawFile
from imagebuilder.publish.boxes import BoxSpec

NANO = 1_000_000_000
EVERY_FORMAT = (*FORMATS, BOX)
# Owners at the edges, what others may not read, what is set after the owner, and attributes with owners in them:
# a capability (linux/capability.h, version 2) and an access list (linux/posix_acl_xattr.h). 188 is amd64's setxattr(2).
HARD = r"""
mkdir -p /srv; cd /srv
for id in 0 1 33 999 65534 65535; do echo $id > $id; chown $id:$id $id; chmod 0600 $id; done
mkdir -m 0700 closed; echo x > closed/in; chown -R 33:65534 closed
echo setuid > setuid; chown 33:42 setuid; chmod 6755 setuid
mkdir -m 1777 sticky; ln 33 hard; ln -s nowhere link; mkfifo -m 0640 pipe; chown -h 33:33 link
perl -e '
sub set { my ($path, $name, $value) = @_; syscall(188, $path, $name, $value, length $value, 0) == 0 or die "$name: $!" }
set("setuid", "security.capability", pack("V5", 0x02000001, 1 << 13, 0, 0, 0));
set("sticky", "user.note", "kept");
set("0", "system.posix_acl_access", pack("V(vvV)5", 2, 1, 6, 0, 2, 4, 33, 4, 4, 0, 16, 4, 0, 32, 0, 0));
'
rm -rf /var/log/apt /var/log/*.log /var/lib/dbus/machine-id # as the step site/90-clean does
rm -r /etc/goes; mkdir /etc/goes; echo new > /etc/goes/one
"""


def tree_facts(work: Path, layers: Sequence[Layer]) -> dict[str, str]:
    """Return all that the image has of each path, as one line."""
    entries = merge([work / "upper", *(layer.root for layer in reversed(layers))], volumes(layers[-1]))
    return {f"/{entry.path.decode(errors='replace')}": fact(entry, entries) for entry in entries}


def fact(entry: Entry, entries: Sequence[Entry]) -> str:
    """Return what an entry is; no time is younger than the image's."""
    content = sha256_file(Path(entry.host.decode())) if entry.mode >> 12 == 8 else ""
    attributes = " ".join(f"{name}={value.hex()}" for name, value in entry.xattrs)
    first = entries[entry.link].path.decode(errors="replace")
    time = min(entry.mtime_ns, smallstack.EPOCH * NANO)
    kind = f"{entry.mode:o} {entry.uid}:{entry.gid} {entry.rdev} at {time}"
    return f"{kind} {content[:16]}{entry.target.decode(errors='replace')} of /{first} {attributes}".rstrip()


def different(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return a line for each path of which two trees say different things."""
    return [
        f"{path}: {one.get(path, 'not there')} | {other.get(path, 'not there')}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]


def bake(cache: Path, out: Path, builder: str, jobs: int | None) -> None:
    """Bake the stack, write each format, and say what is in the tree."""
    engine = smallstack.make_engine(cache)
    out.mkdir()
    found = smallstack.jobs(smallstack.Want(layers=4, attempt=HARD))
    found[0] = dataclasses.replace(found[0], fast=builder == "fast", texts={"/etc/apt/sources.list": ""})
    with at_most(jobs), imagebuilder.bake.fixed_umask(), engine.store as store, store.scratch("disk") as work:
        layers = engine.build(found)
        raw = smallstack.disk(engine, layers, work)
        (out / "tree.json").write_text(json.dumps(tree_facts(work, layers)))
        with RawFile(raw) as disk:
            for name in EVERY_FORMAT:
                box = BoxSpec(provider="libvirt", name="x", arch="amd64", virtual_size=disk.size, seed="seed", info={})
                packed = Packing(format=name, subject=Subject(name="x", seed="seed"), box=box if name == BOX else None)
                write_artifact(disk, out / name, packed)
    (out / "sums.json").write_text(json.dumps({name: sha256_file(out / name) for name in EVERY_FORMAT}))


def through_the_command_line(cache: Path, out: Path, builder: str, jobs: str) -> int:
    """Bake this as ``imagebuilder bake`` does: an ordinary user gets his namespace there."""

    def instead(*_: Any, options: imagebuilder.bake.BakeOptions, **__: Any) -> None:
        bake(cache, out, builder, options.jobs)
        sys.exit(0)

    imagebuilder.bake.bake = instead  # type: ignore[assignment]
    return main(["bake", "--os", "debian", "--target", "raw", "--verify", "none", "--jobs", jobs])


if __name__ == "__main__":
    sys.exit(through_the_command_line(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:5]))
