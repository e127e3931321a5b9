"""HCL2 text: quotes Python values as literals, and lays text out as ``packer fmt`` does.

The layout follows hclwrite (github.com/hashicorp/hcl, hclwrite/format.go): two spaces for each level of brackets, and
the equals signs of neighbouring one-line attributes in one column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from imagebuilder.errors import UsageError

LINE_WIDTH = 100  # a list that is longer gets a line for each item
INDENT = "  "
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_WORDS = frozenset({"for", "in", "if", "else", "endif", "endfor", "true", "false", "null"})
_NAMED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]|\$(?=\{)|%(?=\{)')
_HEREDOC = re.compile(r"<<(-?)([A-Za-z_][A-Za-z0-9_-]*)")


def quote(value: Any) -> str:
    """Return a value as an HCL literal; what reads it gets the value back.

    Args:
        value: None, a bool, an int, a float, a string, or a list or mapping of such.

    Raises:
        UsageError: it cannot be written as HCL.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return quote_string(value)
        case Mapping():
            return _mapping(value)
        case Sequence():
            return _list(value)
    raise UsageError(f"a {type(value).__name__} cannot be written as HCL")


def quote_string(text: str) -> str:
    """Return a string as an HCL literal: no character of it is taken for a template or an escape.

    Raises:
        UsageError: it holds half of a surrogate pair, which no UTF-8 file can.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!a} cannot be written as UTF-8") from error
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if character in "$%":
        return character * 2
    return _NAMED.get(character) or f"\\u{ord(character):04x}"


def _list(values: Sequence[Any]) -> str:
    items = [quote(value) for value in values]
    line = f"[{', '.join(items)}]"
    if len(line) <= LINE_WIDTH and "\n" not in line:
        return line
    return "\n".join(["[", *(f"{item}," for item in items), "]"])


def _mapping(values: Mapping[Any, Any]) -> str:
    if not values:
        return "{}"
    return "\n".join(["{", *(f"{_key(str(key))} = {quote(value)}" for key, value in values.items()), "}"])


def _key(name: str) -> str:
    return name if _NAME.match(name) and name not in _WORDS else quote_string(name)


@dataclass(slots=True)
class Line:
    """What the layout of one line depends on.

    Attributes:
        text: without indentation and trailing spaces.
        net: brackets that it opens, less those that it closes.
        equal: where the first equals sign is, when the rest of the line is a whole expression; else -1.
        comment: where a comment begins, or -1.
        heredoc: the word that ends a heredoc begun here, or empty.
    """

    text: str
    net: int = 0
    equal: int = -1
    comment: int = -1
    heredoc: str = ""


def code_of(text: str) -> Iterator[tuple[int, str, int]]:
    """Yield (position, character, depth of quotes) of one line's code: nothing of what is in a string or a comment.

    The interpolations of a string are code; a comment is its first character alone.
    """
    stack: list[int] = []  # an open string is -1; an interpolation in it is the number of braces open there
    at = 0
    while at < len(text):
        rest, inside = text[at:], bool(stack) and stack[-1] < 0
        if inside:
            if rest.startswith("\\") or rest[:3] in ("$${", "%%{"):
                at += 3 if rest[0] in "$%" else 2
                continue
            if rest[:2] in ("${", "%{"):
                stack.append(0)
                at += 1
            elif rest[0] == '"':
                stack.pop()
        elif rest[0] == '"':
            stack.append(-1)
        elif rest[0] == "}" and stack and stack[-1] == 0:
            stack.pop()
        else:
            if stack and rest[0] in "{}":
                stack[-1] += 1 if rest[0] == "{" else -1
            yield at, rest[0], len(stack)
            if rest[0] == "#" or rest[:2] == "//":
                return
        at += 1


def scan(text: str) -> Line:
    """Return what the layout of a line depends on."""
    known = _scan(text)
    return Line(text, known.net, known.equal, known.comment, known.heredoc)


@lru_cache(maxsize=8192)  # cells have most of their lines in common
def _scan(text: str) -> Line:
    line, since = Line(text=text), 0
    first = -1
    for at, character, _ in code_of(text):
        change = (character in "([{") - (character in ")]}")
        line.net, since = line.net + change, since + change
        if character == "#" or text.startswith("//", at):
            line.comment = at
        elif character == "=" and first < 0 and text[at + 1 : at + 2] not in ("=", ">") and text[at - 1] not in "=!<>":
            first, since = at, 0
        elif character == "<" and (begin := _HEREDOC.match(text, at)):
            line.heredoc = begin[2]
            break
    if first > 0 and since == 0:
        line.equal = first
    return line


@lru_cache(maxsize=8192)  # and many of their files
def format_hcl(text: str) -> str:
    """Return HCL as ``packer fmt`` writes it; runs of blank lines become one, as templates leave them behind."""
    lines: list[Line] = []
    levels: list[int] = []
    heredoc = ""
    for raw in text.splitlines():
        if heredoc:
            lines[-1].text += f"\n{raw}"  # to the layout, a heredoc is a part of the line that begins it
            heredoc = "" if raw.strip() == heredoc else heredoc
            continue
        line = scan(raw.strip())
        if not line.text and (not lines or not lines[-1].text):
            continue
        heredoc = line.heredoc
        depth = _indent(levels, line.net)
        line.text = INDENT * depth + line.text if line.text else ""
        shift = len(INDENT) * depth
        line.equal += shift if line.equal >= 0 else 0
        line.comment += shift if line.comment >= 0 else 0
        lines.append(line)
    _align(lines, lambda line: line.equal)
    for line in lines:  # the comments have moved
        line.comment = -1 if line.comment < 0 else scan(line.text).comment
    _align(lines, lambda line: line.comment if line.text[: line.comment].strip() else -1)
    return "\n".join(line.text for line in lines).rstrip("\n") + "\n"


def _indent(levels: list[int], net: int) -> int:
    """Return the depth of a line, and count its brackets."""
    if net < 0:
        _close(levels, -net)
    depth = len(levels)
    if net > 0:
        levels.append(net)
    return depth


def _close(levels: list[int], count: int) -> None:
    while count > 0 and levels:
        taken = min(count, levels[-1])
        levels[-1] -= taken
        count -= taken
        if not levels[-1]:
            levels.pop()


def _align(lines: Sequence[Line], position: Callable[[Line], int]) -> None:
    """Move what is at ``position`` of neighbouring lines into one column."""
    run: list[Line] = []
    for line in (*lines, Line(text="")):
        if position(line) >= 0:
            run.append(line)
            continue
        heads = [(item, item.text[: position(item)].rstrip(), item.text[position(item) :].strip()) for item in run]
        column = max((len(head) for _, head, _ in heads), default=0) + 1
        for item, head, tail in heads:
            item.text = f"{head:<{column}}{tail}"
            if tail.startswith("="):
                item.text = f"{head:<{column}}= {tail[1:].lstrip()}"
        run = []
