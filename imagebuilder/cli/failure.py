"""Turns whatever was raised into one of our errors, and an error into words or JSON.

Every run imports this, few runs need it: what only an error needs is imported where it is used.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import click

from imagebuilder.errors import HostError, ImagebuilderError, InterruptedByUserError, UsageError

PIPE_CODE = 141  # 128 + SIGPIPE: what a shell reports for a program whose reader went away
HOST_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
DOCUMENT = "docs/errors.md"


def explain(error: BaseException, words: Sequence[str]) -> ImagebuilderError:
    """Return an error of ours that says what was raised.

    Args:
        error: what was raised.
        words: the command line, for the hint.
    """
    match error:
        case ImagebuilderError():
            return error
        case KeyboardInterrupt() | click.Abort():
            return InterruptedByUserError("stopped", hint="run the same command again: it goes on where it can")
        case click.ClickException():
            return _usage(error)
        case OSError() if error.errno in HOST_ERRNOS:
            where = f"{error.filename}: " if error.filename else ""
            hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check permissions and mounts"
            return HostError(f"{where}{error.strerror}", hint=hint)
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    import shlex

    again = shlex.join(["imagebuilder", "--debug", *words])
    return ImagebuilderError(f"internal error: {said}", hint=f"{again} shows where; please report it")


def _usage(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split()).rstrip(".")
    if not isinstance(context, click.Context):
        return UsageError(message)
    if isinstance(error, click.NoSuchOption):
        import difflib

        known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        close = difflib.get_close_matches(error.option_name, known, n=1)
        nearest = f' (did you mean "{close[0]}"?)' if close else ""
        message = f'there is no option "{error.option_name}"{nearest}'
    return UsageError(message[:1].lower() + message[1:], hint=f"{context.command_path} --help")


def show(problem: ImagebuilderError, error: BaseException, *, json: bool, debug: bool) -> None:
    """Show an error: words on standard error, or one JSON line on standard output; a traceback with ``debug``."""
    if debug and not isinstance(error, click.ClickException | KeyboardInterrupt):
        import traceback

        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if json:
        import json as jsonlib

        click.echo(jsonlib.dumps({"error": as_data(problem)}, ensure_ascii=False))
    else:
        click.echo(as_text(problem), err=True)


def as_data(problem: ImagebuilderError) -> dict[str, object]:
    """Return an error as plain data."""
    return {
        "ref": problem.ref,
        "exit_code": problem.exit_code,
        "message": problem.message,
        "context": problem.context,
        "hint": problem.hint,
    }


def as_text(problem: ImagebuilderError) -> str:
    """Return an error for people: what happened, the evidence, what to type next, and where to read more."""
    lines = [f"error: {problem.message}", *(f"  {line}" for line in problem.context.splitlines())]
    if problem.hint:
        lines.append(f"hint: {problem.hint}")
    lines.append(f"({problem.ref}, exit code {problem.exit_code}; {DOCUMENT})")
    return "\n".join(lines)
