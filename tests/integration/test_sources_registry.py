"""Images pulled from the real registry of Debian, and from registries that lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from layer_servers import running_registry
from local_servers import (
    ELF,
    Handler,
    Route,
    Site,
    answer,
)

from imagebuilder.content import sha256_bytes, sha256_file
from imagebuilder.errors import UnreachableError, UnresolvableError, UntrustedError, UsageError
from imagebuilder.sources.archive import inspect_archive
from imagebuilder.sources.download import Downloader
from imagebuilder.sources.oci import ComposeSpec, Image, compose
from imagebuilder.sources.registry import Registry

pytestmark = pytest.mark.integration


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    yield server
    server.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Run Debian's docker-registry; yield its address and its folder."""
    root = tmp_path_factory.mktemp("registry")
    with running_registry(root) as host:
        yield host, root


def push(host: str, image: Image, repository: str, tag: str, archive: Path) -> None:
    """Push an image with plain HTTP calls: the part of the specification that we do not ship."""
    import tarfile

    import requests

    base = f"http://{host}/v2/{repository}"
    with tarfile.open(archive) as tar:
        for blob in (image.config, *image.layers):
            stream = tar.extractfile(f"blobs/sha256/{blob.digest[7:]}")
            assert stream is not None
            place = requests.post(f"{base}/blobs/uploads/", timeout=10).headers["Location"]
            put = requests.put(f"{place}&digest={blob.digest}", data=stream.read(), timeout=10)
            assert put.status_code == 201, put.text
    assert isinstance(image.manifest.source, bytes)
    put_manifest(base, tag, image.manifest.source, image.media_type)


def put_manifest(base: str, tag: str, data: bytes, media_type: str) -> None:
    import requests

    put = requests.put(f"{base}/manifests/{tag}", data=data, headers={"Content-Type": media_type}, timeout=10)
    assert put.status_code == 201, put.text


def composed(folder: Path, arch: str, data: bytes) -> tuple[Image, Path]:
    (folder / "pause").write_bytes(data)
    spec = ComposeSpec(reference="registry.k8s.io/pause:3.10.1", entrypoint=("/pause",), arch=arch)
    out = folder / f"{arch}.tar"
    return compose(spec, [("/pause", folder / "pause", 0o755)], out, epoch=0), out


def test_an_image_goes_through_a_real_registry(registry: tuple[str, Path], tmp_path: Path) -> None:
    host, _ = registry
    image, archive = composed(tmp_path, "amd64", ELF * 50_000)
    push(host, image, "pause", "3.10.1", archive)
    client, seen = Registry(Downloader(), mirrors={"registry.k8s.io": f"http://{host}"}), list[tuple[int, int]]()
    resolved = client.resolve_reference("registry.k8s.io/pause:3.10.1", "amd64")
    assert resolved.digest == image.manifest.digest
    assert resolved.size == image.size
    out = tmp_path / "pulled.tar"
    client.pull(resolved.reference, "amd64", out, on_progress=lambda *at: seen.append(at))
    info = inspect_archive(out)
    assert (info.references, info.digests) == (("registry.k8s.io/pause:3.10.1",), (image.manifest.digest,))
    assert sha256_file(out) == sha256_file(archive)  # composed with the same name at epoch 0
    assert seen[-1] == (image.layers[0].size, image.layers[0].size)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["amd64.tar", "pause", "pulled.tar"]
    with pytest.raises(UsageError, match="has no digest"):
        client.pull("registry.k8s.io/pause:3.10.1", "amd64", out)
    with pytest.raises(UnresolvableError, match="for linux/amd64, not for linux/arm64"):
        client.pull(resolved.reference, "arm64", out)
    with pytest.raises(UntrustedError, match="more than the 10"):
        client.pull(resolved.reference, "amd64", out, max_size=10)


