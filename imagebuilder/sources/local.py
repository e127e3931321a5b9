"""Programs from a folder of the user: ``--source kubernetes=file:/opt/my-kubernetes``."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagebuilder.content import CHUNK, boot_id, cores, sha256_files
from imagebuilder.errors import DataError
from imagebuilder.sources import payload
from imagebuilder.sources.addresses import local_path
from imagebuilder.sources.elf import file_arch


def load(source: str, programs: Sequence[str], *, arch: str, cache_dir: Path) -> Path:
    """Copy programs from a folder into the payload folder of their content.

    Args:
        source: ``file:<dir>``, or the folder's path.
        programs: names that must be there.
        arch: what they must be for.
        cache_dir: the cache.

    Returns:
        The payload folder.

    Raises:
        DataError: programs are missing or not usable; all that is wrong is said at once.
    """
    folder = local_path(source)
    if folder is None or not folder.is_dir():
        raise DataError(f"{source} is no folder on this host", hint="--source COMPONENT=file:/path/of/folder")
    if problems := [text for name in programs for text in _problems(folder / name, arch)]:
        raise DataError(f"{folder} cannot be used: {len(problems)} problems", context="\n".join(problems))
    hashes = dict(zip(programs, sha256_files([folder / name for name in programs]), strict=True))
    wanted = payload.payload_id({"kind": "file", "arch": arch, "programs": hashes})
    if found := payload.find(cache_dir, wanted):
        return found
    with payload.filling(cache_dir, wanted, {"kind": "file", "arch": arch, "boot": boot_id()}) as work:
        with ThreadPoolExecutor(cores()) as pool:
            copied = list(pool.map(lambda name: _copy(folder / name, work.folder / name), programs))
        for name, digest in zip(programs, copied, strict=True):
            if digest != hashes[name]:
                raise DataError(f"{folder / name} changed while it was copied")
        work.hashes.update(hashes)
    return cache_dir / "payloads" / wanted


def _copy(source: Path, target: Path) -> str:
    """Copy a file; return the sha256 of what was written: the copy is not read again for it."""
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("xb") as writing:
        while chunk := reading.read(CHUNK):
            digest.update(chunk)
            writing.write(chunk)
    return digest.hexdigest()


def _problems(path: Path, arch: str) -> Iterator[str]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            yield f"{path.name}: no regular file"
            return
        if not status.st_mode & 0o111:
            yield f"{path.name}: not executable (chmod +x)"
        found = file_arch(path)
        if found != arch:
            yield f"{path.name}: " + (f"for {found}, not for {arch}" if found else "no ELF program of Linux")
    except FileNotFoundError:
        yield f"{path.name}: missing"
    except OSError as error:
        yield f"{path.name}: {os.strerror(error.errno or 0)}"
