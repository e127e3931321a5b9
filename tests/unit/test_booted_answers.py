"""What many commands of one connection said: whole answers only, whatever they said."""

from __future__ import annotations

import pytest

from imagebuilder.verify.booted.answers import LIMIT, Answer, answers, mark, script, sections

WORD = "imagebuilder-0123456789abcdef0123456789abcdef"


def said(name: str, text: str, *, start: str = "10.50", end: str = "11.75", code: str = "0", error: str = "") -> str:
    return f"\n{WORD} begin {name} {start}\n{text}\n{WORD} end {name} {end} {code} {error} \n"


def test_each_answer_is_found_with_its_code_time_and_complaint() -> None:
    found = answers(said("one", "a\nb\n") + said("two", "", code="127", error="sh: two: not found"), WORD)
    assert found == {
        "one": Answer(text="a\nb\n", code=0, seconds=1.25),
        "two": Answer(text="", code=127, said="sh: two: not found", seconds=1.25),
    }


def test_an_answer_that_never_ended_is_none() -> None:
    assert list(answers(said("one", "a") + f"\n{WORD} begin two 12.0\nhalf", WORD)) == ["one"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\nimagebuilder-ffff end one 1.0 0 \n", id="frame-without-the-mark"),
        pytest.param(f"\n x {WORD} end one 1.0 0 \n", id="mark-within-a-line"),
    ],
)
def test_an_output_cannot_pass_for_the_end_of_an_answer(text: str) -> None:
    assert answers(said("one", text), WORD)["one"].text == text


def test_an_end_of_another_command_ends_nothing() -> None:
    assert answers(f"\n{WORD} begin one 1.0\na\n{WORD} end two 2.0 0 \n", WORD) == {}


@pytest.mark.parametrize(
    "text", ["", f"\n{WORD} ", f"\n{WORD} begin", f"\n{WORD} end", f"\n{WORD} begin a\n\n{WORD} end a"]
)
def test_a_torn_frame_is_no_error(text: str) -> None:
    assert all(answer.code == -1 for answer in answers(text, WORD).values())


def test_a_code_or_a_time_that_is_no_number_is_none() -> None:
    assert answers(said("one", "a", start="x", end="y", code="z"), WORD)["one"] == Answer(text="a", code=-1)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(Answer(text="x", code=124), "did not end within", id="sigterm"),
        pytest.param(Answer(text="x", code=137), "did not end within", id="sigkill"),
        pytest.param(Answer(text="x" * LIMIT, code=0), "said more than", id="flood"),
        pytest.param(Answer(text="x", code=1), "", id="any-other-code"),
    ],
)
def test_an_answer_that_is_not_whole_says_why(answer: Answer, why: str) -> None:
    assert why in answer.unusable and bool(why) == bool(answer.unusable)


def test_a_mark_is_new_every_time() -> None:
    assert mark() != mark()


def test_a_script_quotes_what_it_is_given() -> None:
    text = script({"one": "echo 'a b'"}, WORD, {"NAME": "a; reboot"}).decode()
    assert "ask one 'echo '\"'\"'a b'\"'\"''" in text
    assert "export NAME='a; reboot'" in text
    assert "@" not in text.replace("'\"'\"'", "")


def test_sections_are_cut_at_their_lines() -> None:
    assert sections("lost\n== one\na\n\n== two\n== three\nb") == {"one": "a", "two": "", "three": "b"}
