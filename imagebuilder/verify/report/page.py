"""A report as one HTML page: no other file, no script, the same bytes for the same report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagebuilder import __version__
from imagebuilder.publish.page import load_template, size
from imagebuilder.verify.budgets import Spent
from imagebuilder.verify.changes import Baseline, Changes, changes_since
from imagebuilder.verify.model import Boot, Check, Outcome, Report
from imagebuilder.verify.report.document import passed
from imagebuilder.verify.report.text import verdict
from imagebuilder.verify.report.treemap import HEIGHT, WIDTH, Cell, Layer, layers_of, treemap
from imagebuilder.verify.report.words import WORST_FIRST, clean, counts, lines_of

_TEMPLATE = Path(__file__).with_name("page.html.j2")
LARGEST = 20  # packages in the table beside the map
COLOURS = 6  # of layers, in the page's style
_GROUPS = {
    Outcome.FAILED: "Failed", Outcome.NOT_RUN: "Could not run", Outcome.WAIVED: "Waived", Outcome.PASSED: "Passed",
}  # fmt: skip


def as_html(
    report: Report,
    checks: Sequence[Check],
    baseline: Baseline | None = None,
    budgets: Sequence[Spent] = (),
    *,
    when: str = "",
) -> bytes:
    """Return the page, UTF-8.

    Args:
        report: what was found.
        checks: their words.
        baseline: what the image is compared with.
        budgets: what is spent of each.
        when: the time of the verification, as it is to be read; the page asks no clock.
    """
    layers = layers_of(report.inventory, _layer_by_package(report))
    lines = lines_of(report, checks)
    text = load_template(_TEMPLATE).render(
        signed_size=signed_size,
        report=report,
        passed=passed(report),
        verdict=verdict(report),
        counts={_GROUPS[outcome]: number for outcome, number in counts(report.results).items() if number},
        facts=_facts(report, when),
        groups=[(_GROUPS[one], one, [line for line in lines if line.result.outcome is one]) for one in WORST_FIRST],
        layers=[_layer_row(at, layer) for at, layer in enumerate(layers)],
        cells=[_cell(cell, layers) for cell in treemap(layers)],
        largest=sorted(report.inventory.packages, key=lambda one: (-one.size, one.name))[:LARGEST],
        boots=[_timeline(boot, _seconds(report.boots)) for boot in report.boots],
        budgets=budgets,
        baseline=baseline,
        changes=_changes(report, baseline),
    )
    return clean(text).encode("utf-8")


def _facts(report: Report, when: str) -> list[tuple[str, str]]:
    """Return what the head of the page says of image and tool; what nobody knows is left out."""
    manifest, subject = report.subject.manifest or {}, report.subject
    made_by = manifest.get("tool", {}).get("version", "")
    facts = [
        ("Artifact", report.path.name),
        ("sha256", report.sha256),
        ("System", " ".join(word for word in (subject.os, subject.release, subject.arch) if word)),
        ("Target", subject.target),
        ("Firmware", ", ".join(subject.firmware)),
        ("Kubernetes", str(subject.capability("kubelet") or "")),
        ("Baked by", f"imagebuilder {made_by}" if made_by else "somebody else, or its manifest is missing"),
        ("Verified by", f"imagebuilder {__version__}"),
        ("Verified at", when),
    ]
    return [(name, value) for name, value in facts if value]


def _layer_by_package(report: Report) -> Mapping[str, str]:
    packages = (report.subject.manifest or {}).get("packages", [])
    return {item["name"]: item["layer"] for item in packages if "name" in item and "layer" in item}


def _layer_row(at: int, layer: Layer) -> dict[str, Any]:
    return {"name": layer.name, "size": layer.size, "packages": len(layer.parts), "colour": at % COLOURS}


def _cell(cell: Cell, layers: Sequence[Layer]) -> dict[str, Any]:
    """Return a cell with its place in percent of the map, so that it fits any screen."""
    box, of = cell.box, (WIDTH, HEIGHT, WIDTH, HEIGHT)
    places = zip(("left", "top", "width", "height"), (box.left, box.top, box.width, box.height), of, strict=True)
    return {
        "name": cell.name,
        "size": cell.size,
        "layer": layers[cell.layer].name,
        "colour": cell.layer % COLOURS,
        "style": ";".join(f"{name}:{100 * value / whole:.3f}%" for name, value, whole in places),
    }


def _seconds(boots: Sequence[Boot]) -> float:
    """Return the seconds of the longest boot: one scale for all, so that bars can be compared."""
    return max((end for boot in boots for end in (*boot.stages.values(), *(one.end for one in boot.spans))), default=0)


def _timeline(boot: Boot, seconds: float) -> dict[str, Any]:
    """Return a boot's bars, in thousandths of the longest boot's seconds."""
    scale = 1000 / seconds if seconds else 0
    bars = [
        {"span": one, "x": f"{one.start * scale:.1f}", "width": f"{max((one.end - one.start) * scale, 3):.1f}"}
        for one in sorted(boot.spans, key=lambda one: (one.start, one.end, one.name))
    ]
    return {"boot": boot, "bars": bars, "stages": sorted(boot.stages.items(), key=lambda item: (item[1], item[0]))}


def _changes(report: Report, baseline: Baseline | None) -> Changes | None:
    return changes_since(baseline, report.inventory, report.boots) if baseline else None


def signed_size(count: int) -> str:
    """Return how many bytes more or less, for people."""
    return f"{'-' if count < 0 else '+'}{size(abs(count))}"
