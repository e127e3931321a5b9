"""Which accelerator really runs guests on this host.

``/dev/kvm`` can exist and be open to us while every guest under it hangs (nested virtualisation that is
switched off half-way), so the question is put to a guest: a boot sector that says one byte and stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagebuilder import process
from imagebuilder.content import content_id, write_atomic
from imagebuilder.errors import DeadlineError

AcceleratorName = Literal["kvm", "tcg"]

QEMU, QEMU_PACKAGE = "qemu-system-x86_64", "qemu-system-x86"
PROBE_SECONDS = 5.0  # a guest under a working KVM answers in 0.1 to 0.3 s, also on a loaded host
EXIT_PORT = 0x501  # isa-debug-exit listens here: writing N ends QEMU with exit code 2N + 1
EXIT_BYTE = 0x10
ANSWER = EXIT_BYTE * 2 + 1
CPU = {"kvm": "host", "tcg": "max"}  # what the probe and the machines run on
KVM_DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MEMORY = "accelerator.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """How guests run here, and why."""

    name: AcceleratorName
    reason: str


def probe_sector() -> bytes:
    """Return a boot sector that writes ``EXIT_BYTE`` to ``EXIT_PORT`` and halts."""
    code = b"\xba" + EXIT_PORT.to_bytes(2, "little")  # mov dx, EXIT_PORT
    code += b"\xb0" + bytes([EXIT_BYTE])  # mov al, EXIT_BYTE
    code += b"\xee"  # out dx, al
    code += b"\xf4\xeb\xfd"  # hlt; jmp back to it
    return code.ljust(510, b"\0") + b"\x55\xaa"


def probe_command(name: AcceleratorName, sector: Path) -> list[str | Path]:
    """Return the command that boots the probe's sector under one accelerator."""
    return [
        QEMU, "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none",
        "-accel", name,
        "-cpu", CPU[name],
        "-m", "64",
        "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=2",
        "-drive", f"file={str(sector).replace(',', ',,')},format=raw,if=ide,snapshot=on",
    ]  # fmt: skip


def probe(runner: process.Runner, name: AcceleratorName, *, timeout: float = PROBE_SECONDS) -> str:
    """Boot a tiny guest and return "" when it answered, else what happened instead."""
    with tempfile.TemporaryDirectory(prefix="imagebuilder-probe-") as folder:
        sector = Path(folder) / "sector"
        sector.write_bytes(probe_sector())
        try:
            result = runner.run(probe_command(name, sector), cwd=sector.parent, check=False, timeout=timeout)
        except DeadlineError:
            return f"a guest did not answer within {timeout:.0f} s"
    if result.returncode == ANSWER:
        return ""
    said = f": {result.tail[-1]}" if result.tail else ""
    return f"QEMU ended with {result.returncode}{said}"


def can_boot(arch: str) -> bool:
    """Tell whether a guest of an architecture can run here."""
    return arch == "amd64" and process.find(QEMU) is not None


def accelerator(runner: process.Runner, cache_dir: Path, *, device: Path = KVM_DEVICE) -> Accelerator:
    """Return the accelerator that works here; the answer is remembered until the next boot of this host.

    Args:
        runner: starts the probe's guest.
        cache_dir: where the answer is kept.
        device: KVM's device node.

    Raises:
        ToolMissingError: QEMU is not installed.
    """
    qemu = process.require(QEMU, package=QEMU_PACKAGE)
    if not device.exists():
        return Accelerator(name="tcg", reason=f"there is no {device}")
    if not os.access(device, os.R_OK | os.W_OK):
        return Accelerator(name="tcg", reason=f"no permission to open {device}")
    memory, key = cache_dir / MEMORY, _key(qemu)
    if remembered := _recall(memory, key):
        return remembered
    if problem := probe(runner, "kvm"):
        found = Accelerator(name="tcg", reason=f"{device} exists, but {problem}")
    else:
        found = Accelerator(name="kvm", reason="a guest under KVM answered")
    answer = {"key": key, "name": found.name, "reason": found.reason}
    with contextlib.suppress(OSError):  # a read-only cache costs a probe per run, nothing else
        write_atomic(memory, json.dumps(answer) + "\n")
    return found


def _key(qemu: Path) -> str:
    """Return what the answer depends on: this boot of the host and this QEMU."""
    boot_id = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    return content_id({"boot": boot_id, "qemu": str(qemu), "mtime": qemu.stat().st_mtime_ns})


def _recall(memory: Path, key: str) -> Accelerator | None:
    """Return the remembered answer; a file that is broken or of another boot is as good as none."""
    try:
        answer = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return None
    match answer:
        case {"key": str(found), "name": "kvm" | "tcg" as name, "reason": str(reason)} if found == key:
            return Accelerator(name=name, reason=reason)
    return None
