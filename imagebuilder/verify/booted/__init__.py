"""The checks of a running node: each is a command and a judge of what it says."""

from __future__ import annotations

from imagebuilder.verify.booted import access, kubernetes, runtime, system
from imagebuilder.verify.model import BootedCheck

CHECKS: tuple[BootedCheck, ...] = (*system.CHECKS, *access.CHECKS, *runtime.CHECKS, *kubernetes.CHECKS)
# What a firmware may change; it is looked at in every boot. All else holds in the first boot as in the second.
EVERY_BOOT = frozenset({"boot-completed", "boot-firmware", "no-failed-units", "swap-off", "root-grown"})
