"""Which files of a kernel's modules have to be loaded for a list of drivers, and in which order.

Reference: modules.dep(5), modprobe.d(5) for soft dependencies, and kmod's depmod(8): ``modules.dep`` has for each file
all that it needs, directly or not, with what has to be loaded first at the end of the line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imagebuilder.errors import ArtifactError

_SUFFIX = re.compile(r"\.ko(\.(xz|zst|gz))?$")
_LIMIT = 512  # files: a list of drivers gives below 40; "most" is not made here


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What depmod found out about a kernel's modules.

    Attributes:
        needs: per file, below ``/lib/modules/VERSION``, the files that it needs, the first to be loaded at the end.
        paths: file by the name of its module.
        builtin: names of the modules that are in the kernel itself.
        soft: per module the names or aliases wanted before it, and after it.
        aliases: names of modules by an alias that has no pattern.
    """

    needs: Mapping[str, Sequence[str]]
    paths: Mapping[str, str]
    builtin: frozenset[str]
    soft: Mapping[str, tuple[Sequence[str], Sequence[str]]]
    aliases: Mapping[str, Sequence[str]]


def module_name(path: str) -> str:
    """Return the name of a module as the kernel has it: of its file's, with underscores."""
    return _SUFFIX.sub("", path.rpartition("/")[2]).replace("-", "_")


def read_index(dep: str, builtin: str = "", softdep: str = "", alias: str = "") -> Index:
    """Return the index of a kernel from the texts of its ``modules.*`` files.

    Raises:
        ArtifactError: a file is named that is not below the modules' folder.
    """
    needs = {}
    for line in dep.splitlines():
        path, colon, rest = line.partition(":")
        if not colon:
            continue
        needs[path] = tuple(rest.split())
        for name in (path, *needs[path]):
            if name.startswith("/") or ".." in name.split("/"):
                raise ArtifactError(f"modules.dep names {name}, which is not among the kernel's modules")
    aliases: dict[str, list[str]] = {}
    for line in alias.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "alias" and not set(words[1]) & set("*?["):
            aliases.setdefault(words[1].replace("-", "_"), []).append(words[2].replace("-", "_"))
    return Index(
        needs=needs,
        paths={module_name(path): path for path in needs},
        builtin=frozenset(module_name(line) for line in builtin.splitlines() if line.strip()),
        soft=dict(_soft(line.split()) for line in softdep.splitlines() if line.startswith("softdep ")),
        aliases=aliases,
    )


def _soft(words: Sequence[str]) -> tuple[str, tuple[list[str], list[str]]]:
    """Return name, and what is wanted before and after: ``softdep NAME pre: A B post: C``."""
    before: list[str] = []
    after: list[str] = []
    part: list[str] = []  # kmod looks at nothing that stands before the first of both
    for word in words[2:]:
        if word in ("pre:", "post:"):
            part = before if word == "pre:" else after
        else:
            part.append(word.replace("-", "_"))
    return words[1].replace("-", "_") if len(words) > 1 else "", (before, after)


def load_order(index: Index, names: Sequence[str]) -> list[str]:
    """Return the files to load for these modules, each once and after all that it needs.

    What is in the kernel itself needs no file. Soft dependencies that the kernel does not have are left out.

    Raises:
        ArtifactError: the kernel does not have a module, or one of its files is not in the index.
    """
    order = _Order(index)
    missing = [name for name in names if not order.known(name)]
    if missing:
        raise ArtifactError(
            f"the kernel has no driver {', '.join(missing)}",
            hint="correct initramfs_modules of the target, or take its other kernel",
        )
    for name in names:
        order.add(name)
    return list(order.files)


class _Order:
    """Files in the order in which they were found to be needed."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.files: dict[str, None] = {}
        self._seen: set[str] = set()

    def known(self, name: str) -> bool:
        name = name.replace("-", "_")
        return name in self._index.paths or name in self._index.builtin

    def add(self, name: str) -> None:
        """Add a module with all that it needs; an alias stands for every module that has it."""
        todo: list[tuple[str, bool]] = [(name.replace("-", "_"), False)]
        while todo:
            name, ready = todo.pop()
            if ready:
                self._take(self._index.paths[name])
            elif name not in self._seen:
                self._seen.add(name)
                todo += reversed(self._steps(name))

    def _steps(self, name: str) -> list[tuple[str, bool]]:
        """Return what to do for a module, in order; the module itself, last but for what follows it, is marked."""
        if name not in self._index.paths:
            return [(other, False) for other in self._index.aliases.get(name, ()) if name not in self._index.builtin]
        before, after = self._index.soft.get(name, ((), ()))
        needed = [module_name(path) for path in reversed(self._index.needs[self._index.paths[name]])]
        unknown = [one for one in needed if one not in self._index.paths]
        if unknown:
            raise ArtifactError(f"the module {name} needs {', '.join(unknown)}, which modules.dep does not have")
        return [*((one, False) for one in (*before, *needed)), (name, True), *((one, False) for one in after)]

    def _take(self, path: str) -> None:
        self.files[path] = None
        if len(self.files) > _LIMIT:
            raise ArtifactError(f"more than {_LIMIT} modules are needed", hint="--initramfs stock")
