"""The fast root tree beside mmdebstrap's, of the same packages: what differs is in one short list, with its reason."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import smallstack
from tree_compare import differences, listed, stanzas

from imagebuilder import process
from imagebuilder.cells import plan_request
from imagebuilder.content import canonical_json
from imagebuilder.direct import fastroot
from imagebuilder.direct.bootstrap import bootstrap
from imagebuilder.direct.debcache import DebCache
from imagebuilder.direct.fastroot import fast_root
from imagebuilder.direct.layers import remove_tree
from imagebuilder.errors import CommandError
from imagebuilder.events import Progress
from imagebuilder.model import BuildRequest, LockedPackage
from imagebuilder.process import RealRunner
from imagebuilder.sources.apt import AptFolder, Archive, folder_key
from imagebuilder.sources.debs import make_repository

MISSING = [program for program in ("mmdebstrap", "unshare", "dpkg-deb") if not process.find(program)]
pytestmark = [
    pytest.mark.bake,
    pytest.mark.skipif(os.geteuid() != 0, reason="the direct engine needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)}"),
]

# Every path that may differ, and why. Nothing else may.
STATED = {
    "etc/apt/apt.conf.d/99mmdebstrap": "mmdebstrap's settings for the build",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap": "mmdebstrap's settings for the build",
    "etc/apt/sources.list": "written by the engine",
    "etc/.resolv.conf.systemd-resolved.bak": "the builder's own resolv.conf, which mmdebstrap lends",
    "etc/ssh/ssh_host_*": "keys of the build: the fast tree has none, and a step removes mmdebstrap's",
    "etc/passwd*": "the order in which users are made: numbers and lines (owners are compared by name)",
    "etc/group*": "as above",
    "etc/shadow*": "as above",
    "etc/gshadow*": "as above",
    "etc/systemd/system/timers.target.wants/*": "links to the same unit through /lib, or through /usr/lib",
    "run/*": "of the running system",
    "var/cache/apt/*": "apt made it; it was not run for the fast tree",
    "var/lib/apt/*": "as above",
    "var/cache/debconf/*-old": "the state one package earlier",
    "var/lib/dpkg/*-old": "as above",
    "var/lib/dpkg/diversions": "the order of lines",
    "var/lib/dpkg/statoverride": "as above",
    "var/lib/dpkg/triggers/File": "as above",
}
STATED_12 = {
    "etc/shells": "the order of lines: mmdebstrap's tree got its merged /usr in between",
    "usr/bin/uncompress": "a hard link, as its package has it: merging /usr afterwards made a copy",
}
DATABASE = "var/lib/dpkg"
SORTED = (f"{DATABASE}/diversions", f"{DATABASE}/statoverride", f"{DATABASE}/triggers/File", "etc/shells")
USERS = ("passwd", "group")  # in etc, compared by name


def is_stated(path: str, release: str) -> bool:
    stated = (*STATED, *(STATED_12 if release == "12" else ()))
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in stated)


def locked(suite: str, names: tuple[str, ...], runner: RealRunner) -> tuple[LockedPackage, ...]:
    """Return the exact packages of a base layer, their files in the tests' own cache."""
    cache = smallstack.CACHE
    archive = Archive(name="debian", suite=suite, arch="amd64", components=("main",), keyring=smallstack.KEYRING)
    folder = AptFolder(cache / "apt" / folder_key(archive), archive, runner)
    if folder.age() > 86400:
        folder.update(cache / "log")
    packages = folder.solve(["?essential", "apt", *names])
    with Progress().stage("fetch") as stage:
        folder.fetch(packages, cache / "debs", stage, cache / "log")
    return packages


