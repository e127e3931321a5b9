"""diskimage-builder from PyPI as a peer: what it wants in its tree and in its archive, and how it is started.

Of a disk it makes a file system without a partition table, on a loop device: only its partitioning wants a device
mapper. It gets the packages over HTTP, because the root tree that it works in sees no folder of ours.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from imagebuilder.cells import plan_request
from imagebuilder.errors import CommandError, ToolMissingError
from imagebuilder.events import Progress
from imagebuilder.model import BuildRequest, LockedPackage
from imagebuilder.process import RealRunner, inherited
from imagebuilder.repositories import Repositories
from imagebuilder.sources.download import Downloader

NAME = "diskimage-builder"
PYTHON = "3.13"  # Debian 13's
MODULES = f"usr/local/lib/python{PYTHON}/dist-packages"  # in the tree: sudo drops PYTHONPATH
INSTALLED = "diskimage_builder-*.dist-info"  # below it
PROGRAMS = "sudo,kpartx,dosfstools,gdisk,python3,curl,git,procps,xz-utils,file,iproute2"  # that it calls, or we do
# What its element for Debian installs beside the packages that are asked for. Not linux-image-amd64: the list has a
# kernel, so the element is copied without. A copy of the same name does not do: it installs what either wants.
EXTRA = (
    "systemd-sysv", "busybox", "sudo", "gnupg2", "python3", "netbase", "adduser", "ca-certificates", "locales",
    "lsb-release", "tzdata",
)  # fmt: skip
SCRATCH = "dib/tmp"  # below the work folder; where its image lies while a loop device has it
# As docs.openstack.org/diskimage-builder, "Disk Image Layout", has it.
LAYOUT = """\
- local_loop:
    name: image0
- mkfs:
    name: root
    base: image0
    type: ext4
    label: cloudimg-rootfs
    mount:
      mount_point: /
      fstab:
        options: defaults
"""
URL = "http://127.0.0.1:8000"
COMMAND = f"""
ip link set lo up
mount -t devpts devpts /dev/pts
mknod /dev/loop-control c 10 237
for number in $(seq 0 31); do mknod /dev/loop$number b 7 $number; done
python3 -m http.server --bind 127.0.0.1 --directory /bench/dib/archive 8000 > /bench/dib/http.log 2>&1 &
for try in $(seq 100); do curl -sf -o /dev/null {URL}/Packages && break; sleep 0.1; done
cp -r /{MODULES}/diskimage_builder/elements/debian-minimal /bench/dib/elements/debian-peer
echo netbase: > /bench/dib/elements/debian-peer/package-installs.yaml
export TMP_DIR=/bench/{SCRATCH} ELEMENTS_PATH=/bench/dib/elements DIB_BLOCK_DEVICE_CONFIG=file:///bench/dib/layout.yaml
export DIB_RELEASE=trixie DIB_AVOID_PACKAGES_UPDATE=1
line='deb [trusted=yes] {URL} trixie main'
export DIB_DISTRIBUTION_MIRROR="'$line'" DIB_APT_SOURCES_CONF="default:$line"
python3 /{MODULES}/bin/disk-image-create -n -o /bench/dib/peer -t qcow2 --no-tmpfs \\
    --qemu-img-options compression_type=zstd -p "$(cat /bench/names)" debian-peer
"""


def install(tree: Path) -> None:
    """Bring it into the tree of programs, once.

    Raises:
        ToolMissingError: there is no pip, or the package index does not have it.
    """
    target = tree / MODULES
    if list(target.glob(INSTALLED)):
        return
    argv: list[str | Path] = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile", "--target", target,
        "--python-version", PYTHON, "--platform", "manylinux2014_x86_64", "--only-binary", ":all:", NAME, "setuptools",
    ]  # fmt: skip
    try:
        RealRunner().run(argv, env=inherited("PIP_"), timeout=600)
    except CommandError as error:
        message = "it cannot be had from the package index"
        raise ToolMissingError(message, context=error.context, hint="see what pip says") from error
    RealRunner().run(["chroot", tree, "python3", "-m", "compileall", "-q", f"/{MODULES}"])


def version(tree: Path) -> dict[str, str]:
    """Return its version in the tree by its name; nothing when it is not there."""
    found = [path.name.split("-")[1].removesuffix(".dist") for path in (tree / MODULES).glob(INSTALLED)]
    return {NAME: found[0]} if found else {}


def extra_packages(cache: Path, store: Path, log: Path) -> list[LockedPackage]:
    """Bring what its elements install by themselves into ``store``, and return it, with all that is essential.

    Args:
        cache: one in which Debian 13 was baked.
    """
    plan = plan_request(BuildRequest(os="debian", target="qemu"))
    folder = Repositories(plan, cache=cache, runner=RealRunner(), downloader=Downloader(), log=log).folder
    packages = folder.solve(("?essential", "apt", *EXTRA))
    with Progress().stage("diskimage-builder") as stage:
        folder.fetch(packages, store, stage, log)
    return list(packages)


@contextlib.contextmanager
def loops_detached(work: Path) -> Iterator[None]:
    """Detach, whatever happens in the block, the loop devices of its images: they outlive its namespaces."""
    try:
        yield
    finally:
        for image in (work / SCRATCH).glob("*/*.raw"):
            argv: list[str | Path] = ["losetup", "--noheadings", "--output", "NAME", "--associated", image]
            for device in RealRunner().run(argv, capture=True).stdout.split():
                RealRunner().run(["losetup", "--detach", device])
