"""Verifies one artifact: offline first, then booted; what it found is a report, and nobody's opinion.

Order: the artifact's bytes are hashed; its files are checked; a throwaway overlay is booted under each firmware; the
bytes are hashed again. Budgets and waivers come last: they judge what was found.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imagebuilder.config import Budgets
from imagebuilder.content import sha256_file
from imagebuilder.direct.layers import LayerStore
from imagebuilder.direct.virtual import materialize
from imagebuilder.events import Progress
from imagebuilder.process import Runner
from imagebuilder.verify import booted, offline
from imagebuilder.verify.booted.guest import Opener
from imagebuilder.verify.booted.session import verify_booted
from imagebuilder.verify.budgets import BUDGET_CHECKS, check_budgets
from imagebuilder.verify.changes import Baseline
from imagebuilder.verify.disks import OpenDisk, open_image
from imagebuilder.verify.inventory import take_inventory
from imagebuilder.verify.model import Boot, Check, CheckResult, Image, Outcome, Report, Subject
from imagebuilder.verify.offline.run import run_offline
from imagebuilder.verify.subject import Said, find_subject
from imagebuilder.verify.waivers import apply_waivers
from imagebuilder.vm.machine import DiskFormat

BOOT_SECONDS = 900.0  # of one guest until its kubelet and pod run: under TCG on a busy machine; an idle one takes one
BOOTABLE: dict[str, DiskFormat] = {"qcow2": "qcow2", "raw": "raw"}  # others are booted from a raw copy

ARTIFACT_CHECKS = (
    Check(
        id="artifact-is-the-manifests",
        proves="The artifact's bytes are those that its manifest states.",
        why="An artifact that was changed or cut short after the bake is not what was decided, built and tested.",
        link="https://slsa.dev/spec/v1.0/threats",
        fix="Bake it again, or copy it again.",
        stated=True,
    ),
    Check(
        id="artifact-is-unchanged",
        proves="Verifying left every byte of the artifact as it was.",
        why="A guest that wrote into it would leave its keys and its machine-id in every node.",
        link="https://github.com/kubernetes-sigs/image-builder/issues/1554",
        fix="Report it: guests get an overlay that is thrown away.",
    ),
)

CHECKS: tuple[Check, ...] = (*ARTIFACT_CHECKS, *offline.CHECKS, *booted.CHECKS, *BUDGET_CHECKS)  # the words of each id
KNOWN = frozenset(check.id for check in CHECKS)


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyRequest:
    """What to verify, and how.

    Attributes:
        path: an artifact, or the folder of a bake.
        said: what the user says of it.
        boot: boot it too.
        budgets: what it may cost.
        waivers: failures that are accepted, with their reasons.
        baseline: an earlier report or manifest, to say what grew.
        timeout: seconds for each guest.
    """

    path: Path
    said: Said = field(default_factory=Said)
    boot: bool = True
    budgets: Budgets = field(default_factory=Budgets)
    waivers: Mapping[str, str] = field(default_factory=dict)
    baseline: Baseline | None = None
    timeout: float = BOOT_SECONDS


@contextlib.contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """Hand out a folder in the cache; what is left of one whose process was killed goes first."""
    with LayerStore(cache) as store:
        store.sweep()
        with store.scratch(f"verify-{os.getpid()}") as folder:
            yield folder


@contextlib.contextmanager
def opened(path: Path, said: Said, scratch: Path) -> Iterator[tuple[Image, OpenDisk]]:
    """Open an artifact, and know what it claims to be.

    Raises:
        ArtifactError: it cannot be opened, or has no root file system that is supported.
        UsageError: nobody says what OS it is of.
    """
    subject = find_subject(path, said)
    with open_image(subject.path, scratch) as disk:
        if not (subject.manifest or subject.target or said.firmware or disk.esp):  # nobody says that it is for UEFI
            subject = replace(subject, firmware=tuple(name for name in subject.firmware if name != "uefi"))
        yield Image(subject=subject, disk=disk.facts, root=disk.root, esp=disk.esp), disk


def verify(
    request: VerifyRequest, *, runner: Runner, progress: Progress, cache: Path, opener: Opener | None = None
) -> Report:
    """Verify an artifact.

    Args:
        request: what, and how.
        runner: runs what a guest needs.
        progress: gets a stage for the files, and one per firmware.
        cache: has the scratch folder, and gets the consoles.
        opener: starts the guests; a test's own.

    Returns:
        What was found; it passes when nothing stands in the way (``Report.failures``).

    Raises:
        ArtifactError: it cannot be opened, or has no root file system that is supported.
        UsageError: nobody says what OS it is of.
        DataError: a waiver names a check that does not exist.
        ImagebuilderError: it could not be verified for another reason, for example a missing tool.
    """
    start = time.monotonic()
    apply_waivers((), request.waivers, KNOWN)  # a wrong one is told before anything takes its time
    boots: tuple[Boot, ...] = ()
    with scratch(cache) as folder, opened(request.path, request.said, folder) as (image, disk):
        subject = image.subject
        with progress.stage("verify:offline", f"Check the files of {subject.name}") as stage:
            digest = sha256_file(subject.path)
            results = [*_as_stated(subject, digest), *run_offline(image)]
            inventory = take_inventory(image, subject.path.stat().st_size)
            stage.summary = summary(results)
        if request.boot:
            found, boots, sockets = _booted(
                request, subject, disk, folder, runner=runner, progress=progress, cache=cache, opener=opener
            )
            results += [*found, _untouched(digest, sha256_file(subject.path))]
            inventory = replace(inventory, sockets=sockets)
    results += check_budgets(request.budgets, inventory, boots, request.baseline)
    return Report(
        name=subject.name, path=subject.path, sha256=digest, subject=subject,
        results=apply_waivers(results, request.waivers, KNOWN), boots=boots, inventory=inventory,
        seconds=time.monotonic() - start,
    )  # fmt: skip


def _booted(
    request: VerifyRequest, subject: Subject, disk: OpenDisk, folder: Path, *, runner: Runner, progress: Progress,
    cache: Path, opener: Opener | None,
) -> tuple[tuple[CheckResult, ...], tuple[Boot, ...], tuple[str, ...]]:  # fmt: skip
    logs, found = cache / "logs", None
    try:
        with _bootable(subject.path, disk, folder) as (path, kind):
            found = verify_booted(
                subject, path, kind, runner=runner, progress=progress, cache_dir=cache, scratch=folder,
                timeout=request.timeout, kubernetes=str(subject.capability("kubelet") or ""), opener=opener,
            )  # fmt: skip
            return found
    finally:
        logs.mkdir(exist_ok=True)
        for console in folder.glob("console-*.log"):  # kept, however it ended: one for each image and firmware
            kept = console.replace(logs / f"verify-{subject.name}-{console.name}")
            if found is None or any(result.outcome is not Outcome.PASSED for result in found[0]):
                progress.note(f"the guest's console: {kept}")


@contextlib.contextmanager
def _bootable(path: Path, disk: OpenDisk, folder: Path) -> Iterator[tuple[Path, DiskFormat]]:
    """Hand out the disk in a form that a guest can have: the artifact itself, or a raw copy for this run."""
    if not disk.packed and disk.facts.format in BOOTABLE:
        yield path, BOOTABLE[disk.facts.format]
        return
    copy = folder / "disk.raw"
    materialize(disk.disk, copy)
    try:
        yield copy, "raw"
    finally:
        copy.unlink(missing_ok=True)


def _as_stated(subject: Subject, digest: str) -> Iterator[CheckResult]:
    check = ARTIFACT_CHECKS[0]
    if check.applies(subject):
        stated = (subject.manifest or {}).get("artifact", {}).get("sha256")
        yield _result(check, () if stated == digest else (f"sha256 {digest}, and the manifest states {stated}",))


def _untouched(before: str, after: str) -> CheckResult:
    return _result(ARTIFACT_CHECKS[1], () if before == after else (f"sha256 {before} before, {after} after",))


def _result(check: Check, wrong: tuple[str, ...]) -> CheckResult:
    return CheckResult(id=check.id, outcome=Outcome.FAILED if wrong else Outcome.PASSED, found=wrong)


def summary(results: Sequence[CheckResult]) -> str:
    """Return how many hold, in words."""
    bad = sum(not result.holds for result in results)
    return f"{len(results)} checks, " + (f"{bad} failed" if bad else "all hold")
