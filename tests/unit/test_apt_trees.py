"""apt in a tree: what it sees of the host, and what of its environment; nothing is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_runner import FakeRunner

from imagebuilder import bake
from imagebuilder.cells import plan_request
from imagebuilder.direct import apttree
from imagebuilder.direct.apttree import AptTrees
from imagebuilder.direct.layers import Layer
from imagebuilder.errors import CacheError, ToolMissingError
from imagebuilder.events import Progress
from imagebuilder.model import BuildRequest
from imagebuilder.sources.apt import AptFolder, Archive, folder_key
from imagebuilder.sources.asker import HostApt

ARCHIVE = Archive(name="debian", suite="tiny", arch="amd64", components=("main",), keyring="/k", mirror="http://m/d")


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AptTrees:
    for name in apttree.PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("imagebuilder.userns.mapped", lambda: False)
    (mirror := tmp_path / "mirror").mkdir()
    made = AptTrees(tmp_path / "cache", FakeRunner(), Progress(), shown=[mirror])
    made._trees[folder_key(ARCHIVE)] = Layer(id="x", path=tmp_path / "layer", info={})
    return made


def ran(trees: AptTrees, *, network: bool = False, cwd: Path | None = None) -> list[str]:
    env = {"APT_CONFIG": "/c/apt.conf", "TMPDIR": "/c/scratch"}
    with trees.asking(["apt-get", "update"], ARCHIVE, network=network, cwd=cwd, env=env) as words:
        return words


def binds(words: list[str]) -> dict[str, str]:
    return {words[at + 2]: word for at, word in enumerate(words) if word in ("bind", "robind")}


def test_apt_sees_its_folders_and_mirrors_and_nothing_else(trees: AptTrees, tmp_path: Path) -> None:
    store = tmp_path / "cache/debs/incoming"
    words = ran(trees, cwd=store)
    found = binds(words)
    found.pop(apttree.AUTHORITIES, None)
    cache = tmp_path / "cache"
    assert found == {str(cache / "apt"): "bind", str(store): "bind", str(tmp_path / "mirror"): "robind"}
    assert words[words.index("-C") + 1] == str(store)
    assert words.index("/tmp") < words.index(str(cache / "apt")), "else it hides what is in there"
    assert words[words.index("overlay") + 2] == str(tmp_path / "layer/root")
    assert list((cache / "apt").iterdir()) == []


def test_only_what_fetches_has_a_network(trees: AptTrees) -> None:
    assert "--net" in ran(trees)
    words = ran(trees, network=True)
    assert "--net" not in words
    assert "network" in words


def test_proxies_of_the_host_are_passed_on_and_its_folder_for_temporary_files_is_not(
    trees: AptTrees, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:2")
    words = ran(trees, network=True)
    inside = words[words.index("-i") + 1 :]
    assert {"APT_CONFIG=/c/apt.conf", "http_proxy=http://proxy:1", "https_proxy=http://proxy:2"} <= set(inside)
    assert not [word for word in inside if word.startswith("TMPDIR")]
    assert inside[-4:] == ["apt-get", "-o", f"Acquire::https::CAInfo={apttree.AUTHORITIES}", "update"]


def test_a_cache_that_a_tree_cannot_show_is_refused() -> None:
    with pytest.raises(CacheError, match="/dev/shm/cache") as caught:
        AptTrees(Path("/dev/shm/cache"), FakeRunner(), Progress()).tree_for(ARCHIVE)
    assert "--cache-dir" in caught.value.hint


def test_a_tree_needs_a_mirror(trees: AptTrees, tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    nowhere = replace(ARCHIVE, mirror="", keyring=str(keyring))
    folder = AptFolder(tmp_path / "apt", nowhere, FakeRunner(), trees)
    with pytest.raises(ToolMissingError, match="no mirror of debian is named") as caught:
        folder.update(tmp_path / "log")
    assert "--mirror debian=URL" in caught.value.hint


def test_the_hosts_apt_is_asked_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mirrors = {"debian": f"file://{tmp_path}", "kubernetes": "http://mirror.example"}
    plan = plan_request(BuildRequest(os="debian", target="qemu", mirrors=mirrors))
    for program, kind in ((Path("/usr/bin/apt-get"), HostApt), (None, AptTrees)):
        monkeypatch.setattr("imagebuilder.process.find", lambda name, program=program: program)
        asker = bake.asker_for(plan, cache=tmp_path / "cache", runner=FakeRunner(), progress=Progress())
        assert isinstance(asker, kind)
    assert isinstance(asker, AptTrees)
    assert asker._shown == [tmp_path]
    assert not (tmp_path / "cache").exists()
