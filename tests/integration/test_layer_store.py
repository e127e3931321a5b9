"""The layer store between processes: who waits says so, a kill leaves no lock, and a read-only folder is enough."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagebuilder.direct.layers import BEING_MADE, LayerStore

pytestmark = pytest.mark.integration

ID = "1" * 64
# Builds a layer as the engine does, or takes it; says what it does, and holds still in the middle for a line of input.
BUILDER = """
import sys
from pathlib import Path
from imagebuilder.direct.elsewhere import Sharing, places
from imagebuilder.direct.layers import LayerStore
from imagebuilder.events import Progress

def say(text):
    print(text, flush=True)

lower = tuple(map(Path, sys.argv[3:]))
with LayerStore(Path(sys.argv[1])) as store, places(Sharing(lower=lower)) as elsewhere:
    with Progress().stage("layer") as stage:
        stage.note = say
        for place in elsewhere:
            if place.take(sys.argv[2], None, store, stage):
                sys.exit()
    if store.use(sys.argv[2], say):
        say("found")
    else:
        with store.building(sys.argv[2], say) as folder:
            if folder is None:
                say("made by another")
            else:
                (folder / "root/file").write_text("x")
                say("building")
                sys.stdin.readline()
                store.commit(folder, {"name": "base"})
                say("made")
"""
Builder = subprocess.Popen[bytes]


@contextmanager
def builder(
    cache: Path, layer_id: str = ID, wrapper: tuple[str, ...] = (), lower: tuple[Path, ...] = ()
) -> Iterator[Builder]:
    argv = [*wrapper, sys.executable, "-c", BUILDER, str(cache), layer_id, *map(str, lower)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def line(child: Builder, seconds: float = 30) -> str:
    """Return the next line that a child says; the pipe has no buffer, so that select sees what is left."""
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], seconds)[0], "it says nothing"
    return child.stdout.readline().decode().rstrip()


def go_on(child: Builder) -> None:
    assert child.stdin is not None
    child.stdin.write(b"\n")


def silent(child: Builder) -> bool:
    return not select.select([child.stdout], [], [], 0.3)[0]


def test_the_second_of_two_says_that_it_waits_and_takes_what_the_first_made(tmp_path: Path) -> None:
    with builder(tmp_path) as first:
        assert line(first) == "building"
        with builder(tmp_path) as second:
            assert line(second) == BEING_MADE
            assert silent(second)
            go_on(first)
            assert line(first) == "made"
            assert line(second) == "found"
            assert (first.wait(30), second.wait(30)) == (0, 0)


def test_nobody_waits_for_another_layer(tmp_path: Path) -> None:
    with builder(tmp_path) as first, builder(tmp_path, "2" * 64) as second:
        assert {line(first), line(second)} == {"building"}


def test_who_waits_for_a_bake_that_is_killed_makes_the_layer(tmp_path: Path) -> None:
    with builder(tmp_path) as first:
        assert line(first) == "building"
        with builder(tmp_path) as second:
            assert line(second) == BEING_MADE
            first.kill()
            assert line(second) == "building"
            assert [path.name for path in (tmp_path / "tmp").iterdir()] == [ID]
            go_on(second)
            assert line(second) == "made"
            assert second.wait(30) == 0
    store = LayerStore(tmp_path)
    assert store.use(ID) is not None
    assert list(store.staging.iterdir()) == []


def test_a_damaged_layer_is_made_again_by_one_of_two(tmp_path: Path) -> None:
    with builder(tmp_path) as child:
        assert line(child) == "building"
        go_on(child)
        assert line(child) == "made"
        assert child.wait(30) == 0
    (tmp_path / "layers" / ID / "root/file").write_text("damaged")
    with builder(tmp_path) as child:
        assert line(child).startswith(f"layer {ID[:12]} in the cache is damaged")
        assert line(child) == "building"
        go_on(child)
        assert line(child) == "made"
    assert (tmp_path / "layers" / ID / "root/file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounting needs root and unshare")
def test_a_folder_on_a_read_only_file_system_can_be_used(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with builder(cache) as child:
        assert line(child) == "building"
        go_on(child)
        assert line(child) == "made"
        assert child.wait(30) == 0
    before = (cache / "layers" / ID / "layer.json").stat().st_mtime_ns
    time.sleep(0.02)
    read_only = f'mount --bind "{cache}" "{cache}" && mount -o remount,bind,ro "{cache}" && exec "$@"'
    wrapper = ("unshare", "-m", "sh", "-c", read_only, "sh")
    with builder(cache, ID, wrapper) as child:
        assert line(child) == "found"
        assert child.wait(30) == 0
    assert (cache / "layers" / ID / "layer.json").stat().st_mtime_ns == before
    argv = [*wrapper, sys.executable, "-c", BUILDER, str(cache), "2" * 64]
    failed = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert "is read-only: it cannot take the layer 222222222222" in failed.stderr.splitlines()[-1]
    assert "OSError" not in failed.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounting needs root and unshare")
def test_layers_of_a_read_only_folder_are_used_and_others_are_built_beside(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    with builder(shared) as child:
        assert line(child) == "building"
        go_on(child)
        assert line(child) == "made"
        assert child.wait(30) == 0
    read_only = f'mount --bind "{shared}" "{shared}" && mount -o remount,bind,ro "{shared}" && exec "$@"'
    wrapper = ("unshare", "-m", "sh", "-c", read_only, "sh")
    with builder(own, ID, wrapper, (shared,)) as child:
        assert line(child) == f"taken from {shared}"
        assert child.wait(30) == 0
    assert list((own / "layers").iterdir()) == []
    with builder(own, "2" * 64, wrapper, (shared,)) as child:
        assert line(child) == "building"
        go_on(child)
        assert line(child) == "made"
        assert child.wait(30) == 0
    assert [path.name for path in (own / "layers").iterdir()] == ["2" * 64]
