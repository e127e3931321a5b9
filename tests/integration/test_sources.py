"""Sources against strict local servers, and against the real Go."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_servers import (
    DATA,
    ELF,
    Site,
    answer,
    dripping,
    in_turn,
    listening,
    reset,
    silent,
    stalling,
    trickling,
)

from imagebuilder import resources
from imagebuilder.content import sha256_bytes, sha256_file
from imagebuilder.errors import CommandError, UnreachableError, UnresolvableError, UntrustedError
from imagebuilder.events import Progress
from imagebuilder.process import RealRunner
from imagebuilder.sources import gomodules, payload
from imagebuilder.sources.binaries import Binaries
from imagebuilder.sources.components import load_module, program_names
from imagebuilder.sources.download import Downloader

pytestmark = pytest.mark.integration

SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    yield server
    server.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target" / "file"


def fetch(url: str, target: Path, *, sha256: str | None = SHA256, **options: Any) -> None:
    Downloader(**options).fetch(url, target, sha256=sha256, max_size=len(DATA))


def nothing_is_left(target: Path) -> bool:
    return list(target.parent.iterdir()) == []


def test_a_file_is_fetched(site: Site, target: Path) -> None:
    seen: list[tuple[int, int]] = []
    url = site.serve("/file", DATA)
    locked = Downloader().fetch(url, target, sha256=SHA256, max_size=len(DATA), on_progress=lambda *at: seen.append(at))
    assert sha256_file(target) == locked.sha256 == SHA256
    assert seen[-1] == (len(DATA), len(DATA))
    assert site.asked[0][2]["Accept-Encoding"] == "identity"


def test_a_wrong_hash_leaves_nothing(site: Site, target: Path) -> None:
    url = site.serve("/file", DATA[:-1] + b"?")
    with pytest.raises(UntrustedError, match="wrong checksum"):
        fetch(url.replace("http://", "http://user:secret@"), target)
    assert nothing_is_left(target)
    assert len(site.asked) == 1


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "unstated"])
def test_too_much_is_refused(site: Site, target: Path, stated: bool) -> None:
    url = site.serve("/file", DATA + b"!", stated=stated)
    with pytest.raises(UntrustedError, match="larger than"):
        fetch(url, target)
    assert nothing_is_left(target)
    with pytest.raises(UntrustedError, match="larger than"):
        Downloader().get_bytes(url, max_size=1000)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_a_source_does_not_have(site: Site, target: Path, status: int) -> None:
    with pytest.raises(UnresolvableError, match=r"127\.0\.0\.1:"):
        fetch(site.serve("/file", b"no", status=status), target)
    assert nothing_is_left(target)
    assert len(site.asked) == 1


def test_a_reset_in_the_middle_is_tried_again(site: Site, target: Path) -> None:
    site.routes["/file"] = in_turn(reset, reset, lambda handler: answer(handler, DATA))
    fetch(site.url + "/file", target)
    assert sha256_file(target) == SHA256
    assert len(site.asked) == 3


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(site: Site, target: Path, status: int) -> None:
    site.routes["/file"] = in_turn(
        lambda handler: answer(handler, b"", status=status, Retry_After="1"), lambda handler: answer(handler, DATA)
    )
    start = time.monotonic()
    fetch(site.url + "/file", target)
    assert time.monotonic() - start >= 1
    assert len(site.asked) == 2


def test_retries_end_at_the_deadline(site: Site, target: Path) -> None:
    site.routes["/file"] = reset
    start = time.monotonic()
    with pytest.raises(UnreachableError, match="reset the connection"):
        fetch(site.url + "/file", target, deadline=2)
    assert time.monotonic() - start < 2.5
    assert len(site.asked) in (2, 3)
    assert nothing_is_left(target)


def test_a_server_that_asks_for_an_hour_is_given_up(site: Site, target: Path) -> None:
    url = site.serve("/file", b"", status=503, Retry_After="3600")
    with pytest.raises(UnreachableError, match="status 503"):
        fetch(url, target)
    assert len(site.asked) == 1


def test_an_error_of_the_server_is_not_tried_again(site: Site, target: Path) -> None:
    with pytest.raises(UnreachableError, match="status 500"):
        fetch(site.serve("/file", b"", status=500), target)
    assert len(site.asked) == 1


def test_redirects_are_followed_to_a_limit(site: Site, target: Path) -> None:
    site.serve("/a", b"", status=302, Location="/b")
    site.serve("/b", b"", status=307, Location=site.url + "/file")
    site.serve("/file", DATA)
    fetch(site.url + "/a", target)
    site.serve("/loop", b"", status=301, Location="/loop")
    with pytest.raises(UnresolvableError, match="redirects more than 5 times"):
        fetch(site.url + "/loop", target)


def test_a_redirect_to_a_file_is_not_followed(site: Site, target: Path) -> None:
    with pytest.raises(UnresolvableError, match="redirects"):
        fetch(site.serve("/a", b"", status=302, Location="file:///etc/passwd"), target, sha256=None)
    assert nothing_is_left(target)


def test_authorization_stays_with_its_host(site: Site) -> None:
    other = Site()
    try:
        site.serve("/a", b"", status=302, Location=other.serve("/b", b"x"))
        Downloader().get_bytes(site.url + "/a", max_size=10, headers={"Authorization": "Bearer t"})
        assert "Authorization" in site.asked[0][2]
        assert "Authorization" not in other.asked[0][2]
    finally:
        other.close()


@pytest.mark.parametrize("server", [silent, dripping])
def test_no_answer_is_given_up_within_five_seconds(target: Path, server: Callable[[socket.socket], None]) -> None:
    with listening(server) as url:
        start = time.monotonic()
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:\d+ did not answer within 5 s"):
            fetch(url, target)
        assert 4.5 < time.monotonic() - start < 5.5
    assert nothing_is_left(target)


@pytest.mark.parametrize(("server", "says"), [(stalling, "stopped sending"), (trickling, "given up at its deadline")])
def test_a_transfer_that_does_not_go_on(target: Path, server: Callable[[socket.socket], None], says: str) -> None:
    with listening(server) as url:
        start = time.monotonic()
        with pytest.raises(UnreachableError, match=says):
            fetch(url, target, connect_timeout=1, stall_timeout=1, deadline=2)
        assert time.monotonic() - start < 3
    assert nothing_is_left(target)


def test_who_is_not_there(target: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(UnreachableError, match="refused the connection"):
        fetch(f"http://127.0.0.1:{port}/", target)
    with pytest.raises(UnreachableError, match=r"nowhere\.invalid cannot be found: its name does not resolve"):
        Downloader().probe("https://user:secret@nowhere.invalid/")
    assert time.monotonic() - start < 5


def test_a_probe_asks_whether_anyone_is_there(site: Site) -> None:
    Downloader().probe(site.url + "/not-there")
    with pytest.raises(UnreachableError, match="status 502"):
        Downloader().probe(site.serve("/gateway", b"", status=502))
    with listening(silent) as url, pytest.raises(UnreachableError):
        Downloader(connect_timeout=0.5).probe(url)


def release(site: Site, programs: dict[str, bytes]) -> Binaries:
    """Serve a tree like the one of dl.k8s.io."""
    site.serve("/k8s/release/stable-1.35.txt", b"v1.35.8\n")
    for name, data in programs.items():
        path = f"/k8s/release/v1.35.8/bin/linux/amd64/{name}"
        site.serve(path, data)
        site.serve(f"{path}.sha256", sha256_bytes(data).encode())
    return Binaries(Downloader(), base=site.url + "/k8s/")


def test_release_binaries(site: Site, tmp_path: Path) -> None:
    binaries = release(site, {"kubelet": ELF + b"1", "kubectl": ELF + b"2"})
    version = binaries.resolve_version("1.35")
    locked = binaries.lock(version, ["kubelet", "kubectl"], "amd64")
    assert [item.size for item in locked] == [len(ELF) + 1] * 2
    assert locked[0].path == "https://dl.k8s.io/release/v1.35.8/bin/linux/amd64/kubelet"
    folder = binaries.fetch(locked, tmp_path, arch="amd64")
    assert [item.name for item in payload.verify(folder).programs] == ["kubectl", "kubelet"]
    asked = len(site.asked)
    assert binaries.fetch(locked, tmp_path, arch="amd64") == folder
    assert len(site.asked) == asked


def test_release_binaries_that_are_not_what_was_locked(site: Site, tmp_path: Path) -> None:
    binaries = release(site, {"kubelet": ELF, "script": b"#!/bin/sh\n"})
    locked = binaries.lock("1.35.8", ["kubelet"], "amd64")
    release(site, {"kubelet": ELF[:-1] + b"?"})
    with pytest.raises(UntrustedError):
        binaries.fetch(locked, tmp_path, arch="amd64")
    with pytest.raises(UntrustedError, match="no program for amd64"):
        binaries.fetch(binaries.lock("1.35.8", ["script"], "amd64"), tmp_path, arch="amd64")
    assert list((tmp_path / "payloads").iterdir()) == []


@pytest.mark.parametrize("text", [b"v1.34.9", b"1.35.8", b"<html>", b"v1.35.8 v1.35.9"])
def test_a_stable_version_that_is_none(site: Site, text: bytes) -> None:
    site.serve("/release/stable-1.35.txt", text)
    with pytest.raises(UnresolvableError):
        Binaries(Downloader(), base=site.url).resolve_version("1.35")


def go_cache() -> Path:
    """Return a cache whose Go modules are there already, when the developer has one."""
    named = os.environ.get("IMAGEBUILDER_CACHE_DIR")
    return Path(named) if named else Path.home() / ".cache" / "imagebuilder"


def build(name: str, components: Path, cache: Path) -> Path:
    return gomodules.build(
        load_module(components, name), components_dir=components, cache_dir=cache, runner=RealRunner(),
        progress=Progress(), arch="amd64",
    )  # fmt: skip


def own_cache(root: Path, *shared: str) -> Path:
    """Return a cache of its own, but for Go's module cache and what else is named."""
    (root / "go").mkdir(parents=True)
    for name in ("mod", *shared):
        common = go_cache() / "go" / name
        common.mkdir(parents=True, exist_ok=True)
        (root / "go" / name).symlink_to(common)
    return root


