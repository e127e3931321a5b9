"""Layers on an OCI registry: a layer is the tag ``<id>`` of a repository, whose configuration is the statement.

Specifications: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md (pull, push), image-spec v1.1.1
manifest.md, https://distribution.github.io/distribution/spec/auth/token/. Credentials are those of docker's config.json
(``auths``; helper programs are not asked). They are sent to the registry and to the token service that it names, both
over https, or to this machine.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from imagebuilder.content import CHUNK, canonical_json, sha256_bytes
from imagebuilder.direct.remote.storage import CONNECT_SECONDS, STALL_SECONDS, RemoteError
from imagebuilder.errors import UsageError
from imagebuilder.sources.addresses import same_origin
from imagebuilder.sources.connection import certificates, reason
from imagebuilder.sources.manifests import MAX_DOCUMENT, OCI_MANIFEST
from imagebuilder.sources.references import Reference, parse
from imagebuilder.sources.registry import LOCAL_HOSTS, MAX_TOKEN, PARAMETER

if TYPE_CHECKING:
    import requests

STATEMENT = "application/vnd.imagebuilder.layer.config.v1+json"
ARCHIVE = "application/vnd.imagebuilder.layer.v1.tar+zstd"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_CONFIG = 1 << 20  # bytes of docker's config.json


class RegistryStorage:
    """Layers in a repository of a registry."""

    def __init__(self, where: Reference, environment: Mapping[str, str]) -> None:
        self._where, self._environment = where, environment
        local = where.registry.rpartition(":")[0] in LOCAL_HOSTS or where.registry in LOCAL_HOSTS
        self._base = f"{'http' if local else 'https'}://{where.registry}/v2/{where.repository}"
        self._authorization = ""

    def statement(self, layer_id: str, max_size: int) -> bytes | None:
        """Return what is said of a layer; see :class:`imagebuilder.direct.remote.storage.Storage`."""
        with self._ask("GET", f"manifests/{layer_id}", headers={"Accept": OCI_MANIFEST}, missing=True) as answer:
            if answer.status_code == 404:
                return None
            data = _read(answer, MAX_DOCUMENT)
        try:
            digest = json.loads(data)["config"]["digest"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RemoteError("it has no usable manifest of the layer") from error
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise RemoteError("it has no usable manifest of the layer")
        with self._ask("GET", f"blobs/{digest}") as answer:
            return _read(answer, max_size)

    @contextlib.contextmanager
    def archive(self, layer_id: str, sha256: str) -> Iterator[Iterator[bytes]]:
        """Open an archive; see :class:`imagebuilder.direct.remote.storage.Storage`."""
        with self._ask("GET", f"blobs/sha256:{sha256}") as answer:
            yield _pieces(answer)

    def has(self, sha256: str) -> bool:
        """Tell whether an archive is there; see :class:`imagebuilder.direct.remote.storage.Storage`."""
        with self._ask("HEAD", f"blobs/sha256:{sha256}", missing=True) as answer:
            return answer.status_code == 200

    def push(self, layer_id: str, statement: bytes, archive: io.RawIOBase, sha256: str) -> None:
        """Put an archive there; see :class:`imagebuilder.direct.remote.storage.Storage`."""
        size = archive.seek(0, os.SEEK_END)
        config = f"sha256:{sha256_bytes(statement)}"
        self._upload(f"sha256:{sha256}", archive, size)
        self._upload(config, statement, len(statement))
        manifest = canonical_json({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": STATEMENT, "digest": config, "size": len(statement)},
            "layers": [{"mediaType": ARCHIVE, "digest": f"sha256:{sha256}", "size": size}],
        })  # fmt: skip
        headers = {"Content-Type": OCI_MANIFEST}
        with self._ask("PUT", f"manifests/{layer_id}", data=manifest, headers=headers):
            pass

    def _upload(self, digest: str, data: bytes | io.RawIOBase, size: int) -> None:
        if self.has(digest.removeprefix("sha256:")):
            return
        with self._ask("POST", "blobs/uploads/") as answer:
            place = urljoin(answer.url, answer.headers.get("Location", ""))
        place += f"{'&' if '?' in place else '?'}digest={digest}"
        if not isinstance(data, bytes):
            data.seek(0)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        with self._ask("PUT", place, data=data, headers=headers):
            pass

    @contextlib.contextmanager
    def _ask(
        self, method: str, what: str, *, data: Any = None, headers: Mapping[str, str] | None = None,
        missing: bool = False,
    ) -> Iterator[requests.Response]:  # fmt: skip
        """Send a request; where the registry asks who we are, say so and send it again."""
        import requests

        url = what if "://" in what else f"{self._base}/{what}"
        with requests.Session() as session, _named():
            session.auth = lambda request: request  # adds nothing, so that ~/.netrc does not either
            session.verify = certificates()
            for attempt in (1, 2):
                sent = {"Accept-Encoding": "identity", **(headers or {})}
                if self._authorization and same_origin(url, self._base):
                    sent["Authorization"] = self._authorization
                answer = session.request(
                    method, url, data=data, headers=sent, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS)
                )
                if answer.status_code != 401 or attempt == 2 or (data is not None and not isinstance(data, bytes)):
                    break
                answer.close()
                self._authorization = self._identify(session, answer.headers.get("WWW-Authenticate", ""))
            with contextlib.closing(answer):
                if not (answer.ok or (missing and answer.status_code == 404)):
                    raise RemoteError(f"it answers with status {answer.status_code}")
                yield answer

    def _identify(self, session: requests.Session, challenge: str) -> str:
        """Return the Authorization that a challenge asks for."""
        kind, _, rest = challenge.partition(" ")
        values = {key.lower(): value for key, value in PARAMETER.findall(rest)}
        basic = credentials(self._where.registry, self._environment)
        if kind.lower() == "basic" and basic:
            return f"Basic {basic}"
        realm = urlsplit(values.get("realm", ""))
        safe = realm.scheme == "https" or (realm.scheme == "http" and realm.hostname in LOCAL_HOSTS)
        if kind.lower() != "bearer" or not safe:
            raise RemoteError(f"it wants credentials, and there are none: docker login {self._where.registry}")
        query = {key: values[key] for key in ("service", "scope") if key in values}
        query["scope"] = f"repository:{self._where.repository}:pull,push" if basic else query.get("scope", "")
        headers = {"Authorization": f"Basic {basic}"} if basic else {}
        timeout = (CONNECT_SECONDS, STALL_SECONDS)
        with session.get(realm.geturl(), params=query, headers=headers, timeout=timeout, stream=True) as answer:
            if not answer.ok:
                raise RemoteError(f"its token service answers with status {answer.status_code}")
            try:
                found = json.loads(_read(answer, MAX_TOKEN))
                token = found.get("token") or found.get("access_token")
            except (ValueError, AttributeError, RecursionError):
                token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RemoteError("its token service gave no token")
        return f"Bearer {token}"


def open_registry(rest: str) -> RegistryStorage:
    """Return the storage at ``HOST[:PORT]/REPOSITORY``.

    Raises:
        UsageError: this is no repository.
    """
    where = parse(rest)
    if where.digest or where.tag != "latest" or not rest.startswith(f"{where.registry}/"):
        message = f'"oci://{rest[:100]}" names no repository of a registry'
        raise UsageError(message, hint="oci://registry.example:5000/builds/layers")
    return RegistryStorage(where, os.environ)


def credentials(host: str, environment: Mapping[str, str]) -> str:
    """Return user and password for a registry, in base64, from docker's config.json; empty where it has none."""
    folder = environment.get("DOCKER_CONFIG") or Path(environment.get("HOME", "/"), ".docker")
    try:
        with Path(folder, "config.json").open("rb") as stream:
            auths = json.loads(stream.read(MAX_CONFIG))["auths"]
        found = next(auths[name] for name in (host, f"https://{host}", f"https://{host}/v2/") if name in auths)
        text = found["auth"]
        return text if b":" in base64.b64decode(text, validate=True) else ""
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return ""


def _read(answer: requests.Response, max_size: int) -> bytes:
    data = b""
    for piece in _pieces(answer):
        data += piece
        if len(data) > max_size:
            raise RemoteError(f"an answer is larger than {max_size} bytes")
    return data


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    return iter(lambda: answer.raw.read(CHUNK, decode_content=False), b"")


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Say in a few words what is wrong with a connection."""
    import requests
    import urllib3

    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise RemoteError(f"it {reason(error, STALL_SECONDS)[0]}") from error
