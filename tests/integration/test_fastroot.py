"""The fast root tree beside mmdebstrap's, of the same packages: what differs is in one short list, with its reason.

Of mmdebstrap's tree only what is compared is kept, in the tests' own cache, for as long as the packages and what makes
it stay the same: nothing but the fast tree is made anew every time.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import smallstack
import tree_compare
from tree_compare import differences, facts, listed, stanzas

from imagebuilder import process
from imagebuilder.cells import plan_request
from imagebuilder.content import canonical_json, content_id, sha256_file, write_atomic
from imagebuilder.direct import bootstrap as bootstrap_module
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
ALWAYS = (f"{DATABASE}/triggers/File", "etc/shells")
SORTED = (*ALWAYS, f"{DATABASE}/diversions", f"{DATABASE}/statoverride")
USERS = ("passwd", "group")  # in etc, compared by name


def is_stated(path: str, release: str) -> bool:
    stated = (*STATED, *(STATED_12 if release == "12" else ()))
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in stated)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Packages of a release: those of a node's base layer, or others by name."""

    release: str
    names: tuple[str, ...] = ()


CASES = {
    "13": Case(release="13"),
    "12": Case(release="12"),
    # Programs that a node has not: other users, services, triggers and questions.
    "13-web": Case(release="13", names=("apache2", "cron", "rsyslog")),
}


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
class Looks:
    """What is compared of a tree."""

    files: dict[str, str]
    records: dict[str, list[str]]
    users: dict[str, list[list[str]]]
    stanzas: dict[str, dict[str, str]]
    times: dict[str, int]


def look(root: Path) -> Looks:
    return Looks(
        files=facts(root), records={name: records(root / name) for name in SORTED},
        users={name: users(root / "etc" / name) for name in USERS}, stanzas=stanzas(root), times=times(root),
    )  # fmt: skip


def records(path: Path) -> list[str]:
    """Return a file's lines, or a diversion's three: what is diverted, where to, and for whom."""
    size = 3 if path.name == "diversions" else 1
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted("\n".join(lines[start : start + size]) for start in range(0, len(lines), size))


def users(path: Path) -> list[list[str]]:
    """Return names, homes and shells, or names and members: all but the numbers."""
    return sorted([words[0], *words[4:]] for words in (line.split(":") for line in path.read_text().splitlines()))


def times(root: Path) -> dict[str, int]:
    """Return when each file was changed that is as its package brought it."""
    return {
        name: (root / name).lstat().st_mtime_ns
        for name in listed(root)
        if not (root / name).is_symlink() and (root / name).is_file()
    }


@dataclass(frozen=True, kw_only=True)
class Trees:
    """The same packages, twice: what mmdebstrap's tree looks like, and the fast one."""

    release: str
    packages: tuple[LockedPackage, ...]
    mmdebstrap: Looks
    fast: Looks
    root: Path

    @property
    def work(self) -> Path:
        return self.root.parent


def make_trees(name: str, work: Path) -> Trees:
    case, runner = CASES[name], RealRunner()
    plan = plan_request(BuildRequest(os="debian", release=case.release, target="qemu"))
    suite = plan.profile.suite
    packages = locked(suite, case.names or plan.layer("base").packages, runner)
    make_repository(packages, smallstack.CACHE / "debs", suite, work / "repository", runner)
    oracle = mmdebstraps(name, packages, suite, work, runner)
    build(packages, work, work / "fast", work / "log")
    fast = look(work / "fast")
    return Trees(release=case.release, packages=packages, mmdebstrap=oracle, fast=fast, root=work / "fast")


def mmdebstraps(
    name: str, packages: tuple[LockedPackage, ...], suite: str, work: Path, runner: RealRunner
) -> Looks:  # fmt: skip
    """Return what mmdebstrap makes of these packages, as it was found once."""
    makers = [sha256_file(Path(str(module.__file__))) for module in (bootstrap_module, tree_compare)]
    version = runner.run(["mmdebstrap", "--version"], capture=True).stdout
    key = content_id([[package.exact for package in packages], makers, sha256_file(Path(__file__)), version])
    path = smallstack.CACHE / f"mmdebstrap-{name}.json"
    if path.is_file():
        known = json.loads(path.read_bytes())
        if known.pop("key") == key:
            return Looks(**known)
    root = work / "mmdebstrap"
    root.mkdir()
    with Progress().stage("mmdebstrap") as stage:
        bootstrap(
            packages, repository=work / "repository", suite=suite, arch="amd64", root=root, runner=runner,
            stage=stage, log=work / "log",
        )  # fmt: skip
    found = look(root)
    remove_tree(root)
    write_atomic(path, canonical_json({"key": key, **asdict(found)}))
    return found


