"""The offline checks hold for an image that was baked, and see each way in which it is broken."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.direct import bolt
from imagebuilder.verify.model import Image
from imagebuilder.verify.offline.files import Remembered
from imagebuilder.verify.offline.node import METADATA, STORE
from imagebuilder.verify.offline.run import run_offline
from imagebuilder.verify.run import opened
from imagebuilder.verify.subject import Said
from tests.e2e.conftest import Bake, needs_bake
from tests.offline_mutants import MUTANTS, Mutant, apply

pytestmark = [pytest.mark.bake, pytest.mark.timeout(3600), needs_bake]
BAKED = "IMAGEBUILDER_TEST_IMAGE"  # names the folder of an image that is there, in place of a bake


@pytest.fixture(scope="module")
def image(baked: Bake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = os.environ.get(BAKED)
    artifact = None if folder else baked(plain=True).artifact
    path = Path(folder) if folder else artifact.parent if artifact else Path()
    with opened(path, Said(), tmp_path_factory.mktemp("scratch")) as (image, _):
        yield image


def test_a_baked_image_passes_every_check(image: Image) -> None:
    assert [(one.id, one.found, one.reason) for one in run_offline(image) if not one.holds] == []


def test_containerds_store_has_what_its_images_need_and_no_more(image: Image) -> None:
    blobs = {name.encode(): image.root.content(f"{STORE}/{name}", 1 << 20) for name in image.root.names(STORE)}
    images = bolt.read(image.root.content(METADATA, 64 << 20))
    for name in (b"v1", b"k8s.io", b"images"):
        images = bucket(images, name)
    todo = [target(bucket(images, name)) for name in images.items]
    assert todo, "it has an image"
    needed = set()
    while todo:
        if (digest := todo.pop()) in blobs and digest not in needed:
            needed.add(digest)
            todo += re.findall(rb"sha256:([0-9a-f]{64})", blobs[digest])
    assert sorted(blobs) == sorted(needed)


def bucket(parent: bolt.Bucket, name: bytes) -> bolt.Bucket:
    found = parent.items[name]
    assert isinstance(found, bolt.Bucket)
    return found


def target(image: bolt.Bucket) -> bytes:
    digest = bucket(image, b"target").items[b"digest"]
    assert isinstance(digest, bytes)
    return digest.removeprefix(b"sha256:")


@pytest.mark.parametrize(
    "mutant", [pytest.param(mutant, id=mutant.id) for mutant in MUTANTS if mutant.family in ("", "debian")]
)
def test_a_broken_image_fails_one_check_only(image: Image, mutant: Mutant) -> None:
    remembered = replace(image, root=Remembered(image.root))
    results = [one for one in run_offline(apply(mutant, remembered)) if not one.holds]
    assert [(one.id, one.reason) for one in results] == [(mutant.check, "")]
    assert mutant.said in "\n".join(results[0].found)
