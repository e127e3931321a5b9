"""The words of the families: each has the same, and no step goes past them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imagebuilder import resources
from imagebuilder.steps import FAMILIES

PROVISION = resources.folder("provision")
WORD = re.compile(r"^([a-z_]+)\(\)", re.MULTILINE)
OWN = re.compile(r"^([a-z]+_do)$")  # how a family's words call its package manager
NAMES = "apt-get|apt-mark|dpkg-query|dpkg|dnf|yum|rpm|systemctl|update-initramfs|dracut"
PROGRAMS = re.compile(rf"(?<![\w/.-])({NAMES})(?![\w/.-])")
SCRIPTS = sorted(PROVISION.glob("steps/*/*.sh"))


def words_of(family: str) -> set[str]:
    files = (PROVISION / f"family/{family}.sh", *PROVISION.glob(f"family/{family}/*.sh"))
    found = {word for path in files for word in WORD.findall(path.read_text())}
    return {word for word in found if not OWN.match(word)}


def code_of(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))


def test_every_family_has_the_same_words() -> None:
    assert len(words_of(FAMILIES[0])) > 20
    for family in FAMILIES[1:]:
        assert words_of(family) == words_of(FAMILIES[0])


@pytest.mark.parametrize("path", [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in SCRIPTS])
def test_a_step_calls_no_package_manager_or_init(path: Path) -> None:
    assert PROGRAMS.findall(code_of(path)) == []


def test_every_word_of_a_family_is_used() -> None:
    users = [*SCRIPTS, *PROVISION.glob("*.sh"), *PROVISION.glob("init/*.sh"), *PROVISION.glob("family/**/*.sh"),
             *PROVISION.glob("files/**/*.sh")]  # fmt: skip
    text = "\n".join(code_of(path) for path in users)
    used = {word for word in words_of(FAMILIES[0]) if re.search(rf"\b{word}\b(?!\(\))", text)}
    assert used == words_of(FAMILIES[0])


def test_vagrants_key_is_the_one_that_every_vagrant_tries_and_replaces() -> None:
    (line,) = (PROVISION / "files/vagrant.pub").read_text().splitlines()
    assert line.startswith("ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr")
    assert line.split(maxsplit=2)[2] == "vagrant insecure public key"


@pytest.mark.parametrize("family", FAMILIES)
def test_services_of_a_family_lie_where_the_init_looks(family: str) -> None:
    for folder in PROVISION.glob(f"services/*/systemd/{family}"):
        assert {path.name for path in folder.iterdir()} <= {"root", "enable"}, folder
