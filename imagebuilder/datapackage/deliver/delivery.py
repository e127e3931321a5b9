"""Writes the files that hand a package to a machine of one target, and a README with the commands to use them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.content import write_atomic
from imagebuilder.datapackage.deliver.encodings import FORMS, Payload
from imagebuilder.datapackage.deliver.fits import NO_LINE, Fit
from imagebuilder.datapackage.deliver.mesos import Parts, write_mesos
from imagebuilder.datapackage.deliver.transports import Way, ways
from imagebuilder.datapackage.format import MAX_PACKED, naming, unpack
from imagebuilder.datapackage.signing import POINTER_SUFFIX, parse_pointer
from imagebuilder.errors import ArtifactError, PackageError, UsageError
from imagebuilder.strict import expand

README = "README.md"
WARNING = "The files hold the machine's private keys: keep them as you keep keys, and delete them after use."
SECRET = 0o600  # the package holds private keys, in whatever form
# A machine's name becomes a part of file names and commands, and of a secret in Kubernetes (RFC 1123).
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
URL = re.compile(
    r"https?://[\w.~:/?#@!$&()*+,;=%{}\[\]-]+", re.ASCII
)  # no space, no quote: it goes onto a kernel's line


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A way that can be used: its file, the command that uses it, and what to know."""

    fit: Fit
    path: Path
    command: str
    note: str


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
    """Return a package or pointer document from a file. Whether it is signed well is not looked at: see verify.

    Args:
        path: the file. A pointer document is named like its machine; a package says itself whose it is.
        url: where the file will be for a kernel line, or an empty string; ``{node}`` stands for the machine's name.

    Raises:
        ArtifactError: it cannot be read.
        PackageError: it is neither.
        UsageError: its name is not fit for a machine, or the address is none.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_PACKED + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", hint="imagebuilder data create") from error
    if data.startswith(b"{"):
        with naming(path):
            parse_pointer(data)
        name = path.name.removesuffix(POINTER_SUFFIX)
        if not NAME.fullmatch(name):
            hint = f"call it NODE{POINTER_SUFFIX}"
            raise UsageError(f'a pointer is called like its machine, and "{name}" cannot be one\'s name', hint=hint)
    else:
        with naming(path):
            name = unpack(data).manifest.node
    url = url.replace("{node}", name)
    if url and not URL.fullmatch(url):
        raise UsageError(f'"{url}" is not an address for a kernel line', hint="--pointer-url http(s)://...")
    return Payload(data=data, name=name, url=url)


def deliver(payload: Payload, target: str, folder: Path, *, mesos: Parts | None = None) -> Delivery:
    """Write the files of every way to a target that can be used, and the README.

    Args:
        payload: what is delivered.
        target: where to.
        folder: the files' folder; files of the same names are replaced.
        mesos: what goes into the bundle of target ``mesos``.

    Raises:
        PackageError: E_SIZE, no way to the target has room.
        UsageError: an unknown target, or something is missing for it.
    """
    places = {"folder": str(folder.absolute()), "name": payload.name}
    if shlex.quote(places["folder"]) != places["folder"]:
        raise UsageError(f'"{folder}" has characters that a command would have to quote', hint="--output DIR")
    _require_own(folder)
    for name in (*(name for name, _ in FORMS.values()), README):  # of an earlier delivery: what stays would mislead
        (folder / name).unlink(missing_ok=True)
    written, left_out = [], []
    for way in ways(target):
        if way.form == "kernel-line" and not payload.url:
            left_out.append(LeftOut(way=way, why=NO_LINE))
        elif way.form == "mesos":
            if mesos is None:
                raise UsageError("a bundle needs --kubelet, --trust and --bundle-url")
            path = write_mesos(folder, payload.name, payload.data, mesos)[0]
            written.append(_written(Fit(way=way, size=path.stat().st_size), path, places))
        else:
            name, encode = FORMS[way.form]
            data = encode(payload)
            fit = Fit(way=way, size=way.measure(len(data)))
            if fit.fits:
                write_atomic(folder / name, data, mode=SECRET)
                written.append(_written(fit, folder / name, places))
            else:
                left_out.append(LeftOut(way=way, why=fit.why))
    if not written:
        raise _nothing(target, payload.name, left_out)
    delivery = Delivery(target=target, folder=folder, written=tuple(written), left_out=tuple(left_out))
    write_atomic(folder / README, readme(delivery, payload.name))
    return delivery


def _require_own(folder: Path) -> None:
    """Refuse a folder whose README somebody else wrote: it would be replaced, and what else is there with it."""
    readme_file = folder / README
    if readme_file.is_file() and WARNING not in readme_file.read_text(errors="replace"):
        hint = "--output DIR, a folder for this delivery alone"
        raise UsageError(f"{readme_file} is not of a delivery, and would be replaced", hint=hint)


def _nothing(target: str, name: str, left_out: list[LeftOut]) -> PackageError:
    lines = "\n".join(f"{one.way.title}: {one.why}" for one in left_out)
    hint = f"imagebuilder data create --pointer-url https://.../{{node}}.ibdata, then deliver {name}{POINTER_SUFFIX}"
    return PackageError("E_SIZE", f"the package does not fit any way to {target}", context=lines, hint=hint)


def _written(fit: Fit, path: Path, places: Mapping[str, str]) -> Written:
    # Absolute: the commands are for any folder, and Vagrant and QEMU may be started in another one.
    here = {**places, "file": str(path.absolute())}
    command, note = (expand(text.strip("\n"), here) for text in (fit.way.command, fit.way.note))
    return Written(fit=fit, path=path, command=command, note=note)


def readme(delivery: Delivery, name: str) -> str:
    """Return the README: each way, its command, what is left of its limit, and what could not be used."""
    lines = [f"# {name} on {delivery.target}", ""]
    lines += [WARNING, ""]
    for written in delivery.written:
        title, left = written.fit.way.title, written.fit.left
        lines += [f"## {title[0].upper()}{title[1:]}", ""]
        lines += [f"    {line}".rstrip() for line in written.command.splitlines()]
        room = f", {left:,} below the limit" if left is not None else ""
        lines += ["", f"`{written.path.name}`: {written.fit.size:,} bytes{room}."]
        lines += [written.note] if written.note else []
        lines += [""]
    if delivery.left_out:
        lines += ["## Not possible", "", *(f"- {one.way.title}: {one.why}" for one in delivery.left_out), ""]
    return "\n".join(lines)
