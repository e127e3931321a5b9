"""The page beside a catalog's JSON: what there is, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from imagebuilder.publish.catalogfile import BoxEntry, State, file_url, newest_first

_TEMPLATE = Path(__file__).with_name("index.html.j2")
_KIB = 1024


def render_page(state: State, boxes: Sequence[BoxEntry]) -> str:
    """Return ``index.html``. The same catalog gives the same page: there is no clock in it."""
    rows = [
        {
            "name": box.name,
            "anchor": box.name.replace("/", "--"),
            "description": box.description,
            "url": file_url(state.url, f"{box.name}.json"),
            "link": f"{box.name}.json",
            "versions": newest_first(box.versions),
        }
        for box in boxes
        if box.versions
    ]
    return load_template(_TEMPLATE).render(state=state, boxes=rows)


def size(count: int) -> str:
    """Return a number of bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < _KIB:
            return f"{value:.0f} {unit}"
        value /= _KIB
    return f"{value:.1f} GiB"


@cache
def load_template(path: Path) -> jinja2.Template:
    """Return the template of a page: what it is given is escaped, and a name that it is not given is an error."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["size"] = size
    return environment.from_string(path.read_text("utf-8"))
