"""Reads HCL2 far enough to check it: blocks, attributes, references, and what is written wrongly, each with its line.

No evaluation. Specification: github.com/hashicorp/hcl, hclsyntax/spec.md. Stricter than python-hcl2, which takes
duplicate attributes, two attributes on a line, and unknown escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

MAX_BYTES = 1 << 20  # of one file: ours have a few KiB
_PLAIN = re.compile(r"[A-Za-z_][\w-]*|\d[\w.]*|==|!=|<=|>=|=>|&&|\|\||\.\.\.|[^\w\s]|\n", re.A)
_BLANK = re.compile(r"(?:[ \t\r]+|(?:#|//)[^\n]*)+")
_SIMPLE = re.compile(r'"[^"\\\n$%]*"')  # a string without escapes and templates
_RUN = re.compile(r"[^\"\\\n$%]+")
_ESCAPE = re.compile(r'\\(?:["\\nrt]|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})')
_HEREDOC = re.compile(r"<<-?([A-Za-z_][\w-]*)\n")
_OPEN, _CLOSE = {"{": "}", "[": "]", "(": ")"}, {"}", "]", ")"}


@dataclass(frozen=True, slots=True)
class Token:
    """A word, an operator, a newline or a string; a string is its text with quotes, as written."""

    text: str
    line: int

    @property
    def name(self) -> str:
        """Return the name that it is, also in quotes, or an empty string."""
        return self.text.strip('"') if re.match(r'"?[A-Za-z_]', self.text) else ""


@dataclass(slots=True)
class Body:
    """What is between two braces, or in a file: attributes with their tokens, and blocks."""

    attributes: dict[str, list[Token]] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)

    def text(self, name: str) -> str:
        """Return an attribute as written, or an empty string."""
        return "".join(token.text for token in self.attributes.get(name, ()))


@dataclass(slots=True)
class Block:
    """A block, for instance ``variable "name" { ... }``."""

    kind: str
    labels: tuple[str, ...]
    line: int
    body: Body


@dataclass(slots=True)
class Source:
    """One file.

    Attributes:
        references: (line, dotted name) of what its expressions name, for instance ``var.zone``.
        problems: (line, text) of what is wrong.
    """

    name: str
    body: Body = field(default_factory=Body)
    references: list[tuple[int, str]] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)


class _BrokenError(Exception):
    """Reading cannot go on."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line, self.text = line, text


@lru_cache(maxsize=4096)  # cells have many files in common
def read(name: str, text: str) -> Source:
    """Read one file; what is wrong with it is in ``problems``, and reading goes on where it can.

    What is returned is shared: it must not be changed.
    """
    source = Source(name=name)
    if len(text) > MAX_BYTES:
        source.problems.append((1, f"larger than {MAX_BYTES >> 20} MiB"))
        return source
    try:
        tokens = list(_Lexer(text, source).tokens())
        _Parser(tokens, source).file()
    except _BrokenError as broken:
        source.problems.append((broken.line, broken.text))
    return source


def declared(sources: Sequence[Source]) -> dict[str, dict[str, tuple[str, int]]]:
    """Return per kind (``var``, ``local``) the names that are declared, with file and line."""
    found: dict[str, dict[str, tuple[str, int]]] = {"var": {}, "local": {}}
    for source in sources:
        for block in source.body.blocks:
            if block.kind == "variable" and block.labels:
                found["var"][block.labels[0]] = (source.name, block.line)
            if block.kind == "local" and block.labels:
                found["local"][block.labels[0]] = (source.name, block.line)
            if block.kind == "locals":
                for name, tokens in block.body.attributes.items():
                    found["local"][name] = (source.name, tokens[0].line if tokens else block.line)
    return found


