"""The guest of a boot: started on a throwaway overlay, let in with a key of this run, asked by scripts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from imagebuilder.datapackage.deliver.iso9660 import iso9660
from imagebuilder.errors import BootError, UsageError
from imagebuilder.events import Progress
from imagebuilder.process import Result, Runner
from imagebuilder.verify.booted.answers import Answer, answers, mark, script
from imagebuilder.vm import ssh
from imagebuilder.vm.boot import BootReport, BootRequest, boot
from imagebuilder.vm.machine import DiskFormat, FirmwareName, Machine, private_folder

LOST = 255  # how OpenSSH ends when the connection broke
LET_IN_SECONDS = 180.0  # from the prompt until sshd lets us in: it may still make its keys, and wait for the network


class Shell(Protocol):
    """A guest that runs commands; tests put a strict fake here."""

    @property
    def report(self) -> BootReport:
        """How it came up."""

    @property
    def seconds(self) -> float:
        """Seconds since power-on."""

    def run(self, command: str, *, timeout: float, stdin: bytes = b"") -> Result:
        """Run a command for root's shell, whatever it ends with.

        Raises:
            BootError: the guest is gone, or floods its console, or the connection broke.
            DeadlineError: it took longer than ``timeout``.
        """


class Opener(Protocol):
    """What starts a guest: :func:`opened`, or a test's own."""

    def __call__(self, firmware: str) -> contextlib.AbstractContextManager[Shell]:
        """Boot under a firmware, and end the guest after the block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What is booted, and with what; see :func:`imagebuilder.verify.booted.session.verify_booted`."""

    disk: Path
    disk_format: str
    arch: str
    cache_dir: Path
    scratch: Path
    timeout: float
    runner: Runner = field(repr=False)
    progress: Progress = field(repr=False)


class LiveGuest:
    """A guest under QEMU."""

    def __init__(self, report: BootReport, machine: Machine, shell: ssh.Guest) -> None:
        self.report = report
        self._machine, self._shell = machine, shell

    @property
    def seconds(self) -> float:
        """Seconds since power-on."""
        return self._machine.seconds

    def run(self, command: str, *, timeout: float, stdin: bytes = b"") -> Result:
        """Run a command; see :class:`Shell`."""
        result = self._shell.run(command, timeout=timeout, check=False, stdin=stdin)
        self._machine.console.drain()  # a console without bounds ends here, at its limit
        if result.returncode == LOST:
            self._machine.check()
            raise BootError("the connection to the guest broke", context="\n".join(result.tail))
        return result


def cidata(public: str) -> bytes:
    """Return a seed for cloud-init (NoCloud) that lets root in with a key; a root password is left as it is.

    It is for guests whose systemd takes no credentials (before 252) or that have none.
    """
    root = {"name": "root", "lock_passwd": False, "ssh_authorized_keys": [public]}
    user_data = b"#cloud-config\n" + json.dumps({"disable_root": False, "users": [root]}).encode() + b"\n"
    meta_data = json.dumps({"instance-id": "imagebuilder-verify"}).encode() + b"\n"
    return iso9660("cidata", {"user-data": user_data, "meta-data": meta_data})


@contextlib.contextmanager
def opened(start: Start, firmware: str) -> Iterator[Shell]:
    """Boot a throwaway guest, and yield it when root is let in.

    Raises:
        UsageError: the disk is neither raw nor qcow2, or the firmware neither bios nor uefi.
        ToolMissingError: QEMU, OVMF or OpenSSH is not installed.
        BootError: the guest died, panicked or flooded its console.
        DeadlineError: it did not come up, or did not let us in, in time.
    """
    if start.disk_format not in ("raw", "qcow2") or firmware not in ("bios", "uefi"):
        raise UsageError(f"a {start.disk_format} disk cannot be booted under {firmware} here")
    start.scratch.mkdir(parents=True, exist_ok=True)
    with private_folder() as folder:
        key = ssh.key_pair(start.runner, folder)
        seed = folder / "cidata.iso"
        seed.write_bytes(cidata(key.public))
        request = BootRequest(
            disk=start.disk, disk_format=cast(DiskFormat, start.disk_format), arch=start.arch, until="login",
            firmware=cast(FirmwareName, firmware), timeout=start.timeout, seeds=(seed,),
            console_log=start.scratch / f"console-{firmware}.log", forwards=((0, ssh.GUEST_PORT),),
            credentials={ssh.CREDENTIAL: f"{key.public}\n".encode()},
        )  # fmt: skip
        with boot(request, runner=start.runner, progress=start.progress, cache_dir=start.cache_dir) as running:
            port = running.machine.host_port(ssh.GUEST_PORT)
            with ssh.Guest(key=key, port=port, runner=start.runner, check=running.machine.check) as shell:
                shell.wait(min(LET_IN_SECONDS, start.timeout))
                yield LiveGuest(running.report, running.machine, shell)


def asked(guest: Shell, commands: Mapping[str, str], variables: Mapping[str, str], timeout: float) -> dict[str, Answer]:
    """Return what a guest says to commands, by name; what it did not answer is not among them.

    Raises:
        BootError: the guest is gone.
        DeadlineError: it took longer than ``timeout`` for all of them.
    """
    word = mark()
    return answers(guest.run("sh -s", timeout=timeout, stdin=script(commands, word, variables)).stdout, word)
