"""apt against a local archive: archive, packages and keys are stand-ins; apt, gpg and mmdebstrap are real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from local_archive import EPOCH, Deb, Key, LocalArchive, missing_tools, publish, run
from local_servers import Site, listening, silent

from imagebuilder.content import sha256_bytes
from imagebuilder.direct.debcache import DebCache
from imagebuilder.direct.storeddebs import store_packages
from imagebuilder.errors import ImagebuilderError, ToolMissingError, UnreachableError, UnresolvableError, UntrustedError
from imagebuilder.events import Event, Stage, Tape
from imagebuilder.model import LockedPackage
from imagebuilder.process import RealRunner
from imagebuilder.sources.apt import AptFolder, Archive, ExtraRepository
from imagebuilder.sources.debfile import parts
from imagebuilder.sources.debs import make_repository
from imagebuilder.sources.download import Downloader

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}"),
]

DEBS = (
    Deb(name="base-files", fields={"Essential": "yes"}),
    Deb(name="apt", version="1:2.0+x~1-2"),
    Deb(name="lib", version="1.5", arch="all"),
    Deb(name="tool", version="3.1", fields={"Depends": "lib (>= 1)", "Recommends": "nice"}),
    Deb(name="nice"),
    Deb(name="broken", fields={"Depends": "lib (>= 9)"}),
)
INDEX = "/debian/dists/tiny/main/binary-amd64/Packages"
KUBERNETES = [Deb(name=name, version="1.35.8-1.1") for name in ("kubelet", "kubeadm", "kubectl")]


@pytest.fixture(scope="module")
def key() -> Iterator[Key]:
    made = Key("archive")
    yield made
    made.close()


@pytest.fixture(scope="module")
def other_key() -> Iterator[Key]:
    made = Key("other")
    yield made
    made.close()


@dataclass
class World:
    """A local archive that answers, the client's side of it, and what was said."""

    site: Site
    local: LocalArchive
    archive: Archive
    cache: Path
    store: Path
    log: Path
    tape: Tape

    def folder(self, **changes: Any) -> AptFolder:
        return AptFolder(self.cache / "tiny", replace(self.archive, **changes), RealRunner())

    def updated(self) -> AptFolder:
        folder = self.folder()
        folder.update(self.log)
        return folder

    def stage(self) -> Stage:
        return Stage(self.tape, "fetch")

    def fetch(self, folder: AptFolder, packages: tuple[LockedPackage, ...]) -> None:
        folder.fetch(packages, self.store, self.stage(), self.log)

    def left(self) -> list[str]:
        """Whatever is in the cache and the store."""
        return sorted(path.name for folder in (self.cache, self.store) if folder.exists() for path in folder.iterdir())


@pytest.fixture
def world(key: Key, tmp_path: Path) -> Iterator[World]:
    site = Site()
    local = publish(site, key, DEBS, tmp_path / "work")
    archive = Archive(
        name="debian", suite="tiny", arch="amd64", components=("main",), keyring=str(key.keyring), mirror=local.url
    )
    yield World(
        site=site, local=local, archive=archive, cache=tmp_path / "cache", store=tmp_path / "store",
        log=tmp_path / "log", tape=Tape(),
    )  # fmt: skip
    site.close()


def fails(kind: type[ImagebuilderError], message: str, context: str, hint: str, action: Any) -> None:
    """Run what must fail, and check class, message, evidence and the next step that is named."""
    with pytest.raises(ImagebuilderError) as caught:
        action()
    error = caught.value
    assert type(error) is kind, f"{error!r}\n{error.context}"
    assert message in error.message
    assert context in error.context
    assert hint in error.hint


def test_a_cache_that_was_moved_is_asked_where_it_is_now(world: World, tmp_path: Path) -> None:
    world.updated().solve(["tool"])
    world.cache = world.cache.rename(tmp_path / "elsewhere")
    packages = world.folder().solve(["apt", "nice"])
    assert [package.name for package in packages] == ["apt", "nice"]
    world.fetch(world.folder(), packages)
    assert {path.name for path in world.store.iterdir()} == {package.filename for package in packages}


