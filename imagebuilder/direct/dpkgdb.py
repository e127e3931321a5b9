"""dpkg's database for packages that were unpacked without it: what it would have written, up to their configuration.

Formats: deb-control(5), deb-triggers(5); dpkg's doc/ "internals", lib/dpkg/dump.c and src/main/unpack.c for the files of
``/var/lib/dpkg``: ``status``, ``info/``, ``triggers/``. dpkg reads these, and writes them anew when it configures.
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
    def essential(self) -> bool:
        """Return whether every system has it."""
        return self.fields.get("Essential") == "yes"

    @property
    def conffiles(self) -> tuple[str, ...]:
        """Return the absolute paths of its configuration files."""
        lines = self.files.get("conffiles", b"").decode("utf-8", "surrogateescape").splitlines()
        return tuple(line.strip() for line in lines if line.startswith("/"))

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
    lines = "".join(f" {path} {conffiles.get(path, NEW_CONFFILE)}\n" for path in package.conffiles)
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


def in_order(packages: Sequence[Package]) -> list[Package]:
    """Return packages so that each comes after what it pre-depends and depends on.

    Where dependencies go round, what is pre-depended on counts; of the rest the essential ones come first, then names
    decide: the order is the same every time, so that users made by scripts get the same numbers.
    """
    ranked = sorted(packages, key=lambda item: (not item.essential, item.key))
    providers: dict[str, list[Package]] = {}
    for package in ranked:
        for name in (package.name, *(group[0] for group in package.names("Provides"))):
            providers.setdefault(name, []).append(package)
    start = [package for name in FIRST for package in providers.get(name, ()) if package.name == name]
    done: dict[str, Package] = {}
    open_: set[str] = set()
    todo = [(package, False) for package in (*start, *ranked)][::-1]
    while todo:
        package, entered = todo.pop()
        if package.key in done or (package.key in open_ and not entered):
            continue
        if entered:
            done[package.key] = package
            continue
        open_.add(package.key)
        todo.append((package, True))
        # The last that is put here is taken first: what is pre-depended on.
        for fields in ("Depends", "Pre-Depends"):
            for group in reversed(package.names(fields)):
                found = next((providers[name] for name in group if name in providers), [])
                todo.extend((item, False) for item in found[:1])
    return list(done.values())
