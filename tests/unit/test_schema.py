"""The published JSON Schemas accept our files as written, and refuse what the loaders refuse."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from imagebuilder import resources
from imagebuilder.errors import UsageError
from imagebuilder.schema import NAMES, schema


def valid(name: str, text: str) -> bool:
    validator = jsonschema.Draft202012Validator(schema(name))
    return bool(validator.is_valid(tomllib.loads(text)))


def files() -> Iterator[Any]:
    for name, folder, pattern in (
        ("os-profile", "os_profiles", "*.toml"),
        ("target", "targets", "*.toml"),
        ("compat", "components", "compat.toml"),
    ):
        for path in sorted(resources.folder(folder).glob(pattern)):
            yield pytest.param(name, path, id=f"{folder}/{path.name}")


@pytest.mark.parametrize(("name", "path"), list(files()))
def test_our_files_follow_their_schema(name: str, path: Path) -> None:
    jsonschema.Draft202012Validator(schema(name)).validate(tomllib.loads(path.read_text()))


def described(field: dict[str, Any], said: dict[str, Any]) -> bool:
    """A field without words of its own has those of the table that it refers to."""
    table = said["$defs"][field["$ref"].removeprefix("#/$defs/")] if "$ref" in field else {}
    return bool(field.get("description") or table.get("description"))


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_itself_valid_and_says_what_everything_is(name: str) -> None:
    said = schema(name)
    jsonschema.Draft202012Validator.check_schema(said)
    assert said["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    tables = [said, *said.get("$defs", {}).values()]
    fields = [(table["title"], key, field) for table in tables for key, field in table["properties"].items()]
    assert fields
    undescribed = [(title, key) for title, key, field in fields if not described(field, said)]
    assert undescribed == []
    assert [table["title"] for table in tables if table["additionalProperties"] is not False] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("os-profile", "titel = 'x'", id="profile-key"),
        pytest.param("os-profile", "packages.bsae = []", id="profile-deep-key"),
        pytest.param("os-profile", "packages.base = 'x'", id="profile-type"),
        pytest.param("os-profile", "append.packages.bsae = []", id="append-key"),
        pytest.param("os-profile", "[[when]]\ntitle = 'x'", id="when-without-matcher"),
        pytest.param("os-profile", "[[when]]\narch = 'amd64'\ntitel = 'x'", id="when-key"),
        pytest.param("os-profile", "[[when]]\narch = 1", id="when-matcher"),
        pytest.param("os-profile", "[[when]]\narch = 'amd64'\nappend.hodl = []", id="when-append-key"),
        pytest.param("target", "title = 'x'", id="target-not-whole"),
        pytest.param("compat", "kubernetes = {}", id="compat-empty"),
        pytest.param("config", "pakcage = []", id="config-key"),
        pytest.param("config", "mirror.x = 1", id="config-mirror"),
        pytest.param("config", "mirror.x = { url = 'y', key = 'z' }", id="config-mirror-key"),
        pytest.param("cluster", "name = 'x'\nkubernetes = '1.35'\nnodes = []", id="cluster-without-nodes"),
        pytest.param(
            "cluster", "name = 'x'\nkubernetes = 1.35\nnodes = [{ name = 'a', role = 'worker' }]", id="version"
        ),
    ],
)
def test_bad_files_do_not_follow_it(name: str, text: str) -> None:
    assert not valid(name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(
            "os-profile", "inherits = 'x'\n[[when]]\nrelease = ['12', '13']\nappend.hold = ['x']", id="partial"
        ),
        pytest.param("config", "", id="config-empty"),
        pytest.param("config", f"mirror.a = 'x'\nmirror.b = {{ url = 'y', key = '{'0' * 40}' }}", id="config-mirrors"),
        pytest.param("config", "overlay = ['a']\nimage = ['b']\nsource.docker = 'distro'", id="config-wishes"),
    ],
)
def test_good_files_follow_it(name: str, text: str) -> None:
    assert valid(name, text)


def test_unknown_schema_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as caught:
        schema("os-profiles")
    assert 'did you mean "os-profile"' in caught.value.message
