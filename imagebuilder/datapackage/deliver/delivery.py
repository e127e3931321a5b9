"""Writes the files that hand a package to a machine of one target, and a README with the commands to use them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.content import write_atomic
from imagebuilder.datapackage.deliver.encodings import FORMS, Payload
from imagebuilder.datapackage.deliver.mesos import Parts, write_mesos
from imagebuilder.datapackage.deliver.transports import Way, targets, ways
from imagebuilder.errors import ArtifactError, UsageError
from imagebuilder.strict import expand

MAX_PACKAGE = 1 << 20  # bytes: the cap of the format
README = "README.md"
SECRET = 0o600  # the package holds private keys, in whatever form
# A machine's name becomes a part of file names and commands, and of a secret in Kubernetes (RFC 1123).
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
URL = re.compile(
    r"https?://[\w.~:/?#@!$&()*+,;=%{}\[\]-]+", re.ASCII
)  # no space, no quote: it goes onto a kernel's line


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A way that can be used: its file, what the platform counts of it, the command that uses it, and what to know."""

    way: Way
    path: Path
    counted: int
    command: str
    note: str

    @property
    def left(self) -> int | None:
        """Bytes that the platform would take beyond these; None without a limit."""
        return self.way.limit - self.counted if self.way.limit else None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A way that cannot be used, and why."""

    way: Way
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """What was written."""

    target: str
    folder: Path
    written: tuple[Written, ...]
    left_out: tuple[LeftOut, ...]


def read_payload(path: Path, url: str = "") -> Payload:
    """Return a package or pointer document from a file, which is not judged further.

    Args:
        path: the file; without its suffix it is named like the machine.
        url: where the file will be for a kernel line, or an empty string.

    Raises:
        ArtifactError: it is neither, or larger than any package.
        UsageError: its name is not fit for a machine, or the address is none.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_PACKAGE + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", hint="imagebuilder data create") from error
    if len(data) > MAX_PACKAGE:
        raise ArtifactError(f"{path} is larger than a data package may be ({MAX_PACKAGE >> 20} MiB)")
    if not data.startswith((b"\x1f\x8b", b"{")):
        hint = "name a file that ends in .ibdata"
        raise ArtifactError(f"{path} is neither a data package nor a pointer document", hint=hint)
    if not NAME.fullmatch(path.stem):
        raise UsageError(f'the file is called like the machine, and "{path.stem}" cannot be a machine\'s name')
    if url and not URL.fullmatch(url):
        raise UsageError(f'"{url}" is not an address for a kernel line', hint="--pointer-url http(s)://...")
    return Payload(data=data, name=path.stem, url=url)


def deliver(payload: Payload, target: str, folder: Path, *, mesos: Parts | None = None) -> Delivery:
    """Write the files of every way to a target that can be used, and the README.

    Args:
        payload: what is delivered.
        target: where to.
        folder: the files' folder; files of the same names are replaced.
        mesos: what goes into the bundle of target ``mesos``.

    Raises:
        UsageError: an unknown target, no way that can be used, or something is missing for it.
    """
    places = {"folder": str(folder.absolute()), "name": payload.name}
    if shlex.quote(places["folder"]) != places["folder"]:
        raise UsageError(f'"{folder}" has characters that a command would have to quote', hint="--output DIR")
    for name in (*(name for name, _ in FORMS.values()), README):  # of an earlier delivery: what stays would mislead
        (folder / name).unlink(missing_ok=True)
    written, left_out = [], []
    for way in ways(target):
        why, data = _encoded(way, payload)
        if why:
            left_out.append(LeftOut(way=way, why=why))
        elif way.form == "mesos":
            if mesos is None:
                raise UsageError("a bundle needs --kubelet, --trust and --bundle-url")
            paths = write_mesos(folder, payload.name, payload.data, mesos)
            written.append(_written(way, paths[0], paths[0].stat().st_size, places))
        else:
            path = folder / FORMS[way.form][0]
            write_atomic(path, data, mode=SECRET)
            written.append(_written(way, path, way.measure(len(data)), places))
    if not written:
        raise _nothing(target, left_out)
    delivery = Delivery(target=target, folder=folder, written=tuple(written), left_out=tuple(left_out))
    write_atomic(folder / README, readme(delivery, payload.name))
    return delivery


def fits(payload: Payload) -> Mapping[str, tuple[tuple[Way, int], ...]]:
    """Return, for every target, its ways and what the platform would count of this payload."""
    return {
        target: tuple((way, way.measure(len(FORMS[way.form][1](payload)))) for way in ways(target) if way.form in FORMS)
        for target in targets()
    }


def _encoded(way: Way, payload: Payload) -> tuple[str, bytes]:
    """Return why a way cannot be used, or the bytes of its file."""
    if way.form == "mesos":
        return "", b""
    if way.form == "kernel-line" and not payload.url:
        return "the address of the file is not known: --pointer-url URL", b""
    data = FORMS[way.form][1](payload)
    counted = way.measure(len(data))
    if way.limit and counted > way.limit:
        return f"{counted:,} bytes after encoding, and {way.limit:,} are allowed", b""
    return "", data


def _nothing(target: str, left_out: list[LeftOut]) -> UsageError:
    lines = "\n".join(f"{one.way.title}: {one.why}" for one in left_out)
    return UsageError(
        f"the package does not fit any way to {target}", context=lines,
        hint="serve the file from a web server, and deliver a signed pointer document to it instead of the file",
    )  # fmt: skip


def _written(way: Way, path: Path, counted: int, places: Mapping[str, str]) -> Written:
    # Absolute: the commands are for any folder, and Vagrant and QEMU may be started in another one.
    here = {**places, "file": str(path.absolute())}
    command, note = (expand(text.strip("\n"), here) for text in (way.command, way.note))
    return Written(way=way, path=path, counted=counted, command=command, note=note)


def readme(delivery: Delivery, name: str) -> str:
    """Return the README: each way, its command, what is left of its limit, and what could not be used."""
    lines = [f"# {name} on {delivery.target}", ""]
    lines += ["The files hold the machine's private keys: keep them as you keep keys, and delete them after use.", ""]
    for written in delivery.written:
        way = written.way
        lines += [f"## {way.title[0].upper()}{way.title[1:]}", ""]
        lines += [f"    {line}".rstrip() for line in written.command.splitlines()]
        left = f", {written.left:,} below the limit" if written.left is not None else ""
        lines += ["", f"`{written.path.name}`: {written.counted:,} bytes{left}."]
        lines += [written.note] if written.note else []
        lines += [""]
    if delivery.left_out:
        lines += ["## Not possible", "", *(f"- {one.way.title}: {one.why}" for one in delivery.left_out), ""]
    return "\n".join(lines)
