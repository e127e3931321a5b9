"""Guests that cannot be asked: each ends in a clear result within its deadline, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.events import Progress
from imagebuilder.process import RealRunner
from imagebuilder.verify.booted import guest
from imagebuilder.verify.booted.session import verify_booted
from imagebuilder.verify.model import Expected, Outcome, Subject
from tests.integration.test_vm import AGAIN, HALT, TRIPLE_FAULT, processes_with, sector

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(process.find("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
]


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    yield
    assert processes_with(str(scratch)) == []
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("disk", "timeout", "reason"),
    [
        pytest.param(sector(b"Kernel panic - not syncing: x\r\n"), 120, "Kernel panic", id="panic"),
        pytest.param(sector(b"bye\r\n", TRIPLE_FAULT), 120, "switched itself off or restarted", id="restart"),
        pytest.param(sector(b"hm\r\n", HALT), 8, "did not reach login within 8 s", id="hang"),
        pytest.param(sector(b"flood " * 20 + b"\r\n", AGAIN), 8, "login", id="flood"),
        pytest.param(sector(b"node login: ", HALT), 60, "did not answer to ssh within 4 s", id="no-network"),
        pytest.param(b"\0" * 512, 120, "No bootable device", id="no-boot-sector"),
    ],
)
def test_a_guest_that_cannot_be_asked_passes_nothing(
    disk: bytes, timeout: float, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "LET_IN_SECONDS", 4.0)
    path = tmp_path / "disk.raw"
    path.write_bytes(disk.ljust(1 << 20, b"\0"))
    subject = Subject(
        path=path, name="x", family="debian", os="debian", release="13", target="qemu", arch="amd64",
        firmware=("bios",), manifest=None, expected=Expected(),
    )  # fmt: skip
    results, (boot,), sockets = verify_booted(
        subject, path, "raw", runner=RealRunner(), progress=Progress(), cache_dir=tmp_path / "cache",
        scratch=tmp_path / "kept", timeout=timeout, kubernetes="",
    )  # fmt: skip
    assert {one.outcome for one in results} == {Outcome.NOT_RUN}
    assert all(reason in one.reason for one in results), results[0]
    assert (sockets, boot.spans) == ((), ())
    assert (tmp_path / "kept/console-bios.log").exists()
    assert path.read_bytes() == disk.ljust(1 << 20, b"\0")