def test_the_platform_is_picked_out_of_an_index(registry: tuple[str, Path], tmp_path: Path) -> None:
    host, _ = registry
    entries, digests = [], {}
    for arch in ("amd64", "arm64"):
        image, archive = composed(tmp_path, arch, ELF + arch.encode())
        push(host, image, "team/multi", arch, archive)
        digests[arch] = image.manifest.digest
        entries.append(
            {
                "mediaType": image.media_type, "digest": image.manifest.digest, "size": image.manifest.size,
                "platform": {"os": "linux", "architecture": arch},
            }
        )  # fmt: skip
    media_type = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()
    put_manifest(f"http://{host}/v2/team/multi", "1", index, media_type)
    client = Registry(Downloader())
    for arch, digest in digests.items():
        resolved = client.resolve_reference(f"{host}/team/multi:1", arch)
        assert resolved.digest == digest
        client.pull(resolved.reference, arch, tmp_path / "out.tar")
        assert inspect_archive(tmp_path / "out.tar").arch == arch
    with pytest.raises(UnresolvableError, match="no image for linux on riscv64"):
        client.resolve_reference(f"{host}/team/multi:1", "riscv64")
    with pytest.raises(UnresolvableError):
        client.resolve_reference(f"{host}/team/multi:2", "amd64")
    with pytest.raises(UsageError, match="several architectures"):
        client.pull(f"{host}/team/multi:1@sha256:{sha256_bytes(index)}", "amd64", tmp_path / "x.tar")


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
def test_a_blob_that_was_tampered_with_is_refused(registry: tuple[str, Path], tmp_path: Path, which: str) -> None:
    host, root = registry
    image, archive = composed(tmp_path, "amd64", ELF + which.encode())
    push(host, image, f"bad/{which}", "1", archive)
    client = Registry(Downloader())
    reference = client.resolve_reference(f"{host}/bad/{which}:1", "amd64").reference
    blob = {"manifest": image.manifest, "config": image.config, "layer": image.layers[0]}[which]
    stored = root / "docker/registry/v2/blobs/sha256" / blob.digest[7:9] / blob.digest[7:] / "data"
    data = stored.read_bytes()
    old_new = {"manifest": (b'":2', b'": 2'), "config": (b"linux", b"linuX"), "layer": (b"program", b"prog-am")}[which]
    assert data != data.replace(*old_new)
    stored.write_bytes(data.replace(*old_new))
    out = tmp_path / "out" / "bad.tar"
    # the registry checks manifests itself, and answers with an error of its own
    with pytest.raises((UntrustedError, UnreachableError) if which == "manifest" else UntrustedError):
        client.pull(reference, "amd64", out)
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_anonymous_tokens(site: Site, tmp_path: Path) -> None:
    image, _ = composed(tmp_path, "amd64", ELF)
    challenge = f'Bearer realm="{site.url}/token",service="reg",scope="repository:library/x:pull"'

    def guarded(data: bytes, **headers: str) -> Route:
        def route(handler: Handler) -> None:
            if handler.headers.get("Authorization") == "Bearer abc":
                answer(handler, data, **headers)  # type: ignore[arg-type]
            else:
                answer(handler, b"{}", status=401, WWW_Authenticate=challenge)

        return route

    assert isinstance(image.manifest.source, bytes)
    assert isinstance(image.config.source, bytes)
    base = "/v2/library/x"
    site.routes[f"{base}/manifests/latest"] = guarded(image.manifest.source, Content_Type=image.media_type)
    site.routes[f"{base}/blobs/{image.config.digest}"] = guarded(image.config.source)
    site.serve("/token?service=reg&scope=repository%3Alibrary%2Fx%3Apull", b'{"token":"abc","expires_in":300}')
    client = Registry(Downloader(), mirrors={"docker.io": site.url})
    assert client.resolve_reference("x", "amd64").digest == image.manifest.digest
    assert [path for _, path, _ in site.asked if path.startswith("/token")] == [
        "/token?service=reg&scope=repository%3Alibrary%2Fx%3Apull"
    ]
    site.routes[f"{base}/manifests/basic"] = lambda handler: answer(
        handler, b"", status=401, WWW_Authenticate='Basic realm="x"'
    )
    with pytest.raises(UnresolvableError, match="wants credentials"):
        client.resolve_reference("x:basic", "amd64")


def test_a_registry_that_lies_about_its_digest(site: Site, tmp_path: Path) -> None:
    image, _ = composed(tmp_path, "amd64", ELF)
    assert isinstance(image.manifest.source, bytes)
    site.serve("/v2/p/x/manifests/1", image.manifest.source, Docker_Content_Digest="sha256:" + "0" * 64)
    client = Registry(Downloader(), mirrors={"quay.io": site.url + "/p/"})
    with pytest.raises(UntrustedError, match="other bytes"):
        client.resolve_reference("quay.io/x:1", "amd64")
    site.serve("/v2/p/x/manifests/2", b"<html>")
    with pytest.raises(UntrustedError, match="no usable manifest"):
        client.resolve_reference("quay.io/x:2", "amd64")
