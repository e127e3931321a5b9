"""Guests of one sector under a real QEMU: stages, deadlines, deaths, and nothing left behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from imagebuilder import process
from imagebuilder.errors import ArtifactError, BootError, DeadlineError, UsageError
from imagebuilder.events import Progress, Tape
from imagebuilder.vm import accel, machine, ssh
from imagebuilder.vm.accel import Accelerator, accelerator, probe
from imagebuilder.vm.boot import BootRequest, RunningGuest, boot
from imagebuilder.vm.machine import Machine, MachineConfig, find_firmware

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(process.find(accel.QEMU) is None, reason=f"{accel.QEMU} is not installed"),
]
TCG = Accelerator(name="tcg", reason="a test")
RUNNER = process.RealRunner()

ORIGIN = 0x7C00
# SeaBIOS sends what its serial console still holds on its timer's interrupt, in between what a sector prints: five
# ticks (0.27 s) let it end first.
SETUP = b"\xfb\xb9\x05\x00\xf4\xe2\xfd"  # sti; mov cx, 5; again: hlt; loop again
SETUP += b"\x31\xc0\x8e\xd8\x8e\xc0"  # xor ax, ax; mov ds, ax; mov es, ax
# int 13h, ah=3: write this sector to sector 2 of disk 0x80; hang on an error
WRITE = b"\xb8\x01\x03\xb9\x02\x00\xba\x80\x00\xbb\x00\x7c\xcd\x13\x73\x03\xf4\xeb\xfd"
HALT = b"\xf4\xeb\xfd"  # hlt; jmp back to it
TRIPLE_FAULT = b"\x0f\x01\x1e\xf6\x7d\xcc"  # lidt from six zeros at 0x7df6; int3
AGAIN = b"\xe9"  # jmp to the start; the distance is filled in


def sector(text: bytes, end: bytes = HALT, first: bytes = b"") -> bytes:
    """Return a boot sector that prints to COM1 and then does ``end``."""
    head = SETUP + first
    # lodsb; test al, al; jz end; mov ah, al; mov dx, 3fd; wait: in al, dx; test al, 20; jz wait;
    # mov dl, f8; mov al, ah; out dx, al; jmp lodsb
    loop = b"\xac\x84\xc0\x74\x11\x88\xc4\xba\xfd\x03\xec\xa8\x20\x74\xfb\xb2\xf8\x88\xe0\xee\xeb\xea"
    message = ORIGIN + len(head) + 3 + len(loop) + 3 + len(TRIPLE_FAULT)
    code = head + b"\xbe" + message.to_bytes(2, "little") + loop
    if end == AGAIN:
        end += (-len(code) - 3).to_bytes(2, "little", signed=True)
    code = code.ljust(len(code)) + end.ljust(3 + len(TRIPLE_FAULT), b"\x90") + text + b"\0"
    assert len(code) <= 500
    return code.ljust(510, b"\0") + b"\x55\xaa"


STAGES = (
    b"imagebuilder: runtime ready after 21.3 s\r\nimagebuilder: kubelet healthy after 33.2 s\r\n"
    b"imagebuilder: pods ready after 40.1 s (1 pods)\r\nnode login: "
)


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a TMPDIR of its own, longer than a socket's address may be, and leaves it empty."""
    scratch = tmp_path / ("long-" * 20)
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    yield
    assert processes_with(str(scratch)) == []
    assert list(scratch.iterdir()) == []


def processes_with(word: str) -> list[int]:
    """Return the processes that have ``word`` in their command line, environment or working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if word.encode() in text or word in os.readlink(entry / "cwd"):
                found.append(int(entry.name))
    return found


def request(tmp_path: Path, content: bytes, **changes: Any) -> BootRequest:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(content.ljust(1 << 20, b"\0"))
    base = BootRequest(
        disk=disk, disk_format="raw", console_log=tmp_path / "logs" / "console.log", until="pods",
        memory_mib=64, cpus=1, timeout=20,
    )  # fmt: skip
    return replace(base, **changes)


@contextlib.contextmanager
def booted(tmp_path: Path, content: bytes, tape: Tape | None = None, **changes: Any) -> Iterator[RunningGuest]:
    progress = Progress(tape or Tape())
    cache = tmp_path / "cache"
    with boot(request(tmp_path, content, **changes), runner=RUNNER, progress=progress, cache_dir=cache) as guest:
        yield guest


def fails(tmp_path: Path, content: bytes, **changes: Any) -> None:
    with booted(tmp_path, content, **changes):
        pytest.fail("this guest cannot have reached its stage")


@pytest.fixture(autouse=True)
def _tcg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe has tests of its own; here it would cost seconds per test."""
    if "probe" not in request.node.name:
        monkeypatch.setattr("imagebuilder.vm.boot.accelerator", lambda *_: TCG)


def test_probe_sector_answers_under_tcg() -> None:
    assert probe(RUNNER, "tcg", timeout=30) == ""


def test_probe_keeps_its_deadline_when_the_guest_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "probe_sector", lambda: sector(b""))
    start = time.monotonic()
    assert "did not answer within 1 s" in probe(RUNNER, "tcg", timeout=1)
    assert time.monotonic() - start < 4


