"""A report as JSON, and back as what a later verification is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagebuilder import __version__
from imagebuilder.errors import ArtifactError
from imagebuilder.model import plain
from imagebuilder.verify.budgets import Spent
from imagebuilder.verify.changes import Baseline
from imagebuilder.verify.model import Boot, Check, Inventory, Package, Report, Span
from imagebuilder.verify.report.words import Line, counts, lines_of

API, KIND, MANIFEST_KIND = "imagebuilder/v1", "Verification", "Image"
REPORT_FILE, MANIFEST_FILE = "verify.json", "manifest.json"
MAX_BYTES = 16 << 20  # of a document: a report has some 100 KiB
_HINT = "give the folder of an image, its verify.json, or its manifest.json"


def as_json(report: Report, checks: Sequence[Check], budgets: Sequence[Spent] = ()) -> dict[str, Any]:
    """Return the document. Its keys stay as they are; new ones may come.

    ``apiVersion``, ``kind`` (``Verification``), ``tool`` (name, version), ``image``, ``artifact`` (the file's name),
    ``sha256``, ``subject`` (family, os, release, target, arch, firmware), ``passed``, ``seconds``; ``counts`` by
    outcome; ``checks``: id, kind (offline, booted, budget, other), outcome (passed, failed, not-run, waived), found,
    reason, seconds, proves, why, link, fix, the worst first; ``boots``: firmware, accelerator, reference, stages
    (seconds by name), spans (name, start, end); ``inventory``: artifact_size and installed_size in bytes, packages
    (name, version, arch, size), units, boot_steps, sockets; ``budgets``: name, limit, value, left.

    Args:
        report: what was found.
        checks: their words.
        budgets: what is spent of each.
    """
    subject = report.subject
    return {
        "apiVersion": API,
        "kind": KIND,
        "tool": {"name": "imagebuilder", "version": __version__},
        "image": report.name,
        "artifact": report.path.name,
        "sha256": report.sha256,
        "subject": {
            **{name: getattr(subject, name) for name in ("family", "os", "release", "target", "arch")},
            "firmware": list(subject.firmware),
        },
        "passed": passed(report),
        "seconds": report.seconds,
        "counts": {outcome.value: number for outcome, number in counts(report.results).items()},
        "checks": [_check(line) for line in lines_of(report, checks)],
        "boots": [plain(boot) for boot in report.boots],
        "inventory": plain(report.inventory),
        "budgets": [{"name": one.name, "limit": one.limit, "value": one.value, "left": one.left} for one in budgets],
    }


def passed(report: Report) -> bool:
    """Tell whether an image is proven: every check holds, and there was at least one."""
    return bool(report.results) and not report.failures


def _check(line: Line) -> dict[str, Any]:
    result, check = line.result, line.check
    return {
        "id": result.id,
        "kind": line.kind,
        "outcome": result.outcome.value,
        "found": list(result.found),
        "reason": result.reason,
        "seconds": result.seconds,
        **{name: getattr(check, name, "") for name in ("proves", "why", "link", "fix")},
    }


def read_baseline(path: Path) -> Baseline:
    """Return what an earlier image was: its report, or its manifest alone.

    Args:
        path: a folder with ``verify.json`` or ``manifest.json``, or one of these files.

    Raises:
        ArtifactError: there is none, or it is not of its form.
    """
    if path.is_dir():
        names = [name for name in (REPORT_FILE, MANIFEST_FILE) if (path / name).is_file()]
        if not names:
            raise ArtifactError(f"{path} has neither {REPORT_FILE} nor {MANIFEST_FILE}", hint=_HINT)
        path = path / names[0]
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", hint=_HINT) from error
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{path} is larger than {MAX_BYTES >> 20} MiB", hint=_HINT)
    try:
        return from_json(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is no report and no manifest: {error}", hint=_HINT) from error


def from_json(document: Any) -> Baseline:
    """Return what a document of :func:`as_json`, or a bake's manifest, says for a comparison.

    Raises:
        ValueError: it is neither, or a value is missing or of another type.
    """
    kind = document.get("kind") if isinstance(document, Mapping) else None
    try:
        if kind == KIND:
            return _of_report(document)
        if kind == MANIFEST_KIND:
            return _of_manifest(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a value is missing or of another type ({error})") from error
    raise ValueError(f'"kind" is neither "{KIND}" nor "{MANIFEST_KIND}"')


def _of_report(document: Mapping[str, Any]) -> Baseline:
    stock = document["inventory"]
    inventory = Inventory(
        artifact_size=_whole(stock["artifact_size"]),
        installed_size=_whole(stock["installed_size"]),
        packages=tuple(_package(item) for item in stock["packages"]),
        units=_texts(stock["units"]),
        boot_steps=_whole(stock["boot_steps"]),
        sockets=_texts(stock["sockets"]),
    )
    boots = tuple(_boot(item) for item in document["boots"])
    return Baseline(name=str(document["image"]), sha256=str(document["sha256"]), inventory=inventory, boots=boots)


def _of_manifest(document: Mapping[str, Any]) -> Baseline:
    artifact = document["artifact"]
    inventory = Inventory(
        artifact_size=_whole(artifact.get("size", 0)), installed_size=0, units=(), boot_steps=0,
        packages=tuple(_package({"size": 0, **item}) for item in document["packages"]),
    )  # fmt: skip
    sha256 = str(artifact.get("sha256", ""))
    return Baseline(name=str(document["id"]), sha256=sha256, inventory=inventory, whole=False)


def _package(item: Mapping[str, Any]) -> Package:
    name, version, arch = _texts([item["name"], item["version"], item["arch"]])
    return Package(name=name, version=version, arch=arch, size=_whole(item["size"]))


def _boot(item: Mapping[str, Any]) -> Boot:
    return Boot(
        firmware=str(item["firmware"]),
        accelerator=str(item["accelerator"]),
        spans=tuple(Span(name=str(s["name"]), start=_real(s["start"]), end=_real(s["end"])) for s in item["spans"]),
        stages={str(stage): _real(seconds) for stage, seconds in item["stages"].items()},
        reference=_real(item["reference"]),
    )


def _whole(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r:.40} is no size or count")
    return value


def _real(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value < 1e9:  # also no NaN, no infinity
        raise TypeError(f"{value!r:.40} is no time in seconds")
    return float(value)


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{values!r:.40} is no list of texts")
    return tuple(values)
