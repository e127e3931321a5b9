"""The request: the command line over imagebuilder.toml."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagebuilder.cli.request import Wishes, make_request
from imagebuilder.errors import UsageError

KEY = "de15b14486cd377b9e876e1a234654da9a296436"
FILE = f"""
os = "debian"
release = "12"
target = "raw"
arch = "arm64"
kubernetes = "1.36"
package = ["jq"]
overlay = ["site"]
image = ["registry.example/a:1"]
[source]
docker = "distro"
kubernetes = "file:bin"
[mirror]
debian = {{ url = "http://file/debian", key = "{KEY}" }}
kubernetes = "http://file/kubernetes"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an imagebuilder.toml, below the one where the command is typed."""
    folder = tmp_path / "project"
    for name in ("site", "bin"):
        (folder / name).mkdir(parents=True)
    (folder / "imagebuilder.toml").write_text(FILE)
    return folder


def test_the_file_alone(project: Path) -> None:
    request = make_request(Wishes(), project)
    assert (request.os, request.release, request.target, request.arch) == ("debian", "12", "raw", "arm64")
    assert (request.kubernetes, request.engine, request.packages) == ("1.36", "auto", ("jq",))
    assert request.overlays == (project / "site",)
    assert request.sources == {"docker": "distro", "kubernetes": f"file:{project}/bin"}
    assert request.mirrors == {"debian": "http://file/debian", "kubernetes": "http://file/kubernetes"}
    assert request.keys == {"debian": KEY.upper()}


def test_the_command_line_wins_and_lists_are_appended(project: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "a.sh").touch(0o755)
    (tmp_path / "b.toml").touch()
    request = make_request(
        Wishes(
            os="debian-13", target="qemu", arch="amd64", kubernetes="1.35", package=("tmux",), overlay=(Path("more"),),
            script=(Path("a.sh"),), image=("b.toml", "nginx"), source=(("docker", "docker-ce"),),
            mirror=(("debian", "http://typed"),), file=Path("project/imagebuilder.toml"), engine="direct",
        ),
        tmp_path,
    )  # fmt: skip
    assert (request.os, request.release, request.target, request.arch) == ("debian", "13", "qemu", "amd64")
    assert (request.kubernetes, request.engine) == ("1.35", "direct")
    assert request.packages == ("jq", "tmux")
    assert request.overlays == (project / "site", tmp_path / "more")
    assert request.scripts == (tmp_path / "a.sh",)
    assert request.images == ("registry.example/a:1", str(tmp_path / "b.toml"), "nginx")
    assert request.sources["docker"] == "docker-ce"
    assert request.mirrors["debian"] == "http://typed"
    assert request.keys == {}, "the file's key belongs to the file's mirror"


@pytest.mark.parametrize(
    ("typed", "os", "release"),
    [
        pytest.param("", "debian", "12", id="file"),
        pytest.param("debian", "debian", "12", id="same-os"),
        pytest.param("debian-13", "debian", "13", id="typed-release"),
        pytest.param("ubuntu", "ubuntu", "", id="other-os"),
    ],
)
def test_release(project: Path, typed: str, os: str, release: str) -> None:
    request = make_request(Wishes(os=typed), project)
    assert (request.os, request.release) == (os, release)


def test_without_a_file(tmp_path: Path) -> None:
    request = make_request(Wishes(os="debian", target="qemu"), tmp_path)
    assert (request.release, request.arch, request.kubernetes, request.keys) == ("", "amd64", "", {})


def test_source_folder_is_relative_to_where_it_was_typed(tmp_path: Path) -> None:
    wishes = Wishes(os="debian", target="qemu", source=(("kubernetes", "file:bin"),))
    with pytest.raises(UsageError) as caught:
        make_request(wishes, tmp_path)
    assert caught.value.message == f"--source {tmp_path}/bin: there is no such folder"
    (tmp_path / "bin").mkdir()
    assert make_request(wishes, tmp_path).sources == {"kubernetes": f"file:{tmp_path}/bin"}


def test_a_script_that_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "a.sh").touch(0o644)
    with pytest.raises(UsageError) as caught:
        make_request(Wishes(os="debian", target="qemu", script=(Path("a.sh"),)), tmp_path)
    assert caught.value.message.endswith(f"a.sh: is not executable (chmod +x {tmp_path / 'a.sh'})")


def test_unreadable_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError) as caught:
        make_request(Wishes(os="debian", target="qemu", overlay=(Path("."),)), tmp_path)
    assert caught.value.message.endswith("cannot be read")
    assert caught.value.context == ""
