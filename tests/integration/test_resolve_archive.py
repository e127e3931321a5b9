"""Resolver, lock file and fetcher end to end, with a tiny distribution of our own (see local_archive: a stand-in)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from local_archive import EPOCH, Deb, Key, LocalArchive, missing_tools, publish
from local_servers import Site

from imagebuilder.compat import load_compat
from imagebuilder.content import sha256_file
from imagebuilder.errors import IncompatibleError, UnreachableError, UnresolvableError, UntrustedError
from imagebuilder.events import Progress, Stage, Tape
from imagebuilder.fetch import Fetcher
from imagebuilder.locked import make_lock, take_locked
from imagebuilder.lockfile import LockFile, read_lock, text_of
from imagebuilder.model import BuildRequest
from imagebuilder.plan import BuildPlan, plan
from imagebuilder.process import RealRunner
from imagebuilder.profiles import load_profile
from imagebuilder.resolve import Lock, Resolver
from imagebuilder.sources.archive import inspect_archive
from imagebuilder.steps import load_steps
from imagebuilder.targets import load_target

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}"),
]

PROFILE = """
title = "Tiny"
family = "debian"
init = "systemd"
package_format = "deb"
default_release = "1"
architectures = ["amd64"]
hold = ["kubelet"]
kernel = {{ cloud = "linux", generic = "linux" }}
paths = {{ kubelet_defaults = "/etc/default/kubelet", cni_bin = "/opt/cni/bin" }}
packages = {{ base = ["init"], runtime = ["docker.io", "containerd"], tools = ["mkfs"] }}
[releases.1]
suite = "tiny"
eol = "2030-01-01"
containerd = "1.7.24"
[bootstrap]
keyring = "{keyring}"
components = ["main"]
[components.kubernetes]
sources = ["packages", "go-modules"]
packages = {{ packages = ["kubelet", "kubeadm", "kubectl"] }}
module = "kubernetes-{{minor}}"
programs = ["kubelet"]
[components.docker]
sources = ["distro", "docker-ce"]
packages = {{ docker-ce = ["docker-ce", "containerd.io"] }}
containerd = {{ docker-ce = "2.2.0" }}
[components.crictl]
sources = ["packages"]
packages = {{ packages = ["cri-tools"] }}
[components.cni]
sources = ["distro"]
packages = {{ distro = ["cni"] }}
[repositories.kubernetes]
uri = "https://pkgs.k8s.io/core:/stable:/v{{minor}}/deb/"
suite = "/"
key_url = "https://pkgs.k8s.io/core:/stable:/v{{minor}}/deb/Release.key"
fingerprint = "{zeros}"
[repositories.docker-ce]
uri = "https://download.docker.com/linux/{{os}}"
suite = "{{suite}}"
components = ["stable"]
key_url = "https://download.docker.com/linux/{{os}}/gpg"
fingerprint = "{zeros}"
"""
LIBC = {"Depends": "libc"}


def distribution(containerd: str) -> list[Deb]:
    return [
        Deb(name="base-files", fields={"Essential": "yes"}),
        Deb(name="apt", version="2.6", fields=LIBC),
        Deb(name="libc"),
        Deb(name="init", fields=LIBC),
        Deb(name="linux"),
        Deb(name="mkfs", fields={"Depends": "libc, libmkfs"}),
        Deb(name="libmkfs"),
        Deb(name="docker.io", version="26.1.5+dfsg1", fields={"Depends": "containerd, libc"}),
        Deb(name="containerd", version=containerd),
        Deb(name="cni"),
        Deb(name="jq", fields=LIBC),
        Deb(name="catatonit", files={"usr/bin/catatonit": b"\x7fELF a pause"}),
    ]


@pytest.fixture(scope="module")
def keys() -> Iterator[dict[str, Key]]:
    made = {name: Key(name) for name in ("tiny", "kubernetes", "docker-ce")}
    yield made
    for key in made.values():
        key.close()


@dataclass
class World:
    """A tiny distribution beside a pkgs.k8s.io and a download.docker.com, and a cache."""

    site: Site
    keys: dict[str, Key]
    tmp: Path
    mirrors: dict[str, str] = field(default_factory=dict)
    tape: Tape = field(default_factory=Tape)

    def serve(self, *, containerd: str = "1.7.24~ds1-6+b4", kubernetes: str = "1.35.8-1.1") -> None:
        key = self.keys["kubernetes"]
        for name in ("work", "k8s"):  # of an archive that this one takes the place of
            shutil.rmtree(self.tmp / name, ignore_errors=True)
        self.mirrors["tiny"] = publish(self.site, self.keys["tiny"], distribution(containerd), self.tmp / "work").url
        programs = [Deb(name=name, version=kubernetes, fields=LIBC) for name in ("kubelet", "kubeadm", "kubectl")]
        self.mirrors["kubernetes"] = self._extra(key, [*programs, Deb(name="cri-tools")], "/", "/k8s").url
        self.site.serve("/k8s/Release.key", key.armored)
        self.mirrors["registry.k8s.io"] = self.site.url  # has nothing

    def serve_docker(self) -> None:
        key = self.keys["docker-ce"]
        debs = [Deb(name="docker-ce", version="5:29.1.2-1"), Deb(name="containerd.io", version="2.2.0-2")]
        self.mirrors["docker-ce"] = self._extra(key, debs, "tiny", "/docker").url
        self.site.serve("/docker/gpg", key.armored)

    def _extra(self, key: Key, debs: list[Deb], suite: str, prefix: str) -> LocalArchive:
        return publish(self.site, key, debs, self.tmp / prefix[1:], suite=suite, prefix=prefix, component="stable")

    def plan(self, **changes: Any) -> BuildPlan:
        folder = self.tmp / "profiles"
        if not folder.exists():
            folder.mkdir()
            text = PROFILE.format(keyring=self.keys["tiny"].keyring, zeros="0" * 40)
            (folder / "tiny.toml").write_text(text)
        profile = load_profile("tiny", release="", arch="amd64", target="qemu", folder=folder)
        asked = {"keys": {name: key.fingerprint for name, key in self.keys.items()}, "mirrors": dict(self.mirrors)}
        request = BuildRequest(os="tiny", target="qemu", **{**asked, **changes})
        return plan(
            request, profile=profile, target=load_target("qemu"), compat=load_compat(), steps=load_steps()
        )  # fmt: skip

    def resolver(self, cache: str = "cache", **options: bool) -> Resolver:
        return Resolver(
            cache=self.tmp / cache, runner=RealRunner(), progress=Progress(self.tape), log=self.tmp / "log", **options
        )

    def resolve(self, wanted: BuildPlan, **options: bool) -> Lock:
        return self.resolver(**options).resolve(wanted)

    def lock(self, wanted: BuildPlan, cache: str = "cache") -> LockFile:
        """Write a lock file, and read it."""
        path = self.tmp / "imagebuilder.lock"
        path.write_text(text_of(make_lock(wanted, self.resolver(cache))))
        return read_lock(path)

    def take(self, locked: LockFile, wanted: BuildPlan, cache: str = "other", **options: bool) -> Lock:
        return take_locked(locked, wanted, self.resolver(cache, **options), "imagebuilder.lock")

    def fetcher(self, cache: str = "cache", **options: bool) -> Fetcher:
        return Fetcher(
            cache=self.tmp / cache, runner=RealRunner(), progress=Progress(self.tape), log=self.tmp / "log", **options
        )

    def remembered(self) -> list[Path]:
        return sorted((self.tmp / "cache/resolved").glob("*"))


@pytest.fixture
def world(keys: dict[str, Key], tmp_path: Path) -> Iterator[World]:
    made = World(site=Site(), keys=keys, tmp=tmp_path)
    yield made
    made.site.close()


def names(lock: Lock, layer: str) -> list[str]:
    return [package.name for package in lock.packages[layer]]


def test_everything_is_found_fetched_and_remembered(world: World) -> None:
    world.serve()
    wanted = world.plan(packages=("jq",))
    lock = world.resolve(wanted)
    assert lock.epoch == EPOCH
    assert lock.kubernetes == "1.35.8"
    assert {name: taken.kind for name, taken in lock.taken.items()} == {
        "kubernetes": "packages", "docker": "distro", "crictl": "packages", "cni": "distro"
    }  # fmt: skip
    assert names(lock, "base") == ["apt", "base-files", "init", "libc", "linux"]
    assert names(lock, "runtime") == ["cni", "containerd", "docker.io"]
    assert names(lock, "kubernetes") == ["cri-tools", "kubeadm", "kubectl", "kubelet"]
    assert names(lock, "site") == ["jq"]
    assert names(lock, "tools") == ["libmkfs", "mkfs"]
    assert names(lock, "images") == ["catatonit"]
    assert (lock.pause.kind, lock.pause.reference) == ("compose", "registry.k8s.io/pause:3.10.1")
    assert "kubernetes: from packages 1.35.8" in lock.notes
    given_up = [note for note in lock.notes if "given up" in note]
    assert len(given_up) == 1
    assert given_up[0].startswith("image registry.k8s.io/pause:3.10.1: registry given up")

    materials = world.fetcher().materials(wanted, lock)
    assert materials.payloads == {}
    assert inspect_archive(materials.pause.path).references == ("registry.k8s.io/pause:3.10.1",)
    with Progress(world.tape).stage("fetch") as stage:
        store = world.fetcher().packages(lock.packages["kubernetes"], wanted, lock, stage)
    assert all(sha256_file(store / p.filename) == p.sha256 for p in lock.packages["kubernetes"])

    world.site.routes.clear()  # from here on nobody answers
    assert world.resolve(wanted) == lock
    assert [event.cached for event in world.tape.events if event.kind == "done" and event.stage == "resolve"][-1]
    assert world.resolve(wanted, offline=True) == lock
    with Progress(world.tape).stage("fetch") as stage:
        world.fetcher(offline=True).packages(lock.packages["kubernetes"], wanted, lock, stage)
        with pytest.raises(UnreachableError, match="2 packages are not in the cache") as caught:
            world.fetcher(offline=True).packages(lock.packages["tools"], wanted, lock, stage)
    assert "mkfs_1.0_amd64.deb" in caught.value.context
    with pytest.raises(UnreachableError, match="nothing is known yet about this plan"):
        world.resolve(world.plan(), offline=True)
    with pytest.raises(UnresolvableError, match="does not have a file"):
        world.resolve(wanted, refresh=True)
    assert world.resolve(wanted) == lock  # the failure took nothing away


def test_docker_from_its_own_repository(world: World) -> None:
    world.serve()
    world.serve_docker()
    lock = world.resolve(world.plan(kubernetes="1.35", sources={"docker": "docker-ce"}))
    assert names(lock, "runtime") == ["cni", "containerd.io", "docker-ce"]
    assert lock.packages["runtime"][2].version == "5:29.1.2-1"
    assert lock.packages["runtime"][2].uri.startswith(f"{world.mirrors['docker-ce']}/pool/stable/")
    again = world.resolve(world.plan())  # another plan asks the same archive, without docker's repository
    assert names(again, "runtime") == ["cni", "containerd", "docker.io"]
    with Progress(world.tape).stage("fetch") as stage:  # and the first one's packages can still be fetched
        store = world.fetcher().packages(lock.packages["runtime"], world.plan(), lock, stage)
    assert (store / "docker-ce_5%3a29.1.2-1_amd64.deb").is_file()


def test_a_source_that_is_out_of_reach_is_given_up(world: World) -> None:
    world.serve()
    mirrors = {**world.mirrors, "kubernetes": "http://127.0.0.1:1/k8s"}
    with pytest.raises(UnreachableError, match="no source of crictl has it"):  # it has this one alone
        world.resolve(world.plan(mirrors=mirrors))
    notes = [event.text for event in world.tape.events if event.kind == "note"]
    assert notes[0].startswith("kubernetes: packages given up: ")
    assert notes[1] == "kubernetes: from go-modules 1.35.8"
    assert world.remembered() == []


def test_a_source_with_another_key_is_refused(world: World) -> None:
    """A key that is not the expected one is no reason to take another source: somebody is in between."""
    world.serve()
    with pytest.raises(UntrustedError, match="is not the one that kubernetes must have") as caught:
        world.resolve(world.plan(keys={}))
    assert caught.value.hint == "name a mirror with its own key: [mirror.kubernetes] in imagebuilder.toml"
    assert world.remembered() == []


@pytest.mark.parametrize("asked", ["1.35", "1.35.7"])
def test_versions_that_no_source_has(world: World, asked: str) -> None:
    world.serve(kubernetes="1.34.2-1.1")
    with pytest.raises(UnresolvableError, match="no source of kubernetes has it") as caught:
        world.resolve(world.plan(kubernetes=asked, sources={"kubernetes": "packages"}))
    found = "packages has kubelet 1.34.2, not 1.35" if asked == "1.35" else "does not have what was asked for"
    assert found in caught.value.context
    assert world.remembered() == []


def test_an_archive_with_another_containerd_than_the_profile_says(world: World) -> None:
    world.serve(containerd="1.5.9-1")
    with pytest.raises(IncompatibleError, match=r"this image has 1[.]5[.]9-1"):
        world.resolve(world.plan())
    assert world.remembered() == []


def test_a_broken_answer_is_asked_again(world: World) -> None:
    world.serve()
    lock = world.resolve(world.plan())
    (path,) = world.remembered()
    for data in (b"", b"{", json.dumps({**json.loads(path.read_bytes()), "packages": 1}).encode()):
        path.write_bytes(data)
        with pytest.raises(UnreachableError, match="nothing is known"):
            world.resolve(world.plan(), offline=True)
    assert world.resolve(world.plan()) == lock


def test_a_composed_image_from_a_changed_package_is_refused(world: World) -> None:
    world.serve()
    wanted = world.plan()
    lock = world.resolve(wanted)
    (package,) = lock.packages["images"]
    store = world.tmp / "cache/debs"
    store.mkdir()
    (store / package.filename).write_bytes(b"?" * package.size)  # of the right size: only its hash tells
    with pytest.raises(UntrustedError, match="is not the file that the lock names"):
        world.fetcher().materials(wanted, lock)
    assert list((world.tmp / "cache").glob("images/*")) == []
    world.fetcher().materials(wanted, lock)  # the hint says: run it again


def test_a_stage_is_told_how_far_it_is(world: World) -> None:
    world.serve()
    wanted = world.plan()
    lock = world.resolve(wanted)
    world.fetcher().packages(lock.packages["base"], wanted, lock, Stage(world.tape, "fetch"))
    assert [e.done for e in world.tape.events if e.stage == "fetch"] == list(range(1, len(lock.packages["base"]) + 1))


def exact(lock: Lock) -> dict[str, list[list[str]]]:
    return {layer: [package.exact for package in packages] for layer, packages in lock.packages.items()}


def test_what_was_locked_is_taken_on_another_machine_and_then_without_a_network(world: World) -> None:
    world.serve()
    world.serve_docker()
    wanted = world.plan(kubernetes="1.35", packages=("jq",), sources={"docker": "docker-ce"})
    lock = world.resolve(wanted)
    locked = world.lock(wanted)
    assert text_of(locked) == text_of(world.lock(wanted, "elsewhere")), "the same answers, the same bytes"
    assert "127.0.0.1" not in text_of(locked)
    assert str(world.tmp) not in text_of(locked)

    taken = world.take(locked, wanted)
    assert exact(taken) == exact(lock)
    assert (taken.taken, taken.pause, taken.images, taken.epoch) == (lock.taken, lock.pause, lock.images, lock.epoch)
    assert taken.apt_sources == lock.apt_sources
    fetcher = world.fetcher("other")
    fetcher.all_packages(wanted, taken)
    assert fetcher.materials(wanted, taken).pause.id == world.fetcher().materials(wanted, lock).pause.id

    world.site.routes.clear()  # from here on nobody answers
    offline = world.take(locked, wanted, offline=True)
    assert exact(offline) == exact(lock)
    assert world.fetcher("other", offline=True).materials(wanted, offline).pause.path.is_file()
    assert exact(world.take(locked, wanted)) == exact(lock), "nobody is asked for what the cache has"


def test_what_the_archive_has_no_longer_is_named_before_anything_is_built(world: World) -> None:
    world.serve()
    wanted = world.plan()
    locked = world.lock(wanted)
    world.serve(containerd="1.7.30-1", kubernetes="1.35.9-1.1")
    with pytest.raises(UnresolvableError, match="4 things are not as locked; nothing was built") as caught:
        world.take(locked, wanted)
    assert sorted(caught.value.context.splitlines()) == [
        "containerd 1.7.24~ds1-6+b4: the archive has 1.7.30-1",
        "kubeadm 1.35.8-1.1: the archive has 1.35.9-1.1",
        "kubectl 1.35.8-1.1: the archive has 1.35.9-1.1",
        "kubelet 1.35.8-1.1: the archive has 1.35.9-1.1",
    ]
    assert "imagebuilder lock" in caught.value.hint
    assert not (world.tmp / "other/debs").exists()


def test_an_index_that_is_older_than_the_lock_is_asked_again(world: World) -> None:
    world.serve(containerd="1.7.22-1")
    world.resolver("other").resolve(world.plan())
    world.serve()
    locked = world.lock(world.plan())
    taken = world.take(locked, world.plan())
    assert {p.version for p in taken.packages["runtime"] if p.name == "containerd"} == {"1.7.24~ds1-6+b4"}
    world.fetcher("other").all_packages(world.plan(), taken)


def test_what_has_another_hash_is_not_trusted(world: World) -> None:
    world.serve()
    wanted = world.plan()
    locked = world.lock(wanted)
    other = {layer: list(packages) for layer, packages in locked.packages.items()}
    other["base"][0] = other["base"][0].model_copy(update={"sha256": "0" * 64})
    changed = locked.model_copy(update={"packages": other})
    with pytest.raises(UntrustedError, match="1 thing is not as locked") as caught:
        world.take(changed, wanted)
    assert caught.value.context == "apt 2.6: has another sha256 now"


def test_a_package_of_the_right_size_that_is_another_is_found_out_when_it_is_used(world: World) -> None:
    world.serve()
    wanted = world.plan()
    locked = world.lock(wanted)
    taken = world.take(locked, wanted)
    (pause,) = taken.packages["images"]
    world.fetcher("other").all_packages(wanted, taken)
    (world.tmp / "other/debs" / pause.filename).write_bytes(b"?" * pause.size)
    with pytest.raises(UntrustedError, match="is not the file that the lock names"):
        world.fetcher("other").materials(wanted, taken)
    again = world.take(locked, wanted)  # as the hint says
    world.fetcher("other").all_packages(wanted, again)
    world.fetcher("other").materials(wanted, again)


def test_programs_and_archives_of_the_users_are_held_to_their_hash(world: World) -> None:
    world.serve()
    folder = world.tmp / "programs"
    folder.mkdir()
    kubelet = folder / "kubelet"
    kubelet.write_text("#!/bin/sh\necho Kubernetes v1.35.8\n")
    kubelet.chmod(0o755)
    (world.tmp / "app.tar").write_bytes(b"an archive")
    wanted = world.plan(sources={"kubernetes": f"file:{folder}"}, images=(str(world.tmp / "app.tar"),))
    locked = world.lock(wanted)
    assert [program.name for program in locked.sources["kubernetes"].programs] == ["kubelet"]
    assert world.take(locked, wanted).images[0].source == str(world.tmp / "app.tar")
    kubelet.write_text("#!/bin/sh\necho Kubernetes v1.35.8 # changed\n")
    (world.tmp / "app.tar").write_bytes(b"another")
    with pytest.raises(UntrustedError, match="2 things are not as locked") as caught:
        world.take(locked, wanted)
    assert [line.partition(":")[0] for line in caught.value.context.splitlines()] == ["kubernetes", "image app.tar"]


def test_a_lock_taken_while_another_process_asks_says_that_it_waits(world: World) -> None:
    world.serve()
    holder = (
        "import sys, time; from pathlib import Path; from imagebuilder.content import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(1)"
    )
    path = world.tmp / "cache/locks/resolve"
    child = subprocess.Popen([sys.executable, "-c", holder, str(path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        world.resolve(world.plan())
    finally:
        child.kill()
        child.communicate()
    notes = [event.text for event in world.tape.events if event.kind == "note"]
    assert notes[0] == "another bake asks for versions: waiting for it"
