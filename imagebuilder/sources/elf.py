"""Tells what machine a program is for, from its first bytes.

Format: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
"""

from __future__ import annotations

import struct
from pathlib import Path

HEADER = 20  # bytes: e_ident, e_type, e_machine
MACHINES = {62: "amd64", 183: "arm64"}  # EM_X86_64, EM_AARCH64
EXECUTABLE = (2, 3)  # ET_EXEC, and ET_DYN: position-independent


def program_arch(head: bytes) -> str:
    """Return the architecture of a 64-bit little-endian ELF program; empty for anything else."""
    if len(head) < HEADER or head[:6] != b"\x7fELF\x02\x01":
        return ""
    kind, machine = struct.unpack_from("<HH", head, 16)
    return MACHINES.get(machine, "") if kind in EXECUTABLE else ""


def file_arch(path: Path) -> str:
    """Return the architecture of a program on disk; empty when it is none."""
    with path.open("rb") as stream:
        return program_arch(stream.read(HEADER))
