"""Baked images, booted: what the README promises, seen from inside the guest."""

from __future__ import annotations

import time
import urllib.request

import pytest

from imagebuilder.vm.boot import RunningGuest
from tests.e2e.conftest import BOOT_SECONDS, Bake, Boot, needs_bake, needs_qemu

pytestmark = [pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(1800), needs_bake, needs_qemu]
HELLO = "hello from a pod that was in the image"


def out(guest: RunningGuest, command: str) -> str:
    assert guest.ssh is not None
    return guest.ssh.run(command, timeout=180).stdout.strip()


def get(url: str, seconds: float = BOOT_SECONDS) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_debian_12_runs_a_pod(baked: Bake, booted: Boot) -> None:
    with booted(baked(release="12"), until="pods", forwards=((0, 8080),)) as guest:
        assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8080)}/")
        assert out(guest, "systemctl --failed --no-legend") == ""
