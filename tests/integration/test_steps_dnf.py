"""The Red Hat family's words against the real dnf and rpm, with a small repository of packages made for the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakeroot import FakeRoot
from steptree import SYSTEMS, make_root

from imagebuilder import process
from imagebuilder.direct.sandbox import Bind
from imagebuilder.errors import CommandError

PLUGIN = Path("/etc/dnf/plugins/versionlock.conf")
MISSING = [name for name in ("dnf", "rpm", "rpmbuild", "createrepo_c") if not process.find(name)]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="a sandbox needs root"),
    pytest.mark.skipif(bool(MISSING) or not PLUGIN.exists(), reason=f"dnf with versionlock is missing: {MISSING}"),
]

SPEC = """
Name: {name}
Version: {version}
Release: 150500.1.1
Summary: For a test
License: none
BuildArch: noarch
{more}
%description
For a test.
%files
"""
PACKAGES = (
    ("kubelet", "1.35.7", "Recommends: recommended"),
    ("kubelet", "1.35.8", "Recommends: recommended"),
    ("kubelet", "1.35.9", "Recommends: recommended"),
    ("recommended", "1", ""),
    ("iptables-nft", "1.8", "Provides: iptables"),
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rpms")
    runner = process.RealRunner()
    for name, version, more in PACKAGES:
        spec = folder / f"{name}-{version}.spec"
        spec.write_text(SPEC.format(name=name, version=version, more=more))
        runner.run(["rpmbuild", "-bb", "--define", f"_topdir {folder / 'build'}", spec], timeout=120)
    runner.run(["createrepo_c", "--quiet", folder / "build/RPMS"], timeout=120)
    return folder / "build/RPMS"


@pytest.fixture
def root(tmp_path: Path, repository: Path) -> FakeRoot:
    """A tree in which dnf and rpm are real, with the one repository."""
    made = make_root(tmp_path, SYSTEMS["redhat"])
    for name in ("dnf", "rpm"):
        (made.path / "stubs" / name).unlink()
    (made.path / "stubs/python3").unlink()  # dnf is a program of it
    made.mounts.append(Bind(source=repository, target="/repository"))
    texts = {
        "etc/dnf/dnf.conf": "[main]\n",
        "etc/dnf/vars/releasever": "9\n",
        "etc/dnf/plugins/versionlock.conf": "[main]\nenabled = 1\nlocklist = /etc/dnf/plugins/versionlock.list\n",
        "etc/dnf/plugins/versionlock.list": "",
        "etc/yum.repos.d/test.repo": "[test]\nname=test\nbaseurl=file:///repository\ngpgcheck=0\n",
    }
    for name, text in texts.items():
        (made.path / name).parent.mkdir(parents=True, exist_ok=True)
        (made.path / name).write_text(text)
    return made


def installed(root: FakeRoot) -> list[str]:
    listed = root.run("/bin/sh", "-c", "rpm -qa --queryformat '%{NAME}-%{VERSION}\\n'")
    return sorted(line for line in listed.tail if line)


def test_packages_are_installed_once_without_weak_dependencies(root: FakeRoot) -> None:
    root.shell('pkg_install "$(pkg_version kubelet 1.35.8)"')
    assert installed(root) == ["kubelet-1.35.8"]
    again = root.shell('pkg_install "$(pkg_version kubelet 1.35.8)" kubelet')
    assert list(again.tail) == []  # dnf was not even asked


def test_a_name_that_another_package_provides_is_installed(root: FakeRoot) -> None:
    root.shell("pkg_install iptables")
    assert installed(root) == ["iptables-nft-1.8"]
    assert list(root.shell("pkg_install iptables iptables-nft").tail) == []


def test_a_package_that_is_held_stays_at_its_version(root: FakeRoot) -> None:
    root.shell('pkg_install "$(pkg_version kubelet 1.35.7)"')
    for _ in range(2):
        root.shell("pkg_hold kubelet not-installed")
    locks = (root.path / "etc/dnf/plugins/versionlock.list").read_text().splitlines()
    assert [line for line in locks if line and not line.startswith("#")] == ["kubelet-0:1.35.7-150500.1.1.*"]
    root.shell("pkg_upgrade")
    assert installed(root) == ["kubelet-1.35.7"]


def test_what_is_not_held_is_upgraded(root: FakeRoot) -> None:
    root.shell('pkg_install "$(pkg_version kubelet 1.35.7)"; pkg_upgrade')
    assert installed(root) == ["kubelet-1.35.9"]


def test_packages_are_removed_where_they_are(root: FakeRoot) -> None:
    root.shell("pkg_install kubelet; pkg_remove kubelet snapd; pkg_remove kubelet")
    assert installed(root) == []


def test_a_version_that_is_not_there_is_an_error(root: FakeRoot) -> None:
    with pytest.raises(CommandError) as caught:
        root.shell('pkg_install "$(pkg_version kubelet 1.36.0)"; touch /etc/went-on')
    assert "kubelet-1.36.0" in caught.value.context
    assert not (root.path / "etc/went-on").exists()


def test_cleaning_leaves_no_cache(root: FakeRoot) -> None:
    root.shell("pkg_install kubelet")
    assert list((root.path / "var/cache/dnf").glob("*"))
    root.shell("pkg_clean")
    assert list((root.path / "var/cache/dnf").glob("*")) == []
    assert not list((root.path / "var/log").glob("dnf*"))
    assert installed(root) == ["kubelet-1.35.9"]


def test_a_repository_that_was_added_is_asked_and_forgotten(root: FakeRoot) -> None:
    (root.path / "etc/yum.repos.d/test.repo").unlink()
    root.shell("pkg_repository test file:///repository '' '' /materials/pause.tar")
    listed = root.run("/bin/sh", "-c", "dnf --quiet repolist")
    assert any(line.split() == ["imagebuilder-test", "test"] for line in listed.tail)
    root.shell("pkg_repositories_forget")
    assert [path.name for path in (root.path / "etc/yum.repos.d").iterdir()] == ["redhat.repo"]
