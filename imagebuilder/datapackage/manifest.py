"""The manifest of a data package: its models, its one spelling, and what a path may be.

The format is specified in ``docs/data-package.md``; nothing here reads or writes files.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from imagebuilder.content import canonical_json
from imagebuilder.errors import PackageError
from imagebuilder.strict import Strict

API_VERSION: Final = "imagebuilder/v1"
MAX_MANIFEST = 256 << 10  # bytes; 254 files with the longest paths need 90 KiB
MAX_PATH = 200  # bytes
MAX_GENERATION = (1 << 53) - 1  # the largest integer that every JSON parser keeps exact
ALLOWED_FOLDERS = (
    "/etc/kubernetes/", "/var/lib/kubelet/pki/", "/etc/cni/net.d/", "/etc/containerd/certs.d/",
    "/etc/containerd/conf.d/",
)  # fmt: skip
ALLOWED_FILES = (
    "/var/lib/kubelet/config.yaml", "/etc/docker/daemon.json", "/etc/default/kubelet", "/etc/sysconfig/kubelet",
)  # fmt: skip

LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"  # RFC 1123
_PATH = re.compile(r"(/[A-Za-z0-9._@+:=-]+)+")
_TIME = "%Y-%m-%dT%H:%M:%SZ"

Name = Annotated[str, Field(pattern=rf"\A{LABEL}\z")]
HostName = Annotated[str, Field(pattern=rf"\A{LABEL}(\.{LABEL})*\z", max_length=64)]  # HOST_NAME_MAX of Linux
Time = Annotated[str, Field(pattern=r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\z")]
Version = Annotated[str, Field(pattern=r"\A\d{1,4}\.\d{1,4}(\.\d{1,4})?\z")]
Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Word = Annotated[str, Field(pattern=r"\A[!-~]{1,1024}\z")]  # printable ASCII, no space: nothing to quote
Words = Annotated[tuple[Word, ...], Field(strict=False, min_length=1, max_length=64)]
# Rendered into a unit: no space, quote or backslash.
ProxyWord = Annotated[str, Field(pattern=r"\A[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]{1,1024}\z")]
KeyLine = Annotated[str, Field(pattern=r"\A[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}( [ -~]*)?\z", max_length=8192)]


class _Camel(Strict, alias_generator=to_camel, populate_by_name=True):
    """A part of the manifest: keys are in camel case, and absent where there is nothing to say."""


class Selectors(_Camel):
    """Which machine a package is for: each key that is there must have one of its values there."""

    hostname: Words | None = None
    uuid: Words | None = None
    serial: Words | None = None
    mac: Words | None = None


class VersionRange(_Camel):
    """Versions from ``min``, included, to ``below``, excluded."""

    min: Version
    below: Version


class Requires(_Camel):
    """What the image must be able to do."""

    kubelet: VersionRange | None = None
    runtime: Literal["containerd", "docker"] | None = None
    arch: Literal["amd64", "arm64"] | None = None
    init: Literal["systemd", "sysvinit"] | None = None


class Proxy(_Camel):
    """Proxies of the container runtimes, as in the variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""

    http: ProxyWord | None = None
    https: ProxyWord | None = None
    no: ProxyWord | None = None


class Settings(_Camel):
    """What the agent renders from its own templates."""

    hostname: HostName | None = None
    ssh_authorized_keys: Annotated[tuple[KeyLine, ...], Field(strict=False, max_length=64)] | None = None
    proxy: Proxy | None = None


class FileEntry(_Camel):
    """One file: where it goes, and what it must be."""

    path: str
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    mode: Literal["0600", "0640", "0644"]
    owner: Literal["0:0"] = "0:0"


