"""The published test vectors, read by our reader, and the program that makes them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.datapackage.checks import check_image, check_signature, check_time, image_facts
from imagebuilder.datapackage.format import MAX_UNPACKED, unpack
from imagebuilder.datapackage.manifest import parse_time
from imagebuilder.datapackage.signing import load_public_key, verify_pointer
from imagebuilder.errors import PackageError
from tests.vectors.make import FOLDER, make

INDEX = json.loads((FOLDER / "index.json").read_text())
VECTORS = [pytest.param(vector, id=vector["file"]) for vector in INDEX["vectors"]]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.json"
    path.write_text(json.dumps(INDEX["image"]))
    return path


def read(name: str, image: Path) -> None:
    data, key = (FOLDER / name).read_bytes(), load_public_key(FOLDER / INDEX["trusted"][0])
    if name.startswith("pointer"):
        verify_pointer(data, key)
        return
    package = unpack(data)
    check_signature(package, key)
    check_time(package.manifest, parse_time(INDEX["now"]))
    check_image(package.manifest.requires, image_facts(image))


@pytest.mark.parametrize("vector", VECTORS)
def test_vector_is_read_or_refused_with_its_code(vector: dict[str, Any], image: Path) -> None:
    # Of the node, its machine and what is applied there, only the agent knows.
    if vector["code"] is None or vector["stage"] == "node":
        read(vector["file"], image)
        return
    with pytest.raises(PackageError) as caught:
        read(vector["file"], image)
    assert caught.value.code == vector["code"]
    assert caught.value.message.startswith(f"{vector['code']}: ")


def unzipped(data: bytes) -> bytes:
    """What a gzip stream holds; another zlib packs it into other bytes."""
    if not data.startswith(b"\x1f\x8b\x08\0"):
        return data
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[10:], 2 * MAX_UNPACKED)


def test_vectors_are_what_the_program_makes() -> None:
    made = make()
    assert {path.name for path in FOLDER.iterdir()} == set(made)
    assert [name for name, data in made.items() if unzipped((FOLDER / name).read_bytes()) != unzipped(data)] == []


def test_every_code_of_a_reader_has_a_vector() -> None:
    codes = {vector["code"] for vector in INDEX["vectors"]}
    assert codes == {
        None, "E_SIZE", "E_FORMAT", "E_PATH", "E_DIGEST", "E_KEY", "E_SIGNATURE", "E_EARLY", "E_EXPIRED",
        "E_CAPABILITY", "E_NODE", "E_GENERATION",
    }  # fmt: skip
