"""The checks of an artifact's files: nothing is started, nothing is mounted."""

from __future__ import annotations

from imagebuilder.verify.model import OfflineCheck
from imagebuilder.verify.offline import boot, leftovers, node, packages, people, secrets, system, units

CHECKS: tuple[OfflineCheck, ...] = (
    *boot.CHECKS,
    *system.CHECKS,
    *units.CHECKS,
    *node.CHECKS,
    *packages.CHECKS,
    *people.CHECKS,
    *leftovers.CHECKS,
    *secrets.CHECKS,
)
