"""A strict stand-in for programs: what a test did not tell it to answer is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder.process import Result, command_error

Answer = str | Callable[[list[str]], str]


class Failed(Exception):
    """Raised by an answer: the program ends with 100, and these are its last lines."""


@dataclass
class FakeRunner:
    """Answers commands by the words that they hold; the first entry whose words are all there is taken."""

    answers: Mapping[tuple[str, ...], Answer] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    folders: list[Path | None] = field(default_factory=list)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
        capture: bool = False,
        check: bool = True,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout: float | None = None,
        patience: float = 0.0,
    ) -> Result:
        """Answer, or refuse."""
        words = [str(word) for word in argv]
        self.commands.append(words)
        self.folders.append(cwd)
        answer = next((text for key, text in self.answers.items() if set(key) <= set(words)), None)
        if answer is None:
            raise AssertionError(f"nobody said what this answers: {words}")
        try:
            said = answer if isinstance(answer, str) else answer(words)
        except Failed as failed:
            result = Result(
                argv=tuple(words), returncode=100, stdout="", tail=tuple(str(failed).splitlines()), seconds=0
            )
            if check:
                raise command_error(result, log) from failed
            return result
        lines = tuple(said.splitlines())
        for line in () if capture or on_line is None else lines:
            on_line(line)
        return Result(
            argv=tuple(words), returncode=0, stdout=said if capture else "", tail=() if capture else lines, seconds=0
        )
