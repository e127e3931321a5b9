"""Failures that the user's file accepts, each with its reason: nothing else turns a failure into less."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from imagebuilder.config import FILE_NAME
from imagebuilder.strict import did_you_mean, wrong
from imagebuilder.verify.model import CheckResult, Outcome

NOT_NEEDED = "passes: its waiver is not needed"


def apply_waivers(
    results: Iterable[CheckResult], waivers: Mapping[str, str], known_ids: Collection[str]
) -> tuple[CheckResult, ...]:
    """Return the results with failures that are accepted, and with words on waivers that nothing needs.

    Args:
        results: of all checks, budgets too.
        waivers: reason by id, as in the user's file.
        known_ids: of all checks there are, also of those that were not for this image.

    Raises:
        DataError: an id that no check has, or a reason that says nothing; the context has a line for each.
    """
    problems = [
        f"{FILE_NAME}: waivers.{name}: there is no such check{did_you_mean(name, known_ids)}"
        for name in waivers
        if name not in known_ids
    ]
    problems += [
        f"{FILE_NAME}: waivers.{name}: a waiver needs a reason" for name in waivers if not waivers[name].strip()
    ]
    if problems:
        raise wrong(FILE_NAME, problems)
    return tuple(_waived(result, waivers[result.id]) if result.id in waivers else result for result in results)


def _waived(result: CheckResult, reason: str) -> CheckResult:
    if result.outcome is Outcome.PASSED:
        return replace(result, reason=NOT_NEEDED)
    # Why it could not run stays to be read: the waiver's reason takes its place.
    found = (*result.found, result.reason) if result.reason else result.found
    return replace(result, outcome=Outcome.WAIVED, found=found, reason=reason.strip())


def is_waiver_unused(result: CheckResult) -> bool:
    """Tell whether a result has a waiver that it does not need."""
    return result.outcome is Outcome.PASSED and result.reason == NOT_NEEDED
