"""Which versions run together."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.compat import check, load_compat, minor_of, newest_minor_for, parse_version
from imagebuilder.errors import DataError, IncompatibleError, UsageError

NUMBERS = st.lists(st.integers(min_value=0, max_value=9999), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        pytest.param("1.35", (1, 35), id="minor"),
        pytest.param("v1.35.8", (1, 35, 8), id="v"),
        pytest.param("1.7.24~ds1-6+deb13u1", (1, 7, 24), id="debian"),
        pytest.param("26.1.5+dfsg1-9+deb13u1+b1", (26, 1, 5), id="dfsg"),
        pytest.param("5:29.1.2-1~debian.13~trixie", (29, 1, 2), id="epoch"),
        pytest.param("1.35.8-1.1", (1, 35, 8), id="pkgs.k8s.io"),
    ],
)
def test_version_is_parsed(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_version(text) == numbers


@pytest.mark.parametrize("text", ["", "latest", "1.", "1..2", "1.35.x", "1.35.8 ", "-1"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a version"):
        parse_version(text)


@given(NUMBERS, NUMBERS)
def test_versions_are_ordered_as_numbers(one: tuple[int, ...], two: tuple[int, ...]) -> None:
    first, second = (".".join(map(str, numbers)) for numbers in (one, two))
    assert (parse_version(first) < parse_version(f"{second}~ds1-1+deb13u1")) is (one < two)


@pytest.mark.parametrize("text", ["1", "1.2.3.4"])
def test_minor_needs_two_or_three_numbers(text: str) -> None:
    assert minor_of("v1.35.8") == "1.35"
    with pytest.raises(UsageError, match="is not a Kubernetes version"):
        minor_of(text)


@pytest.mark.parametrize(
    ("containerd", "minor"),
    [
        pytest.param("1.6.20~ds1-1+deb12u3", "1.35", id="bookworm"),
        pytest.param("1.7.24~ds1-6+deb13u1", "1.35", id="trixie"),
        pytest.param("2.0", "1.37", id="first-2.x"),
        pytest.param("2.2.0", "1.37", id="docker-ce"),
    ],
)
def test_newest_minor_for_containerd(containerd: str, minor: str) -> None:
    assert newest_minor_for(containerd) == minor


@pytest.mark.parametrize("containerd", ["1.5.9", "3.0"])
def test_no_minor_at_all_says_what_to_take(containerd: str) -> None:
    with pytest.raises(IncompatibleError) as caught:
        newest_minor_for(containerd)
    assert "containerd >= 1.6, < 3.0" in caught.value.hint


@pytest.mark.parametrize(
    ("kubernetes", "containerd"),
    [("1.35", "1.7.24"), ("1.35.8", "1.6.20"), ("1.35.8", "2.2.0"), ("1.36", "2.0.0"), ("1.37.2", "2.4.2")],
)
def test_good_pair_passes(kubernetes: str, containerd: str) -> None:
    check(kubernetes, containerd)


@pytest.mark.parametrize(
    ("kubernetes", "containerd", "hint"),
    [
        pytest.param("1.36", "1.7.24", "--kubernetes 1.35 runs with containerd 1.7.24", id="nearest-minor"),
        pytest.param("1.37.2", "1.7.24", "or take containerd >= 2.0, < 3.0", id="or-containerd"),
        pytest.param("1.35", "1.5.0", "take containerd >= 1.6, < 3.0", id="containerd-only"),
    ],
)
def test_bad_pair_names_the_nearest_good_one(kubernetes: str, containerd: str, hint: str) -> None:
    with pytest.raises(IncompatibleError) as caught:
        check(kubernetes, containerd)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("version", "near"), [("1.34", "1.35"), ("1.38.1", "1.37"), ("2.0", "1.37")])
def test_unknown_minor_names_the_nearest(version: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(version, "2.0")
    assert f'did you mean "{near}"' in caught.value.message
    assert "1.35, 1.36, 1.37" in caught.value.hint


def test_minor_becomes_its_newest_patch() -> None:
    compat = load_compat()
    assert [compat.exact(minor) for minor in compat.minors()] == ["1.35.8", "1.36.4", "1.37.2"]
    assert compat.exact("v1.35.1") == "1.35.1"


@pytest.mark.parametrize(("version", "pause"), [("1.35", "3.10.1"), ("1.36", "3.10.2"), ("1.37", "3.10.2")])
def test_pause_image_is_kubeadms(version: str, pause: str) -> None:
    minor = load_compat().minor(version)
    assert minor.pause == f"registry.k8s.io/pause:{pause}"
    assert minor.cgroup == 2
    assert minor_of(minor.patch) == version


def test_bad_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "compat.toml").write_text('[kubernetes."1.35"]\npatch = "1.35"\ncontainerd = { minimum = "1" }\n')
    with pytest.raises(DataError) as caught:
        load_compat(folder=tmp_path)
    said = caught.value.context
    assert "kubernetes.1.35.patch: string should match pattern" in said
    assert "kubernetes.1.35.containerd.below: missing" in said
    assert "kubernetes.1.35.pause: missing" in said
