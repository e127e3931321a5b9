"""The script that asks a guest, in this machine's own shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imagebuilder.process import RealRunner
from imagebuilder.verify.booted import answers as module
from imagebuilder.verify.booted.answers import LIMIT, Answer, answers, mark, script

pytestmark = pytest.mark.integration
Ask = Callable[..., dict[str, Answer]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    def run(**commands: str) -> dict[str, Answer]:
        word = mark()
        stdin = script(commands, word, {"IB_WORD": "a word"})
        env = {"TMPDIR": str(tmp_path)}
        result = RealRunner().run(["sh", "-s"], env=env, stdin=stdin, capture=True, timeout=60)
        assert list(tmp_path.iterdir()) == [], "nothing is left"
        return answers(result.stdout, word)

    return run


def test_every_command_is_answered_in_turn(ask: Ask) -> None:
    found = ask(first="echo one; echo two", second="echo lost >&2; exit 3", third='echo "$IB_WORD"')
    assert {name: (answer.text, answer.code, answer.said) for name, answer in found.items()} == {
        "first": ("one\ntwo\n", 0, ""), "second": ("", 3, "lost"), "third": ("a word\n", 0, ""),
    }  # fmt: skip


def test_a_command_that_reads_takes_nothing_of_the_script(ask: Ask) -> None:
    assert list(ask(first="cat", second="echo here")) == ["first", "second"]


def test_a_command_that_hangs_is_ended(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 1)
    found = ask(hangs="trap '' TERM; echo begun; sleep 1 & wait; sleep 600", next="echo here")
    assert found["hangs"].unusable
    assert found["next"].text == "here\n"


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_a_command_that_floods_is_cut(ask: Ask, stream: str) -> None:
    found = ask(floods=f"yes {stream}", next="echo here")
    assert len(found["floods"].text) <= LIMIT
    assert found["floods"].code != 0
    assert found["next"].text == "here\n"


def test_a_shell_that_is_not_there_is_an_answer_too(ask: Ask) -> None:
    (answer,) = ask(one="ib-no-such-program").values()
    assert (answer.text, answer.code) == ("", 127)
    assert "not found" in answer.said
