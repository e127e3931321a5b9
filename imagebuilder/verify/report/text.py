"""A report as rows for a terminal; who prints them decides how wide they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imagebuilder.verify.budgets import Spent
from imagebuilder.verify.model import Check, Outcome, Report
from imagebuilder.verify.report.words import WORST_FIRST, counts, lines_of, said

_MARKS = {Outcome.PASSED: "ok", Outcome.FAILED: "FAILED", Outcome.NOT_RUN: "NOT RUN", Outcome.WAIVED: "waived"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A table: each row has a cell for each heading."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextReport:
    """The tables of a report, and its last line."""

    checks: Rows
    boots: Rows
    budgets: Rows
    verdict: str


def as_text(report: Report, checks: Sequence[Check], budgets: Sequence[Spent] = ()) -> TextReport:
    """Return the tables for a terminal, failures last: there they are seen.

    Args:
        report: what was found.
        checks: their words; budgets have theirs in ``BUDGET_CHECKS``.
        budgets: what is spent of each.
    """
    lines = sorted(lines_of(report, checks), key=lambda line: -WORST_FIRST.index(line.result.outcome))
    stages = sorted({stage for boot in report.boots for stage in boot.stages}, key=lambda stage: _when(report, stage))
    return TextReport(
        checks=Rows(
            headings=("RESULT", "CHECK", "FOUND"),
            rows=tuple((_MARKS[line.result.outcome], line.result.id, said(line.result)) for line in lines),
        ),
        boots=Rows(
            headings=("SECONDS UNTIL", *(boot.firmware for boot in report.boots)),
            rows=tuple(
                (stage, *(f"{boot.stages[stage]:.1f}" if stage in boot.stages else "-" for boot in report.boots))
                for stage in stages
            ),
        ),
        budgets=Rows(
            headings=("BUDGET", "VALUE", "LIMIT", "LEFT"),
            rows=tuple(
                (
                    one.name,
                    *("?" if amount is None else one.words(amount) for amount in (one.value, one.limit, one.left)),
                )
                for one in budgets
            ),
        ),
        verdict=verdict(report),
    )


def verdict(report: Report) -> str:
    """Return how a report ends, in a sentence."""
    said = ", ".join(
        f"{number} {outcome.value.replace('-', ' ')}" for outcome, number in counts(report.results).items() if number
    )
    if not report.results:
        return f"{report.name}: nothing was checked, which is a failure"
    holds = "does not hold" if report.failures else "holds"
    return f"{report.name} {holds}: {said}, in {report.seconds:.1f} s"


def _when(report: Report, stage: str) -> float:
    return min(boot.stages[stage] for boot in report.boots if stage in boot.stages)
