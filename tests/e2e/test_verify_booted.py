"""Every booted check holds in a guest that is well, and fails in one that is broken in just its way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from imagebuilder.events import Progress
from imagebuilder.process import RealRunner
from imagebuilder.verify.booted import CHECKS
from imagebuilder.verify.booted.guest import Shell, Start, opened
from imagebuilder.verify.booted.session import Session
from imagebuilder.verify.expected import load_expected
from imagebuilder.verify.model import BootedCheck, CheckResult, Outcome, Subject
from tests.booted_mutants import BEFORE, MUTANTS, UNBROKEN, Mutant
from tests.e2e.conftest import BOOT_SECONDS, Bake, needs_bake, needs_qemu

pytestmark = [pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(3600), needs_bake, needs_qemu]
WITNESSES = ("swap-off", "cgroup-v2", "kernel-modules-loaded", "time-kept")  # still hold while another is broken
BY_ID = {check.id: check for check in CHECKS}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A guest with a data package, and how the checks ended before and after that."""

    guest: Shell
    session: Session
    before: dict[str, CheckResult]
    after: dict[str, CheckResult]
    mutants_before: dict[str, list[CheckResult]]

    def ask(self, *checks: BootedCheck) -> list[CheckResult]:
        return asked(self.session, self.guest, *checks)


def asked(session: Session, guest: Shell, *checks: BootedCheck) -> list[CheckResult]:
    found = session.ask(guest, checks)
    assert all(answer is None or answer.code != UNBROKEN for _, answer in found.values()), found
    return [result for result, _ in found.values()]


def shell(guest: Shell, command: str) -> None:
    result = guest.run(command, timeout=BOOT_SECONDS)
    assert result.returncode == 0, (command, result.stdout, result.tail)


def broken(session: Session, guest: Shell, mutant: Mutant) -> list[CheckResult]:
    """Return how the mutant's check and the witnesses end while the guest is broken."""
    witnesses = [BY_ID[name] for name in WITNESSES if name != mutant.id]
    if mutant.mends:
        shell(guest, mutant.breaks)
    try:
        return asked(session, guest, mutant.seen_by(BY_ID[mutant.id]), *witnesses)
    finally:
        if mutant.mends:
            shell(guest, mutant.mends)


@pytest.fixture(scope="module")
def node(baked: Bake, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    result = baked(plain=True)
    disk, manifest = result.artifact, result.manifest
    assert disk is not None
    scratch = tmp_path_factory.mktemp("verify")
    subject = Subject(
        path=disk, name=disk.stem, family="debian", os="debian", release="13", target="qemu", arch="amd64",
        firmware=("bios",), manifest=manifest,
        expected=load_expected(family="debian", os="debian", target="qemu", release="13"),
    )  # fmt: skip
    session = Session(subject=subject, scratch=scratch, timeout=BOOT_SECONDS, kubernetes="")
    start = Start(
        disk=disk, disk_format="qcow2", arch="amd64", cache_dir=cache, scratch=scratch, timeout=BOOT_SECONDS,
        runner=RealRunner(), progress=Progress(),
    )  # fmt: skip
    checks = [check for check in CHECKS if check.applies(subject)]
    with partial(opened, start)(firmware="bios") as guest:
        session.settle(guest)
        before = asked(session, guest, *(check for check in checks if check.before))
        mutants = {mutant.id: broken(session, guest, mutant) for mutant in BEFORE}
        assert session.configure(guest) == ""
        session.wait(guest)
        after = asked(session, guest, *(check for check in checks if not check.before))
        yield Node(
            guest=guest, session=session, mutants_before=mutants,
            before={one.id: one for one in before}, after={one.id: one for one in after},
        )  # fmt: skip


def wrong(results: dict[str, CheckResult]) -> dict[str, CheckResult]:
    return {name: one for name, one in results.items() if one.outcome != Outcome.PASSED}


def test_every_check_holds_in_a_guest_that_is_well(node: Node) -> None:
    assert wrong({**node.before, **node.after}) == {}
    assert {*node.before, *node.after} == {check.id for check in CHECKS if check.applies(node.session.subject)}


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.id) for mutant in BEFORE])
def test_a_check_before_the_package_sees_a_broken_guest(node: Node, mutant: Mutant) -> None:
    seen, *witnesses = node.mutants_before[mutant.id]
    assert (seen.id, seen.outcome) == (mutant.id, Outcome.FAILED), seen
    assert [one for one in witnesses if one.outcome != Outcome.PASSED] == []


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.id) for mutant in MUTANTS])
def test_a_check_sees_a_broken_guest_and_no_other_does(node: Node, mutant: Mutant) -> None:
    seen, *witnesses = broken(node.session, node.guest, mutant)
    assert (seen.id, seen.outcome) == (mutant.id, Outcome.FAILED), seen
    assert [one for one in witnesses if one.outcome != Outcome.PASSED] == []
    assert wrong({one.id: one for one in node.ask(BY_ID[mutant.id])}) == {}, "it is mended"


def test_a_version_that_was_asked_for_and_is_not_there_is_seen_without_a_manifest(node: Node) -> None:
    bare = replace(node.session, subject=replace(node.session.subject, manifest=None), kubernetes="1.34")
    (seen,) = asked(bare, node.guest, BY_ID["kubelet-version"])
    assert seen.outcome == Outcome.FAILED