def test_an_archive_is_asked_and_packages_are_fetched(world: World, tmp_path: Path) -> None:
    folder = world.updated()
    assert folder.epoch() == EPOCH
    assert folder.age() < 60
    assert "not for nodes" in folder.default_sources()
    packages = folder.solve(["?essential", "apt", "tool"])
    assert [(p.name, p.version, p.arch) for p in packages] == [
        ("apt", "1:2.0+x~1-2", "amd64"), ("base-files", "1.0", "amd64"), ("lib", "1.5", "all"), ("tool", "3.1", "amd64")
    ]  # fmt: skip
    assert packages[0].filename == "apt_1%3a2.0+x~1-2_amd64.deb"
    built = world.local.debs["tool_3.1_amd64.deb"]
    assert (packages[3].sha256, packages[3].size) == (sha256_bytes(built), len(built))
    world.fetch(folder, packages)
    assert world.left() == sorted([*(p.filename for p in packages), "tiny"])
    assert [event.done for event in world.tape.events if event.kind == "progress"] == [1, 2, 3, 4]
    assert Event(kind="progress", stage="fetch", done=4, total=4, unit="packages") in world.tape.events
    out = tmp_path / "repository"
    make_repository(packages, world.store, "tiny", out, RealRunner())
    assert (out / "tool_3.1_amd64.deb").stat().st_ino == (world.store / "tool_3.1_amd64.deb").stat().st_ino


