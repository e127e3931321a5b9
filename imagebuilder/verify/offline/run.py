"""Runs the offline checks: each by itself, so that one that cannot look hides no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from imagebuilder.errors import ImagebuilderError
from imagebuilder.verify.model import CheckResult, Image, OfflineCheck, Outcome, limited
from imagebuilder.verify.offline import CHECKS
from imagebuilder.verify.offline.files import Remembered

_REASON = 300  # characters of an unforeseen error


def run_offline(
    image: Image, checks: Iterable[OfflineCheck] = CHECKS, clock: Callable[[], float] = time.monotonic
) -> tuple[CheckResult, ...]:
    """Run the checks that apply to an image.

    Args:
        image: the open artifact.
        checks: which ones.
        clock: seconds, for how long each took.

    Returns:
        A result per check that applies, in order. A check that raises, whatever it raises, has not run.
    """
    root, esp = Remembered(image.root), None if image.esp is None else Remembered(image.esp)
    image = replace(image, root=root, esp=esp)
    return tuple(_result(check, image, clock) for check in checks if check.applies(image.subject))


def _result(check: OfflineCheck, image: Image, clock: Callable[[], float]) -> CheckResult:
    start = clock()
    try:
        found = tuple(limited(check.run(image)))
    except ImagebuilderError as error:
        return CheckResult(id=check.id, outcome=Outcome.NOT_RUN, reason=error.message, seconds=clock() - start)
    except Exception as error:
        # Bytes of anyone: what no check foresaw must not pass, nor keep the other checks from looking.
        reason = f"{type(error).__name__}: {error}"[:_REASON]
        return CheckResult(id=check.id, outcome=Outcome.NOT_RUN, reason=reason, seconds=clock() - start)
    outcome = Outcome.FAILED if found else Outcome.PASSED
    return CheckResult(id=check.id, outcome=outcome, found=found, seconds=clock() - start)
