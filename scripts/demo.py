"""make demo: bake a node image, boot it, wait for kubelet and the example pod, and ask the pod.

The first part is the command that a user types; the second is what ``imagebuilder boot`` does, and a question to the
pod through a forwarded port before the guest is thrown away. Ends with 0 only when the pod answered.
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from imagebuilder.__main__ import main
from imagebuilder.cli.artifact import find_artifact
from imagebuilder.cli.monitors import choose_monitor
from imagebuilder.cli.settings import Settings
from imagebuilder.events import Progress
from imagebuilder.process import RealRunner
from imagebuilder.vm.boot import BootRequest, RunningGuest, boot

ROOT = Path(__file__).resolve().parents[1]
BAKE = ["bake", "--file", str(ROOT / "examples/standalone/imagebuilder.toml")]
FOLDER = Path("out/debian-13-amd64-qemu-k1.35")
PORT = 8080  # of the example pod, on the node
EXPECTED = "hello from a pod that was in the image"
ANSWER_SECONDS = 60.0  # from "pods ready" to the first answer; it takes one
BOOT_SECONDS = 900.0  # under TCG on a busy machine; an idle one takes a minute


def ask(port: int, seconds: float) -> str:
    """Return what the pod answers; a pod that is about to listen gets a few seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                return str(answer.read(4096).decode())
        except (OSError, urllib.error.URLError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def check(guest: RunningGuest, start: float) -> int:
    """Ask kubelet and pod; print the stages."""
    text = ask(guest.machine.host_port(PORT), ANSWER_SECONDS)
    answered = time.monotonic() - start
    print()
    for stage, seconds in guest.report.stages.items():
        print(f"{seconds:7.1f} s  {stage}")
    print(f"{answered:7.1f} s  the pod answers: {text.strip()}")
    print(f"\nFrom power-on, {guest.report.firmware}, {guest.report.accelerator}. Console: {guest.report.console_log}")
    if EXPECTED not in text:
        print(f"error: the pod should say: {EXPECTED}", file=sys.stderr)
        return 1
    return 0


def demo() -> int:
    """Run the demo and return the exit code."""
    start = time.monotonic()
    if code := main(BAKE):
        return code
    print(f"\n{time.monotonic() - start:7.1f} s  baked\n", flush=True)
    found = find_artifact(FOLDER)
    request = BootRequest(
        disk=found.disk, disk_format=found.disk_format, console_log=FOLDER / "console.log", until="pods",
        forwards=((0, PORT),), timeout=BOOT_SECONDS,
    )  # fmt: skip
    start = time.monotonic()
    progress = Progress(choose_monitor(False))
    with boot(request, runner=RealRunner(), progress=progress, cache_dir=Settings().cache) as guest:
        return check(guest, start)


if __name__ == "__main__":
    sys.exit(demo())
