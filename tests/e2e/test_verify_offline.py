"""The offline checks hold for an image that was baked, take their time only, and see each way in which it is broken."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.verify.model import Image
from imagebuilder.verify.offline.files import Remembered
from imagebuilder.verify.offline.run import run_offline
from imagebuilder.verify.run import opened
from imagebuilder.verify.subject import Said
from tests.e2e.conftest import Bake, needs_bake
from tests.offline_mutants import MUTANTS, Mutant, apply

pytestmark = [pytest.mark.bake, pytest.mark.timeout(3600), needs_bake]
BAKED = "IMAGEBUILDER_TEST_IMAGE"  # names the folder of an image that is there, in place of a bake
SECONDS = 6.0  # for all checks on two cores that nobody else uses


@pytest.fixture(scope="module")
def image(baked: Bake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = os.environ.get(BAKED)
    artifact = None if folder else baked(plain=True).artifact
    path = Path(folder) if folder else artifact.parent if artifact else Path()
    with opened(path, Said(), tmp_path_factory.mktemp("scratch")) as (image, _):
        yield image


def test_a_baked_image_passes_every_check_in_time(image: Image) -> None:
    start, busy = time.monotonic(), time.process_time()
    results = run_offline(image)
    assert [(one.id, one.found, one.reason) for one in results if not one.holds] == []
    assert time.process_time() - busy <= SECONDS, f"{time.monotonic() - start:.1f} s by the clock"


@pytest.mark.parametrize(
    "mutant", [pytest.param(mutant, id=mutant.id) for mutant in MUTANTS if mutant.family in ("", "debian")]
)
def test_a_broken_image_fails_one_check_only(image: Image, mutant: Mutant) -> None:
    remembered = replace(image, root=Remembered(image.root))
    results = [one for one in run_offline(apply(mutant, remembered)) if not one.holds]
    assert [(one.id, one.reason) for one in results] == [(mutant.check, "")]
    assert mutant.said in "\n".join(results[0].found)
