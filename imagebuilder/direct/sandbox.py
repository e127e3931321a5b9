"""Runs commands in a root tree, inside namespaces of their own: no mount of ours exists outside of them.

When the command ends, or this process dies, the kernel ends every process in there and drops the mounts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuilder import process, userns
from imagebuilder.process import namespaces

INSIDE = "/run/imagebuilder"  # where a sandbox sees what it is given; a tmpfs, so nothing of it stays in the layer
NAMES = (Path("/etc/resolv.conf"), Path("/etc/hosts"))  # where a host's names are found: resolver(5), hosts(5)
SCRIPT = Path(__file__).with_name("sandbox.sh")
USER_MARKS = "userxattr"  # the option with which overlayfs keeps its own marks where root may not set trusted.*
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # of every distribution's own packages; nothing of the host's


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """An overlay mount at ``target``; read-only without ``upper``. ``lower`` lists the topmost folder first."""

    lower: Sequence[Path]
    upper: Path | None = None
    work: Path | None = None
    target: str = "/"

    def words(self) -> list[str]:
        """Return the mount as arguments of the script."""
        lower = ":".join(_escaped(path) for path in self.lower)
        if self.upper is None or self.work is None:
            return ["overlay-ro", self.target, lower]
        return ["overlay", self.target, lower, _escaped(self.upper), _escaped(self.work)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bind:
    """A file or folder of the host at ``target``; read-only unless ``writable``."""

    source: Path
    target: str
    writable: bool = False

    def words(self) -> list[str]:
        """Return the mount as arguments of the script."""
        return ["bind" if self.writable else "robind", str(self.source), self.target]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tmpfs:
    """An empty file system in memory at ``target``."""

    target: str

    def words(self) -> list[str]:
        """Return the mount as arguments of the script."""
        return ["tmpfs", self.target]


Mount = Overlay | Bind | Tmpfs


def _escaped(path: Path) -> str:
    """Escape what separates folders and options in overlayfs's mount options."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def command(
    root: Path,
    mounts: Sequence[Mount],
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    network: bool = False,
) -> list[str]:
    """Return the command that runs ``argv`` in ``root`` with ``mounts`` and a clean environment.

    Args:
        root: the tree, or an empty folder for mounts to make one.
        mounts: in this order.
        argv: the command.
        env: variables beside the fixed ones.
        network: it has the host's network and its names; otherwise there is none.
    """
    if network:
        mounts = [*mounts, *(Bind(source=path, target=str(path)) for path in NAMES if path.is_file())]
    words = [*(["network"] if network else []), *(word for mount in mounts for word in mount.words())]
    settings = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "TZ": "UTC"} | dict(env or {})
    pairs = [f"{name}={value}" for name, value in sorted(settings.items())]
    return [
        *namespaces(network=network),
        "/bin/sh",
        str(SCRIPT),
        str(root),
        USER_MARKS if userns.mapped() else "",
        *words,
        "--",
        "/usr/bin/env",
        "-i",
        *pairs,
        *argv,
    ]


def require_tools() -> None:
    """Raise ToolMissingError unless the programs that namespaces need are there."""
    for program in ("unshare", "mount"):
        process.require(program, package="util-linux mount")
