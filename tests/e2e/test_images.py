"""Baked images, booted: what the README promises, seen from inside the guest."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest

from imagebuilder.bake import BakeResult
from imagebuilder.process import RealRunner
from imagebuilder.vm.boot import RunningGuest
from tests.e2e.conftest import Bake, Boot, needs_bake, needs_qemu

pytestmark = [pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(1800), needs_bake, needs_qemu]
HELLO = "hello from a pod that was in the image"


def out(guest: RunningGuest, command: str) -> str:
    assert guest.ssh is not None
    return guest.ssh.run(command, timeout=180).stdout.strip()


def get(url: str, seconds: float = 120) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_debian_13_boots_under_uefi_and_grows_to_a_larger_disk(baked: Bake, booted: Boot, tmp_path: Path) -> None:
    result = baked()
    larger = tmp_path / "larger.qcow2"
    RealRunner().run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", result.artifact, "-F", "qcow2", larger, "20G"])
    grown = BakeResult(folder=tmp_path, artifact=larger, manifest=result.manifest, unchanged=True)
    with booted(grown, until="login", firmware="uefi") as guest:
        assert out(guest, "test -d /sys/firmware/efi && echo yes") == "yes"
        assert out(guest, "systemctl is-active ssh") == "active"
        assert int(out(guest, "df --output=size -BG / | tail -1").strip("G ")) >= 18


def test_debian_12_runs_a_pod(baked: Bake, booted: Boot) -> None:
    with booted(baked(release="12"), until="pods", forwards=((0, 8080),)) as guest:
        assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8080)}/")
        assert out(guest, "systemctl --failed --no-legend") == ""
