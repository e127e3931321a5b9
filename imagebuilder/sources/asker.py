"""Who runs apt's programs: this host, or a tree in the cache where this host has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imagebuilder.process import Result, Runner, namespaces
from imagebuilder.userns import privileged

if TYPE_CHECKING:
    from imagebuilder.sources.apt import Archive


class Asker(Protocol):
    """Runs ``apt-get`` and ``apt-cache``. Whose they are does not matter: folder, options and answers are the same.

    Attributes:
        knows_default: with it comes mmdebstrap, which knows where an archive is of which no mirror is named.
    """

    knows_default: bool

    def run(
        self,
        argv: Sequence[str],
        archive: Archive,
        *,
        network: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        capture: bool = False,
        check: bool = True,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run a program of apt's to its end; see :class:`imagebuilder.process.RealRunner`.

        Args:
            argv: the program's name, and its arguments.
            archive: the distribution whose apt folder it works on.
            network: it fetches; without, it must not.
            env: variables for it.
            cwd: its working directory.
            capture: keep standard output apart.
            check: raise when it fails.
            log: a file that gets its output.
            on_line: called with each line of it.
            timeout: in seconds.
        """


class HostApt:
    """This host's own apt."""

    knows_default = True

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(
        self,
        argv: Sequence[str],
        archive: Archive,
        *,
        network: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        capture: bool = False,
        check: bool = True,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run a program of apt's; see :class:`Asker`."""
        return self._runner.run(
            [*(contained() if network else []), *argv],
            env=env, cwd=cwd, capture=capture, check=check, log=log, on_line=on_line, timeout=timeout,
        )  # fmt: skip


def contained() -> list[str]:
    """Return what ends apt's own children with it, also when we are killed; an ordinary user has no such thing."""
    return namespaces(network=True) if privileged() else []
