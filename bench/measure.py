"""Seconds and memory of a block, and of everything that it starts."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


@dataclass
class Measured:
    """Seconds, and memory in MiB: of all processes together at the worst moment, and of the largest one.

    Attributes:
        size_mb: of what was made, in 10^6 bytes; 0 where nothing was.
        stages: seconds of each stage of a bake.
        note: what it does not do that others do.
    """

    name: str
    seconds: float = 0.0
    peak_mib: float = 0.0
    largest_mib: float = 0.0
    size_mb: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    note: str = ""


def resident(root: int) -> list[int]:
    """Return the resident bytes of each process below one."""
    parents: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
                sizes[int(entry.name)] = int(fields[21]) * PAGE
    found, todo = [], parents.get(root, [])
    while todo:
        pid = todo.pop()
        found.append(sizes.get(pid, 0))
        todo += parents.get(pid, [])
    return found


@contextlib.contextmanager
def measured(name: str, results: list[Measured]) -> Iterator[Measured]:
    """Time a block, and watch the memory of everything that this process starts in it.

    What was written before it is on the disk by then: a block pays for its own writes only. Memory is looked at five
    times a second: a process that lives shorter may be missed.
    """
    found, stop = Measured(name), threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            sizes = resident(os.getpid())
            found.peak_mib = max(found.peak_mib, sum(sizes) / MIB)
            found.largest_mib = max(found.largest_mib, max(sizes, default=0) / MIB)

    os.sync()
    thread = threading.Thread(target=watch)
    thread.start()
    start = time.monotonic()
    try:
        yield found
    finally:
        found.seconds = time.monotonic() - start
        stop.set()
        thread.join()
    results.append(found)
    print(f"{found.seconds:8.2f} s {found.peak_mib:7.0f} MiB  {name}", flush=True)