def build(packages: tuple[LockedPackage, ...], work: Path, root: Path, log: Path) -> None:
    root.mkdir()
    with Progress().stage("fast") as stage:
        fast_root(
            packages, repository=work / "repository", unpacked=work / "unpacked", scratch=work, root=root,
            runner=RealRunner(), stage=stage, log=log,
        )  # fmt: skip


Make = Callable[[str], Trees]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Make the trees of a case, those of each once; they are gigabytes, and nobody keeps them."""
    made: dict[str, Trees] = {}

    def once(name: str) -> Trees:
        if name not in made:
            made[name] = make_trees(name, tmp_path_factory.mktemp(f"trees-{name}"))
        return made[name]

    yield once
    for trees in made.values():
        remove_tree(trees.work)


@pytest.fixture(
    params=[
        pytest.param("13", id="debian-13"),
        pytest.param("12", id="debian-12", marks=pytest.mark.skipif("CI" not in os.environ, reason="takes minutes")),
        pytest.param("13-web", id="other-packages"),
    ],
)
def trees(request: pytest.FixtureRequest, make: Make) -> Trees:
    return make(request.param)


@pytest.fixture
def small(make: Make) -> Trees:
    return make("13-web")


def test_files_modes_owners_links_contents_and_attributes_are_mmdebstraps(trees: Trees) -> None:
    found = differences(trees.mmdebstrap.files, trees.fast.files)
    assert [str(item) for item in found if not is_stated(item.path, trees.release)] == []
    assert found, "the builder's own settings are in one of them, or nothing was compared"


def test_what_may_be_in_another_order_is_the_same_in_any(trees: Trees) -> None:
    assert all(trees.fast.records[name] for name in ALWAYS)
    assert trees.fast.records == trees.mmdebstrap.records
    assert trees.fast.users == trees.mmdebstrap.users


def test_dpkg_says_the_same_of_every_package(trees: Trees) -> None:
    assert trees.fast.stanzas == trees.mmdebstrap.stanzas
    assert {name: stanza["Version"] for name, stanza in trees.fast.stanzas.items()} == {
        package.name: package.version for package in trees.packages
    }
    assert {stanza["Status"] for stanza in trees.fast.stanzas.values()} == {"install ok installed"}


def test_a_packages_own_files_have_the_same_times(trees: Trees) -> None:
    slow, fast = trees.mmdebstrap.times, trees.fast.times
    assert len(fast) > 3000
    assert {path for path in fast if fast[path] != slow[path]} == set()


def test_a_second_tree_from_the_cache_is_the_first(small: Trees) -> None:
    work = small.work
    tar = max((work / "unpacked").glob("*.tar"), key=lambda path: path.stat().st_size)
    spoilt = bytearray(tar.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    tar.write_bytes(spoilt)  # noticed by its hash, and made again
    again = work / "again"
    build(small.packages, work, again, work / "log")
    assert [str(item) for item in differences(small.fast.files, facts(again))] == []
    assert not (work / "fastroot").exists()
    remove_tree(again)


def test_the_engine_makes_a_base_layer_with_it(tmp_path: Path) -> None:
    engine = smallstack.make_engine(tmp_path)
    (job,) = smallstack.jobs(smallstack.Want(layers=1))
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


def test_configuring_that_fails_is_told_and_leaves_nothing(small: Trees, tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    script = tmp_path / "script.sh"
    script.write_text("#!/bin/sh\necho no good >&2\nexit 3\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CommandError) as caught:
        patch.setattr(fastroot, "SCRIPT", script)
        build(small.packages, small.work, tmp_path / "root", tmp_path / "log")
    assert "no good" in caught.value.context
    assert not (small.work / "fastroot").exists()
    assert Path("/proc/self/mountinfo").read_text() == before
    remove_tree(tmp_path / "root")


def test_what_fails_beside_dpkg_fails_the_layer(make: Make, tmp_path: Path) -> None:
    node, script = make("13"), tmp_path / "script.sh"
    folder = "/run/imagebuilder/beside"
    script.write_text(f"#!/bin/sh\necho false > {folder}/job\necho {folder}/job > {folder}/queue\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CommandError) as caught:
        patch.setattr(fastroot, "BESIDE", script)
        build(node.packages, node.work, tmp_path / "root", tmp_path / "log")
    assert "what went on beside dpkg failed" in caught.value.context
    remove_tree(tmp_path / "root")


def test_what_is_in_the_cache_is_told_from_what_is_not(small: Trees, tmp_path: Path) -> None:
    smallest = min(small.packages, key=lambda package: package.size)
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
