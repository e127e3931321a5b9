"""The command line: its words, its errors and its exit codes."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from imagebuilder import __version__
from imagebuilder.__main__ import main
from imagebuilder.cli import root
from imagebuilder.cli.failure import explain
from imagebuilder.cli.output import size, table
from imagebuilder.cli.root import HIDDEN, MODULES, VERBS, group
from imagebuilder.cli.settings import Settings, default_cache
from imagebuilder.errors import BootError, ImagebuilderError, error_classes
from imagebuilder.plan import ENGINES
from imagebuilder.profiles import profile_names
from imagebuilder.schema import NAMES
from imagebuilder.steps import load_steps
from imagebuilder.targets import target_names

Capture = pytest.CaptureFixture[str]
CELL = ("--os", "debian", "--target", "qemu")


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEBUILDER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


def verb(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


def raising(error: BaseException) -> ModuleType:
    """A verb's module whose command raises."""

    @click.command("plan")
    @click.option("--json", "as_json", is_flag=True)
    def command(as_json: bool) -> None:
        raise error

    module = ModuleType("raising")
    module.command = command  # type: ignore[attr-defined]
    return module


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``imagebuilder plan`` so that it raises an error."""

    def run(error: BaseException, *words: str) -> int:
        monkeypatch.setattr(importlib, "import_module", lambda name: raising(error))
        return main([*words[:-1], "plan", *words[-1:]] if "--debug" in words else ["plan", *words])

    return run


# --- the group ---


def test_help_lists_the_verbs_in_order(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Commands:") + 1
    assert [line.split()[0] for line in lines[start : start + len(VERBS)]] == list(VERBS)
    assert not any(name in line for line in lines for name in HIDDEN)


def test_help_imports_no_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ModuleType:
        raise AssertionError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0


@pytest.mark.parametrize("name", VERBS)
def test_table_of_verbs_agrees_with_the_commands(name: str) -> None:
    command = verb(name)
    assert command.name == name
    assert (command.help or "").splitlines()[0] == VERBS[name]


def test_every_module_with_a_command_is_a_verb() -> None:
    folder = Path(root.__file__).parent
    found = {path.stem for path in folder.glob("*.py") if "\ndef command(" in path.read_text()}
    assert found == {MODULES.get(name, name) for name in (*VERBS, *HIDDEN)}


@pytest.mark.parametrize("name", [*VERBS, *HIDDEN])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_verb_has_help(name: str, option: str, capsys: Capture) -> None:
    assert main([name, option]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: imagebuilder {name} ")


def test_no_words_show_the_help(capsys: Capture) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"imagebuilder {__version__}\n"


def test_shell_completion_knows_the_verbs(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for name, value in (("COMPLETE", "bash_complete"), ("COMP_WORDS", "imagebuilder ba"), ("COMP_CWORD", "1")):
        monkeypatch.setenv(f"_IMAGEBUILDER_{name}" if name == "COMPLETE" else name, value)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 0
    assert capsys.readouterr().out == "plain,bake\n"


# --- errors ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["bkae"], 'there is no command "bkae" (did you mean "bake"?)', id="command"),
        pytest.param(["frobnicate"], 'there is no command "frobnicate" (known: bake, verify,', id="far-command"),
        pytest.param(["plan", "--tagret", "x"], 'no option "--tagret" (did you mean "--target"?)', id="option"),
        pytest.param(["--cahce-dir", "x"], 'no option "--cahce-dir" (did you mean "--cache-dir"?)', id="global-option"),
        pytest.param(["cache", "lst"], "lst", id="subcommand"),
        pytest.param(["list"], "os|targets|cells|kubernetes", id="list-what"),
        pytest.param(["list", "oses"], "'oses' is not one of 'os', 'targets', 'cells', 'kubernetes'", id="list-wrong"),
        pytest.param(["plan", "--mirror", "x", *CELL], '"x" is not like NAME=VALUE', id="pair"),
        pytest.param(["plan", "--source", "=x", *CELL], '"=x" is not like NAME=VALUE', id="pair-name"),
        pytest.param(["plan", "--os", "debain", "--target", "qemu"], 'did you mean "debian"?', id="os"),
        pytest.param(["plan", "--os", "debian-9", "--target", "qemu"], 'no release "9"', id="release"),
        pytest.param(["plan", "--os", "debian", "--target", "qemo"], 'did you mean "qemu"?', id="target"),
        pytest.param(["plan", "--engine", "pakcer", *CELL], 'there is no engine "pakcer"', id="engine"),
        pytest.param(["plan", "--target", "qemu"], "--os must be given", id="no-os"),
        pytest.param(["plan", "--os", "debian"], "--target must be given", id="no-target"),
        pytest.param(["bake", "--refresh", "--offline", *CELL], "--refresh asks the mirrors", id="both"),
        pytest.param(["steps", "--os", "debian"], "--os and --target go together", id="half-a-cell"),
        pytest.param(["schema", "confg"], 'did you mean "config"?', id="schema"),
        pytest.param(["boot", "x", "--until", "lgin"], "'lgin' is not one of", id="stage"),
        pytest.param(["boot", "x", "--forward", "22"], '"22" is not like 2222:22', id="forward"),
        pytest.param(["boot", "x", "--forward", "1:70000"], "is not like 2222:22", id="forward-port"),
        pytest.param(["cache", "prune", "--unused-for", "7x"], '"7x" is not a duration', id="duration"),
    ],
)
def test_wrong_use(words: list[str], message: str, capsys: Capture) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.endswith("(usage, exit code 2; docs/errors.md)\n")


def test_missing_names_are_said_with_the_choices(capsys: Capture) -> None:
    assert main(["plan"]) == 2
    said = capsys.readouterr().err
    assert f"--os: {', '.join(profile_names())}" in said
    assert f"--target: {', '.join(target_names())}" in said


def test_error_in_words(fail: Callable[..., int], capsys: Capture) -> None:
    assert fail(BootError("the guest died", context="one\ntwo", hint="look")) == 14
    assert capsys.readouterr().err == (
        "error: the guest died\n  one\n  two\nhint: look\n(boot-failed, exit code 14; docs/errors.md)\n"
    )


def test_error_as_json(fail: Callable[..., int], capsys: Capture) -> None:
    assert fail(BootError("the guest died", context="one\ntwo", hint="look"), "--json") == 14
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "error": {
            "ref": "boot-failed", "exit_code": 14, "message": "the guest died", "context": "one\ntwo", "hint": "look",
        }
    }  # fmt: skip


@pytest.mark.parametrize("cls", list(error_classes()), ids=lambda cls: cls.ref)
def test_every_class_ends_with_its_exit_code(cls: type[ImagebuilderError], fail: Callable[..., int]) -> None:
    assert fail(cls("x")) == cls.exit_code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        pytest.param(KeyboardInterrupt(), 130, "error: stopped", id="ctrl-c"),
        pytest.param(OSError(errno.ENOSPC, "No space left on device", "/x"), 16, "/x: No space left", id="full"),
        pytest.param(OSError(errno.EROFS, "Read-only file system"), 16, "error: Read-only", id="read-only"),
        pytest.param(PermissionError(errno.EACCES, "Permission denied", "/x"), 16, "/x: Permission", id="permission"),
        pytest.param(OSError(errno.EIO, "I/O error"), 70, "internal error: OSError", id="other-os-error"),
        pytest.param(KeyError("x"), 70, "internal error: KeyError: 'x'", id="bug"),
        pytest.param(ValueError(), 70, "internal error: ValueError", id="bug-without-words"),
        pytest.param(click.ClickException("odd"), 2, "error: odd", id="click"),
    ],
)
def test_foreign_errors(error: BaseException, code: int, said: str, fail: Callable[..., int], capsys: Capture) -> None:
    assert fail(error) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_internal_error_says_how_to_see_more(fail: Callable[..., int], capsys: Capture) -> None:
    assert fail(KeyError("x")) == 70
    assert "hint: imagebuilder --debug plan shows where; please report it" in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: raising(KeyError("x")))
    assert main(["--debug", "plan"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_sigterm_is_like_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    @click.command("plan")
    def command() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    module = ModuleType("killed")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setattr(importlib, "import_module", lambda name: module)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["plan"]) == 130
    assert "(interrupted, exit code 130;" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_broken_pipe_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["list", "os"]) == 141
        stream.write("the interpreter's last flush does not fail")


def test_explaining_keeps_our_own_errors() -> None:
    error = BootError("x")
    assert explain(error, []) is error


# --- settings ---


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "/home/me/.cache/imagebuilder"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/imagebuilder"),
        ({"XDG_CACHE_HOME": "/xdg", "IMAGEBUILDER_CACHE_DIR": "/own"}, "/own"),
        ({"XDG_CACHE_HOME": "", "IMAGEBUILDER_CACHE_DIR": ""}, "/home/me/.cache/imagebuilder"),
    ],
)
def test_default_cache(environment: dict[str, str], expected: str) -> None:
    assert default_cache(environment, Path("/home/me")) == Path(expected)


@pytest.mark.parametrize("name", ["bake", "boot", "cache", "doctor"])
def test_cache_dir_is_taken_after_the_verb_too(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Path] = []
    command = verb(name)
    monkeypatch.setattr(type(command), "invoke", lambda self, context: seen.append(context.obj.cache))
    words = ["artifact"] if name == "boot" else ["list"] if name == "cache" else list(CELL) if name == "bake" else []
    for before, after in (
        (["--cache-dir", "x"], []),
        ([], ["--cache-dir", "x"]),
        (["--cache-dir", "y"], ["--cache-dir", "x"]),
    ):
        with command.make_context(name, [*after, *words], obj=Settings(cache=Path(*before[1:]).absolute())) as context:
            command.invoke(context)
    assert seen == [tmp_path / "x"] * 3


# --- verbs ---


def plan_of(capsys: Capture, *words: str) -> dict[str, Any]:
    assert main(["plan", *words, "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_plan_in_words(capsys: Capture) -> None:
    assert main(["plan", *CELL, "--kubernetes", "1.35", "--package", "tmux", "--mirror", "debian=http://m"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "debian-13-amd64-qemu-k1.35"
    assert "  os           Debian 13 (trixie), amd64" in lines
    assert "  engine       direct: the first of qemu's engines that can make this cell" in lines
    assert "  docker      distro, docker-ce" in lines
    assert "  mirror  debian = http://m" in lines
    assert [line for line in lines if line.startswith("layer")] == [
        "layer base", "layer runtime", "layer kubernetes", "layer site",
    ]  # fmt: skip
    assert "  1 packages: tmux" in lines
    for step in load_steps():
        here = "debian" in step.families and step.layer != "guest" and step.when in ((), ("small_initramfs",))
        assert (f"  {step.order:02d}  {step.title}" in lines) is here


def test_plan_as_json(capsys: Capture) -> None:
    data = plan_of(capsys, *CELL, "--source", "kubernetes=go-modules", "--engine", "direct")
    assert data["id"] == "debian-13-amd64-qemu-k1.35"
    assert data["engine"] == {"name": "direct", "reason": "asked for"}
    assert data["sources"]["kubernetes"] == ["go-modules"]
    assert [layer["name"] for layer in data["layers"]] == ["base", "runtime", "kubernetes", "site"]
    assert data["disk"]["format"] == "qcow2"


def test_plan_refuses_a_bad_pair(capsys: Capture) -> None:
    assert main(["plan", *CELL, "--kubernetes", "1.37"]) == 4
    said = capsys.readouterr().err
    assert "needs containerd >= 2.0" in said
    assert "--kubernetes 1.35 runs with" in said


def test_plan_reads_the_file_here(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "imagebuilder.toml").write_text('os = "debian"\nrelease = "12"\ntarget = "raw"\n')
    assert plan_of(capsys)["id"] == "debian-12-amd64-raw-k1.35"
    assert plan_of(capsys, "--os", "debian-13")["id"] == "debian-13-amd64-raw-k1.35"
    (tmp_path / "imagebuilder.toml").write_text('so = "debian"\n')
    assert main(["plan"]) == 3


def test_broken_paths_are_refused_all_at_once(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["--overlay", "nowhere", "--overlay", "file", "--script", ".", "--image", "./lost.tar"]
    assert main(["plan", *CELL, *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[:5] == [
        "error: 4 paths cannot be used",
        f"  --overlay {tmp_path}/nowhere: there is no such folder",
        f"  --overlay {tmp_path}/file: is not a folder",
        f"  --script {tmp_path}: is a folder",
        f"  --image {tmp_path}/lost.tar: there is no such file",
    ]


@pytest.mark.parametrize("what", ["os", "targets", "cells", "kubernetes"])
def test_list_has_a_line_per_row_and_a_heading(what: str, capsys: Capture) -> None:
    assert main(["list", what, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1
    assert all(heading.replace("_", " ") in lines[0] for heading in rows[0])


def test_list_cells_says_who_can_make_them_or_why_nobody(capsys: Capture) -> None:
    assert main(["list", "cells", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    cell = {"os": "debian-13", "arch": "amd64", "target": "qemu"}
    assert {**cell, "engines": ["direct", "packer"], "why_not": {}} in rows
    for row in rows:
        assert set(row["engines"]) | set(row["why_not"]) <= set(ENGINES)
        assert row["engines"] or row["why_not"]
        assert not set(row["engines"]) & set(row["why_not"])
        assert all(row["why_not"].values())
    assert main(["list", "cells"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for row, line in zip(rows, lines[1:], strict=True):
        assert (row["engines"] == []) is any(reason in line for reason in row["why_not"].values())


def test_list_os_marks_the_default(capsys: Capture) -> None:
    assert main(["list", "os", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    default = {row["os"].partition("-")[0]: row["os"] for row in rows if row["default"] == "yes"}
    assert (default["debian"], default["ubuntu"], default["centos"]) == ("debian-13", "ubuntu-24.04", "centos-10")
    assert len(default) == len({row["title"] for row in rows}) == sum(row["default"] == "yes" for row in rows)


def test_steps(capsys: Capture) -> None:
    assert main(["steps"]) == 0
    text = capsys.readouterr().out
    assert f"{len(load_steps())} steps at build time, 6 at boot\n" in text
    assert text.index("site (at build time)") < text.index("\nat boot\n")
    assert main(["steps", "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("## Layer `base`")
    assert main(["steps", "--format", "json", *CELL]) == 0
    assert 0 < len(json.loads(capsys.readouterr().out)["build"]) <= len(load_steps())


def test_schema(capsys: Capture) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out.split() == list(NAMES)
    assert main(["schema", "config"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "imagebuilder.toml"


# --- output ---


def test_table_is_aligned_and_has_no_blanks_at_the_ends() -> None:
    assert table([("a", "bb"), ("ccc", "")], ("x", "y"), indent=" ") == " x    y\n a    bb\n ccc"
    assert table([]) == ""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (8 << 40, "8192.0 GiB")]
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text
