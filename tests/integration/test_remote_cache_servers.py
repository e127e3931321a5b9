"""Layers through real servers: moto's S3 and Debian's docker-registry, and through servers that are none."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from layer_servers import PASSWORD, USER, running_registry, running_s3
from local_servers import Handler, Site, answer, dripping, listening, silent, stalling, trickling

from imagebuilder.__main__ import main
from imagebuilder.content import canonical_json
from imagebuilder.direct.elsewhere import Sharing
from imagebuilder.direct.layers import Layer, LayerStore
from imagebuilder.direct.remote.cache import RemoteCache, open_remote
from imagebuilder.direct.seals import seal_of
from imagebuilder.events import Stage, Tape

pytestmark = pytest.mark.integration

ID = "1" * 64
INFO = {"name": "base", "id": ID}
SECRET = "hunter2hunter2"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    root = tmp_path_factory.mktemp("registry")
    with running_registry(root) as host:
        yield host, root


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "tests"), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_CONFIG_FILE", str(tmp_path / "none")),
        ("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none")), ("DOCKER_CONFIG", str(tmp_path / "docker")),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture
def sharing(tmp_path: Path) -> Sharing:
    return Sharing(sign=new_key(tmp_path / "layers.key"), push=True, seconds=60)


def new_key(path: Path) -> Path:
    key = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.chmod(0o600)
    return path


@pytest.fixture(params=["s3", "oci"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address that nobody has put anything at."""
    if request.param == "oci":
        return f"oci://{request.getfixturevalue('registry')[0]}/layers/{tmp_path.name.replace('_', '-').lower()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", request.getfixturevalue("s3"))
    bucket().create()
    return f"s3://layers/{tmp_path.name}"


def bucket() -> Any:
    import boto3

    return boto3.resource("s3").Bucket("layers")


def build(store: LayerStore, layer_id: str = ID) -> Layer:
    """Build a small layer that has what layers have."""
    with store.building(layer_id) as folder:
        assert folder is not None
        (folder / "root/etc").mkdir()
        (folder / "root/etc/file").write_text("content")
        os.link(folder / "root/etc/file", folder / "root/etc/again")
        (folder / "root/link").symlink_to("/etc/passwd")
        (folder / "root/random").write_bytes(os.urandom(3 << 20))
        (folder / "volumes/containerd").mkdir()
        if os.geteuid() == 0:
            os.mknod(folder / "root/gone", stat.S_IFCHR, os.makedev(0, 0))
            os.chown(folder / "root/etc/file", 100, 101)
            os.setxattr(folder / "root/etc", "trusted.overlay.opaque", b"y")
        return store.commit(folder, INFO | {"id": layer_id})


def take(remote: RemoteCache, store: LayerStore) -> tuple[Layer | None, list[str]]:
    tape = Tape()
    layer = remote.take(ID, INFO, store, Stage(tape, "layer:base"))
    return layer, [event.text for event in tape.events if event.kind == "note"]


def push(sharing: Sharing, cache: Path) -> Layer:
    with LayerStore(cache) as store:
        layer = build(store)
        place = open_remote(sharing)
        assert (place.push([layer], store, Stage(Tape(), "push")), place.fault) == (1, "")
        assert list(store.staging.iterdir()) == []
    return layer


def test_the_second_of_two_builders_gets_the_layer_of_the_first(url: str, sharing: Sharing, tmp_path: Path) -> None:
    sharing = replace(sharing, remote=url)
    with LayerStore(tmp_path / "second") as store:
        assert take(open_remote(sharing), store) == (None, [])
        first = push(sharing, tmp_path / "first")
        second, notes = take(open_remote(sharing), store)
        assert notes == [f"taken from {url}"]
        assert second is not None
        assert seal_of(second.path) == seal_of(first.path)
        assert (second.path / "layer.json").read_bytes() == (first.path / "layer.json").read_bytes()
        assert os.stat(second.root / "etc/file").st_nlink == 2
        assert open_remote(sharing).push([second], store, Stage(Tape(), "push")) == 0


