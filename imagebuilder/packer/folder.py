"""Puts a rendered folder on disk: written aside and renamed, and only over a folder that this module wrote itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from imagebuilder import __version__
from imagebuilder.content import fsync_directory, sha256_bytes, sha256_file, write_atomic
from imagebuilder.errors import UsageError
from imagebuilder.packer.render import Item

MARKER = ".imagebuilder.json"  # in each folder of ours: what we wrote, so that nothing else is ever removed
FORMAT = 1
SHOWN = 5  # names in one error


def write_folder(
    folder: Path, files: Mapping[str, Item], *, name: str, shared: dict[tuple[str, int], Path] | None = None
) -> bool:
    """Write a folder; return False when it is there already, just like this.

    Args:
        folder: where to; missing, empty, or written by this function and not changed since.
        files: what is in it.
        name: of the cell, for the marker.
        shared: files that others of many folders have too, by checksum and mode: they become hard links, which are
            made ten times as fast. This function adds to it, and leaves fsync to the caller, once for all folders.

    Raises:
        UsageError: the folder holds something that is not ours, or that was changed by hand.
    """
    check_ours(folder)
    digests = {path: digest(item) for path, item in sorted(files.items())}
    marker = _marker(digests, name)
    with contextlib.suppress(OSError):
        if (folder / MARKER).read_bytes() == marker:
            return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        aside.chmod(0o755)
        _fill(aside, files, {} if shared is None else _links(files, digests, shared))
        (aside / MARKER).write_bytes(marker)
        if shared is None:
            _sync(aside)
        _put(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if shared is None:
        fsync_directory(folder.parent)
    else:
        for path, item in files.items():
            shared.setdefault((digests[path], item.mode), folder / path)
    return True


def _links(
    files: Mapping[str, Item], digests: Mapping[str, str], shared: Mapping[tuple[str, int], Path]
) -> dict[str, Path]:
    """Return, for files that are elsewhere already, where."""
    keys = {path: (digests[path], item.mode) for path, item in files.items()}
    return {path: shared[key] for path, key in keys.items() if key in shared}


def check_ours(folder: Path) -> None:
    """Refuse a folder that holds something else than what :func:`write_folder` wrote.

    Raises:
        UsageError: it does; the first names are in the context.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="--output with another name")
    there = {Path(root, file).relative_to(folder).as_posix() for root, _, files in os.walk(folder) for file in files}
    if not there:
        return
    ours = read_marker(folder)
    if ours is None:
        raise UsageError(
            f"{folder} is not empty, and was not made by imagebuilder",
            context=_names(there), hint="--output with another name, or remove it yourself",
        )  # fmt: skip
    foreign = there - {MARKER, *ours}
    changed = {path for path in there & set(ours) if sha256_file(folder / path) != ours[path]}
    if foreign or changed:
        raise UsageError(
            f"{folder} holds {'files of yours' if foreign else 'changes of yours'}, which would be lost",
            context=_names(foreign or changed), hint="--output with another name, or move them away",
        )  # fmt: skip


def read_marker(folder: Path) -> dict[str, str] | None:
    """Return the checksums of what we wrote into a folder, or None when it is not ours."""
    try:
        data = json.loads((folder / MARKER).read_bytes())
        files = data["files"]
        if data["format"] == FORMAT and isinstance(files, dict):
            return {str(path): str(digest) for path, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _names(paths: set[str]) -> str:
    chosen = sorted(paths)
    return "\n".join([*chosen[:SHOWN], *([f"and {len(chosen) - SHOWN} more"] if len(chosen) > SHOWN else [])])


def digest(item: Item) -> str:
    """Return the sha256 of what a file of the folder will hold."""
    if isinstance(item.data, bytes):
        return _digest(item.data)
    return sha256_bytes(archive(item.data)) if item.data.is_dir() else sha256_file(item.data)


_digest = lru_cache(maxsize=4096)(sha256_bytes)


def _marker(digests: Mapping[str, str], name: str) -> bytes:
    data = {
        "format": FORMAT, "tool": f"imagebuilder {__version__}", "cell": name,
        "files": dict(digests),
    }  # fmt: skip
    return (json.dumps(data, indent=2) + "\n").encode()


def _fill(aside: Path, files: Mapping[str, Item], links: Mapping[str, Path]) -> None:
    made: set[str] = set()
    for name, item in files.items():
        parent, _, _ = name.rpartition("/")
        if parent not in made:
            os.makedirs(aside / parent, exist_ok=True)  # noqa: PTH103 - a thousand of them: Path costs half
            made.add(parent)
        path = os.path.join(aside, name)  # noqa: PTH118
        if name in links:
            with contextlib.suppress(OSError):  # gone, or a file system without links: then it is written
                os.link(links[name], path)
                continue
        if isinstance(item.data, Path) and not item.data.is_dir():
            shutil.copyfile(item.data, path)
            os.chmod(path, item.mode)  # noqa: PTH101
            continue
        data = item.data if isinstance(item.data, bytes) else archive(item.data)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, item.mode), "wb") as stream:  # noqa: PTH123
            stream.write(data)


def archive(folder: Path) -> bytes:
    """Return a folder as a tar archive: owners, times and the builder's group-write bits are not in it."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = "root"
        entry.mode &= ~0o022
        return entry

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(folder, arcname=".", filter=plain)  # sorted by name
    return stream.getvalue()


def _put(aside: Path, folder: Path) -> None:
    """Rename the new folder into place; the old one, which is ours, goes after it."""
    old = aside.with_suffix(".old")
    moved = folder.exists()
    if moved:
        folder.rename(old)
    try:
        aside.rename(folder)
    except OSError:
        if moved:
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for file in files:
            with Path(root, file).open("rb") as stream:
                os.fsync(stream.fileno())
        fsync_directory(Path(root))


def write_index(folder: Path, text: str, data: str) -> None:
    """Write ``README.md`` and ``index.json`` of many folders; those of ours are written over, others are not.

    Raises:
        UsageError: there is a README.md or index.json that is not ours.
    """
    index = folder / "index.json"
    if (folder / "README.md").exists() and not index.exists():
        raise UsageError(f"{folder / 'README.md'} was not made by imagebuilder", hint="--output with another name")
    if index.exists():
        try:
            ours = json.loads(index.read_bytes()).get("kind") == "PackerFolders"
        except (ValueError, AttributeError):
            ours = False
        if not ours:
            raise UsageError(f"{index} was not made by imagebuilder", hint="--output with another name")
    write_atomic(folder / "README.md", text)
    write_atomic(index, data)
