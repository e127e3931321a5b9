"""What all forms of a report share: the order of the results, the kinds of checks, and text that is safe to show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from imagebuilder.verify.model import BootedCheck, Check, CheckResult, OfflineCheck, Outcome, Report

KINDS = ("offline", "booted", "budget", "other")  # the last for results whose check nobody gave
WORST_FIRST = (Outcome.FAILED, Outcome.NOT_RUN, Outcome.WAIVED, Outcome.PASSED)
# Neither in XML 1.0 (section 2.2), nor for a terminal, which would obey them: a guest may have written them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A result beside the words of its check, which are None where nobody gave the check."""

    result: CheckResult
    check: Check | None
    kind: str


BUDGET = "budget-"  # how their ids begin


def clean(text: str) -> str:
    """Return a text with a visible mark for everything that a terminal would obey, or that XML forbids."""
    return _UNSAFE.sub("\ufffd", text)


def kind_of(check: Check | None) -> str:
    """Return one of ``KINDS``."""
    if isinstance(check, OfflineCheck):
        return "offline"
    if isinstance(check, BootedCheck):
        return "booted"
    return "budget" if check and check.id.startswith(BUDGET) else "other"


def lines_of(report: Report, checks: Iterable[Check]) -> list[Line]:
    """Return the results with their checks, the worst first, else in the report's order."""
    known: Mapping[str, Check] = {check.id: check for check in checks}
    lines = [
        Line(result=result, check=known.get(result.id), kind=kind_of(known.get(result.id))) for result in report.results
    ]
    return sorted(lines, key=lambda line: WORST_FIRST.index(line.result.outcome))


def said(result: CheckResult) -> str:
    """Return what a result has to say on one line."""
    parts = [result.reason] if result.reason else []
    if result.found:
        more = f" (and {len(result.found) - 1} more)" if len(result.found) > 1 else ""
        parts.append(f"{result.found[0]}{more}")
    return clean("; ".join(parts)).replace("\n", " ").replace("\t", " ")


def counts(results: Sequence[CheckResult]) -> Mapping[Outcome, int]:
    """Return how many ended how, the worst first."""
    return {outcome: sum(result.outcome is outcome for result in results) for outcome in WORST_FIRST}
