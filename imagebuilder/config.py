"""The user's own file, ``imagebuilder.toml``: the same wishes as on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from imagebuilder.strict import Strict, Strings, label, read_toml, validate

FILE_NAME = "imagebuilder.toml"
_SIZE = re.compile(r"^\s*(\d{1,15}(?:\.\d{1,6})?)\s*((?:[KMGTkmgt]i?)?B?)\s*$", re.ASCII)

Paths = Annotated[tuple[Annotated[Path, Field(strict=False)], ...], Field(strict=False)]


class Mirror(Strict):
    """Another address for a repository or a registry."""

    url: str = Field(description="Address to use instead.", min_length=1)
    key: str = Field(
        default="",
        description="Fingerprint, 40 hexadecimal digits, of the key that signs it, if it is not the original's.",
        pattern=r"^([0-9A-Fa-f]{40})?$",
    )


def _table(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


def size_in_bytes(value: Any) -> Any:
    """Return a size as bytes: ``450 MB`` is of powers of 1000, ``1.2 GiB`` of powers of 1024; a number stays.

    Raises:
        ValueError: a text that is no size.
    """
    if not isinstance(value, str):
        return value
    found = _SIZE.match(value)
    if not found:
        raise ValueError('a size is like "450 MB", "1.2 GiB", or a number of bytes')
    power = "BKMGT".index((found[2] or "B")[0].upper())
    return round(float(found[1]) * (1024 if "i" in found[2] else 1000) ** power)


_Size = Annotated[int, BeforeValidator(size_in_bytes, json_schema_input_type=int | str), Field(ge=0)]
_Count = Annotated[int, Field(ge=0)]


class Budgets(Strict):
    """What an image may cost. What is not stated has no limit."""

    image_size: _Size | None = Field(
        default=None, description='Of the artifact file: bytes, or a text such as "450 MB" or "0.4 GiB".'
    )
    installed_size: _Size | None = Field(default=None, description="Of all files in the root file system; likewise.")
    boot_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Seconds until kubelet is healthy, divided by the seconds of the same run's reference.",
    )
    boot_steps: _Count | None = Field(default=None, description="Steps that are left for boot.")
    enabled_units: _Count | None = Field(default=None, description="Systemd units that are enabled.")
    packages: _Count | None = Field(default=None, description="Installed packages.")
    open_ports: _Count | None = Field(default=None, description="Sockets that listen on more than loopback.")


ANYONE = "anyone-who-can-write-there"  # in the place of keys


class Cache(Strict):
    """With whom layers are shared."""

    lower: Paths = Field(
        default=(), description="Other cache folders, which may be read-only: their layers are used where they are."
    )
    remote: str = Field(
        default="",
        description="Where builders share layers: s3://BUCKET/PREFIX, or oci://HOST:PORT/REPOSITORY.",
        pattern=r"^((s3|oci)://[!-~]+)?$",
    )
    push: bool = Field(default=False, description="Give the remote cache the layers that it does not have.")
    trust: Paths | Literal["anyone-who-can-write-there"] = Field(
        default=(), description="Public keys that may sign its layers; without one, the word says who is trusted."
    )
    sign: Annotated[Path, Field(strict=False)] | None = Field(
        default=None, description="Private key that signs what is pushed; what it has signed is trusted too."
    )
    seconds: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = Field(
        default=120.0,
        description="What a bake may wait for the remote cache to give layers, and once more to take some.",
    )


AnyMirror = Annotated[Mirror, BeforeValidator(_table, json_schema_input_type=str | Mirror)]


class Config(Strict):
    """What ``imagebuilder.toml`` may hold. Relative paths are relative to the file."""

    os: str = Field(default="", description="Operating system, for instance debian.")
    release: str = Field(default="", description="Its release, for instance 13.")
    arch: str = Field(default="", description="Architecture: amd64 or arm64.")
    target: str = Field(default="", description="Target, for instance qemu.")
    kubernetes: str = Field(default="", description="Kubernetes, a minor (1.35) or exact (1.35.8).")
    package: Strings = Field(default=(), description="More packages of the distribution.")
    overlay: Paths = Field(default=(), description="Folders copied over the root tree, in this order.")
    script: Paths = Field(default=(), description="Scripts run in the root tree after that, in this order.")
    trust: Paths = Field(default=(), description="Public keys of those who may sign data packages.")
    image: Strings = Field(
        default=(),
        description="Container images to preload: references, or paths of archives or image files.",
    )
    source: Mapping[str, str] = Field(default={}, description="Kind of source, per component.")
    mirror: Mapping[str, AnyMirror] = Field(default={}, description="Other addresses, by name.")
    budgets: Budgets = Field(
        default_factory=Budgets, description="What the image may cost; more fails its verification."
    )
    cache: Cache = Field(default_factory=Cache, description="With whom layers are shared.")
    waivers: Mapping[str, Annotated[str, Field(pattern=r"\S")]] = Field(
        default={}, description="Why the failure of a check is accepted, by the check's id."
    )


def load_config(path: Path) -> Config:
    """Return the user's file, with absolute paths.

    Raises:
        DataError: it cannot be read, or does not follow the schema.
    """
    config = validate(read_toml(path), Config, label(path))
    folder = path.absolute().parent
    changes = {
        "overlay": tuple(folder / item for item in config.overlay),
        "script": tuple(folder / item for item in config.script),
        "trust": tuple(folder / item for item in config.trust),
        "image": tuple(str(folder / item) if image_is_path(item) else item for item in config.image),
        "source": {name: absolute_source(source, folder) for name, source in config.source.items()},
        "cache": _absolute(config.cache, folder),
    }
    return config.model_copy(update=changes)


def _absolute(cache: Cache, folder: Path) -> Cache:
    trust = cache.trust if isinstance(cache.trust, str) else tuple(folder / item for item in cache.trust)
    lower, sign = tuple(folder / item for item in cache.lower), cache.sign and folder / cache.sign
    return cache.model_copy(update={"lower": lower, "trust": trust, "sign": sign})


def image_is_path(image: str) -> bool:
    """Tell a path from a registry reference, without looking at the disk."""
    return image.startswith(("/", "./", "../")) or image.endswith((".tar", ".toml"))


def absolute_source(source: str, folder: Path) -> str:
    """Return a kind of source; the folder of ``file:DIR`` is relative to ``folder``."""
    kind, colon, where = source.partition(":")
    return f"{kind}:{folder / where}" if kind == "file" and where else f"{kind}{colon}{where}"
