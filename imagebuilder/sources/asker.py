"""Whose apt is asked: this host's, or that of a tree in the cache where this host has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imagebuilder.process import namespaces
from imagebuilder.userns import privileged

if TYPE_CHECKING:
    from imagebuilder.sources.apt import Archive


class Asker(Protocol):
    """Says how ``apt-get`` and ``apt-cache`` are run. Whose they are does not matter: options and answers are the same.

    Attributes:
        knows_default: with it comes mmdebstrap, which knows where an archive is of which no mirror is named.
    """

    knows_default: bool

    def asking(
        self, argv: Sequence[str], archive: Archive, *, network: bool, env: Mapping[str, str], cwd: Path | None
    ) -> AbstractContextManager[list[str]]:
        """Yield the command that runs a program of apt's; once it has ended, leave the block.

        Args:
            argv: the program's name, and its arguments.
            archive: the distribution whose apt folder it works on.
            network: it fetches; without, it must not.
            env: variables that it is run with.
            cwd: working directory that it is run in.
        """


class HostApt:
    """This host's own apt."""

    knows_default = True

    def asking(
        self, argv: Sequence[str], archive: Archive, *, network: bool, env: Mapping[str, str], cwd: Path | None
    ) -> AbstractContextManager[list[str]]:
        """See :class:`Asker`."""
        return nullcontext([*(contained() if network else []), *argv])


def contained() -> list[str]:
    """Return what ends apt's own children with it, also when we are killed; an ordinary user has no such thing."""
    return namespaces(network=True) if privileged() else []