@dataclass(frozen=True, kw_only=True)
class Trees:
    """The same packages, twice."""

    release: str
    packages: tuple[LockedPackage, ...]
    mmdebstrap: Path
    fast: Path
    log: Path


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("13", id="debian-13"),
        pytest.param("12", id="debian-12", marks=pytest.mark.skipif("CI" not in os.environ, reason="takes minutes")),
    ],
)
def trees(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trees:
    runner, work = RealRunner(), tmp_path_factory.mktemp("trees")
    plan = plan_request(BuildRequest(os="debian", release=request.param, target="qemu"))
    suite, log = plan.profile.suite, work / "log"
    packages = locked(suite, plan.layer("base").packages, runner)
    make_repository(packages, smallstack.CACHE / "debs", suite, work / "repository", runner)
    slow, fast = work / "mmdebstrap", work / "fast"
    for root in (slow, fast):
        root.mkdir()
    with Progress().stage("mmdebstrap") as stage:
        bootstrap(
            packages, repository=work / "repository", suite=suite, arch="amd64", root=slow, runner=runner,
            stage=stage, log=log,
        )  # fmt: skip
    build(packages, work, fast, log)
    return Trees(release=request.param, packages=packages, mmdebstrap=slow, fast=fast, log=log)


def build(packages: tuple[LockedPackage, ...], work: Path, root: Path, log: Path) -> None:
    with Progress().stage("fast") as stage:
        fast_root(
            packages, repository=work / "repository", unpacked=work / "unpacked", scratch=work, root=root,
            runner=RealRunner(), stage=stage, log=log,
        )  # fmt: skip


def test_files_modes_owners_links_contents_and_attributes_are_mmdebstraps(trees: Trees) -> None:
    found = differences(trees.mmdebstrap, trees.fast)
    assert [str(item) for item in found if not is_stated(item.path, trees.release)] == []
    assert found, "the builder's own settings are in one of them, or nothing was compared"


def test_what_may_be_in_another_order_is_the_same_in_any(trees: Trees) -> None:
    for name in SORTED:
        # A diversion is three lines: what is diverted, where to, and for whom.
        size = 3 if name.endswith("diversions") else 1
        slow, fast = (records(root / name, size) for root in (trees.mmdebstrap, trees.fast))
        assert fast
        assert fast == slow
    for name in USERS:
        slow, fast = (sorted(users(root / "etc" / name)) for root in (trees.mmdebstrap, trees.fast))
        assert fast == slow


def records(path: Path, size: int) -> list[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted("\n".join(lines[start : start + size]) for start in range(0, len(lines), size))


def users(path: Path) -> list[tuple[str, ...]]:
    """Return names, homes and shells, or names and members: all but the numbers."""
    return [(words[0], *words[4:]) for words in (line.split(":") for line in path.read_text().splitlines())]


def test_dpkg_says_the_same_of_every_package(trees: Trees) -> None:
    slow, fast = stanzas(trees.mmdebstrap), stanzas(trees.fast)
    assert fast == slow
    assert {name: stanza["Version"] for name, stanza in fast.items()} == {
        package.name: package.version for package in trees.packages
    }
    assert {stanza["Status"] for stanza in fast.values()} == {"install ok installed"}


def test_a_packages_own_files_have_the_same_times(trees: Trees) -> None:
    slow, fast = (times(root) for root in (trees.mmdebstrap, trees.fast))
    assert len(fast) > 5000
    assert {path for path in fast if fast[path] != slow[path]} == set()


def times(root: Path) -> dict[str, int]:
    """Return when each file was changed that is as its package brought it."""
    return {
        name: (root / name).lstat().st_mtime_ns
        for name in listed(root)
        if not (root / name).is_symlink() and (root / name).is_file()
    }


def test_a_second_tree_from_the_cache_is_the_first(trees: Trees, tmp_path: Path) -> None:
    work = trees.fast.parent
    tar = max((work / "unpacked").glob("*.tar"), key=lambda path: path.stat().st_size)
    spoilt = bytearray(tar.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    tar.write_bytes(spoilt)  # noticed by its hash, and made again
    again = work / "again"
    again.mkdir()
    build(trees.packages, work, again, trees.log)
    assert [str(item) for item in differences(trees.fast, again)] == []
    assert not (work / "fastroot").exists()
    remove_tree(again)


def test_the_engine_makes_a_base_layer_with_it(tmp_path: Path) -> None:
    engine = smallstack.make_engine(tmp_path)
    job = replace(smallstack.jobs(smallstack.Want(layers=1))[0], fast=True)
    with engine.store:
        (layer,) = engine.build([job])
    assert sorted(path.name for path in layer.path.iterdir()) == ["layer.json", "root", "volumes"]
    assert (layer.root / "etc/both").read_text() == "lower\n"  # by a step of the layer
    assert not (layer.root / "usr/sbin/policy-rc.d").exists()
    assert {name: stanza["Status"] for name, stanza in stanzas(layer.root).items()} == {
        package.name: "install ok installed" for package in job.packages
    }
    kept = {path.stem for path in (tmp_path / "debs/unpacked").glob("*.tar")}
    assert kept == {package.sha256 for package in job.packages}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_configuring_that_fails_is_told_and_leaves_nothing(trees: Trees, tmp_path: Path) -> None:
    packages, log = trees.packages, tmp_path / "log"
    before = Path("/proc/self/mountinfo").read_text()
    script = tmp_path / "script.sh"
    script.write_text("#!/bin/sh\necho no good >&2\nexit 3\n")
    root = tmp_path / "root"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CommandError) as caught:
        patch.setattr(fastroot, "SCRIPT", script)
        build(packages, trees.fast.parent, root, log)
    assert "no good" in caught.value.context
    assert not (trees.fast.parent / "fastroot").exists()
    assert Path("/proc/self/mountinfo").read_text() == before
    remove_tree(root)


def test_what_is_in_the_cache_is_told_from_what_is_not(trees: Trees, tmp_path: Path) -> None:
    smallest = min(trees.packages, key=lambda package: package.size)
    cache = DebCache(tmp_path / "unpacked", tmp_path, RealRunner())
    path = smallstack.CACHE / "debs" / smallest.filename
    first = cache.get(path, smallest.sha256)
    before = first.data.stat().st_ino
    assert cache.get(path, smallest.sha256).data.stat().st_ino == before
    spoil: tuple[Callable[[Path], object], ...] = (
        lambda tar: tar.write_bytes(tar.read_bytes()[:-1]),
        lambda tar: tar.with_suffix(".json").write_bytes(b"[]"),
        lambda tar: tar.with_suffix(".json").write_bytes(canonical_json({"size": 1, "sha256": "x"})),
        lambda tar: tar.unlink(),
    )
    whole = first.data.read_bytes()
    for change in spoil:
        change(first.data)
        assert cache.get(path, smallest.sha256).data.read_bytes() == whole
    assert sorted(item.suffix for item in (tmp_path / "unpacked").iterdir()) == [".json", ".tar"]
