"""One guest under QEMU on a throwaway overlay: the disk's bytes never change, and nothing is left behind."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from imagebuilder import process
from imagebuilder.errors import ArtifactError, BootError, ToolMissingError, UsageError
from imagebuilder.vm import qmp
from imagebuilder.vm.accel import CPU, QEMU, QEMU_PACKAGE, Accelerator
from imagebuilder.vm.console import Console

DiskFormat = Literal["qcow2", "raw"]
FirmwareName = Literal["bios", "uefi"]

START_SECONDS = 20.0  # until QEMU's monitor answers: 0.1 s here, seconds on a host that swaps
QUIT_SECONDS = 2.0  # for QEMU to follow "quit" before it gets a signal
SCRATCH = "/var/tmp"  # noqa: S108 - where TMPDIR is not set; overlays are too large for a /tmp in memory
PREFIX = "imagebuilder-vm-"
SOCKET, VARS, OUTPUT = "qmp.sock", "vars.fd", "qemu.log"  # in the private folder, QEMU's working directory

# UEFI code and its variables' template, in order of preference: Debian's, then Fedora's.
OVMF = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Firmware:
    """UEFI code and the template of its variables."""

    code: Path
    variables: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineConfig:
    """What a guest is made of.

    Attributes:
        disk: an image file; it is only read.
        arch: ``amd64``.
        forwards: TCP ports of 127.0.0.1 to ports of the guest; host port 0 lets QEMU choose a free one.
        credentials: systemd credentials (systemd >= 252 takes them from SMBIOS), 64 KiB in all as base64.
        seeds: raw images of further disks, which are only read.
        files: what QEMU's fw_cfg device shows the guest, by name (``opt/...``).
        console_log: the serial console's output; kept.
        reboots: let the guest reboot; otherwise a reboot, and a triple fault, is the guest's end.
    """

    disk: Path
    disk_format: DiskFormat
    console_log: Path
    firmware: FirmwareName = "bios"
    arch: str = "amd64"
    memory_mib: int = 3072
    cpus: int = 2
    forwards: tuple[tuple[int, int], ...] = ()
    credentials: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    seeds: tuple[Path, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    reboots: bool = False


def find_firmware() -> Firmware:
    """Return this host's UEFI firmware.

    Raises:
        ToolMissingError: there is none.
    """
    for code, variables in OVMF:
        if Path(code).is_file() and Path(variables).is_file():
            return Firmware(code=Path(code), variables=Path(variables))
    raise ToolMissingError("the UEFI firmware OVMF is not installed", hint="apt-get install ovmf")


def credential_files(config: MachineConfig) -> dict[str, bytes]:
    """Return the files that carry the credentials to QEMU: on the command line they would show in ``ps``."""
    return {
        f"credential-{index}": f"io.systemd.credential.binary:{name}=".encode() + base64.b64encode(value)
        for index, (name, value) in enumerate(sorted(config.credentials.items()))
    }


def fw_cfg_files(config: MachineConfig) -> dict[str, tuple[str, bytes]]:
    """Return per file of the fw_cfg device its name there, and its content."""
    return {f"fw-cfg-{index}": item for index, item in enumerate(sorted(config.files.items()))}


def arguments(config: MachineConfig, accelerator: Accelerator, firmware: Firmware | None) -> list[str]:
    """Return QEMU's command line; names without a folder are in its working directory.

    Args:
        config: what the guest is made of; its paths are absolute.
        accelerator: how it runs.
        firmware: UEFI, or None for the BIOS.
    """
    threads = ",thread=multi" if accelerator.name == "tcg" else ""
    net = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in config.forwards)
    disk = f"file={_escaped(config.disk)},format={config.disk_format}"
    words = [
        QEMU, "-nodefaults", "-no-user-config",
        "-name", "imagebuilder",
        "-machine", "q35,graphics=off",  # graphics=off: the BIOS and GRUB speak on the serial line too
        "-accel", f"{accelerator.name}{threads}",
        "-cpu", CPU[accelerator.name],
        "-smp", str(config.cpus),
        "-m", str(config.memory_mib),
        "-display", "none",
        "-chardev", f"file,id=console,path={_escaped(config.console_log)}",
        "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,path={SOCKET},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-drive", f"if=none,id=disk,{disk},snapshot=on,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=disk,bootindex=0",
        "-boot", "strict=on",
        "-netdev", f"user,id=net{net}",
        "-device", "virtio-net-pci,netdev=net,romfile=",  # no iPXE: a disk that does not boot says so at once
        "-device", "virtio-rng-pci",
    ]  # fmt: skip
    for number, seed in enumerate(config.seeds):
        words += ["-drive", f"if=none,id=seed{number},file={_escaped(seed.absolute())},format=raw,readonly=on"]
        words += ["-device", f"virtio-blk-pci,drive=seed{number}"]
    if not config.reboots:
        words.append("-no-reboot")
    if firmware:
        words += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_escaped(firmware.code)}"]
        words += ["-drive", f"if=pflash,unit=1,format=raw,file={VARS}"]
    for name in credential_files(config):
        words += ["-smbios", f"type=11,path={name}"]
    for path, (name, _) in fw_cfg_files(config).items():
        words += ["-fw_cfg", f"name={name},file={path}"]
    return words


def _escaped(path: Path) -> str:
    """Return a path as QEMU's comma-separated options want it."""
    return str(path).replace(",", ",,")


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only we can read, in TMPDIR or /var/tmp, and remove it afterwards."""
    parent = os.environ.get("TMPDIR") or SCRATCH
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        yield Path(name).absolute()


class Machine:
    """A running guest, as a context manager.

    Attributes:
        config: what it is made of, with absolute paths.
        accelerator: how it runs.
        console: its serial console.
        folder: its private folder; gone after the block.
        started: the host's monotonic clock at power-on.
    """

    def __init__(
        self, config: MachineConfig, accelerator: Accelerator, *, start_timeout: float = START_SECONDS
    ) -> None:
        if config.arch != "amd64":
            raise UsageError(f"guests of {config.arch} cannot be run yet", hint="use an amd64 artifact")
        self.config = _absolute(config)
        self.accelerator = accelerator
        self.console = Console(self.config.console_log)
        self.folder = Path()
        self.started = 0.0
        self._start_timeout = start_timeout
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        process.require(QEMU, package=QEMU_PACKAGE)
        if not self.config.disk.is_file():
            raise ArtifactError(f"there is no disk {self.config.disk}")
        with contextlib.ExitStack() as stack:
            self.folder = stack.enter_context(private_folder())
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._child.pid

    @property
    def seconds(self) -> float:
        """Seconds since power-on."""
        return time.monotonic() - self.started

    @property
    def alive(self) -> bool:
        """Whether QEMU is running."""
        return self._child.poll() is None

    def check(self) -> None:
        """Do nothing while the guest lives.

        Raises:
            BootError: it has ended; the context has QEMU's words and the console's last lines.
        """
        if self.alive:
            return
        self.console.drain()
        code = self._child.returncode
        how = "switched itself off or restarted" if code == 0 else f"is gone: QEMU ended with {code}"
        said = (self.folder / OUTPUT).read_text(errors="replace").strip()
        raise BootError(
            f"the guest {how} after {self.seconds:.1f} s",
            context="\n".join(filter(None, [said, self.console.tail()])),
            hint=f"the whole console is in {self.config.console_log}",
        )

    def reset(self) -> None:
        """Press its reset button: the guest starts anew, and is not told before.

        Raises:
            BootError: QEMU does not answer.
        """
        self._monitor.execute("system_reset")

    def host_port(self, guest_port: int) -> int:
        """Return the port of 127.0.0.1 that leads to a port of the guest.

        Raises:
            UsageError: that port is not forwarded.
        """
        table = self._monitor.execute("human-monitor-command", **{"command-line": "info usernet"})
        # "TCP[HOST_FORWARD]  9  127.0.0.1 35147  10.0.2.15  22  0  0"
        for line in str(table).splitlines():
            if match := re.match(rf"\s*TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+{guest_port}\s", line):
                return int(match[1])
        raise UsageError(f"port {guest_port} of the guest is not forwarded")

    def _start(self, stack: contextlib.ExitStack) -> None:
        firmware = find_firmware() if self.config.firmware == "uefi" else None
        if firmware:
            shutil.copyfile(firmware.variables, self.folder / VARS)
        shown = {path: data for path, (_, data) in fw_cfg_files(self.config).items()}
        for name, data in {**credential_files(self.config), **shown}.items():
            (self.folder / name).touch(mode=0o600)
            (self.folder / name).write_bytes(data)
        log = self.config.console_log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")  # a console of an earlier guest must not be taken for this one's
        command = arguments(self.config, self.accelerator, firmware)
        with (self.folder / OUTPUT).open("wb") as output:
            self.started = time.monotonic()
            self._child = process.spawn(
                command, cwd=self.folder, env={"TMPDIR": str(self.folder)}, stdout=output
            )  # fmt: skip
        stack.callback(process.stop, self._child)
        self._monitor = qmp.connect(self.folder, SOCKET, check=self.check, timeout=self._start_timeout)
        stack.callback(self._quit)

    def _quit(self) -> None:
        """Ask QEMU to end; whatever remains gets a signal next."""
        with contextlib.suppress(BootError):
            self._monitor.execute("quit")
        self._monitor.close()
        deadline = time.monotonic() + QUIT_SECONDS
        while self.alive and time.monotonic() < deadline:
            time.sleep(qmp.POLL_SECONDS)


def _absolute(config: MachineConfig) -> MachineConfig:
    """Return the configuration with absolute paths: QEMU's working directory is another one."""
    return replace(config, disk=config.disk.absolute(), console_log=config.console_log.absolute())