def test_cni_plugins_are_the_same_wherever_they_are_built(tmp_path: Path) -> None:
    components = tmp_path / "elsewhere" / "components"
    shutil.copytree(resources.folder("components"), components)
    try:
        one = build("cni-plugins", resources.folder("components"), own_cache(tmp_path / "one", "build"))
        two = build("cni-plugins", components, own_cache(tmp_path / "a" / "longer" / "two"))
    except UnreachableError as error:
        pytest.skip(str(error))
    module = load_module(components, "cni-plugins")
    assert payload.verify(one) == payload.verify(two)
    assert sorted(program.name for program in payload.read(one).programs) == sorted(program_names(module))
    said = RealRunner().run([one / "bridge", "--version"])
    assert f"v{module.version}" in "".join(said.tail)


@pytest.mark.parametrize("what", ["zip", "go.mod"])
def test_a_tampered_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("GOSUMDB", "off")
    components = tmp_path / "components"
    shutil.copytree(resources.folder("components"), components)
    file = components / "cni-plugins" / "go.sum"
    start = "github.com/vishvananda/netlink v1.3.1" + ("" if what == "zip" else "/go.mod") + " h1:"
    assert start in file.read_text()
    rest = file.read_text().partition(start)[2]
    flipped = ("A" if rest[0] != "A" else "B") + rest[1:]
    file.write_text(file.read_text().replace(start + rest, start + flipped))
    cache = own_cache(tmp_path / "cache")
    with pytest.raises(UntrustedError, match=r"not the one that go\.sum names"):
        build("cni-plugins", components, cache)
    assert list((cache / "payloads").iterdir()) == []


