"""An ordinary user bakes the bytes that root bakes, and leaves nothing behind that is not his."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import otheruser
import pytest
import samebake
import smallstack
from otheruser import User
from samebake import different

from imagebuilder import process
from imagebuilder.direct.layers import LayerStore
from imagebuilder.errors import CacheError, CommandError
from imagebuilder.process import RealRunner, Result

MISSING = [program for program in (*otheruser.PROGRAMS, "mmdebstrap") if not process.find(program)]
pytestmark = [
    pytest.mark.bake,
    pytest.mark.skipif(os.geteuid() != 0, reason="one of the two users is root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)}"),
]
SLOW = pytest.mark.skipif("CI" not in os.environ, reason="takes a minute")
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(samebake.__file__)
SEEN = (ROOT, Path(sys.prefix), Path(sys.base_prefix), smallstack.CACHE)
PYTHON = {"PYTHONPATH": str(ROOT), "IMAGEBUILDER_TEST_CACHE": str(smallstack.CACHE), "PYTHONDONTWRITEBYTECODE": "1"}
HERE = {"TZ": "UTC", "LC_ALL": "C.UTF-8"}
ELSEWHERE = {"TZ": "Pacific/Kiritimati", "LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with otheruser.other_user() as found:
        yield found


@dataclass(frozen=True, kw_only=True)
class Baked:
    """What a bake has left: the sums of all formats, the tree, and where the files are."""

    out: Path

    @property
    def sums(self) -> dict[str, str]:
        return dict(json.loads((self.out / "sums.json").read_text()))

    @property
    def tree(self) -> dict[str, str]:
        return dict(json.loads((self.out / "tree.json").read_text()))


@pytest.fixture(scope="module", params=["fast", pytest.param("mmdebstrap", marks=SLOW)])
def builder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def of_root(builder: str, tmp_path_factory: pytest.TempPathFactory) -> Baked:
    """Baked by root with one core, under a narrow umask."""
    smallstack.locked()
    folder = tmp_path_factory.mktemp("root")
    words = [sys.executable, PROGRAM, folder / "cache", folder / "out", builder, "1"]
    shell = ["/bin/sh", "-c", 'umask 077; exec "$@"', "sh", *words]
    RealRunner().run(shell, env={**PYTHON, **HERE}, timeout=300)
    return Baked(out=folder / "out")


@pytest.fixture(scope="module")
def of_user(builder: str, user: User, tmp_path_factory: pytest.TempPathFactory) -> Baked:
    """Baked by the user with two cores, elsewhere, with an empty cache of his."""
    smallstack.locked()
    folder = user.home / builder
    words = [sys.executable, PROGRAM, folder / "cache", folder / "out", builder, "2"]
    shell = ["/bin/sh", "-c", f'umask 002; mkdir {folder}; exec "$@"', "sh", *words]
    user.run(shell, tmp_path_factory.mktemp("stash"), SEEN, env={**PYTHON, **ELSEWHERE})
    return Baked(out=folder / "out")


def test_every_file_of_the_tree_is_the_same(of_root: Baked, of_user: Baked) -> None:
    assert different(of_root.tree, of_user.tree) == []
    assert len(of_root.tree) > 3000
    assert "security.capability" in of_root.tree["/srv/setuid"]
    assert "posix_acl" in of_root.tree["/srv/0"]
    assert of_root.tree["/srv/65534"].startswith("100600 65534:65534 ")
    assert "/etc/goes/one" in of_root.tree
    assert [path for path in of_root.tree if path.startswith(("/etc/goes/a", "/etc/goes/b", "/dev/"))] == []


def test_every_format_has_the_same_bytes(of_root: Baked, of_user: Baked) -> None:
    assert of_user.sums == of_root.sums
    assert tuple(of_user.sums) == samebake.EVERY_FORMAT


def test_a_difference_is_named_by_the_file(of_root: Baked) -> None:
    changed = dict(of_root.tree)
    was = changed["/etc/both"]
    changed["/etc/both"] = was.replace("100644", "100640")
    changed["/etc/more"] = was
    del changed["/srv/hard"]
    assert different(of_root.tree, changed) == [
        f"/etc/both: {was} | {changed['/etc/both']}",
        f"/etc/more: not there | {was}",
        f"/srv/hard: {of_root.tree['/srv/hard']} | not there",
    ]


def cache_command(user: User, stash: Path, cache: Path, *words: str, check: bool = True) -> Result:
    argv = [sys.executable, "-m", "imagebuilder", "cache", *words, "--cache-dir", cache]
    return user.run(argv, stash, SEEN, env=PYTHON, check=check)


def test_neither_takes_the_layers_of_the_other(of_root: Baked, of_user: Baked, user: User, tmp_path: Path) -> None:
    theirs = of_user.out.parent / "cache"
    before = sorted(path.name for path in (theirs / "layers").iterdir())
    with pytest.raises(CacheError, match="another user's") as caught:
        LayerStore(theirs)
    assert "--cache-dir" in caught.value.hint
    assert sorted(path.name for path in (theirs / "layers").iterdir()) == before
    shared = Path(shutil.copytree(of_root.out.parent / "cache", of_user.out.parent / "of-root", ignore=_all_but_locks))
    RealRunner().run(["chmod", "-R", "a+rX", shared])  # root's umask was narrow
    with pytest.raises(CommandError) as refused:
        cache_command(user, tmp_path, shared, "list")
    assert "another user's" in refused.value.context


def _all_but_locks(folder: str, names: list[str]) -> set[str]:
    """Leave out what is in a cache's folders: they alone are looked at."""
    return set(names) - {"layers", "tmp", "locks"}


def test_the_user_removes_all_that_his_bake_has_made(of_user: Baked, user: User, tmp_path: Path) -> None:
    cache = of_user.out.parent / "cache"
    shutil.rmtree(cache / "provision")  # of the test's own; a cache has none
    (cache / "log").unlink()
    owners = {path.lstat().st_uid for path in (cache / "layers").rglob("*")}
    assert len(owners) > 4 and 0 not in owners, "they are mapped, and root's files are the user's"
    (tmp_path / "verify").mkdir()
    assert "none is damaged" in cache_command(user, tmp_path / "verify", cache, "verify").stdout
    (tmp_path / "prune").mkdir()
    cache_command(user, tmp_path / "prune", cache, "prune", "--all")
    assert list((cache / "layers").iterdir()) == list((cache / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "words", [("bake", "--os", "debian", "--target", "qemu"), ("doctor",)], ids=lambda words: words[0]
)
def test_a_user_without_subordinate_ids_is_told_what_to_do(user: User, tmp_path: Path, words: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "imagebuilder", *words]
    hidden = "mount --bind /dev/null /etc/subuid"
    with pytest.raises(CommandError) as caught:
        user.run(argv, tmp_path, SEEN, env=PYTHON, first=hidden)
    assert "sudo usermod --add-subuids 100000-165535" in caught.value.context
    assert not (user.home / "out").exists()
