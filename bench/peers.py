"""What others take for the same packages, on this machine: mkosi, debos, diskimage-builder, and the plain tools.

They run in a Debian 13 tree of their own, as newer hosts have them, without network: all packages come from one local
archive. None of them adds kubelet, a boot loader, containers or a configuration: they are given less to do than ours.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import dib
from imagebuilder.content import content_id, sha256_bytes
from imagebuilder.direct.sandbox import Bind, Overlay, command
from imagebuilder.model import LockedPackage
from imagebuilder.process import RealRunner
from imagebuilder.sources.debs import make_repository

SUITE = "trixie"
PROGRAMS = (
    "mkosi,debos,debootstrap,mmdebstrap,apt,dpkg-dev,systemd,systemd-repart,udev,"
    f"e2fsprogs,qemu-utils,zstd,ca-certificates,{dib.PROGRAMS}"
)
QCOW2 = "qemu-img convert -O qcow2 -c -o compression_type=zstd"
MKOSI = """\
[Distribution]
Distribution=debian
Release={suite}
LocalMirror=file:///bench/archive
RepositoryKeyCheck=no

[Output]
Format=disk
ImageId=peer
OutputDirectory=/bench/mkosi/out

[Build]
Incremental={incremental}
CacheDirectory=/bench/mkosi/cache
PackageCacheDirectory=/bench/mkosi/packages
WorkspaceDirectory=/bench/mkosi/workspace
BuildSources=