class _Lexer:
    def __init__(self, text: str, source: Source) -> None:
        self._text, self._source = text, source
        self._at, self._line = 0, 1

    def tokens(self, inside: bool = False) -> Iterator[Token]:
        """Yield tokens to the end; those of an interpolation to its closing brace."""
        depth, before = 0, ["", ""]
        while self._at < len(self._text):
            if blank := _BLANK.match(self._text, self._at):
                self._at = blank.end()
                continue
            line = self._line
            if self._text[self._at] == '"':
                simple = _SIMPLE.match(self._text, self._at)
                if simple:
                    self._at = simple.end()
                yield Token(simple[0] if simple else self._string(), line)
                before = ["", ""]
                continue
            if heredoc := _HEREDOC.match(self._text, self._at):
                yield Token(self._heredoc(heredoc), line)
                continue
            found = _PLAIN.match(self._text, self._at)
            if found is None:
                raise _BrokenError(line, f"unexpected character {self._text[self._at]!r}")
            word = found[0]
            self._at = found.end()
            self._line += word == "\n"
            depth += (word == "{") - (word == "}")
            if inside and depth < 0:
                return
            if before[1] == "." and before[0] in ("var", "local"):
                self._source.references.append((line, f"{before[0]}.{word}"))
            before = [before[1], word]
            yield Token(word, line)
        if inside:
            raise _BrokenError(self._line, "an interpolation has no end")

    def _string(self) -> str:
        start, line = self._at, self._line
        self._at += 1
        while self._at < len(self._text):
            if run := _RUN.match(self._text, self._at):
                self._at = run.end()
                continue
            rest = self._text[self._at : self._at + 10]
            if rest[0] == '"':
                self._at += 1
                return self._text[start : self._at]
            if rest[0] == "\n":
                break
            if rest[0] == "\\":
                escape = _ESCAPE.match(rest)
                if escape is None:
                    self._source.problems.append((line, f"{rest[:2]} is not an escape"))
                self._at += len(escape[0]) if escape else 2
            else:
                self._template(rest)
        raise _BrokenError(line, "a string has no end on its line")

    def _template(self, rest: str) -> None:
        """Step over one character of a string or heredoc, or over an interpolation."""
        if rest[:3] in ("$${", "%%{"):
            self._at += 3
        elif rest[:2] in ("${", "%{"):
            self._at += 2
            for _ in self.tokens(inside=True):
                pass
        else:
            self._line += rest[0] == "\n"
            self._at += 1

    def _heredoc(self, begin: re.Match[str]) -> str:
        start, line = self._at, self._line
        end = re.compile(rf"^[ \t]*{begin[1]}$", re.M).search(self._text, begin.end())
        if end is None:
            raise _BrokenError(line, f"the heredoc {begin[1]} has no end")
        self._at, self._line = begin.end(), line + 1
        while self._at < end.start():
            if run := _RUN.match(self._text, self._at, end.start()):
                self._at = run.end()
                continue
            self._template(self._text[self._at : self._at + 3])
        self._at = end.end()
        return self._text[start : self._at]


class _Parser:
    def __init__(self, tokens: list[Token], source: Source) -> None:
        self._tokens, self._source, self._at = tokens, source, 0

    def file(self) -> None:
        self._body(self._source.body, end="")

    def _peek(self, ahead: int = 0) -> Token:
        at = self._at + ahead
        last = self._tokens[-1].line if self._tokens else 1
        return self._tokens[at] if at < len(self._tokens) else Token("", last)

    def _next(self) -> Token:
        token = self._peek()
        self._at += 1
        return token

    def _problem(self, line: int, text: str) -> None:
        self._source.problems.append((line, text))

    def _body(self, body: Body, end: str) -> None:
        while True:
            while self._peek().text == "\n":
                self._at += 1
            token = self._next()
            if token.text == end:
                return
            if not token.name or token.text[0] == '"':
                raise _BrokenError(token.line, f"expected a name, not {token.text.strip() or 'the end of the file'}")
            if self._peek().text == "=":
                self._at += 1
                self._attribute(body, token)
            else:
                self._block(body, token)
            if self._peek().text not in ("\n", end):
                self._problem(self._peek().line, f"{token.text}: more on the same line: {self._peek().text}")

    def _attribute(self, body: Body, name: Token) -> None:
        if name.text in body.attributes:
            self._problem(name.line, f"{name.text}: stated twice")
        value = self._expression()
        if not value:
            self._problem(name.line, f"{name.text}: has no value")
        body.attributes[name.text] = value

    def _block(self, body: Body, kind: Token) -> None:
        labels = []
        while self._peek().name:
            labels.append(self._next().name)
        brace = self._next()
        if brace.text != "{":
            found = brace.text.strip() or "the end of the line"
            raise _BrokenError(brace.line, f"{kind.text}: expected = or {{, not {found}")
        block = Block(kind=kind.text, labels=tuple(labels), line=kind.line, body=Body())
        body.blocks.append(block)
        self._body(block.body, end="}")

    def _expression(self) -> list[Token]:
        """Take the tokens of one expression: to the end of the line, or to the brace that closes the body."""
        value: list[Token] = []
        while (token := self._peek()).text not in ("", "\n", "}", "]", ")"):
            value.append(self._next())
            if token.text in _OPEN:
                value += self._brackets(token)
            elif token.text == "=" or (value[-2:-1] and value[-2].name and token.name):
                self._problem(token.line, f"{token.text}: more on the same line")
        return value

    def _brackets(self, opening: Token) -> list[Token]:
        """Take everything to the bracket that closes ``opening``; of an object, look at the keys too."""
        value: list[Token] = []
        keys: set[str] = set()
        since = True  # whether a comma or a newline came after the last value
        while True:
            token = self._next()
            value.append(token)
            if not token.text:
                raise _BrokenError(opening.line, f"{opening.text} is never closed")
            if token.text in _OPEN:
                value += self._brackets(token)
            elif token.text in _CLOSE:
                if token.text != _OPEN[opening.text]:
                    raise _BrokenError(token.line, f"{opening.text} of line {opening.line} is closed by {token.text}")
                return value
            elif token.text in (",", "\n"):
                since = True
            elif token.text == "=" and opening.text == "{":
                key = value[-2].name if len(value) > 1 else ""
                if not since:
                    self._problem(token.line, f"{key}: neither a comma nor a new line before it")
                if key and key in keys:
                    self._problem(token.line, f"{key}: stated twice")
                keys.add(key)
                since = False
