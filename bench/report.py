"""Writes what was measured: JSON in ``bench/results/``, tables and charts (Mermaid) in ``docs/performance.md``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.measure import Measured

BEGIN, END = "<!-- bench -->\n", "<!-- /bench -->\n"
SHORT = 0.1  # seconds: stages that never take longer are not shown


@dataclass(kw_only=True)
class Results:
    """All that one run measured.

    Attributes:
        load: of the machine before.
        ours: bakes and commands of ours; the first is the cold bake.
        peers: others, for the same packages.
        versions: of the peers, by the program's name.
        boots: seconds from power-on, by what was reached.
        each: twenty cells, in their order.
        cells: seconds by number of cells.
        packages: seconds of a cold bake by number of packages.
        missing: what was not measured, and why.
    """

    date: str
    cores: int
    load: float
    ours: list[Measured] = field(default_factory=list)
    peers: list[Measured] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    boots: dict[str, float] = field(default_factory=dict)
    each: list[Measured] = field(default_factory=list)
    cells: dict[int, float] = field(default_factory=dict)
    packages: dict[int, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def write(results: Results, root: Path) -> None:
    """Write both files into a checkout."""
    folder = root / "bench/results"
    folder.mkdir(exist_ok=True)
    (folder / f"{results.date}.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    page = root / "docs/performance.md"
    head, rest = page.read_text().split(BEGIN)
    page.write_text(head + BEGIN + as_markdown(results) + END + rest.split(END)[1])


def as_markdown(results: Results) -> str:
    """Return the part of the page that is measured."""
    parts = [f"Measured by `make bench` on {results.date}: {results.cores} cores, load {results.load:.2f} before."]
    parts += ["### Bakes", rows(results.ours, results.ours[0].seconds), "Stages, in seconds:", stages(results.ours)]
    if results.peers:
        everyone = [results.ours[0], *results.peers]
        parts += ["### Peers, with the same packages", rows(everyone, results.ours[0].seconds)]
        parts.append(chart("Seconds from nothing to an image", [item.name for item in everyone],
                           [item.seconds for item in everyone], kind="bar"))  # fmt: skip
        parts.append(f"Versions: {', '.join(f'{name} {number}' for name, number in results.versions.items())}.")
    if results.boots:
        longest = max(results.boots.values())
        lines = [[name, f"{seconds:.1f}", f"{seconds / longest:.2f}"] for name, seconds in results.boots.items()]
        parts += ["### From power-on, under TCG", table(["Reached", "Seconds", "Ratio to installing"], lines)]
    for title, curve, axis in (
        ("Seconds for so many cells of one OS, from nothing cached", results.cells, "Cells"),
        ("Seconds of a cold bake, by the packages in the image", results.packages, "Packages"),
    ):
        if curve:
            parts += [f"### {title}", table([axis, "Seconds"], [[str(x), f"{y:.1f}"] for x, y in curve.items()])]
            parts.append(chart(title, list(map(str, curve)), list(curve.values()), kind="line"))
    if results.each:
        parts += ["### Seconds of each of the twenty cells, in their order", stages(results.each)]
    parts += [f"Not measured: {text}" for text in results.missing]
    return "\n\n".join(parts) + "\n"


def rows(items: Iterable[Measured], cold: float) -> str:
    """Return a table of durations, their ratio to the cold bake's, memory and sizes."""
    head = ["What", "Seconds", "Ratio to cold", "Peak, MiB", "Largest process, MiB", "Size, MB", "Remark"]
    return table(head, [
        [item.name, f"{item.seconds:.2f}", f"{item.seconds / cold:.2f}", f"{item.peak_mib:.0f}",
         f"{item.largest_mib:.0f}", f"{item.size_mb:.0f}" if item.size_mb else "", item.note]
        for item in items
    ])  # fmt: skip


def stages(results: Sequence[Measured]) -> str:
    """Return a table of how long each stage of each bake took; image stages have their reference as a name."""
    bakes = [item for item in results if item.stages]
    names = [name for name in dict.fromkeys(name for item in bakes for name in item.stages)
             if any(item.stages.get(name, 0) >= SHORT for item in bakes)]  # fmt: skip
    return table(["Bake", "all", *names], [
        [item.name, f"{item.seconds:.1f}", *(f"{item.stages.get(name, 0):.1f}" for name in names)] for item in bakes
    ])  # fmt: skip


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def chart(title: str, names: Sequence[str], values: Sequence[float], *, kind: str) -> str:
    """Return a chart in Mermaid's words (mermaid.js.org/syntax/xyChart.html), which GitHub draws."""
    quoted = ", ".join(f'"{name}"' for name in names)
    return "\n".join([
        "```mermaid", "xychart-beta" + (" horizontal" if kind == "bar" else ""), f'    title "{title}"',
        f"    x-axis [{quoted}]", '    y-axis "seconds" 0 --> ' + f"{max(values):.0f}",
        f"    {kind} [{', '.join(f'{value:.1f}' for value in values)}]", "```",
    ])  # fmt: skip
