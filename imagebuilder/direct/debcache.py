"""The decompressed archives of packages, kept in the cache: the second time only a hash is computed.

``<sha256 of the package>.tar`` holds ``data.tar``, and a file beside it, ``.json``, its size and hash. A file that is
not what that says (a power cut, a bad disk) is made again. Nothing is synced: a loss costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.content import canonical_json
from imagebuilder.errors import ArtifactError
from imagebuilder.process import Runner
from imagebuilder.sources.debfile import control_files, parts, unpack


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """A package's two archives: the one in memory, the other a verified file."""

    control: bytes
    data: Path


class DebCache:
    """Archives in ``folder``; ``scratch`` is an empty folder of the caller's on the same file system."""

    def __init__(self, folder: Path, scratch: Path, runner: Runner) -> None:
        self._folder, self._scratch, self._runner = folder, scratch, runner
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, path: Path, sha256: str) -> Unpacked:
        """Return the archives of a package file whose hash is right.

        Raises:
            ArtifactError: it is no package, or too large.
        """
        try:
            with path.open("rb") as stream:
                found = parts(stream)
            control = control_files(path, found["control"], self._scratch / f"{sha256}.control", self._runner)
            tar = self._folder / f"{sha256}.tar"
            if not _whole(tar):
                aside = self._scratch / f"{sha256}.tar"
                with aside.open("w+b") as out:
                    unpack(path, found["data"], out, self._runner)
                note = self._scratch / f"{sha256}.json"
                note.write_bytes(canonical_json({"size": aside.stat().st_size, "sha256": _digest(aside)}))
                aside.replace(tar)
                note.replace(tar.with_suffix(".json"))
            return Unpacked(control=control, data=tar)
        except ArtifactError as error:
            raise ArtifactError(f"{path.name}: {error.message}", context=error.context, hint=error.hint) from error


def _whole(tar: Path) -> bool:
    """Tell whether a file in the cache is what was written there."""
    try:
        note = json.loads(tar.with_suffix(".json").read_bytes())
        return bool(tar.stat().st_size == note["size"] and _digest(tar) == note["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(path: Path) -> str:
    with mapped(path) as data:
        return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file that is not empty into memory, to read it.

    Raises:
        ArtifactError: it is empty.
    """
    with path.open("rb") as stream:
        try:
            data = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError as error:
            raise ArtifactError(f"{path.name} is empty") from error
        with data:
            yield data
