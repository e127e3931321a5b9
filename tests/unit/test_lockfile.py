"""The lock file: one spelling, a closed schema, and a clear word when it is for something else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runner import FakeRunner

from imagebuilder import lockfile
from imagebuilder.__main__ import main
from imagebuilder.cells import plan_request
from imagebuilder.errors import DataError, PrivilegeError, UntrustedError
from imagebuilder.events import Progress
from imagebuilder.locked import make_lock, take_locked
from imagebuilder.lockfile import LockFile, differences, plan_digest, read_lock, text_of, wishes_of
from imagebuilder.model import BuildRequest
from imagebuilder.plan import BuildPlan
from imagebuilder.repositories import archive_of
from imagebuilder.resolve import Resolver, wrapper_module
from imagebuilder.sources.apt import folder_key

SHA = "0123456789abcdef" * 4


def wanted(**changes: Any) -> BuildPlan:
    return plan_request(BuildRequest(**{"os": "debian", "target": "qemu", **changes}))


def made(plan: BuildPlan | None = None) -> LockFile:
    plan = plan or wanted()
    package = {"name": "containerd", "version": "1:1.7.24~ds1-6", "arch": "amd64", "sha256": SHA, "size": 7}
    return LockFile.model_validate(
        {
            "format": 1, "tool": lockfile.__version__, "plan": plan_digest(plan), "wishes": wishes_of(plan),
            "epoch": 1, "sources_list": SHA, "packages": {"site": [], "runtime": [package, package]},
            "sources": {"kubernetes": {"kind": "go-modules", "version": "1.35.8", "module": SHA, "build": SHA}},
            "pause": {"name": "registry.k8s.io/pause:3.10.1", "kind": "compose", "digest": SHA},
        }
    )  # fmt: skip


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "imagebuilder.lock"
    path.write_text(text_of(made()))
    assert read_lock(path) == made()
    assert text_of(read_lock(path)) == path.read_text()


def test_a_package_is_a_line_and_what_has_no_order_is_sorted() -> None:
    text = text_of(made())
    assert sum(line.startswith('   {"arch": "amd64", "name": "containerd"') for line in text.splitlines()) == 2
    assert list(json.loads(text)["packages"]) == ["runtime", "site"]
    assert text.endswith("}\n")
    assert text == text_of(LockFile.model_validate_json(text))


def test_no_path_of_this_machine_is_written_down(tmp_path: Path) -> None:
    (tmp_path / "app.tar").touch()
    plan = wanted(
        images=(str(tmp_path / "app.tar"), "nginx:1.29"), sources={"kubernetes": f"file:{tmp_path}"},
        mirrors={"debian": "https://user:secret@mirror.example/debian"}, overlays=(tmp_path,), scripts=(tmp_path,),
    )  # fmt: skip
    text = text_of(made(plan))
    assert str(tmp_path) not in text
    assert "mirror.example" not in text
    assert wishes_of(plan).images == ("app.tar", "nginx:1.29")
    assert wishes_of(plan).sources["kubernetes"] == ("file",)


Change = Callable[[dict[str, Any]], Any]
BAD: dict[str, tuple[Change, str]] = {
    "unknown-key": (lambda data: data.update(sorces={}), "sorces: unknown key"),
    "path-in-name": (lambda data: data["packages"]["runtime"][0].update(name="../../etc/x"), "name"),
    "path-in-version": (lambda data: data["packages"]["runtime"][0].update(version="1/../2"), "version"),
    "line-in-version": (lambda data: data["packages"]["runtime"][0].update(version="1\n"), "version"),
    "hash": (lambda data: data["packages"]["runtime"][0].update(sha256="00"), "sha256"),
    "size": (lambda data: data["packages"]["runtime"][0].update(size=1 << 40), "size"),
    "negative": (lambda data: data["packages"]["runtime"][0].update(size=-1), "size"),
    "epoch": (lambda data: data.update(epoch=1 << 50), "epoch"),
    "text": (lambda data: data.update(epoch="1"), "epoch"),
    "option": (lambda data: data["sources"]["kubernetes"].update(packages=["-o=Dir=x"]), "packages"),
    "program": (lambda data: data["sources"]["kubernetes"].update(programs=[{"name": ".x"}]), "programs"),
    "kind": (lambda data: data["pause"].update(kind="oci"), "kind"),
    "missing": (lambda data: data.pop("wishes"), "wishes: missing"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_what_does_not_follow_the_schema_is_named(tmp_path: Path, change: Change, said: str) -> None:
    data = json.loads(text_of(made()))
    change(data)
    path = tmp_path / "imagebuilder.lock"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError) as caught:
        read_lock(path)
    assert said in caught.value.context


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "is not JSON", id="empty"),
        pytest.param(b"\xff\xfe", "is not JSON", id="bytes"),
        pytest.param(b"[" * 100_000, "is not JSON", id="deep"),
        pytest.param(b'{"format": ' + b"9" * 5000 + b"}", "is not JSON", id="number"),
        pytest.param(b"[]", "is no lock file", id="list"),
        pytest.param(b"{}", "is no lock file", id="other"),
        pytest.param(b'{"format": 2}', "is of format 2; this version knows 1", id="newer"),
        pytest.param(b" " * (lockfile.MAX_BYTES + 1), "larger than 4 MiB", id="large"),
    ],
)
def test_what_is_no_lock_file_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "imagebuilder.lock"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_lock(path)
    assert said in caught.value.message
    with pytest.raises(DataError, match="cannot be read"):
        read_lock(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({}, [], id="same"),
        pytest.param({"overlays": (Path("/etc"),)}, [], id="own-files"),
        pytest.param({"packages": ("jq",)}, ["packages.site: locked ", " jq"], id="package"),
        pytest.param({"mirrors": {"debian": "x"}}, ["archive: locked default, asked for mirror"], id="mirror"),
        pytest.param({"mirrors": {"docker.io": "x"}}, [], id="registry"),
        pytest.param({"images": ("a:1",)}, ["images: locked none, asked for a:1"], id="image"),
        pytest.param({"sources": {"crictl": "packages"}}, ["sources.crictl: locked ", ", asked for "], id="source"),
        pytest.param({"release": "12"}, ["release: locked 13, asked for 12"], id="release"),
    ],
)
def test_each_wish_that_differs_is_named(changes: dict[str, Any], said: list[str]) -> None:
    lines = "\n".join(differences(made(), wanted(**changes)))
    assert bool(lines) == bool(said)
    for words in said:
        assert words in lines


def test_another_version_of_the_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = made()
    assert differences(lock.model_copy(update={"plan": "0" * 64}), wanted()) == [
        "imagebuilder: its profiles, targets or steps are not those that it was locked with"
    ]
    monkeypatch.setattr(lockfile, "__version__", "9.9")
    assert differences(lock, wanted()) == [f"imagebuilder: locked with {lock.tool}, this is 9.9"]


def whole(plan: BuildPlan) -> dict[str, Any]:
    """Return the plain data of a lock file that has all that the plan needs."""
    data = json.loads(text_of(made(plan)))
    module = {"kind": "go-modules", "version": "1.0", "module": SHA, "build": SHA}
    data["sources"] = {name: dict(module) for name in ("cni", "crictl")}
    data["sources"] |= {"docker": {"kind": "distro"}, "kubernetes": {**module, "version": "1.35.8"}}
    data["images"] = [{"name": name, "kind": "registry", "digest": SHA} for name in plan.request.images]
    return data


SOURCES = "sources"
LIES: dict[str, tuple[Change, str]] = {
    "no-source": (lambda data: data[SOURCES].pop("docker"), "does not say where docker comes from"),
    "other-kind": (lambda data: data[SOURCES]["docker"].update(kind="binaries"), "does not say where docker"),
    "older": (lambda data: data[SOURCES]["kubernetes"].update(version="1.30.1"), "has Kubernetes 1.30.1, not 1.35"),
    "no-version": (lambda data: data[SOURCES]["kubernetes"].update(version=""), "has Kubernetes of no version"),
    "program": (
        lambda data: data[SOURCES]["kubernetes"].update(
            kind="binaries", programs=[{"name": "sh", "sha256": SHA, "size": 1}]
        ),
        "does not have the programs of kubernetes",
    ),
    "no-image": (lambda data: data.update(images=[]), "does not have the images"),
    "no-pause": (lambda data: data.update(pause=None), "does not have the images"),
    "archive": (lambda data: data["images"][0].update(kind="file"), "is made in another way"),
    "recipe": (lambda data: data["images"][0].update(kind="compose"), "is made in another way"),
}


@pytest.mark.parametrize(("change", "said"), LIES.values(), ids=LIES)
def test_a_lock_that_does_not_have_what_it_says_is_refused_before_anybody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, said: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    plan = wanted(images=("nginx:1.29",))
    data = whole(plan)
    change(data)
    resolver = Resolver(cache=tmp_path, runner=FakeRunner({}), progress=Progress(), log=tmp_path / "log")
    with pytest.raises(DataError, match=said):
        take_locked(LockFile.model_validate(data), plan, resolver, "imagebuilder.lock")
    assert list(tmp_path.iterdir()) == []


def test_go_modules_and_a_toolchain_that_are_others_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("imagebuilder.locked.gomodules.identity", lambda module, **_: (SHA[::-1], "go1.99"))
    plan = wanted()
    data = whole(plan)
    data["sources"]["crictl"] |= {"module": wrapper_module("crictl").digest, "toolchain": "go1.26.8"}
    (tmp_path / "apt").mkdir()
    (tmp_path / "apt" / folder_key(archive_of(plan)) / "etc/apt").mkdir(parents=True)
    (tmp_path / "apt" / folder_key(archive_of(plan)) / "etc/apt/sources.list").write_text("deb somewhere\n")
    resolver = Resolver(
        cache=tmp_path, runner=FakeRunner({}), progress=Progress(), log=tmp_path / "log", offline=True
    )  # fmt: skip
    with pytest.raises(UntrustedError, match="5 things are not as locked; nothing was built") as caught:
        take_locked(LockFile.model_validate(data), plan, resolver, "imagebuilder.lock")
    assert "crictl: locked as built by go1.26.8, here is go1.99" in caught.value.context
    assert "cni: its Go modules are not those of this version" in caught.value.context
    assert "image registry.k8s.io/pause" in caught.value.context
    assert "the image's sources.list" in caught.value.context


def test_another_user_than_root_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    resolver = Resolver(cache=tmp_path, runner=FakeRunner({}), progress=Progress(), log=tmp_path / "log")
    with pytest.raises(PrivilegeError):
        make_lock(wanted(), resolver)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["bake", "--refresh", "--locked"], "--locked takes the old ones", id="refresh"),
        pytest.param(["bake", "--engine", "packer", "--locked"], "--locked is for the direct engine", id="packer"),
        pytest.param(["lock", "--refresh", "--offline", "--output"], "--offline asks nobody", id="offline"),
        pytest.param(["lock", "--engine", "packer", "--output"], "there is nothing to lock", id="lock-packer"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "imagebuilder.lock"
    path.write_text(text_of(made()))
    assert main([*words, str(path), "--os", "debian", "--target", "qemu", "--cache-dir", str(tmp_path / "c")]) == 2
    assert said in capsys.readouterr().err
