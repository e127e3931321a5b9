"""The user's own file, ``imagebuilder.toml``: the same wishes as on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from imagebuilder.strict import Strict, Strings, label, read_toml, validate

FILE_NAME = "imagebuilder.toml"

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
    }
    return config.model_copy(update=changes)


def image_is_path(image: str) -> bool:
    """Tell a path from a registry reference, without looking at the disk."""
    return image.startswith(("/", "./", "../")) or image.endswith((".tar", ".toml"))


def absolute_source(source: str, folder: Path) -> str:
    """Return a kind of source; the folder of ``file:DIR`` is relative to ``folder``."""
    kind, colon, where = source.partition(":")
    return f"{kind}:{folder / where}" if kind == "file" and where else f"{kind}{colon}{where}"
