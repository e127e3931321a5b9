"""Where a node finds its data package: disks, firmware, hypervisor, kernel line, metadata services, a Mesos sandbox.

Python 3.6 and newer, standard library only; nothing here needs the rest of the project. What is found is only decoded,
never judged: whether it is signed, fits this node and is newer than what runs is the caller's business.

All that comes from outside is bounded: sizes by ``MAX_PACKAGE`` and ``MAX_PAYLOAD``, each try, each source and each
scope by the seconds in :class:`SourceHost`. Whatever goes wrong is a :class:`Problem` with a code; none of it is raised
by ``find``.

The paths, headers and limits are those of the platforms' own documentation: EC2 "Use the Instance Metadata Service"
(version 2), Compute Engine "VM metadata", Azure "Instance Metadata Service", OpenStack Nova "Metadata", cloud-init's
"NoCloud" and "ConfigDrive", QEMU ``docs/specs/fw_cfg``, DMTF DSP0134 (SMBIOS), open-vm-tools ``vmware-rpctool``.
"""

import base64
import binascii
import contextlib
import hashlib
import http.client
import json
import os
import re
import selectors
import signal
import stat
import subprocess  # noqa: TID251  # the agent stands alone; output_of() is its one place that starts programs
import tempfile
import threading
import time
import urllib.parse
import zlib
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

MAX_PACKAGE = 1 << 20  # bytes; the cap of the format
# Base64 in lines of 76 makes 1 MiB 1.37 MiB; as a part of a MIME text that is base64 once more, 1.85 MiB.
MAX_PAYLOAD = 2 << 20
MAX_TOKEN = 1024  # bytes of EC2's session token, which has 56
MAX_DEPTH = 4  # base64 of a gzip of a MIME text of a base64 part is the deepest that any tool makes
MAX_HEADER, MAX_PARTS = 8192, 64  # bytes and number, in a MIME text
MAX_REDIRECTS = 3
FIRST_PAUSE = 0.5  # seconds before the second try; doubled from then on
GRACE = 1.0  # seconds that a source's thread gets after its deadline to say itself what is wrong
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

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


class SourceError(Exception):
    """A source cannot be used, and asking again would not help."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class _MissingError(SourceError):
    """A program is not installed."""


class _Again(Exception):  # noqa: N818  # a wish, not an error
    """A try failed, and a later one may not: ``after`` seconds, when the server said so."""

    def __init__(self, text: str, after: float = 0.0) -> None:
        super().__init__(text)
        self.text = text
        self.after = after


class SourceHost:
    """The machine, as the sources see it; tests and ``--root`` put something else in its place.

    Attributes:
        root: a folder in front of every path, or an empty string.
        source: the ``file://`` address or path of ``--source``; then nothing else is looked at.
        sandbox: the folder into which Mesos fetched the task's files, or an empty string.
        connect_seconds, read_seconds: for a connection, and without a byte on it.
        source_seconds, fetch_seconds, scope_seconds: for one source, one download, and all sources of a scope.
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
        self.fetch_seconds = 30.0
        self.scope_seconds = 60.0
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
            ("mesos", _from_sandbox), ("disk", _from_disks), ("fw_cfg", _from_fw_cfg), ("smbios", _from_smbios),
        ]  # type: List[Tuple[str, _Source]]  # fmt: skip
        if "VMware" in host.dmi("sys_vendor"):
            sources.append(("vmware", _from_guestinfo))
        return [(name, source, seconds) for name, source in sources]
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
    if len(data) > MAX_PACKAGE:
        raise SourceError("E_SIZE", f"{len(data)} bytes, a package has at most {MAX_PACKAGE}")
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
    env = {"PATH": SYSTEM_PATH, "LC_ALL": "C"}
    try:
        child = subprocess.Popen(
            list(argv), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
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
    if type(document["size"]) is not int or not 0 < document["size"] <= MAX_PACKAGE:
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


def _body(host: SourceHost, response: http.client.HTTPResponse, url: str, deadline: float, limit: int) -> bytes:
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
