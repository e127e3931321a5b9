"""diskimage-builder as a peer of the bench: what is left behind when it fails, or cannot be had."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench import dib
from imagebuilder.errors import ToolMissingError
from imagebuilder.process import RealRunner


def loops_of(image: Path) -> list[str]:
    argv: list[str | Path] = ["losetup", "--noheadings", "--output", "NAME", "--associated", image]
    return RealRunner().run(argv, capture=True).stdout.split()


def attach(image: Path) -> None:
    image.parent.mkdir(parents=True)
    image.write_bytes(bytes(1 << 20))
    RealRunner().run(["losetup", "--find", image])


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("losetup"), reason="loop devices need root and losetup")
@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="the kernel has no loop devices")
def test_its_loop_devices_are_detached_and_no_others_when_it_fails(tmp_path: Path) -> None:
    others, its = tmp_path / "others/image0.raw", tmp_path / "work" / dib.SCRATCH / "dib_image.x/image0.raw"
    attach(others)
    try:
        with pytest.raises(ZeroDivisionError), dib.loops_detached(tmp_path / "work"):
            attach(its)
            assert len(loops_of(its)) == 1
            raise ZeroDivisionError
        assert loops_of(its) == []
        assert len(loops_of(others)) == 1
    finally:
        for device in (*loops_of(others), *loops_of(its)):
            RealRunner().run(["losetup", "--detach", device])


def test_an_index_without_it_is_one_error_and_nothing_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ToolMissingError, match="package index") as caught:
        dib.install(tmp_path)
    assert dib.NAME in caught.value.context
    assert dib.version(tmp_path) == {}
