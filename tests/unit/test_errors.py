"""The tree of errors: references and exit codes are promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imagebuilder.cli.docs import PAGES
from imagebuilder.errors import ImagebuilderError, error_classes

CLASSES = list(error_classes())
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_reference_is_kebab_case_and_the_meaning_a_sentence(cls: type[ImagebuilderError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.ref)
    assert cls.meaning[0].isupper() and cls.meaning.endswith(".")
    assert cls.__doc__


def test_references_and_exit_codes_are_unique() -> None:
    assert len({cls.ref for cls in CLASSES}) == len(CLASSES)
    assert len({cls.exit_code for cls in CLASSES}) == len(CLASSES)
    assert all(0 < cls.exit_code < 256 for cls in CLASSES)


def test_the_tree_is_flat() -> None:
    """An error with its own subclasses would hide them from ``error_classes``."""
    assert [cls for cls in CLASSES[1:] if cls.__subclasses__()] == []


def test_message_context_and_hint() -> None:
    error = ImagebuilderError("what", context="evidence", hint="next")
    assert (str(error), error.message, error.context, error.hint) == ("what", "what", "evidence", "next")


@pytest.mark.parametrize("page", PAGES)
def test_generated_pages_are_up_to_date(page: str) -> None:
    assert (DOCS / f"{page}.md").read_text() == PAGES[page](), f"imagebuilder docs {page} > docs/{page}.md"
