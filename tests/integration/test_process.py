"""Programs run to their end: nothing that they say is lost, and nothing that they leave holds us up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.errors import CommandError, DeadlineError, ToolMissingError
from imagebuilder.process import RealRunner

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("capture", [True, False])
def test_last_words_said_while_we_look_whether_it_has_ended_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capture: bool
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    opened: list[int] = []

    def spawn(*args: object, **options: object) -> process.Child:
        child = real_spawn(*args, **options)  # type: ignore[arg-type]
        real_poll = child.poll

        def poll() -> int | None:
            """Have it say its last words and end at just this moment, once it was seen running and silent."""
            if time.monotonic() - started > 0.5 and not opened:
                opened.append(os.open(gate, os.O_WRONLY))
                os.close(opened[0])
                child.wait()
            return real_poll()

        monkeypatch.setattr(child, "poll", poll)
        return child

    real_spawn, started = process.spawn, time.monotonic()
    monkeypatch.setattr(process, "spawn", spawn)
    result = RealRunner().run(["sh", "-c", 'read x < "$0"; echo last words', gate], capture=capture)
    assert opened, "the moment was met"
    assert (result.stdout.strip() if capture else result.tail[-1]) == "last words"


def test_a_grandchild_with_our_pipe_does_not_hold_us_up() -> None:
    result = RealRunner().run(["sh", "-c", "sleep 300 & echo done"], timeout=60)
    assert (result.tail, result.seconds < 60) == (("done",), True)


def test_what_fails_is_shown_with_its_last_lines_and_a_command_to_paste() -> None:
    with pytest.raises(CommandError, match="sh ended with exit code 3") as caught:
        RealRunner().run(["sh", "-c", "echo what was wrong; exit 3"])
    assert "what was wrong" in caught.value.context and "sh -c 'echo what" in caught.value.context


def test_what_does_not_end_is_ended() -> None:
    with pytest.raises(DeadlineError, match="sleep was still running after"):
        RealRunner().run(["sleep", "300"], timeout=0.3)


def test_what_is_told_to_end_may_clean_up(tmp_path: Path) -> None:
    script = 'trap "echo cleaned > $0; exit 1" TERM; while :; do sleep 0.1; done'
    with pytest.raises(DeadlineError):
        RealRunner().run(["sh", "-c", script, tmp_path / "said"], timeout=1, patience=30)
    assert (tmp_path / "said").read_text() == "cleaned\n"


def test_only_what_is_allowed_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "word")
    said = RealRunner().run(["env"], env={"MINE": "1"}, capture=True).stdout.splitlines()
    assert {"MINE=1", "TZ=UTC"} <= set(said) and not [line for line in said if "SECRET" in line]


def test_a_program_that_is_missing_is_said_to_be() -> None:
    with pytest.raises(ToolMissingError, match="no-such-program is not installed"):
        RealRunner().run(["no-such-program"])


def test_standard_input_is_what_is_given() -> None:
    data = b"x" * (1 << 20)
    assert RealRunner().run(["wc", "-c"], stdin=data, capture=True).stdout.strip() == str(len(data))