def test_the_key_of_another_fleet_is_not_trusted(url: str, sharing: Sharing, tmp_path: Path) -> None:
    push(replace(sharing, remote=url), tmp_path / "first")
    other = Sharing(remote=url, sign=new_key(tmp_path / "other.key"))
    with LayerStore(tmp_path / "second") as store:
        layer, notes = take(open_remote(other), store)
        assert layer is None
        assert notes == [
            f"the remote cache {url} is left alone from here on: it is signed with a key that is not trusted here"
        ]


def test_changed_bytes_are_not_used(url: str, sharing: Sharing, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    push(replace(sharing, remote=url), tmp_path / "first")
    if url.startswith("s3:"):
        blobs = [item for item in bucket().objects.filter(Prefix=tmp_path.name) if "/blobs/" in item.key]
        data = bytearray(blobs[0].get()["Body"].read())
        data[1000] ^= 1
        blobs[0].put(Body=bytes(data))
    else:
        root = request.getfixturevalue("registry")[1]
        path = max(root.glob("docker/registry/v2/blobs/sha256/*/*/data"), key=lambda path: path.stat().st_mtime_ns
                   if path.stat().st_size > 1 << 20 else 0)  # fmt: skip
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
    with LayerStore(tmp_path / "second") as store:
        layer, notes = take(open_remote(replace(sharing, remote=url)), store)
        assert layer is None
        assert "it sends other bytes than were stated" in notes[0]
        assert [list(folder.iterdir()) for folder in (store.layers, store.staging)] == [[], []]


def test_a_registry_with_users_is_asked_with_dockers_credentials(tmp_path: Path, sharing: Sharing) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "docker").mkdir()
    with running_registry(tmp_path / "users", users=True) as host:
        sharing = replace(sharing, remote=f"oci://{host}/team/layers")
        with LayerStore(tmp_path / "second") as store:
            _, notes = take(open_remote(sharing), store)
            assert notes[0].endswith(f"it wants credentials, and there are none: docker login {host}")
            for password, fault in ((SECRET, "it answers with status 401"), (PASSWORD, "")):
                auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
                (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
                place = open_remote(sharing)
                assert take(place, store)[0] is None
                assert place.fault == fault
            push(sharing, tmp_path / "first")
            assert take(open_remote(sharing), store)[0] is not None


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    yield server
    server.close()


def test_a_token_is_asked_for_with_the_credentials_and_then_used(site: Site, sharing: Sharing, tmp_path: Path) -> None:
    host = site.url.removeprefix("http://")
    auth = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    manifest = canonical_json({"config": {"digest": f"sha256:{'a' * 64}"}})

    def guarded(data: bytes) -> Callable[[Handler], None]:
        def serve(handler: Handler) -> None:
            if handler.headers.get("Authorization") == "Bearer abc":
                answer(handler, data)
            else:
                challenge = f'Bearer realm="{site.url}/token",service="r",scope="repository:a/b:pull"'
                answer(handler, b"", status=401, WWW_Authenticate=challenge)

        return serve

    site.routes[f"/v2/a/b/manifests/{ID}"] = guarded(manifest)
    site.routes[f"/v2/a/b/blobs/sha256:{'a' * 64}"] = guarded(b"no statement")
    site.serve("/token?service=r&scope=repository%3Aa%2Fb%3Apull%2Cpush", b'{"token": "abc"}')
    with LayerStore(tmp_path / "cache") as store:
        _, notes = take(open_remote(replace(sharing, remote=f"oci://{host}/a/b")), store)
    assert notes[0].endswith("left alone from here on: what is said of the layer is no statement")
    sent = [headers.get("Authorization", "") for _, _, headers in site.asked]
    assert sent == ["", f"Basic {auth}", "Bearer abc", "Bearer abc"]


@pytest.mark.parametrize("kind", ["s3", "oci"])
@pytest.mark.parametrize("status", [403, 404, 500, 507])
def test_an_answer_that_is_none_is_named(
    kind: str, status: int, site: Site, sharing: Sharing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = server(kind, site.url, sharing, monkeypatch)
    for path in (f"/layers/x/layers/{ID}.json", f"/v2/layers/x/manifests/{ID}"):
        site.serve(path, b"no", status=status)
    with LayerStore(tmp_path / "cache") as store:
        layer, notes = take(place, store)
        assert layer is None
        assert len(notes) == (status != 404)
        assert all(str(status) in note and SECRET not in note for note in notes)
        layer = build(store)
        tape = Tape()
        assert place.push([layer], store, Stage(tape, "push")) == 0
        assert place.fault


def server(kind: str, url: str, sharing: Sharing, monkeypatch: pytest.MonkeyPatch) -> RemoteCache:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    remote = "s3://layers/x" if kind == "s3" else f"oci://{url.removeprefix('http://')}/layers/x"
    return open_remote(replace(sharing, remote=remote))


@pytest.mark.parametrize("kind", ["s3", "oci"])
@pytest.mark.parametrize("serve", [silent, dripping, stalling, trickling], ids=lambda serve: serve.__name__)
def test_a_server_that_never_ends_has_its_time(
    kind: str, serve: Any, sharing: Sharing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(serve) as url, LayerStore(tmp_path / "cache") as store:
        place = server(kind, url.removesuffix("/file"), replace(sharing, seconds=0.7), monkeypatch)
        layer, notes = take(place, store)
        assert layer is None
        assert notes[0].endswith("left alone from here on: it was not done within 1 s")


@pytest.mark.parametrize(("kind", "said"), [("s3", "endpoint connection error"), ("oci", "refused the connection")])
def test_a_server_that_is_down_is_named(
    kind: str, said: str, sharing: Sharing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(silent) as url:
        gone = url.removesuffix("/file")
    with LayerStore(tmp_path / "cache") as store:
        layer, notes = take(server(kind, gone, sharing, monkeypatch), store)
        assert layer is None
        assert said in notes[0]


def test_a_bucket_that_is_not_there_is_named(s3: str, sharing: Sharing, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3)
    with LayerStore(tmp_path / "cache") as store:
        _, notes = take(open_remote(replace(sharing, remote="s3://no-such-bucket/x")), store)
        assert notes[0].endswith("it answers NoSuchBucket (status 404)")


def test_scripts_push_and_pull(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    new_key(tmp_path / "layers.key")
    (tmp_path / "imagebuilder.toml").write_text(f'[cache]\nremote = "{url}"\nsign = "layers.key"\n')
    with LayerStore(tmp_path / "first") as store:
        build(store)
    assert main(["cache", "push", "--cache-dir", "first", "--json"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == {"pushed": 1, "remote": url}
    assert main(["cache", "push", "--cache-dir", "first", "1111"]) == 0
    assert capfd.readouterr().out == f"0 of 1 layers were pushed to {url}\n"
    assert main(["cache", "pull", "--cache-dir", "second", ID]) == 0
    assert main(["cache", "pull", "--cache-dir", "second", "2" * 64]) == 7
    assert main(["cache", "push", "--cache-dir", "first", "2222"]) == 2
    assert main(["cache", "pull", "--cache-dir", "second", "../../x"]) == 2
    assert main(["cache", "pull", "--cache-dir", "second", "2" * 64, "--remote-cache", "oci://127.0.0.1:1/x"]) == 5
    assert seal_of(tmp_path / "first/layers" / ID) == seal_of(tmp_path / "second/layers" / ID)


def test_two_takers_share_one_download(url: str, sharing: Sharing, tmp_path: Path) -> None:
    push(replace(sharing, remote=url), tmp_path / "first")
    found: list[Layer | None] = []

    def work() -> None:
        with LayerStore(tmp_path / "second") as store:
            found.append(take(open_remote(replace(sharing, remote=url)), store)[0])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [layer and layer.id for layer in found] == [ID, ID]
