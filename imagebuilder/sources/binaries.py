"""Kubernetes's own release binaries: dl.k8s.io, or a mirror with the same tree.

Addresses: https://kubernetes.io/releases/download/#binaries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from imagebuilder.errors import UnresolvableError, UntrustedError
from imagebuilder.events import Progress
from imagebuilder.model import LockedFile
from imagebuilder.sources import payload
from imagebuilder.sources.download import Downloader
from imagebuilder.sources.elf import file_arch

BASE = "https://dl.k8s.io"
MAX_TEXT = 256  # bytes: a version or a checksum, one line
MAX_PROGRAM = 512 << 20  # bytes; kube-apiserver 1.35 has 103 MB
VERSION = re.compile(r"v(\d+\.\d+\.\d+)")
SHA256 = re.compile(r"([0-9a-f]{64})(?:\s.*)?", re.DOTALL)


class Binaries:
    """The release binaries at one place.

    Args:
        downloader: fetches.
        base: what stands for ``https://dl.k8s.io``.
    """

    def __init__(self, downloader: Downloader, *, base: str = BASE) -> None:
        self._downloader, self._base = downloader, base.rstrip("/")

    def resolve_version(self, minor: str) -> str:
        """Return the newest patch of a minor: ``1.35`` gives ``1.35.8``.

        Raises:
            UnreachableError: the place does not answer.
            UnresolvableError: it has no such minor, or does not say a version of it.
        """
        text = self._text(f"release/stable-{minor}.txt")
        found = VERSION.fullmatch(text)
        if found is None or not found.group(1).startswith(f"{minor}."):
            raise UnresolvableError(f"release/stable-{minor}.txt does not name a version of {minor}: {text!r}")
        return found.group(1)

    def lock(self, version: str, programs: Sequence[str], arch: str) -> tuple[LockedFile, ...]:
        """Return hashes and sizes of the programs of an exact version.

        The hashes are what the place states beside the files, over TLS: this is the one time that it is
        trusted; a lock file keeps the answer. ``path`` is upstream's address, whatever the mirror.

        Raises:
            UnreachableError, UnresolvableError: as for :meth:`resolve_version`.
        """
        return tuple(self._lock(version, program, arch) for program in programs)

    def fetch(
        self, locked: Sequence[LockedFile], cache_dir: Path, *, arch: str, progress: Progress | None = None
    ) -> Path:
        """Fetch what was locked into its payload folder, and return the folder.

        Raises:
            UnreachableError, UnresolvableError: as for :meth:`resolve_version`.
            UntrustedError: a file is not the one that was locked, or is no program for ``arch``.
        """
        wanted = _id(locked, arch)
        names = ", ".join(item.name for item in locked)
        with (progress or Progress()).stage("source:binaries", f"Fetching {names}") as stage:
            if found := payload.find(cache_dir, wanted, stage.note):
                stage.cached = True
                return found
            with payload.filling(cache_dir, wanted, {"kind": "binaries", "arch": arch}) as work:
                for item in locked:
                    target = work.folder / item.name
                    self._downloader.fetch(
                        self._address(item), target, sha256=item.sha256, max_size=item.size or MAX_PROGRAM,
                        on_progress=lambda done, total: stage.update(done, total, "B"),
                    )  # fmt: skip
                    if file_arch(target) != arch:
                        raise UntrustedError(f"{item.name} is no program for {arch}")
        return cache_dir / "payloads" / wanted

    @staticmethod
    def cached(locked: Sequence[LockedFile], cache_dir: Path, *, arch: str) -> bool:
        """Tell whether the cache has what was locked."""
        return payload.find(cache_dir, _id(locked, arch)) is not None

    def _lock(self, version: str, program: str, arch: str) -> LockedFile:
        path = f"release/v{version}/bin/linux/{arch}/{program}"
        found = SHA256.fullmatch(self._text(f"{path}.sha256"))
        if found is None:
            raise UnresolvableError(f"{path}.sha256 holds no checksum")
        head = self._downloader.get_bytes(f"{self._base}/{path}", max_size=MAX_PROGRAM, method="HEAD")
        length = head.headers.get("content-length", "")
        size = int(length) if length.isdigit() else 0
        return LockedFile(name=program, path=f"{BASE}/{path}", sha256=found.group(1), size=size)

    def _address(self, item: LockedFile) -> str:
        path = item.path.removeprefix(f"{BASE}/")
        return f"{self._base}/{path}" if path != item.path else item.path

    def _text(self, path: str) -> str:
        data = self._downloader.get_bytes(f"{self._base}/{path}", max_size=MAX_TEXT).body
        return data.decode("ascii", "replace").strip()


def _id(locked: Sequence[LockedFile], arch: str) -> str:
    hashes = {item.name: item.sha256 for item in locked}
    return payload.payload_id({"kind": "binaries", "arch": arch, "programs": hashes})