def test_probe_decides_for_this_host_in_time_and_remembers(tmp_path: Path) -> None:
    start = time.monotonic()
    found = accelerator(RUNNER, tmp_path)
    assert time.monotonic() - start < accel.PROBE_SECONDS + process.GRACE_SECONDS + 2
    start = time.monotonic()
    assert accelerator(RUNNER, tmp_path) == found
    assert time.monotonic() - start < 0.1


def test_stages_are_seen_and_the_artifact_keeps_its_bytes(tmp_path: Path) -> None:
    content = sector(STAGES, first=WRITE)
    tape = Tape()
    with booted(tmp_path, content, tape, until="login") as guest:
        stages = guest.report.stages
        assert set(stages) == {"runtime", "kubelet", "pods", "login"}
        assert all(0 < seconds < 20 for seconds in stages.values())
        assert guest.report.accelerator == "tcg"
        assert guest.report.console_log.read_bytes().endswith(b"node login: ")
        assert guest.machine.alive
    digest = hashlib.sha256(content.ljust(1 << 20, b"\0")).hexdigest()
    assert hashlib.sha256((tmp_path / "disk.raw").read_bytes()).hexdigest() == digest
    assert [event.kind for event in tape.events if event.kind not in ("note", "log")] == ["begin", "done"]
    assert tape.events[-1].seconds > 0
    notes = [event.text for event in tape.events if event.kind == "note"]
    assert {note.split()[0] for note in notes} >= {"runtime", "kubelet", "pods", "login"}


def test_the_boot_ends_at_its_stage_without_the_login(tmp_path: Path) -> None:
    with booted(tmp_path, sector(b"imagebuilder: kubelet healthy after 3 s\r\n"), until="kubelet") as guest:
        assert set(guest.report.stages) == {"kubelet"}


def test_an_old_log_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "console.log").write_bytes(STAGES)
    with pytest.raises(DeadlineError):
        fails(tmp_path, sector(b""), timeout=1)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(sector(b""), id="silence"),
        pytest.param(sector(b"spam spam spam\r\n" * 20, AGAIN), id="flood"),
        pytest.param(sector(b"spam" * 80, AGAIN), id="flood without newlines"),
    ],
)
def test_the_deadline_is_kept(tmp_path: Path, content: bytes) -> None:
    start = time.monotonic()
    with pytest.raises(DeadlineError, match="did not reach pods within 2 s") as caught:
        fails(tmp_path, content, timeout=2)
    assert time.monotonic() - start < 5
    assert caught.value.context
    assert str(tmp_path / "logs" / "console.log") in caught.value.hint


def test_a_guest_that_dies_fails_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(BootError, match="the guest switched itself off or restarted") as caught:
        fails(tmp_path, sector(b"last words\r\n", TRIPLE_FAULT))
    assert "last words" in caught.value.context
    assert time.monotonic() - start < 10


def test_a_guest_that_reaches_its_stage_and_dies_does_not_pass(tmp_path: Path) -> None:
    with pytest.raises(BootError), booted(tmp_path, sector(STAGES, TRIPLE_FAULT)) as guest:
        while True:  # it may have died just after the last look
            guest.machine.check()


def test_a_panic_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="Kernel panic - not syncing: no init"):
        fails(tmp_path, sector(b"hello\r\n[ 1.0] Kernel panic - not syncing: no init\r\n"))


SLIP = b"Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\r\nKernel panic - not syncing: Fatal exception in interrupt\r\n"


def test_a_guest_that_the_emulator_let_down_is_thrown_away_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks, tape = [SLIP, SLIP, STAGES], Tape()

    class Slipping(Machine):
        def __enter__(self) -> Self:
            with self.config.disk.open("r+b") as stream:
                stream.write(sector(disks.pop(0)))
            return super().__enter__()

    monkeypatch.setattr("imagebuilder.vm.boot.Machine", Slipping)
    with booted(tmp_path, b"", tape=tape) as guest:
        assert guest.machine.alive
        assert "Oops" not in guest.report.console_log.read_text()
    assert disks == []
    told = [event.text for event in tape.events if "QEMU's emulator" in event.text]
    assert (
        told
        == [
            "QEMU's emulator ran an instruction that was replaced before: a new guest "
            "(the guest failed: Kernel panic - not syncing: Fatal exception in interrupt)"
        ]
        * 2
    )


def test_a_guest_that_always_fails_so_fails(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="Fatal exception in interrupt"):
        fails(tmp_path, sector(SLIP))


def test_under_kvm_nothing_is_the_emulators_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Counted(Machine):
        def __init__(self, config: MachineConfig, accelerator: Accelerator, **options: Any) -> None:
            super().__init__(config, TCG, **options)
            started.append(accelerator)

    kvm = Accelerator(name="kvm", reason="a test")
    monkeypatch.setattr("imagebuilder.vm.boot.accelerator", lambda *_: kvm)
    monkeypatch.setattr("imagebuilder.vm.boot.Machine", Counted)
    with pytest.raises(BootError, match="Fatal exception"):
        fails(tmp_path, sector(SLIP))
    assert started == [kvm]


