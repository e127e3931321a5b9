"""``imagebuilder.lock``: exact names, versions, hashes and sizes of all that comes from outside, for one plan.

JSON of one spelling, made to be kept beside ``imagebuilder.toml`` and compared line by line. It holds no addresses
of mirrors, no paths and no times of its making, so the same answers give the same bytes. Reading trusts nothing:
the schema is closed, and everything has a cap.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from imagebuilder import __version__
from imagebuilder.content import content_id
from imagebuilder.errors import DataError
from imagebuilder.model import plain
from imagebuilder.plan import FILE_SOURCE, BuildPlan
from imagebuilder.strict import Strict, label, validate

FILE_NAME = "imagebuilder.lock"
FORMAT: Literal[1] = 1
MAX_BYTES = 4 << 20  # of a lock file: 4,000 packages take 1 MiB
MAX_ITEMS = 20_000  # packages of a layer
MAX_SIZE = 32 << 30  # bytes of one thing: the size of a node's disk
MAX_EPOCH = 1 << 40  # seconds since 1970: what an ext4 of ours can hold is far below
MIRROR: Literal["mirror"] = "mirror"  # where the distribution's packages come from; a node's sources.list follows

# As deb-control(5) and deb-version(7) allow them; file names are made of these.
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]{0,127}$")]
_Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+~:-]{0,127}$")]
_Wish = Annotated[str, Field(pattern=r"^[?a-z0-9][a-z0-9+.-]{0,127}(=[0-9A-Za-z.+~:*-]{1,128})?$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Text = Annotated[str, Field(max_length=4096, pattern=r"^[\x20-\x7e]*$")]
_Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]
_Names = Annotated[tuple[_Wish, ...], Field(strict=False, max_length=MAX_ITEMS)]


class Package(Strict):
    """An exact package of the distribution, or of a repository that the plan adds."""

    name: _Name = Field(description="Its name.")
    version: _Version = Field(description="Its version, with the epoch if it has one.")
    arch: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = Field(description="Its architecture, or all.")
    sha256: _Sha256 = Field(description="Of the file.")
    size: _Size = Field(description="Of the file, in bytes.")


class Program(Strict):
    """A program that is taken as it is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")] = Field(description="Its file name.")
    sha256: _Sha256 = Field(description="Of the file.")
    size: _Size = Field(description="In bytes; 0 where its source did not say.")


class Source(Strict):
    """Where a component comes from; of the rest, what the kind has."""

    kind: _Text = Field(description="The kind of source that answered.")
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+~:-]{0,128}$")] = Field(
        default="", description="Of the component, where its source states one."
    )
    packages: _Names = Field(default=(), description="What is asked of the packages' source.")
    module: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="", description="Digest of the wrapper Go module: what is built, and every checksum of its modules."
    )
    toolchain: _Text = Field(default="", description="Version of Go that builds it.")
    build: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="", description="Id of the build: module, toolchain, flags and architecture."
    )
    programs: Annotated[tuple[Program, ...], Field(strict=False, max_length=256)] = Field(
        default=(), description="Programs that are fetched or given as they are."
    )


class Image(Strict):
    """A container image: pulled, composed from packages, or an archive of the user's."""

    name: _Text = Field(description="The reference, or the name of the archive's file.")
    kind: Literal["registry", "compose", "file"] = Field(description="Where it comes from.")
    digest: _Sha256 = Field(description="sha256 of its manifest, of its recipe, or of the archive.")


class Compressor(Strict):
    """A compressor that the image's bytes depend on."""

    version: _Text = Field(description="As it calls itself; another one that writes the same is taken, too.")
    sample: _Sha256 = Field(description="sha256 of what it makes of a sample.")


class Wishes(Strict):
    """What was asked for: a lock is for this and nothing else."""

    os: _Text = Field(description="Operating system.")
    release: _Text = Field(description="Its release.")
    arch: _Text = Field(description="Architecture.")
    target: _Text = Field(description="Target.")
    engine: _Text = Field(description="Engine.")
    kubernetes: _Text = Field(description="A minor, or an exact version.")
    bare: bool = Field(description="Only the operating system.")
    archive: Literal["default", "mirror"] = Field(description="Whether a mirror of the distribution is named.")
    sources: Mapping[str, Annotated[tuple[_Text, ...], Field(strict=False)]] = Field(
        description="Kinds of source per component, in the order in which they are tried."
    )
    packages: Mapping[str, Annotated[tuple[_Text, ...], Field(strict=False, max_length=MAX_ITEMS)]] = Field(
        description="Packages asked for by name, per layer."
    )
    images: Annotated[tuple[_Text, ...], Field(strict=False, max_length=1024)] = Field(
        description="References, or names of files."
    )


