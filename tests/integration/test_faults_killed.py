"""A bake that is ended at any moment costs nothing but time: the next one goes on, and its image is the same."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from smallstack import wait_for
from tinybake import What, baking
from tinydistro import World, marks, serving
from tinyplace import Place, refused

from imagebuilder.direct.layers import BEING_MADE
from imagebuilder.errors import CacheError, InterruptedByUserError

pytestmark = marks
KILLS = 50
SEED = 2026
EARLY = 60  # moments at the beginning of a cold bake: asking for versions, then the base layer
ARCHIVES = 24  # moments at the end of a bake: packing, and putting the artifact in its place


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving(tmp_path_factory.mktemp("tiny")) as made:
        yield made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place.below(tmp_path, monkeypatch)


def cold(world: World, place: Place, *more: str) -> tuple[str, int]:
    """Bake, and return the image's sha256 and how many moments that took."""
    found = place.bake(world, None, *more)
    assert found.code == 0, found.said
    place.is_clean()
    return place.digest, found.moments


def test_a_bake_that_is_killed_fifty_times_ends_with_the_right_bytes(world: World, place: Place) -> None:
    """Each bake goes on where the one before was killed; whenever one comes to its end, all begins anew."""
    right, moments = cold(world, place)
    chance, stages = random.Random(SEED), list[str]()
    while len(stages) < KILLS:
        shutil.rmtree(place.cache)
        shutil.rmtree(place.folder / "out")
        killed, last = True, EARLY
        while killed:
            what = What(die_at=chance.randint(1, last), later=chance.choice((0, 0, 3, 40)))
            last = moments
            found = place.bake(world, what)
            killed = found.code == -signal.SIGKILL
            assert killed or found.code == 0, f"seed {SEED}, {len(stages)} kills, {what}: {found.said}"
            place.nothing_runs()
            if killed:
                stages.append(found.stages[-1] if found.stages else "")
        assert place.digest == right
        place.is_clean()
    assert {"resolve", "layer:base"} < set(stages), "kills came early and late"


@pytest.mark.parametrize("target", ["vsphere", "vagrant-virtualbox"])
def test_an_archive_that_was_being_packed_leaves_nothing(world: World, place: Place, target: str) -> None:
    """The last moments of a bake: folders beside the artifact, then the artifact and its papers."""
    right, _ = cold(world, place, "--target", target)
    place.forget()
    _, moments = cold(world, place, "--target", target)
    for die_at in range(moments - ARCHIVES, moments, 5):
        place.forget()
        found = place.bake(world, What(die_at=die_at), "--target", target)
        assert found.code == -signal.SIGKILL, found.said
        place.nothing_runs()
        place.good(world, right, "--target", target)


@pytest.mark.parametrize(
    ("by", "twice"),
    [
        pytest.param(signal.SIGTERM, 0, id="sigterm"),
        pytest.param(signal.SIGINT, 0, id="ctrl-c"),
        pytest.param(signal.SIGINT, 2, id="ctrl-c-twice"),
    ],
)
def test_a_bake_that_is_stopped_leaves_nothing_and_goes_on(world: World, place: Place, by: int, twice: int) -> None:
    """A second Ctrl-C may cut the cleaning short: what it leaves is swept by the next bake."""
    right, moments = cold(world, place)
    shutil.rmtree(place.cache)
    place.cache.mkdir()
    place.forget()
    chance = random.Random(SEED + by)
    for _ in range(5):
        what = What(die_at=chance.randint(40, moments), by=by, twice=twice)
        found = place.bake(world, what)
        if found.code == 0:  # it had less to do than a cold one
            break
        refused(found, InterruptedByUserError, "error: stopped")
        place.nothing_runs()
        if not twice:
            place.is_clean()
    place.good(world, right)


def test_a_bake_that_waits_goes_on_when_the_other_is_killed(world: World, place: Place) -> None:
    right, _ = cold(world, place)
    place.forget(layers=("runtime", "kubernetes", "site"))
    arguments = ["--target", "qemu", "--cache-dir", place.cache, "--output"]
    what = What(pause_at="note layer:runtime")
    with baking(world.folder, [*arguments, place.folder / "first"], what) as first:
        wait_for(first, "paused")
        with baking(world.folder, [*arguments, place.folder / "out"]) as second:
            wait_for(second, BEING_MADE)
            first.kill()
            wait_for(second, "moments")
            assert second.wait(30) == 0
    assert place.digest == right
    shutil.rmtree(place.folder / "first", ignore_errors=True)
    place.is_clean()


@pytest.mark.parametrize("moment", ["begin layer:base", "note layer:runtime", "begin pack"])
def test_a_cache_that_is_removed_meanwhile(world: World, place: Place, moment: str) -> None:
    right, _ = cold(world, place)
    place.forget(layers=("base", "runtime", "kubernetes", "site"))
    arguments = ["--target", "qemu", "--cache-dir", place.cache, "--output", place.folder / "out"]
    with baking(world.folder, arguments, What(pause_at=moment)) as child:
        lines = wait_for(child, "paused")
        shutil.rmtree(place.cache)
        said, _ = child.communicate(b"\n", timeout=60)
    if child.returncode != 0:  # what it had open already may have been enough
        text = "\n".join([*lines, said.decode()])
        assert child.returncode == CacheError.exit_code, text
        assert "was removed while it was used" in text
        assert "\nhint: run the command again" in text
    place.nothing_runs()
    place.good(world, right)
