"""What is done with a guest, in which order; and that one that cannot be asked passes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from imagebuilder.datapackage.format import unpack
from imagebuilder.datapackage.signing import PublicKey, verify
from imagebuilder.errors import BootError, DeadlineError, ToolMissingError, UsageError
from imagebuilder.events import Progress, Tape
from imagebuilder.process import Result
from imagebuilder.verify.booted import CHECKS, EVERY_BOOT
from imagebuilder.verify.booted.guest import LOST, LiveGuest, Start, cidata, opened
from imagebuilder.verify.booted.session import merged, verify_booted
from imagebuilder.verify.booted.timeline import COMMANDS
from imagebuilder.verify.model import Boot, CheckResult, Outcome, Subject
from tests.unit.booted_guest import FakeGuest, Opener, golden, subject
from tests.unit.fake_runner import FakeRunner

APPLICABLE = {check.id for check in CHECKS if check.applies(subject())}
BEFORE = [check.id for check in CHECKS if check.before]
KUBERNETES = {"kubelet-version", "kubelet-waits", "kubelet-healthy", "static-pod-runs", "agent-status"}


def run(
    opener: Opener, scratch: Path, what: Subject | None = None, tape: Tape | None = None
) -> tuple[dict[str, CheckResult], tuple[Boot, ...], tuple[str, ...]]:
    results, boots, sockets = verify_booted(
        what or subject(), Path("x.qcow2"), "qcow2", runner=FakeRunner(), progress=Progress(tape or Tape()),
        cache_dir=scratch, scratch=scratch, timeout=900, kubernetes="1.35", opener=opener,
    )  # fmt: skip
    assert len({one.id for one in results}) == len(results)
    return {one.id: one for one in results}, boots, sockets


def outcomes(results: dict[str, CheckResult]) -> dict[Outcome, set[str]]:
    found: dict[Outcome, set[str]] = {}
    for one in results.values():
        found.setdefault(one.outcome, set()).add(one.id)
    return found


def test_a_guest_that_is_well_passes_everything(tmp_path: Path) -> None:
    guest = FakeGuest(said=golden())
    results, (boot,), sockets = run(Opener({"bios": guest}), tmp_path)
    assert outcomes(results) == {Outcome.PASSED: APPLICABLE}
    assert sockets == ("tcp/22", "tcp/5355", "tcp/10250", "udp/68", "udp/5355")
    assert (boot.firmware, boot.accelerator) == ("bios", "tcg")
    assert list(boot.stages) == ["login", "settled", "apply", "applied", "pods"]


def test_it_is_asked_before_the_package_is_applied_and_after(tmp_path: Path) -> None:
    guest = FakeGuest(said=golden())
    run(Opener({"bios": guest}), tmp_path)
    log = guest.log
    assert log[: len(BEFORE) + 6] == ["uptime", "settle", *BEFORE, "configured", "trust", "apply", "wait"]
    assert set(log[len(BEFORE) + 6 :]) == (APPLICABLE - set(BEFORE)) | set(COMMANDS)


def test_the_package_is_signed_by_the_key_that_the_guest_is_told_to_trust(tmp_path: Path) -> None:
    guest = FakeGuest(said=golden())
    run(Opener({"bios": guest}), tmp_path)
    public, data = guest.given
    package = unpack(data)
    key = load_pem_public_key(public)
    assert isinstance(key, PublicKey)
    verify(key, package.manifest_bytes, package.signature, package.manifest.key_id)
    pod = json.loads(package.files["/etc/kubernetes/manifests/pause.json"])
    assert pod["spec"]["containers"][0]["image"] == "registry.k8s.io/pause:3.10.1"
    assert package.manifest.role == "standalone"
    assert not any(b"PRIVATE" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_image_without_a_manifest_runs_the_pause_image_that_its_kubeadm_wants(tmp_path: Path) -> None:
    guest = FakeGuest(said=golden(), pause="registry.example/pause:9\n")
    run(Opener({"bios": guest}), tmp_path, subject(manifest=None))
    pod = json.loads(unpack(guest.given[1]).files["/etc/kubernetes/manifests/pause.json"])
    assert pod["spec"]["containers"][0]["image"] == "registry.example/pause:9"


def test_an_image_of_which_nobody_tells_the_pause_image_gets_no_package(tmp_path: Path) -> None:
    guest = FakeGuest(said=golden())
    results, _, _ = run(Opener({"bios": guest}), tmp_path, subject(manifest=None))
    assert guest.given == [] and set(results) == APPLICABLE


def test_two_runs_have_two_keys(tmp_path: Path) -> None:
    guests = [FakeGuest(said=golden()) for _ in range(2)]
    for guest in guests:
        run(Opener({"bios": guest}), tmp_path)
    assert guests[0].given[0] != guests[1].given[0]


def test_an_image_with_a_configuration_of_its_own_keeps_it(tmp_path: Path) -> None:
    guest = FakeGuest(said=golden(), configured=True)
    run(Opener({"bios": guest}), tmp_path)
    assert "apply" not in guest.log and "wait" in guest.log


def test_a_package_that_is_refused_is_told_and_everything_is_asked_all_the_same(tmp_path: Path) -> None:
    tape = Tape()
    results, _, _ = run(Opener({"bios": FakeGuest(said=golden(), code=14)}), tmp_path, tape=tape)
    assert set(results) == APPLICABLE
    assert any("was not applied" in event.text and "(14)" in event.text for event in tape.events)


def test_a_bare_image_fails_and_says_what_is_missing(tmp_path: Path) -> None:
    guest = FakeGuest(said=dict.fromkeys(APPLICABLE, ""), code=127)
    results, _, sockets = run(Opener({"bios": guest}), tmp_path)
    assert Outcome.PASSED not in outcomes(results)
    assert {name for name in KUBERNETES if results[name].outcome == Outcome.FAILED} == KUBERNETES
    assert all(results[name].found for name in KUBERNETES)
    assert sockets == ()


@pytest.mark.parametrize(
    "error",
    [
        BootError("the guest failed: Kernel panic - not syncing"),
        DeadlineError("the guest did not reach login within 900 s"),
        DeadlineError("the guest did not answer to ssh within 180 s"),
    ],
)
def test_a_guest_that_never_lets_us_in_passes_nothing(error: Exception, tmp_path: Path) -> None:
    results, (boot,), sockets = run(Opener({"bios": error}), tmp_path)
    assert outcomes(results) == {Outcome.NOT_RUN: APPLICABLE}
    assert {one.reason for one in results.values()} == {str(error)}
    assert (boot.stages, boot.spans, sockets) == ({}, (), ())


def test_a_host_that_cannot_boot_anything_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError):
        run(Opener({"bios": ToolMissingError("no QEMU")}), tmp_path)


@pytest.mark.parametrize("stage", ["uptime", "settle", "configured", "trust", "apply", "wait"])
def test_a_guest_that_dies_on_the_way_passes_only_what_it_had_answered(stage: str, tmp_path: Path) -> None:
    opener = Opener({"bios": FakeGuest(said=golden(), dies=stage)})
    results, _, _ = run(opener, tmp_path)
    answered = set() if stage in ("uptime", "settle") else set(BEFORE)
    assert outcomes(results).get(Outcome.PASSED, set()) == answered
    assert {results[name].reason for name in APPLICABLE - answered} == {f"the guest is gone at {stage}"}
    assert opener.ended == ["bios"], "the guest is ended"


def test_a_guest_that_dies_while_it_is_asked_passes_nothing_of_that(tmp_path: Path) -> None:
    results, _, _ = run(Opener({"bios": FakeGuest(said=golden(), dies="docker-answers")}), tmp_path)
    assert outcomes(results)[Outcome.PASSED] == set(BEFORE)


def test_a_guest_that_dies_after_the_last_check_has_passed_but_has_no_timeline(tmp_path: Path) -> None:
    results, (boot,), _ = run(Opener({"bios": FakeGuest(said=golden(), dies="analyze")}), tmp_path)
    assert outcomes(results) == {Outcome.PASSED: APPLICABLE}
    assert boot.spans == ()


def test_an_answer_that_nobody_can_read_has_not_run(tmp_path: Path) -> None:
    said = {**golden(), "default-route": "[" * 100_000, "address-by-dhcp": "{"}
    results, _, _ = run(Opener({"bios": FakeGuest(said=said)}), tmp_path)
    assert outcomes(results)[Outcome.NOT_RUN] == {"default-route", "address-by-dhcp"}
    assert results["default-route"].reason.startswith("its answer cannot be read: ")


def test_every_further_firmware_is_booted_for_what_it_may_change(tmp_path: Path) -> None:
    second = FakeGuest(said={**golden(), "boot-firmware": "uefi\n"})
    opener = Opener({"bios": FakeGuest(said=golden()), "uefi": second})
    results, boots, _ = run(opener, tmp_path, subject(firmware=("bios", "uefi")))
    assert outcomes(results) == {Outcome.PASSED: APPLICABLE}
    assert set(second.log) == {"uptime", "settle", *COMMANDS} | EVERY_BOOT
    assert [boot.firmware for boot in boots] == ["bios", "uefi"] == opener.ended


def test_a_firmware_under_which_it_does_not_boot_is_told(tmp_path: Path) -> None:
    opener = Opener({"bios": FakeGuest(said=golden()), "uefi": BootError("no bootable option")})
    results, _, _ = run(opener, tmp_path, subject(firmware=("bios", "uefi")))
    assert outcomes(results)[Outcome.NOT_RUN] == EVERY_BOOT
    assert results["boot-firmware"].reason == "uefi: no bootable option"


def test_an_image_that_boots_under_nothing_passes_nothing(tmp_path: Path) -> None:
    results, boots, _ = run(Opener({}), tmp_path, subject(firmware=()))
    assert outcomes(results) == {Outcome.NOT_RUN: APPLICABLE}
    assert boots == ()


def result(outcome: Outcome, **more: Any) -> CheckResult:
    return CheckResult(id="a", outcome=outcome, **more)


def test_of_two_boots_the_worse_one_counts() -> None:
    passed = result(Outcome.PASSED, seconds=1.0)
    failed = result(Outcome.FAILED, found=("x",), seconds=2.0)
    missed = result(Outcome.NOT_RUN, reason="gone")
    assert merged("a", [("bios", passed), ("uefi", passed)]) == result(Outcome.PASSED, seconds=2.0)
    assert merged("a", [("bios", failed)]) == failed
    assert merged("a", [("bios", passed), ("uefi", failed)]) == result(
        Outcome.FAILED, found=("uefi: x",), seconds=3.0
    )  # fmt: skip
    assert merged("a", [("bios", missed), ("uefi", failed)]) == result(
        Outcome.FAILED, found=("uefi: x",), reason="bios: gone", seconds=2.0
    )  # fmt: skip


def test_the_seed_lets_root_in_and_leaves_its_password_as_it_is() -> None:
    seed = cidata("ssh-ed25519 AAAA imagebuilder")
    assert b"CIDATA" in seed.upper()
    start = seed.index(b"#cloud-config\n") + len(b"#cloud-config\n")
    config = json.loads(seed[start : seed.index(b"\n", start)])
    assert config["disable_root"] is False
    assert config["users"] == [
        {"name": "root", "lock_passwd": False, "ssh_authorized_keys": ["ssh-ed25519 AAAA imagebuilder"]}
    ]


def live(code: int, check: Any = lambda: None, drain: Any = list) -> LiveGuest:
    """A guest whose machine and shell do as told."""
    machine: Any = SimpleNamespace(seconds=1.0, check=check, console=SimpleNamespace(drain=drain))
    result = Result(argv=("ssh",), returncode=code, stdout="", tail=("closed",), seconds=0)
    shell: Any = SimpleNamespace(run=lambda command, *, timeout, check, stdin: result)
    return LiveGuest(FakeGuest(said={}).report, machine, shell)


def refuse(message: str) -> Any:
    def fail() -> None:
        raise BootError(message)

    return fail


def test_a_command_that_fails_is_a_result() -> None:
    assert live(1).run("false", timeout=1).returncode == 1


@pytest.mark.parametrize(
    ("guest", "message"),
    [
        pytest.param(live(LOST), "the connection to the guest broke", id="connection"),
        pytest.param(live(LOST, check=refuse("the guest is gone")), "the guest is gone", id="guest"),
        pytest.param(live(0, drain=refuse("more than 64 MiB")), "more than 64 MiB", id="flood"),
    ],
)
def test_a_guest_that_is_lost_is_no_result(guest: LiveGuest, message: str) -> None:
    with pytest.raises(BootError, match=message):
        guest.run("true", timeout=1)


@pytest.mark.parametrize(("disk_format", "firmware"), [("vmdk", "bios"), ("raw", "openfirmware")])
def test_what_cannot_be_booted_here_is_refused(disk_format: str, firmware: str, tmp_path: Path) -> None:
    start = Start(
        disk=tmp_path / "x", disk_format=disk_format, arch="amd64", cache_dir=tmp_path, scratch=tmp_path / "s",
        timeout=1, runner=FakeRunner(), progress=Progress(),
    )  # fmt: skip
    with pytest.raises(UsageError), opened(start, firmware):
        pass
