"""Every offline check fails for what it is there for, and for nothing else."""

from __future__ import annotations

import pytest

from imagebuilder.verify.model import Outcome
from imagebuilder.verify.offline import CHECKS
from imagebuilder.verify.offline.run import run_offline
from tests.offline_image import good_image
from tests.offline_mutants import MUTANTS, Mutant, apply

FAMILIES = ("debian", "redhat")
CASES = [
    pytest.param(mutant, family, id=f"{family}: {mutant.id}")
    for mutant in MUTANTS
    for family in FAMILIES
    if mutant.family in ("", family)
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["qemu", "vagrant-libvirt", "azure", ""])
def test_a_good_image_passes_every_check(family: str, target: str) -> None:
    results = run_offline(good_image(family, target))
    assert [(result.id, result.found, result.reason) for result in results if not result.holds] == []
    assert len(results) >= 50


@pytest.mark.parametrize(("mutant", "family"), CASES)
def test_a_mutant_fails_one_check_only(mutant: Mutant, family: str) -> None:
    results = run_offline(apply(mutant, good_image(family)))
    failed = {result.id: result for result in results if result.outcome != Outcome.PASSED}
    assert {name: (one.found, one.reason) for name, one in failed.items() if name != mutant.check} == {}
    assert failed[mutant.check].outcome == Outcome.FAILED
    assert mutant.said in "\n".join(failed[mutant.check].found)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_every_check_has_a_mutant_in_each_family_it_is_for(check: object) -> None:
    for family in check.families or FAMILIES:  # type: ignore[attr-defined]
        assert any(mutant.check == check.id and mutant.family in ("", family) for mutant in MUTANTS), family  # type: ignore[attr-defined]


def test_every_mutant_is_of_a_check() -> None:
    assert {mutant.check for mutant in MUTANTS} == {check.id for check in CHECKS}
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)
