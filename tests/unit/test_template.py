"""``imagebuilder template``: one cell, every cell, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imagebuilder.cli.root import group
from imagebuilder.errors import CheckFailedError, UsageError
from imagebuilder.packer import render


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(group, ["template", *map(str, words)])


def test_one_cell(tmp_path: Path) -> None:
    result = run("--os", "debian", "--target", "gce", "--output", tmp_path / "gce")
    assert result.exit_code == 0, result.output
    assert "packer init . && packer build ." in result.output
    assert (tmp_path / "gce/sources.pkr.hcl").read_text().startswith('source "googlecompute" "node" {')
    assert (tmp_path / "gce/scripts/10-base.sh").stat().st_mode & 0o111


def test_json_says_what_was_written(tmp_path: Path) -> None:
    words = ("--os", "debian-13", "--target", "qemu", "--output", tmp_path / "f", "--json")
    (first, second) = (json.loads(run(*words).output) for _ in range(2))
    assert first["id"].startswith("debian-13-amd64-qemu-k")
    assert (first["folder"], first["builder"]) == (str(tmp_path / "f"), "qemu")
    assert (first["written"], second["written"]) == (True, False)


def test_all_cells_of_one_target_with_an_index(tmp_path: Path) -> None:
    result = run("--all", "--target", "hcloud", "--os", "debian", "--output", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.output.splitlines()]
    index = json.loads((tmp_path / "index.json").read_bytes())
    assert [row["id"] for row in index["folders"]] == [row["id"] for row in rows]
    assert {(row["os"], row["target"]) for row in rows} == {("debian", "hcloud")}
    assert len(rows) > 1
    text = (tmp_path / "README.md").read_text()
    for row in index["folders"]:
        assert (tmp_path / row["folder"] / "build.pkr.hcl").is_file()
        assert f"({row['folder']}/README.md)" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(("--os", "debian", "--target", "qemu", "--engine", "direct"), "is for Packer", id="engine"),
        pytest.param(("--os", "debian", "--target", "qemu", "--image", "busybox:1"), "OCI archives only", id="image"),
        pytest.param(("--os", "debian"), "--target must be given", id="target"),
        pytest.param(("--os", "debian", "--target", "qemu", "--source", "kubernetes=go-modules"), "only packages",
                     id="source"),
        pytest.param(("--all", "--os", "nowhere"), "no cell can be made", id="nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    result = run(*words, "--output", tmp_path / "f")
    assert isinstance(result.exception, UsageError)
    assert said in result.exception.message
    assert not (tmp_path / "f").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = run("--os", "debian", "--target", "qemu", "--output", tmp_path)
    assert isinstance(result.exception, UsageError)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_packer_would_refuse_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_values", lambda *_: {"nowhere": 1})
    result = run("--os", "debian", "--target", "qemu", "--output", tmp_path / "f")
    assert isinstance(result.exception, CheckFailedError)
    assert "nowhere is a value of a variable that is not declared" in result.exception.context
    assert not (tmp_path / "f").exists()