def test_no_kubelet_fails_at_once_when_kubelet_is_asked_for(tmp_path: Path) -> None:
    content = sector(b"imagebuilder: kubelet not started: no configuration\r\nnode login: ")
    with pytest.raises(BootError, match="kubelet not started: no configuration") as caught:
        fails(tmp_path, content, until="kubelet")
    assert "kubelet configuration" in caught.value.hint
    with booted(tmp_path, content, until="login") as guest:
        assert "login" in guest.report.stages


def test_a_disk_that_does_not_boot_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="No bootable device"):
        fails(tmp_path, b"")


def test_uefi_starts_and_says_that_the_disk_does_not_boot(tmp_path: Path) -> None:
    if not any(Path(code).is_file() for code, _ in machine.OVMF):
        pytest.skip("OVMF is not installed")
    before = find_firmware().variables.read_bytes()
    with pytest.raises(BootError, match="BdsDxe"):
        fails(tmp_path, b"", firmware="uefi", memory_mib=256, timeout=60)
    assert find_firmware().variables.read_bytes() == before


def test_no_disk_and_no_such_stage_are_told_before_anything_starts(tmp_path: Path) -> None:
    wrong = request(tmp_path, b"", until="dinner")
    for bad, error in ((wrong, UsageError), (replace(wrong, disk=tmp_path / "no", until="login"), ArtifactError)):
        with (
            pytest.raises(error),
            boot(bad, runner=RUNNER, progress=Progress(), cache_dir=tmp_path),
        ):
            pytest.fail("unreachable")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    folders = []
    with pytest.raises(error), booted(tmp_path, sector(STAGES)) as guest:
        folders.append(guest.machine.folder)
        assert processes_with(str(guest.machine.folder)) == [guest.machine.pid]
        assert guest.machine.folder.stat().st_mode & 0o777 == 0o700
        raise error
    assert processes_with(folders[0].name) == []
    assert not folders[0].exists()


def test_credentials_do_not_show_in_the_process_list(tmp_path: Path) -> None:
    with booted(tmp_path, sector(STAGES), credentials={"token": b"correct horse battery"}) as guest:
        shown = Path(f"/proc/{guest.machine.pid}/cmdline").read_bytes()
        shown += Path(f"/proc/{guest.machine.pid}/environ").read_bytes()
        credential = guest.machine.folder / "credential-0"
        value = credential.read_bytes().split(b"=", 1)[1]
        assert credential.stat().st_mode & 0o777 == 0o600
        assert b"path=credential-0" in shown
        assert value not in shown
        assert b"correct horse" not in shown


def test_forwards_listen_on_loopback_and_are_told(tmp_path: Path) -> None:
    with booted(tmp_path, sector(STAGES), forwards=((0, 10250),)) as guest:
        port = guest.machine.host_port(10250)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        with pytest.raises(UsageError, match="port 1 of the guest"):
            guest.machine.host_port(1)


def test_a_qemu_that_cannot_start_says_why(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BootError, match="QEMU ended with 1") as caught:
            fails(tmp_path, sector(STAGES), forwards=((port, 80),))
    assert "hostfwd" in caught.value.context or "forwarding" in caught.value.context


def test_a_restart_can_be_allowed(tmp_path: Path) -> None:
    asked = request(tmp_path, sector(b"round\r\n", TRIPLE_FAULT))
    config = MachineConfig(
        disk=asked.disk, disk_format="raw", console_log=asked.console_log, memory_mib=64, cpus=1, reboots=True
    )
    with Machine(config, TCG) as guest:
        lines: list[str] = []
        while lines.count("round") < 2 and guest.seconds < 20:
            guest.check()
            lines += guest.console.poll()
            time.sleep(0.05)
        assert lines.count("round") >= 2


def test_the_reset_button_starts_a_guest_anew(tmp_path: Path) -> None:
    asked = request(tmp_path, sector(b"round\r\n"))
    config = MachineConfig(
        disk=asked.disk, disk_format="raw", console_log=asked.console_log, memory_mib=64, cpus=1, reboots=True
    )
    with Machine(config, TCG) as guest:
        for rounds in (1, 2):
            deadline = time.monotonic() + 60
            while asked.console_log.read_text("latin-1").count("round") < rounds:
                guest.check()
                assert time.monotonic() < deadline, f"there is no round {rounds}"
                time.sleep(0.05)
            guest.reset()


def test_ssh_keeps_its_deadline_and_leaves_no_client(tmp_path: Path) -> None:
    if not process.find("ssh-keygen"):
        pytest.skip("ssh-keygen is not installed")
    with booted(tmp_path, sector(STAGES), ssh=True) as guest:
        assert guest.ssh is not None
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            guest.ssh.run("true", timeout=3)
        assert time.monotonic() - start < 6
        folder = Path(str(guest.ssh._folder))
        assert (folder / ssh.KEY).stat().st_mode & 0o777 == 0o600
    assert processes_with(folder.name) == []
