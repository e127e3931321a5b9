"""The checks find what Packer would refuse, and what python-hcl2 lets pass; each with file and line."""

from __future__ import annotations

import pytest

from imagebuilder.errors import CheckFailedError
from imagebuilder.packer.checks import check_folder, problems

GOOD = """\
variable "zone" {
  type        = string
  description = "Where."
  validation {
    condition     = length(var.zone) > 0
    error_message = "Empty."
  }
}
locals {
  name = "n-${var.zone}"
}
source "null" "n" {
  title = local.name
  map   = { a = 1, b = 2 }
  text  = <<-EOT
    "quoted" \\d ${local.name}
  EOT
}
"""


def found(text: str, **more: str) -> list[str]:
    return list(problems({"a.pkr.hcl": text, **{name.replace("_", "."): value for name, value in more.items()}}))


def test_a_good_folder_has_no_problems() -> None:
    assert found(GOOD) == []
    check_folder({"a.pkr.hcl": GOOD, "b.auto.pkrvars.hcl": 'zone = "z"\n', "README.md": "{"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("a {\n  x = 1\n  x = 2\n}\n", "a.pkr.hcl:3: x: stated twice", id="attribute-twice"),
        pytest.param("a {\n  m = { a = 1 b = 2 }\n}\n", "a.pkr.hcl:2: b: neither a comma", id="object-on-a-line"),
        pytest.param("a {\n  m = { a = 1, a = 2 }\n}\n", "a.pkr.hcl:2: a: stated twice", id="key-twice"),
        pytest.param('a {\n  x = "\\d"\n}\n', r"a.pkr.hcl:2: \d is not an escape", id="escape"),
        pytest.param('a {\n  x = "one\n  two"\n}\n', "a.pkr.hcl:2: a string has no end", id="newline-in-a-string"),
        pytest.param('a {\n  x = var.nowhere\n}\n', "a.pkr.hcl:2: var.nowhere is not declared", id="variable"),
        pytest.param('a {\n  x = "${local.nowhere}"\n}\n', "a.pkr.hcl:2: local.nowhere is not", id="local"),
        pytest.param("locals {\n  x = 1\n}\n", "a.pkr.hcl:2: local.x is never used", id="unused-local"),
        pytest.param(
            'variable "v" {\n  type = string\n  description = "d"\n  validation {\n    condition = var.v\n  }\n}\n',
            "a.pkr.hcl:1: var.v is never used", id="unused-variable",
        ),
        pytest.param('b {\n  x = var.v\n}\nvariable "v" {\n}\n', "variable v has no type", id="type"),
        pytest.param("a {\n  x = 1 y = 2\n}\n", "a.pkr.hcl:2", id="two-attributes-on-a-line"),
        pytest.param("a {\n  x = [1\n}\n", "closed by }", id="brackets"),
        pytest.param("a {\n  x = 1\n", "the end of the file", id="block-without-end"),
        pytest.param("a {\n  x =\n}\n", "x: has no value", id="no-value"),
        pytest.param('a {\n  x = "${var.v"\n}\n', "a.pkr.hcl", id="interpolation-without-end"),
        pytest.param("a {\n  x = <<EOT\n  y\n}\n", "the heredoc EOT has no end", id="heredoc"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(text: str, problem: str) -> None:
    assert any(problem in line for line in found(text)), found(text)


def test_values_of_no_variable_are_found() -> None:
    files = {"a.pkr.hcl": GOOD, "b.auto.pkrvars.hcl": 'zone = "z"\nzome = "z"\n'}
    assert list(problems(files)) == ["b.auto.pkrvars.hcl:2: zome is a value of a variable that is not declared"]


def test_a_name_in_a_string_or_a_comment_is_no_reference() -> None:
    assert found('a {\n  # var.x\n  x = "var.y $${local.z}" // local.w\n}\n') == []


def test_the_error_names_the_first_problem_and_lists_all() -> None:
    with pytest.raises(CheckFailedError, match=r"2 problems: a\.pkr\.hcl:1") as caught:
        check_folder({"a.pkr.hcl": "a { x = var.one }\nb { y = var.two }\n"}, parse=False)
    assert len(caught.value.context.splitlines()) == 2
