"""A small root tree with this machine's /usr below it, and strict stand-ins for the programs that steps call."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder.direct.sandbox import Bind, Mount, Overlay, Tmpfs, command
from imagebuilder.process import RealRunner, Result

STUBS = {
    "refuse": """
        echo "$(basename "$0") $*" >> /calls/log
        echo "the stand-in for $(basename "$0") does not know: $*" >&2
        exit 64""",
    "apt-get": """
        all=$*
        while [ $# -gt 0 ]; do
            case $1 in
                -o)
                    case $2 in
                        DPkg::Lock::Timeout=300 | Dpkg::Use-Pty=0 | Dpkg::Options::=--force-confold) shift 2 ;;
                        *) exec refuse "$all" ;;
                    esac ;;
                -y | --no-install-recommends) shift ;;
                update | clean) [ $# = 1 ] || exec refuse "$all"; echo "apt-get $1" >> /calls/log; exit ;;
                install) shift; break ;;
                *) exec refuse "$all" ;;
            esac
        done
        [ $# -gt 0 ] || exec refuse "$all"
        echo "apt-get install $*" >> /calls/log
        for name in "$@"; do case $name in -*) exec refuse "$all" ;; *) : > "/packages/$name" ;; esac; done""",
    "dpkg-query": """
        [ $# = 4 ] && [ "$1 $2 $3" = '-W -f ${db:Status-Status}' ] || exec refuse "$@"
        [ -e "/packages/$4" ] || { echo "no packages found matching $4" >&2; exit 1; }
        printf installed""",
    "apt-mark": """
        [ $# = 2 ] && [ "$1" = hold ] && [ -e "/packages/$2" ] || exec refuse "$@"
        echo "apt-mark $*" >> /calls/log
        echo "$2 set on hold." """,
    "systemctl": """
        [ "$1 $2" = "--quiet enable" ] && [ $# -gt 2 ] || exec refuse "$@"
        shift 2
        for unit in "$@"; do
            [ -e "/etc/systemd/system/$unit" ] || [ -e "/units/$unit" ] || exec refuse "enable $unit: no such unit"
            mkdir -p /etc/systemd/system/multi-user.target.wants
            ln -sfn "/etc/systemd/system/$unit" "/etc/systemd/system/multi-user.target.wants/$unit"
        done
        echo "systemctl enable $*" >> /calls/log""",
    "update-initramfs": """
        [ $# = 3 ] && [ "$1 $2" = "-c -k" ] && [ -d "/lib/modules/$3" ] || exec refuse "$@"
        echo "update-initramfs $*" >> /calls/log
        cat /etc/initramfs-tools/conf.d/* > "/boot/initrd.img-$3" """,
    "modprobe": """
        [ $# = 4 ] && [ "$1 $3" = "--set-version --show-depends" ] && [ -d "/lib/modules/$2" ] || exec refuse "$@"
        [ -e "/lib/modules/$2/$4" ]""",
    "containerd": """
        [ "$1" != --version ] || { echo "containerd github.com/containerd/containerd 1.7.24~ds1"; exit; }
        [ "$1" = --config ] && [ -s "$2" ] || exec refuse "$@"
        ! grep '@[A-Z_]*@' "$2" || exec refuse "$2 is a template"
        case "$3 $4" in
            "config dump") cat "$2" ;;
            "--log-level warn") : > /run/containerd-is-up; exec sleep 60 ;;
            *) exec refuse "$@" ;;
        esac""",
    "ctr": """
        [ "$*" != "images import --help" ] || { echo "  --local"; exit; }
        [ "$1" = --address ] || exec refuse "$@"
        [ -e /run/containerd-is-up ] || exit 1
        shift 2
        [ "$*" != version ] || exit 0
        [ "$1 $2 $3" = "--namespace k8s.io images" ] || exec refuse "$@"
        shift 3
        case "$1 $2" in
            "import --local") [ -f "$3" ] || exec refuse "$@" ;;
            "label registry.k8s.io/pause:3.10") ;;
            *) exec refuse "$@" ;;
        esac
        echo "ctr images $*" >> /calls/log""",
}
SILENT = (  # programs that only have to be there
    "kubeadm", "kubectl", "crictl", "runc", "docker", "dockerd", "python3", "openssl", "ip", "conntrack", "socat",
    "ethtool", "iptables", "ebtables",
)  # fmt: skip
FOLDERS = (
    "boot", "calls", "dev", "etc", "home", "opt", "packages", "proc", "root", "run", "stubs", "sys", "tmp",
    "units", "usr", "var/cache/apt", "var/lib/apt/lists", "var/log", "var/tmp", "provision",
)  # fmt: skip


@dataclass(kw_only=True)
class FakeRoot:
    """The tree at ``path``; ``/usr`` is this machine's with what is written kept apart."""

    path: Path
    provision: Path
    env: Mapping[str, str]
    mounts: list[Mount] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path, provision: Path, env: Mapping[str, str]) -> FakeRoot:
        """Make the tree in an empty folder."""
        root = folder / "root"
        for name in FOLDERS:
            (root / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64", "sbin"):
            (root / name).symlink_to(f"usr/{name}")
        for name, text in STUBS.items():
            write_program(root / "stubs" / name, text)
        for name in SILENT:
            write_program(root / "stubs" / name, "exec refuse")
        for name in ("upper", "modules"):
            (folder / name).mkdir()
        mounts: list[Mount] = [
            Tmpfs(target="/run"),
            Bind(source=folder / "modules", target="/usr/lib/modules"),
            Bind(source=provision, target="/provision"),
        ]
        if Path("/etc/alternatives").is_dir():  # awk
            mounts.append(Bind(source=Path("/etc/alternatives"), target="/etc/alternatives"))
        return cls(path=root, provision=provision, env=env, mounts=mounts)

    def run(self, *argv: str, env: Mapping[str, str] | None = None, check: bool = True) -> Result:
        """Run a command inside, with the stand-ins first on its PATH."""
        settings = {
            "IB_PROVISION": "/provision", "IB_FAMILY": "debian", "IB_INIT": "systemd", "PATH": "/stubs:/usr/bin:/bin",
            **self.env, **(env or {}),
        }  # fmt: skip
        with tempfile.TemporaryDirectory(dir=self.path.parent) as work:  # an overlay wants a new one each time
            usr = Overlay(lower=[Path("/usr")], upper=self.path.parent / "upper", work=Path(work), target="/usr")
            words = command(self.path, [usr, *self.mounts], argv, settings)
            return RealRunner().run(words, check=check, timeout=60)

    def shell(self, script: str, **options: bool) -> Result:
        """Run a script that uses the steps' words."""
        return self.run("/bin/sh", "-c", f'. "$IB_PROVISION/lib.sh"\n{script}', **options)  # type: ignore[arg-type]

    def steps(self, *steps: str, **options: bool) -> Result:
        """Run steps as the engine does."""
        return self.run("/bin/sh", "/provision/run-steps.sh", *steps, **options)  # type: ignore[arg-type]

    def calls(self) -> list[str]:
        """Return the recorded calls since the last time."""
        log = self.path / "calls/log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def snapshot(self) -> dict[str, tuple[object, ...]]:
        """Return every file with what must not change; folders with their mode only."""
        found: dict[str, tuple[object, ...]] = {}
        for top in (self.path, self.path.parent / "upper"):
            for path in sorted(top.rglob("*")):
                info = path.lstat()
                kind = stat.S_IFMT(info.st_mode)
                rest: tuple[object, ...] = ()
                if stat.S_ISLNK(kind):
                    rest = (path.readlink(),)
                elif stat.S_ISREG(kind):
                    rest = (info.st_mtime_ns, path.read_bytes())
                found[path.relative_to(top.parent).as_posix()] = (info.st_mode, *rest)
        return {name: entry for name, entry in found.items() if not name.startswith(("root/calls", "root/packages"))}


def write_program(path: Path, text: str) -> None:
    """Write a shell script that can be run."""
    lines = [line.removeprefix("        ") for line in text.strip("\n").splitlines()]
    path.write_text("\n".join(["#!/bin/sh", "set -eu", *lines]) + "\n")
    path.chmod(0o755)


def written(before: Mapping[str, object], after: Mapping[str, object]) -> Sequence[str]:
    """Return what differs between two snapshots."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
