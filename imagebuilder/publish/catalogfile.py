"""The files of a catalog of boxes: what stands in them, and how they are read and written.

Format: developer.hashicorp.com/vagrant/docs/boxes/format, "Box Metadata". Vagrant ignores keys that it does not know;
ours (``size``, ``info``) are for people. Files that others made are taken too, with their own keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from imagebuilder.content import write_atomic
from imagebuilder.errors import CatalogError, UsageError
from imagebuilder.publish.boxnames import ARCHITECTURES, check_name, check_url, check_version, version_key

STATE = "catalog.json"  # of ours; boxes lie a folder deeper
MAX_FILE = 20 << 20  # bytes: Vagrant's METADATA_SIZE_LIMIT
DEFAULT_ARCH = ARCHITECTURES[-1]
_Model = TypeVar("_Model", bound=BaseModel)


def _checked_version(version: str) -> str:
    try:
        return check_version(version)
    except UsageError as error:
        raise ValueError(error.message) from error


def _checked_name(name: str) -> str:
    try:
        return check_name(name)
    except UsageError as error:
        raise ValueError(error.message) from error


def _checked_url(url: str) -> str:
    try:
        return check_url(url)
    except UsageError as error:
        raise ValueError(error.message) from error


class _Json(BaseModel):
    """Foreign JSON: types are strict, unknown keys are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class ProviderEntry(_Json):
    """One box file: a version for one provider and one architecture."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    url: str
    checksum_type: Literal["sha256"]
    checksum: str = Field(pattern=r"^[0-9a-f]{64}$")
    architecture: str = Field(pattern=r"^[a-z0-9_]+$")
    default_architecture: bool = True
    size: int = Field(default=0, ge=0)
    info: dict[str, str] = {}

    @property
    def key(self) -> tuple[str, str]:
        """Return what is unique in a version."""
        return self.name, self.architecture


class VersionEntry(_Json):
    """One version of a box."""

    version: Annotated[str, AfterValidator(_checked_version)]
    status: str = "active"
    created_at: str = ""
    providers: list[ProviderEntry]


class BoxEntry(_Json):
    """One box: the file that Vagrant is given the address of."""

    name: Annotated[str, AfterValidator(_checked_name)]
    description: str = ""
    short_description: str = ""
    versions: list[VersionEntry]


class State(_Json):
    """What the catalog itself remembers."""

    apiVersion: Literal["imagebuilder/v1"] = "imagebuilder/v1"  # noqa: N815 - as in our other files
    kind: Literal["BoxCatalog"] = "BoxCatalog"
    url: Annotated[str, AfterValidator(_checked_url)]
    title: str = "Vagrant boxes"


def read_json(path: Path, model: type[_Model]) -> _Model:
    """Return a file of the catalog.

    Raises:
        CatalogError: it is damaged; it is left as it is.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise ValueError(f"larger than {MAX_FILE >> 20} MiB")
        return model.model_validate_json(data)
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error.strerror}", hint=f"ls -l {path}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors()[:10]]
        raise CatalogError(f"{path} is damaged", context="\n".join(lines), hint=_restore(path)) from error
    except ValueError as error:
        raise CatalogError(f"{path} is damaged: {error}", hint=_restore(path)) from error


def _restore(path: Path) -> str:
    return f"restore {path.name} from a backup, or move it away and add its boxes again; it was left as it is"


def read_box_entry(path: Path, name: str) -> BoxEntry:
    """Return a box's file.

    Raises:
        CatalogError: it is damaged, names another box, or has a version or a file in it twice.
    """
    box = read_json(path, BoxEntry)
    keys = [version_key(version.version) for version in box.versions]
    twice = len(set(keys)) < len(keys) or any(
        len({provider.key for provider in version.providers}) < len(version.providers) for version in box.versions
    )
    if box.name != name or twice:
        wrong = f'it is of the box "{box.name}"' if box.name != name else "a version or a provider is in it twice"
        raise CatalogError(f"{path} is damaged: {wrong}", hint=_restore(path))
    return box


def write_json(path: Path, value: BaseModel) -> None:
    """Write a file of the catalog: aside, then renamed."""
    data = value.model_dump(mode="json")
    write_atomic(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def file_name(provider: str, arch: str) -> str:
    """Return the name of a box file in its version's folder."""
    return f"{provider}-{arch}.box"


def file_path(name: str, version: str, provider: str, arch: str) -> str:
    """Return where a box file lies in the catalog."""
    return f"{name}/{version}/{file_name(provider, arch)}"


def file_url(base: str, path: str) -> str:
    """Return the address of a file of the catalog."""
    return f"{base}/{quote(path)}"


def in_order(entries: Iterable[ProviderEntry]) -> list[ProviderEntry]:
    """Return the files of a version as Vagrant has to see them.

    Vagrant 2.3 keeps the last entry of a provider, whatever its architecture; newer ones look at
    ``default_architecture`` when the host's own is not there. So amd64 comes last, and is the default if it is there.
    """
    kept = sorted(entries, key=lambda entry: (entry.name, entry.architecture == DEFAULT_ARCH, entry.architecture))
    last = {entry.name: entry.architecture for entry in kept}
    return [entry.model_copy(update={"default_architecture": last[entry.name] == entry.architecture}) for entry in kept]


def newest_first(versions: Iterable[VersionEntry]) -> list[VersionEntry]:
    """Return versions in the order in which people want to see them."""
    return sorted(versions, key=lambda version: version_key(version.version), reverse=True)
