"""dpkg's database for packages that were unpacked without it: what it would have written, up to their configuration.

Formats: deb-control(5), deb-conffiles(5), deb-triggers(5); dpkg's lib/dpkg/dump.c and src/main/unpack.c for the files
of ``/var/lib/dpkg``: ``status``, ``info/``, ``triggers/``. dpkg reads these, and writes them anew when it configures.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from imagebuilder.errors import ArtifactError
from imagebuilder.sources.debtar import Kind, Member, members

NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")  # Debian's policy, section 5.6.1
ARCH = re.compile(r"[a-z0-9][a-z0-9-]{1,31}")
CONTROL_FILE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")  # names in control.tar, of which info/ has a file each
SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "config")
DIRECTIVES = {"interest": "", "interest-await": "", "interest-noawait": "/noawait"}
NEW_CONFFILE = "newconffile"  # what dpkg notes for one that it did not unpack
PRE_DEPENDS, DEPENDS = ("Pre-Depends",), ("Pre-Depends", "Depends")
FIRST = ("base-passwd", "base-files")  # the others' scripts ask for users, and for /etc and /var


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """What a package's control archive says.

    Attributes:
        text: its control file, as it is.
        fields: the same, without what is folded into several lines.
        files: the other files of the archive, by name.
    """

    text: str
    fields: Mapping[str, str]
    files: Mapping[str, bytes]

    @property
    def name(self) -> str:
        """Return its name."""
        return self.fields["Package"]

    @property
    def key(self) -> str:
        """Return the name of its files in ``info/``: with the architecture, where several may be there at once."""
        same = self.fields.get("Multi-Arch") == "same"
        return f"{self.name}:{self.fields['Architecture']}" if same else self.name

    @property
    def conffiles(self) -> dict[str, str]:
        """Return its configuration files: the absolute path of each, and its flag, if any (deb-conffiles(5))."""
        lines = self.files.get("conffiles", b"").decode("utf-8", "surrogateescape").splitlines()
        found = (line.strip().rpartition(" ") for line in lines)
        return {path: flag for flag, _, path in found if path.startswith("/")}

    def names(self, *fields: str) -> list[list[str]]:
        """Return what relationship fields name: a list of alternatives each (deb-control(5)); versions are left out."""
        groups = ",".join(self.fields.get(name, "") for name in fields).split(",")
        found = ([re.split(r"[\s(:\[<]", word.strip(), maxsplit=1)[0] for word in group.split("|")] for group in groups)
        return [group for group in found if any(group)]


def parse_package(control: bytes) -> Package:
    """Return what a decompressed control archive says.

    Raises:
        ArtifactError: it is not what deb(5) says.
    """
    files: dict[str, bytes] = {}
    for member in members(control):
        name = member.path.decode("latin-1")
        if member.kind is Kind.FOLDER and not name:
            continue
        if member.kind is not Kind.FILE or not CONTROL_FILE.fullmatch(name):
            raise ArtifactError(f"the package's control archive has {name[:80]!r}, which is no control file")
        files[name] = control[member.offset : member.offset + member.size]
    text = files.pop("control", b"").decode("utf-8", "surrogateescape").strip("\n") + "\n"
    fields = {}
    for line in text.split("\n"):
        key, colon, value = line.partition(":")
        if colon and not key.startswith((" ", "\t")):
            fields[key] = value.strip()
    checks = (("Package", NAME), ("Architecture", ARCH), ("Version", re.compile(r"[A-Za-z0-9.+:~-]{1,200}")))
    for key, pattern in checks:
        if not pattern.fullmatch(fields.get(key, "")):
            raise ArtifactError(f"a package's control file has no good {key}: {fields.get(key, '')[:80]!r}")
    if "\n\n" in text or "Status" in fields:
        raise ArtifactError(f"the control file of {fields['Package']} is more than one paragraph, or has a Status")
    return Package(text=text, fields=fields, files=files)


def status(packages: Iterable[Package], conffiles: Mapping[str, str]) -> str:
    """Return the status file of packages that are unpacked and not configured, sorted by name.

    Args:
        packages: all of the tree.
        conffiles: MD5 of each configuration file, by absolute path.
    """
    return "\n".join(_stanza(package, conffiles) for package in sorted(packages, key=lambda item: item.key))


def _stanza(package: Package, conffiles: Mapping[str, str]) -> str:
    lines = "".join(
        f" {path} {conffiles.get(path, NEW_CONFFILE)}{f' {flag}' if flag else ''}\n"
        for path, flag in package.conffiles.items()
    )
    return f"{package.text}Status: install ok unpacked\n" + (f"Conffiles:\n{lines}" if lines else "")


def file_list(listed: Iterable[Member], lost: Iterable[bytes] = ()) -> bytes:
    """Return ``info/*.list``: every path that a package lists, but those that another one took over."""
    gone = set(lost)
    return b"".join(b"/" + (member.path or b".") + b"\n" for member in listed if member.path not in gone)


def sums(listed: Iterable[Member], data: Mapping[bytes, str], conffiles: Iterable[str]) -> bytes:
    """Return ``info/*.md5sums`` as dpkg makes it where a package has none: no links, no configuration files."""
    left_out = {path.lstrip("/").encode("utf-8", "surrogateescape") for path in conffiles}
    return b"".join(
        f"{data[member.path]}  ".encode() + member.path + b"\n"
        for member in listed
        if member.path in data and member.path not in left_out
    )


def md5(data: bytes) -> str:
    """Return the MD5 that dpkg keeps of a file: no protection, but a note of what was there."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def triggers(packages: Iterable[Package]) -> dict[str, str]:
    """Return the files of ``triggers/``: who is interested in what (deb-triggers(5)).

    Raises:
        ArtifactError: a trigger's name is none.
    """
    files: dict[str, io.StringIO] = {}
    for package in packages:
        for line in package.files.get("triggers", b"").decode("utf-8", "surrogateescape").splitlines():
            words = line.partition("#")[0].split()
            if len(words) != 2 or words[0] not in DIRECTIVES:
                continue
            who = package.key + DIRECTIVES[words[0]]
            if words[1].startswith("/"):
                files.setdefault("File", io.StringIO()).write(f"{words[1]} {who}\n")
            elif CONTROL_FILE.fullmatch(words[1]):
                files.setdefault(words[1], io.StringIO()).write(f"{who}\n")
            else:
                raise ArtifactError(f"{package.name} is interested in {words[1][:80]!r}, which is no trigger")
    return {name: text.getvalue() for name, text in sorted(files.items())}


def essential(packages: Sequence[Package]) -> set[str]:
    """Return the keys of the essential packages, and of all that those depend on: what debootstrap unpacks first."""
    found = _Found(packages)
    return found.below([package for package in packages if package.fields.get("Essential") == "yes"], DEPENDS)


def in_order(packages: Sequence[Package]) -> list[Package]:
    """Return packages so that each comes after what it pre-depends and depends on.

    First come the essential ones and what they depend on, then what is pre-depended on, then the rest, by name: about
    what apt does, and the same every time, so that users made by scripts get the same numbers. Where dependencies go
    round, pre-dependencies count.
    """
    found, first = _Found(packages), essential(packages)
    early = found.below([package for package in packages if package.fields.get("Pre-Depends")], PRE_DEPENDS)
    ranked = sorted(packages, key=lambda item: (item.key not in first, item.key not in early, item.key))
    # One that must come after something that waits for it is left for later: it is in the list once more.
    before = {package.key: found.below([package], PRE_DEPENDS) - {package.key} for package in packages}
    done: dict[str, Package] = {}
    opened: set[str] = set()
    todo = [(package, False) for package in (*found.named(*FIRST), *ranked)][::-1]
    while todo:
        package, below_done = todo.pop()
        if below_done:
            done[package.key] = package
        elif package.key not in opened and not (before[package.key] & (opened - done.keys())):
            opened.add(package.key)
            todo.append((package, True))
            # The last that is put here is taken first: what is pre-depended on.
            todo.extend((item, False) for item in reversed(found.needed(package, DEPENDS)))
    return list(done.values())


class _Found:
    """Finds what packages depend on, among these packages."""

    def __init__(self, packages: Sequence[Package]) -> None:
        self._providers: dict[str, list[Package]] = {}
        for package in sorted(packages, key=lambda item: item.key):
            for name in (package.name, *(group[0] for group in package.names("Provides"))):
                self._providers.setdefault(name, []).append(package)

    def named(self, *names: str) -> list[Package]:
        """Return the packages of these names that are there."""
        return [item for name in names for item in self._providers.get(name, ()) if item.name == name]

    def needed(self, package: Package, fields: Sequence[str]) -> list[Package]:
        """Return what a package depends on: of each group of alternatives the first that is there."""
        groups = package.names(*fields)
        choices = (next((self._providers[name] for name in group if name in self._providers), []) for group in groups)
        return [choice[0] for choice in choices if choice]

    def below(self, packages: Sequence[Package], fields: Sequence[str]) -> set[str]:
        """Return the keys of packages, and of all that they depend on."""
        todo, keys = list(packages), set[str]()
        while todo:
            package = todo.pop()
            if package.key not in keys:
                keys.add(package.key)
                todo.extend(self.needed(package, fields))
        return keys
