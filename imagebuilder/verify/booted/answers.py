"""Many commands in one connection, each with a deadline and a limit of its own, and what each of them said.

Under emulation a command over SSH costs half a second, whatever it does: all that is asked at one time goes as one
script. A mark of this run's own frames every answer, so that no output can pass for the answer of another command.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

SECONDS = 120  # for one command; the slowest, dpkg -V, takes 12 s under emulation
GRACE = 5  # seconds between SIGTERM and SIGKILL
LIMIT = 1 << 20  # bytes of one answer; docker's description of itself, the longest, has 20 KiB
SAID = 300  # bytes of the last that it wrote to its standard error
FILE_BLOCKS = 4096  # of 512 bytes: what a command that floods may put into a file
TIMED_OUT = (124, 128 + 9)  # coreutils' timeout: by SIGTERM, by SIGKILL

# POSIX. In a guest the standard error lies in /run, which is memory.
_SCRIPT = r"""
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
folder=$(mktemp -d ${TMPDIR:-/run}/imagebuilder-verify.XXXXXX) || exit 1
trap 'rm -rf "$folder"' EXIT
ask() {
    read -r start _ < /proc/uptime
    printf '\n%s begin %s %s\n' "$mark" "$1" "$start"
    {
        (ulimit -f @BLOCKS@; exec timeout -k @GRACE@ @SECONDS@ sh -c "$2" < /dev/null 2> "$folder/said")
        printf '%s' "$?" > "$folder/code"
    } | head -c @LIMIT@
    read -r end _ < /proc/uptime
    printf '\n%s end %s %s %s ' "$mark" "$1" "$end" "$(cat "$folder/code")"
    tail -c @SAID@ "$folder/said" | tr '\n' ' '
    echo
}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a command said.

    Attributes:
        text: its standard output.
        code: how it ended; -1 where the shell could not tell.
        said: the last of its standard error, in one line.
        seconds: that it took, by the guest's clock.
    """

    text: str
    code: int
    said: str = ""
    seconds: float = 0.0

    @property
    def unusable(self) -> str:
        """Return why this is not the whole answer; empty when it is."""
        if self.code in TIMED_OUT:
            return f"the command did not end within {SECONDS} s"
        if len(self.text.encode()) >= LIMIT:
            return f"the command said more than {LIMIT >> 10} KiB"
        return ""


def mark() -> str:
    """Return a word that no output holds."""
    return f"imagebuilder-{secrets.token_hex(16)}"


def script(commands: Mapping[str, str], word: str, variables: Mapping[str, str]) -> bytes:
    """Return a shell script that asks all commands.

    Args:
        commands: for the shell, by name.
        word: the mark of this run.
        variables: what the commands find in their environment.
    """
    numbers = {"BLOCKS": FILE_BLOCKS, "GRACE": GRACE, "SECONDS": SECONDS, "LIMIT": LIMIT, "SAID": SAID}
    text = _SCRIPT
    for name, number in numbers.items():
        text = text.replace(f"@{name}@", str(number))
    asks = [f"ask {name} {shlex.quote(command)}" for name, command in commands.items()]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([f"mark={word}", *exports, text, *asks, ""]).encode()


def answers(text: str, word: str) -> dict[str, Answer]:
    """Return the answers in a script's output that are whole, by name; those that never ended are not among them."""
    found: dict[str, Answer] = {}
    begun: tuple[str, str, str] | None = None  # name, when, and what it said
    for piece in text.split(f"\n{word} "):
        head, _, rest = piece.partition("\n")
        kind, name, when, *more = [*head.split(" ", 4), "", "", ""][:5]
        if kind == "begin":
            begun = (name, when, rest)
        elif kind == "end" and begun and begun[0] == name:
            code, said = more
            found[name] = Answer(
                text=begun[2], code=int(code) if code.isdigit() else -1, said=said.strip(),
                seconds=round(max(0.0, number(when) - number(begun[1])), 2),
            )  # fmt: skip
            begun = None
    return found


def number(text: str) -> float:
    """Return the first number of what a guest said, such as that of /proc/uptime; 0.0 where there is none."""
    match = re.match(r"\s*(\d{1,9}(?:\.\d{1,9})?)", text)
    return float(match[1]) if match else 0.0


def sections(text: str) -> dict[str, str]:
    """Return the parts of an answer: a line ``== name`` begins one, what is before the first is left out."""
    parts = re.split(r"^== (\S+)\n?", text, flags=re.MULTILINE)
    return {name: part.strip() for name, part in zip(parts[1::2], parts[2::2], strict=True)}
