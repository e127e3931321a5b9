"""User namespaces: how an ordinary user gets what baking needs of root, and what a host must allow for that.

The whole process moves into a user namespace of its own, once, before the work begins: user 0 in there is the user
who called, users 1 to 65535 are the subordinate ids that the host gave to him (user_namespaces(7), subuid(5)). From
then on all other code is root's, and sees the owners that the image will have. A namespace around each program
instead would need every owner translated that this process reads or writes, and could not remove what others own.

Two things root cannot do in there: make device nodes (no layer has any; the kernel fills /dev), and set attributes
``trusted.*``: overlayfs then marks with ``user.overlay.*`` (its option ``userxattr``).
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder import process
from imagebuilder.errors import ImagebuilderError, PrivilegeError, ToolMissingError

CLONE_NEWUSER = 0x10000000  # linux/sched.h
IDS = 65536  # users in the namespace: distributions number theirs below that, nobody (65534) among them
FIRST = 100_000  # login.defs(5), SUB_UID_MIN: where subordinate ids begin
IDENTITY = [0, 0, 0xFFFFFFFF]  # /proc/self/uid_map of a process that is in no user namespace but the first
FILES = {"newuidmap": "subuid", "newgidmap": "subgid"}  # the program that maps, and the file that it goes by
# Below /proc/sys: the value that forbids it, and the one that does not. The second is Debian's own up to 10, the third
# Ubuntu's from 23.10 on: what AppArmor does not know as a program that may, gets a namespace without rights.
SETTINGS = (
    ("user/max_user_namespaces", "0", "15000"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
)
APPARMOR = SETTINGS[2][0]
OR_ROOT = "or run it as root"


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """Where this process learns who it is and what it may; tests give other places."""

    proc: Path = Path("/proc")
    etc: Path = Path("/etc")
    find: Callable[[str], Path | None] = process.find
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)

    @property
    def user(self) -> str:
        """Return the user's name, or his number where he has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


def privileged() -> bool:
    """Tell whether this process is root: the host's, or that of a user namespace."""
    return os.geteuid() == 0


def mapped(proc: Path = Path("/proc")) -> bool:
    """Tell whether this process is in a user namespace: owners there are others outside."""
    return [int(word) for word in (proc / "self/uid_map").read_text("ascii").split()] != IDENTITY


def require_privileges(what: str) -> None:
    """Refuse to do ``what``, such as "baking", as an ordinary user.

    Raises:
        PrivilegeError: this process is not root, and did not :func:`enter` a namespace.
    """
    if not privileged():
        raise PrivilegeError(f"{what} needs root, or a user namespace with subordinate ids", hint="imagebuilder doctor")


def enter() -> None:
    """Become root: by a user namespace, for the rest of this process's life, unless it is root already.

    Only a process with a single thread can.

    Raises:
        PrivilegeError: the host does not allow it; the hint says what would.
        ToolMissingError: a program for it is not installed.
    """
    if privileged():
        return
    host = Host()
    if problem := obstacle(host):
        raise problem
    # The maps are written from outside, by programs that may. They must not begin before there is a namespace.
    words, pid = mapping(host), str(os.getpid())
    maps = " && ".join(shlex.join([program, pid, *words[program]]) for program in FILES)
    reading, writing = os.pipe()
    try:
        child = process.spawn(["/bin/sh", "-c", f"read -r go && {maps}"], stdin=reading)
        error = _unshare()
        if not error:
            os.write(writing, b"\n")
    finally:
        os.close(reading)
        os.close(writing)
    said = child.communicate()[0].decode("utf-8", "replace").strip()
    if error or child.returncode or not privileged():
        why = os.strerror(error) if error else "its users could not be mapped"
        hint = f"a container or a security module may forbid it; allow it there, {OR_ROOT}"
        raise PrivilegeError(f"no user namespace can be made: {why}", context=said, hint=hint)


def enter_where_possible() -> None:
    """Become root as :func:`enter` does, or go on as this user: for what works without in many cases."""
    with suppress(PrivilegeError, ToolMissingError):
        enter()


def obstacle(host: Host) -> ImagebuilderError | None:
    """Return the error of what keeps an ordinary user from a namespace with subordinate ids, or None."""
    return next(_obstacles(host), None)


def mapping(host: Host) -> dict[str, list[str]]:
    """Return the arguments of each program that maps, after the process: triples of inside, outside, count.

    Subordinate ids that are not there are left out: see :func:`obstacle`.
    """
    found = {}
    for (program, file), own in zip(FILES.items(), (host.uid, host.gid), strict=True):
        triples, inside = [0, own, 1], 1
        for start, count in _subordinate(host, file):
            taken = min(count, IDS - inside)
            triples += [inside, start, taken] if taken > 0 else []
            inside += max(taken, 0)
        found[program] = [str(number) for number in triples]
    return found


def grant(host: Host) -> str:
    """Return the options of usermod(8) that give a user subordinate ids which nobody has."""
    options = []
    for file in FILES.values():
        start = max([FIRST, *(start + count for _, start, count in _entries(host, file))])
        options.append(f"--add-{file}s {start}-{start + IDS - 1}")
    return " ".join(options)


def _unshare() -> int:
    """Leave this process's user namespace for a new one; return the number of the error, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare() is of Python 3.12
    return ctypes.get_errno() if libc.unshare(CLONE_NEWUSER) else 0


def _obstacles(host: Host) -> Iterator[ImagebuilderError]:
    without = "an ordinary user cannot bake here"
    if not (host.proc / "self/ns/user").exists():
        yield PrivilegeError(f"{without}: the kernel has no user namespaces", hint="sudo imagebuilder ...")
    for program in FILES:
        if host.find(program) is None:
            yield ToolMissingError(f"{program} is not installed: {without}", hint=f"apt-get install uidmap, {OR_ROOT}")
    for name, forbids, allows in SETTINGS:
        if _read(host.proc / "sys" / name) == forbids and not (name == APPARMOR and _has_profile(host)):
            setting = name.replace("/", ".")
            hint = f"sudo sysctl {setting}={allows} (a line in /etc/sysctl.d/ keeps it), {OR_ROOT}"
            yield PrivilegeError(f"{without}: {setting} is {forbids}", hint=hint)
    for file in FILES.values():
        ranges = _subordinate(host, file)
        if (count := sum(count for _, count in ranges)) < IDS - 1:
            has = f"has {count} of the {IDS - 1} ids that are needed" if count else "has no subordinate ids"
            hint = f"sudo usermod {grant(host)} {shlex.quote(host.user)}, {OR_ROOT}"
            yield PrivilegeError(f"{without}: {host.user} {has} in {host.etc / file}", hint=hint)


def _has_profile(host: Host) -> bool:
    """Tell whether AppArmor has a profile for this very program: that then decides what it may."""
    return _read(host.proc / "self/attr/current") not in ("", "unconfined")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _subordinate(host: Host, file: str) -> Sequence[tuple[int, int]]:
    """Return (first, count) of the ranges that subuid(5) or subgid(5) gives to the user, by name or number."""
    names = (host.user, str(host.uid))
    return [(start, count) for name, start, count in _entries(host, file) if name in names]


def _entries(host: Host, file: str) -> Iterator[tuple[str, int, int]]:
    """Yield the lines of a file of subuid(5); one that is not of its form gives nobody anything."""
    for line in _read(host.etc / file).splitlines():
        name, _, numbers = line.partition(":")
        start, _, count = numbers.partition(":")
        if start.isascii() and start.isdigit() and count.isascii() and count.isdigit():
            yield name, int(start), int(count)
