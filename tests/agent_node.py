"""A node in a folder for the agent's tests, packages for it, and a disk that fails or loses power at any call."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagebuilder.agent import agent

NOW = float(agent.calendar.timegm((2026, 12, 1, 0, 0, 0)))
BUILT = float(agent.calendar.timegm((2026, 11, 20, 0, 0, 0)))
POINT = bytes(range(64))  # unit tests believe any point: the verifier is a stand-in
SPKI = agent.SPKI_P256 + POINT
FILES = {
    "/etc/kubernetes/kubelet.conf": b"kubeconfig 1\n",
    "/etc/kubernetes/manifests/web.yaml": b"kind: Pod\n",
    "/var/lib/kubelet/config.yaml": b"kind: KubeletConfiguration\n",
    "/var/lib/kubelet/pki/kubelet.key": b"a private key\n",
}
HELD = ("etc", "root", "var/lib/kubelet", "usr")  # what a package may change, and what it must not
OWN = {"uuid": ["11111111-2222-3333-4444-555555555555"]}


def pem(spki: bytes) -> bytes:
    """Return a public key as a file of trust.d."""
    body = base64.encodebytes(spki)
    return b"-----BEGIN PUBLIC KEY-----\n" + body + b"-----END PUBLIC KEY-----\n"


def key_id(spki: bytes = SPKI) -> str:
    return hashlib.sha256(spki).hexdigest()[:32]


def sign(data: bytes) -> bytes:
    """Sign for the stand-in verifier."""
    return b"\x30" + hashlib.sha256(data).digest()


def manifest(files: Mapping[str, bytes] = FILES, **changes: Any) -> dict[str, Any]:
    """Return a manifest for files; secrets are 0600."""
    document = {
        "apiVersion": "imagebuilder/v1", "kind": "DataPackage", "cluster": "demo", "node": "node-1",
        "role": "standalone", "generation": 1, "notBefore": "2026-11-24T00:00:00Z",
        "notAfter": "2027-11-24T00:00:00Z", "keyId": key_id(), "selectors": {}, "requires": {}, "settings": {},
        "files": [
            {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "owner": "0:0",
             "mode": "0600" if path.endswith((".key", ".conf")) else "0644"}
            for path, data in sorted(files.items())
        ],
    }  # fmt: skip
    return {**document, **changes}


def archive(entries: Sequence[tuple[str, bytes]], edit: Callable[[tarfile.TarInfo], None] | None = None) -> bytes:
    """Return a USTAR archive of entries; ``edit`` may spoil each header."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            if edit:
                edit(entry)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def entries(document: Mapping[str, Any], files: Mapping[str, bytes], signer: Any = sign) -> list[tuple[str, bytes]]:
    """Return the entries of a package in their order."""
    raw = agent.canonical(document)
    inside = [("files" + path, data) for path, data in sorted(files.items())]
    return [("manifest.json", raw), ("manifest.sig", signer(raw)), *inside]


