"""Starts the command line; the one place that turns errors into words and exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

import click

from imagebuilder.cli.failure import PIPE_CODE, explain, show
from imagebuilder.cli.root import PROGRAM, group
from imagebuilder.cli.settings import Settings

COMPLETE = "_IMAGEBUILDER_COMPLETE"  # set by the shell's completion script


# No plugin of ours or anyone's: looking for them costs 25 ms of every command.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; errors are shown here and nowhere else.

    Args:
        argv: the words after the program's name; those of this process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    settings = Settings()
    with _sigterm_as_interrupt():
        try:
            code = _run(words, settings)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            _leave_pipe()
            return PIPE_CODE
        except (Exception, KeyboardInterrupt) as error:
            problem = explain(error, words)
            with contextlib.suppress(BrokenPipeError):
                show(problem, error, json="--json" in words, debug=settings.debug)
            return problem.exit_code


def _run(words: list[str], settings: Settings) -> int:
    """Do what click's own ``main`` does, without its handling of errors."""
    if COMPLETE in os.environ:
        group.main(words, prog_name=PROGRAM)  # answers the shell and exits
    try:
        with group.make_context(PROGRAM, words, obj=settings) as context:
            group.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM take the way of Ctrl-C: everything that cleans up then does so."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave_pipe() -> None:
    """Give standard output another end, so that the interpreter's last flush does not complain."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


if __name__ == "__main__":
    sys.exit(main())