def test_a_program_that_does_not_compile_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "components" / "tool"
    folder.mkdir(parents=True)
    (folder / "component.toml").write_text('version = "1.2.3"\nprograms = ["imagebuilder.invalid/tool/cmd"]\n')
    (folder / "go.mod").write_text("module imagebuilder.invalid/tool\n\ngo 1.24\n")
    (folder / "go.sum").write_text("")
    with pytest.raises(CommandError) as caught:
        build("tool", folder.parent, own_cache(tmp_path / "cache"))
    assert "imagebuilder.invalid/tool/cmd" in caught.value.context


def test_a_dead_module_proxy_is_given_up_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(silent) as url:
        monkeypatch.setenv("GOPROXY", url.removesuffix("/file"))
        start = time.monotonic()
        with pytest.raises(UnreachableError, match="did not answer within 5 s"):
            build("cni-plugins", resources.folder("components"), tmp_path / "empty")
        assert time.monotonic() - start < 9


def test_the_go_of_the_wheel_builds_a_program(tmp_path: Path) -> None:
    try:
        go = gomodules.toolchain(RealRunner(), go_cache(), "1.26.2", find=lambda _: None)
    except UnreachableError as error:
        pytest.skip(str(error))
    (tmp_path / "go.mod").write_text("module imagebuilder.invalid/hello\n\ngo 1.26.2\n")
    (tmp_path / "main.go").write_text('package main\n\nfunc main() { println("hello") }\n')
    env = {"GOCACHE": str(tmp_path / "cache"), "GOENV": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    RealRunner().run([go.path, "build", "-o", "hello", "."], cwd=tmp_path, env=env)
    assert RealRunner().run([tmp_path / "hello"]).tail == ("hello",)
