"""The lists of what may be there, as ``verification/`` has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imagebuilder import resources
from imagebuilder.errors import DataError
from imagebuilder.verify import expected
from imagebuilder.verify.expected import load_expected


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(expected.resources, "folder", lambda name: tmp_path)
    return tmp_path


@pytest.mark.parametrize(("family", "os"), [("debian", "debian"), ("debian", "ubuntu"), ("redhat", "centos")])
def test_our_lists_are_of_their_schema(family: str, os: str) -> None:
    found = load_expected(family, os, "qemu", "13")
    assert "kubelet.service" in found.units
    assert "/usr/bin/su" in found.setuid
    assert "tcp/22" in found.sockets
    known = [re.compile(pattern) for pattern in found.journal]
    # What guests on a slow host said.
    timer = "kernel: kernel: ..MP-BIOS bug: 8254 timer not connected to IO-APIC"
    console = "init.scope: systemd: Timed out waiting for device dev-ttyS0.device - /dev/ttyS0."
    assert all(any(pattern.search(line) for pattern in known) for line in (timer, console))
    disk = console.replace("ttyS0", "vda1")
    for line in (f"{timer} at all", "kernel: kernel: panic", f"{console} at all", disk):
        assert not any(pattern.search(line) for pattern in known)


def test_each_of_our_files_is_of_a_family_or_a_system() -> None:
    names = {path.stem for path in resources.folder("verification").glob("*.toml")}
    systems = {path.stem.lstrip("_") for path in resources.folder("os_profiles").glob("*.toml")}
    assert {"debian", "redhat"} <= names <= systems


def test_what_made_an_image_adds_to_the_family(own: Path) -> None:
    (own / "debian.toml").write_text('units = ["a"]\n[engine.packer]\nunits = ["b"]\n')
    assert load_expected("debian", "debian", "qemu", "13").units == ("a",)
    assert load_expected("debian", "debian", "qemu", "13", engine="packer").units == ("a", "b")


def test_a_target_and_a_release_add_to_the_family(own: Path) -> None:
    (own / "debian.toml").write_text(
        'units = ["a"]\n[target."aws vagrant-*"]\nunits = ["b"]\n[target.gce]\nunits = ["c"]\n'
        '[release.12]\nunits = ["d"]\n'
    )
    (own / "ubuntu.toml").write_text('units = ["e"]\n[secrets]\n"/x" = "why"\n')
    assert load_expected("debian", "debian", "vagrant-qemu", "12").units == ("a", "b", "d")
    assert load_expected("debian", "debian", "gce", "13").units == ("a", "c")
    assert load_expected("debian", "debian", "", "13").units == ("a",)
    ubuntu = load_expected("debian", "ubuntu", "qemu", "24.04")
    assert (ubuntu.units, dict(ubuntu.secrets)) == (("a", "e"), {"/x": "why"})


@pytest.mark.parametrize(
    ("text", "said"),
    [('unit = ["a"]\n', "units"), ("units = 1\n", "units"), ('[secrets]\n"/x" = " "\n', "no reason for /x"),
     ('[target.a]\nsecret = {}\n', "secrets")],
)  # fmt: skip
def test_a_wrong_list_is_refused(own: Path, text: str, said: str) -> None:
    (own / "debian.toml").write_text(text)
    with pytest.raises(DataError) as caught:
        load_expected("debian", "debian", "a", "")
    assert said in caught.value.message + caught.value.context


def test_a_family_without_a_file_is_refused(own: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_expected("suse", "suse", "", "")
