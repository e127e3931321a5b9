"""Injects a data package into the node that this runs on: find, verify, stage, commit, runtime, kubelet.

One file, standard library only, Python 3.6 and newer: it is copied into images whose Python is the distribution's.
The package's format is specified in docs/data-package.md, what happens at boot in docs/boot.md.

Order of trust: sizes, then the archive's first two entries, then the signature over the manifest; nothing after these
is looked at before the signature is good, and nothing is written before every check has passed. What is written goes
through a journal: after a power cut at any point the next start finds the node on the old generation or on the new.
"""

import argparse
import base64
import binascii
import calendar
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import selectors
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Set, Tuple, Union

OK = "OK"
# What can go wrong, and the exit code of the program. 2 is wrong use.
CODES = {
    "E_NONE": 10, "E_SIZE": 11, "E_FORMAT": 12, "E_KEY": 13, "E_SIGNATURE": 14, "E_DIGEST": 15, "E_PATH": 16,
    "E_EARLY": 17, "E_EXPIRED": 18, "E_NODE": 19, "E_GENERATION": 20, "E_CAPABILITY": 21, "E_SOURCE": 22,
    "E_DISK": 23, "E_HEALTH": 24, "E_BUSY": 25, "E_INTERNAL": 26,
}  # fmt: skip

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PACKED = 1 << 20  # bytes of a package file
UNPACKED = 4 << 20  # bytes of its archive
MANIFEST = 256 << 10  # bytes of manifest.json
SIGNATURE = 72  # bytes of manifest.sig: DER of two numbers of P-256
ENTRIES = 256  # of the archive
PATH_BYTES = 200
BLOCK, RECORD = 512, 10240  # tar's units
NO_DEVICE = (bytes(16), b"0000000\0" * 2)  # both are written by tar programs
HOUR = 3600
CLOCK_SLACK = 24 * HOUR  # a hardware clock may hold some zone's local time until NTP has answered
EARLIEST = calendar.timegm((2026, 11, 1, 0, 0, 0))  # no image with this agent is older
WATCH_SECONDS = 60.0  # that a kubelet has to become healthy in
WATCH_FLOOR = 20.0  # of these are left at least when the machine has been restarted meanwhile
WATCH_BOOTS = 3  # starts of the machine that one watch may take
WATCH_SAVE = 5.0  # seconds between two notes of what is left
PROBES, PROBE_SECONDS = 3, 0.25  # healthy is: so many good answers in a row, so far apart
OPENSSL_SECONDS, RESTORECON_SECONDS = 20.0, 60.0
RELOAD_SECONDS, RESTART_SECONDS = 30.0, 90.0
HISTORY = 50  # entries kept

TRUST, FACTS = "/etc/imagebuilder/trust.d", "/usr/lib/imagebuilder/image.json"
HOME = "/var/lib/imagebuilder"
GENERATIONS = HOME + "/generations"
STATE, JOURNAL, WATCH = HOME + "/state.json", HOME + "/journal.json", HOME + "/watch.json"
STATUS, LOG = HOME + "/status.json", HOME + "/history.json"
RUN = "/run/imagebuilder"
LOCK, FOUND = RUN + "/lock", RUN + "/found-local"

MANIFESTS = "/etc/kubernetes/manifests/"
KUBELET_CONFIG = "/var/lib/kubelet/config.yaml"
FOLDERS = (
    "/etc/kubernetes/", "/var/lib/kubelet/pki/", "/etc/cni/net.d/", "/etc/containerd/certs.d/",
    "/etc/containerd/conf.d/",
)  # fmt: skip
FILES = (KUBELET_CONFIG, "/etc/docker/daemon.json", "/etc/default/kubelet", "/etc/sysconfig/kubelet")
MODES = ("0600", "0640", "0644")
ROLES = ("standalone", "worker")
HOSTNAME, KEYS = "/etc/hostname", "/root/.ssh/authorized_keys"
PROXY = "/etc/systemd/system/%s.service.d/50-imagebuilder-proxy.conf"
PROXY_OF = {PROXY % name: name for name in ("containerd", "docker")}
KEYS_BEGIN, KEYS_END = "# imagebuilder: from the data package", "# imagebuilder: end"

# Which files a service reads when it starts only. The rest is watched or read anew at each use: static manifests, CNI,
# certs.d, the certificates of static pods.
READERS = (
    ("containerd", re.compile(r"/etc/containerd/conf\.d/.*")),
    ("docker", re.compile(r"/etc/docker/daemon\.json")),
    ("kubelet", re.compile(
        r"/var/lib/kubelet/(config\.yaml|pki/.*)|/etc/kubernetes/((bootstrap-)?kubelet\.conf|pki/kubelet[^/]*)"
        r"|/etc/(default|sysconfig)/kubelet|/etc/hostname")),
)  # fmt: skip
SERVICES = ("containerd", "docker", "kubelet")  # in the order in which they are restarted
LIVE, STARTING, UNTOUCHED = "live", "starting", "untouched"  # the services, while a package is applied

SPKI_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
PEM = re.compile(rb"\s*-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*")
HEX64, HEX32 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
WORD = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}(\.[0-9]{1,4})?")
TIME = re.compile(r"(19[7-9]|[2-9][0-9][0-9])[0-9]-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
PATH = re.compile(r"(/[A-Za-z0-9._@+:=-]+)+")
PRINTABLE = re.compile(r"[\x20-\x7e]{1,8192}")
PROXY_WORD = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]{1,2048}")

# Of the sources.
# Base64 in lines of 76 makes 1 MiB 1.37 MiB; as a part of a MIME text that is base64 once more, 1.85 MiB.
MAX_PAYLOAD = 2 << 20
MAX_TOKEN = 1024  # bytes of EC2's session token, which has 56
MAX_DEPTH = 4  # base64 of a gzip of a MIME text of a base64 part is the deepest that any tool makes
MAX_HEADER, MAX_PARTS = 8192, 64  # bytes and number, in a MIME text
MAX_REDIRECTS = 3
FIRST_PAUSE = 0.5  # seconds before the second try; doubled from then on
GRACE = 1.0  # seconds that a source's thread gets after its deadline to say itself what is wrong

PART_TYPE = b"application/x-imagebuilder-data"
FILE_NAME = "imagebuilder.ibdata"
GUESTINFO_KEY = "guestinfo.imagebuilder.data"
FW_CFG = "/sys/firmware/qemu_fw_cfg/by_name/opt/imagebuilder/data/raw"
SMBIOS_PREFIX = b"io.systemd.credential.binary:imagebuilder.data="
POINTER_SHAPES = {
    "apiVersion": "imagebuilder/v1", "kind": "DataPackagePointer", "url": r"https?://[^/\s]+\S*",
    "sha256": "[0-9a-f]{64}", "keyId": "[0-9a-f]{32}", "signature": "[A-Za-z0-9+/=]+",
}  # fmt: skip
POINTER_KEYS = sorted([*POINTER_SHAPES, "size"])

GZIP = b"\x1f\x8b"
FIRST_ENTRY = b"manifest.json"  # a package's archive begins with the name of its first entry
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # statuses after which it is worth to ask again
REDIRECTS = (301, 302, 303, 307, 308)
AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"  # chassis asset tag of every Azure VM
OPENSTACK_TAGS = ("OpenStack Nova", "OpenTelekomCloud", "HUAWEICLOUD", "SAP CCloud VM", "Samsung Cloud Platform")


