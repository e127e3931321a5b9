"""A small, real stack of layers: essential packages of Debian below steps of a test's own; as a program it bakes it.

usage: smallstack.py CACHE WHAT, where WHAT is a JSON object: see Want.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imagebuilder import process
from imagebuilder.content import canonical_json, content_id, write_atomic
from imagebuilder.direct.disk import DiskSpec, begin, write_disk
from imagebuilder.direct.engine import DirectEngine
from imagebuilder.direct.layerjob import LayerJob
from imagebuilder.direct.layers import Layer, LayerStore
from imagebuilder.direct.virtual import materialize
from imagebuilder.events import Event, Progress, Stage
from imagebuilder.model import LockedPackage, plain
from imagebuilder.process import RealRunner
from imagebuilder.sources.apt import AptFolder, Archive
from imagebuilder.sources.debs import make_repository

SUITE, ARCH = "trixie", "amd64"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BASE = ("?essential", "apt")
RUNTIME = ("dbus-daemon",)  # has a maintainer script and a few dependencies
TOOLS = (
    "e2fsprogs", "dosfstools", "mtools", "grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "grub-efi-amd64-signed",
    "shim-signed",
)  # fmt: skip
EPOCH = 1_700_000_000
CACHE = Path(os.environ.get("IMAGEBUILDER_TEST_CACHE") or Path.home() / ".cache/imagebuilder-test")

STEPS = {
    "base/10-kernel.sh": "cd /boot; printf kernel > vmlinuz-6.1; printf initramfs > initrd.img-6.1",
    "base/20-file.sh": "cd /etc; mkdir goes; echo x > goes/a; echo x > gone; echo lower > both;"
    " printf '%0100000d' 7 > /var/big",
    "runtime/10-install.sh": "apt-get update && apt-get -y install dbus-daemon; echo 1 > /var/lib/runtime",
    "upper/10-remove.sh": "cd /etc; rm gone; rm -r goes; mkdir goes; echo y > goes/b; echo upper > both",
    "upper/20-volume.sh": "mkdir -p /var/lib/containerd/store; echo image > /var/lib/containerd/store/blob",
    "site/10-volume.sh": "cat /var/lib/containerd/store/blob; echo more >> /var/lib/containerd/store/blob",
    "upper/30-try.sh": 'eval "$IB_TRY"',
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """What the program bakes.

    Attributes:
        salt: goes into the ids of all layers, so that nothing is cached.
        layers: how many of the stack.
        attempt: shell of one more step in the topmost layer.
        stop_at: ``sync`` or ``esp.img``: hold still there, for the test to do something.
        disk: write the disk too.
        fast: make the base with the fast root builder, not with mmdebstrap; no part of its id.
    """

    salt: str = ""
    base_salt: str = ""
    layers: int = 2
    attempt: str = ""
    stop_at: str = ""
    disk: bool = False
    fast: bool = True


def say(*words: str) -> None:
    """Print a line for the process that watches."""
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def hold(argv: Sequence[str | Path], **options: Any) -> process.Child:
    """Hold still in place of a commit's sync, and say so."""
    say("holding")
    return process.spawn(["sleep", "300"], **options)


class Lines:
    """A monitor that prints what happens, for the process that watches."""

    def emit(self, event: Event) -> None:
        """Print an event."""
        say(event.kind, event.stage, event.text.replace("\n", " "))


def locked(cache: Path = CACHE) -> dict[str, tuple[LockedPackage, ...]]:
    """Return exact packages per layer, their files in ``cache/debs``; the archive is asked only the first time."""
    runner, log = RealRunner(), cache / "log"
    path = cache / f"lock-{content_id([SUITE, ARCH, BASE, RUNTIME, TOOLS])[:12]}.json"
    debs = cache / "debs"
    if path.exists():
        data = json.loads(path.read_bytes())
        lock = {name: tuple(LockedPackage(**item) for item in items) for name, items in data.items()}
        if all((debs / package.filename).exists() for packages in lock.values() for package in packages):
            return lock
    archive = Archive(name="debian", suite=SUITE, arch=ARCH, components=("main",), keyring=KEYRING)
    folder = AptFolder(cache / "apt", archive, runner)
    folder.update(log)
    solved = {
        name: folder.solve([*BASE, *more]) for name, more in (("base", ()), ("runtime", RUNTIME), ("tools", TOOLS))
    }
    lock = {"base": solved["base"]}
    for name in ("runtime", "tools"):
        lock[name] = tuple(package for package in solved[name] if package not in solved["base"])
    with Progress().stage("fetch") as stage:
        folder.fetch([package for packages in lock.values() for package in packages], debs, stage, log)
    write_atomic(path, canonical_json(plain(lock)))
    return lock


