"""The checks as a whole: one list, one page."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

from imagebuilder.cli.docs import checks
from imagebuilder.config import Budgets, Config
from imagebuilder.strict import validate
from imagebuilder.verify.model import Check
from imagebuilder.verify.run import ARTIFACT_CHECKS, CHECKS, KNOWN

ROOT = Path(__file__).parents[2]


def test_the_page_of_checks_is_made_from_the_checks() -> None:
    assert (ROOT / "docs/checks.md").read_text() == checks(), "make docs"


def test_the_example_of_the_page_is_one_that_is_taken() -> None:
    page = (ROOT / "docs/verify.md").read_text()
    text = page[page.index("[waivers]\n") : page.index("```\n", page.index("[waivers]\n"))]
    config = validate(tomllib.loads(text), Config, "docs/verify.md")
    assert set(config.waivers) <= KNOWN
    assert set(config.budgets.model_dump(exclude_none=True)) == set(Budgets.model_fields)


def test_an_id_means_one_check() -> None:
    assert [name for name, times in Counter(check.id for check in CHECKS).items() if times > 1] == []
    assert {check.id for check in CHECKS} == KNOWN


def test_every_check_says_what_it_proves_why_and_what_to_do() -> None:
    def lacks(check: Check) -> bool:
        return not (check.proves.endswith(".") and check.why.endswith(".") and check.fix.endswith(".") and check.link)

    assert [check.id for check in CHECKS if lacks(check)] == []
    assert all(check.link.startswith("https://") for check in ARTIFACT_CHECKS)
