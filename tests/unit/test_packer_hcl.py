"""HCL text: what is quoted is read back, and what is laid out is as Packer's own formatter has it."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import hcl2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.errors import UsageError
from imagebuilder.packer.hcl import format_hcl, quote
from imagebuilder.packer.syntax import read

texts = st.text(st.one_of(st.sampled_from('"\\${}%\n\r\t\0é#/'), st.characters(exclude_categories=["Cs"])), max_size=40)


def unquote(raw: str) -> str:
    """Read a literal as HCL's specification says: JSON's escapes, and doubled template marks."""
    out, at, inner = [], 0, raw[1:-1]
    assert raw[0] == raw[-1] == '"'
    while at < len(inner):
        rest = inner[at:]
        if rest[:3] in ("$${", "%%{"):
            out.append(rest[1:3])
            at += 3
        elif rest[0] == "\\":
            size = 6 if rest[1] == "u" else 2
            out.append(json.loads(f'"{rest[:size]}"'))
            at += size
        else:
            assert rest[:2] not in ("${", "%{"), "a template"
            assert rest[0] not in '"\n', "ends the string"
            out.append(rest[0])
            at += 1
    return "".join(out)


@given(texts)
@settings(max_examples=300, deadline=None)
def test_a_quoted_string_is_read_back(text: str) -> None:
    assert unquote(quote(text)) == text


@given(texts)
@settings(max_examples=60, deadline=None)
def test_two_parsers_take_a_quoted_string_as_one_literal(text: str) -> None:
    line = f"a = {quote(text)}\n"
    assert hcl2.loads(line) == {"a": quote(text)}
    source = read("a.pkr.hcl", line)
    assert source.problems == []
    assert source.references == []
    assert source.body.text("a") == quote(text)


@given(st.dictionaries(texts, st.one_of(texts, st.booleans(), st.integers(), st.lists(texts, max_size=3)), max_size=4))
@settings(max_examples=60, deadline=None)
def test_nested_values_stay_whole_when_laid_out(values: dict[str, Any]) -> None:
    written = format_hcl(f"a = {quote(values)}\n")
    source = read("a.pkr.hcl", written)
    assert source.problems == []
    assert format_hcl(written) == written
    for text in (value for value in values.values() if isinstance(value, str)):
        assert quote(text) in written


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        pytest.param(None, "null", id="null"),
        pytest.param(True, "true", id="true"),
        pytest.param(7, "7", id="int"),
        pytest.param("${var.x}", '"$${var.x}"', id="interpolation"),
        pytest.param("%{if a}", '"%%{if a}"', id="directive"),
        pytest.param("$${x}", '"$$${x}"', id="escaped-already"),
        pytest.param("5 $ and 10 %", '"5 $ and 10 %"', id="not-a-template"),
        pytest.param('a"b\\c\nd\te\r', '"a\\"b\\\\c\\nd\\te\\r"', id="escapes"),
        pytest.param("\0\x1b\x7f", '"\\u0000\\u001b\\u007f"', id="control"),
        pytest.param("Zürich 東京", '"Zürich 東京"', id="other-letters"),
        pytest.param([], "[]", id="empty-list"),
        pytest.param(["a", 1], '["a", 1]', id="list"),
        pytest.param({}, "{}", id="empty-map"),
        pytest.param({"a": 1, "for": 2, "b c": 3}, '{\na = 1\n"for" = 2\n"b c" = 3\n}', id="keys"),
    ],
)
def test_literals(value: Any, literal: str) -> None:
    assert quote(value) == literal


@pytest.mark.parametrize("value", [object(), {1, 2}, "\ud800"], ids=["object", "set", "half-a-pair"])
def test_what_cannot_be_written_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        quote(value)


def test_a_long_list_gets_a_line_for_each_item() -> None:
    assert quote(["x" * 60, "y" * 60]) == f'[\n"{"x" * 60}",\n"{"y" * 60}",\n]'


SCRAMBLED = """
variable "a" {
type=string
    description   =    "x # y"
default = null # why


}
source "qemu" "node" {
a = 1
bbbb = "x${foo("a", { b = 1 })}" # c
 list = [
"a", {
 x=1
},
]
  content = <<-EOF
   a = ${x}
  EOF
  zz = { a = 1, b = 2 }
  cond = a == b
}
"""
LAID_OUT = """\
variable "a" {
  type        = string
  description = "x # y"
  default     = null # why

}
source "qemu" "node" {
  a    = 1
  bbbb = "x${foo("a", { b = 1 })}" # c
  list = [
    "a", {
      x = 1
    },
  ]
  content = <<-EOF
   a = ${x}
  EOF
  zz      = { a = 1, b = 2 }
  cond    = a == b
}
"""


def test_layout_is_that_of_packer() -> None:
    """The expected text is what packer fmt made; an integration test asks it again."""
    assert format_hcl(SCRAMBLED) == LAID_OUT
    assert format_hcl(LAID_OUT) == LAID_OUT


def test_normal_forms_are_left_alone() -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    assert unquote(quote(decomposed)) == decomposed
