"""Bakes the tiny distribution as ``imagebuilder bake`` does, and can be told to die at a given moment.

usage: tinybake.py WORLD WHAT ARGUMENT..., where WORLD is the folder of a tinydistro.World, WHAT a JSON object (see
What), and the arguments are those of ``imagebuilder bake``. A moment is a number: of what this process has changed in
the file system, or has started, so far; it does not depend on how fast the machine is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smallstack import say

from imagebuilder import process

COUNTED = frozenset({
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime",
    "subprocess.Popen", "fcntl.flock",
})  # fmt: skip
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SECONDS = 120  # after which a bake of ours hangs


@dataclass(frozen=True, kw_only=True, slots=True)
class What:
    """What the program does beside baking.

    Attributes:
        verb: of the command line.
        die_at: the moment at which it kills itself; 0 is never.
        by: the signal that it sends itself.
        twice: how many moments later it sends the same signal again; 0 is never.
        later: milliseconds after that moment, so that programs that it has started have come somewhere.
        pause_at: what an event's ``kind stage`` is, after which it says "paused" and waits for a line of input.
        constants: values put in place of those of modules, by ``module:name``.
        format: of the artifact, in place of the target's.
        clock: seconds by which this process's own clock is wrong.
    """

    verb: str = "bake"
    die_at: int = 0
    by: int = signal.SIGKILL
    twice: int = 0
    later: int = 0
    pause_at: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)
    format: str = ""
    clock: float = 0.0


class Moments:
    """Counts moments, from the first call of :meth:`watch`."""

    def __init__(self, what: What) -> None:
        self.count, self._what, self._lock = 0, what, threading.Lock()

    def watch(self, event: str, args: tuple[Any, ...]) -> None:
        """Take an audit event (PEP 578)."""
        changes = event == "open" and isinstance(args[2], int) and args[2] & CHANGES
        if not changes and event not in COUNTED:
            return
        with self._lock:
            self.count += 1
            if self._what.die_at and self.count in (self._what.die_at, self._what.die_at + self._what.twice):
                threading.Thread(target=self._die, daemon=True).start() if self._what.later else self._die()

    def _die(self) -> None:
        time.sleep(self._what.later / 1000)
        os.kill(os.getpid(), self._what.by)


class Lines:
    """A monitor that prints what happens, and waits where it is told to."""

    def __init__(self, what: What) -> None:
        self._what = what

    def emit(self, event: Any) -> None:
        """Print an event."""
        say(event.kind, event.stage, event.text.replace("\n", " "))
        if self._what.pause_at == f"{event.kind} {event.stage}":
            say("paused")
            sys.stdin.readline()


def patched(world: Path, what: What) -> None:
    """Put the tiny distribution in place of the project's data."""
    import importlib
    from dataclasses import replace

    import imagebuilder.bake
    import imagebuilder.cells
    import imagebuilder.cli.monitors
    from imagebuilder import resources
    from imagebuilder.compat import load_compat
    from imagebuilder.model import BuildRequest
    from imagebuilder.plan import BuildPlan, plan
    from imagebuilder.profiles import load_profile
    from imagebuilder.steps import load_steps
    from imagebuilder.targets import load_target

    told = json.loads((world / "world.json").read_text())
    own = resources.folder

    def folder(name: str) -> Path:
        return Path(told["provision"]) if name == "provision" else own(name)

    def plan_request(request: BuildRequest) -> BuildPlan:
        asked = replace(request, os="tiny", mirrors={**told["mirrors"], **request.mirrors})
        profile = load_profile("tiny", release="", arch="amd64", target=asked.target, folder=Path(told["profiles"]))
        steps = load_steps(Path(told["provision"]))
        changes = {"format": what.format, "extension": what.format} if what.format else {}
        target = load_target(asked.target).model_copy(update={"size_gib": 2, "guest_packages": {}, **changes})
        return plan(asked, profile=profile, target=target, compat=load_compat(), steps=steps)

    resources.folder = folder
    imagebuilder.cells.plan_request = plan_request
    imagebuilder.cli.monitors.choose_monitor = lambda *_: Lines(what)  # type: ignore[assignment]
    for name, value in what.constants.items():
        module, _, constant = name.partition(":")
        setattr(importlib.import_module(module), constant, value)
    if what.clock:
        right = time.time
        time.time = lambda: right() + what.clock


def main(world: Path, what: What, arguments: Sequence[str]) -> int:
    """Bake, and say how many moments there were."""
    from imagebuilder.__main__ import main as command_line

    patched(world, what)
    moments = Moments(what)
    sys.addaudithook(moments.watch)
    only = ["--verify", "none"] if what.verb == "bake" else []
    code = command_line([what.verb, "--os", "debian", "--root-builder", "fast", *only, *arguments])
    say("moments", str(moments.count))
    return code


def command(world: Path, what: What, arguments: Sequence[str | Path]) -> list[str]:
    """Return the command that runs this program."""
    return [sys.executable, __file__, str(world), json.dumps(asdict(what)), *map(str, arguments)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Baked:
    """How a bake ended, and all that it said."""

    code: int
    said: str

    @property
    def moments(self) -> int:
        """Return how many moments there were."""
        return int(self.said.rpartition("moments ")[2].split()[0])

    @property
    def stages(self) -> list[str]:
        """Return the stages that it came to, in order."""
        return [line.split()[1] for line in self.said.splitlines() if line.startswith("begin ")]

    @property
    def failed(self) -> list[str]:
        """Return the stages that failed."""
        return [line.split()[1] for line in self.said.splitlines() if line.startswith("failed ")]


@contextlib.contextmanager
def baking(
    world: Path, arguments: Sequence[str | Path], what: What | None = None, wrapper: Sequence[str] = ()
) -> Iterator[process.Child]:
    """Bake in a process of its own; whatever happens, it is ended."""
    argv = [*wrapper, *command(world, what or What(), arguments)]
    child = process.spawn(argv, env={"PYTHONPATH": os.pathsep.join(sys.path)}, stdin=PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def bake(world: Path, cache: Path, output: Path, what: What | None = None, *more: str) -> Baked:
    """Bake to the end."""
    arguments = [*([] if "--target" in more else ["--target", "qemu"]), "--cache-dir", cache, "--output", output, *more]
    with baking(world, arguments, what) as child:
        said, _ = child.communicate(timeout=SECONDS)
        return Baked(code=child.returncode, said=said.decode())


PIPE = -1  # of subprocess

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), What(**json.loads(sys.argv[2])), sys.argv[3:]))
