"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A busy machine is no failure: no test looks at the clock.
settings.register_profile("imagebuilder", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("imagebuilder")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