[Content]
Bootable=no
WithDocs=no
Packages={packages}
"""
DEBOS = """\
architecture: amd64
actions:
  - action: debootstrap
    suite: {suite}
    mirror: file:///bench/archive
    components: [main]
    variant: minbase
    check-gpg: false
  - action: run
    command: mkdir -p $ROOTDIR/bench/archive && mount --bind /bench/archive $ROOTDIR/bench/archive
  - action: run
    chroot: true
    command: apt-get install --yes --no-install-recommends --allow-unauthenticated {packages}
  - action: run
    command: umount $ROOTDIR/bench/archive && rm -r $ROOTDIR/bench
  - action: pack
    compression: none
    file: root.tar
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One way to an image, as a shell command for the tree of programs.

    Attributes:
        made: what it makes, below the work folder.
        lacks: what it does not do that ours does.
        install: brings it into the tree, unless it is a package of Debian's.
    """

    name: str
    command: str
    made: str
    lacks: str
    install: Callable[[Path], None] = lambda tree: None


_MKOSI = f"mkosi -C /bench/mkosi --force build && {QCOW2} /bench/mkosi/out/peer.raw /bench/mkosi/peer.qcow2"
# It copies resolv.conf, which a tree without network does not have, and runs programs in systemd-nspawn, which wants
# what a machine has that was booted.
_DEBOS = (
    "install /dev/null /etc/resolv.conf && systemd-id128 new >/etc/machine-id && mount -t tmpfs tmpfs /run"
    " && mkdir -p /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    " && cd /bench/debos && debos --disable-fakemachine recipe.yaml"
)
PEERS = (
    Peer(
        name="mkosi, cold", command=_MKOSI, made="mkosi/peer.qcow2", lacks="no kubelet, containers, boot loader"
    ),
    Peer(
        name="mkosi, incremental", command=_MKOSI, made="mkosi/peer.qcow2",
        lacks="as above; its cache has all packages, installed",
    ),
    Peer(
        name="debos", command=_DEBOS, made="debos/root.tar", lacks="as above, and no disk: a tar of the root tree"
    ),
    Peer(
        name="mmdebstrap + mke2fs -d + qemu-img convert -c",
        command=f"mmdebstrap --mode=root --variant=essential --skip=check/empty --format=directory"
        f" --include=$(cat /bench/names) {SUITE} /bench/plain/root 'deb [trusted=yes] copy:/bench/archive {SUITE} main'"
        f" && truncate -s 8G /bench/plain/raw && mke2fs -q -t ext4 -F -d /bench/plain/root /bench/plain/raw"
        f" && {QCOW2} /bench/plain/raw /bench/plain/peer.qcow2",
        made="plain/peer.qcow2", lacks="no kubelet, containers, boot loader",
    ),
    Peer(
        name=dib.NAME, command=dib.COMMAND, made="dib/peer.qcow2", install=dib.install,
        lacks="no kubelet, containers, boot loader, partitions; some packages more (sudo, locales, gnupg)",
    ),
)  # fmt: skip


def write_archive(packages: Sequence[LockedPackage], store: Path, archive: Path) -> None:
    """Write an apt archive of exactly these packages, with the folders that debootstrap wants.

    The format is of wiki.debian.org/DebianRepository/Format.
    """
    make_repository(packages, store, SUITE, archive, RealRunner())
    index = (archive / "Packages").read_bytes()
    folder = archive / "dists" / SUITE
    binary = folder / "main/binary-amd64"
    binary.mkdir(parents=True)
    sums = []
    for name, data in (("Packages", index), ("Packages.gz", gzip.compress(index, mtime=0))):
        (binary / name).write_bytes(data)
        sums.append(f" {sha256_bytes(data)} {len(data)} main/binary-amd64/{name}\n")
    head = f"Origin: Debian\nSuite: {SUITE}\nCodename: {SUITE}\nArchitectures: amd64\nComponents: main\nSHA256:\n"
    (folder / "Release").write_text(head + "".join(sums))


def programs(cache: Path) -> Path:
    """Return a Debian 13 tree with the peers in it, made once for one list of programs."""
    tree = cache / f"bench-peers-{content_id(PROGRAMS)[:12]}"
    if not tree.is_dir():
        RealRunner().run(["rm", "-rf", *cache.glob("bench-peers*")])  # of another list, or half of one
        aside = cache / "bench-peers.new"
        RealRunner().run(
            ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={PROGRAMS}", SUITE, aside], timeout=1800
        )
        aside.rename(tree)
    return tree


def versions(tree: Path) -> dict[str, str]:
    """Return the versions of the peers in the tree."""
    argv = ["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "--show", "mkosi", "debos", "mmdebstrap"]
    said = RealRunner().run(argv, capture=True).stdout
    return dict(line.split("\t") for line in said.splitlines()) | dib.version(tree)


def prepare(packages: Sequence[LockedPackage], extra: Sequence[LockedPackage], store: Path, work: Path) -> None:
    """Write the archives and each peer's recipe into the empty folder ``work``; ``extra`` are for dib only."""
    write_archive(packages, store, work / "archive")
    write_archive(sorted({*packages, *extra}, key=lambda package: package.filename), store, work / "dib/archive")
    names = sorted(package.name for package in packages)
    texts = {
        "mkosi/mkosi.conf": MKOSI.format(suite=SUITE, incremental="yes", packages=",".join(names)),
        "debos/recipe.yaml": DEBOS.format(suite=SUITE, packages=" ".join(names)),
        "dib/layout.yaml": dib.LAYOUT,
        "names": ",".join(names),
    }
    for name, text in texts.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(text)
    for name in ("mkosi/out", "mkosi/cache", "mkosi/packages", "mkosi/workspace", "plain", "dib/elements", dib.SCRATCH):
        (work / name).mkdir()


def run(peer: Peer, tree: Path, work: Path) -> None:
    """Run a peer in its tree; what it writes there is in a scratch overlay.

    Raises:
        CommandError: it failed.
    """
    scratch = work / "scratch"
    RealRunner().run(["rm", "-rf", scratch])
    for name in ("mnt", "upper", "work"):
        (scratch / name).mkdir(parents=True)
    mounts = [
        Overlay(lower=[tree], upper=scratch / "upper", work=scratch / "work"),
        Bind(source=work, target="/bench", writable=True),
    ]
    argv = command(scratch / "mnt", mounts, ["/bin/sh", "-euc", peer.command])
    with dib.loops_detached(work):
        RealRunner().run(argv, log=work / "peers.log", timeout=1800)
