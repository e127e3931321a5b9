"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: no test looks at the clock.
settings.register_profile("imagebuilder", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("imagebuilder")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what two workers of pytest-xdist share: one boots guests, one after another; the other takes file by file."""
    for item in items:
        group = "guests" if item.path.parent.name == "e2e" else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
