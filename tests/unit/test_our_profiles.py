"""The operating systems that we ship: every release, architecture and target has what a node needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest

from imagebuilder.compat import load_compat
from imagebuilder.profile_data import FileImage, Profile, SourceImage
from imagebuilder.profiles import architectures, load_profile, profile_names, releases
from imagebuilder.targets import load_target, target_names

RELEASES = {
    "debian": ["12", "13"], "ubuntu": ["22.04", "24.04", "26.04"], "centos": ["9", "10"], "rocky": ["9", "10"],
    "alma": ["9", "10"], "rhel": ["9", "10"], "fedora": ["43", "44"],
}  # fmt: skip
EL = ("centos", "rocky", "alma", "rhel")
BASE = {"systemd", "python3", "openssl", "openssh-server", "kmod", "jq", "socat", "ethtool", "nftables", "chrony"}
OF_FAMILY = {
    "debian": {"iproute2", "iptables", "conntrack", "auditd", "apparmor", "udev"},
    "redhat": {"iproute", "iptables-nft", "conntrack-tools", "audit", "container-selinux", "NetworkManager"},
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]+")


def loaded(os: str, release: str = "", arch: str = "amd64", target: str = "qemu") -> Profile:
    return load_profile(os, release=release, arch=arch, target=target)


EVERY = [
    pytest.param(os, release, arch, id=f"{os}-{release}-{arch}")
    for os in profile_names()
    for release in releases(os)
    for arch in architectures(os)
]
every = pytest.mark.parametrize(("os", "release", "arch"), EVERY)


def per_target(os: str, release: str, arch: str) -> Iterator[tuple[str, Profile]]:
    return ((name, loaded(os, release, arch, name)) for name in target_names())


def images(profile: Profile) -> dict[str, SourceImage]:
    kinds = (name.replace("_", "-") for name in type(profile.source_images).model_fields)
    return {kind: image for kind in kinds if (image := profile.source_images.of(kind))}


def test_these_are_the_systems() -> None:
    assert {name: list(releases(name)) for name in profile_names()} == RELEASES
    assert all(architectures(name) == ("amd64", "arm64") for name in profile_names())


@pytest.mark.parametrize("os", profile_names())
def test_every_release_says_when_it_ends(os: str) -> None:
    ends = [date.fromisoformat(release.eol) for release in releases(os).values()]
    assert ends == sorted(set(ends)), "newer releases live longer"


@every
def test_every_cell_has_what_a_node_needs(os: str, release: str, arch: str) -> None:
    for _, profile in per_target(os, release, arch):
        packages = profile.packages
        names = [*packages.base, *packages.runtime, *packages.tools, *packages.unwanted, *profile.hold]
        assert [name for name in [*names, *profile.kernel.values()] if not NAME.fullmatch(name)] == []
        assert len(set(packages.base)) == len(packages.base)
        assert BASE | OF_FAMILY[profile.family] <= set(packages.base)
        assert not set(packages.base) & set(packages.unwanted)
        assert profile.components.keys() == {"kubernetes", "docker", "crictl", "cni"}
        assert profile.kernel.keys() == {"cloud", "generic"}
        assert set(profile.kernel.values()) <= set(profile.hold)
        assert profile.paths.kubelet_defaults.startswith(
            {"debian": "/etc/default/", "redhat": "/etc/sysconfig/"}[profile.family]
        )


@every
def test_all_components_can_come_from_packages(os: str, release: str, arch: str) -> None:
    profile = loaded(os, release, arch)
    for name in ("kubernetes", "crictl", "cni"):
        assert "packages" in profile.components[name].sources
        assert profile.components[name].packages["packages"]
    for name, repository in profile.repositories.items():
        for address in (repository.uri_for("1.35"), repository.key_url_for("1.35")):
            assert address.startswith("https://")
            assert not set("{}$") & set(address), name
    assert {source for component in profile.components.values() for source in component.packages} <= {
        "packages", *profile.components["docker"].sources, "distro",
    }  # fmt: skip


@every
def test_the_default_kubernetes_runs_on_the_containerd(os: str, release: str, arch: str) -> None:
    profile = loaded(os, release, arch)
    newest = load_compat().newest_minor_for(profile.containerd_version(profile.components["docker"].sources[0]))
    assert newest == ("1.35" if os == "debian" else load_compat().minors()[-1])


@every
def test_source_images_are_whole(os: str, release: str, arch: str) -> None:
    for _, profile in per_target(os, release, arch):
        for kind, image in images(profile).items():
            said = image.model_dump()
            assert not any(set("{}") & set(value) for value in said.values() if isinstance(value, str)), kind
            assert image.ssh_user
            if isinstance(image, FileImage):
                assert image.url.startswith("https://") or os == "rhel"
                assert arch in image.url or {"amd64": "x86_64", "arm64": "aarch64"}[arch] in image.url


@every
def test_what_a_target_begins_with_is_there_or_it_is_said_why(os: str, release: str, arch: str) -> None:
    for name, profile in per_target(os, release, arch):
        target = load_target(name)
        if arch in target.architectures:
            kind = target.source_kind
            assert (profile.source_images.of(kind) is None) is (kind in profile.missing_images) or (
                (os, kind, arch) == ("fedora", "gce", "amd64")
            )


@pytest.mark.parametrize(
    ("os", "release"),
    [pytest.param(os, number, id=f"{os}-{number}") for os in profile_names() for number in releases(os)],
)
def test_architectures_begin_with_different_images(os: str, release: str) -> None:
    one, other = (images(loaded(os, release, arch)) for arch in ("amd64", "arm64"))
    by_name = {"digitalocean", "hcloud"}  # the kind of machine decides which of them it is
    assert [kind for kind in (one.keys() & other.keys()) - by_name if one[kind] == other[kind]] == []


@pytest.mark.parametrize(
    ("os", "release", "arch", "kind", "said"),
    [
        pytest.param(
            "debian", "13", "amd64", "aws", {"owner": "136693071363", "name": "debian-13-amd64-*"}, id="debian"
        ),
        pytest.param(
            "debian", "12", "arm64", "gce", {"project": "debian-cloud", "family": "debian-12-arm64"}, id="arm"
        ),
        pytest.param("ubuntu", "22.04", "amd64", "gce", {"family": "ubuntu-2204-lts"}, id="jammy"),
        pytest.param("ubuntu", "26.04", "arm64", "gce", {"family": "ubuntu-2604-lts-arm64"}, id="resolute"),
        pytest.param(
            "ubuntu",
            "22.04",
            "arm64",
            "azure",
            {"offer": "0001-com-ubuntu-server-jammy", "sku": "22_04-lts-arm64"},
            id="j",
        ),
        pytest.param("ubuntu", "26.04", "amd64", "azure", {"offer": "ubuntu-26_04-lts", "sku": "server"}, id="azure"),
        pytest.param("ubuntu", "26.04", "amd64", "digitalocean", {"slug": "ubuntu-26-04-x64"}, id="slug"),
        pytest.param(
            "centos", "10", "amd64", "gce", {"project": "centos-cloud", "family": "centos-stream-10"}, id="centos"
        ),
        pytest.param("rocky", "9", "amd64", "azure", {"publisher": "resf", "sku": "9-base", "plan": True}, id="rocky"),
        pytest.param(
            "alma", "10", "arm64", "azure", {"offer": "almalinux-arm", "sku": "10-arm-gen2", "plan": True}, id="alma"
        ),
        pytest.param("rhel", "9", "arm64", "aws", {"name": "RHEL-9.*_HVM-*-arm64-*-Hourly2-GP3"}, id="rhel"),
        pytest.param("fedora", "44", "amd64", "gce", {"family": "fedora-cloud-44-x86-64"}, id="fedora"),
    ],
)
def test_known_images(os: str, release: str, arch: str, kind: str, said: dict[str, Any]) -> None:
    image = loaded(os, release, arch).source_images.of(kind)
    assert image is not None
    assert {key: getattr(image, key) for key in said} == said


def test_bare_metal_begins_with_a_kernel_that_has_its_drivers() -> None:
    for name in target_names():
        image = loaded("debian", target=name).source_images.cloud_image
        assert image is not None
        wants_all = load_target(name).kernel == "generic" and load_target(name).source_kind == "cloud-image"
        assert ("-generic-" in image.url) is wants_all


def test_only_debian_is_bootstrapped_yet() -> None:
    assert [name for name in profile_names() if loaded(name).bootstrap] == ["debian"]
    assert loaded("debian").archive.components == ("main",)


@pytest.mark.parametrize("os", EL)
def test_enterprise_linux(os: str) -> None:
    for release in ("9", "10"):
        profile = loaded(os, release)
        epel = profile.repositories["epel"]
        assert (epel.uri, epel.key_url) == (
            f"https://dl.fedoraproject.org/pub/epel/{release}/Everything/x86_64/",
            f"https://dl.fedoraproject.org/pub/epel/RPM-GPG-KEY-EPEL-{release}",
        )
        assert epel.fingerprint.startswith({"9": "FF8AD134", "10": "7D8D15CB"}[release])
        assert ("kernel-modules-extra" in profile.packages.base) is (release == "10")
        assert "python3-dnf-plugin-versionlock" in profile.packages.base
        assert f"/{release}/x86_64/stable" in profile.repositories["docker-ce"].uri


def test_fedora_needs_neither_epel_nor_a_plugin() -> None:
    profile = loaded("fedora")
    assert "epel" not in profile.repositories
    assert "python3-dnf-plugin-versionlock" not in profile.packages.base
    assert profile.repositories["docker-ce"].uri == "https://download.docker.com/linux/fedora/44/x86_64/stable"


@pytest.mark.parametrize(
    ("os", "place"), [("rhel", "rhel"), ("centos", "centos"), ("rocky", "centos"), ("alma", "centos")]
)
def test_docker_is_built_for_rhel_and_centos(os: str, place: str) -> None:
    repository = loaded(os).repositories["docker-ce"]
    assert repository.uri == f"https://download.docker.com/linux/{place}/10/x86_64/stable"
    assert repository.key_url == f"https://download.docker.com/linux/{place}/gpg"
    assert repository.suite == ""


def test_rhel_is_registered_where_the_cloud_does_not_bring_its_packages() -> None:
    wanted = {name for name in target_names() if loaded("rhel", target=name).subscription}
    assert wanted == set(target_names()) - {"aws", "gce", "azure"}
    assert not any(loaded(name).subscription for name in profile_names() if name != "rhel")


def test_ubuntu_differs_by_release() -> None:
    base = {release: set(loaded("ubuntu", release).packages.base) for release in RELEASES["ubuntu"]}
    assert [name for name in base if "initramfs-tools" in base[name]] == ["22.04", "24.04"]
    assert [name for name in base if "systemd-resolved" in base[name]] == ["24.04", "26.04"]
    assert "snapd" in loaded("ubuntu").packages.unwanted