class Refused(Exception):
    """What stops a package, with its stable code."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Candidate(NamedTuple):
    """Something that may be a data package for this node.

    Attributes:
        origin: where it was found, like ``cidata:/dev/vdb`` or ``ec2``.
        data: a package file (gzip), or a pointer document (JSON); see ``pointer``.
        release: to be called once it was applied: takes it away from where it was found; raises SourceError. Or None.
    """

    origin: str
    data: bytes
    release: Optional[Callable[[], None]] = None

    @property
    def pointer(self) -> bool:
        """Whether ``data`` is a pointer document, for :func:`fetch_pointer`, and not a package."""
        return self.data[:1] == b"{"


class Problem(NamedTuple):
    """A source that failed: where, a stable code (E_SOURCE, E_SIZE, E_FORMAT, E_DIGEST), and what happened."""

    origin: str
    code: str
    text: str


class Entry(NamedTuple):
    """A file of a package: mode as an integer."""

    path: str
    data: bytes
    mode: int


class Package(NamedTuple):
    """A package that was verified: its manifest, the sha256 of it, and its files."""

    manifest: Dict[str, Any]
    digest: str
    files: List[Entry]

    @property
    def generation(self) -> int:
        """Return its number."""
        number: int = self.manifest["generation"]
        return number


# --- the disk


class Disk:
    """All that is read and written, below a root; no symbolic link is ever followed.

    Every call into the file system goes through :meth:`call`, so that tests can stop at each.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root or "/"
        self.folders = {}  # type: Dict[str, int]

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call into the file system."""
        return function(*arguments, **options)

    def close(self) -> None:
        """Close the folders that are held open."""
        while self.folders:
            os.close(self.folders.popitem()[1])

    def folder(self, path: str) -> int:
        """Return an open folder, reached from the root without following a link.

        Raises:
            Refused: a part of the path is no folder.
            FileNotFoundError: it is not there.
        """
        if path in self.folders:
            return self.folders[path]
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        if path == "":
            self.folders[""] = self.call(os.open, self.root, flags)
            return self.folders[""]
        parent, _, name = path.rpartition("/")
        try:
            self.folders[path] = self.call(os.open, name, flags | os.O_NOFOLLOW, dir_fd=self.folder(parent))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Refused("E_PATH", "%s is not a folder, and no link is followed" % path) from error
            raise
        return self.folders[path]

    def place(self, path: str) -> Tuple[int, str]:
        """Return the open folder of a path, and the name in it."""
        parent, _, name = path.rpartition("/")
        return self.folder(parent), name

    def look(self, path: str) -> Optional[os.stat_result]:
        """Return what is at a path, or None; a link is not followed."""
        found = None  # type: Optional[os.stat_result]
        try:
            folder, name = self.place(path)
            found = self.call(os.stat, name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            pass
        return found

    def read(self, path: str, limit: int = UNPACKED) -> Optional[bytes]:
        """Return a regular file, or None when there is nothing.

        Raises:
            Refused: it is something else, or longer than ``limit``.
        """
        found = self.look(path)
        if found is None:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise Refused("E_PATH", "%s is not a regular file" % path)
        folder, name = self.place(path)
        number = self.call(os.open, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        with os.fdopen(number, "rb") as stream:
            data = self.call(stream.read, limit + 1)  # type: bytes
        if len(data) > limit:
            raise Refused("E_PATH", "%s is longer than %d bytes" % (path, limit))
        return data

    def names(self, path: str) -> List[str]:
        """Return the sorted names in a folder; none when it is not there."""
        try:
            return sorted(self.call(os.listdir, self.folder(path)))
        except FileNotFoundError:
            return []

    def sync(self, path: str) -> None:
        """Make the names in a folder durable."""
        self.call(os.fsync, self.folder(path))

    def make(self, path: str, mode: int) -> None:
        """Make a folder with exactly this mode; one that is there stays as it is."""
        folder, name = self.place(path)
        try:
            self.call(os.mkdir, name, mode, dir_fd=folder)
        except FileExistsError:
            self.folder(path)  # refuses what is no folder
            return
        self.call(os.fchmod, self.folder(path), mode)
        self.call(os.fsync, folder)

    def unmake(self, path: str) -> None:
        """Remove a folder if nothing is in it."""
        for held in [name for name in self.folders if name == path or name.startswith(path + "/")]:
            os.close(self.folders.pop(held))
        try:
            folder, name = self.place(path)
            self.call(os.rmdir, name, dir_fd=folder)
            self.call(os.fsync, folder)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise

    def write(
        self, path: str, data: bytes, mode: int = 0o600, owner: Tuple[int, int] = (0, 0), sync: bool = True
    ) -> None:  # fmt: skip
        """Put a file in place at once; what it replaces is overwritten when only its owner could read it.

        Its content is durable, and its name too, unless the caller does :meth:`sync` for many files of a folder.
        """
        folder, name = self.place(path)
        fresh = ".%s.imagebuilder-new" % name
        self.unlink(folder, fresh)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        number = self.call(os.open, fresh, flags, 0o600, dir_fd=folder)
        try:
            self.pour(number, data)
            if os.geteuid() == 0:
                self.call(os.fchown, number, owner[0], owner[1])
            self.call(os.fchmod, number, mode)
            self.call(os.fsync, number)
        finally:
            os.close(number)
        old = self.secret(folder, name)
        try:
            self.call(os.rename, fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
            if sync:
                self.call(os.fsync, folder)
            self.wipe(old)
        finally:
            if old is not None:
                os.close(old[0])

    def pour(self, number: int, data: bytes) -> None:
        """Write all of some bytes."""
        view = memoryview(data)
        while view:
            view = view[self.call(os.write, number, view) :]

    def secret(self, folder: int, name: str) -> Optional[Tuple[int, int]]:
        """Return an open file and its size, when it is one that only its owner reads and that has no other name."""
        try:
            found = self.call(os.stat, name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_nlink != 1 or not found.st_size:
                return None
            number = self.call(os.open, name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            return number, found.st_size
        except FileNotFoundError:
            return None

    def wipe(self, old: Optional[Tuple[int, int]]) -> None:
        """Overwrite a file that no longer has a name. No promise on flash and copy-on-write, but the best there is."""
        if old is not None:
            self.pour(old[0], bytes(old[1]))
            self.call(os.fsync, old[0])

    def unlink(self, folder: int, name: str) -> bool:
        """Remove a name; return whether it was there."""
        try:
            self.call(os.unlink, name, dir_fd=folder)
        except FileNotFoundError:
            return False
        return True

    def remove(self, path: str, sync: bool = True) -> None:
        """Remove a file, durably with ``sync``, and what was half-written in its place; secrets as in :meth:`write`."""
        try:
            folder, name = self.place(path)
        except FileNotFoundError:
            return
        old = self.secret(folder, name)
        try:
            removed = [self.unlink(folder, name), self.unlink(folder, ".%s.imagebuilder-new" % name)]
            if any(removed) and sync:
                self.call(os.fsync, folder)  # before it is overwritten: a name never leads to zeros
            self.wipe(old)
        finally:
            if old is not None:
                os.close(old[0])

    def remove_tree(self, path: str) -> None:
        """Remove a folder of ours with all that is in it."""
        for name in self.names(path):
            inside = "%s/%s" % (path, name)
            found = self.look(inside)
            if found is not None and stat.S_ISDIR(found.st_mode):
                self.remove_tree(inside)
            else:
                self.remove(inside, sync=False)
        self.unmake(path)

    def read_json(self, path: str) -> Optional[Dict[str, Any]]:
        """Return one of our own documents, or None when it is not there, or damaged."""
        data = self.read(path)
        if data is None:
            return None
        try:
            found = json.loads(data.decode())
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def write_json(self, path: str, document: Any) -> None:
        """Write one of our own documents: there is no secret in them."""
        self.write(path, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode(), 0o644, own())


def own() -> Tuple[int, int]:
    """Return our own user and group."""
    return os.geteuid(), os.getegid()


# --- the host


class SourceHost:
    """The machine, as the sources see it; tests and ``--root`` put something else in its place.

    Attributes:
        root: a folder in front of every path, or an empty string.
        source: the ``file://`` address or path of ``--source``; then nothing else is looked at.
        sandbox: the folder into which Mesos fetched the task's files, or an empty string.
        connect_seconds, read_seconds: for a connection, and without a byte on it.
        source_seconds, disk_seconds, fetch_seconds: for one source, all labelled disks, and one download.
        scope_seconds: for all sources of a scope.
        services: base addresses of each metadata service, in the order in which they are tried.
        commands: the programs that are run, by what they do.
        monotonic, sleep: seconds that never go back, and waiting.
    """

    def __init__(self, root: str = "", source: str = "", sandbox: Optional[str] = None) -> None:
        self.root = root.rstrip("/")
        self.source = source
        self.sandbox = os.environ.get("MESOS_SANDBOX", "") if sandbox is None else sandbox
        self.connect_seconds = 2.0
        self.read_seconds = 4.0
        self.source_seconds = 10.0
        self.disk_seconds = 60.0  # a mount loads modules, which takes a slow machine that is starting 10 s and more
        self.fetch_seconds = 30.0
        self.scope_seconds = 90.0
        self.services = {
            "ec2": ["http://169.254.169.254", "http://[fd00:ec2::254]"],
            "gce": ["http://169.254.169.254"],
            "azure": ["http://169.254.169.254"],
            "openstack": ["http://169.254.169.254", "http://[fe80::a9fe:a9fe%{interface}]"],
            "digitalocean": ["http://169.254.169.254"],
            "hcloud": ["http://169.254.169.254"],
        }  # type: Dict[str, List[str]]
        self.commands = {name: name for name in ("mount", "umount", "vmware-rpctool", "vmtoolsd")}
        self.monotonic = time.monotonic  # type: Callable[[], float]
        self.sleep = time.sleep  # type: Callable[[float], None]

    def path(self, name: str) -> str:
        """Return where an absolute path of the machine is."""
        return self.root + name

    def text(self, name: str) -> str:
        """Return a small file's text without white space around it; an empty string where there is none."""
        data = _read(self.path(name), 1 << 16)
        return "" if data is None else data.decode("utf-8", "replace").strip(" \t\r\n\0")

    def dmi(self, name: str) -> str:
        """Return what the firmware says of the machine, like ``sys_vendor``."""
        return self.text("/sys/class/dmi/id/" + name)

    def names(self, folder: str) -> List[str]:
        """Return the names in a folder, sorted; none where it is missing."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except OSError:
            return []


class Host(SourceHost):
    """The machine: its root, clock, programs and names. Tests replace parts of it.

    Attributes:
        health: address of kubelet's healthz.
        verify: ``(key file, data, signature) -> bool``.
    """

    def __init__(self, root: str = "", source: str = "") -> None:
        super().__init__(root, source)
        self.disk = Disk(self.root)
        self.health = ("127.0.0.1", 10248)
        self.verify = openssl_verify  # type: Callable[[str, bytes, bytes], bool]
        self.now = time.time  # type: Callable[[], float]

    def machine(self) -> Dict[str, Set[str]]:
        """Return what selectors are compared with, in lower case."""
        try:
            cards = os.listdir(self.root + "/sys/class/net")
        except OSError:
            cards = []
        found = {
            "hostname": {self.text("/proc/sys/kernel/hostname")},
            "uuid": {self.text("/sys/class/dmi/id/product_uuid")},
            "serial": {self.text("/sys/class/dmi/id/product_serial")},
            "mac": {self.text("/sys/class/net/%s/address" % card) for card in cards if card != "lo"},
        }
        return {key: {value.lower() for value in values if value} for key, values in found.items()}

    def built(self) -> float:
        """Return a time that the true one cannot be before: that of the image's build."""
        found = self.disk.look(FACTS)
        return max(EARLIEST, found.st_mtime if found else 0)

    def healthy(self) -> bool:
        """Ask kubelet's healthz once."""
        try:
            with socket.create_connection(self.health, timeout=2) as connection:
                connection.settimeout(5)
                connection.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except OSError:
            return False

    def say(self, text: str) -> None:
        """Tell the journal, and every console of the kernel's, with the seconds since it started."""
        uptime = self.text("/proc/uptime").split(" ")[0]
        line = "imagebuilder: %s%s" % (text, " after %s s" % uptime if uptime else "")
        line = line.encode("ascii", "backslashreplace").decode()
        try:
            print(line, flush=True)
        except OSError:
            pass  # nobody listens any more
        for name in self.text("/sys/class/tty/console/active").split() or ["console"]:
            try:
                flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
                number = os.open("%s/dev/%s" % (self.root, os.path.basename(name)), flags)
            except OSError:
                continue
            try:
                os.write(number, ("\r\n%s\r\n" % line).encode())
            except OSError:
                pass  # a console that nobody reads
            finally:
                os.close(number)


def start_program(argv: Sequence[str], stdin: int, output: int, fds: Tuple[int, ...] = ()) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own; the one place that starts any.

    Raises:
        OSError: it is not there.
    """
    env = {"PATH": os.environ.get("PATH", SYSTEM_PATH), "LC_ALL": "C"}
    return subprocess.Popen(
        list(argv), env=env, stdin=stdin, stdout=output, stderr=output, pass_fds=fds, start_new_session=True
    )


def run(argv: Sequence[str], seconds: float, data: bytes = b"", fds: Tuple[int, ...] = ()) -> Optional[int]:
    """Run a program to its end without its output.

    Returns:
        Its exit code, -1 when it did not end in time (it is killed), None when there is no such program.
    """
    try:
        program = start_program(argv, subprocess.PIPE, subprocess.DEVNULL, fds)
    except OSError:
        return None
    try:
        program.communicate(data, timeout=seconds)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
        return -1
    return program.returncode


def openssl_verify(key: str, data: bytes, signature: bytes) -> bool:
    """Return whether a signature is good. It travels through a pipe: nothing is written for it.

    Raises:
        Refused: openssl is missing, or did not end.
    """
    reader, writer = os.pipe()
    try:
        os.write(writer, signature)  # SIGNATURE bytes at most: fits any pipe
        os.close(writer)
        argv = ["openssl", "dgst", "-sha256", "-verify", key, "-signature", "/dev/fd/%d" % reader]
        code = run(argv, OPENSSL_SECONDS, data, (reader,))
    finally:
        os.close(reader)
    if code is None or code < 0:
        raise Refused("E_SIGNATURE", "openssl %s" % ("is missing" if code is None else "did not end"))
    return code == 0


# --- reading a package


class Unpacker:
    """Gives the bytes of a gzip member piece by piece, and never more than the caps."""

    def __init__(self, data: bytes) -> None:
        # RFC 1952: magic, deflate, no flags (so no name), mtime 0. Level and system may be anything.
        if data[:8] != b"\x1f\x8b\x08\x00\x00\x00\x00\x00":
            raise Refused("E_FORMAT", "not a gzip member without name and time")
        self.engine = zlib.decompressobj(31)
        self.packed = data
        self.ready = b""
        self.total = 0

    def more(self, size: int) -> bytes:
        """Return up to ``size`` bytes more; none at the end."""
        if not self.ready and not self.engine.eof:
            try:
                self.ready = self.engine.decompress(self.packed, 1 << 16)
            except zlib.error as error:
                raise Refused("E_FORMAT", "the compressed data is damaged") from error
            self.packed = self.engine.unconsumed_tail
            self.total += len(self.ready)
            if self.total > UNPACKED:
                raise Refused("E_SIZE", "more than %d bytes unpacked" % UNPACKED)
            if not self.ready and not self.engine.eof and not self.packed:
                raise Refused("E_FORMAT", "the compressed data ends early")
        taken, self.ready = self.ready[:size], self.ready[size:]
        return taken

    def exactly(self, size: int) -> bytes:
        """Return so many bytes; ``size`` was checked against a cap before."""
        pieces = []
        while size:
            piece = self.more(size)
            if not piece and self.engine.eof:
                raise Refused("E_FORMAT", "the archive ends early")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def end(self) -> None:
        """Check that only the archive's padding is left: zeros, to a whole record, and no second member."""
        zeros = 0
        while True:
            piece = self.more(1 << 16)
            if not piece and self.engine.eof:
                break
            if piece.strip(b"\0"):
                raise Refused("E_FORMAT", "there is something after the last file")
            zeros += len(piece)
        if zeros < 2 * BLOCK or zeros >= 2 * BLOCK + RECORD or self.total % RECORD:
            raise Refused("E_FORMAT", "the archive does not end with two empty blocks and a whole record")
        if self.engine.unused_data or self.packed:
            raise Refused("E_FORMAT", "there is something after the gzip member")

    def entry(self, name: str, cap: int, size: Optional[int] = None) -> bytes:
        """Return the content of the next entry, which must be this regular file (POSIX.1-1988, ustar)."""
        header = self.exactly(BLOCK)
        if header[257:265] != b"ustar\x0000":
            raise Refused("E_FORMAT", "an entry is not of the ustar format (wanted %s)" % name)
        fields = [octal(header[at:to]) for at, to in ((148, 156), (100, 108), (108, 116), (116, 124), (136, 148))]
        if fields[0] != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            raise Refused("E_FORMAT", "the checksum of an entry is wrong (wanted %s)" % name)
        found = header[:100].rstrip(b"\0")
        prefix = header[345:500].rstrip(b"\0")
        if (prefix + b"/" + found if prefix else found) != name.encode():
            raise Refused("E_FORMAT", "an entry has another name (wanted %s)" % name)
        if fields[1:] != [0o600, 0, 0, 0] or header[156:157] != b"0":
            raise Refused("E_FORMAT", "%s is not a regular file, 0600, of nobody, without time" % name)
        if any(header[157:257]) or any(header[265:329]) or any(header[500:]) or header[329:345] not in NO_DEVICE:
            raise Refused("E_FORMAT", "the entry of %s has a link, an owner or a device" % name)
        length = octal(header[124:136])
        if length < 0:
            raise Refused("E_FORMAT", "the size of %s is no octal number" % name)
        if length > cap:
            raise Refused("E_SIZE", "%s is longer than %d bytes" % (name, cap))
        if size is not None and length != size:
            raise Refused("E_DIGEST", "%s is not as long as its manifest says" % name)
        data = self.exactly(length)
        if any(self.exactly(-length % BLOCK)):
            raise Refused("E_FORMAT", "the padding of %s is not empty" % name)
        return data