def write_provision(folder: Path) -> Path:
    """Write a provision folder with the steps of this module, and the real ``run-steps.sh``."""
    from imagebuilder import resources

    runner = folder / "run-steps.sh"
    if not runner.exists():
        for name, text in STEPS.items():
            write_atomic(folder / "steps" / name, f"#!/bin/sh\nset -eu\n{text}\n", mode=0o755)
        write_atomic(runner, (resources.folder("provision") / "run-steps.sh").read_bytes())
    return folder


def at_once(argv: Sequence[str | Path], **options: Any) -> process.Child:
    """Wait for the sync: tests look at a layer as soon as it is there."""
    child = process.spawn(argv, **options)
    child.wait()
    return child


def make_engine(cache: Path, *, holding: bool = False, progress: Progress | None = None) -> DirectEngine:
    """Return an engine whose packages come from the tests' own cache."""
    runner = RealRunner()

    def repository(packages: Sequence[LockedPackage], out: Path, stage: Stage) -> Path:
        make_repository(packages, CACHE / "debs", SUITE, out, runner)
        return out

    return DirectEngine(
        store=LayerStore(cache, hold if holding else at_once), runner=runner, progress=progress or Progress(),
        provision=write_provision(cache / "provision"), suite=SUITE, arch=ARCH, log=cache / "log",
        make_repository=repository,
    )  # fmt: skip


def jobs(want: Want) -> list[LayerJob]:
    """Return the jobs of the stack; a layer's id covers what is below it."""
    lock, found = locked(), list[LayerJob]()
    installed: dict[str, str] = {}
    for name in ("base", "runtime", "upper", "site")[: want.layers]:
        steps = [step for step in STEPS if step.startswith(f"{name}/") and step != "upper/30-try.sh"]
        top = len(found) == want.layers - 1
        if want.attempt and top:
            steps.append("upper/30-try.sh")
        packages = lock.get(name, ())
        installed |= {package.name: package.version for package in packages}
        salt = want.base_salt if name == "base" else want.salt
        parent = found[-1].id if found else ""
        found.append(
            LayerJob(
                name=name, id=content_id([name, parent, plain(packages), steps, salt, want.attempt if top else ""]),
                packages=packages, installed=dict(installed), steps=tuple(steps),
                env={"IB_TRY": want.attempt} if top else {}, binds=(), texts={}, info={"steps": steps},
                fast=want.fast,
            )
        )  # fmt: skip
    return found


def disk(engine: DirectEngine, layers: Sequence[Layer], work: Path, **changes: Any) -> Path:
    """Write the disk of a stack into ``work``, as a raw file."""
    tools = engine.tools(layers[0], locked()["tools"])
    spec = DiskSpec(
        size=1 << 30, seed="seed", arch=ARCH, firmware=("bios", "uefi"), kernel_arguments=("console=ttyS0",),
        vendor="debian", epoch=EPOCH,
    )  # fmt: skip
    with begin(spec, work, engine.runner, engine.log) as early:
        early.start(tools)
        materialize(write_disk(early, layers), work / "disk.raw")
    return work / "disk.raw"


def bake(cache: Path, want: Want) -> None:
    """Bake as the recipe does."""
    engine = make_engine(cache, holding=want.stop_at == "sync", progress=Progress(Lines()))
    with engine.store as store:
        store.sweep()
        layers = engine.build(jobs(want))
        if want.disk:
            engine.tools(layers[0], locked()["tools"])
            with store.scratch(f"disk-{want.salt}") as work, engine.progress.stage("disk"):
                disk(engine, layers, work)
    say("baked", layers[-1].id)


def through_the_command_line(cache: Path, want: Want) -> int:
    """Bake this stack as ``imagebuilder bake`` bakes its own: its handling of signals and errors, its exit codes."""
    import imagebuilder.bake
    from imagebuilder.__main__ import main

    def instead(*args: object, **options: object) -> None:
        bake(cache, want)
        sys.exit(0)

    imagebuilder.bake.bake = instead  # type: ignore[assignment]
    return main(["bake", "--os", "debian", "--target", "raw", "--verify", "none"])


@contextlib.contextmanager
def baking(cache: Path, want: Want) -> Iterator[process.Child]:
    """Bake in a process of its own; whatever happens, it is ended."""
    argv = [sys.executable, __file__, cache, json.dumps(asdict(want))]
    child = process.spawn(argv, env={"IMAGEBUILDER_TEST_CACHE": str(CACHE)})
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def wait_for(child: process.Child, word: str, seconds: float = 60) -> list[str]:
    """Read what the child prints until a line holds ``word``, or raise."""
    lines: list[str] = []
    deadline = time.monotonic() + seconds
    assert child.stdout is not None
    for raw in child.stdout:
        lines.append(raw.decode().rstrip())
        if word in lines[-1]:
            return lines
        if time.monotonic() > deadline:
            break
    raise AssertionError("\n".join([f"never said: {word}", *lines[-20:]]))


if __name__ == "__main__":
    sys.exit(through_the_command_line(Path(sys.argv[1]), Want(**json.loads(sys.argv[2]))))
