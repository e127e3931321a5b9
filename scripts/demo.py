"""make demo: bake and prove a node image, make its certificates and data package, boot it with that, redeploy it live.

Each part is what a user types; the guest is the one that ``imagebuilder boot --data`` starts. Ends with 0 only when the
pod answered, answered anew after the redeploy, and a package that was tampered with was refused.
"""

from __future__ import annotations

import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagebuilder.__main__ import main
from imagebuilder.cli.monitors import choose_monitor
from imagebuilder.cli.settings import Settings
from imagebuilder.events import Progress
from imagebuilder.process import RealRunner, Result
from imagebuilder.vm.artifact import find_artifact
from imagebuilder.vm.boot import BootRequest, RunningGuest, boot

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples/cluster"
WORK = Path("out/demo")
PKI, DATA, CLUSTER = WORK / "pki", WORK / "data", WORK / "cluster"
FOLDER, NODE = Path("out/debian-13-amd64-qemu-k1.35"), "node-1"
PORT, NEW_PORT = 8080, 8081  # of the example pod, on the node: before and after the redeploy
EXPECTED = "hello from a pod that was in the image"
ANSWER_SECONDS = 120.0  # until a pod that runs, or is about to, answers
BOOT_SECONDS = 900.0  # under TCG on a busy machine; an idle one takes a minute
APPLY = "cat > /run/demo.ibdata && imagebuilder-agent apply /run/demo.ibdata"


class DemoError(Exception):
    """Something is not as it should be."""


def imagebuilder(*words: str | Path) -> None:
    """Do what a user types."""
    print("\n$ imagebuilder", *words, flush=True)
    if code := main([str(word) for word in words]):
        raise DemoError(f"that ended with {code}")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the seconds of a part."""
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:7.1f} s  {what}", flush=True)


def ask(guest: RunningGuest, port: int) -> None:
    """Ask the pod; one that is about to listen gets its time."""
    url = f"http://127.0.0.1:{guest.machine.host_port(port)}/"
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read(4096).decode()
            break
        except (OSError, urllib.error.URLError) as error:
            if time.monotonic() > deadline:
                raise DemoError(f"the pod does not answer: {error}") from error
            time.sleep(0.2)
    if EXPECTED not in text:
        raise DemoError(f"the pod should say: {EXPECTED}, not: {text}")


def in_guest(guest: RunningGuest, command: str, *, stdin: bytes = b"", code: int = 0) -> Result:
    """Run a command on the node, which must end with ``code``."""
    assert guest.ssh is not None
    result = guest.ssh.run(command, stdin=stdin, check=False, timeout=BOOT_SECONDS)
    if result.returncode != code:
        raise DemoError(f"on the node, {command!r} ended with {result.returncode}: {' '.join(result.tail)}")
    return result


def package(cluster: Path) -> Path:
    """Make the node's data package."""
    imagebuilder("data", "create", "--file", cluster, "--pki", PKI, "--output", DATA, "--node", NODE)
    return DATA / f"{NODE}.ibdata"


def redeploy(guest: RunningGuest) -> None:
    """Give the live node a changed manifest, then a package that was tampered with."""
    shutil.copytree(EXAMPLE, CLUSTER)
    manifest = CLUSTER / "hello.yaml"
    manifest.write_text(manifest.read_text().replace(f"hostPort: {PORT}", f"hostPort: {NEW_PORT}"))
    data = package(CLUSTER / "cluster.toml").read_bytes()
    in_guest(guest, "true")  # connects
    print(flush=True)
    with timed(f"the pod answers on its new port, {NEW_PORT}"):
        with timed("the changed manifest is applied on the live node"):
            in_guest(guest, APPLY, stdin=data)
        ask(guest, NEW_PORT)
    torn = bytearray(data)
    torn[len(torn) // 2] ^= 1
    with timed("a package that was tampered with is refused"):
        in_guest(guest, f"{APPLY}; test $? -ne 0", stdin=bytes(torn))
    ask(guest, NEW_PORT)
    print("\n# imagebuilder-agent history")
    print(in_guest(guest, "imagebuilder-agent history").stdout.strip())


def demo() -> None:
    """Run all parts."""
    shutil.rmtree(WORK, ignore_errors=True)
    with timed("pki: certificates and the key that signs packages"):
        imagebuilder("pki", "init", "--cluster", "demo", "--server", "https://10.0.2.2:6443", "--dir", PKI)
    with timed("baked, and proven: its files, and a boot under each firmware"):
        trust = PKI / "package-signing.pub"
        imagebuilder("bake", "--file", EXAMPLE / "imagebuilder.toml", "--trust", trust)
    with timed("data package"):
        data = package(EXAMPLE / "cluster.toml")
    found = find_artifact(FOLDER)
    request = BootRequest(
        disk=found.disk, disk_format=found.disk_format, console_log=WORK / "console.log", until="pods", ssh=True,
        forwards=((0, PORT), (0, NEW_PORT)), timeout=BOOT_SECONDS, data=data.read_bytes(),
    )  # fmt: skip
    print("\n$ imagebuilder boot", FOLDER, "--data", data, "--until pods", flush=True)
    start, progress = time.monotonic(), Progress(choose_monitor(False))
    with boot(request, runner=RealRunner(), progress=progress, cache_dir=Settings().cache) as guest:
        ask(guest, PORT)
        answered = time.monotonic() - start
        print()
        for stage, seconds in guest.report.stages.items():
            print(f"{seconds:7.1f} s  {stage}")
        print(f"{answered:7.1f} s  the pod answers: {EXPECTED}")
        print(f"\nFrom power-on, {guest.report.firmware}, {guest.report.accelerator}. Console: {WORK / 'console.log'}")
        redeploy(guest)


if __name__ == "__main__":
    try:
        demo()
    except DemoError as wrong:
        sys.exit(f"error: {wrong}")
