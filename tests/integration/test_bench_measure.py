"""The bench's clock and scales."""

from __future__ import annotations

import sys

from bench.measure import Measured, measured
from imagebuilder.process import RealRunner


def test_a_block_is_timed_and_what_it_starts_is_weighed() -> None:
    found: list[Measured] = []
    with measured("a child", found):
        RealRunner().run([sys.executable, "-c", "x = b'x' * (64 << 20); import time; time.sleep(0.7)"])
    assert found[0].seconds >= 0.7
    assert found[0].largest_mib >= 60
    assert found[0].peak_mib >= found[0].largest_mib
