"""A shell in a guest: a throwaway key, and OpenSSH with one connection that every command shares.

systemd >= 252 imports credentials from SMBIOS; its tmpfiles.d/provision.conf writes
``ssh.authorized_keys.root`` to /root/.ssh/authorized_keys. https://systemd.io/CREDENTIALS/
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from imagebuilder import process
from imagebuilder.errors import DeadlineError

CREDENTIAL = "ssh.authorized_keys.root"
GUEST_PORT = 22
RETRY_SECONDS = 1.0  # between attempts: under TCG an attempt costs the guest more than that
POLL_SECONDS = 0.05
COMMAND_SECONDS = 60.0
KEY, CONTROL, OUTPUT = "ssh.key", "ssh.sock", "ssh.log"  # in the private folder, ssh's working directory

OPTIONS = (
    "-F", "none",  # nothing of this user's configuration
    "-o", f"ControlPath={CONTROL}",
    "-o", "BatchMode=yes",
    "-o", "StrictHostKeyChecking=no",
    "-o", "UserKnownHostsFile=/dev/null",
    "-o", "GlobalKnownHostsFile=/dev/null",
    "-o", "IdentitiesOnly=yes",
    "-o", "IdentityAgent=none",
    "-o", "LogLevel=ERROR",
    "-o", "ConnectTimeout=10",
    "-o", "ServerAliveInterval=15",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """A throwaway key: the private half's file, and the public half as one line."""

    private: Path
    public: str


def key_pair(runner: process.Runner, folder: Path) -> KeyPair:
    """Make a key pair in a private folder.

    Raises:
        ToolMissingError: OpenSSH's client is not installed.
    """
    process.require("ssh-keygen", package="openssh-client")
    private = folder / KEY
    runner.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "imagebuilder", "-f", private])
    return KeyPair(private=private, public=private.with_suffix(".key.pub").read_text().strip())


class Guest:
    """Runs commands in a guest over SSH; a context manager that ends its connection.

    A connection's master is a child of ours, not a background process: it cannot outlive us.
    """

    def __init__(
        self,
        *,
        key: KeyPair,
        port: int,
        runner: process.Runner,
        user: str = "root",
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            key: the key that the guest accepts; its folder is used for the connection's socket too.
            port: the port of 127.0.0.1 that leads to the guest.
            runner: runs the commands.
            user: who to be in the guest.
            check: raises when the guest is gone.
        """
        self._folder = key.private.parent
        self._runner = runner
        self._check = check
        self._words = ["ssh", *OPTIONS, "-i", str(key.private), "-p", str(port)]
        self._destination = f"{user}@127.0.0.1"
        self._master: process.Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self, timeout: float) -> None:
        """Connect, trying again until the guest lets us in.

        Args:
            timeout: seconds.

        Raises:
            BootError: the guest is gone.
            DeadlineError: it did not let us in.
        """
        deadline = time.monotonic() + timeout
        while not self._connect(deadline):
            self._check()
            if time.monotonic() + RETRY_SECONDS > deadline:
                said = self._said()
                raise DeadlineError(f"the guest did not answer to ssh within {timeout:.0f} s", context=said)
            time.sleep(RETRY_SECONDS)

    def run(
        self, command: str, *, timeout: float = COMMAND_SECONDS, check: bool = True, stdin: bytes = b""
    ) -> process.Result:
        """Run a shell command in the guest and return its result, standard output captured.

        Args:
            command: for the guest user's shell.
            timeout: seconds for all of it, connecting included.
            check: raise when it does not exit with 0.
            stdin: bytes for its standard input.

        Raises:
            BootError: the guest is gone.
            CommandError: the command failed and ``check`` is set.
            DeadlineError: it took longer than ``timeout``.
        """
        deadline = time.monotonic() + timeout
        if not self.connected:
            self.wait(timeout)
        left = max(0.1, deadline - time.monotonic())
        words = [*self._words, self._destination, "--", command]
        return self._runner.run(
            words, cwd=self._folder, stdin=stdin, capture=True, check=check, timeout=left
        )  # fmt: skip

    @property
    def connected(self) -> bool:
        """Whether the shared connection is up."""
        alive = self._master is not None and self._master.poll() is None
        return alive and (self._folder / CONTROL).exists()

    def close(self) -> None:
        """End the connection."""
        if self._master is not None:
            process.stop(self._master)
        self._master = None
        (self._folder / CONTROL).unlink(missing_ok=True)

    def _connect(self, deadline: float) -> bool:
        """Start a master and wait until it is in (its socket is there), or has given up."""
        self.close()
        with (self._folder / OUTPUT).open("wb") as output:
            master = [*self._words, "-M", "-N", self._destination]
            self._master = process.spawn(master, cwd=self._folder, stdout=output)
        while self._master.poll() is None and time.monotonic() < deadline:
            if self.connected:
                return True
            self._check()
            time.sleep(POLL_SECONDS)
        return False

    def _said(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / OUTPUT).read_text(errors="replace").strip()
        return ""
