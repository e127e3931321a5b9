"""Names, versions and addresses of boxes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.errors import UsageError
from imagebuilder.publish.boxnames import check_name, check_url, check_version, version_key

VERSIONS = st.from_regex(r"\A[0-9]{1,3}(\.([0-9]{1,3}|[a-z]{1,3}[0-9]?)){0,3}(-[0-9A-Za-z]{1,3})?\Z")


@pytest.mark.parametrize("name", ["user/debian-13", "k8s/Debian_13.1", "a/b"])
def test_good_names_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "debian", "a/b/c", "/b", "a/", "a/..", "../b", ".a/b", "a/b.", "a b/c", "a/ü", "a/b\n", "a:x/b", "a/b.json",
     "index.html/b", "a/x..y", "a/" + "b" * 81],
)  # fmt: skip
def test_names_that_vagrant_or_the_folders_would_not_take_are_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert caught.value.hint == "--name user/debian-13"


@pytest.mark.parametrize("version", ["0", "1.0.0", "20261124.0", "1.0.0-rc1", "1.2.beta3"])
def test_good_versions_are_taken(version: str) -> None:
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["", "v1", "1.", "1..2", "1 .0", "1/2", "1.0\n", "latest", "1.²", "1" * 81])
def test_bad_versions_are_refused(version: str) -> None:
    with pytest.raises(UsageError, match="no version"):
        check_version(version)


@pytest.mark.parametrize(
    ("older", "newer"),
    [("1.0", "1.0.1"), ("1.9", "1.10"), ("1.0.a", "1.0"), ("1.0-rc1", "1.0"), ("1.0.a", "1.0.b"),
     ("20261124.0", "20261124.1"), ("1.a.1", "1.a.2"), ("1", "1.0.0.1"), ("1.a", "1.1")],
)  # fmt: skip
def test_versions_are_in_the_order_of_rubygems(older: str, newer: str) -> None:
    assert version_key(older) < version_key(newer)


@pytest.mark.parametrize(("one", "other"), [("1", "1.0.0"), ("1.0.a", "1.a"), ("1.01", "1.1"), ("1-a", "1.pre.a")])
def test_versions_that_are_the_same_in_other_words(one: str, other: str) -> None:
    assert version_key(one) == version_key(other)


@given(VERSIONS, VERSIONS, VERSIONS)
def test_the_order_is_an_order(a: str, b: str, c: str) -> None:
    assert check_version(a) == a
    first, second, third = sorted((a, b, c), key=version_key)
    assert version_key(first) <= version_key(second) <= version_key(third)
    assert version_key(a) == version_key(a + ".0")


@pytest.mark.parametrize(
    ("url", "kept"),
    [("https://boxes.example.com/v/", "https://boxes.example.com/v"), ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
     ("file:///srv/boxes", "file:///srv/boxes")],
)  # fmt: skip
def test_good_addresses_are_taken(url: str, kept: str) -> None:
    assert check_url(url) == kept


@pytest.mark.parametrize(
    "url",
    ["", "boxes", "./boxes", "/srv/boxes", "ftp://x/y", "https://", "https://x/y?z", "https://x/#y", "https://x/ y",
     "https://x:port/", "file://host", "https://user:secret@x/y", "https://bücher.example/"],
)  # fmt: skip
def test_addresses_that_vagrant_could_not_use_are_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert "--url" in caught.value.hint
