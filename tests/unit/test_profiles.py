"""Profiles: one chain, merged in a stated order, for one cell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder import resources
from imagebuilder.errors import DataError, UsageError
from imagebuilder.profiles import append, load_profile, merge, profile_names, releases

FAMILY = """
family = "debian"
init = "systemd"
package_format = "deb"
hold = ["kubelet"]
[packages]
base = ["a", "b"]
runtime = ["docker.io"]
tools = ["mtools"]
[components.docker]
sources = ["distro", "docker-ce"]
packages = { docker-ce = ["docker-ce"] }
containerd = { docker-ce = "2.2.0" }
[components.kubernetes]
sources = ["packages"]
module = "kubernetes-{minor}"
[repositories.kubernetes]
uri = "https://example.org/{os}/v{minor}/"
suite = "{suite}"
key_url = "https://example.org/v{minor}/key"
fingerprint = "0123456789ABCDEF0123456789ABCDEF01234567"
[paths]
kubelet_defaults = "/etc/default/kubelet"
cni_bin = "/opt/cni/bin"
[[when]]
release = "2"
append.packages.base = ["family-when"]
"""
HEIR = """
inherits = "_family"
title = "Toy"
default_release = "2"
architectures = ["amd64", "arm64"]
releases.1 = { suite = "one", eol = "2020-01-01", containerd = "1.6.20" }
releases.2 = { suite = "two", eol = "2030-01-01", containerd = "1.7.24" }
bootstrap = { keyring = "/k.gpg", components = ["main"] }
kernel = { cloud = "linux-cloud-{arch}", generic = "linux-{arch}" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "_family.toml").write_text(FAMILY)
    (tmp_path / "toy.toml").write_text(HEIR)
    return tmp_path


def add(folder: Path, text: str, name: str = "toy") -> None:
    with (folder / f"{name}.toml").open("a") as stream:
        stream.write(text)


def load(folder: Path, **wanted: str) -> Any:
    cell = {"release": "", "arch": "amd64", "target": "qemu", **wanted}
    return load_profile("toy", folder=folder, **cell)


def problems(caught: pytest.ExceptionInfo[DataError]) -> str:
    return f"{caught.value.message}\n{caught.value.context}"


def test_chain_is_merged_and_expanded(folder: Path) -> None:
    profile = load(folder)
    assert (profile.bootstrap, profile.archive) == (profile.archive, profile.bootstrap)
    assert (profile.name, profile.release, profile.suite, profile.arch) == ("toy", "2", "two", "amd64")
    assert profile.family == "debian"
    assert profile.kernel == {"cloud": "linux-cloud-amd64", "generic": "linux-amd64"}
    assert profile.packages.base == ("a", "b", "family-when")


def test_lists_replace_and_append_adds(folder: Path) -> None:
    add(folder, '[packages]\nbase = ["c"]\n[append]\npackages.tools = ["sfdisk"]\nhold = ["linux-{arch}"]\n')
    profile = load(folder)
    assert profile.packages.base == ("c", "family-when")
    assert profile.packages.tools == ("mtools", "sfdisk")
    assert profile.packages.runtime == ("docker.io",)
    assert profile.hold == ("kubelet", "linux-amd64")


@pytest.mark.parametrize(
    ("matcher", "cell", "matches"),
    [
        pytest.param('arch = "arm64"', {"arch": "arm64"}, True, id="arch"),
        pytest.param('arch = "arm64"', {"arch": "amd64"}, False, id="other-arch"),
        pytest.param('release = ["1", "2"]', {"release": "1"}, True, id="one-of"),
        pytest.param('target = "raw"', {"target": "raw"}, True, id="target"),
        pytest.param('init = "systemd"', {}, True, id="init"),
        pytest.param('init = "sysvinit"', {}, False, id="other-init"),
        pytest.param('arch = "arm64"\ntarget = "raw"', {"arch": "arm64", "target": "qemu"}, False, id="all-of"),
    ],
)
def test_when_needs_all_its_matchers(folder: Path, matcher: str, cell: dict[str, str], matches: bool) -> None:
    add(folder, f'[[when]]\n{matcher}\ntitle = "Changed"\n')
    assert (load(folder, **cell).title == "Changed") is matches


def test_when_blocks_apply_in_order_the_family_first(folder: Path) -> None:
    add(folder, '[[when]]\narch = "amd64"\npackages.base = ["x"]\n')
    add(folder, '[[when]]\narch = "amd64"\nappend.packages.base = ["y"]\n')
    assert load(folder).packages.base == ("x", "y")


def test_minor_is_filled_in_later(folder: Path) -> None:
    profile = load(folder)
    repository = profile.repositories["kubernetes"]
    assert (repository.uri, repository.suite) == ("https://example.org/toy/v{minor}/", "two")
    assert repository.uri_for("1.35") == "https://example.org/toy/v1.35/"
    assert repository.key_url_for("1.36") == "https://example.org/v1.36/key"
    assert profile.components["kubernetes"].module_for("1.37") == "kubernetes-1.37"


