"""Boots an artifact and watches its console until it has come as far as asked for."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder.errors import BootError, DeadlineError, UsageError
from imagebuilder.events import Progress, Stage
from imagebuilder.process import Runner
from imagebuilder.vm import machine as vm
from imagebuilder.vm import ssh
from imagebuilder.vm.accel import Accelerator, AcceleratorName, accelerator
from imagebuilder.vm.console import LOG_LIMIT, fatal
from imagebuilder.vm.machine import DiskFormat, FirmwareName, Machine, MachineConfig

# What the console shows at each stage. All but the prompt are lines of the image's node-report service, which
# is often ahead of getty: the stages come in any order.
PATTERNS: Mapping[str, re.Pattern[str]] = {
    "login": re.compile(r"^\S+ login:(?: |$)"),
    "runtime": re.compile(r"imagebuilder: runtime ready"),
    "kubelet": re.compile(r"imagebuilder: kubelet healthy"),
    "pods": re.compile(r"imagebuilder: pods ready"),
}
STAGES = tuple(PATTERNS)
NOT_STARTED = re.compile(r"imagebuilder: (kubelet not started.*)")
NEED_KUBELET = frozenset({"kubelet", "pods"})
# Where the agent looks for its data package; the SMBIOS table holds 64 KiB, as base64, with the key for ssh.
DATA_CREDENTIAL, DATA_FILE = "imagebuilder.data", "opt/imagebuilder/data"
CREDENTIAL_BYTES = 46_000
# With several processors QEMU up to 8.0 may translate an instruction while another processor replaces it, and keep the
# old one. The kernel replaces its own by int3 for a moment; no image can be the cause of one that is met later.
SLIPPED = re.compile(r"Oops: int3: 0000")
SLIPS = 3  # guests: it is seen about once in 200 boots
POLL_SECONDS = 0.05  # how exact the seconds are; reading a file that has not grown costs microseconds


@dataclass(frozen=True, kw_only=True, slots=True)
class BootRequest:
    """What to boot, and how far.

    Attributes:
        disk: the artifact's disk; it is only read.
        until: one of ``STAGES``.
        forwards: TCP ports of 127.0.0.1 to ports of the guest; host port 0 means any free one.
        timeout: seconds from power-on to the ``until`` stage.
        console_log: where the serial console's output is kept.
        ssh: give root a throwaway key.
        credentials: systemd credentials for the guest.
        seeds: raw images of further disks, such as one labelled cidata.
        data: a data package, or a pointer to one, for the guest's agent.
        reboots: let the guest reboot on its way (an SELinux relabel does); else a reboot is a failure.
    """

    disk: Path
    disk_format: DiskFormat
    console_log: Path
    firmware: FirmwareName = "bios"
    arch: str = "amd64"
    until: str = "kubelet"
    forwards: tuple[tuple[int, int], ...] = ()
    memory_mib: int = 3072
    cpus: int = 2
    timeout: float = 600.0
    ssh: bool = False
    credentials: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    seeds: tuple[Path, ...] = ()
    data: bytes = field(default=b"", repr=False)
    reboots: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BootReport:
    """How a boot went: ``stages`` has the seconds since power-on of each stage seen, in that order."""

    firmware: FirmwareName
    accelerator: AcceleratorName
    stages: Mapping[str, float]
    console_log: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningGuest:
    """A guest that has reached its stage; ``ssh`` only when it was asked for (call ``ssh.wait`` first)."""

    report: BootReport
    machine: Machine
    ssh: ssh.Guest | None


@contextlib.contextmanager
def boot(request: BootRequest, *, runner: Runner, progress: Progress, cache_dir: Path) -> Iterator[RunningGuest]:
    """Boot a throwaway guest, yield it when it has reached the stage asked for, and end it afterwards.

    Args:
        request: what to boot, and how far.
        runner: runs the accelerator's probe and ssh.
        progress: gets one stage, ``boot``, with a note per stage of the guest.
        cache_dir: remembers which accelerator works.

    Raises:
        UsageError: no such stage.
        ToolMissingError: QEMU, OVMF or OpenSSH is not installed.
        BootError: the guest died, panicked, or said that it cannot get there.
        DeadlineError: it did not get there in time.
    """
    if request.until not in PATTERNS:
        raise UsageError(f"there is no stage {request.until}", hint=f"--until {'|'.join(STAGES)}")
    with contextlib.ExitStack() as stack:
        with progress.stage("boot", f"Boot {request.disk.name} until {request.until}") as stage:
            chosen = accelerator(runner, cache_dir)
            stage.note(f"{request.firmware} firmware, accelerator {chosen.name}: {chosen.reason}")
            key = ssh.key_pair(runner, stack.enter_context(vm.private_folder())) if request.ssh else None
            machine, stages = _started(request, _config(request, key), chosen, stage, stack)
            stage.summary = f"{request.until} after {stages[request.until]:.1f} s ({chosen.name})"
        report = BootReport(
            firmware=request.firmware, accelerator=chosen.name, stages=stages,
            console_log=machine.config.console_log,
        )  # fmt: skip
        guest = None
        if key:
            port = machine.host_port(ssh.GUEST_PORT)
            guest = stack.enter_context(ssh.Guest(key=key, port=port, runner=runner, check=machine.check))
        yield RunningGuest(report=report, machine=machine, ssh=guest)


def _started(
    request: BootRequest, config: MachineConfig, chosen: Accelerator, stage: Stage, stack: contextlib.ExitStack
) -> tuple[Machine, dict[str, float]]:
    """Return a guest that has reached its stage; one that the emulator let down is thrown away for another."""
    for left in reversed(range(SLIPS)):
        with contextlib.ExitStack() as trial:
            machine = Machine(config, chosen, start_timeout=min(vm.START_SECONDS, request.timeout))
            trial.enter_context(machine)
            try:
                stages = _watch(request, machine, stage)
            except BootError as error:
                if not left or chosen.name != "tcg" or not SLIPPED.search(_text(machine.config.console_log)):
                    raise
                stage.note(
                    f"QEMU's emulator ran an instruction that was replaced before: a new guest ({error.message})"
                )
                continue
            stack.push(trial.pop_all())
            return machine, stages
    raise AssertionError("unreachable: the last trial returns or raises")


def _text(path: Path) -> str:
    return path.read_bytes()[:LOG_LIMIT].decode("utf-8", "replace")


def _config(request: BootRequest, key: ssh.KeyPair | None) -> MachineConfig:
    forwards, credentials = request.forwards, dict(request.credentials)
    if key:
        credentials[ssh.CREDENTIAL] = f"{key.public}\n".encode()
        if ssh.GUEST_PORT not in [guest for _, guest in forwards]:
            forwards = (*forwards, (0, ssh.GUEST_PORT))
    files: dict[str, bytes] = {}
    if len(request.data) > CREDENTIAL_BYTES:
        files[DATA_FILE] = request.data
    elif request.data:
        credentials[DATA_CREDENTIAL] = request.data
    return MachineConfig(
        disk=request.disk, disk_format=request.disk_format, console_log=request.console_log,
        firmware=request.firmware, arch=request.arch, memory_mib=request.memory_mib, cpus=request.cpus,
        forwards=forwards, credentials=credentials, files=files, seeds=request.seeds, reboots=request.reboots,
    )  # fmt: skip


def _watch(request: BootRequest, machine: Machine, stage: Stage) -> dict[str, float]:
    """Read the console until the stage is there; the clock is looked at after every piece of it."""
    seen: dict[str, float] = {}
    while True:
        alive = machine.alive  # asked before reading, so that a dead guest's last words are all read
        lines = machine.console.poll()
        for line in lines:
            stage.log(line)
        _judge(request, machine, [*lines, machine.console.partial])
        _record(seen, machine, stage, [*lines, machine.console.partial])
        if request.until in seen:
            machine.check()
            return seen
        if machine.seconds > request.timeout:
            raise _deadline(request, machine, seen)
        if not lines:
            if not alive:
                machine.check()
            time.sleep(POLL_SECONDS)


def _record(seen: dict[str, float], machine: Machine, stage: Stage, lines: list[str]) -> None:
    for name, pattern in PATTERNS.items():
        if name not in seen and any(pattern.search(line) for line in lines):
            seen[name] = round(machine.seconds, 1)
            stage.note(f"{name} after {seen[name]:.1f} s")


def _judge(request: BootRequest, machine: Machine, lines: list[str]) -> None:
    """Raise when a line says that the stage cannot come any more."""
    hint = f"the whole console is in {machine.config.console_log}"
    for line in lines:
        if fatal(line):
            raise BootError(f"the guest failed: {line.strip()}", context=machine.console.tail(), hint=hint)
    if request.until not in NEED_KUBELET:
        return
    for line in lines[:-1]:  # only whole lines: the reason is at their end
        if match := NOT_STARTED.search(line):
            raise BootError(
                f"the guest will not reach {request.until}: {match[1]}", context=machine.console.tail(),
                hint="bake the image with a kubelet configuration, or boot it with --until runtime",
            )  # fmt: skip


def _deadline(request: BootRequest, machine: Machine, seen: Mapping[str, float]) -> DeadlineError:
    reached = ", ".join(f"{name} after {seconds:.1f} s" for name, seconds in seen.items()) or "nothing"
    return DeadlineError(
        f"the guest did not reach {request.until} within {request.timeout:.0f} s (reached: {reached})",
        context=machine.console.tail() or "(the console is empty)",
        hint=f"the whole console is in {machine.config.console_log}",
    )
