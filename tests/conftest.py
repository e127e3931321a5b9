"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from imagebuilder.errors import ImagebuilderError

# A busy machine is no failure: no test looks at the clock.
settings.register_profile("imagebuilder", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("imagebuilder")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what an error of ours has as evidence, such as a console's last lines: its message is not all of it."""
    report = yield
    if call.excinfo and isinstance(call.excinfo.value, ImagebuilderError) and call.excinfo.value.context:
        report.sections.append(("context of the error", call.excinfo.value.context))
    return report
