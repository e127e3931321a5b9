"""A small root tree with this machine's /usr below it, and strict stand-ins for the programs that steps call."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from standins import EVERYWHERE, FAMILIES, SILENT

from imagebuilder.direct.sandbox import Bind, Mount, Overlay, Tmpfs, command
from imagebuilder.process import RealRunner, Result

FOLDERS = (
    "active", "boot", "calls", "dev", "etc", "home", "opt", "packages", "proc", "root", "run", "stubs", "sys", "tmp",
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
    def make(
        cls, folder: Path, provision: Path, env: Mapping[str, str], *, family: str = "debian", machine: bool = False
    ) -> FakeRoot:
        """Make the tree in an empty folder; ``machine`` says that it is one of a machine that runs."""
        root = folder / "root"
        for name in FOLDERS:
            (root / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64", "sbin"):
            (root / name).symlink_to(f"usr/{name}")
        for name, text in {**EVERYWHERE, **FAMILIES[family]}.items():
            write_program(root / "stubs" / name, text)
        for name in SILENT:
            write_program(root / "stubs" / name, "exec refuse")
        if not machine:
            (root / "stubs/cloud-init").unlink()
        for name in ("upper", "modules", "booted"):
            (folder / name).mkdir()
        mounts: list[Mount] = [
            Tmpfs(target="/run"),
            Bind(source=folder / "modules", target="/usr/lib/modules"),
            Bind(source=provision, target="/provision"),
        ]
        if machine:
            mounts.append(Bind(source=folder / "booted", target="/run/systemd/system"))
        if Path("/etc/alternatives").is_dir():  # awk
            mounts.append(Bind(source=Path("/etc/alternatives"), target="/etc/alternatives"))
        return cls(path=root, provision=provision, env={"IB_FAMILY": family, **env}, mounts=mounts)

    def run(self, *argv: str, env: Mapping[str, str] | None = None, check: bool = True) -> Result:
        """Run a command inside, with the stand-ins first on its PATH."""
        settings = {
            "IB_PROVISION": "/provision", "IB_INIT": "systemd", "PATH": "/stubs:/usr/bin:/bin",
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
        kept = ("root/calls", "root/packages", "root/pulled")  # the stand-ins' own
        return {name: entry for name, entry in found.items() if not name.startswith(kept)}


def write_program(path: Path, text: str) -> None:
    """Write a shell script that can be run."""
    lines = [line.removeprefix("        ") for line in text.strip("\n").splitlines()]
    path.write_text("\n".join(["#!/bin/sh", "set -eu", *lines]) + "\n")
    path.chmod(0o755)


def written(before: Mapping[str, object], after: Mapping[str, object]) -> Sequence[str]:
    """Return what differs between two snapshots."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
