"""JSON Schema (draft 2020-12) of the files that people write, made from the models that read them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from imagebuilder.compat import Compat
from imagebuilder.config import Config
from imagebuilder.datapackage.cluster import Cluster
from imagebuilder.errors import UsageError
from imagebuilder.profile_data import ProfileData
from imagebuilder.profiles import MATCHERS
from imagebuilder.strict import did_you_mean
from imagebuilder.targets import TargetData

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_WHOLE: dict[str, tuple[type[BaseModel], str]] = {
    "target": (TargetData, "A target of imagebuilder"),
    "compat": (Compat, "Versions that run together"),
    "config": (Config, "imagebuilder.toml"),
    "cluster": (Cluster, "cluster.toml"),
}
NAMES = ("os-profile", *_WHOLE)
_OVERRIDES = {"$ref": "#/$defs/Overrides"}


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of one kind of file, one of ``NAMES``.

    Raises:
        UsageError: there is no such kind.
    """
    if name == "os-profile":
        return _profile()
    if name not in _WHOLE:
        raise UsageError(f'there is no schema "{name}"{did_you_mean(name, NAMES)}', hint=f"one of: {', '.join(NAMES)}")
    model, title = _WHOLE[name]
    return {"$schema": DIALECT, **model.model_json_schema(), "title": title}


def _profile() -> dict[str, Any]:
    """Return the schema of a profile as written: any part of the whole, with ``append`` and ``[[when]]``."""
    whole = ProfileData.model_json_schema()
    fields: dict[str, Any] = whole["properties"]
    parts = {name: _partial(part) for name, part in whole["$defs"].items()}
    append = {**_OVERRIDES, "title": "Append", "description": "Lists to add to the lists of the same place."}
    own = {
        "inherits": {
            "title": "Inherits",
            "description": "The profile that this one adds to.",
            "type": "string",
        },
        "append": append,
        "when": {
            "title": "When",
            "description": "Overrides, applied in order after everything else.",
            "type": "array",
            "items": {"$ref": "#/$defs/When"},
        },
    }
    overrides = {"title": "Overrides", "description": "Any part of a profile.", **_table(fields)}
    return {
        "$schema": DIALECT,
        "title": "An OS profile of imagebuilder",
        "description": "One file of the chain of inherits; together the files must state every field.",
        **_table({**fields, **own}),
        "$defs": {**parts, "Overrides": overrides, "When": _when(fields, append)},
    }


def _when(fields: dict[str, Any], append: dict[str, Any]) -> dict[str, Any]:
    words = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    matchers = {
        key: {
            **words,
            "title": key.title(),
            "description": f"Matches if the cell's {key} is this, or one of these.",
        }
        for key in MATCHERS
    }
    return {
        "title": "When",
        "description": "Overrides for cells that all its matchers match.",
        **_table({**fields, **matchers, "append": append}),
        "anyOf": [{"required": [key]} for key in MATCHERS],
    }


def _table(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _partial(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "required"}
