"""What a bake refuses before it does anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.bake import BakeOptions, bake
from imagebuilder.cells import plan_request
from imagebuilder.errors import CacheError, PrivilegeError, ToolMissingError
from imagebuilder.events import Progress
from imagebuilder.model import BuildRequest
from imagebuilder.process import RealRunner

PLAN = plan_request(BuildRequest(os="debian", target="qemu"))


def attempt(folder: Path, cache: Path | None = None) -> None:
    options = BakeOptions(output=folder / "out", cache=cache or folder / "cache")
    bake(PLAN, options=options, runner=RealRunner(), progress=Progress())


def test_another_user_than_root_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PrivilegeError) as caught:
        attempt(tmp_path)
    assert "doctor" in caught.value.hint
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(process, "find", lambda program: None)
    with pytest.raises(ToolMissingError, match="unshare") as caught:
        attempt(tmp_path)
    assert caught.value.hint.startswith("apt-get install")
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_a_cache_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be used") as caught:
        attempt(tmp_path, cache=tmp_path / "file" / "cache")
    assert "--cache-dir" in caught.value.hint
