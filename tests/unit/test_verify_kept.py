"""What a bake does about its verification: it is proven once, and what is not right fails it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.__main__ import main
from imagebuilder.bake import BakeResult
from imagebuilder.cli import bake as verb
from imagebuilder.cli import verify as verifying
from imagebuilder.cli.settings import Settings
from imagebuilder.config import Budgets
from imagebuilder.errors import CheckFailedError
from imagebuilder.model import BuildRequest
from imagebuilder.verify.kept import DOCUMENT, PAGE, keep, key, passed_before
from imagebuilder.vm import accel

SHA = "a" * 64
ASKED = key(boot=True, budgets=Budgets(), waivers={})
REQUEST = BuildRequest(os="debian", target="qemu")


def kept(folder: Path, *, passed: bool = True, sha256: str = SHA, asked: str = ASKED) -> None:
    keep(folder, {"passed": passed, "sha256": sha256}, b"<p>page", asked)


def result(folder: Path, *, unchanged: bool = True, artifact: bool = True) -> BakeResult:
    manifest = {"artifact": {"sha256": SHA, "file": "disk.qcow2"}}
    return BakeResult(
        folder=folder, artifact=folder / "disk.qcow2" if artifact else None, manifest=manifest, unchanged=unchanged
    )


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The requests that were verified; every one passes."""
    asked: list[Any] = []
    monkeypatch.setattr(verifying, "run", lambda settings, request, **_: asked.append(request))
    monkeypatch.setattr(accel, "can_boot", lambda arch: True)
    monkeypatch.chdir(tmp_path)
    return asked


def prove(folder: Path, level: verb.Level | None = None, **what: Any) -> verb.Level:
    request = REQUEST if not what.pop("bare", False) else BuildRequest(os="debian", target="qemu", bare=True)
    return verb.prove(Settings(cache=folder / "cache"), request, result(folder, **what), level, as_json=False)


def test_a_new_image_is_booted_where_a_guest_can_run(proven: list[Any], tmp_path: Path) -> None:
    assert prove(tmp_path, unchanged=False) == "full"
    assert [(one.path, one.boot) for one in proven] == [(tmp_path, True)]


def test_without_guests_the_files_are_checked_and_that_is_said(
    proven: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accel, "can_boot", lambda arch: False)
    assert prove(tmp_path, unchanged=False) == "offline"
    assert [one.boot for one in proven] == [False]
    assert "no guest can run here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "level"),
    [
        pytest.param({"artifact": False, "unchanged": False}, None, id="it-is-in-a-cloud"),
        pytest.param({"bare": True, "unchanged": False}, None, id="half-a-node"),
        pytest.param({"unchanged": False}, "none", id="nobody-wants-to-know"),
    ],
)
def test_what_is_not_proven(proven: list[Any], tmp_path: Path, what: dict[str, Any], level: verb.Level | None) -> None:
    assert prove(tmp_path, level, **what) == "none"
    assert proven == []


@pytest.mark.parametrize(
    ("state", "times"),
    [
        pytest.param({}, 0, id="as-it-passed"),
        pytest.param({"passed": False}, 1, id="it-failed"),
        pytest.param({"sha256": "b" * 64}, 1, id="another-artifact"),
        pytest.param({"asked": key(boot=False, budgets=Budgets(), waivers={})}, 1, id="not-booted-then"),
        pytest.param({"asked": key(boot=True, budgets=Budgets(packages=9), waivers={})}, 1, id="other-budgets"),
        pytest.param({"asked": key(boot=True, budgets=Budgets(), waivers={"x": "y"})}, 1, id="other-waivers"),
    ],
)
def test_an_unchanged_image_is_proven_once(
    proven: list[Any], tmp_path: Path, state: dict[str, Any], times: int
) -> None:
    kept(tmp_path, **state)
    assert prove(tmp_path) == "full"
    assert len(proven) == times


@pytest.mark.parametrize("text", ["", "[]", "{", '{"passed": true}', '{"passed": 1, "sha256": "%s", "key": "%s"}'])
def test_a_damaged_document_proves_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / DOCUMENT).write_text(text.replace("%s", SHA, 1).replace("%s", ASKED, 1))
    assert not passed_before(tmp_path, SHA, ASKED)


def test_what_is_kept_is_whole(tmp_path: Path) -> None:
    kept(tmp_path)
    assert json.loads((tmp_path / DOCUMENT).read_bytes()) == {"passed": True, "sha256": SHA, "key": ASKED}
    assert (tmp_path / PAGE).read_bytes() == b"<p>page"
    assert passed_before(tmp_path, SHA, ASKED) and not passed_before(tmp_path / "elsewhere", SHA, ASKED)


def test_the_users_file_is_asked_for_budgets(proven: list[Any], tmp_path: Path) -> None:
    (tmp_path / "imagebuilder.toml").write_text('[budgets]\npackages = 7\n[waivers]\nx = "known"\n')
    prove(tmp_path, unchanged=False)
    assert [(one.budgets, one.waivers) for one in proven] == [(Budgets(packages=7), {"x": "known"})]


def test_one_that_is_not_right_fails_the_bake(
    proven: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CheckFailedError("not right")

    monkeypatch.setattr(verifying, "run", fail)
    with pytest.raises(CheckFailedError):
        prove(tmp_path, unchanged=False)


@pytest.mark.parametrize(
    ("words", "keeps"),
    [
        pytest.param([], True, id="all-of-it"),
        pytest.param(["--firmware", "bios"], False, id="one-firmware"),
        pytest.param(["--os", "debian"], False, id="as-another-system"),
    ],
)
def test_a_folder_keeps_only_the_whole_proof(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], keeps: bool
) -> None:
    kept_in: list[Path | None] = []
    monkeypatch.setattr(verifying, "run", lambda settings, request, **how: kept_in.append(how["keep_in"]))
    assert main(["verify", str(tmp_path), *words]) == 0
    assert kept_in == [tmp_path if keeps else None]
