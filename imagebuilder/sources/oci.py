"""OCI image layout archives: made from static programs, written deterministically, read with distrust.

Specification: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md (and config.md,
manifest.md, descriptor.md there). ``manifest.json`` is for ``docker load``, which reads that file alone:
https://github.com/moby/docker-image-spec/blob/v1.3.1/spec.md.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from imagebuilder.content import aside, canonical_json, sha256_bytes, sha256_file, writing
from imagebuilder.errors import DataError
from imagebuilder.sources.archive import ArchiveInfo as ArchiveInfo
from imagebuilder.sources.archive import inspect_archive as inspect_archive
from imagebuilder.sources.manifests import OCI_INDEX, OCI_MANIFEST
from imagebuilder.sources.references import Reference, parse

CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
MODE_BITS = 0o7777


@dataclass(frozen=True, kw_only=True, slots=True)
class ComposeSpec:
    """What a composed image is called and runs. Empty values are left out of its configuration."""

    reference: str
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    arch: str = "amd64"


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """Bytes of an image: in memory, or in a file."""

    digest: str
    size: int
    source: bytes | Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A whole image, ready to be written: its parts as blobs, the layers from the bottom up."""

    reference: Reference
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    media_type: str = OCI_MANIFEST
    arch: str = "amd64"

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(blob.size for blob in (self.manifest, self.config, *self.layers))


def compose(spec: ComposeSpec, files: Sequence[tuple[str, Path, int]], out: Path, *, epoch: int) -> Image:
    """Write an OCI archive of one layer that holds ``files``.

    Args:
        spec: name and configuration.
        files: path in the image, path on this host, mode; folders above are made, owned by root.
        out: the archive; the same arguments give the same bytes.
        epoch: seconds since 1970, of everything in it.

    Raises:
        DataError: a path is relative, goes up, is there twice, or does not fit a USTAR header.
        UsageError: the reference is none.
    """
    with aside(out) as scratch:
        layer_path = scratch / "layer.tar"
        with layer_path.open("wb") as stream:
            _write_layer(files, stream, epoch)
        layer = Blob(digest=f"sha256:{sha256_file(layer_path)}", size=layer_path.stat().st_size, source=layer_path)
        config = _bytes_blob(canonical_json(_config(spec, layer.digest, epoch)))
        manifest = _bytes_blob(canonical_json(_manifest(config, layer)))
        image = Image(
            reference=parse(spec.reference), manifest=manifest, config=config, layers=(layer,), arch=spec.arch
        )
        write_archive([image], out, epoch=epoch)
    return image


def write_archive(images: Sequence[Image], out: Path, *, epoch: int) -> None:
    """Write an OCI image layout as one USTAR tar: layers, configurations, manifests, then the index.

    Blobs that images share are written once. The archive appears under its name when it is whole.
    """
    blobs: dict[str, Blob] = {}
    for part in ("layers", "config", "manifest"):
        for image in images:
            value = getattr(image, part)
            blobs.update({blob.digest: blob for blob in (value if part == "layers" else (value,))})
    with writing(out) as stream, _tar(stream) as archive:
        for folder in ("blobs", "blobs/sha256"):
            archive.addfile(_entry(folder, epoch=epoch, mode=0o755, folder=True))
        for blob in blobs.values():
            _add_blob(archive, blob, epoch)
        _add_bytes(archive, "index.json", canonical_json(_index(images)), epoch)
        _add_bytes(archive, "manifest.json", canonical_json([_docker(image) for image in images]), epoch)
        _add_bytes(archive, "oci-layout", LAYOUT, epoch)


def blob_path(digest: str) -> str:
    """Return the path of a blob in an image layout."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _bytes_blob(data: bytes) -> Blob:
    return Blob(digest=f"sha256:{sha256_bytes(data)}", size=len(data), source=data)


def _tar(stream: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT)


def _entry(name: str, *, epoch: int, mode: int, size: int = 0, folder: bool = False) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    entry.mtime, entry.mode, entry.size = epoch, mode & MODE_BITS, size
    return entry  # uid, gid 0 and no names: TarInfo's defaults


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes, epoch: int) -> None:
    archive.addfile(_entry(name, epoch=epoch, mode=0o644, size=len(data)), io.BytesIO(data))


def _add_blob(archive: tarfile.TarFile, blob: Blob, epoch: int) -> None:
    if isinstance(blob.source, bytes):
        _add_bytes(archive, blob_path(blob.digest), blob.source, epoch)
        return
    with blob.source.open("rb") as stream:
        archive.addfile(_entry(blob_path(blob.digest), epoch=epoch, mode=0o644, size=blob.size), stream)


def _write_layer(files: Sequence[tuple[str, Path, int]], stream: IO[bytes], epoch: int) -> None:
    wanted: dict[str, tuple[Path, int]] = {}
    folders: set[str] = set()
    for image_path, host_path, mode in files:
        path = PurePosixPath(image_path)
        if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/"):
            raise DataError(f"{image_path!r} is no absolute path of a file in an image")
        name = str(path).lstrip("/")
        if name in wanted:
            raise DataError(f"{image_path!r} is in the image twice")
        wanted[name] = (host_path, mode)
        folders |= {str(parent) for parent in PurePosixPath(name).parents} - {"."}
    if both := folders & wanted.keys():
        raise DataError(f"{sorted(both)[0]!r} is a file and a folder in the image")
    with _tar(stream) as archive:
        for name in sorted(folders | wanted.keys()):
            try:
                if name in folders:
                    archive.addfile(_entry(name, epoch=epoch, mode=0o755, folder=True))
                else:
                    _add_file(archive, name, *wanted[name], epoch)
            except ValueError as error:
                raise DataError(f"{name!r} does not fit a tar archive: {error}") from error


def _add_file(archive: tarfile.TarFile, name: str, path: Path, mode: int, epoch: int) -> None:
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            archive.addfile(_entry(name, epoch=epoch, mode=mode, size=size), stream)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _time(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _config(spec: ComposeSpec, diff_id: str, epoch: int) -> dict[str, Any]:
    run = {
        "Entrypoint": list(spec.entrypoint),
        "Cmd": list(spec.cmd),
        "Env": list(spec.env),
        "User": spec.user,
        "WorkingDir": spec.working_dir,
    }
    return {
        "architecture": spec.arch,
        "os": "linux",
        "created": _time(epoch),
        "config": {key: value for key, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": _time(epoch), "created_by": "imagebuilder compose"}],
    }


def _manifest(config: Blob, layer: Blob) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size}],
    }


def _index(images: Sequence[Image]) -> Mapping[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {
                "mediaType": image.media_type,
                "digest": image.manifest.digest,
                "size": image.manifest.size,
                "platform": {"architecture": image.arch, "os": "linux"},
                "annotations": {
                    "io.containerd.image.name": image.reference.name,
                    "org.opencontainers.image.ref.name": image.reference.tag or image.reference.digest,
                },
            }
            for image in images
        ],
    }


def _docker(image: Image) -> Mapping[str, Any]:
    return {
        "Config": blob_path(image.config.digest),
        "RepoTags": [image.reference.name] if image.reference.tag else [],
        "Layers": [blob_path(layer.digest) for layer in image.layers],
    }
