"""make bench: how long a bake takes, beside the plain tools for the same packages, in one run.

Everything is baked in a cache of its own; only packages, built programs and Go's caches are taken from the user's
cache, so that no download or compiler is measured. Results go to ``bench/results/`` and ``docs/performance.md``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder import process
from imagebuilder.cells import all_cells, plan_request
from imagebuilder.cli.settings import default_cache
from imagebuilder.model import BuildRequest, LockedPackage
from imagebuilder.process import RealRunner
from imagebuilder.sources.debs import make_repository

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples/standalone/imagebuilder.toml"
PROGRAM = [sys.executable, "-m", "imagebuilder"]
SHARED = ("debs", "payloads", "go", "toolchains")
PAGE = os.sysconf("SC_PAGE_SIZE")
COLD = "cold bake, packages cached"


@dataclass
class Measured:
    """Seconds, and the peak of all processes' resident memory together, in MiB."""

    name: str
    seconds: float = 0.0
    peak_mib: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


def resident(root: int) -> int:
    """Return the resident bytes of a process and all below it."""
    parents: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
                sizes[int(entry.name)] = int(fields[21]) * PAGE
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        total += sizes.get(pid, 0)
        todo += parents.get(pid, [])
    return total


@contextlib.contextmanager
def measured(name: str, results: list[Measured]) -> Iterator[Measured]:
    """Time a block, and watch the memory of everything that this process starts in it."""
    found, stop = Measured(name), threading.Event()

    def watch() -> None:
        own = resident(os.getpid())
        while not stop.wait(0.2):
            found.peak_mib = max(found.peak_mib, (resident(os.getpid()) - own) / 2**20)

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


def bake(cache: Path, out: Path, *more: str, found: Measured | None = None) -> None:
    """Run a bake as a user does."""
    argv = [*PROGRAM, "--cache-dir", str(cache), "bake", "--verify", "none"]
    argv += ["--file", str(EXAMPLE), "--output", str(out), *more]
    RealRunner().run(argv, timeout=1800)
    if found is not None:
        (manifest,) = out.glob("*/manifest.json")
        found.stages = json.loads(manifest.read_text())["timings"]


def fill(cache: Path) -> None:
    """Give a new cache what would be downloaded or compiled."""
    user = default_cache(os.environ, Path.home())
    for name in SHARED:
        if (user / name).is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            (cache / name).symlink_to(user / name) if name == "go" else RealRunner().run(
                ["cp", "-al", user / name, cache / name]
            )


def other_kubelet(folder: Path, cache: Path) -> Path:
    """Return a folder with a kubelet that differs: one more byte at its end."""
    kubelet = next((cache / "payloads").glob("*/kubelet"))
    folder.mkdir()
    for name in ("kubelet", "kubeadm", "kubectl"):
        shutil.copy(kubelet.with_name(name), folder / name)
    with (folder / "kubelet").open("ab") as stream:
        stream.write(b"\0")
    return folder


def plain_tools(cache: Path, work: Path) -> None:
    """Do what people do by hand: mmdebstrap, mke2fs -d, qemu-img convert -c; no boot loader, no kubelet."""
    (lock,) = (cache / "resolved").glob("*.json")
    packages = json.loads(lock.read_text())["packages"]
    wanted = [LockedPackage(**item) for layer in ("base", "runtime") for item in packages[layer]]
    runner, root = RealRunner(), work / "root"
    repository = work / "repository"
    make_repository(wanted, cache / "debs", "trixie", repository, runner)
    names = ",".join(package.name for package in wanted)
    runner.run(
        ["mmdebstrap", "--mode=root", "--variant=essential", "--format=directory", "--skip=check/empty",
         f"--include={names}", "trixie", root, f"deb [trusted=yes] copy:{repository} ./"], timeout=1800,
    )  # fmt: skip
    raw = work / "disk.raw"
    with raw.open("wb") as stream:
        stream.truncate(8 << 30)
    runner.run(["mke2fs", "-q", "-t", "ext4", "-F", "-d", root, raw], timeout=600)
    compressed = ["-c", "-o", "compression_type=zstd"]
    runner.run(["qemu-img", "convert", "-O", "qcow2", *compressed, raw, work / "disk.qcow2"], timeout=600)


