"""What a verification leaves beside the artifact: ``verify.json`` and ``verify.html``; whether one is still good."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagebuilder import __version__
from imagebuilder.config import Budgets
from imagebuilder.content import canonical_json, content_id, write_atomic

DOCUMENT, PAGE = "verify.json", "verify.html"
KEY = "key"  # of what was asked, in the document
MAX_BYTES = 16 << 20


def key(*, boot: bool, budgets: Budgets, waivers: Mapping[str, str]) -> str:
    """Return what names a question: the same artifact, asked the same by the same tool, gives the same answer."""
    return content_id([__version__, boot, budgets.model_dump(exclude_none=True), dict(waivers)])


def keep(folder: Path, document: Mapping[str, Any], page: bytes, asked: str) -> None:
    """Write a report beside its artifact, the document last: where it is, the page is too."""
    write_atomic(folder / PAGE, page)
    write_atomic(folder / DOCUMENT, canonical_json({**document, KEY: asked}) + b"\n")


def passed_before(folder: Path, sha256: str, asked: str) -> bool:
    """Tell whether this very artifact has passed when asked the same."""
    try:
        with (folder / DOCUMENT).open("rb") as stream:
            document = json.loads(stream.read(MAX_BYTES))
        return bool(document["passed"] is True and document["sha256"] == sha256 and document[KEY] == asked)
    except (OSError, ValueError, KeyError, TypeError):
        return False
