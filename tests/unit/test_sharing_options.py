"""With whom layers are shared: the command line over imagebuilder.toml."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from imagebuilder.__main__ import main
from imagebuilder.cli.settings import Settings
from imagebuilder.cli.sharing import make_sharing, sharing_options
from imagebuilder.config import ANYONE
from imagebuilder.direct.elsewhere import Sharing
from imagebuilder.direct.layers import LayerStore

FILE = '[cache]\nremote = "s3://bucket/x"\npush = true\ntrust = ["a.pub"]\nlower = ["shared"]\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_is_shared_unless_it_is_said() -> None:
    assert make_sharing(Settings(), None, (), None) == Sharing()


def test_the_command_line_wins_and_folders_are_appended(here: Path) -> None:
    (here / "imagebuilder.toml").write_text(FILE)
    said = make_sharing(Settings(), None, (), None)
    assert said == Sharing(remote="s3://bucket/x", push=True, trust=(here / "a.pub",), lower=(here / "shared",))
    typed = make_sharing(Settings(), "oci://host/y", (Path("more"),), False)
    assert (typed.remote, typed.push, typed.trust) == ("oci://host/y", False, (here / "a.pub",))
    assert typed.lower == (here / "shared", here / "more")
    assert make_sharing(Settings(), "", (), None).remote == ""


def test_the_word_for_anyone_is_no_file(here: Path) -> None:
    (here / "other.toml").write_text(f'[cache]\ntrust = "{ANYONE}"\n')
    said = make_sharing(Settings(file=here / "other.toml"), None, (), None)
    assert (said.anyone, said.trust) == (True, ())


def test_the_options_become_one_value(here: Path) -> None:
    seen: list[Sharing] = []

    @click.command()
    @sharing_options
    def command(sharing: Sharing) -> None:
        seen.append(sharing)

    CliRunner().invoke(command, ["--remote-cache", "s3://b", "--lower-cache", "x", "--push"], catch_exceptions=False)
    assert seen == [Sharing(remote="s3://b", lower=(here / "x",), push=True)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["push"], "no remote cache is named"),
        (["push", "--remote-cache", "oci://host/x"], "said whose layers are trusted"),
        (["pull", "1" * 64], "no remote cache is named"),
        (["pull", "11"], '"11" is no id of a layer'),
        (["pull", "1" * 64, "--remote-cache", "http://host/x"], "said whose layers"),
    ],
)
def test_what_scripts_forget_is_named(
    words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LayerStore(here / "cache")
    assert main(["cache", words[0], "--cache-dir", "cache", *words[1:]]) == 2
    assert said in capsys.readouterr().err