def test_minor_is_unknown_elsewhere(folder: Path) -> None:
    add(folder, '[append]\npackages.base = ["kubelet-{minor}", "x-{acrh}"]\n')
    with pytest.raises(DataError) as caught:
        load(folder)
    assert 'packages.base.2: "kubelet-{minor}": unknown placeholder {minor}' in problems(caught)
    assert 'packages.base.3: "x-{acrh}": unknown placeholder {acrh} (did you mean "arch"?)' in problems(caught)


@pytest.mark.parametrize(
    ("source", "packages", "containerd"),
    [
        pytest.param("distro", ("docker.io",), "1.7.24", id="distro"),
        pytest.param("docker-ce", ("docker-ce",), "2.2.0", id="docker-ce"),
    ],
)
def test_source_of_docker_decides(folder: Path, source: str, packages: tuple[str, ...], containerd: str) -> None:
    profile = load(folder)
    assert profile.runtime_packages(source) == packages
    assert profile.containerd_version(source) == containerd


CLOUD_IMAGE = """
[source_images.cloud-image]
url = "https://example.org/{os}-{version}-{machine}.qcow2"
checksum_url = "https://example.org/{arch}.sums"
format = "qcow2"
ssh_user = "toy"
"""


def test_source_images_are_filled_in(folder: Path) -> None:
    (folder / "toy.toml").write_text(HEIR.replace('suite = "two"', 'suite = "two", version = "2.7"') + CLOUD_IMAGE)
    images = [
        load(folder, release=release, arch=arch).source_images for release, arch in (("2", "amd64"), ("1", "arm64"))
    ]
    assert [image.cloud_image.url for image in images] == [
        "https://example.org/toy-2.7-x86_64.qcow2", "https://example.org/toy-1-aarch64.qcow2",
    ]  # fmt: skip
    assert [image.of("cloud-image") for image in images] == [image.cloud_image for image in images]
    assert images[0].cloud_image.checksum_url == "https://example.org/amd64.sums"
    assert images[0].of("aws") is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("[source_images.cloud-image]", "[source_images.cloud-imgae]", "cloud-image", id="kind"),
        pytest.param("url =", "ulr =", 'cloud-image.ulr: unknown key (did you mean "url"?)', id="key"),
        pytest.param('checksum_url = "https://example.org/{arch}.sums"', "", "needs a checksum_url", id="no-checksum"),
        pytest.param(
            "https://example.org/{os}-{version}-{machine}.qcow2", "x.qcow2", "a file's name has none", id="file"
        ),
        pytest.param("{machine}", "{machien}", 'placeholder {machien} (did you mean "machine"?)', id="placeholder"),
        pytest.param('"toy"', '"to y"', "ssh_user", id="user"),
    ],
)
def test_bad_source_image_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    assert old in CLOUD_IMAGE
    add(folder, CLOUD_IMAGE.replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        load(folder)
    assert message in problems(caught)


def test_a_profile_without_bootstrap_says_so_when_it_is_wanted(folder: Path) -> None:
    (folder / "toy.toml").write_text(HEIR.replace('bootstrap = { keyring = "/k.gpg", components = ["main"] }\n', ""))
    profile = load(folder)
    assert profile.bootstrap is None
    with pytest.raises(DataError, match=r"Toy has no \[bootstrap\]"):
        _ = profile.archive


def test_targets_that_match_alike_share_one_profile(folder: Path) -> None:
    add(folder, '[[when]]\ntarget = "raw"\ntitle = "Changed"\n')
    assert load(folder, target="qemu") is load(folder, target="gce")
    assert load(folder, target="raw").title == "Changed"


def test_targets_that_are_named_do_not(folder: Path) -> None:
    add(folder, '[append]\nhold = ["for-{target}"]\n')
    assert [load(folder, target=name).hold[-1] for name in ("qemu", "gce")] == ["for-qemu", "for-gce"]


def test_unknown_keys_of_all_files_and_blocks_are_reported_at_once(folder: Path) -> None:
    add(folder, "[components.docker.pakcages]\n", "_family")
    add(folder, 'titel = "x"\n[append]\npackages.bsae = ["x"]\n')
    add(folder, '[[when]]\narch = "amd64"\ndefault_relaese = "1"\nappend.packages.tolls = ["x"]\n')
    with pytest.raises(DataError) as caught:
        load(folder)
    said = problems(caught)
    assert '_family.toml: components.docker.pakcages: unknown key (did you mean "packages"?)' in said
    assert 'toy.toml: titel: unknown key (did you mean "title"?)' in said
    assert 'toy.toml: append.packages.bsae: unknown key (did you mean "base"?)' in said
    assert 'toy.toml: when.0.default_relaese: unknown key (did you mean "default_release"?)' in said
    assert 'toy.toml: when.0.append.packages.tolls: unknown key (did you mean "tools"?)' in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('[[when]]\ntitle = "x"\n', "when.0.arch: missing", id="no-matcher"),
        pytest.param("[[when]]\narch = 1\n", "when.0.arch: should be a string or a list", id="matcher-type"),
        pytest.param("[when]\narch = 'x'\n", "write each block under its own [[when]]", id="when-table"),
        pytest.param('[append]\ntitle = ["x"]\n', "append.title: only lists can be added", id="append-to-text"),
        pytest.param('[append]\npackages.base = "x"\n', "append.packages.base: only lists", id="append-text"),
        pytest.param("append = 1\n", "append: should be a table", id="append-number"),
        pytest.param("[packages]\nbase = [1]\n", "packages.base.0: input should be a valid string", id="type"),
        pytest.param("[repositories.kubernetes]\nfingerprint = 'ab'\n", "fingerprint: string should", id="pattern"),
        pytest.param("inherit = 'x'\n", "inherit: unknown key", id="misspelt-inherits"),
    ],
)
def test_bad_file_is_refused(folder: Path, text: str, message: str) -> None:
    add(folder, text)
    with pytest.raises(DataError) as caught:
        load(folder)
    assert message in problems(caught)


