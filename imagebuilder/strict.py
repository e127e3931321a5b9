"""Strict TOML: everything that is wrong with a file is said at once, with the nearest right name.

A model is the schema. Keys that it does not know, and values of another type, are errors; nothing is
converted, so ``size_gib = "8"`` is refused.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagebuilder.errors import DataError, ImagebuilderError
from imagebuilder.resources import data_root

MAX_BYTES = 1 << 20  # 1 MiB; the longest file of ours is below 8 KiB, so a larger one is not a data file

Strings = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists; a frozen type wants a tuple
_Model = TypeVar("_Model", bound=BaseModel)
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_AT_LINE = re.compile(r" \(at line (\d+), column (\d+)\)$")


class Strict(BaseModel):
    """Base of every type that is read from TOML: frozen, no unknown keys, no conversions."""

    # Built at first use: what a command does not validate costs it nothing.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


def label(path: Path) -> str:
    """Return the name of a file for messages: relative to the data folders where it lies in them."""
    try:
        return path.relative_to(data_root()).as_posix()
    except (ValueError, ImagebuilderError):
        return str(path)


def nearest(name: str, known: Collection[str]) -> str:
    """Return the known name that looks most like ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else ""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return `` (did you mean "x"?)``, or the known names where none is near."""
    close = nearest(name, known)
    if close:
        return f' (did you mean "{close}"?)'
    return f" (known: {', '.join(sorted(known))})" if known else ""


def read_toml(path: Path) -> dict[str, Any]:
    """Read one TOML file.

    Raises:
        DataError: it is missing, too large, not UTF-8, or not TOML; the message has file and line.
    """
    name = label(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}", hint=f"ls -l {path}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{name}: larger than {MAX_BYTES >> 20} MiB", hint="split it, or check the name")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}: not UTF-8 (byte 0x{data[error.start]:02x})") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _toml_error(name, text, str(error)) from error


def _toml_error(name: str, text: str, problem: str) -> DataError:
    lines = text.splitlines()
    found = _AT_LINE.search(problem)
    number = int(found[1]) if found else len(lines)
    context = lines[number - 1] if 0 < number <= len(lines) else ""
    return DataError(f"{name}:{number}: {_AT_LINE.sub('', problem)}", context=context)


def unknown_keys(raw: Any, model: Any, path: str, *, at: Sequence[str] = ()) -> list[str]:
    """Return one line for every key of ``raw`` that ``model`` does not know, however deep.

    Args:
        raw: what a TOML file holds, or a part of it.
        model: a pydantic model, or any annotation made of models, mappings, lists and unions.
        path: the file's name, the start of every line.
        at: the keys that lead to ``raw`` in the file.

    Returns:
        Lines like ``os_profiles/debian.toml: packages.bsae: unknown key (did you mean "base"?)``.
    """
    return [
        f"{path}: {'.'.join(keys)}: unknown key{did_you_mean(keys[-1], known)}"
        for keys, known in _unknown(raw, model, tuple(at))
    ]


def _unknown(raw: Any, model: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Collection[str]]]:
    origin, args = get_origin(model), get_args(model)
    if origin is Annotated:
        yield from _unknown(raw, args[0], at)
    elif origin in (Union, types.UnionType):
        for member in args:
            yield from _unknown(raw, member, at)
    elif isinstance(model, type) and issubclass(model, BaseModel) and isinstance(raw, Mapping):
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        for key, value in raw.items():
            if key in fields:
                yield from _unknown(value, fields[key].annotation, (*at, key))
            else:
                yield (*at, key), fields.keys()
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from _unknown(value, args[1], (*at, str(key)))
    elif isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(raw, list):
        for index, value in enumerate(raw):
            yield from _unknown(value, args[0], (*at, str(index)))


def validate(raw: Any, model: type[_Model], where: str, *, problems: Sequence[str] = ()) -> _Model:
    """Return ``raw`` as an instance of ``model``.

    Args:
        raw: plain data, as read from TOML.
        model: the pydantic model it must follow.
        where: the file's name, for the lines of the error.
        problems: lines that were found before, reported with the rest.

    Raises:
        DataError: one for everything that is wrong; its context has a line for each.
    """
    lines = [*problems, *unknown_keys(raw, model, where)]
    try:
        instance = model.model_validate(raw)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            if item["type"] == "extra_forbidden":
                continue  # unknown_keys names them, with a suggestion
            keys = ".".join(str(part) for part in item["loc"]) or "(the whole file)"
            lines.append(f"{where}: {keys}: {_sentence(item['type'], item['msg'], item['input'])}")
    if lines:
        raise wrong(where, lines)
    return instance


def wrong(where: str, lines: Sequence[str]) -> DataError:
    """Return the one error for a file with these problems, each named once."""
    unique = list(dict.fromkeys(lines))
    count = "1 problem" if len(unique) == 1 else f"{len(unique)} problems"
    return DataError(f"{where}: {count}", context="\n".join(unique), hint="imagebuilder schema --help")


def _sentence(kind: str, message: str, value: Any) -> str:
    if kind == "missing":
        return "missing"
    said = message.removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    return f"{said} (got {value!r:.60})"


def expand(text: str, placeholders: Mapping[str, str], *, late: Collection[str] = ()) -> str:
    """Replace ``{name}`` by its value; ``{{`` and ``}}`` stand for braces. There are no expressions.

    Args:
        text: the text as written in a data file.
        placeholders: the closed set of names.
        late: names that are known, but whose value comes later: they, and doubled braces, stay as written.

    Raises:
        DataError: an unknown name, or a brace without its partner.
    """

    def replace(match: re.Match[str]) -> str:
        whole, name = match[0], match[1]
        if name is None:
            if len(whole) == 2:
                return whole if late else whole[0]
            raise DataError(f'"{text}": a single "{whole}"', hint=f'write "{whole}{whole}" for a brace')
        if name in late:
            return whole
        if name not in placeholders:
            known = [*placeholders, *late]
            raise DataError(f'"{text}": unknown placeholder {whole}{did_you_mean(name, known)}')
        return placeholders[name]

    return _PLACEHOLDER.sub(replace, text) if "{" in text or "}" in text else text
