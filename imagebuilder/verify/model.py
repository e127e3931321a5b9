"""What a check is, and what it found.

A check is a small function beside the words that explain it. Offline checks look at the files of the artifact, booted
ones judge what a command said in a throwaway guest. Both yield one line per thing that is wrong; none means that it
holds. What could not be looked at is no success: a check that raises has not run, and that is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from imagebuilder.verify.tree import Tree

FOUND_LINES = 50  # of one check, kept in its result

Found: TypeAlias = Iterable[str]


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not-run"  # it could not look: no less a failure
    WAIVED = "waived"  # failed or not run, and the configuration says why that is accepted


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A partition: ``start`` and ``size`` in bytes, ``type`` as the table has it (a lower-case GUID, or 0x83)."""

    number: int
    type: str
    start: int
    size: int
    uuid: str = ""
    name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskFacts:
    """What the disk says before any file system: ``table`` is ``gpt``, ``mbr`` or empty; ``boot_code`` of sector 0."""

    format: str
    size: int
    table: str
    partitions: tuple[Partition, ...]
    boot_code: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The stated lists of a family: whatever else is found is wrong. Paths and names may have ``*``.

    Attributes:
        setuid: files with the set-uid or set-gid bit.
        world_writable: files and folders that anyone may write (sticky folders are fine by themselves).
        units: systemd units that are enabled.
        sockets: ``proto/port`` that may listen on more than loopback, such as ``tcp/22``.
        journal: regular expressions of lines with priority err or worse that are known.
        secrets: path patterns that look like secrets, each with the reason why that one is none.
    """

    setuid: tuple[str, ...] = ()
    world_writable: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    journal: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is to be proven of what.

    Attributes:
        path: the artifact, as given.
        name: of the image.
        family: ``debian`` or ``redhat``.
        os: ``debian``, ``ubuntu``, ``centos``...
        release: of the OS; empty where nobody said.
        target: of the image; empty where nobody said.
        arch: ``amd64`` or ``arm64``.
        firmware: what it must boot under.
        manifest: of the bake; None for a disk of somebody else.
        expected: the family's lists.
    """

    path: Path
    name: str
    family: str
    os: str
    release: str
    target: str
    arch: str
    firmware: tuple[str, ...]
    manifest: Mapping[str, Any] | None
    expected: Expected

    def capability(self, name: str) -> Any:
        """Return a capability that the manifest states, or None."""
        return (self.manifest or {}).get("capabilities", {}).get(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """An artifact that is open: its disk, its root file system and, where it has one, its EFI system partition."""

    subject: Subject
    disk: DiskFacts
    root: Tree
    esp: Tree | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The words of a check, and whom it is for.

    Attributes:
        id: stable, kebab-case, the same in every report.
        proves: what holds when it passes, as a sentence.
        why: why that matters, as a sentence.
        link: the standard, CVE or issue behind it.
        fix: what to do when it fails.
        families: whose images it applies to; empty means all.
        targets: likewise.
        stated: it holds the image against its manifest; one of somebody else has none.
    """

    id: str
    proves: str
    why: str
    link: str
    fix: str
    families: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()
    stated: bool = False

    def applies(self, subject: Subject) -> bool:
        """Tell whether a subject is one of those that it is for; a target nobody named is any."""
        family = not self.families or subject.family in self.families
        target = not self.targets or not subject.target or subject.target in self.targets
        return family and target and (subject.manifest is not None or not self.stated)


@dataclass(frozen=True, kw_only=True, slots=True)
class OfflineCheck(Check):
    """A check of the files: ``run`` yields a line per thing that is wrong."""

    run: Callable[[Image], Found]


@dataclass(frozen=True, kw_only=True, slots=True)
class BootedCheck(Check):
    """A check of the running node.

    Attributes:
        command: for root's shell in the guest; its standard output is judged, its exit code is not.
        judge: yields a line per thing that is wrong with that output.
        before: it looks before the throwaway data package is applied; else when kubelet and pods should run.
    """

    command: str
    judge: Callable[[str, Subject], Found]
    before: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """How one check ended: ``found`` says what is wrong, ``reason`` why it is waived or could not run."""

    id: str
    outcome: Outcome
    found: tuple[str, ...] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it does not stand in the way."""
        return self.outcome in (Outcome.PASSED, Outcome.WAIVED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A part of a boot: seconds since power-on."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Boot:
    """One boot of the artifact: ``reference`` is the seconds of this run's yardstick, 0.0 where it was not measured."""

    firmware: str
    accelerator: str
    spans: tuple[Span, ...]
    stages: Mapping[str, float]
    reference: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """An installed package; ``size`` is what it says it takes, in bytes."""

    name: str
    version: str
    arch: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What an image has: what budgets count, and ``diff`` compares.

    Attributes:
        artifact_size: bytes of the artifact file.
        installed_size: bytes of all files of the root file system.
        packages: by name.
        units: systemd units that are enabled.
        boot_steps: what is left for boot.
        sockets: what listened on more than loopback in the guest.
    """

    artifact_size: int
    installed_size: int
    packages: tuple[Package, ...]
    units: tuple[str, ...]
    boot_steps: int
    sockets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that a verification found. It passes only when every check holds."""

    name: str
    path: Path
    sha256: str
    subject: Subject = field(repr=False)
    results: tuple[CheckResult, ...]
    boots: tuple[Boot, ...]
    inventory: Inventory
    seconds: float

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """Return those that stand in the way."""
        return tuple(result for result in self.results if not result.holds)


def limited(found: Found) -> Iterator[str]:
    """Yield the first lines of what was found, and how many more there are."""
    lines = list(found)
    yield from lines[:FOUND_LINES]
    if len(lines) > FOUND_LINES:
        yield f"and {len(lines) - FOUND_LINES} more"