def test_missing_field_is_named(folder: Path) -> None:
    (folder / "toy.toml").write_text(HEIR.replace('title = "Toy"', ""))
    with pytest.raises(DataError) as caught:
        load(folder)
    assert "toy.toml: title: missing" in problems(caught)


def test_default_release_must_exist(folder: Path) -> None:
    (folder / "toy.toml").write_text(HEIR.replace('default_release = "2"', 'default_release = "3"'))
    with pytest.raises(DataError) as caught:
        load(folder)
    assert 'default_release: "3" is not in releases' in problems(caught)


def test_cycle_is_refused(folder: Path) -> None:
    (folder / "_family.toml").write_text('inherits = "toy"\n' + FAMILY)
    with pytest.raises(DataError, match="toy -> _family -> toy is a cycle"):
        load(folder)


def test_unknown_parent_is_refused(folder: Path) -> None:
    (folder / "toy.toml").write_text(HEIR.replace("_family", "_familiy"))
    with pytest.raises(DataError, match=re.escape('no profile "_familiy" (did you mean "_family"?)')):
        load(folder)


@pytest.mark.parametrize(
    ("os", "cell", "message", "hint"),
    [
        pytest.param("debain", {}, 'did you mean "debian"', "debian", id="os"),
        pytest.param("_debian", {}, 'did you mean "debian"', "debian", id="family"),
        pytest.param("debian", {"release": "14"}, 'did you mean "1', "12, 13", id="release"),
        pytest.param("debian", {"arch": "amd46"}, 'did you mean "amd64"', "amd64, arm64", id="arch"),
    ],
)
def test_unknown_name_is_a_usage_error(os: str, cell: dict[str, str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_profile(os, release=cell.get("release", ""), arch=cell.get("arch", "amd64"), target="qemu")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_families_are_not_operating_systems(folder: Path) -> None:
    assert profile_names(folder) == ("toy",)


def test_releases_in_the_order_of_the_file(folder: Path) -> None:
    assert list(releases("toy", folder=folder)) == ["1", "2"]
    assert releases("debian")["13"].suite == "trixie"


@pytest.mark.parametrize(
    ("release", "arch", "there", "absent"),
    [
        pytest.param("12", "amd64", {"grub-pc-bin"}, {"docker-cli", "systemd-repart"}, id="12-amd64"),
        pytest.param("13", "amd64", {"docker-cli", "systemd-repart", "shim-signed"}, set(), id="13-amd64"),
        pytest.param("13", "arm64", {"grub-efi-arm64-signed"}, {"grub-pc-bin", "grub-efi-amd64-bin"}, id="13-arm64"),
    ],
)
def test_debian_differs_by_release_and_arch(release: str, arch: str, there: set[str], absent: set[str]) -> None:
    packages = load_profile("debian", release=release, arch=arch, target="qemu").packages
    names = {*packages.base, *packages.runtime, *packages.tools}
    assert there <= names
    assert not absent & names


def test_a_profile_is_at_most_64_lines_of_data() -> None:
    for path in resources.folder("os_profiles").glob("*.toml"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert len(lines) <= 64, path.name


LISTS = st.lists(st.sampled_from("abc"), max_size=3)
TABLES = st.recursive(
    st.fixed_dictionaries({}, optional={"list": LISTS, "text": st.sampled_from("xyz")}),
    lambda inner: st.fixed_dictionaries({}, optional={"list": LISTS, "one": inner, "two": inner}),
    max_leaves=6,
)


@given(TABLES, TABLES, TABLES)
def test_merge_is_associative(one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]) -> None:
    assert merge(merge(one, two), three) == merge(one, merge(two, three))


@given(TABLES, TABLES)
def test_merge_has_a_neutral_element_and_changes_nothing_in_place(one: dict[str, Any], two: dict[str, Any]) -> None:
    before = repr((one, two))
    assert merge(one, {}) == one == merge({}, one)
    assert merge(merge(one, two), two) == merge(one, two)
    assert repr((one, two)) == before


@given(LISTS, LISTS, LISTS)
def test_append_keeps_order(one: list[str], two: list[str], three: list[str]) -> None:
    tree = append(append({"t": {"l": one}}, {"t": {"l": two}}, "w"), {"t": {"l": three}}, "w")
    assert tree == {"t": {"l": one + two + three}}
