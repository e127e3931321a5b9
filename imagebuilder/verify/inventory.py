"""What an image has, as its files say: packages with their sizes, enabled units, bytes."""

from __future__ import annotations

from collections.abc import Iterator

from imagebuilder.errors import ArtifactError
from imagebuilder.steps import load_boot_steps
from imagebuilder.verify import rpmdb
from imagebuilder.verify.model import Image, Inventory, Package
from imagebuilder.verify.tree import Tree, read, walk

DPKG_STATUS = "/var/lib/dpkg/status"
MAX_STATUS = 64 << 20  # bytes: of a node it has less than one MiB
UNIT_FOLDERS = ("/etc/systemd/system", "/etc/systemd/user")
_WANTS = (".wants", ".requires")
_KIB = 1024


def take_inventory(image: Image, artifact_size: int) -> Inventory:
    """Return what an image has; sockets are seen in a guest only.

    Args:
        image: the open artifact.
        artifact_size: bytes of its file.

    Raises:
        ArtifactError: a package database or the file system is damaged.
    """
    return Inventory(
        artifact_size=artifact_size,
        installed_size=installed_size(image.root),
        packages=installed_packages(image.root),
        units=enabled_units(image.root),
        boot_steps=len(load_boot_steps()),
    )


def installed_size(root: Tree) -> int:
    """Return the bytes of all regular files; a file with two names counts twice."""
    return sum(entry.size for _, entry in walk(root) if entry.is_file)


def installed_packages(root: Tree) -> tuple[Package, ...]:
    """Return the packages of either family, by name; none where there is no database.

    Raises:
        ArtifactError: a database is damaged, or larger than one can be.
    """
    status = read(root, DPKG_STATUS, MAX_STATUS)
    if status is not None:
        return tuple(sorted(parse_status(status), key=lambda package: (package.name, package.arch)))
    for path in rpmdb.PATHS:
        data = read(root, path, rpmdb.MAX_BYTES)
        if data is not None:
            return rpmdb.parse_rpmdb(data)
    return ()


def parse_status(data: bytes) -> Iterator[Package]:
    """Yield the installed packages of dpkg's status file (deb822(5), deb-control(5): Installed-Size is in KiB).

    Raises:
        ArtifactError: a size is no number.
    """
    for paragraph in data.decode("utf-8", "replace").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.split("\n") if ": " in line and not line.startswith((" ", "\t"))
        )
        if "Package" not in fields or fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        size = fields.get("Installed-Size", "0").strip()
        if not (size.isascii() and size.isdigit() and len(size) < 16):
            raise ArtifactError(f"{DPKG_STATUS}: {fields['Package']}: Installed-Size is {size!r:.40}")
        yield Package(
            name=fields["Package"],
            version=fields.get("Version", ""),
            arch=fields.get("Architecture", ""),
            size=int(size) * _KIB,
        )


def enabled_units(root: Tree) -> tuple[str, ...]:
    """Return the names of units that something wants or requires by a link below /etc (systemd.unit(5)), sorted."""
    return tuple(
        sorted(
            {
                unit
                for folder in UNIT_FOLDERS
                for name in root.names(folder)
                if name.endswith(_WANTS)
                for unit in root.names(f"{folder}/{name}")
            }
        )
    )
