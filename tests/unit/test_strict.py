"""Strict TOML says everything that is wrong, with the file, the key and the nearest right name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from imagebuilder.errors import DataError
from imagebuilder.resources import data_root
from imagebuilder.strict import MAX_BYTES, Strict, Strings, expand, label, read_toml, unknown_keys, validate


class Leaf(Strict):
    base: Strings = ()
    size: int = 1


class Tree(Strict):
    packages: Leaf = Leaf()
    table: Mapping[str, Leaf] = {}
    rows: list[Leaf] = Field(default=[])
    either: str | Leaf = ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'a = 1\nb = "x\n', ":2: ", id="open-string"),
        pytest.param(b"a = 1\na = 2\n", ":2: Cannot overwrite a value", id="key-twice"),
        pytest.param(b"a = 1\nb = [1,\n", ":2: ", id="end-of-file"),
        pytest.param(b'a = 1\nb = "\xff"\n', ":2: not UTF-8 (byte 0xff)", id="latin-1"),
        pytest.param(b"#" * (MAX_BYTES + 1), ": larger than 1 MiB", id="too-large"),
    ],
)
def test_bad_toml_names_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_toml(path)
    assert f"{path}{message}" in caught.value.message


def test_largest_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_bytes(b"a = 1\n" + b"#" * (MAX_BYTES - 6))
    assert read_toml(path) == {"a": 1}


@pytest.mark.parametrize("name", [pytest.param("none.toml", id="missing"), pytest.param(".", id="folder")])
def test_unreadable_file_is_a_data_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_toml(tmp_path / name)


def test_label_is_short_for_our_own_files(tmp_path: Path) -> None:
    assert label(data_root() / "os_profiles" / "debian.toml") == "os_profiles/debian.toml"
    assert label(tmp_path / "x.toml") == str(tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        pytest.param({"packgaes": {}}, 'packgaes: unknown key (did you mean "packages"?)', id="top"),
        pytest.param({"packages": {"bsae": []}}, 'packages.bsae: unknown key (did you mean "base"?)', id="model"),
        pytest.param({"table": {"a": {"siz": 1}}}, 'table.a.siz: unknown key (did you mean "size"?)', id="mapping"),
        pytest.param({"rows": [{}, {"siz": 1}]}, 'rows.1.siz: unknown key (did you mean "size"?)', id="list"),
        pytest.param({"either": {"siz": 1}}, 'either.siz: unknown key (did you mean "size"?)', id="union"),
        pytest.param({"packages": {"qqq": 1}}, "packages.qqq: unknown key (known: base, size)", id="nothing-near"),
    ],
)
def test_unknown_key_is_found_wherever_it_is(raw: dict[str, Any], line: str) -> None:
    assert unknown_keys(raw, Tree, "f.toml") == [f"f.toml: {line}"]


def test_all_problems_are_in_one_error() -> None:
    raw = {"packages": {"bsae": [], "size": "8"}, "rows": 3, "colour": 1}
    with pytest.raises(DataError) as caught:
        validate(raw, Tree, "f.toml", problems=["f.toml: seen before"])
    lines = caught.value.context.splitlines()
    assert caught.value.message == "f.toml: 5 problems"
    assert lines[0] == "f.toml: seen before"
    assert 'f.toml: packages.bsae: unknown key (did you mean "base"?)' in lines
    assert "f.toml: packages.size: input should be a valid integer (got '8')" in lines
    assert any(line.startswith("f.toml: rows: input should be a valid list") for line in lines)
    assert any(line.startswith("f.toml: colour: unknown key") for line in lines)


def test_problems_found_before_fail_good_data() -> None:
    with pytest.raises(DataError, match="1 problem"):
        validate({}, Tree, "f.toml", problems=["f.toml: seen before"])


def test_valid_data_gives_a_frozen_instance() -> None:
    tree = validate({"packages": {"base": ["a", "b"]}, "either": "x"}, Tree, "f.toml")
    assert tree.packages.base == ("a", "b")
    with pytest.raises(ValueError, match="frozen"):
        tree.packages = Leaf()


def test_placeholders_are_filled_in() -> None:
    assert expand("linux-{arch}-{{x}}", {"arch": "amd64"}) == "linux-amd64-{x}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("x-{acrh}", 'unknown placeholder {acrh} (did you mean "arch"?)', id="unknown"),
        pytest.param("x-{}", "unknown placeholder {}", id="empty"),
        pytest.param("x-{arch", 'a single "{"', id="open"),
        pytest.param("x-arch}", 'a single "}"', id="close"),
        pytest.param("{arch!r}", "unknown placeholder {arch!r}", id="no-expressions"),
    ],
)
def test_bad_placeholder_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        expand(text, {"arch": "amd64"})
    assert message in caught.value.message


def test_late_placeholders_and_braces_stay_for_later() -> None:
    early = expand("{arch}/v{minor}/{{x}}", {"arch": "amd64"}, late=("minor",))
    assert early == "amd64/v{minor}/{{x}}"
    assert expand(early, {"minor": "1.35"}) == "amd64/v1.35/{x}"


@given(st.text())
def test_escaped_text_comes_back(text: str) -> None:
    assert expand(text.replace("{", "{{").replace("}", "}}"), {}) == text


@given(st.lists(st.sampled_from(["{a}", "{b}", "{{", "}}", "-", "é"])), st.text(), st.text())
def test_values_are_never_expanded_again(parts: list[str], a: str, b: str) -> None:
    said = {"{a}": a, "{b}": b, "{{": "{", "}}": "}"}
    assert expand("".join(parts), {"a": a, "b": b}) == "".join(said.get(part, part) for part in parts)
