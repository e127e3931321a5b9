"""An ordinary user of this machine, made for a test, with subordinate ids; and commands that he runs."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.process import RealRunner, Result
from imagebuilder.userns import Host, grant

PROGRAMS = ("useradd", "userdel", "usermod", "newuidmap", "newgidmap", "setpriv", "unshare")


@dataclass(frozen=True, kw_only=True)
class User:
    """The user: his name and his home, which is his."""

    name: str
    home: Path

    def run(
        self, argv: Sequence[str | Path], stash: Path, seen: Sequence[Path] = (), *, check: bool = True,
        env: Mapping[str, str] | None = None, first: str = "true", timeout: float = 300,
    ) -> Result:  # fmt: skip
        """Run a command as the user, in his home.

        Args:
            argv: the command.
            stash: an empty folder of root's.
            seen: what he must see, though it lies in a folder that only root may enter.
            check: raise when it fails.
            env: variables on top of the fixed ones.
            first: shell that root runs before, in the same mount namespace.
            timeout: in seconds.
        """
        groups = ["setpriv", f"--reuid={self.name}", f"--regid={self.name}", "--init-groups", "--"]
        variables = [f"{name}={value}" for name, value in {"HOME": str(self.home), **(env or {})}.items()]
        command = shlex.join([*groups, "/usr/bin/env", *variables, *map(str, argv)])
        script = "\n".join(
            ["set -eu", *uncovered(seen, stash), first, f"cd {shlex.quote(str(self.home))}", f"exec {command}"]
        )
        # Not in a process namespace of its own: /proc would not be that of it.
        unshared = ["unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script]
        return RealRunner().run(unshared, capture=True, check=check, timeout=timeout)


def uncovered(seen: Sequence[Path], stash: Path) -> Iterator[str]:
    """Yield shell that, in a mount namespace of its own, leaves of each closed folder only what must be seen."""
    closed: dict[Path, list[Path]] = {}
    for path in (path.resolve() for path in seen):
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & stat.S_IXOTH:
                closed.setdefault(parent, []).append(path)
                break
    for number, (folder, paths) in enumerate(closed.items()):
        aside = stash / str(number)
        yield shlex.join(["mkdir", str(aside)])
        yield shlex.join(["mount", "--bind", str(folder), str(aside)])
        yield shlex.join(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(folder)])
        for path in paths:
            yield shlex.join(["mkdir", "-p", str(path)])
            yield shlex.join(["mount", "--bind", str(aside / path.relative_to(folder)), str(path)])


@contextlib.contextmanager
def other_user() -> Iterator[User]:
    """Make a user with subordinate ids, and remove him with all that is his."""
    name = f"ib-test-{os.getpid()}"
    subprocess.run(["useradd", "--create-home", "--user-group", name], check=True, capture_output=True)
    try:
        if name not in Path("/etc/subuid").read_text():  # the settings of this machine give none
            subprocess.run(["usermod", *grant(Host()).split(), name], check=True)
        yield User(name=name, home=Path(pwd.getpwnam(name).pw_dir))
    finally:
        subprocess.run(["userdel", "--remove", name], check=False, capture_output=True)