@pytest.mark.parametrize("stored", [False, True], ids=["as-fetched", "stored"])
def test_a_made_repository_serves_apt(world: World, tmp_path: Path, stored: bool) -> None:
    folder = world.updated()
    packages = folder.solve(["apt", "tool"])
    world.fetch(folder, packages)
    out = tmp_path / "repository"
    make_repository(packages, world.store, "tiny", out, RealRunner())
    if stored:
        (scratch := tmp_path / "scratch").mkdir()
        store_packages(out, packages, "tiny", DebCache(tmp_path / "unpacked", scratch, RealRunner()))
        for package in packages:
            paths = (world.store / package.filename, out / package.filename)
            before, after = (RealRunner().run(["dpkg-deb", "--info", path], capture=True).stdout for path in paths)
            assert before.partition("\n")[2] == after.partition("\n")[2], "but for the size of its control archive"
            with paths[1].open("rb") as stream:
                assert parts(stream)["data"].compression == ""
    root = tmp_path / "root"
    for name in ("etc/apt/sources.list.d", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        (root / name).mkdir(parents=True)
    (root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{out} ./\n")
    (root / "status").touch()
    options = [
        "-o", f"Dir={root}", "-o", f"Dir::State::status={root}/status", "-o", "APT::Sandbox::User=root",
        "-o", "APT::Architecture=amd64", "-o", "APT::Architectures::=amd64",
    ]  # fmt: skip
    run("apt-get", *options, "update")
    said = run("apt-get", *options, "--print-uris", "-qq", "-y", "install", "tool", "apt=1:2.0+x~1-2").decode()
    assert sorted(line.split()[1] for line in said.splitlines()) == sorted(p.filename for p in packages)


def test_answers_are_remembered_with_the_index_and_present_packages_are_not_fetched(world: World) -> None:
    folder = world.updated()
    packages = folder.solve(["tool"])
    world.fetch(folder, packages)
    world.site.routes.clear()
    assert folder.solve(["tool"]) == packages
    world.fetch(folder, packages)


def test_find_takes_no_dependencies_and_does_not_mind_where_it_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt is silent about packages that lie in the working directory: the lock would miss them."""
    folder = world.updated()
    monkeypatch.chdir(tmp_path / "work")
    assert [p.name for p in folder.find(["tool"])] == ["tool"]
    assert [p.name for p in folder.solve(["tool"])] == ["lib", "tool"]


def test_an_index_of_another_hash(world: World) -> None:
    world.site.serve(INDEX, world.local.packages.replace(b"3.1", b"3.2"))
    fails(
        UntrustedError, f"{world.local.url} sent a file whose hash is not the one", "Hash Sum mismatch",
        "try again later, or name another mirror with --mirror", world.updated,
    )  # fmt: skip
    assert world.left() == []


def test_an_index_signed_by_another_key(world: World, other_key: Key) -> None:
    world.site.serve("/debian/dists/tiny/InRelease", other_key.clearsign(world.local.release))
    fails(
        UntrustedError, f"{world.local.url} has an index without a valid signature", "InRelease", "check the mirror",
        world.updated,
    )  # fmt: skip
    assert world.left() == []


def test_an_index_that_was_changed_after_signing(world: World, key: Key) -> None:
    signed = key.clearsign(world.local.release).replace(b"Origin: stand-in", b"Origin: attacker")
    world.site.serve("/debian/dists/tiny/InRelease", signed)
    fails(UntrustedError, "without a valid signature", "InRelease", "its key", world.updated)
    assert world.left() == []


def test_an_unsigned_index(world: World) -> None:
    for name in ("InRelease", "Release.gpg"):
        del world.site.routes[f"/debian/dists/tiny/{name}"]
    fails(UntrustedError, "without a valid signature", "is not signed", "check the mirror", world.updated)
    assert world.left() == []


def test_a_release_that_the_mirror_does_not_have(world: World) -> None:
    folder = world.folder(suite="nosuch")
    action = lambda: folder.update(world.log)  # noqa: E731
    fails(UnresolvableError, "does not have a file", "nosuch Release", "it must have this release", action)
    assert world.left() == []


def test_a_mirror_that_refuses(world: World) -> None:
    folder = world.folder(mirror="http://user:secret@127.0.0.1:1/debian")
    action = lambda: folder.update(world.log)  # noqa: E731
    fails(UnreachableError, "http://127.0.0.1:1/debian is out of reach", "refused", "--mirror", action)
    assert world.left() == []


def test_a_mirror_that_accepts_and_is_silent(world: World) -> None:
    """apt itself would ask twice, with its timeout each time: it is not even started."""
    with listening(silent) as url:
        folder = world.folder(mirror=url)
        fails(UnreachableError, "is out of reach", "within", "--mirror", lambda: folder.update(world.log))
    assert not world.log.exists()
    assert world.left() == []


def test_a_host_without_the_keyring(world: World) -> None:
    folder = world.folder(keyring="/nonexistent/archive.gpg")
    action = lambda: folder.update(world.log)  # noqa: E731
    fails(ToolMissingError, "/nonexistent/archive.gpg is not on this host", "", "imagebuilder doctor", action)
    assert world.left() == []


def test_a_failed_update_leaves_what_was_there(world: World) -> None:
    folder = world.updated()
    world.site.routes.clear()
    with pytest.raises(UnresolvableError):
        folder.update(world.log)
    assert world.left() == ["tiny"]
    assert [p.name for p in folder.find(["lib"])] == ["lib"]


def test_names_that_the_archive_does_not_have(world: World) -> None:
    folder = world.updated()
    text = "the archive of tiny does not have what was asked for"
    unknown = "Unable to locate package nosuch"
    fails(UnresolvableError, text, unknown, "apt-cache search", lambda: folder.solve(["tool", "nosuch"]))
    fails(UnresolvableError, text, unknown, "apt-cache search", lambda: folder.find(["nosuch"]))
    fails(UnresolvableError, text, "lib (>= 9)", "check the names", lambda: folder.solve(["broken"]))
    fails(UnresolvableError, text, "'7' for 'tool' was not found", "check", lambda: folder.find(["tool=7"]))


@pytest.mark.parametrize("same_size", [True, False], ids=["other-bytes", "cut-short"])
def test_a_package_that_is_not_the_one_in_the_index(world: World, same_size: bool) -> None:
    folder = world.updated()
    packages = folder.solve(["tool"])
    built = world.local.debs["tool_3.1_amd64.deb"]
    world.site.serve("/debian/pool/main/tool_3.1_amd64.deb", built[:-1] + b"?" if same_size else built[:-1])
    text = "the archive of tiny sent a file whose hash is not the one in its signed index"
    fails(UntrustedError, text, "tool_3.1_amd64.deb", "try again later", lambda: world.fetch(folder, packages))
    assert world.left() == ["tiny"]


def test_a_lock_of_other_bytes_than_the_archive_has_now(world: World) -> None:
    folder = world.updated()
    lib, tool = folder.solve(["tool"])
    locked = (lib, replace(tool, sha256="0" * 64))
    text = "tool_3.1_amd64.deb is not the file that the lock names"
    fails(UntrustedError, text, "expected sha256 0000", "run the command again", lambda: world.fetch(folder, locked))
    assert [name for name in world.left() if "tool" in name or name.startswith(".")] == []


def test_a_mirror_that_moved_on_after_the_lock(world: World) -> None:
    folder = world.updated()
    packages = folder.solve(["tool"])
    gone = tuple(replace(p, version="3.0", filename="tool_3.0_amd64.deb") for p in packages if p.name == "tool")
    fails(UnresolvableError, "does not have", "'3.0' for 'tool'", "--refresh", lambda: world.fetch(folder, gone))
    del world.site.routes["/debian/pool/main/tool_3.1_amd64.deb"]
    fails(UnresolvableError, "answers, but", "404  Not Found", "--refresh", lambda: world.fetch(folder, packages))
    elsewhere = AptFolder(world.cache / "pruned", world.archive, RealRunner())
    fails(UnresolvableError, "no longer has the index", "", "--refresh", lambda: world.fetch(elsewhere, packages))
    assert world.left() == ["tiny"]


def flat(world: World, key: Key, tmp_path: Path, **changes: Any) -> ExtraRepository:
    """A stand-in for pkgs.k8s.io: a flat repository with its key beside it."""
    made = publish(world.site, key, KUBERNETES, tmp_path / "k8s", suite="/", prefix="/k8s/v1.35/deb")
    key_url = world.site.serve("/k8s/v1.35/deb/Release.key", key.armored)
    repository = ExtraRepository(
        name="kubernetes", uri=f"{made.url}/", suite="/", components=(), key_url=key_url, fingerprint=key.fingerprint
    )
    return replace(repository, **changes)


def test_an_extra_repository_is_added_in_a_copy(world: World, other_key: Key, tmp_path: Path) -> None:
    folder = world.updated()
    added = folder.adding(flat(world, other_key, tmp_path), Downloader(), world.log)
    names = ["kubelet=1.35.8-*", "kubeadm"]
    assert [(p.name, p.version) for p in added.find(names)] == [("kubeadm", "1.35.8-1.1"), ("kubelet", "1.35.8-1.1")]
    packages = added.solve(["tool", *names])
    assert [p.name for p in packages] == ["kubeadm", "kubelet", "lib", "tool"]
    world.fetch(added, packages)
    assert (world.store / "kubelet_1.35.8-1.1_amd64.deb").is_file()
    assert added.epoch() == folder.epoch()
    with pytest.raises(UnresolvableError):
        folder.find(["kubelet"])


def test_an_extra_repository_with_another_key_than_expected(world: World, other_key: Key, tmp_path: Path) -> None:
    folder = world.updated()
    repository = flat(world, other_key, tmp_path, fingerprint="0" * 40)
    fails(
        UntrustedError, "Release.key is not the one that kubernetes must have", f"found    {other_key.fingerprint}",
        "[mirror.kubernetes] in imagebuilder.toml", lambda: folder.adding(repository, Downloader(), world.log),
    )  # fmt: skip
    assert world.left() == ["tiny"]


def test_an_extra_repository_whose_key_is_no_key(world: World, key: Key, other_key: Key, tmp_path: Path) -> None:
    folder = world.updated()
    repository = flat(world, other_key, tmp_path)
    for data, found in ((b"<html>no</html>", "no key"), (other_key.armored + key.armored, other_key.fingerprint)):
        world.site.serve("/k8s/v1.35/deb/Release.key", data)
        action = lambda: folder.adding(repository, Downloader(), world.log)  # noqa: E731
        fails(UntrustedError, "is not the one", found, "[mirror.kubernetes]", action)
    assert world.left() == ["tiny"]


def test_an_extra_repository_signed_by_another_key_than_it_shows(
    world: World, key: Key, other_key: Key, tmp_path: Path
) -> None:
    folder = world.updated()
    repository = flat(world, other_key, tmp_path, fingerprint=key.fingerprint)
    world.site.serve("/k8s/v1.35/deb/Release.key", key.armored)
    action = lambda: folder.adding(repository, Downloader(), world.log)  # noqa: E731
    fails(UntrustedError, f"{repository.uri} has an index without", "is not signed", "check the mirror", action)
    assert world.left() == ["tiny"]
    assert [p.name for p in folder.find(["tool"])] == ["tool"]
