"""Resolving with strict stand-ins for programs and the network: which source is taken, and what is remembered."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_runner import Failed, FakeRunner

from imagebuilder import resources
from imagebuilder.cells import plan_request
from imagebuilder.content import content_id, sha256_bytes
from imagebuilder.errors import (
    DataError,
    ImagebuilderError,
    IncompatibleError,
    UnreachableError,
    UnresolvableError,
    UntrustedError,
    UsageError,
)
from imagebuilder.events import Progress, Tape
from imagebuilder.fetch import archive_path
from imagebuilder.images import load_image
from imagebuilder.locked import make_lock, take_locked
from imagebuilder.lockfile import LockFile, text_of
from imagebuilder.model import BuildRequest, ModuleBuild
from imagebuilder.plan import BuildPlan
from imagebuilder.resolve import MAX_AGE, PAUSE_RECIPE, Lock, Resolver, forget, recipe_of
from imagebuilder.sources import apt
from imagebuilder.sources.download import Response

SHA = "0123456789abcdef" * 4
NEEDS = {"docker-ce": ("containerd.io",), "docker.io": ("containerd", "runc")}
KEY = "https://pkgs.k8s.io/core:/stable:/v1.35/deb/Release.key"
RELEASE = "https://dl.k8s.io/release"
BINARIES = f"{RELEASE}/v1.35.8/bin/linux/amd64"
FINGERPRINT = "DE15B14486CD377B9E876E1A234654DA9A296436"


@dataclass
class FakeDownloader:
    """Answers the addresses that it was told; a registry and all others in ``silent`` do not answer."""

    pages: dict[str, bytes | ImagebuilderError] = field(default_factory=dict)
    silent: tuple[str, ...] = ("https://pkgs.k8s.io/", "https://dl.k8s.io/", "https://registry.k8s.io/",
                               "https://download.docker.com/")  # fmt: skip
    asked: list[str] = field(default_factory=list)

    def probe(self, url: str) -> None:
        self.asked.append(url)

    def get_bytes(
        self, url: str, *, max_size: int, headers: Mapping[str, str] | None = None, method: str = "GET",
        allowed: tuple[int, ...] = (),
    ) -> Response:  # fmt: skip
        self.asked.append(url)
        page = self.pages.get(url)
        if page is None and url.startswith(self.silent):
            page = UnreachableError(f"{url.split('/')[2]} does not answer")
        assert page is not None, f"nobody said what this answers: {url}"
        if isinstance(page, ImagebuilderError):
            raise page
        return Response(url=url, status=200, headers={"content-length": str(len(page))}, body=page)


@dataclass
class World:
    """A resolver for one cache, with an index of yesterday's apt that is good enough."""

    cache: Path
    versions: dict[str, str] = field(default_factory=dict)
    net: FakeDownloader = field(default_factory=FakeDownloader)
    tape: Tape = field(default_factory=Tape)
    runner: FakeRunner = field(init=False)

    def __post_init__(self) -> None:
        self.versions |= {"containerd": "1.7.24~ds1-6", "containerd.io": "2.2.0-1", "kubelet": "1.35.8-1.1"}
        self.runner = FakeRunner(
            {
                ("mmdebstrap",): self.made, ("update",): "",
                ("gencaches",): "", ("install",): self.install, ("download",): self.download, ("show",): self.show,
                ("--version",): "Kubernetes v1.35.8",
            }
        )  # fmt: skip

    def made(self, words: list[str]) -> str:
        """What mmdebstrap leaves behind."""
        root = Path(next(word for word in words if word.startswith("/") and "apt" in word))
        lists = root / "var/lib/apt/lists"
        lists.mkdir(parents=True)
        (lists / "m_InRelease").write_text("Date: Sat, 15 Aug 2026 08:00:00 UTC\n")
        (root / "etc/apt").mkdir(parents=True)
        (root / "etc/apt/sources.list").write_text("deb http://mirror.example/debian trixie main\n")
        return ""

    def install(self, words: list[str]) -> str:
        names = words[words.index("install") + 1 :]
        more = [need for name in names for need in NEEDS.get(name, ())]
        return self.lines([name for name in (*names, *more) if not name.startswith("?")])

    def download(self, words: list[str]) -> str:
        return self.lines(words[words.index("download") + 1 :])

    def show(self, words: list[str]) -> str:
        stanza = "Package: {}\nVersion: {}\nArchitecture: amd64\nSHA256: " + SHA + "\nDescription: x\n more\n"
        return "\n".join(
            stanza.format(name, self.versions.get(name, "1.0")) for name in words[words.index("show") + 1 :]
        )

    def lines(self, names: list[str]) -> str:
        plain = dict.fromkeys(name.partition("=")[0] for name in names)
        quoted = {name: self.versions.get(name, "1.0").replace(":", "%3a") for name in plain}
        return "".join(f"'http://m/{n}' {n}_{v}_amd64.deb 7 SHA256:{SHA}\n" for n, v in quoted.items())

    def resolver(self, **options: bool) -> Resolver:
        return Resolver(
            cache=self.cache, runner=self.runner, progress=Progress(self.tape), log=self.cache / "log",
            downloader=self.net, **options,  # type: ignore[arg-type]
        )  # fmt: skip

    def resolve(self, wanted: BuildPlan, **options: bool) -> Lock:
        return self.resolver(**options).resolve(wanted)

    def lock(self, wanted: BuildPlan) -> LockFile:
        """Return the lock file of a plan, and then forget what was asked."""
        resolver = self.resolver()
        made = LockFile.model_validate_json(text_of(make_lock(wanted, resolver)))
        self.net.asked.clear()
        return made

    def take(self, locked: LockFile, wanted: BuildPlan) -> Lock:
        return take_locked(locked, wanted, self.resolver(), "imagebuilder.lock")

    def installs(self) -> list[list[str]]:
        return [words[words.index("install") + 1 :] for words in self.runner.commands if "install" in words]

    def notes(self) -> list[str]:
        return [event.text for event in self.tape.events if event.kind == "note"]

    def remembered(self) -> Path:
        (path,) = (self.cache / "resolved").glob("*")
        return path


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("imagebuilder.process.require", lambda program, *, package: Path("/usr/bin", program))
    monkeypatch.setattr("imagebuilder.process.find", lambda program: None)  # no apt-config: no proxy of this host
    monkeypatch.setattr("imagebuilder.resolve.gomodules.check_reachable", lambda module, **_: None)
    monkeypatch.setattr("imagebuilder.locked.gomodules.identity", lambda module, **_: (module.digest[::-1], "go1.26"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("imagebuilder.sources.openpgp.fingerprints", lambda keys: [FINGERPRINT])
    return World(cache=tmp_path / "cache")


def wanted(**changes: Any) -> BuildPlan:
    made = plan_request(BuildRequest(**{"os": "debian", "target": "qemu", **changes}))
    keyring = made.profile.bootstrap.model_copy(update={"keyring": __file__})  # a file that every host has
    return dataclasses.replace(made, profile=made.profile.model_copy(update={"bootstrap": keyring}))


# --- which source is taken


def test_sources_are_tried_in_order_and_each_that_is_given_up_is_told(world: World) -> None:
    lock = world.resolve(wanted())
    assert list(lock.notes) == world.notes()
    assert list(lock.notes) == [
        "kubernetes: packages given up: pkgs.k8s.io does not answer",
        "kubernetes: binaries given up: dl.k8s.io does not answer",
        "kubernetes: from go-modules 1.35.8",
        "docker: from distro",
        "crictl: from go-modules " + lock.taken["crictl"].version,
        "cni: from go-modules " + lock.taken["cni"].version,
        "image registry.k8s.io/pause:3.10.1: registry given up: registry.k8s.io does not answer",
    ]
    assert lock.kubernetes == "1.35.8"
    assert lock.taken["kubernetes"].module == "kubernetes-1.35"
    assert (lock.pause.kind, lock.pause.packages) == ("compose", ("catatonit",))
    assert [p.name for p in lock.packages["images"]] == ["catatonit"]


def test_the_first_that_answers_is_taken_and_no_other_is_asked(world: World) -> None:
    world.net.pages[KEY] = b"a key"
    lock = world.resolve(wanted())
    assert (lock.taken["kubernetes"].kind, lock.kubernetes) == ("packages", "1.35.8")
    assert [p.name for p in lock.packages["kubernetes"]] == ["kubeadm", "kubectl", "kubelet"]
    assert not [url for url in world.net.asked if "dl.k8s.io" in url]
    assert lock.apt_folder.startswith("trixie-amd64-")
    assert "-kubernetes-" in lock.apt_folder  # a folder of its own: others do not see this repository


def test_release_binaries_are_locked_with_their_hashes(world: World) -> None:
    world.net.pages[f"{RELEASE}/stable-1.35.txt"] = b"v1.35.8\n"
    for program in ("kubelet", "kubeadm", "kubectl"):
        world.net.pages[f"{BINARIES}/{program}.sha256"] = SHA.encode()
        world.net.pages[f"{BINARIES}/{program}"] = b"a program"
    taken = world.resolve(wanted()).taken["kubernetes"]
    assert (taken.kind, taken.version) == ("binaries", "1.35.8")
    assert [(file.name, file.sha256, file.size) for file in taken.files] == [
        (name, SHA, 9) for name in ("kubelet", "kubeadm", "kubectl")
    ]


def test_a_forced_source_is_not_left(world: World) -> None:
    with pytest.raises(UnreachableError, match="no source of kubernetes has it") as caught:
        world.resolve(wanted(sources={"kubernetes": "packages"}))
    assert caught.value.context == "packages: pkgs.k8s.io does not answer"
    assert caught.value.hint == "--source kubernetes=KIND"
    assert world.notes() == []
    assert not (world.cache / "resolved").exists()


def test_a_key_that_is_not_the_expected_one_ends_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another source would hide that somebody is in between."""
    world.net.pages[KEY] = b"a key"
    monkeypatch.setattr("imagebuilder.sources.openpgp.fingerprints", lambda keys: ["0" * 40])
    with pytest.raises(UntrustedError, match="is not the one that kubernetes must have") as caught:
        world.resolve(wanted())
    assert caught.value.context == f"expected {FINGERPRINT}\nfound    {'0' * 40}"
    assert "[mirror.kubernetes]" in caught.value.hint
    (folder,) = (world.cache / "apt").iterdir()
    assert "kubernetes" not in folder.name


def test_a_mirror_has_its_own_address_for_the_key_and_its_own_fingerprint(world: World) -> None:
    world.net.pages["http://m/k8s/Release.key"] = b"a key"
    with pytest.raises(UntrustedError):
        world.resolve(wanted(mirrors={"kubernetes": "http://m/k8s"}, keys={"kubernetes": "1" * 40}))
    lock = world.resolve(wanted(mirrors={"kubernetes": "http://m/k8s/"}, keys={"kubernetes": FINGERPRINT}))
    assert lock.taken["kubernetes"].kind == "packages"


@pytest.mark.parametrize(
    ("kubelet", "asked", "good"),
    [("1.35.8-1.1", "1.35", True), ("1.35.8-1.1", "1.35.8", True), ("1.34.2-1.1", "1.35", False)],
)
def test_packages_must_be_of_the_minor_that_was_asked_for(world: World, kubelet: str, asked: str, good: bool) -> None:
    world.net.pages[KEY] = b"a key"
    world.versions["kubelet"] = kubelet
    plan = wanted(kubernetes=asked, sources={"kubernetes": "packages"})
    if good:
        assert world.resolve(plan).kubernetes == "1.35.8"
        names = next(words for words in world.runner.commands if "download" in words and "catatonit" not in words)[-3:]
        assert names == [name if asked == "1.35" else f"{name}=1.35.8-*" for name in ("kubelet", "kubeadm", "kubectl")]
        return
    with pytest.raises(UnresolvableError) as caught:
        world.resolve(plan)
    assert caught.value.context == "packages: packages has kubelet 1.34.2, not 1.35"
    assert caught.value.hint == "--kubernetes 1.34.2, or another source"


def test_the_wrapper_modules_build_one_patch_release(world: World) -> None:
    with pytest.raises(UnresolvableError) as caught:
        world.resolve(wanted(kubernetes="1.35.7"))
    assert caught.value.context.splitlines() == [
        "packages: pkgs.k8s.io does not answer", "binaries: dl.k8s.io does not answer",
        "go-modules: the wrapper module builds 1.35.8, not 1.35.7",
    ]  # fmt: skip
    assert caught.value.hint == "--kubernetes 1.35.8, or another source"


def test_docker_given_up_for_the_distribution_installs_only_the_latters(world: World) -> None:
    plan = wanted(kubernetes="1.35", sources={"docker": "docker-ce"})
    plan = dataclasses.replace(plan, sources={**plan.sources, "docker": ("docker-ce", "distro")})
    lock = world.resolve(plan)
    assert [p.name for p in lock.packages["runtime"]] == ["containerd", "docker-cli", "docker.io", "runc"]
    assert not [names for names in world.installs() if "docker-ce" in names]


def test_the_containerd_that_was_found_must_carry_the_kubelet(world: World) -> None:
    plan = wanted(kubernetes="1.37", sources={"docker": "docker-ce"})
    plan = dataclasses.replace(plan, sources={**plan.sources, "docker": ("docker-ce", "distro")})
    with pytest.raises(IncompatibleError, match=r"Kubernetes 1\.37\.2 needs containerd >= 2\.0.*has 1\.7\.24"):
        world.resolve(plan)
    assert not (world.cache / "resolved").exists()


def test_a_bare_image_asks_for_packages_alone(world: World) -> None:
    lock = world.resolve(wanted(bare=True))
    assert (lock.taken, lock.pause, lock.images, lock.kubernetes) == ({}, None, (), "")
    assert [package.name for package in lock.packages["site"]] == ["cloud-init", "sudo"]
    assert world.net.asked == []
    assert world.resolve(wanted(bare=True)) == lock  # as it is remembered


def test_programs_come_from_packages_when_no_module_proxy_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(module: ModuleBuild, **_: object) -> None:
        raise UnreachableError(f"the proxy of {module.name} does not answer")

    monkeypatch.setattr("imagebuilder.resolve.gomodules.check_reachable", silent)
    world.net.pages[KEY] = b"key"
    lock = world.resolve(wanted())
    assert {name: taken.kind for name, taken in lock.taken.items()} == {
        "kubernetes": "packages", "docker": "distro", "crictl": "packages", "cni": "packages",
    }  # fmt: skip
    assert "cni: go-modules given up: the proxy of cni-plugins does not answer" in world.notes()


def test_apt_is_asked_once_for_each_layer_that_adds_something(world: World) -> None:
    lock = world.resolve(wanted())
    assert len(world.installs()) == 3  # base, runtime, tools; kubernetes and site ask for no packages here
    assert all(names[:2] == ["?essential", "apt"] for names in world.installs())
    assert lock.packages["kubernetes"] == lock.packages["site"] == ()
    world.resolve(wanted(packages=("jq",)))
    assert len(world.installs()) == 4
    assert lock.epoch == 1786780800
    assert lock.apt_sources == "deb http://mirror.example/debian trixie main\n"
    assert "not for nodes" in world.resolve(wanted(mirrors={"debian": "http://m/debian"})).apt_sources


def test_an_unknown_package_is_not_given_up_but_told(world: World) -> None:
    def unknown(_: list[str]) -> str:
        raise Failed("E: Unable to locate package jqq")

    world.runner.answers = {("jqq",): unknown, **world.runner.answers}
    with pytest.raises(UnresolvableError) as caught:
        world.resolve(wanted(packages=("jqq",)))
    assert caught.value.context == "E: Unable to locate package jqq"
    assert not (world.cache / "resolved").exists()


# --- a folder of the user


def test_a_folder_of_the_user_is_asked_for_its_version_and_again_when_it_changes(world: World, tmp_path: Path) -> None:
    bin_folder = tmp_path / "my bin"
    bin_folder.mkdir()
    plan = wanted(sources={"kubernetes": f"file:{bin_folder}"})
    with pytest.raises(UnresolvableError) as caught:
        world.resolve(plan)
    assert caught.value.context == f"file:{bin_folder}: there is no {bin_folder}/kubelet"
    (bin_folder / "kubelet").write_text("one")
    assert world.resolve(plan).kubernetes == "1.35.8"
    (bin_folder / "kubelet").write_text("other")
    world.runner.answers = {**world.runner.answers, ("--version",): "Kubernetes v1.35.9"}
    assert world.resolve(plan).kubernetes == "1.35.9"
    (bin_folder / "kubelet").write_text("a third")
    world.runner.answers = {**world.runner.answers, ("--version",): "Kubernetes v1.36.0"}
    with pytest.raises(UnresolvableError, match="no source of kubernetes has it") as caught:
        world.resolve(plan)
    assert "is 1.36.0, not 1.35" in caught.value.context


# --- images


def test_an_image_of_a_registry_that_answers_wrongly_is_not_composed(world: World) -> None:
    world.net.pages["https://registry.k8s.io/v2/pause/manifests/3.10.1"] = UntrustedError("these are other bytes")
    with pytest.raises(UntrustedError, match="these are other bytes"):
        world.resolve(wanted())


def test_images_of_the_user(world: World, tmp_path: Path) -> None:
    archive, data = tmp_path / "a b.tar", resources.data_root() / "examples/standalone/hello.toml"
    archive.touch()
    lock = world.resolve(wanted(images=(str(archive), str(data))))
    assert [(image.kind, image.reference, image.source) for image in lock.images] == [
        ("file", "a b.tar", str(archive)), ("compose", "imagebuilder.example/hello:1", str(data))
    ]  # fmt: skip
    assert [p.name for p in lock.packages["images"]] == ["busybox-static", "catatonit"]
    with pytest.raises(UsageError, match="there is no such file"):
        world.resolve(wanted(images=(str(tmp_path / "other.tar"),)))
    with pytest.raises(UnreachableError, match=r"registry\.k8s\.io does not answer"):
        world.resolve(wanted(images=("registry.k8s.io/coredns:1",)))


def test_an_image_that_says_compose_must_say_how(tmp_path: Path) -> None:
    path = tmp_path / "image.toml"
    path.write_text('reference = "example.com/a:1"\nsources = ["compose"]\n')
    with pytest.raises(DataError) as caught:
        load_image(path)
    assert 'sources names "compose", but there is no [compose] table' in caught.value.context


# --- what is remembered


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def asked(world: World, action: Callable[[], Lock]) -> bool:
    """Return whether anybody is asked."""
    before = len(world.net.asked)
    action()
    return len(world.net.asked) > before


def test_an_answer_is_taken_again_until_it_is_old(world: World) -> None:
    lock = world.resolve(wanted())
    assert world.resolve(wanted()) == lock
    assert not asked(world, lambda: world.resolve(wanted()))
    done = [event for event in world.tape.events if event.kind == "done"]
    assert [event.cached for event in done] == [False, True, True]
    assert done[-1].text == "Versions as found 0 min ago (--refresh asks again)"
    age(world.remembered(), MAX_AGE - 60)
    assert not asked(world, lambda: world.resolve(wanted()))
    age(world.remembered(), MAX_AGE + 60)
    assert asked(world, lambda: world.resolve(wanted()))
    age(world.remembered(), -3600)  # written under a clock that was ahead
    assert asked(world, lambda: world.resolve(wanted()))
    assert asked(world, lambda: world.resolve(wanted(), refresh=True))


def test_refresh_makes_the_index_anew_and_an_old_index_is_not_used(world: World) -> None:
    def made() -> int:
        return len([words for words in world.runner.commands if "mmdebstrap" in words])

    world.resolve(wanted())
    world.resolve(wanted(packages=("jq",)))
    assert made() == 1
    world.resolve(wanted(), refresh=True)
    assert made() == 2
    (folder,) = (world.cache / "apt").iterdir()
    age(folder / apt.UPDATED, MAX_AGE + 60)
    world.resolve(wanted(packages=("tmux",)))
    assert made() == 3


def test_offline_takes_any_age_and_asks_nobody(world: World) -> None:
    with pytest.raises(UnreachableError, match="nothing is known yet about this plan") as caught:
        world.resolve(wanted(), offline=True)
    assert caught.value.hint == "run it once without --offline"
    assert world.runner.commands == []
    lock = world.resolve(wanted())
    age(world.remembered(), 100 * MAX_AGE)
    assert not asked(world, lambda: world.resolve(wanted(), offline=True))
    assert world.resolve(wanted(), offline=True) == lock


@pytest.mark.parametrize(
    "spoil", ["empty", "binary", "not-json", "other-shape", "other-lock", "older-wrapper", "damaged"]
)
def test_an_answer_that_cannot_be_used_is_asked_again(world: World, spoil: str) -> None:
    lock = world.resolve(wanted())
    data = json.loads(world.remembered().read_bytes())
    data["data"]["taken"]["kubernetes"]["version"] = "1.35.7"
    damaged = json.dumps(data).encode()
    older = json.dumps(data | {"sha256": content_id(data["data"])}).encode()  # of before the wrapper was updated
    other = json.dumps({"data": {}, "sha256": content_id({})}).encode()
    texts = {"empty": b"", "binary": bytes(range(256)), "not-json": b"{", "other-shape": b"{}"}
    texts |= {"other-lock": other, "older-wrapper": older, "damaged": damaged}
    world.remembered().write_bytes(texts[spoil])
    assert asked(world, lambda: world.resolve(wanted()))
    assert world.resolve(wanted()) == lock


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"packages": ("jq",)}, id="package"),
        pytest.param({"mirrors": {"debian": "http://m/debian"}}, id="mirror"),
        pytest.param({"keys": {"kubernetes": "0" * 40}}, id="key"),
        pytest.param({"release": "12"}, id="release"),
    ],
)
def test_another_question_is_asked(world: World, changes: Any) -> None:
    world.resolve(wanted())
    assert asked(world, lambda: world.resolve(wanted(**changes)))


def test_what_changes_no_answer_asks_nobody(world: World, tmp_path: Path) -> None:
    world.resolve(wanted())
    assert not asked(world, lambda: world.resolve(wanted(overlays=(tmp_path,), scripts=(tmp_path / "a.sh",))))


def test_other_data_of_the_profile_is_another_question(world: World) -> None:
    plan = wanted()
    world.resolve(plan)
    packages = plan.profile.packages.model_copy(update={"tools": (*plan.profile.packages.tools, "parted")})
    other = dataclasses.replace(plan, profile=plan.profile.model_copy(update={"packages": packages}))
    assert "parted" in [p.name for p in world.resolve(other).packages["tools"]]


def other_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our data in another folder; nothing looks for it where it was."""
    for folder in resources.FOLDERS:
        shutil.copytree(resources.folder(folder), root / folder)
    monkeypatch.setattr(resources, "data_root", lambda: root)
    load_image.cache_clear()
    return root


def test_an_answer_outlives_the_checkout_that_it_was_found_in(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = wanted()
    lock = world.resolve(plan)
    assert str(resources.data_root()) not in world.remembered().read_text()
    root = other_checkout(tmp_path / "elsewhere", monkeypatch)
    assert not asked(world, lambda: world.resolve(plan))
    assert lock.pause is not None
    there = archive_path(tmp_path, lock.pause, plan, lock)
    recipe = root / "components" / PAUSE_RECIPE
    recipe.write_text(recipe.read_text().replace("/pause", "/rest"))
    load_image.cache_clear()
    assert recipe_of(lock.pause, plan).compose.entrypoint[0] == "/rest"
    assert archive_path(tmp_path, lock.pause, plan, lock) != there


def test_another_recipe_of_the_pause_image_is_another_question(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = wanted()
    world.resolve(plan)
    recipe = other_checkout(tmp_path / "elsewhere", monkeypatch) / "components" / PAUSE_RECIPE
    recipe.write_text(recipe.read_text().replace('packages = ["catatonit"]', 'packages = ["catatonit", "tini"]'))
    assert asked(world, lambda: world.resolve(plan))
    assert [p.name for p in world.resolve(plan).packages["images"]] == ["catatonit", "tini"]


def test_forget_forgets(world: World) -> None:
    world.resolve(wanted())
    forget(world.cache)
    assert asked(world, lambda: world.resolve(wanted()))
    forget(world.cache / "nothing")


# --- the lock file ---


def test_what_was_locked_is_what_is_taken(world: World) -> None:
    plan = wanted(packages=("jq",))
    locked, lock = world.lock(plan), world.resolve(plan)
    taken = world.take(locked, plan)
    assert {name: [p.exact for p in packages] for name, packages in taken.packages.items()} == {
        name: [p.exact for p in packages] for name, packages in lock.packages.items()
    }
    assert {p.filename for p in taken.packages["site"]} == {p.filename for p in lock.packages["site"]}
    assert (taken.taken, taken.pause, taken.epoch) == (lock.taken, lock.pause, lock.epoch)
    assert (taken.apt_sources, taken.apt_folder) == (lock.apt_sources, lock.apt_folder)
    assert world.net.asked == []


def test_apt_reads_the_indexes_before_it_is_asked(world: World) -> None:
    world.resolve(wanted())
    asked = [words for words in world.runner.commands if words[0].startswith("apt-")]
    first = next(number for number, words in enumerate(asked) if "install" in words)
    assert any("gencaches" in words for words in asked[:first])


def test_each_package_that_moved_is_named_at_once(world: World) -> None:
    locked = world.lock(wanted())
    world.versions |= {"linux-image-cloud-amd64": "9.9", "runc": "2:1.1"}
    with pytest.raises(UnresolvableError, match="2 things are not as locked; nothing was built") as caught:
        world.take(locked, wanted())
    assert sorted(caught.value.context.splitlines()) == [
        "linux-image-cloud-amd64 1.0: the archive has 9.9", "runc 1.0: the archive has 2:1.1"
    ]  # fmt: skip
    assert sum("mmdebstrap" in words for words in world.runner.commands) == 2, "the index was made anew before"


def test_release_binaries_that_moved_are_named(world: World) -> None:
    test_release_binaries_are_locked_with_their_hashes(world)
    locked = world.lock(wanted())
    assert [program.name for program in locked.sources["kubernetes"].programs] == ["kubelet", "kubeadm", "kubectl"]
    assert "dl.k8s.io" not in text_of(locked)
    assert world.take(locked, wanted()).taken == world.resolve(wanted()).taken
    world.net.pages[f"{BINARIES}/kubeadm.sha256"] = SHA[::-1].encode()
    with pytest.raises(UntrustedError) as caught:
        world.take(locked, wanted())
    assert caught.value.context == "kubernetes: kubeadm 1.35.8 has another sha256 now"
    world.net.pages[f"{BINARIES}/kubeadm.sha256"] = UnresolvableError("dl.k8s.io does not have a file")
    with pytest.raises(UnresolvableError, match="1 thing is not as locked") as missing:
        world.take(locked, wanted())
    assert missing.value.context == "kubernetes 1.35.8: dl.k8s.io does not have a file"


def test_an_image_that_moved_is_named(world: World) -> None:
    base = "https://registry.k8s.io/v2/pause"
    config = b'{"os": "linux", "architecture": "amd64"}'
    digest = f"sha256:{sha256_bytes(config)}"
    kind = "application/vnd.oci.image."
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": f"{kind}manifest.v1+json", "layers": [],
        "config": {"mediaType": f"{kind}config.v1+json", "digest": digest, "size": len(config)},
    }).encode()  # fmt: skip
    by_digest = f"{base}/manifests/sha256:{sha256_bytes(manifest)}"
    world.net.pages |= {f"{base}/manifests/3.10.1": manifest, by_digest: manifest, f"{base}/blobs/{digest}": config}
    locked = world.lock(wanted())
    assert locked.pause is not None
    assert (locked.pause.kind, locked.pause.digest) == ("registry", sha256_bytes(manifest))
    world.net.pages[f"{base}/manifests/3.10.1"] = b"another is the newest: nobody asks"
    taken = world.take(locked, wanted())
    assert taken.pause is not None
    assert taken.pause.source == f"registry.k8s.io/pause:3.10.1@sha256:{sha256_bytes(manifest)}"
    assert world.net.asked == [by_digest, f"{base}/blobs/{digest}"]
    world.net.pages[by_digest] = b"other bytes"
    with pytest.raises(UntrustedError, match="1 thing is not as locked") as caught:
        world.take(locked, wanted())
    assert caught.value.context.startswith("image registry.k8s.io/pause:3.10.1@sha256:")


def test_a_bare_image_is_locked_too(world: World) -> None:
    locked = world.lock(wanted(bare=True))
    assert (locked.pause, locked.sources) == (None, {})
    assert world.take(locked, wanted(bare=True)).kubernetes == ""
    with pytest.raises(UsageError, match="is for something else") as caught:
        world.take(locked, wanted())
    assert "bare: locked True, asked for False" in caught.value.context
