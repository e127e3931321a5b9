"""The packages that apt itself is made of, found in an archive without apt: for hosts that have none.

Order of trust: the archive's ``InRelease`` is signed by a key of its keyring; it names the hash of the index of
packages, which names the hash of each package. The index must be of the release that was asked for, valid by this
machine's clock, and not older than one seen before (:mod:`imagebuilder.sources.aptdates`). What these packages are
unpacked to only *asks* (:mod:`imagebuilder.direct.apttree`); what is in an image is what apt then says.
Formats: https://wiki.debian.org/DebianRepository/Format; deb-control(5) for dependencies.
"""

from __future__ import annotations

import lzma
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.content import sha256_bytes
from imagebuilder.errors import UnresolvableError, UntrustedError
from imagebuilder.events import Stage
from imagebuilder.model import LockedPackage
from imagebuilder.sources import openpgp
from imagebuilder.sources.addresses import safe_url
from imagebuilder.sources.apt import Archive, no_mirror
from imagebuilder.sources.aptdates import goes_back, seconds_of
from imagebuilder.sources.aptmessages import OTHER_MIRROR, meaning_of
from imagebuilder.sources.apturis import PACKAGE_LIMIT, file_name
from imagebuilder.sources.debs import check_package
from imagebuilder.sources.download import Downloader

RELEASE_LIMIT = 4 << 20  # bytes; Debian's have 0.15 MB
INDEX_LIMIT = 64 << 20  # bytes of a compressed index; Debian's main has 10 MB
TEXT_LIMIT = 512 << 20  # bytes of an index; Debian's main has 55 MB
XZ_MEMORY = 256 << 20  # bytes; xz -9 decompresses in 65 MiB
FUTURE_SECONDS = 10  # by which an index may be younger than this machine's clock: apt's own, Acquire::Max-FutureTime
HEAD_SECONDS = 30.0  # for the head of an answer, of a mirror that has answered before: a cache may have to fetch first
AT_ONCE = 4  # transfers: a mirror takes more of them amiss

