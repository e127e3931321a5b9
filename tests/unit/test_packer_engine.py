"""The engine: what it runs, what it makes of what packer says, and every way in which packer fails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_runner import FakeRunner

from imagebuilder.errors import (
    CheckFailedError,
    CommandError,
    ImagebuilderError,
    StepError,
    ToolMissingError,
    UsageError,
)
from imagebuilder.events import Progress, Tape
from imagebuilder.packer.engine import MANIFEST, PackerEngine, read_manifest, redact
from imagebuilder.packer.machine_readable import Output, diagnostics, parse, unescape
from imagebuilder.process import Result, command_error

PLUGIN = "github.com/hashicorp/qemu"
ARTIFACT = (
    "1,qemu.node,artifact,0,builder-id,x\n1,qemu.node,artifact,0,id,VM\n1,qemu.node,artifact,0,file,0,output/a.qcow2\n"
)
SAID = (
    "1,,ui,say,==> qemu.node: Starting VM%!(PACKER_COMMA) booting\n"
    "1,,ui,message,    qemu.node: @@step base/10-x\n1,,ui,error,==> qemu.node: a warning of apt\n"
    "1,,ui,message,    qemu.node: @@steps-done\n" + ARTIFACT
)


@dataclass
class Ending(FakeRunner):
    """A strict runner whose answers may end with a code of their own."""

    codes: Mapping[str, int] = field(default_factory=dict)
    envs: list[Mapping[str, str]] = field(default_factory=list)
    patience: list[float] = field(default_factory=list)

    def run(self, argv: Any, **kwargs: Any) -> Result:
        self.envs.append(kwargs.get("env") or {})
        self.patience.append(kwargs.get("patience", 0.0))
        check = kwargs.pop("check", True)
        result = super().run(argv, check=False, **kwargs)
        code = self.codes.get(str(argv[1]), result.returncode)
        ended = Result(argv=result.argv, returncode=code, stdout=result.stdout, tail=result.tail, seconds=0)
        if check and code:
            raise command_error(ended)
        return ended


def answers(version: str = "Packer v1.16.0", **changes: Any) -> dict[tuple[str, ...], Any]:
    made = {
        "version": version, "installed": f"/plugins/{PLUGIN}/packer-plugin-qemu_v1.1.4_x5.0_linux_amd64\n",
        "validate": "1,,ui,say,The configuration is valid.\n", "build": SAID, **changes,
    }  # fmt: skip
    return {(word,): said for word, said in made.items()}


def engine(tmp_path: Path, runner: Any, **changes: Any) -> tuple[PackerEngine, Tape]:
    tape = Tape()
    made = PackerEngine(
        runner=runner, progress=Progress(tape), log=tmp_path / "logs/build.log", downloads=tmp_path / "downloads",
        **{"environment": {}, **changes},
    )  # fmt: skip
    return made, tape


def attempt(tmp_path: Path, runner: Any, **changes: Any) -> Any:
    (tmp_path / "folder").mkdir(exist_ok=True)
    made, _ = engine(tmp_path, runner, **changes)
    return made.build(tmp_path / "folder", plugin=PLUGIN)


# --- what it runs


def test_a_build_with_current_packer(tmp_path: Path) -> None:
    runner = Ending(answers())
    (tmp_path / "folder").mkdir()
    made, tape = engine(tmp_path, runner, environment={"PKR_VAR_token": "s3cret-token"})
    built = made.build(tmp_path / "folder", plugin=PLUGIN, var_files=[tmp_path / "values.hcl"])
    assert [words[1] for words in runner.commands] == ["version", "plugins", "validate", "build"]
    assert built.packer == "1.16.0"
    assert [(item.id, item.files) for item in built.artifacts] == [("VM", ("output/a.qcow2",))]
    for words in runner.commands[2:]:
        assert f"-var-file={tmp_path / 'values.hcl'}" in words
    assert not any("s3cret-token" in word for words in runner.commands for word in words)
    assert all(env["CHECKPOINT_DISABLE"] == "1" for env in runner.envs)
    assert all(env["PKR_VAR_token"] == "s3cret-token" for env in runner.envs[1:])
    assert runner.patience[-1] > 60, "packer's own clean-up of a cloud takes minutes"
    notes = [event.text for event in tape.events if event.kind == "note"]
    assert notes == ["Starting VM, booting", "base/10-x"]
    assert "a warning of apt" in [event.text for event in tape.events if event.kind == "log"]


def test_logs_are_nobody_elses(tmp_path: Path) -> None:
    attempt(tmp_path, Ending(answers()))
    for path in (tmp_path / "logs").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_a_missing_plugin_is_fetched_first(tmp_path: Path) -> None:
    runner = Ending(answers(installed="", init="1,,ui,say,Installed plugin\n"))
    attempt(tmp_path, runner)
    assert [words[1] for words in runner.commands] == ["version", "plugins", "init", "validate", "build"]


def test_old_packer_runs_in_a_copy(tmp_path: Path) -> None:
    runner = Ending({**answers("Packer v1.6.6", validate=""), ("packer-1.6/prepare.sh",): ""})
    attempt(tmp_path, runner)
    assert [words[1] for words in runner.commands] == ["version", "packer-1.6/prepare.sh", "validate", "build"]
    work = tmp_path / "folder-packer-1.6"
    assert runner.commands[1][2] == str(work)
    assert runner.folders[2:] == [work, work]


def test_secrets_are_masked_in_events_and_log(tmp_path: Path) -> None:
    said = "1,,ui,message,    qemu.node: the token is s3cret-token\n" + ARTIFACT
    (tmp_path / "folder").mkdir()
    made, tape = engine(tmp_path, Ending(answers(build=said)), environment={"PKR_VAR_token": "s3cret-token"})
    made.build(tmp_path / "folder", plugin=PLUGIN)
    assert "the token is <secret>" in [event.text for event in tape.events]
    assert "s3cret-token" not in (tmp_path / "logs/build.log").read_text()


def test_words_that_everybody_uses_are_not_masked() -> None:
    env = {"PKR_VAR_a": "node", "AWS_REGION": "eu-central-1", "AWS_SECRET_ACCESS_KEY": "abcdefgh"}
    assert redact("node eu-central-1 abcdefgh", env) == "node eu-central-1 <secret>"


# --- how it fails


def missing(words: list[str]) -> str:
    raise ToolMissingError("packer is not installed", hint="imagebuilder doctor")


@pytest.mark.parametrize(
    ("runner", "error", "said", "hint"),
    [
        pytest.param(Ending({("version",): missing}), ToolMissingError, "packer is not installed",
                     "apt-get install packer", id="missing"),
        pytest.param(Ending(answers("Packer v1.6.5")), ToolMissingError, r"packer 1\.6\.5 is too old: 1\.6\.6",
                     "apt-get install packer", id="too-old"),
        pytest.param(Ending(answers("usage: packer dict")), ToolMissingError, "is another program",
                     "first in PATH", id="cracklib"),
        pytest.param(Ending(answers(installed="", init="1,,ui,error,no route to host\n"), codes={"init": 1}),
                     ToolMissingError, f"the plugin {PLUGIN} is not installed",
                     f"packer plugins install {PLUGIN}", id="plugin"),
        pytest.param(Ending(answers(validate='1,,ui,error,Error: Unset variable "project_id"\\n\\nA used variable\n'),
                            codes={"validate": 1}),
                     UsageError, "a variable has no value: project_id", "export PKR_VAR_project_id", id="unset"),
        pytest.param(Ending(answers(validate="1,,ui,error,Error: Unsupported argument\\n\\n  on sources.pkr.hcl "
                                    "line 3:\\n  (source code not available)\\n\n"), codes={"validate": 1}),
                     CheckFailedError, r"sources\.pkr\.hcl:3: Unsupported argument", "imagebuilder template", id="hcl"),
        pytest.param(Ending(answers(validate="1,,ui,error,Error: broken\\n\n")), CheckFailedError, "broken",
                     "imagebuilder template", id="error-with-0"),
        pytest.param(Ending(answers(validate="1,,ui,say,Warning: Undefined variable\\n\\nA \"foo\"\n")),
                     CheckFailedError, "Undefined variable", "imagebuilder template", id="undefined-variable"),
        pytest.param(Ending(answers(build="1,,error-count,1\n1,qemu.node,error,disk%!(PACKER_COMMA) full\n"),
                            codes={"build": 1}),
                     CommandError, "packer build failed: qemu.node: disk, full", "whole log", id="build"),
        pytest.param(Ending(answers(build="1,,error-count,1\n1,qemu.node,error,timeout\n" + ARTIFACT)),
                     CommandError, "timeout", "whole log", id="build-error-with-0"),
        pytest.param(Ending(answers(build="1,,ui,say,nothing\n")), CommandError, "no artifact", "whole log",
                     id="no-artifact"),
        pytest.param(Ending(answers(build=""), codes={"build": -9}), CommandError, "killed by SIGKILL", "whole log",
                     id="killed"),
        pytest.param(Ending(answers(validate=""), codes={"validate": -9}), CommandError, "killed by SIGKILL",
                     "whole log", id="killed-early"),
        pytest.param(Ending(answers(build="1,,ui,message,    qemu.node: @@step runtime/30-docker\n"
                                    "1,,ui,error,==> qemu.node: error: no docker\n1,,error-count,1\n"),
                            codes={"build": 1}),
                     StepError, "the step runtime/30-docker failed", "whole log", id="step"),
    ],
)  # fmt: skip
def test_failures(tmp_path: Path, runner: Ending, error: type[ImagebuilderError], said: str, hint: str) -> None:
    with pytest.raises(error, match=said) as caught:
        attempt(tmp_path, runner)
    assert type(caught.value) is error
    assert hint in caught.value.hint


def test_a_failed_step_shows_what_it_said(tmp_path: Path) -> None:
    said = "1,,ui,message,    qemu.node: @@step base/10-x\n1,,ui,error,==> qemu.node: error: no such package\n"
    with pytest.raises(StepError) as caught:
        attempt(tmp_path, Ending(answers(build=said), codes={"build": 1}))
    assert "error: no such package" in caught.value.context


# --- machine-readable lines


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        pytest.param("a%!(PACKER_COMMA)b", "a,b", id="comma"),
        pytest.param(r"a\nb\r", "a\nb\r", id="newlines"),
        pytest.param("100%", "100%", id="percent"),
    ],
)
def test_escapes(raw: str, read: str) -> None:
    assert unescape(raw) == read


@pytest.mark.parametrize("line", ["", "hello", "x,y,z", "1,a", ",,ui,say,x"], ids=str)
def test_other_lines_are_none(line: str) -> None:
    assert parse(line) is None


def test_lines_that_are_none_are_shown_as_they_are() -> None:
    assert Output().take("panic: runtime error") == [("log", "panic: runtime error")]
    assert Output().take("  ") == []


def test_an_endless_line_is_cut() -> None:
    line = parse("1,,ui,say," + "x" * (1 << 20))
    assert line is not None
    assert len(line.data[1]) <= 64 << 10


def test_errors_are_counted_once_and_capped() -> None:
    output = Output()
    for text in (
        "1,qemu.node,error,why",
        "1,,ui,error,--> qemu.node: why",
        r"1,,ui,error,\n==> Some builds",
        "1,,ui,error,Build 'x' errored",
    ):
        output.take(text)
    assert output.errors == ["qemu.node: why"]
    for _ in range(1000):
        output.take("1,,ui,error,again")
    assert len(output.errors) == 200


def test_diagnostics_have_their_places() -> None:
    texts = [
        "Error: Unsupported argument\n\n  on a.pkr.hcl line 3, in source:\n   3: x = 1\n",
        "Error: Invalid value\n\n  on  line 0:\n\nThis was checked by the validation rule at v.pkr.hcl:24,3-13.\n",
        "Error: 1 error(s) occurred:\n\n* no disk\n",
    ]
    assert [item.short for item in diagnostics(texts)] == [
        "a.pkr.hcl:3: Unsupported argument", "v.pkr.hcl:24: Invalid value", "no disk",
    ]  # fmt: skip


# --- the manifest


def test_only_the_last_run_of_the_manifest_counts(tmp_path: Path) -> None:
    builds = [{"packer_run_uuid": "one", "artifact_id": "a"}, {"packer_run_uuid": "two", "artifact_id": "b"}]
    (tmp_path / MANIFEST).write_text(json.dumps({"builds": builds, "last_run_uuid": "two"}))
    assert [build["artifact_id"] for build in read_manifest(tmp_path)] == ["b"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"builds": 1, "last_run_uuid": 1}'])
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CommandError, match=r"no usable packer-manifest\.json"):
        read_manifest(tmp_path)
