"""``verify`` on real images: what is right passes, and of what is not exactly that is said."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from imagebuilder.__main__ import main
from imagebuilder.config import Budgets
from imagebuilder.events import Tape
from imagebuilder.process import RealRunner
from imagebuilder.verify.model import Outcome
from imagebuilder.verify.subject import Said
from tests.e2e.conftest import ROOT, Bake, Boot, Prove, needs_bake, needs_qemu, telling
from tests.e2e.test_images import out

pytestmark = [pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(1800), needs_bake, needs_qemu]
BARE = ROOT / "tests/golden/verify/bare.json"
NO_CLOUD = Path(__file__).with_name("no-cloud")
QUESTIONS = (
    "test -d /sys/firmware/efi && echo yes",
    "systemctl is-active ssh",
    "df --output=size -BG / | tail -1",
)
Capture = pytest.CaptureFixture[str]


def test_an_image_of_the_direct_engine_is_proven_on_a_larger_disk_and_nothing_in_it_changes(
    baked: Bake, booted: Boot, proven: Prove, tmp_path: Path
) -> None:
    """Under UEFI; under BIOS every booted check is asked in test_verify_booted."""
    result = baked(plain=True)
    assert result.artifact is not None
    before = hashlib.sha256(result.artifact.read_bytes()).hexdigest()
    budgets = Budgets(image_size=450_000_000, boot_steps=6, open_ports=3, packages=250)
    larger, said = tmp_path / "larger.qcow2", list[str]()
    RealRunner().run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", result.artifact, "-F", "qcow2", larger, "20G"])
    start = partial(booted, replace(result, artifact=larger), until="login")
    opener = telling(start, lambda guest: [out(guest, question) for question in QUESTIONS], said)
    report, wrong = proven(result.folder, said=Said(firmware=("uefi",)), budgets=budgets, opener=opener)
    assert wrong == {}
    efi, ssh, size = said
    assert (efi, ssh) == ("yes", "active")
    assert int(size.strip("G ")) >= 18, "the root has grown"
    assert hashlib.sha256(result.artifact.read_bytes()).hexdigest() == before == report.sha256
    (boot,) = report.boots
    assert (boot.firmware, boot.reference > 0) == ("uefi", True)
    assert {"runtime", "login", "kubelet"} <= set(boot.stages)
    names = [span.name for span in boot.spans]
    assert {"firmware and boot loader", "kernel", "userspace", "containerd", "kubelet healthy", "static pods"} <= {
        *names
    }
    assert report.inventory.sockets == ("tcp/22", "tcp/10250", "udp/68")


def test_of_a_bare_image_it_says_exactly_what_is_missing(baked: Bake, proven: Prove, tmp_path: Path) -> None:
    """Half of a node, of somebody else: no manifest, and the user says what OS it is of."""
    result = baked(bare=True, overlays=(NO_CLOUD,))
    assert result.artifact is not None
    (tmp_path / "plain.qcow2").hardlink_to(result.artifact)
    tape = Tape()
    report, _ = proven(tmp_path / "plain.qcow2", tape, said=Said(os="debian-13", firmware=("bios",)))
    (console,) = [event.text for event in tape.events if event.text.startswith("the guest's console: ")]
    assert "login:" in Path(console.partition(": ")[2]).read_text("utf-8", "replace")
    assert report.subject.manifest is None
    found = {outcome.value: [one.id for one in report.results if one.outcome is outcome] for outcome in Outcome}
    assert found["passed"]
    del found["passed"]
    if not BARE.exists():
        BARE.parent.mkdir(exist_ok=True)
        BARE.write_text(json.dumps(found, indent=1) + "\n")
        raise AssertionError(f"{BARE} was missing and is written: look at it")
    assert found == json.loads(BARE.read_text())


def test_an_image_that_was_changed_after_its_bake_fails_the_command(
    baked: Bake, tmp_path: Path, capsys: Capture, cache: Path
) -> None:
    result = baked(plain=True)
    assert result.artifact is not None
    data = bytearray(result.artifact.read_bytes())
    data[-1] ^= 1  # of a cluster's compressed data, or of what nobody reads: the sum tells
    copy = tmp_path / result.artifact.name
    copy.write_bytes(data)
    (tmp_path / "manifest.json").write_text(json.dumps(result.manifest))
    words = ["--cache-dir", str(cache), "verify", str(copy), "--no-boot", "--html", str(tmp_path / "page.html")]
    assert main([*words, "--junit", str(tmp_path / "junit.xml")]) == 1
    said = capsys.readouterr()
    assert "FAILED" in said.out and "artifact-is-the-manifests" in said.err and "check-failed, exit code 1" in said.err
    assert b"artifact-is-the-manifests" in (tmp_path / "page.html").read_bytes()
    assert b"<failure" in (tmp_path / "junit.xml").read_bytes()
    capsys.readouterr()
    assert main([*words, "--json"]) == 1
    *_, document, error = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (document["kind"], document["passed"]) == ("Verification", False)
    assert error["error"]["ref"] == "check-failed"


def test_what_changed_between_two_images_is_told(baked: Bake, capsys: Capture, cache: Path) -> None:
    before, after = baked(plain=True), baked()
    assert main(["--cache-dir", str(cache), "diff", str(before.folder), str(after.folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    files = json.dumps(document)
    assert "/var/lib/kubelet/config.yaml" in files and "/etc/kubernetes/manifests" in files
    assert not document["same"]
    assert main(["--cache-dir", str(cache), "diff", str(before.folder), str(before.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["same"]
