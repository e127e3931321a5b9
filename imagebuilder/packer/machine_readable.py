r"""Reads what ``packer -machine-readable`` prints. No I/O.

A line is ``timestamp,target,type,data...``; commas, newlines and carriage returns in data are written as
``%!(PACKER_COMMA)``, ``\n`` and ``\r`` (developer.hashicorp.com/packer/docs/commands, "Machine-Readable Output").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

COMMA = "%!(PACKER_COMMA)"
MAX_LINE = 64 << 10  # characters of one line that are looked at
MAX_TEXTS = 200  # errors that are kept: a broken template repeats itself
_ESCAPE = re.compile(r"\\([nr\\])")
_AT = re.compile(r"^\s*on (\S+?) line (\d+)[,:]|rule at (\S+?\.hcl):(\d+)", re.M)
_AGAIN = re.compile(r"\n?(?:==> |--> |Build ')")  # what the lines of type "error" say too
_SAID = re.compile(r"^(==> |    )([\w.-]+): ?(.*)$", re.S)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line: of which build it is, what kind it is, and its fields."""

    target: str
    kind: str
    data: tuple[str, ...]


def parse(text: str) -> Line | None:
    """Return a line, or None when it is none of machine-readable output: a warning of a plugin, for instance."""
    fields = text[:MAX_LINE].rstrip("\r\n").split(",")
    if len(fields) < 3 or not fields[0].isdigit():
        return None
    return Line(target=fields[1], kind=fields[2], data=tuple(map(unescape, fields[3:])))


def unescape(text: str) -> str:
    """Return a field as it was before Packer wrote it."""
    found = {"n": "\n", "r": "\r", "\\": "\\n"}
    return _ESCAPE.sub(lambda match: found[match[1]] if match[1] in "nr" else "\\", text).replace(COMMA, ",")


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """Something that a build made: its builder, its identifier (of an image in a cloud), and its files."""

    builder: str
    id: str
    text: str
    files: tuple[str, ...]


@dataclass(kw_only=True)
class Output:
    """What a run of packer has said.

    Attributes:
        errors: of packer itself and of builds; the output of a step that only went to standard error is not here.
        said: the last lines for people.
        step: the step of the recipe that began last and is not known to have ended well, or empty.
        failed: whether packer counted errors, whatever its exit code says.
    """

    errors: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    step: str = ""
    failed: bool = False
    _artifacts: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    def take(self, text: str) -> list[tuple[str, str]]:
        """Take one line; return (kind, text) of what people may want to see: ``note``, ``log`` or ``step``."""
        line = parse(text)
        if line is None:
            return [("log", text)] if text.strip() else []
        if line.kind == "ui" and len(line.data) > 1:
            return list(self._say(line.data[0], _COLOUR.sub("", line.data[1])))
        if line.kind == "error" and line.data:
            self._error(f"{line.target}: {line.data[0]}" if line.target else line.data[0])
        self.failed |= line.kind == "error-count" and line.data != ("0",)
        if line.kind == "artifact" and len(line.data) > 1:
            key, value = " ".join(line.data[1:-1]) or line.data[-1], line.data[-1]
            self._artifacts.setdefault((line.target, line.data[0]), {})[key] = value
        return []

    def _error(self, text: str) -> None:
        if len(self.errors) < MAX_TEXTS:
            self.errors.append(text.strip())

    def _say(self, kind: str, text: str) -> Iterator[tuple[str, str]]:
        found = _SAID.match(text)
        said = found[3] if found else text
        if kind == "error" and found is None and not _AGAIN.match(text) and not text.lstrip().startswith("Warning:"):
            self._error(text)
        for part in said.splitlines():
            if part.startswith("@@step "):
                self.step = part.removeprefix("@@step ")
                yield "step", self.step
            elif part.startswith("@@steps-done"):
                self.step = ""
            elif part.strip():
                self.said = [*self.said[-19:], part]
                yield "note" if found and found[1] == "==> " and kind == "say" else "log", part

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Return what builds made, in order."""
        return tuple(
            Artifact(
                builder=facts.get("builder-id", ""), id=facts.get("id", ""), text=facts.get("string", ""),
                files=tuple(value for key, value in facts.items() if key.startswith("file ")),
            )
            for facts in self._artifacts.values()
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnostic:
    """An error in HCL: where, in short, and the whole text."""

    file: str
    line: int
    text: str

    @property
    def short(self) -> str:
        """Return ``file:line: what``."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()] or ["an error"]
        listed = [line for line in lines if line.startswith("* ")]
        first = re.sub(r"^(Error: |\* )", "", listed[0] if listed and "occurred:" in lines[0] else lines[0])
        return f"{self.file}:{self.line}: {first}" if self.file else first


def diagnostics(texts: Sequence[str]) -> list[Diagnostic]:
    """Return what packer complained about, one for each error that it names a place of or prints apart."""
    found = []
    for block in re.split(r"(?m)^(?=Error: )", "\n".join(texts)):
        if block.strip():
            place = _AT.search(block)
            file, line = (place[1] or place[3], place[2] or place[4]) if place else ("", "0")
            found.append(Diagnostic(file=file, line=int(line), text=block.strip()))
    return found