WANTED = (
    "Package", "Version", "Architecture", "Essential", "Priority", "Pre-Depends", "Depends", "Provides", "Filename",
    "Size", "SHA256",
)  # fmt: skip
FIELD = re.compile(rf"^({'|'.join(WANTED)}): ?(.*(?:\n[ \t].*)*)", re.MULTILINE)
HASHED = re.compile(r"^ ([0-9a-f]{64}) +([0-9]{1,15}) +(\S+)$", re.MULTILINE)
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")
# Debian's policy, section 5.6: what becomes the name of a file here has nothing else in it.
EXACT = {
    "Package": NAME, "Version": re.compile(r"[0-9A-Za-z][A-Za-z0-9.+:~-]*"), "Architecture": re.compile("[a-z0-9-]+"),
    "SHA256": re.compile("[0-9a-f]{64}"), "Size": re.compile("[0-9]{1,15}"), "Filename": re.compile(r"[!-~]+"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Seed:
    """What an archive has: the date of its index as that has it, and the packages, sorted by name."""

    date: str
    packages: tuple[LockedPackage, ...]


def ask(archive: Archive, downloader: Downloader, before: str = "") -> Seed | None:
    """Return the essential packages of an archive, apt, and all that they depend on.

    Args:
        archive: whose mirror is named.
        downloader: asks it.
        before: the date of the index that was seen there before.

    Returns:
        None where the index is a little older than the one before: what that had is to be used.

    Raises:
        ToolMissingError: no mirror is named, or there is no keyring for it.
        UntrustedError: a signature, hash or date is not as it must be.
        UnreachableError, UnresolvableError: the mirror does not answer, or does not have a file.
    """
    if not archive.mirror:
        raise no_mirror(archive)
    release = _release(archive, downloader)
    date = _field(release, "Date")
    if before and goes_back({"InRelease": before}, {"InRelease": date}, _who(archive)):
        return None
    stanzas = _stanzas(_index(archive, release, downloader))
    return Seed(date=date, packages=closure(stanzas, archive))


def bring(packages: Iterable[LockedPackage], store: Path, stage: Stage, downloader: Downloader | None = None) -> None:
    """Bring packages into ``store``, under their file names, each as its hash says.

    Raises:
        UntrustedError, UnreachableError, UnresolvableError: as :meth:`Downloader.fetch`.
    """
    wanted, patient = list(packages), downloader or Downloader(connect_timeout=HEAD_SECONDS)

    def fetch(package: LockedPackage) -> None:
        path = store / package.filename
        with suppress(UntrustedError):
            check_package(path, package)
            return
        patient.fetch(package.uri, path, sha256=package.sha256, max_size=package.size)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, _ in enumerate(pool.map(fetch, wanted), start=1):
            stage.update(number, len(wanted), "packages of apt")


def _release(archive: Archive, downloader: Downloader) -> str:
    """Return the archive's Release file: signed, of the release that was asked for, valid now."""
    keyring = openpgp.keyring_of(archive.keyring).read_bytes()
    url = _address(archive, f"dists/{archive.suite}/InRelease")
    signed = openpgp.verified(_get(url, downloader, RELEASE_LIMIT), keyring)
    if signed is None:
        raise meaning_of("its InRelease has an invalid signature", _who(archive))
    text = signed.decode("utf-8", "replace")
    if archive.suite not in (_field(text, "Codename"), _field(text, "Suite")):
        is_of = _field(text, "Codename") or _field(text, "Suite") or "no release"
        message = f"{_who(archive)} gives the index of {is_of} for that of {archive.suite}"
        raise UntrustedError(message, hint=OTHER_MIRROR)
    now, until = time.time(), _field(text, "Valid-Until")
    if until and seconds_of(until) < now:
        raise meaning_of(f"Release file for {url} is expired (invalid since {until})", _who(archive))
    if seconds_of(_field(text, "Date")) > now + FUTURE_SECONDS:
        raise meaning_of(f"Release file for {url} is not valid yet: {_field(text, 'Date')}", _who(archive))
    return text


def _index(archive: Archive, release: str, downloader: Downloader) -> str:
    """Return the index of packages that a Release file names: of the component that has all that is essential."""
    listed = {path: (digest, int(size)) for digest, size, path in HASHED.findall(release)}
    plain = f"{archive.components[0]}/binary-{archive.arch}/Packages"
    name = next((plain + ending for ending in READERS if plain + ending in listed), "")
    if not name:
        message = f"{_who(archive)} has no packages of {archive.suite} for {archive.arch}"
        raise UnresolvableError(message, context=plain, hint=OTHER_MIRROR)
    digest, size = listed[name]
    if size > INDEX_LIMIT:
        raise UntrustedError(f"{_who(archive)} has an index of {size} bytes", context=name, hint=OTHER_MIRROR)
    path = name
    if _field(release, "Acquire-By-Hash") == "yes":  # there in the middle of a mirror's update, too
        path = f"{name.rpartition('/')[0]}/by-hash/SHA256/{digest}"
    packed = _get(_address(archive, f"dists/{archive.suite}/{path}"), downloader, size)
    if sha256_bytes(packed) != digest:
        wrong = f"Hash Sum mismatch: {name}\nexpected SHA256 {digest}\nreceived SHA256 {sha256_bytes(packed)}"
        raise meaning_of(wrong, _who(archive))
    try:
        return READERS[name.removeprefix(plain)](packed).decode("utf-8", "replace")
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise UntrustedError(f"{_who(archive)} has an index that cannot be read: {error}", hint=OTHER_MIRROR) from error


def _xz(packed: bytes) -> bytes:
    machine = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    return _whole(machine.decompress(packed, TEXT_LIMIT), machine.eof)


def _gzip(packed: bytes) -> bytes:
    machine = zlib.decompressobj(16 + zlib.MAX_WBITS)
    return _whole(machine.decompress(packed, TEXT_LIMIT), machine.eof)


def _whole(text: bytes, eof: bool) -> bytes:
    if not eof:
        raise EOFError("it is not whole, or too large")
    return text


READERS: Mapping[str, Callable[[bytes], bytes]] = {".xz": _xz, ".gz": _gzip, "": bytes}


def _stanzas(index: str) -> Iterator[dict[str, str]]:
    for text in index.split("\n\n"):
        if fields := dict(FIELD.findall(text)):
            yield fields


def closure(stanzas: Iterable[Mapping[str, str]], archive: Archive) -> tuple[LockedPackage, ...]:
    """Return apt, all that is essential, and what they depend on.

    Of alternatives the first that the index has is taken, or one that is taken already; of those that provide a name,
    one that every system has. Versions are not compared: the packages of one release fit each other, and of several of
    one name the last that is listed counts.

    Raises:
        UnresolvableError: the index does not have something of it.
        UntrustedError: a package of it is not described as one must be.
    """
    index: dict[str, Mapping[str, str]] = {}
    for fields in stanzas:
        if fields.get("Architecture") in ("all", archive.arch):
            index[fields.get("Package", "")] = fields
    providers: dict[str, list[str]] = {}
    for name, fields in sorted(index.items(), key=lambda item: item[1].get("Priority") != "required"):
        for group in _groups(fields.get("Provides", "")):
            providers.setdefault(group[0], []).append(name)
    taken: dict[str, None] = {}
    essential = [name for name, fields in index.items() if fields.get("Essential") == "yes"]
    groups = [("a root tree", [name]) for name in ("apt", *essential)]
    for who, group in groups:  # which grows meanwhile
        candidates = [name for alternative in group for name in _called(alternative, index, providers)]
        if not candidates:
            message = f"{_who(archive)} does not have what {who} needs: {' or '.join(group)}"
            raise UnresolvableError(
                message, hint=f"it may be in the middle of an update: try again later, or {OTHER_MIRROR}"
            )
        if taken.keys().isdisjoint(candidates):
            name = candidates[0]
            taken[name] = None
            for field in ("Pre-Depends", "Depends"):
                groups += [(name, more) for more in _groups(index[name].get(field, ""))]
    return tuple(_package(index[name], archive) for name in sorted(taken))


def _called(name: str, index: Mapping[str, object], providers: Mapping[str, list[str]]) -> list[str]:
    return [*([name] if name in index else []), *providers.get(name, ())]


def _groups(text: str) -> list[list[str]]:
    """Return the names of a field of dependencies: groups of alternatives."""
    groups = [
        [found[0] for word in group.split("|") if (found := NAME.match(word.strip()))] for group in text.split(",")
    ]
    return [group for group in groups if group]


def _package(fields: Mapping[str, str], archive: Archive) -> LockedPackage:
    wrong = [name for name, pattern in EXACT.items() if not pattern.fullmatch(fields.get(name, ""))]
    if wrong or int(fields["Size"]) > PACKAGE_LIMIT:
        message = f"{_who(archive)} has an index in which a package has no fitting {', '.join(wrong) or 'Size'}"
        raise UntrustedError(message, context=fields.get("Package", "")[:100], hint=OTHER_MIRROR)
    name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
    return LockedPackage(
        name=name, version=version, arch=arch, filename=file_name(name, version, arch),
        uri=_address(archive, fields["Filename"]), sha256=fields["SHA256"], size=int(fields["Size"]),
    )  # fmt: skip


def _address(archive: Archive, path: str) -> str:
    return f"{archive.mirror.rstrip('/')}/{path}"


def _who(archive: Archive) -> str:
    return safe_url(archive.mirror)


def _get(url: str, downloader: Downloader, limit: int) -> bytes:
    try:
        return downloader.get_bytes(url, max_size=limit).body
    except UnresolvableError as error:
        error.hint = error.hint or "check the mirror's address: it must have this release, and be up to date"
        raise


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}: *(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""
