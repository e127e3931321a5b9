"""Checks a rendered folder without Packer: what it would refuse, and what it would let pass and should not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from imagebuilder.errors import CheckFailedError
from imagebuilder.packer.syntax import Source, declared, read

TEMPLATE, VALUES = ".pkr.hcl", ".pkrvars.hcl"
SHOWN = 20  # lines of problems in one error
_EMPTY = ("", '""')


def check_folder(files: Mapping[str, str], *, parse: bool = True) -> None:
    """Check the HCL of one folder.

    Args:
        files: text by file name; only ``.hcl`` files are looked at. Those of one Packer version: names are the same.
        parse: also read each with python-hcl2, an independent parser.

    Raises:
        CheckFailedError: a line for each problem, with file and line.
    """
    found = list(problems(files, parse=parse))
    if found:
        more = f"\nand {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise CheckFailedError(
            f"the Packer folder has {len(found)} problem{'s' if len(found) > 1 else ''}: {found[0]}",
            context="\n".join(found[:SHOWN]) + more,
            hint="correct packer/*.j2, or the profile or target that it is made from",
        )


def problems(files: Mapping[str, str], *, parse: bool = True) -> Iterator[str]:
    """Yield ``file:line: what is wrong``, the files in the order of their names."""
    sources = [read(name, text) for name, text in sorted(files.items()) if name.endswith(".hcl")]
    for source in sources:
        yield from (f"{source.name}:{line}: {text}" for line, text in source.problems)
    templates = [source for source in sources if source.name.endswith(TEMPLATE)]
    values = [source for source in sources if source.name.endswith(VALUES)]
    yield from _names(templates, values)
    for source in templates:
        yield from _variables(source)
    if parse:
        for source in sources:
            yield from _parsed(source.name, files[source.name])


def _names(templates: list[Source], values: list[Source]) -> Iterator[str]:
    known = declared(templates)
    used = Counter(name for source in templates for _, name in source.references)
    for source in templates:
        for line, name in source.references:
            kind, _, word = name.partition(".")
            if word not in known[kind]:
                yield f"{source.name}:{line}: {name} is not declared"
    for source in templates:
        for block in source.body.blocks:
            if block.kind == "variable":
                inside = _own_references(source, block.line)
                if used[f"var.{block.labels[0]}"] <= inside.count(f"var.{block.labels[0]}"):
                    yield f"{source.name}:{block.line}: var.{block.labels[0]} is never used"
    for name, (file, line) in known["local"].items():
        if not used[f"local.{name}"]:
            yield f"{file}:{line}: local.{name} is never used"
    counts = Counter(block.labels for source in templates for block in source.body.blocks if block.kind == "variable")
    yield from (f'variable "{labels[0]}" is declared {count} times' for labels, count in counts.items() if count > 1)
    for source in values:
        for name, tokens in source.body.attributes.items():
            if name not in known["var"]:
                line = tokens[0].line if tokens else 1
                yield f"{source.name}:{line}: {name} is a value of a variable that is not declared"


def _own_references(source: Source, line: int) -> list[str]:
    """Return what a block refers to itself: a variable's validation is no use of it."""
    following = [block.line for block in source.body.blocks if block.line > line]
    end = min(following, default=1 << 30)
    return [name for at, name in source.references if line <= at < end]


def _variables(source: Source) -> Iterator[str]:
    for block in source.body.blocks:
        if block.kind == "variable":
            for key in ("type", "description"):
                if block.body.text(key) in _EMPTY:
                    yield f"{source.name}:{block.line}: variable {block.labels[0]} has no {key}"


def _parsed(name: str, text: str) -> Iterator[str]:
    import hcl2  # half a second: only where it is asked for
    from lark.exceptions import LarkError

    try:
        hcl2.loads(text)
    except LarkError as error:
        yield f"{name}:{getattr(error, 'line', 1)}: {str(error).splitlines()[0]}"