def octal(field: bytes) -> int:
    """Return a number of a header; negative when it is none (base-256, signs)."""
    text = field.rstrip(b"\0 ")
    return int(text, 8) if re.match(rb"^[0-7]+\Z", text) else -1


def canonical(document: Any) -> bytes:
    """Return a document's one form."""
    return (json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n").encode()


def parse_json(data: bytes) -> Dict[str, Any]:
    """Return a document that is in its one form: so it has no key twice, no fraction and no odd white space."""

    def number(text: str) -> int:
        if len(text) > 15:
            raise ValueError("a number is too long")
        return int(text)

    def never(text: str) -> NoReturn:
        raise ValueError("a number is no integer")

    try:
        found = json.loads(data.decode(), parse_int=number, parse_float=never, parse_constant=never)
        if not isinstance(found, dict) or canonical(found) != data:
            raise ValueError("not canonical")
    except (ValueError, RecursionError) as error:
        raise Refused("E_FORMAT", "a document is not canonical JSON") from error
    return found


def load_keys(host: Host) -> Dict[str, str]:
    """Return the trusted keys: the file of each, by its id. A file that holds no P-256 key is passed over."""
    found = {}
    for name in host.disk.names(TRUST):
        data = host.disk.read("%s/%s" % (TRUST, name), 1 << 14) if name.endswith(".pem") else None
        match = PEM.match(data or b"")
        if not match or match.end() != len(data or b""):
            continue
        try:
            der = base64.b64decode(b"".join(match.group(1).split()), validate=True)
        except binascii.Error:
            continue
        if der.startswith(SPKI_P256) and len(der) == len(SPKI_P256) + 64:
            found[hashlib.sha256(der).hexdigest()[:32]] = "%s%s/%s" % (host.root, TRUST, name)
    return found


def check_signature(host: Host, key_id: Any, data: bytes, signature: bytes) -> None:
    """Refuse what no trusted key has signed."""
    keys = load_keys(host)
    if not isinstance(key_id, str) or key_id not in keys:
        raise Refused("E_KEY", "signed with a key that this image does not trust")
    if not host.verify(keys[key_id], data, signature):
        raise Refused("E_SIGNATURE", "the signature is wrong")


def read_package(host: Host, data: bytes) -> Package:
    """Return a package whose form, signature and digests are right; it may still not be for this node.

    Raises:
        Refused: it is not; nothing was written.
    """
    if len(data) > PACKED:
        raise Refused("E_SIZE", "more than %d bytes" % PACKED)
    archive = Unpacker(data)
    raw = archive.entry("manifest.json", MANIFEST)
    signature = archive.entry("manifest.sig", SIGNATURE)
    manifest = parse_json(raw)
    check_signature(host, manifest.get("keyId"), raw, signature)
    check_manifest(manifest)
    files = []
    for item in manifest["files"]:
        content = archive.entry("files" + item["path"], UNPACKED, item["size"])
        if hashlib.sha256(content).hexdigest() != item["sha256"]:
            raise Refused("E_DIGEST", "%s is not what was signed" % item["path"])
        files.append(Entry(item["path"], content, int(item["mode"], 8)))
    archive.end()
    return Package(manifest, hashlib.sha256(raw).hexdigest(), files)


# --- what a manifest may say


def wrong(what: str) -> NoReturn:
    """Refuse a manifest."""
    raise Refused("E_FORMAT", "manifest: %s" % what)


def keys_of(value: Any, what: str, required: Sequence[str], optional: Sequence[str] = ()) -> Dict[str, Any]:
    """Return an object that has all of the required keys, and no unknown ones."""
    if not isinstance(value, dict):
        wrong("%s is not an object" % what)
    if set(required) - set(value) or set(value) - set(required) - set(optional):
        wrong("%s lacks a key, or has an unknown one" % what)
    return value


def text_of(value: Any, what: str, pattern: "re.Pattern[str]") -> str:
    """Return a string of a pattern."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        wrong("%s is not what it must be" % what)
    return value


def texts_of(value: Any, what: str, pattern: "re.Pattern[str]") -> List[str]:
    """Return a list of strings of a pattern."""
    if not isinstance(value, list) or not 0 < len(value) <= ENTRIES:
        wrong("%s is not a list" % what)
    return [text_of(item, what, pattern) for item in value]


def number_of(value: Any, what: str, least: int) -> int:
    """Return an integer."""
    if type(value) is not int or value < least:
        wrong("%s is not a number from %d on" % (what, least))
    return value


def seconds_of(value: Any, what: str) -> int:
    """Return a time in seconds."""
    text = text_of(value, what, TIME)
    try:
        return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return wrong("%s is no time" % what)


def check_manifest(manifest: Dict[str, Any]) -> None:
    """Refuse a manifest that says anything beyond docs/data-package.md."""
    names = ("apiVersion", "kind", "cluster", "node", "role", "generation", "notBefore", "notAfter", "keyId",
             "selectors", "requires", "settings", "files")  # fmt: skip
    keys_of(manifest, "it", names)
    if (manifest["apiVersion"], manifest["kind"]) != ("imagebuilder/v1", "DataPackage"):
        wrong("it is not a DataPackage of imagebuilder/v1")
    for key in ("cluster", "node"):
        text_of(manifest[key], key, NAME)
    if manifest["role"] not in ROLES:
        wrong("role is not one that this agent knows")
    text_of(manifest["keyId"], "keyId", HEX32)
    number_of(manifest["generation"], "generation", 1)
    if seconds_of(manifest["notBefore"], "notBefore") > seconds_of(manifest["notAfter"], "notAfter"):
        wrong("notBefore is after notAfter")
    selectors = keys_of(manifest["selectors"], "selectors", (), ("hostname", "uuid", "serial", "mac"))
    for key, values in selectors.items():
        texts_of(values, key, PRINTABLE)
    requires = keys_of(manifest["requires"], "requires", (), ("kubelet", "runtime", "arch", "init"))
    for key in set(requires) - {"kubelet"}:
        text_of(requires[key], key, WORD)
    for key, value in keys_of(requires.get("kubelet", {}), "kubelet", (), ("min", "below")).items():
        text_of(value, key, VERSION)
    check_settings(manifest["settings"])
    check_files(manifest["files"])


def check_settings(value: Any) -> None:
    """Refuse settings that no template takes."""
    settings = keys_of(value, "settings", (), ("hostname", "sshAuthorizedKeys", "proxy"))
    if "hostname" in settings:
        text_of(settings["hostname"], "hostname", NAME)
    if "sshAuthorizedKeys" in settings:
        for key in texts_of(settings["sshAuthorizedKeys"], "sshAuthorizedKeys", PRINTABLE):
            if not re.match(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+( |$)", key):
                wrong("an SSH key is not of the form TYPE KEY COMMENT")  # and so has no options either
    proxy = keys_of(settings.get("proxy", {}), "proxy", (), ("http", "https", "no"))
    for key, word in proxy.items():
        text_of(word, key, PROXY_WORD)


def check_files(files: Any) -> None:
    """Refuse files outside of the allow-list, twice, out of order, or where a folder must be."""
    if not isinstance(files, list):
        wrong("files is not a list")
    if len(files) > ENTRIES - 2:
        raise Refused("E_SIZE", "more than %d entries" % ENTRIES)
    paths = []
    for item in files:
        keys_of(item, "a file", ("path", "sha256", "size", "mode", "owner"))
        path = check_path(item["path"])
        text_of(item["sha256"], "sha256", HEX64)
        if number_of(item["size"], "size", 0) > UNPACKED:
            raise Refused("E_SIZE", "%s is too long" % path)
        if item["mode"] not in MODES or item["owner"] != "0:0":
            wrong("mode or owner of %s is not allowed" % path)
        paths.append(path)
    if paths != sorted(set(paths)):
        wrong("the files are not sorted, or one is there twice")
    for path in paths:
        if any(other.startswith(path + "/") for other in paths):
            raise Refused("E_PATH", "%s is a file and a folder" % path)


def check_path(path: Any) -> str:
    """Return a path that a package may write."""
    if not isinstance(path, str) or len(path) > PATH_BYTES or not PATH.fullmatch(path):
        raise Refused("E_PATH", "a path has characters that are not allowed")
    if {".", ".."} & set(path.split("/")) or not (path in FILES or path.startswith(FOLDERS)):
        raise Refused("E_PATH", "%s is not a path that a package may write" % path)
    return path


# --- is it for this node, now


def check_node(host: Host, package: Package) -> None:
    """Refuse a package that is not for this machine, this image, or this time."""
    machine = host.machine()
    for key, values in package.manifest["selectors"].items():
        if not {value.lower() for value in values} & machine[key]:
            raise Refused("E_NODE", "for another machine: its %s is not this one's" % key)
    check_capabilities(host, package.manifest["requires"])
    check_time(host, package.manifest)


def check_time(host: Host, manifest: Dict[str, Any]) -> None:
    """Refuse what is too early or expired.

    A clock that is before the image's build was never set: then a package cannot be too early, and is expired only
    when it was so before the image was built. A clock that is ahead is believed: what it calls expired is refused.
    """
    now, built = host.now(), host.built()
    if max(now, built) > seconds_of(manifest["notAfter"], "notAfter"):
        raise Refused("E_EXPIRED", "valid until %s, and the clock says %s" % (manifest["notAfter"], stamp(now)))
    if now >= built and now + CLOCK_SLACK < seconds_of(manifest["notBefore"], "notBefore"):
        raise Refused("E_EARLY", "valid from %s, and the clock says %s" % (manifest["notBefore"], stamp(now)))


def check_capabilities(host: Host, requires: Dict[str, Any]) -> None:
    """Refuse a package that wants another image than this one."""
    if not requires:
        return
    facts = host.disk.read_json(FACTS) or {}
    kubelet = str(facts.get("kubelet", ""))
    bounds = requires.get("kubelet", {})
    if bounds and not VERSION.fullmatch(kubelet):
        raise Refused("E_CAPABILITY", "the image does not say which kubelet it has")
    if "min" in bounds and version(kubelet) < version(bounds["min"]):
        raise Refused("E_CAPABILITY", "wants kubelet %s, and this is %s" % (bounds["min"], kubelet))
    if "below" in bounds and version(kubelet) >= version(bounds["below"]):
        raise Refused("E_CAPABILITY", "wants a kubelet below %s, and this is %s" % (bounds["below"], kubelet))
    for key in ("arch", "init"):
        if key in requires and requires[key] != facts.get(key):
            raise Refused("E_CAPABILITY", "wants %s %s, and this is %s" % (key, requires[key], facts.get(key)))
    runtimes = facts.get("runtimes")
    if "runtime" in requires and requires["runtime"] not in (runtimes if isinstance(runtimes, list) else []):
        raise Refused("E_CAPABILITY", "wants %s, which this image does not have" % requires["runtime"])


def version(text: str) -> Tuple[int, ...]:
    """Return a version as numbers: 1.35 is 1.35.0."""
    numbers = [int(part) for part in text.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


def stamp(seconds: float) -> str:
    """Return a time as text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# --- what to change


def render_settings(disk: Disk, settings: Dict[str, Any]) -> Tuple[List[Entry], List[str]]:
    """Return the files that settings become, and those that must go."""
    files, gone = [], []  # type: List[Entry], List[str]
    if "hostname" in settings:
        files.append(Entry(HOSTNAME, (settings["hostname"] + "\n").encode(), 0o644))
    old = disk.read(KEYS)
    keys = authorized_keys(old or b"", settings.get("sshAuthorizedKeys", []))
    if keys != (old or b""):
        if keys:
            files.append(Entry(KEYS, keys, 0o600))
        else:
            gone.append(KEYS)
    proxy = settings.get("proxy", {})
    if proxy:
        names = (("http", "HTTP_PROXY"), ("https", "HTTPS_PROXY"), ("no", "NO_PROXY"))
        lines = ['Environment="%s=%s"' % (name, proxy[key].replace("%", "%%")) for key, name in names if key in proxy]
        text = "# From the data package.\n[Service]\n%s\n" % "\n".join(lines)
        files += [Entry(path, text.encode(), 0o600) for path in sorted(PROXY_OF)]
    return files, gone


def authorized_keys(old: bytes, keys: Sequence[str]) -> bytes:
    """Return a file of SSH keys with our block in it renewed; lines of others stay."""
    kept, inside = [], False
    for line in old.decode("utf-8", "surrogateescape").splitlines():
        if line == KEYS_BEGIN:
            inside = True
        elif line == KEYS_END and inside:
            inside = False
        elif not inside:
            kept.append(line)
    if keys:
        kept += [KEYS_BEGIN] + list(keys) + [KEYS_END]
    return "".join(line + "\n" for line in kept).encode("utf-8", "surrogateescape")


def folder_mode(path: str) -> int:
    """Return the mode of a folder that is made on the way to a file."""
    return 0o700 if path.startswith(("/root/", "/var/lib/kubelet")) else 0o755


def missing_folders(disk: Disk, paths: Sequence[str]) -> List[str]:
    """Return the folders to make for these files, the outer first."""
    found = set()  # type: Set[str]
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            there = disk.look(parent)
            if there is not None:
                disk.folder(parent)  # refuses what is no folder
                break
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return sorted(found)


def plan_changes(disk: Disk, package: Package, state: Dict[str, Any]) -> Tuple[List[Dict[str, Any]], Dict[str, bytes]]:
    """Return what has to change, in order, and the new contents by path. Only what differs is in it.

    The order: manifests that go, folders, files, files that go, folders that go, and new manifests last.
    """
    rendered, gone = render_settings(disk, package.manifest["settings"])
    entries = package.files + rendered
    wanted = {entry.path for entry in entries}
    gone += [path for path in state.get("files", []) if path not in wanted]
    writes, contents = [], {}
    for entry in entries:
        old = disk.read(entry.path)
        found = disk.look(entry.path)
        if old == entry.data and found is not None and stat.S_IMODE(found.st_mode) == entry.mode:
            continue
        writes.append(with_old(disk, {"op": "write", "path": entry.path, "mode": entry.mode}))
        contents[entry.path] = entry.data
    removes = [with_old(disk, {"op": "remove", "path": path}) for path in gone if disk.read(path) is not None]
    makes = [{"op": "make", "path": path} for path in missing_folders(disk, [item["path"] for item in writes])]
    leave = {path for path in state.get("folders", []) if not any(name.startswith(path + "/") for name in wanted)}
    unmakes = [{"op": "unmake", "path": path} for path in sorted(leave, reverse=True) if disk.look(path) is not None]
    ordered = [item for item in removes if item["path"].startswith(MANIFESTS)] + makes
    ordered += [item for item in writes if not item["path"].startswith(MANIFESTS)]
    ordered += [item for item in removes if not item["path"].startswith(MANIFESTS)] + unmakes
    ordered += [item for item in writes if item["path"].startswith(MANIFESTS)]
    for number, item in enumerate(ordered):
        item["number"] = number
    return ordered, contents


def with_old(disk: Disk, item: Dict[str, Any]) -> Dict[str, Any]:
    """Return a change together with mode and owner of the file that it replaces."""
    found = disk.look(item["path"])
    if found is not None:
        item["old"] = [stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid]
    return item


def readers(changes: Sequence[Dict[str, Any]]) -> List[str]:
    """Return the services that have to start anew, in their order."""
    paths = [item["path"] for item in changes if item["op"] in ("write", "remove")]
    found = {PROXY_OF[path] for path in paths if path in PROXY_OF}
    found |= {name for name, pattern in READERS if any(pattern.fullmatch(path) for path in paths)}
    return [name for name in SERVICES if name in found]


# --- stage, commit, go back


class Store:
    """Generations on disk. The journal is there exactly while the node is between two of them."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def prepare(self) -> None:
        """Make our own folders."""
        for path, mode in (("/var", 0o755), ("/var/lib", 0o755), (HOME, 0o755), (GENERATIONS, 0o700)):
            self.disk.make(path, mode)

    def state(self) -> Dict[str, Any]:
        """Return what is applied: generation 0 is the image as it was."""
        return self.disk.read_json(STATE) or {"generation": 0, "files": [], "folders": [], "rejected": []}

    def stage(self, journal: Dict[str, Any], contents: Dict[str, bytes]) -> None:
        """Write new contents and what they replace beside, and then the journal."""
        home = "%s/%d" % (GENERATIONS, journal["generation"])
        self.disk.remove_tree(home)
        for path in (home, home + "/new", home + "/old"):
            self.disk.make(path, 0o700)
        for item in journal["changes"]:
            if item["op"] == "write":
                self.disk.write("%s/new/%d" % (home, item["number"]), contents[item["path"]], 0o600, own(), sync=False)
            if "old" in item:
                old = self.disk.read(item["path"])
                if old is None:
                    raise Refused("E_DISK", "%s went away meanwhile" % item["path"])
                self.disk.write("%s/old/%d" % (home, item["number"]), old, 0o600, own(), sync=False)
        self.disk.sync(home + "/new")
        self.disk.sync(home + "/old")
        self.disk.write_json(home + "/changes.json", journal)
        self.disk.write_json(JOURNAL, journal)

    def forward(self, journal: Dict[str, Any]) -> None:
        """Do all changes, whether some are done already or not, and finish."""
        home = "%s/%d" % (GENERATIONS, journal["generation"])
        for item in journal["changes"]:
            path = item["path"]
            if item["op"] == "make":
                self.disk.make(path, folder_mode(path))
            elif item["op"] == "unmake":
                self.disk.unmake(path)
            elif item["op"] == "remove":
                self.disk.remove(path)
            else:
                data = self.disk.read("%s/new/%d" % (home, item["number"]))
                if data is None:
                    raise Refused("E_DISK", "the staged content of %s is lost" % path)
                self.disk.write(path, data, item["mode"])
        self.finish(journal["after"], journal["watch"])

    def back(self, journal: Dict[str, Any]) -> None:
        """Undo all changes, whether they were done or not, and finish."""
        home = "%s/%d" % (GENERATIONS, journal["generation"])
        if journal["direction"] != "back":
            journal = dict(journal, direction="back")
            self.disk.write_json(JOURNAL, journal)
        for item in reversed(journal["changes"]):
            path = item["path"]
            if item["op"] == "make":
                self.disk.unmake(path)
            elif item["op"] == "unmake":
                self.disk.make(path, folder_mode(path))
            elif "old" not in item:
                self.disk.remove(path)
            else:
                data = self.disk.read("%s/old/%d" % (home, item["number"]))
                if data is None:
                    raise Refused("E_DISK", "the old content of %s is lost" % path)
                self.disk.write(path, data, item["old"][0], (item["old"][1], item["old"][2]))
        self.finish(journal["before"], None)

    def finish(self, state: Dict[str, Any], watch: Optional[Dict[str, Any]]) -> None:
        """Say what is applied; with the journal gone it is final."""
        self.disk.write_json(STATE, state)
        if watch:
            self.disk.write_json(WATCH, watch)
        else:
            self.disk.remove(WATCH)
        self.disk.remove(JOURNAL)
        self.clean()

    def clean(self) -> None:
        """Wipe all but what leads from the present generation to the one before; what cannot be is tried next time."""
        current = str(self.state()["generation"])
        try:
            for name in self.disk.names(GENERATIONS):
                self.disk.remove_tree("%s/%s%s" % (GENERATIONS, name, "/new" if name == current else ""))
        except (OSError, Refused):
            pass

    def recover(self) -> Optional[Dict[str, Any]]:
        """Complete, or else undo, what was interrupted; return its journal, with the direction that was taken."""
        journal = self.disk.read_json(JOURNAL)
        if journal is None:
            if self.disk.look(JOURNAL) is not None:
                self.disk.remove(JOURNAL)  # one that cannot be read says nothing
            self.clean()
            return None
        if journal["direction"] == "forward":
            try:
                self.forward(journal)
                return journal
            except (OSError, Refused):
                pass  # it cannot go on: then it goes back
        self.back(journal)
        return dict(journal, direction="back")

    def commit(self, journal: Dict[str, Any], contents: Dict[str, bytes]) -> None:
        """Bring the node from one generation to the next, or leave it where it was.

        Raises:
            OSError, Refused: the disk did not take it; the node is as it was, or the journal says what is to be done.
        """
        try:
            self.prepare()
            self.stage(journal, contents)
            self.forward(journal)
        except (OSError, Refused):
            if self.disk.read_json(JOURNAL) is not None:
                self.back(journal)
            elif self.state()["generation"] != journal["generation"]:
                self.clean()
            raise


# --- services


def systemctl(*words: str, seconds: float = RESTART_SECONDS) -> bool:
    """Ask systemd; true where there is none."""
    return run(["systemctl"] + list(words), seconds) in (0, None)


def restart_early(changes: Sequence[Dict[str, Any]]) -> None:
    """At boot the runtimes start beside the agent: what read the old files starts once more, before kubelet does."""
    for name in readers(changes):
        if name != "kubelet":
            systemctl("--no-block", "try-restart", name + ".service", seconds=RELOAD_SECONDS)


def restart(host: Host, changes: Sequence[Dict[str, Any]]) -> bool:
    """Restart what reads the changed files at its start only; return whether all came up."""
    good = True
    for name in readers(changes):
        if name == "docker":  # for people: one that is off stays off, and no pod depends on it
            systemctl("try-restart", "docker.service")
        else:
            good = systemctl("restart", name + ".service") and good
            host.say("%s restarted" % name)
    return good


def settle(host: Host, changes: Sequence[Dict[str, Any]]) -> None:
    """Do what must follow a commit before any service starts: drop-ins, labels, the kernel's own host name."""
    if any(item["path"] in PROXY_OF for item in changes):
        systemctl("daemon-reload", seconds=RELOAD_SECONDS)  # at boot too: the units were read before
    paths = [item["path"] for item in changes if item["op"] in ("write", "make")]
    if paths and not host.root:
        run(["restorecon"] + paths, RESTORECON_SECONDS)
    if HOSTNAME in paths and not host.root:
        data = host.disk.read(HOSTNAME, PATH_BYTES)
        try:
            socket.sethostname((data or b"").decode().strip())
        except OSError:
            pass  # in a container; systemd sets it at the next boot


# --- sources
#
# Where a node finds its data package. What is found is only decoded here, never judged. All that comes from outside is
# bounded: sizes by PACKED and MAX_PAYLOAD, each try, each source and each scope by the seconds in SourceHost. Whatever
# goes wrong is a Problem with a code; find() raises none of it.
#
# The paths, headers and limits are those of the platforms' own documentation: EC2 "Use the Instance Metadata Service"
# (version 2), Compute Engine "VM metadata", Azure "Instance Metadata Service", OpenStack Nova "Metadata", cloud-init's
# "NoCloud" and "ConfigDrive", QEMU docs/specs/fw_cfg, DMTF DSP0134 (SMBIOS), open-vm-tools vmware-rpctool.


class SourceError(Refused):
    """A source cannot be used, and asking again would not help."""


class _MissingError(SourceError):
    """A program is not installed."""


class _Again(Exception):  # a wish, not an error
    """A try failed, and a later one may not: ``after`` seconds, when the server said so."""

    def __init__(self, text: str, after: float = 0.0) -> None:
        super().__init__(text)
        self.text = text
        self.after = after


_Found = Union[Candidate, Problem]
_Source = Callable[[SourceHost, float], Iterator[_Found]]


def find(scope: str, host: SourceHost) -> Tuple[List[Candidate], List[Problem]]:
    """Return all that looks like a data package, in the order of the sources, and what went wrong.

    Args:
        scope: ``local`` (disks, firmware, hypervisor, sandbox) or ``net`` (kernel line, metadata services).
        host: the machine.
    """
    candidates, problems = [], []  # type: Tuple[List[Candidate], List[Problem]]
    end = host.monotonic() + host.scope_seconds
    for origin, source, seconds in _sources(scope, host):
        left = min(seconds, end - host.monotonic())
        if left <= 0:
            text = f"not asked: the {host.scope_seconds:g} s for all sources together are over"
            problems.append(Problem(origin, "E_SOURCE", text))
            continue
        for one in _bounded(origin, _begin(source, host, host.monotonic() + left), left):
            if isinstance(one, Problem):
                problems.append(one)
            else:
                candidates.append(one)
    return candidates, problems


def _begin(source: _Source, host: SourceHost, deadline: float) -> Callable[[], Iterator[_Found]]:
    return lambda: source(host, deadline)


def _sources(scope: str, host: SourceHost) -> List[Tuple[str, _Source, float]]:
    """Return name, function and seconds of each source of a scope: this is the order in which they are tried."""
    seconds = host.source_seconds
    if host.source:
        return [("source", _from_source, seconds)] if scope == "local" else []
    if scope == "local":
        sources = [
            ("mesos", _from_sandbox, seconds), ("disk", _from_disks, host.disk_seconds),
            ("fw_cfg", _from_fw_cfg, seconds), ("smbios", _from_smbios, seconds),
        ]  # type: List[Tuple[str, _Source, float]]  # fmt: skip
        if "VMware" in host.dmi("sys_vendor"):
            sources.append(("vmware", _from_guestinfo, seconds))
        return sources
    if scope != "net":
        raise ValueError(f"scope is local or net, not {scope!r}")
    lines = [("kernel-line", _from_kernel_line, host.fetch_seconds)] if _kernel_value(host, "data") else []
    asked = services(host)
    return lines + [(name, source, seconds) for name, source in METADATA if name in asked]


def services(host: SourceHost) -> List[str]:
    """Return which metadata services this machine can have, by what its firmware says.

    Bare metal and unknown firmware have none, and so wait for none; ``imagebuilder.services=ec2,openstack`` on the
    kernel line says otherwise.
    """
    named = _kernel_value(host, "services")
    if named:
        return named.split(",")
    vendor, product, tag = host.dmi("sys_vendor"), host.dmi("product_name"), host.dmi("chassis_asset_tag")
    xen = vendor == "Xen" and host.dmi("product_uuid").lower().startswith("ec2")
    hints = [
        ("ec2", vendor.startswith("Amazon") or xen),
        ("gce", product == "Google Compute Engine"),
        ("azure", tag == AZURE_TAG),
        ("openstack", product.startswith("OpenStack") or vendor.startswith("OpenStack") or tag in OPENSTACK_TAGS),
        ("digitalocean", vendor == "DigitalOcean"),
        ("hcloud", vendor == "Hetzner"),
    ]
    return [name for name, here in hints if here]


def _bounded(origin: str, work: Callable[[], Iterator[Any]], seconds: float) -> List[Any]:
    """Return what ``work`` yields within its seconds; a thread that hangs (name look-up, bad disk) is left behind."""
    found = []  # type: List[Any]

    def collect() -> None:
        try:
            for one in work():
                found.append(one)
        except SourceError as error:
            found.append(Problem(origin, error.code, error.text))
        except Exception as error:  # foreign bytes: whatever they break, the boot goes on
            found.append(Problem(origin, "E_SOURCE", f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=collect, name=origin, daemon=True)
    thread.start()
    thread.join(seconds + GRACE)
    result = list(found)
    if thread.is_alive():
        result.append(Problem(origin, "E_SOURCE", f"gave no whole answer within {seconds:g} s"))
    return result


# ---- what a transport carries


def decode(data: bytes, depth: int = 0) -> Optional[bytes]:
    """Return the package or the pointer document in a transport's payload; None when it is something else.

    It may be bare, base64, gzipped once more, or a part of a MIME text, in any order.

    Raises:
        SourceError: E_SIZE, larger than any package.
    """
    if len(data) > MAX_PAYLOAD:
        raise SourceError("E_SIZE", f"more than {MAX_PAYLOAD} bytes")
    if depth > MAX_DEPTH:
        return None
    if data[:2] == GZIP:
        return _decode_gzip(data, depth)
    data = data.strip()
    if data[:1] == b"{":
        return _sized(data) if _kind(data) == "DataPackagePointer" else None
    if re.match(rb"(?i)(mime-version|content-type)\s*:", data):
        return _decode_mime(data, depth)
    packed = b"".join(data.split())
    if not packed or not re.match(rb"[A-Za-z0-9+/]+={0,2}\Z", packed):
        return None
    try:
        return decode(base64.b64decode(packed, validate=True), depth + 1)
    except binascii.Error:
        return None


def _sized(data: bytes) -> bytes:
    if len(data) > PACKED:
        raise SourceError("E_SIZE", f"{len(data)} bytes, a package has at most {PACKED}")
    return data


def _kind(data: bytes) -> Any:
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return document.get("kind") if isinstance(document, dict) else None


def _decode_gzip(data: bytes, depth: int) -> Optional[bytes]:
    unpacker = zlib.decompressobj(31)  # 31: with a gzip header
    try:
        start = unpacker.decompress(data, len(FIRST_ENTRY))
        if start == FIRST_ENTRY:
            return _sized(data)
        inner = start + unpacker.decompress(unpacker.unconsumed_tail, MAX_PAYLOAD + 1)
    except zlib.error:
        return _sized(data)  # damaged; the one who verifies says how
    return None if len(inner) > MAX_PAYLOAD else decode(inner, depth + 1)  # what unpacks to more is nobody's package


def _decode_mime(data: bytes, depth: int) -> Optional[bytes]:
    """Look for our part in a flat MIME text (RFC 2046, 5.1).

    Not with the parser of the standard library, which takes minutes for 1 MiB of parts within parts.
    """
    head, _, body = data.replace(b"\r\n", b"\n").partition(b"\n\n")
    head = re.sub(rb"\n[ \t]+", b" ", head[:MAX_HEADER])
    found = re.search(rb'(?im)^content-type\s*:\s*multipart/[^\n]*boundary="?([^";\n]+)', head)
    if not found:
        return None
    for part in (b"\n" + body).split(b"\n--" + found.group(1).rstrip(), MAX_PARTS)[1:]:
        head, _, body = part.partition(b"\n\n")
        if re.search(rb"(?im)^content-type\s*:\s*" + PART_TYPE + rb"\s*(;|$)", head[:MAX_HEADER]):
            package = decode(body, depth + 1)
            if package is not None:
                return package
    return None


def _take(
    origin: str, data: Optional[bytes], ours: bool, release: Optional[Callable[[], None]] = None
) -> Iterator[_Found]:
    """Yield what a payload holds. ``ours``: the place is for nothing else, so that anything else is a problem."""
    if data is None:
        return
    try:
        package = decode(data)
    except SourceError as error:
        if ours:
            yield Problem(origin, error.code, error.text)
        return
    if package is not None:
        yield Candidate(origin, package, release)
    elif ours:
        yield Problem(origin, "E_FORMAT", "neither a data package nor a pointer to one")


# ---- files and programs


def _read(path: str, limit: int, inside: str = "") -> Optional[bytes]:
    """Return a regular file's bytes, or None where there is none.

    Args:
        path: the file; a link as its last part is refused.
        limit: bytes it may have.
        inside: a folder that no link in the path may lead out of.

    Raises:
        SourceError: it is larger, or cannot be read.
    """
    if inside and not os.path.realpath(path).startswith(os.path.realpath(inside) + "/"):
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        try:
            data = stream.read(limit + 1)
        except OSError as error:
            raise SourceError("E_SOURCE", f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise SourceError("E_SIZE", f"{path} has more than {limit} bytes")
    return data


def output_of(argv: Sequence[str], seconds: float, limit: int = MAX_PAYLOAD) -> Tuple[int, bytes, str]:
    """Run a program to its end and return its exit code, its output, and what it complained about.

    Args:
        argv: program and arguments.
        seconds: after which it, and what it started, is killed.
        limit: bytes of output, after which likewise.

    Raises:
        SourceError: it is not installed, or was killed.
    """
    try:
        child = start_program(argv, subprocess.DEVNULL, subprocess.PIPE)
    except OSError as error:
        raise _MissingError("E_SOURCE", f"{argv[0]} cannot be started: {error.strerror}") from error
    deadline = time.monotonic() + seconds
    try:
        output, complaint = _pump(child, deadline, limit)
        code = child.wait(max(0.1, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, SourceError) as error:
        problem = error if isinstance(error, SourceError) else None
        raise problem or SourceError("E_SOURCE", f"{argv[0]} did not end within {seconds:g} s") from None
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1)  # one that waits for a broken device cannot be killed: it is left behind
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()
    return code, output, complaint.decode("utf-8", "replace").strip()


def _pump(child: "subprocess.Popen[bytes]", deadline: float, limit: int) -> Tuple[bytes, bytes]:
    texts = {}  # type: Dict[Any, bytes]
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr):
            selector.register(stream, selectors.EVENT_READ)  # type: ignore[arg-type]
            texts[stream] = b""
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(child.args, 0)
            for key, _ in selector.select(left):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                texts[key.fileobj] += data
                if len(texts[key.fileobj]) > limit:
                    raise SourceError("E_SIZE", f"a program wrote more than {limit} bytes")
    return texts[child.stdout], texts[child.stderr]


# ---- local sources


def _from_source(host: SourceHost, deadline: float) -> Iterator[_Found]:
    """What ``--source`` names; not below ``root``, which is where it goes."""
    parts = urllib.parse.urlsplit(host.source)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise SourceError("E_SOURCE", f"{host.source} is not a file on this machine")
    path = urllib.parse.unquote(parts.path) if parts.scheme else host.source
    data = _read(path, MAX_PAYLOAD)
    if data is None:
        raise SourceError("E_SOURCE", f"{path} is no file that can be read")
    return _take("source:" + path, data, True)


def _from_sandbox(host: SourceHost, deadline: float) -> Iterator[_Found]:
    """The file that Mesos' fetcher put into the task's sandbox."""
    if host.sandbox:
        path = os.path.join(host.sandbox, FILE_NAME)
        yield from _take("mesos:" + path, _read(path, MAX_PAYLOAD), True)


DISKS = {
    "cidata": (FILE_NAME, "user-data"),
    "config-2": (FILE_NAME, "openstack/latest/user_data"),
    "azure": ("CustomData.bin", "ovf-env.xml"),
}
NO_DISKS = ("loop", "ram", "zram", "fd")  # of these none is a machine's own, and a floppy drive takes seconds to say so


def _from_disks(host: SourceHost, deadline: float) -> Iterator[_Found]:
    """Files on labelled volumes, read and unmounted at once; the labels in their order."""
    volumes = list(_volumes(host))
    for wanted in ("cidata", "config-2", "azure"):
        for device, label, kind in volumes:
            if label != wanted:
                continue
            origin = f"{wanted}:{device[len(host.root) :]}"
            try:
                for name, data in _files(host, device, kind, DISKS[wanted], deadline):
                    yield from _take(origin, _custom_data(data) if name.endswith(".xml") else data, name == FILE_NAME)
            except SourceError as error:
                yield Problem(origin, error.code, error.text)


def _volumes(host: SourceHost) -> Iterator[Tuple[str, str, str]]:
    """Yield device, label and file system of each volume of interest: those that udev knows, then by looking."""
    azure = host.dmi("chassis_asset_tag") == AZURE_TAG
    known = {}
    for name in host.names("/dev/disk/by-label"):
        known[os.path.realpath(host.path("/dev/disk/by-label/" + name))] = name.lower()
    blocks = [name for name in host.names("/sys/class/block") if not name.startswith(NO_DISKS)]
    rest = [host.path("/dev/" + name) for name in blocks if host.text(f"/sys/class/block/{name}/size") != "0"]
    for device in list(known) + [device for device in rest if device not in known]:
        found = probe(device)
        if found is None:
            continue
        kind, label = found
        label = known.get(device, label.lower())
        if label in ("cidata", "config-2"):
            yield device, label, kind
        elif azure and kind in ("udf", "iso9660"):
            yield device, "azure", kind


def probe(device: str) -> Optional[Tuple[str, str]]:
    """Return the file system (vfat, iso9660 or udf) and the label of a volume, or None.

    FAT: Microsoft's "FAT: General Overview", offsets of the boot sector. ISO 9660: ECMA-119, 8.4. UDF: ECMA-167, 2/9;
    its label is not looked for.
    """
    try:
        with open(device, "rb", 0) as stream:
            boot = stream.read(512)
            stream.seek(32768)
            descriptors = stream.read(16 * 2048)
    except OSError:
        return None
    if boot[510:512] == b"\x55\xaa":
        for at in (71, 43):  # FAT32; FAT12 and FAT16
            if boot[at + 11 : at + 14] == b"FAT":
                return "vfat", boot[at : at + 11].decode("ascii", "replace").rstrip()
    for at in range(0, len(descriptors), 2048):
        if descriptors[at + 1 : at + 6] in (b"NSR02", b"NSR03"):
            return "udf", ""
    if descriptors[:6] == b"\x01CD001":
        return "iso9660", descriptors[40:72].decode("ascii", "replace").rstrip(" \0")
    return None


def _files(
    host: SourceHost, device: str, kind: str, names: Sequence[str], deadline: float
) -> List[Tuple[str, Optional[bytes]]]:
    """Return the files of a volume, which is mounted for as long as that takes.

    Raises:
        SourceError: it cannot be mounted, a file is too large, or it cannot be unmounted.
    """
    base = host.path("/run")
    import tempfile

    folder = tempfile.mkdtemp(prefix="imagebuilder-", dir=base if os.path.isdir(base) else None)  # 0700
    try:
        options = "ro,nosuid,nodev,noexec"
        _must(host, deadline, "mount", "-t", kind, "-o", options, device, folder)
        try:
            return [(name, _read(os.path.join(folder, name), MAX_PAYLOAD, folder)) for name in names]
        finally:
            try:
                _must(host, deadline, "umount", folder)
            except SourceError:
                _must(host, deadline, "umount", "-l", folder)  # out of sight at least
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _must(host: SourceHost, deadline: float, name: str, *arguments: str) -> None:
    left = max(1.0, deadline - host.monotonic())  # unmounting gets its second, however late it is
    code, output, complaint = output_of((host.commands[name], *arguments), left)
    if code:
        said = complaint or output.decode("utf-8", "replace")
        raise SourceError("E_SOURCE", f"{name} ended with {code}: {said[:200]}")


def _custom_data(document: Optional[bytes]) -> Optional[bytes]:
    """Return the base64 text in Azure's ``ovf-env.xml``. No XML parser sees it: those can be made to eat memory."""
    found = re.search(rb"<(?:\w+:)?CustomData>([A-Za-z0-9+/=\s]*)</", document or b"")
    return found.group(1) if found else None


def _from_fw_cfg(host: SourceHost, deadline: float) -> Iterator[_Found]:
    """QEMU's ``-fw_cfg name=opt/imagebuilder/data,file=...``."""
    return _take("fw_cfg", _read(host.path(FW_CFG), MAX_PAYLOAD), True)


def _from_smbios(host: SourceHost, deadline: float) -> Iterator[_Found]:
    """OEM strings (SMBIOS type 11), in systemd's way to pass a credential."""
    for origin, text in _oem_strings(host):
        if text.startswith(SMBIOS_PREFIX):
            yield from _take(origin, text[len(SMBIOS_PREFIX) :], True)


def _oem_strings(host: SourceHost) -> Iterator[Tuple[str, bytes]]:
    """Yield where it is, and the text, of each string. The whole table serves where dmi-sysfs is not loaded.

    A structure begins with type, length of the fixed part, and handle; its strings follow, each ended by a zero, and
    one more zero ends the structure (DSP0134, 6.1).
    """
    names = [name for name in host.names("/sys/firmware/dmi/entries") if name.startswith("11-")]
    for name in names:
        raw = _read(host.path(f"/sys/firmware/dmi/entries/{name}/raw"), MAX_PAYLOAD) or b""
        for text in raw[raw[1] :].split(b"\0") if len(raw) > 4 else ():
            yield "smbios:" + name, text
    table = b"" if names else _read(host.path("/sys/firmware/dmi/tables/DMI"), MAX_PAYLOAD) or b""
    at = 0
    while at + 4 <= len(table) and table[at + 1] >= 4:
        start = at + table[at + 1]
        end = table.find(b"\0\0", start)
        if end < 0:
            return
        if table[at] == 11:
            for text in table[start:end].split(b"\0"):
                yield "smbios", text
        at = end + 2


def _from_guestinfo(host: SourceHost, deadline: float) -> Iterator[_Found]:
    """VMware's guestinfo: a key of ours, else a property of the OVF environment."""
    value = _guestinfo(host, deadline, "info-get " + GUESTINFO_KEY)
    if value and value != b"---":
        # Any user of the guest can read it: it goes once it is not needed any more.
        yield from _take("guestinfo", value, True, lambda: _redact(host))
    document = _guestinfo(host, deadline, "info-get guestinfo.ovfEnv")
    found = re.search(rb'key="imagebuilder\.data"\s+[\w:]*value="([A-Za-z0-9+/=\s]+)"', document)
    if found:
        yield from _take("ovfenv", found.group(1), True)


def _redact(host: SourceHost) -> None:
    _guestinfo(host, host.monotonic() + host.source_seconds, f"info-set {GUESTINFO_KEY} ---")


def _guestinfo(host: SourceHost, deadline: float, request: str) -> bytes:
    """Return the answer to a request, empty where there is no such value."""
    left = max(0.1, deadline - host.monotonic())
    try:
        code, output, complaint = output_of((host.commands["vmware-rpctool"], request), left)
    except _MissingError:
        code, output, complaint = output_of((host.commands["vmtoolsd"], "--cmd", request), left)
    said = complaint + output.decode("utf-8", "replace") if code else ""
    if code and "No value found" not in said:
        raise SourceError("E_SOURCE", f"{request.split()[0]}: {said[:200]}")
    return b"" if code else output.strip()


# ---- sources that need the network


def _kernel_value(host: SourceHost, name: str) -> str:
    """Return the value of ``imagebuilder.<name>=`` on the kernel's command line; the last one counts."""
    start = f"imagebuilder.{name}="
    words = [word for word in host.text("/proc/cmdline").split() if word.startswith(start)]
    return words[-1][len(start) :] if words else ""


def _from_kernel_line(host: SourceHost, deadline: float) -> Iterator[_Found]:
    """A package behind an address. Its sha256 is compared where it is given; its signature counts in any case."""
    url, digest = expand(host, _kernel_value(host, "data")), _kernel_value(host, "sha256").lower()
    data = download(host, url, MAX_PAYLOAD, deadline)
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise SourceError("E_DIGEST", f"what {url} gave is not of the sha256 on the kernel line")
    return _take("kernel-line", data, True)


def expand(host: SourceHost, url: str) -> str:
    """Return an address with ``{uuid}``, ``{serial}``, ``{mac}`` and ``{hostname}`` replaced by this machine's.

    Raises:
        SourceError: another name, or one that this machine has no value for.
    """
    cards = [name for name in host.names("/sys/class/net") if name != "lo"]
    macs = [host.text(f"/sys/class/net/{name}/address") for name in cards]
    values = {
        "uuid": host.dmi("product_uuid").lower(),
        "serial": host.dmi("product_serial"),
        "mac": next((mac for mac in macs if mac and mac != "00:00:00:00:00:00"), ""),
        "hostname": host.text("/proc/sys/kernel/hostname"),
    }

    def value(match: Any) -> str:
        if not values.get(match.group(1)):
            raise SourceError("E_SOURCE", f"the machine has no {match.group(1)} for {url}")
        return urllib.parse.quote(values[match.group(1)], safe=":")

    return re.sub(r"\{([^{}]*)\}", value, url)


def fetch_pointer(
    document_bytes: bytes, host: SourceHost, verify: Callable[[Dict[str, Any], bytes, str], object]
) -> bytes:
    """Return the package file that a pointer document names.

    Args:
        document_bytes: the document, as a candidate's ``data``.
        host: the machine.
        verify: is given the document without its signature, the signature (DER) and the key's id, before anything is
            fetched; it raises when the signature is not good, and that goes through.

    Raises:
        SourceError: E_FORMAT, a bad document; E_SIZE; E_DIGEST, other bytes than it names; E_SOURCE.
    """
    document = _pointer(document_bytes)
    signature = base64.b64decode(document.pop("signature"), validate=True)
    verify(dict(document), signature, document["keyId"])
    url, size = document["url"], document["size"]
    seconds = host.fetch_seconds
    deadline = host.monotonic() + seconds
    found = _bounded(url, lambda: iter([download(host, url, size, deadline)]), seconds)
    for problem in found:
        if isinstance(problem, Problem):
            raise SourceError(problem.code, problem.text)
    data = found[0]
    if len(data) != size or hashlib.sha256(data).hexdigest() != document["sha256"]:
        raise SourceError("E_DIGEST", f"what {url} gave is not what the pointer document names")
    return bytes(data)


def _pointer(data: bytes) -> Dict[str, Any]:
    try:
        document = json.loads(data.decode("utf-8"))
        keys = sorted(document) if isinstance(document, dict) else []
        signature = base64.b64decode(document["signature"], validate=True) if keys == POINTER_KEYS else b""
    except (ValueError, TypeError, RecursionError) as error:
        raise SourceError("E_FORMAT", f"not a pointer document: {error}") from error
    if not signature:
        raise SourceError("E_FORMAT", "not a pointer document: it has not the keys that it must have")
    for key, shape in POINTER_SHAPES.items():
        if not isinstance(document[key], str) or not re.match(shape + r"\Z", document[key]):
            raise SourceError("E_FORMAT", f"not a pointer document: its {key} is not as it must be")
    if type(document["size"]) is not int or not 0 < document["size"] <= PACKED:
        raise SourceError("E_FORMAT", "not a pointer document: its size is not as it must be")
    return dict(document)


def download(host: SourceHost, url: str, limit: int, deadline: float) -> bytes:
    """Return what is behind an http or https address; follows redirects, but never away from https, nor elsewhere.

    Raises:
        SourceError: E_SIZE, more than ``limit`` bytes; E_SOURCE for anything else.
    """

    def ask(start: str) -> bytes:
        at = start
        for _ in range(MAX_REDIRECTS + 1):
            status, headers, body = _http(host, "GET", at, {}, deadline, limit=limit)
            if status == 200:
                return body
            if status not in REDIRECTS:
                raise SourceError("E_SOURCE", f"{at} answers {status}")
            target = urllib.parse.urljoin(at, headers.get("Location", ""))
            allowed = ("https://",) if at.startswith("https:") else ("http://", "https://")
            if not target.startswith(allowed):
                raise SourceError("E_SOURCE", f"{at} redirects to {target[:200]}, which is not followed")
            at = target
        raise SourceError("E_SOURCE", f"{start} redirects more than {MAX_REDIRECTS} times")

    return bytes(_patiently(host, [url], ask, deadline))


def _patiently(host: SourceHost, bases: Sequence[str], ask: Callable[[str], Any], deadline: float) -> Any:
    """Return the first answer; each base is asked in turn, then again after a pause that grows.

    Raises:
        SourceError: none before the deadline, or one said that asking again is of no use.
    """
    pause = FIRST_PAUSE
    while True:
        texts, wanted = [], pause
        for base in bases:
            try:
                return ask(base)
            except _Again as error:
                texts.append(error.text)
                wanted = max(wanted, error.after)
        if host.monotonic() + wanted >= deadline:
            raise SourceError("E_SOURCE", "; ".join(texts) or "has no address")
        host.sleep(wanted)
        pause *= 2


def _http(
    host: SourceHost, method: str, url: str, headers: Dict[str, str], deadline: float,
    again: Sequence[int] = (), limit: int = MAX_PAYLOAD,
) -> Tuple[int, Any, bytes]:  # fmt: skip
    """Make one request, without proxies or redirects, and return status, headers and body.

    Raises:
        _Again: it failed in a way that may pass.
        SourceError: E_SIZE.
    """
    import http.client  # half of all that the agent imports; a boot that finds its package on a disk does without

    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        name, port = _address(parts)
        connection = kind(name, port, timeout=max(0.1, min(host.connect_seconds, deadline - host.monotonic())))
        with contextlib.closing(connection):
            connection.connect()
            connection.sock.settimeout(max(0.1, min(host.read_seconds, deadline - host.monotonic())))
            target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            # The scope of an IPv6 address is this machine's own business (RFC 6874).
            shown = {"Host": re.sub(r"%[^\]]*", "", parts.netloc.rpartition("@")[2]), "Connection": "close"}
            connection.request(method, target, headers=dict(shown, **headers))
            response = connection.getresponse()
            if response.status in AGAIN or response.status in again:
                text = f"{url} answers {response.status}"
                raise _Again(text, _seconds(response.headers.get("Retry-After", "")))
            return response.status, response.headers, _body(host, response, url, deadline, limit)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Again(f"{url}: {error or type(error).__name__}") from error


def _address(parts: urllib.parse.SplitResult) -> Tuple[str, int]:
    """Return name and port of an address; an IPv6 address keeps its scope."""
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _seconds(text: str) -> float:
    return float(text) if re.match(r"[0-9]{1,6}\Z", text) else 0.0  # a date needs a clock that is right


def _body(host: SourceHost, response: Any, url: str, deadline: float, limit: int) -> bytes:
    stated = response.headers.get("Content-Length", "")
    length = int(stated) if stated.isdigit() and not response.chunked else None
    if length is not None and length > limit:
        raise SourceError("E_SIZE", f"{url} has {length} bytes, more than {limit}")
    body = b""
    while length is None or len(body) < length:
        if host.monotonic() >= deadline:
            raise _Again(f"{url}: not whole within its time")
        piece = response.read1(1 << 16)  # what is there, not so many: a slow sender must not stretch the deadline
        if not piece:
            break
        body += piece
        if len(body) > limit:
            raise SourceError("E_SIZE", f"{url} has more than {limit} bytes")
    if length is not None and len(body) != length:
        raise _Again(f"{url}: {len(body)} bytes of {length}")
    return body


def _metadata(
    name: str, paths: Sequence[str], headers: Dict[str, str], ours: Sequence[str] = (), again: Sequence[int] = ()
) -> _Source:
    """Return the source of a metadata service: the first of ``paths`` that is there counts.

    Args:
        name: of the service.
        paths: in the order in which they are asked for.
        headers: that it wants.
        ours: those of the paths that hold nothing but our data.
        again: statuses that pass, beside ``AGAIN``.
    """

    def source(host: SourceHost, deadline: float) -> Iterator[_Found]:
        for path in paths:

            def ask(base: str, path: str = path) -> Tuple[int, bytes]:
                shown = dict(headers, **_token(host, base, deadline)) if name == "ec2" else headers
                status, _, body = _http(host, "GET", base + path, shown, deadline, again)
                return status, body

            status, body = _patiently(host, _bases(host, name), ask, deadline)
            if status == 200:
                yield from _take(name, body, path in ours)
                return
            if status != 404:
                raise SourceError("E_SOURCE", f"{path} answers {status}")
        raise SourceError("E_SOURCE", f"{paths[-1]} answers 404: there is no user data")

    return source


def _bases(host: SourceHost, name: str) -> List[str]:
    """Return the addresses of a service, the link-local ones once for each network card."""
    cards = [card for card in host.names("/sys/class/net") if card != "lo"]
    bases = []
    for base in host.services[name]:
        bases += [base.replace("{interface}", card) for card in cards] if "{interface}" in base else [base]
    return bases


def _token(host: SourceHost, base: str, deadline: float) -> Dict[str, str]:
    """Return the header with a session token of EC2's service; version 1, without one, is never used."""
    wish = {"X-aws-ec2-metadata-token-ttl-seconds": "21600", "Content-Length": "0"}
    status, _, body = _http(host, "PUT", base + "/latest/api/token", wish, deadline, limit=MAX_TOKEN)
    token = body.decode("ascii", "replace").strip()
    if status != 200 or not re.match(r"[!-~]+\Z", token):
        raise SourceError("E_SOURCE", f"no session token: the service answers {status}")
    return {"X-aws-ec2-metadata-token": token}


_GCE = "/computeMetadata/v1/instance/attributes/"
METADATA = (
    ("ec2", _metadata("ec2", ["/2019-10-01/user-data"], {}, again=(401,))),  # 401: the token is over
    ("gce", _metadata(
        "gce", [_GCE + "imagebuilder-data", _GCE + "user-data"], {"Metadata-Flavor": "Google"},
        ours=[_GCE + "imagebuilder-data"])),
    ("azure", _metadata(
        "azure", ["/metadata/instance/compute/userData?api-version=2021-01-01&format=text"], {"Metadata": "true"},
        again=(404, 410))),  # right after boot, and while the service is updated
    ("openstack", _metadata("openstack", ["/openstack/latest/user_data"], {})),
    ("digitalocean", _metadata("digitalocean", ["/metadata/v1/user-data"], {})),
    ("hcloud", _metadata("hcloud", ["/hetzner/v1/userdata"], {})),
)  # fmt: skip


def read_file(path: str) -> bytes:
    """Return a package file, or one byte more than it may have."""
    try:
        with open(path, "rb") as stream:
            return stream.read(PACKED + 1)
    except OSError as error:
        raise Refused("E_SOURCE", "%s: %s" % (path, error.strerror)) from error


# --- the agent


class Agent:
    """The commands. Each holds the lock, begins with what was interrupted, and ends with a status."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.disk = host.disk
        self.store = Store(host.disk)
        self.problems = []  # type: List[Problem]
        self.lock = -1

    def begin(self) -> None:
        """Take the lock, and bring an interrupted change to its end.

        Raises:
            Refused: another agent is at work.
        """
        self.disk.make("/run", 0o755)
        self.disk.make(RUN, 0o755)
        folder, name = self.disk.place(LOCK)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.lock = self.disk.call(os.open, name, flags, 0o600, dir_fd=folder)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused("E_BUSY", "another imagebuilder-agent is at work") from error
        journal = self.store.recover()
        if journal is None:
            return
        said = "completed" if journal["direction"] == "forward" else "undone"
        self.host.say("an interrupted change to generation %d is %s" % (journal["generation"], said))
        settle(self.host, journal["changes"])
        if journal["boot"] == self.boot():  # the agent was killed, not the machine: services may run
            restart(self.host, journal["changes"])

    def end(self) -> None:
        """Release what is held."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1
        self.disk.close()

    def verify(self, candidate: Candidate, force: bool) -> Package:
        """Return a package that may be applied, or is applied already."""
        package = read_package(self.host, candidate.data)
        state = self.store.state()
        if package.digest == state.get("digest"):
            return package  # whatever the clock says now
        check_node(self.host, package)
        if package.generation < state["generation"]:
            text = "generation %d, and this node has %d" % (package.generation, state["generation"])
            raise Refused("E_GENERATION", text)
        if package.generation == state["generation"]:
            raise Refused("E_GENERATION", "another package with the generation that this node has")
        if package.digest in state["rejected"] and not force:
            raise Refused("E_HEALTH", "generation %d was tried here, and taken back" % package.generation)
        return package

    def choose(self, candidates: Sequence[Candidate], force: bool = False) -> Optional[Tuple[Candidate, Package]]:
        """Return the candidate with the highest generation of those that are good; the first of equals."""
        best = None  # type: Optional[Tuple[Candidate, Package]]
        for candidate in candidates:
            try:
                candidate = self.fetched(candidate)
                package = self.verify(candidate, force)
            except Refused as refused:
                self.problem(Problem(candidate.origin, refused.code, refused.text))
                continue
            if best is not None and best[1].digest != package.digest:
                loser = candidate if package.generation <= best[1].generation else best[0]
                text = "another source has generation %d" % max(package.generation, best[1].generation)
                self.problem(Problem(loser.origin, "E_GENERATION", text))
            if best is None or package.generation > best[1].generation:
                best = (candidate, package)
        return best

    def fetched(self, candidate: Candidate) -> Candidate:
        """Return the candidate with its package, where it has a signed pointer to that.

        Raises:
            Refused: nobody whom we trust signed the pointer, or what it names is not there.
        """
        if not candidate.pointer:
            return candidate

        def verify(document: Dict[str, Any], signature: bytes, key: str) -> None:
            check_signature(self.host, key, canonical(document), signature)

        return candidate._replace(data=fetch_pointer(candidate.data, self.host, verify))

    def problem(self, problem: Problem) -> None:
        """Note a problem, and say it."""
        self.problems.append(problem)
        self.host.say("data package from %s refused: %s: %s" % (problem.origin, problem.code, problem.text))

    def install(self, candidate: Candidate, package: Package, services: str) -> str:
        """Bring the node to a package; return the code. ``services``: one of LIVE, STARTING and UNTOUCHED."""
        state = self.store.state()
        if package.digest == state.get("digest"):
            return self.report(OK, "generation %d is applied already" % package.generation, candidate)
        changes, contents = plan_changes(self.disk, package, state)
        watched = bool({"containerd", "kubelet"} & set(readers(changes))) or services != LIVE or self.host.healthy()
        journal = self.journal(candidate, package, state, changes, watched)
        self.store.commit(journal, contents)
        settle(self.host, changes)
        self.host.say("data package generation %d applied" % package.generation)
        self.release(candidate)
        code = self.report(OK, "generation %d is applied" % package.generation, candidate, "applied", log=True)
        if services == STARTING:
            restart_early(changes)
        if services != LIVE:
            return code
        if not restart(self.host, changes):
            return self.unhealthy("a service did not start")
        return self.watch() if watched else code

    def journal(
        self, candidate: Candidate, package: Package, state: Dict[str, Any], changes: List[Dict[str, Any]],
        watched: bool,
    ) -> Dict[str, Any]:  # fmt: skip
        """Return all that is needed to go from one generation to the next and back."""
        manifest = package.manifest
        folders = set(state["folders"]) | {item["path"] for item in changes if item["op"] == "make"}
        folders -= {item["path"] for item in changes if item["op"] == "unmake"}
        files = [item.path for item in package.files] + (sorted(PROXY_OF) if manifest["settings"].get("proxy") else [])
        after = {
            "generation": package.generation, "digest": package.digest, "files": files, "folders": sorted(folders),
            "rejected": state["rejected"], "previous": state["generation"], "applied": stamp(self.host.now()),
            "cluster": manifest["cluster"], "node": manifest["node"], "origin": candidate.origin,
        }  # fmt: skip
        rejected = [item for item in state["rejected"] if item != package.digest][-7:] + [package.digest]
        before = dict(state, rejected=rejected, previous=None)
        first = any(item["path"] == KUBELET_CONFIG and "old" not in item for item in changes)
        watch = {"left": WATCH_SECONDS, "boots": 0, "boot": self.boot(), "can_go_back": not first}
        return {
            "direction": "forward", "generation": package.generation, "changes": changes, "after": after,
            "before": before, "watch": watch if watched else None, "boot": self.boot(),
        }  # fmt: skip

    def boot(self) -> str:
        """Return the name of this run of the kernel."""
        return self.host.text("/proc/sys/kernel/random/boot_id")

    def release(self, candidate: Candidate) -> None:
        """Let a source unmount or redact what it had."""
        if candidate.release is not None:
            try:
                candidate.release()
            except Exception as error:
                text = "not redacted: %s" % type(error).__name__
                self.problems.append(Problem(candidate.origin, "E_SOURCE", text))

    def watch(self) -> str:
        """Wait until kubelet is healthy; else go back. Return the code."""
        watch = self.disk.read_json(WATCH)
        if watch is None:
            return OK
        status = self.disk.read_json(STATUS) or {}
        self.problems = [
            Problem(**problem) for problem in status.get("problems", [])
        ]  # stay said when kubelet is healthy
        left = float(watch["left"])
        if watch["boot"] != self.boot():
            left = max(left, WATCH_FLOOR)
            watch.update(boot=self.boot(), boots=watch["boots"] + 1, left=left)
            self.disk.write_json(WATCH, watch)
        good, begin, saved = 0, self.host.monotonic(), 0.0
        while watch["boots"] < WATCH_BOOTS:
            good = good + 1 if self.host.healthy() else 0
            passed = self.host.monotonic() - begin
            if good >= PROBES:
                self.disk.remove(WATCH)
                self.host.say("kubelet healthy with generation %d" % self.store.state()["generation"])
                return self.report(OK, "kubelet is healthy", stage="healthy", log=True)
            if passed >= left:
                break
            if passed - saved >= WATCH_SAVE:
                saved = passed
                self.disk.write_json(WATCH, dict(watch, left=left - passed))
            self.host.sleep(PROBE_SECONDS)
        return self.unhealthy("kubelet did not become healthy")

    def unhealthy(self, why: str) -> str:
        """Go back to the generation before, where there is one that can run. Return the code."""
        watch = self.disk.read_json(WATCH) or {}
        generation = self.store.state()["generation"]
        if not watch.get("can_go_back", True):
            self.disk.remove(WATCH)
            text = "%s; generation %d stays, for there is none before it" % (why, generation)
        else:
            text = "%s; generation %d was taken back" % (why, generation)
            self.go_back(restart_services=True)
        self.host.say("E_HEALTH: " + text)
        return self.report("E_HEALTH", text, stage="rolled-back", log=True)

    def go_back(self, restart_services: bool) -> None:
        """Go from the present generation to the one before.

        Raises:
            Refused: there is none.
        """
        path = "%s/%d/changes.json" % (GENERATIONS, self.store.state()["generation"])
        journal = self.disk.read_json(path)
        if journal is None:
            raise Refused("E_GENERATION", "there is no generation before this one")
        changes = journal["changes"]
        self.store.back(journal)
        settle(self.host, [dict(item, op="write") for item in changes if "old" in item or item["path"] in PROXY_OF])
        if restart_services:
            restart(self.host, changes)

    def report(
        self, code: str, text: str, candidate: Optional[Candidate] = None, stage: str = "", log: bool = False
    ) -> str:
        """Write status.json, and a line of the history where something happened; return the code."""
        state, now = self.store.state(), stamp(self.host.now())
        status = {
            "apiVersion": "imagebuilder/v1", "kind": "AgentStatus", "code": code, "text": text, "time": now,
        }  # type: Dict[str, Any]  # fmt: skip
        for key in ("generation", "previous", "digest", "cluster", "node", "origin", "applied"):
            status[key] = state.get(key)
        status["watching"] = self.disk.look(WATCH) is not None
        status["problems"] = [dict(problem._asdict()) for problem in self.problems]
        self.store.prepare()
        self.disk.write_json(STATUS, status)
        if log:
            old = self.disk.read_json(LOG) or {}
            origin = candidate.origin if candidate else state.get("origin")
            event = {"time": now, "stage": stage, "generation": state["generation"], "code": code, "text": text}
            events = (old.get("events") or []) + [dict(event, origin=origin)]
            self.disk.write_json(LOG, {"events": events[-HISTORY:]})
        return code

    def apply(self, path: str, services: str) -> str:
        """Apply a file; return the code."""
        self.begin()
        candidate = Candidate("file:" + path, read_file(path))
        chosen = self.choose([candidate], force=True)
        if chosen is None:
            return self.report(self.problems[-1].code, self.problems[-1].text, candidate, "refused", log=True)
        return self.install(chosen[0], chosen[1], services)

    def start(self, scope: str) -> str:
        """Find a package and apply it, as the services do at boot; return the code."""
        self.begin()
        candidates, problems = find(scope, self.host)
        # A pointer that was found locally waits for the network.
        if scope == "local":
            candidates = [one for one in candidates if not one.pointer]
        else:
            candidates += [one for one in find("local", self.host)[0] if one.pointer]
        for problem in problems:
            self.problem(problem)
        if candidates and scope == "local":
            self.disk.write(FOUND, b"", 0o644, own())
        chosen = self.choose(candidates)
        if chosen is not None:
            return self.install(chosen[0], chosen[1], LIVE if scope == "net" else STARTING)
        state = self.store.state()
        if state["generation"]:
            return self.report(OK, "generation %d stays" % state["generation"])
        if self.problems:
            return self.report(self.problems[-1].code, self.problems[-1].text, log=True, stage="refused")
        self.host.say("no data package found (%s)" % scope)
        return self.report("E_NONE", "no data package was found (%s)" % scope)

    def rollback(self) -> str:
        """Go back by hand; return the code."""
        self.begin()
        self.go_back(restart_services=True)
        text = "back on generation %d" % self.store.state()["generation"]
        self.host.say(text)
        return self.report(OK, text, stage="rolled-back", log=True)

    def status(self) -> Dict[str, Any]:
        """Return the last status, once what was interrupted is brought to its end."""
        try:
            self.begin()
        except Refused as refused:
            if refused.code != "E_BUSY":
                raise
        none = {"code": "E_NONE", "text": "the agent has not run yet", "generation": 0, "problems": []}
        return self.disk.read_json(STATUS) or none


def command(agent: Agent, words: argparse.Namespace) -> str:
    """Do what the command line says; return the code."""
    if words.verb == "apply":
        return agent.apply(words.file, UNTOUCHED if words.no_restart else LIVE)
    if words.verb == "boot":
        return agent.start(words.scope)
    if words.verb == "rollback":
        return agent.rollback()
    if words.verb == "watch":
        agent.begin()
        return agent.watch()
    status = agent.status()
    if words.verb == "history":
        for event in (agent.disk.read_json(LOG) or {}).get("events", []):
            print("%(time)s  generation %(generation)s  %(code)s  %(text)s" % event)
        return OK
    if words.json:
        print(json.dumps(status, indent=2, sort_keys=True))
    else:
        print("%s: %s (generation %s)" % (status["code"], status["text"], status["generation"]))
        for problem in status["problems"]:
            print("  %(origin)s: %(code)s: %(text)s" % problem)
    return str(status["code"])


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Return the command line's words."""
    parser = argparse.ArgumentParser(prog="imagebuilder-agent", description="Injects a data package into this node.")
    parser.add_argument("--root", default="", help="prefix of all paths")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND")
    verbs.required = True
    apply = verbs.add_parser("apply", help="apply a package file, also on a live node")
    apply.add_argument("file")
    apply.add_argument("--no-restart", action="store_true", help="kubelet starts after this: touch no service")
    boot = verbs.add_parser("boot", help="find a package and apply it")
    boot.add_argument("--scope", choices=("local", "net"), required=True)
    boot.add_argument("--source", default="", help="file:///PATH instead of a search")
    verbs.add_parser("watch", help="wait for a healthy kubelet, else go back")
    verbs.add_parser("status", help="say what is applied").add_argument("--json", action="store_true")
    verbs.add_parser("rollback", help="go back to the generation before")
    verbs.add_parser("history", help="list what happened")
    return parser.parse_args(argv)


def act(host: Host, words: argparse.Namespace) -> str:
    """Run a command to a code, whatever happens."""
    agent = Agent(host)
    try:
        try:
            return command(agent, words)
        except Refused as refused:
            code, text = refused.code, refused.text
        except OSError as error:
            code, text = "E_DISK", "%s: %s" % (error.filename or "disk", error.strerror)
        except Exception as error:
            code, text = "E_INTERNAL", "%s: %s" % (type(error).__name__, error)
        host.say("%s: %s" % (code, text))
        try:
            if code != "E_BUSY":  # the other one reports
                agent.report(code, text, log=True, stage="failed")
        except (OSError, Refused):
            pass  # the console has it
        return code
    finally:
        agent.end()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    os.umask(0o077)
    words = parse(argv)
    code = act(Host(words.root, getattr(words, "source", "")), words)
    return CODES.get(code, 0)


if __name__ == "__main__":
    sys.exit(main())