def plan_all() -> None:
    """Plan every cell that an engine can make."""
    for cell, reasons in all_cells():
        if not all(reasons.values()):
            plan_request(BuildRequest(os=cell.os, release=cell.release, arch=cell.arch, target=cell.target))


def bench_bakes(work: Path, results: list[Measured]) -> Path:
    """Bake with each root builder, and then what follows from a warm cache; return the first artifact."""
    cache, out = work / "cache" / "imagebuilder", work / "out"
    fill(cache)
    with measured(COLD, results) as found:
        bake(cache, out, found=found)
    (artifact,) = out.glob("*/*.qcow2")
    artifact = artifact.rename(work / "cold.qcow2")
    bake(cache, out)
    with measured("nothing changed", results):
        bake(cache, out)
    kubelet = other_kubelet(work / "kubelet", cache)
    with measured("kubelet changed", results) as found:
        bake(cache, out, "--source", f"kubernetes=file:{kubelet}", found=found)
    overlay = work / "overlay"
    (overlay / "etc").mkdir(parents=True)
    (overlay / "etc/motd").write_text("changed\n")
    with measured("configuration changed (one more overlay)", results) as found:
        bake(cache, out, "--overlay", str(overlay), found=found)
    with measured("a further format (vagrant-libvirt box, same layers up to kubernetes)", results) as found:
        bake(cache, work / "further", "--target", "vagrant-libvirt", found=found)
    slow = work / "slow" / "imagebuilder"
    fill(slow)
    with measured("cold bake, packages cached, --root-builder mmdebstrap", results) as found:
        bake(slow, work / "slow-out", "--root-builder", "mmdebstrap", found=found)
    with measured("plain mmdebstrap + mke2fs -d + qemu-img convert -c", results):
        plain_tools(slow, work)
    return artifact


def main() -> int:
    """Run the bench."""
    for program in ("mmdebstrap", "mke2fs", "qemu-img"):
        process.require(program, package="mmdebstrap e2fsprogs qemu-utils")
    user = default_cache(os.environ, Path.home())
    results: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="imagebuilder-bench-", dir=user.parent) as scratch:
        work = Path(scratch)
        bake(user, work / "user-out", "--refresh")  # all is downloaded and built
        shutil.rmtree(work / "user-out")
        load = os.getloadavg()[0]
        artifact = bench_bakes(work, results)
        with measured("imagebuilder --help", results):
            RealRunner().run([*PROGRAM, "--help"])
        with measured("plan of every cell", results):
            RealRunner().run([sys.executable, "-c", "from bench.bench import plan_all; plan_all()"], cwd=ROOT)
        report(results, artifact.stat().st_size, load)
    return 0


def report(results: list[Measured], size: int, load: float) -> None:
    """Write the figures."""
    folder = ROOT / "bench/results"
    folder.mkdir(exist_ok=True)
    cold = results[0].seconds
    data = {
        "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "load_before": round(load, 2),
        "artifact_mb": round(size / 1e6), "results": [vars(item) for item in results],
    }  # fmt: skip
    (folder / f"{data['date']}.json").write_text(json.dumps(data, indent=1) + "\n")
    rows = "\n".join(
        f"| {item.name} | {item.seconds:.2f} | {item.seconds / cold:.2f} | {item.peak_mib:.0f} |" for item in results
    )
    page = ROOT / "docs/performance.md"
    text = page.read_text()
    begin, end = "<!-- bench -->\n", "<!-- /bench -->\n"
    table = (
        f"Measured by `make bench` on {data['date']}: {data['cores']} cores, load {data['load_before']} before, "
        f"image {data['artifact_mb']} MB.\n\n| What | Seconds | Ratio to cold | Peak memory, MiB |\n|---|---|---|---|\n"
        f"{rows}\n\nStages of at least 0.1 seconds:\n\n{stages(results)}\n"
    )
    head, rest = text.split(begin)
    page.write_text(head + begin + table + end + rest.split(end)[1])


def stages(results: list[Measured]) -> str:
    """Return a table of how long each stage of each bake took; image stages have their reference as a name."""
    bakes = [item for item in results if item.stages]
    names = [name for name in dict.fromkeys(name for item in bakes for name in item.stages)
             if any(item.stages.get(name, 0) >= 0.1 for item in bakes)]  # fmt: skip
    lines = ["| Bake | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for item in bakes:
        lines.append(f"| {item.name} | " + " | ".join(f"{item.stages.get(name, 0):.1f}" for name in names) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
