"""A local repository whose packages are not compressed: what was decompressed once is not decompressed at each bake.

dpkg unpacks them as it unpacks the ones that they are made from, and its database says nothing of a package file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from imagebuilder.content import cores, sha256_file
from imagebuilder.direct.debcache import DebCache
from imagebuilder.model import LockedPackage
from imagebuilder.sources.debfile import MAGIC, Part, copy_stored, parts
from imagebuilder.sources.debs import PACKAGES, sizes_of, write_index


def store_packages(repository: Path, packages: Sequence[LockedPackage], suite: str, cache: DebCache) -> None:
    """Put uncompressed packages in the place of those of a repository, and say so in its index.

    Args:
        repository: made by :func:`imagebuilder.sources.debs.make_repository`, of these packages.
        packages: whose hashes are right.
        suite: the name that the repository says it has.
        cache: of decompressed archives.

    Raises:
        ArtifactError: one is no package, or too large.
    """

    def store(package: LockedPackage) -> tuple[str, str]:
        path = repository / package.filename
        data = cache.get(path, package.sha256).data
        stored = repository / f"{package.sha256}.stored"
        with path.open("rb") as source, data.open("rb") as tar, stored.open("xb") as out:
            _write(source, parts(source)["control"], tar, out)
        stored.replace(path)
        return sizes_of(package.size, package.sha256), sizes_of(path.stat().st_size, sha256_file(path))

    index = (repository / PACKAGES).read_text("utf-8")
    with ThreadPoolExecutor(cores()) as pool:
        for before, after in pool.map(store, packages):
            index = index.replace(before, after)
    write_index(repository, suite, index)


def _write(source: IO[bytes], control: Part, tar: IO[bytes], out: IO[bytes]) -> None:
    """Write a package (deb(5)) of another's control archive, as it is, and a data archive that is not compressed."""
    out.write(MAGIC + _header("debian-binary", 4) + b"2.0\n")
    out.write(_header(f"control.tar{control.compression}", control.size))
    source.seek(control.offset)
    copy_stored(source, control.size, out)
    out.write(b"\n" * (control.size % 2))
    out.write(_header("data.tar", size := tar.seek(0, os.SEEK_END)))
    tar.seek(0)
    copy_stored(tar, size, out)
    out.write(b"\n" * (size % 2))


def _header(name: str, size: int) -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{size:<10}`\n".encode("ascii")
