"""make bench: how long we take for an image and to boot it, beside what others take for the same packages, in one run.

Everything is baked in caches of its own; only packages, built programs and Go's caches are taken from the user's
cache, so that no download or compiler is measured. Results go to ``bench/results/`` and ``docs/performance.md``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from bench import dib, ours, peers, reference, report
from bench.measure import Measured, measured
from imagebuilder import process
from imagebuilder.cli.settings import default_cache
from imagebuilder.errors import ImagebuilderError
from imagebuilder.process import RealRunner

PARTS = ("bakes", "peers", "boots", "cells", "packages")


def bench_peers(user: Path, work: Path, results: report.Results) -> None:
    """Run the peers in turns."""
    tree = peers.programs(user)
    folder = work / "peers"
    folder.mkdir()
    cache = work / "cache" / "imagebuilder"
    extra = dib.extra_packages(cache, user / "debs", folder / "peers.log")
    peers.prepare(ours.packages_of(cache, "base", "runtime"), extra, user / "debs", folder)
    for peer in peers.PEERS:
        try:
            peer.install(tree)
            with measured(peer.name, results.peers) as found:
                peers.run(peer, tree, folder)
        except ImagebuilderError as error:
            results.missing.append(f"{peer.name}: {error.message}")
            print(error.context[-2000:], file=sys.stderr)
            continue
        found.size_mb, found.note = (folder / peer.made).stat().st_size / 1e6, peer.lacks
    results.versions = peers.versions(tree)


def bench_boots(artifact: Path, work: Path, results: report.Results) -> None:
    """Boot ours, and what installs the same at its first boot."""
    folder = work / "boots"
    folder.mkdir()
    for name, seconds in reference.baked(artifact, folder).items():
        if name in ("kubelet", "pods"):
            results.boots[f"{name}, baked"] = seconds
    results.boots["kubelet, installed at first boot"] = reference.installed(work / "cache" / "imagebuilder", folder)
    print("\n".join(f"{seconds:8.2f} s  {name}" for name, seconds in results.boots.items()), flush=True)


def bench_commands(results: list[Measured]) -> None:
    """Time what people type while they think."""
    with measured("imagebuilder --help", results):
        RealRunner().run([*ours.PROGRAM, "--help"])
    with measured("plan of every cell", results):
        RealRunner().run([sys.executable, "-c", "from bench.ours import plan_all; plan_all()"], cwd=ours.ROOT)


@click.command()
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Only this part; repeatable.  [default: all]")
def main(only: tuple[str, ...]) -> None:
    """Run the bench; docs/performance.md gets what a whole run measured, and not what a part of it did."""
    for program in ("mmdebstrap", "mke2fs", "qemu-img", "qemu-system-x86_64"):
        process.require(program, package="mmdebstrap e2fsprogs qemu-utils qemu-system-x86")
    user = default_cache(os.environ, Path.home())
    with tempfile.TemporaryDirectory(prefix="imagebuilder-bench-", dir=user.parent) as scratch:
        work = Path(scratch)
        ours.bake(user, work / "user-out", "--refresh")  # all is downloaded and built
        shutil.rmtree(work / "user-out")
        results = report.Results(
            date=time.strftime("%Y-%m-%d"), cores=os.cpu_count() or 1, load=os.getloadavg()[0],
        )  # fmt: skip
        artifact = ours.bench_bakes(work, results.ours)
        bench_commands(results.ours)
        parts: dict[str, Callable[[], object]] = {
            "peers": lambda: bench_peers(user, work, results),
            "boots": lambda: bench_boots(artifact, work, results),
            "cells": lambda: results.cells.update(ours.cells_curve(work, results.each)),
            "packages": lambda: results.packages.update(ours.packages_curve(work, user)),
        }
        for name, part in parts.items():
            if not only or name in only:
                part()
        if not only:
            report.write(results, ours.ROOT)
        else:
            print(report.as_markdown(results))


if __name__ == "__main__":
    main()