def pack(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def package(files: Mapping[str, bytes] = FILES, signer: Any = sign, **changes: Any) -> bytes:
    """Return a package file."""
    return pack(archive(entries(manifest(files, **changes), files, signer)))


class PowerCut(BaseException):
    """The machine is off: no handler of the agent's may catch this."""


WRITING = (os.write, os.mkdir, os.rename, os.unlink, os.rmdir, os.fchmod, os.fchown, os.fsync)


class TestDisk(agent.Disk):
    """A disk that stops at one of its calls, and that knows what would be lost with the power.

    Attributes:
        at: number of the writing call that fails; -1 for none.
        fault: an errno, or 0 for a power cut. A power cut fails all later calls too; an error does if it ``stays``.
        count: of the writing calls so far.
        lossy: a power cut also loses all that was not synced: names made, changed or removed, and contents.
    """

    __test__ = False

    def __init__(self, root: str, at: int = -1, fault: int = 0, *, stays: bool = False, lossy: bool = False) -> None:
        super().__init__(root)
        self.at, self.fault, self.stays, self.lossy = at, fault, stays or not fault, lossy
        self.count = 0
        self.undo: list[tuple[int, Callable[[], None]]] = []  # of names that are not synced, by their folder
        self.dirty: dict[int, tuple[int, int]] = {}  # of contents that are not synced: a file, and its durable size
        self.graves = 0

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        writing = function in WRITING or (function is os.open and arguments[1] & os.O_CREAT)
        if writing:
            self.count += 1
        # Power that is lost at a call that only reads leaves what is left at the next one that writes.
        if self.at >= 0 and (writing or not self.fault) and self.count > self.at:
            if not self.fault:
                raise PowerCut
            if self.count == self.at + 1 or self.stays:
                raise OSError(self.fault, os.strerror(self.fault))
        if function is os.fsync:
            self._synced(arguments[0])
            return None
        if not writing or not self.lossy:
            return function(*arguments, **options)
        return self._remembering(function, arguments, options)

    def _synced(self, number: int) -> None:
        inode = os.fstat(number).st_ino
        self.undo = [item for item in self.undo if item[0] != inode]
        if inode in self.dirty:
            os.close(self.dirty.pop(inode)[0])

    def _remembering(self, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        if function is os.write:
            found = os.fstat(arguments[0])
            if found.st_ino not in self.dirty:
                self.dirty[found.st_ino] = (os.dup(arguments[0]), found.st_size)
        name = str(arguments[1] if function is os.rename else arguments[0])
        folder = options.get("dir_fd", options.get("dst_dir_fd"))
        if folder is None:
            return function(*arguments, **options)
        where = f"/proc/self/fd/{folder}"
        path = Path(os.readlink(where), name)
        grave = Path(self.root, "graves", str(self.graves))
        self.graves += 1
        grave.parent.mkdir(exist_ok=True)
        there = os.path.lexists(path)
        if there and function in (os.rename, os.unlink):
            os.link(path, grave)
        result = function(*arguments, **options)
        if function is os.open and there:
            return result  # nothing was made
        self.undo.append((os.stat(where).st_ino, lambda: _undone(function, path, grave if there else None)))
        return result

    def lose(self) -> None:
        """Lose what was not synced, as a file system may that lost power."""
        for number, size in self.dirty.values():
            os.truncate(f"/proc/self/fd/{number}", size)
            os.close(number)
        for _, undo in reversed(self.undo):
            undo()


def _undone(function: Callable[..., Any], path: Path, grave: Path | None) -> None:
    if not path.parent.is_dir():
        return  # the folder itself is durably gone
    if function is os.rmdir:
        path.mkdir(exist_ok=True)
    elif function is os.mkdir:
        with contextlib.suppress(OSError):
            path.rmdir()
    elif grave is not None:
        grave.replace(path)
    elif function in (os.open, os.rename):
        path.unlink(missing_ok=True)


@dataclass
class Node:
    """The tree of a node at ``root``, and what its agent does and says."""

    root: Path
    now: float = NOW
    healthy: Callable[[], bool] = field(default=lambda: True)
    slept: float = 0.0
    said: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path) -> Node:
        """Make a fresh node."""
        node = cls(root)
        for path, text in {
            "proc/uptime": "12.34 5.6\n", "proc/sys/kernel/hostname": "node-1\n",
            "proc/sys/kernel/random/boot_id": "first\n", "sys/class/dmi/id/product_uuid": OWN["uuid"][0] + "\n",
            "sys/class/dmi/id/product_serial": "ABC\n", "sys/class/net/eth0/address": "52:54:00:00:00:01\n",
            "dev/console": "", "etc/hostname": "localhost\n", "etc/passwd": "root\n", "usr/bin/kubelet": "",
            "etc/imagebuilder/trust.d/a.pem": pem(SPKI).decode(),
            "usr/lib/imagebuilder/image.json": json.dumps(
                {"arch": "amd64", "init": "systemd", "kubelet": "1.35.8", "runtimes": ["containerd", "docker"]}),
        }.items():  # fmt: skip
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        for path in ("etc/kubernetes/manifests", "etc/systemd/system", "var/lib/kubelet", "root", "run"):
            (root / path).mkdir(parents=True, exist_ok=True)
        (root / "var/lib/kubelet").chmod(0o700)
        os.utime(root / "usr/lib/imagebuilder/image.json", (BUILT, BUILT))
        return node

    def host(self, disk: agent.Disk | None = None) -> agent.Host:
        """Return the agent's view of this node; nothing leaves it."""
        host = agent.Host(str(self.root))
        host.disk = disk or TestDisk(str(self.root))
        host.verify = lambda key, data, signature: signature == sign(data)
        host.now = lambda: self.now
        host.monotonic = lambda: self.slept
        host.sleep = self._sleep
        host.healthy = lambda: self.healthy()  # type: ignore[method-assign]
        host.say = self.said.append  # type: ignore[method-assign]
        return host

    def _sleep(self, seconds: float) -> None:
        self.slept += seconds

    def act(self, *words: str, disk: agent.Disk | None = None) -> str:
        """Run a command of the agent's, and return its code."""
        parsed = agent.parse(["--root", str(self.root), *words])
        host = self.host(disk)
        host.source = getattr(parsed, "source", "")
        return agent.act(host, parsed)

    def file(self, data: bytes) -> str:
        """Put a package beside the node, and return its path."""
        path = self.root.parent / "package.ibdata"
        path.write_bytes(data)
        return str(path)

    def apply(self, data: bytes, *options: str, disk: agent.Disk | None = None) -> str:
        """Apply a package, and return the code."""
        return self.act("apply", *options, self.file(data), disk=disk)

    def reboot(self) -> None:
        """Start the kernel anew."""
        path = self.root / "proc/sys/kernel/random/boot_id"
        path.write_text(path.read_text().strip() + "+\n")
        (self.root / "run/imagebuilder/found-local").unlink(missing_ok=True)

    def read(self, path: str) -> bytes:
        return (self.root / path.lstrip("/")).read_bytes()

    def document(self, name: str) -> Any:
        """Return one of the agent's documents."""
        return json.loads(self.read(f"/var/lib/imagebuilder/{name}.json"))

    def has(self, path: str) -> bool:
        return os.path.lexists(self.root / path.lstrip("/"))

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Return all that a package could change: mode and content of each."""
        found = {}
        for top in HELD:
            for path in sorted((self.root / top).rglob("*")):
                mode = path.lstat().st_mode
                found[str(path.relative_to(self.root))] = (mode, path.read_bytes() if stat.S_ISREG(mode) else b"")
        return found