class Manifest(_Camel):
    """What a package says of itself, and what is signed."""

    api_version: Literal["imagebuilder/v1"] = API_VERSION
    kind: Literal["DataPackage"] = "DataPackage"
    cluster: Name
    node: HostName
    role: Literal["standalone", "worker"]
    generation: Annotated[int, Field(ge=1, le=MAX_GENERATION)]
    not_before: Time
    not_after: Time
    key_id: Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
    selectors: Selectors
    requires: Requires
    settings: Settings
    files: Annotated[tuple[FileEntry, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _valid_for_a_time(self) -> Manifest:
        if parse_time(self.not_before) >= parse_time(self.not_after):
            raise ValueError("notAfter is not after notBefore")
        return self

    def to_bytes(self) -> bytes:
        """Return the manifest's one spelling."""
        return canonical(self.as_data())

    def as_data(self) -> dict[str, Any]:
        """Return the manifest as plain data."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


_REQUIRED = tuple(field.alias or "" for field in Manifest.model_fields.values())


def canonical(value: Any) -> bytes:
    """Return the one JSON spelling that is signed: keys sorted, no spaces, UTF-8, and a line feed at the end."""
    return canonical_json(value) + b"\n"


def parse_canonical(data: bytes, what: str) -> dict[str, Any]:
    """Return the object that ``data`` is the canonical JSON of.

    So every key is there once, and the data has no spelling but the one that was signed.

    Raises:
        PackageError: E_FORMAT, it is not.
    """
    try:
        value = json.loads(data.decode())
        if not isinstance(value, dict) or canonical(value) != data:
            raise ValueError("it is not a canonical JSON object")
    except (ValueError, RecursionError) as error:  # also of UTF-8, of surrogates, and of numbers without end
        raise PackageError("E_FORMAT", f"{what} is not canonical JSON", context=f"{error}"[:200]) from error
    return value


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest that these bytes are.

    Raises:
        PackageError: E_SIZE, E_FORMAT, or E_PATH for a path that no package may write.
    """
    if len(data) > MAX_MANIFEST:
        raise PackageError("E_SIZE", f"the manifest is larger than {MAX_MANIFEST >> 10} KiB")
    raw = parse_canonical(data, "the manifest")
    missing = [key for key in _REQUIRED if key not in raw]
    if missing or not all("owner" in file for file in _objects(raw.get("files"))):
        raise PackageError("E_FORMAT", f"the manifest lacks {', '.join(missing) or 'the owner of a file'}")
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
        raise PackageError("E_FORMAT", "the manifest is not one", context="\n".join(problems[:10])) from error
    if manifest.as_data() != raw:  # an explicit null, or a number of another kind
        raise PackageError("E_FORMAT", "the manifest has a value that is to be left out")
    check_paths([file.path for file in manifest.files])
    return manifest


def check_paths(paths: list[str]) -> None:
    """Refuse paths that a package may not write, and an order that is not theirs.

    Raises:
        PackageError: E_PATH, or E_FORMAT for paths that are not in ascending order.
    """
    for path in paths:
        check_path(path)
    if any(first >= second for first, second in itertools.pairwise(paths)):
        raise PackageError("E_FORMAT", "the files are not sorted by path, or one is there twice")
    known = set(paths)
    for path in paths:
        parts = path.split("/")
        parent = next(("/".join(parts[:end]) for end in range(2, len(parts)) if "/".join(parts[:end]) in known), "")
        if parent:
            raise PackageError("E_PATH", f"{parent} is a file, and the folder of {path}")


def check_path(path: str) -> None:
    """Refuse a path that is not on the allow-list.

    Raises:
        PackageError: E_PATH.
    """
    if len(path) > MAX_PATH or not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise PackageError("E_PATH", f"{path!r:.80} is not a plain absolute path")
    if path not in ALLOWED_FILES and not path.startswith(ALLOWED_FOLDERS):
        raise PackageError("E_PATH", f"{path} is not a path that a package may write")


def parse_time(text: str) -> datetime:
    """Return a time of a manifest.

    Raises:
        ValueError: there is no such time.
    """
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def format_time(time: datetime) -> str:
    """Return a time as manifests spell it, in whole seconds of UTC."""
    return time.astimezone(UTC).strftime(_TIME)


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