class LockFile(Strict):
    """The whole file."""

    format: Literal[1] = Field(description="Of this file.")
    tool: _Text = Field(description="Version of imagebuilder: its steps and data are a part of what is built.")
    plan: _Sha256 = Field(description="Digest of what the tool decides from the wishes and its own data.")
    wishes: Wishes = Field(description="What was asked for.")
    epoch: int = Field(ge=0, le=MAX_EPOCH, description="Seconds since 1970: the time of all that is built.")
    sources_list: _Sha256 = Field(description="sha256 of the image's own sources.list.")
    sources: Mapping[str, Source] = Field(description="Per component.")
    packages: Mapping[str, Annotated[tuple[Package, ...], Field(strict=False, max_length=MAX_ITEMS)]] = Field(
        description="Per layer; also of the tools that write the disk, and of images."
    )
    compressors: Mapping[Annotated[str, Field(pattern=r"^[a-z0-9]{1,32}$")], Compressor] = Field(
        default={}, description="By name."
    )
    pause: Image | None = Field(default=None, description="The pause image.")
    images: Annotated[tuple[Image, ...], Field(strict=False, max_length=1024)] = Field(
        default=(), description="Images to preload, in the order of the wishes."
    )


def read_lock(path: Path) -> LockFile:
    """Return a lock file.

    Raises:
        DataError: it cannot be read, or does not follow its schema; all that is wrong is said at once.
    """
    name = label(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}", hint="imagebuilder lock writes one") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{name}: larger than {MAX_BYTES >> 20} MiB, so it is no lock file", hint="check the name")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: is not JSON: {str(error)[:200]}", hint="imagebuilder lock writes one") from error
    if not isinstance(raw, dict) or "format" not in raw:
        raise DataError(f"{name}: is no lock file", hint="imagebuilder lock writes one")
    if raw["format"] != FORMAT:
        raise DataError(
            f"{name}: is of format {raw['format']!r:.20}; this version knows {FORMAT}",
            hint="write it again with this version: imagebuilder lock",
        )
    return validate(raw, LockFile, name)


def text_of(lock: LockFile) -> str:
    """Return the one spelling of a lock file: a package is a line of its own, for those who compare."""
    data = plain(lock)
    packages = data.pop("packages")
    head = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=True).removesuffix("\n}")
    layers = ",\n".join(f'  "{layer}": {_lines(packages[layer])}' for layer in sorted(packages))
    return f'{head},\n "packages": {{\n{layers}\n }}\n}}\n'


def _lines(packages: list[dict[str, Any]]) -> str:
    lines = ",\n".join(f"   {json.dumps(package, sort_keys=True, ensure_ascii=True)}" for package in packages)
    return f"[\n{lines}\n  ]" if lines else "[]"


def wishes_of(plan: BuildPlan) -> Wishes:
    """Return what a plan was asked for, without the paths and addresses of this machine."""
    request, cell = plan.request, plan.cell
    images = [Path(text).name if Path(text).suffix in (".toml", ".tar") else text for text in request.images]
    return Wishes(
        os=cell.os, release=cell.release, arch=cell.arch, target=cell.target, engine=plan.engine,
        kubernetes=plan.kubernetes, bare=request.bare, archive=MIRROR if cell.os in request.mirrors else "default",
        sources=_kinds(plan), packages={layer.name: layer.packages for layer in plan.layers}, images=tuple(images),
    )  # fmt: skip


def plan_digest(plan: BuildPlan) -> str:
    """Return the digest of a plan's decisions, without the paths of this machine."""
    data = plan.as_data()
    del data["engine"]["reason"]
    return content_id({**data, "sources": _kinds(plan)})


def differences(lock: LockFile, plan: BuildPlan) -> list[str]:
    """Return a line for each wish in which a plan differs from what a lock is for; the tool itself counts as one."""
    locked, asked = plain(lock.wishes), plain(wishes_of(plan))
    lines = [line for name in asked for line in _differing(name, locked[name], asked[name])]
    if lock.tool != __version__:
        lines.append(f"imagebuilder: locked with {lock.tool}, this is {__version__}")
    if not lines and lock.plan != plan_digest(plan):
        lines.append("imagebuilder: its profiles, targets or steps are not those that it was locked with")
    return lines


def _differing(name: str, locked: Any, asked: Any) -> Iterator[str]:
    if isinstance(asked, dict):
        for key in sorted({*locked, *asked}):
            yield from _differing(f"{name}.{key}", locked.get(key, []), asked.get(key, []))
    elif locked != asked:
        yield f"{name}: locked {_shown(locked)}, asked for {_shown(asked)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value)[:200] or "none"
    return str(value)[:200] or "none"


def _kinds(plan: BuildPlan) -> dict[str, tuple[str, ...]]:
    return {name: tuple(map(kind_of, kinds)) for name, kinds in plan.sources.items()}


def kind_of(source: str) -> str:
    """Return a kind of source without the folder that it may name."""
    return FILE_SOURCE if source.startswith(f"{FILE_SOURCE}:") else source
