"""Our bakes, each as a user runs it; and curves of what more cells and more packages cost."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path

from bench.measure import Measured, measured
from imagebuilder.cells import all_cells, plan_request
from imagebuilder.cli.settings import default_cache
from imagebuilder.model import BuildRequest, LockedPackage
from imagebuilder.process import RealRunner

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples/standalone/imagebuilder.toml"
PROGRAM = [sys.executable, "-m", "imagebuilder"]
SHARED = ("debs", "payloads", "go", "toolchains")
COLD = "cold bake, packages cached"
HOT = "kubelet changed"
CELLS = (1, 2, 5, 10, 20)
# Small ones with few dependencies, as people add them; a node image has about 300 packages without.
EXTRA = (
    "jq", "tmux", "htop", "lsof", "strace", "tcpdump", "vim-tiny", "less", "rsync", "unzip", "zip", "bzip2", "file",
    "tree", "screen", "sysstat", "iftop", "iotop", "nmap", "dnsutils", "telnet", "netcat-openbsd", "whois", "mtr-tiny",
    "traceroute", "ncdu", "pv", "socat", "gdisk", "parted", "lvm2", "mdadm", "nfs-common", "cifs-utils", "git",
    "python3-yaml", "python3-requests", "rsyslog", "logrotate", "cron",
)  # fmt: skip
PACKAGES = (0, 10, 20, 40)


def bake(cache: Path, out: Path, *more: str, found: Measured | None = None) -> None:
    """Run a bake as a user does."""
    argv = [*PROGRAM, "--cache-dir", str(cache), "bake", "--verify", "none"]
    argv += ["--file", str(EXAMPLE), "--output", str(out), *more]
    RealRunner().run(argv, timeout=1800)
    if found is not None:
        (manifest,) = out.glob("*/manifest.json")
        told = json.loads(manifest.read_text())
        found.stages = told["timings"]
        found.size_mb = told["artifact"]["size"] / 1e6


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


def plan_all() -> None:
    """Plan every cell that an engine can make."""
    for cell, reasons in all_cells():
        if not all(reasons.values()):
            plan_request(BuildRequest(os=cell.os, release=cell.release, arch=cell.arch, target=cell.target))


def packages_of(cache: Path, *layers: str) -> list[LockedPackage]:
    """Return the packages of these layers, of the bakes in a cache: all of them have the same."""
    for path in sorted((cache / "resolved").glob("*.json")):
        packages = json.loads(path.read_text())["data"]["packages"]
        if packages["runtime"]:
            return [LockedPackage(**item) for layer in layers for item in packages[layer]]
    raise FileNotFoundError(f"no bake with a runtime in {cache}")


def bench_bakes(work: Path, results: list[Measured]) -> Path:
    """Bake with nothing but packages, and then what follows from a warm cache; return the first artifact."""
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
    with measured(HOT, results) as found:
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
    shutil.rmtree(work / "slow")
    return artifact


def cells_curve(work: Path, results: list[Measured]) -> dict[int, float]:
    """Return the seconds that the first so many cells of one OS take, one after the other, from nothing cached."""
    cache = work / "cells" / "imagebuilder"
    fill(cache)
    direct = [cell.target for cell, reasons in all_cells() if (cell.os, cell.release, cell.arch) == (
        "debian", "13", "amd64") and not reasons["direct"]]  # fmt: skip
    overlay = work / "cells-overlay"
    (overlay / "etc").mkdir(parents=True)
    (overlay / "etc/motd").write_text("another\n")
    kinds: list[tuple[str, list[str]]] = [("", []), (", one more overlay", ["--overlay", str(overlay)])]
    for kind, more in kinds:
        for target in direct:
            with measured(f"{target}{kind}", results) as found:
                bake(cache, work / "cells-out", "--target", target, *more, found=found)
            shutil.rmtree(work / "cells-out")
    sums = list(itertools.accumulate(item.seconds for item in results))
    return {number: sums[number - 1] for number in CELLS}


def packages_curve(work: Path, user: Path) -> dict[int, float]:
    """Return the seconds of a cold bake by the number of packages in the image."""
    found = {}
    for count in PACKAGES:
        more = [word for name in EXTRA[:count] for word in ("--package", name)]
        bake(user, work / "fetched", *more)  # brings the packages
        cache = work / f"packages-{count}" / "imagebuilder"
        fill(cache)
        begin = time.monotonic()
        bake(cache, work / "packages-out", *more)
        seconds = time.monotonic() - begin
        names = {package.name for package in packages_of(cache, "base", "runtime", "kubernetes", "site")}
        found[len(names)] = seconds
        print(f"{seconds:8.2f} s  with {len(names)} packages", flush=True)
        for folder in ("fetched", "packages-out", f"packages-{count}"):
            shutil.rmtree(work / folder)
    return found
