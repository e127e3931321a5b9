"""Layers on S3, or on what speaks its language (MinIO, Ceph, ...): ``layers/<id>.json`` and ``blobs/<sha256>``.

Reference: Amazon S3's API, GetObject, HeadObject and PutObject. Credentials, region and the address of another server
are found as boto3 finds them: AWS_ENDPOINT_URL_S3, AWS_PROFILE, a role, ...
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from imagebuilder.content import CHUNK
from imagebuilder.direct.remote.storage import CONNECT_SECONDS, STALL_SECONDS, RemoteError
from imagebuilder.errors import ToolMissingError, UsageError

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")  # Amazon's rules for names of buckets
PREFIX = re.compile(r"[A-Za-z0-9!_.*'()/=+@-]{0,512}")  # what needs no quoting there
INSTALL = "pip install 'imagebuilder[s3]'"


class S3Storage:
    """Layers below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix

    def statement(self, layer_id: str, max_size: int) -> bytes | None:
        """Return what is said of a layer; see :class:`imagebuilder.direct.remote.storage.Storage`."""
        with _named():
            try:
                answer = self._client().get_object(Bucket=self._bucket, Key=self._key("layers", f"{layer_id}.json"))
            except _errors().ClientError as error:
                if _code(error) in ("NoSuchKey", "404"):
                    return None
                raise
            with contextlib.closing(answer["Body"]) as body:
                data: bytes = body.read(max_size + 1)
        if len(data) > max_size:
            raise RemoteError(f"what it says of a layer is larger than {max_size} bytes")
        return data

    @contextlib.contextmanager
    def archive(self, layer_id: str, sha256: str) -> Iterator[Iterator[bytes]]:
        """Open an archive; see :class:`imagebuilder.direct.remote.storage.Storage`."""
        with _named():
            answer = self._client().get_object(Bucket=self._bucket, Key=self._key("blobs", sha256))
            with contextlib.closing(answer["Body"]) as body:
                yield iter(lambda: body.read(CHUNK), b"")

    def has(self, sha256: str) -> bool:
        """Tell whether an archive is there; see :class:`imagebuilder.direct.remote.storage.Storage`."""
        with _named():
            try:
                self._client().head_object(Bucket=self._bucket, Key=self._key("blobs", sha256))
            except _errors().ClientError as error:
                if _code(error) in ("NoSuchKey", "404"):
                    return False
                raise
        return True

    def push(self, layer_id: str, statement: bytes, archive: io.RawIOBase, sha256: str) -> None:
        """Put an archive there; see :class:`imagebuilder.direct.remote.storage.Storage`."""
        there, client = self.has(sha256), self._client()
        with _named():
            if not there:
                client.put_object(Bucket=self._bucket, Key=self._key("blobs", sha256), Body=archive)
            key = self._key("layers", f"{layer_id}.json")
            client.put_object(Bucket=self._bucket, Key=key, Body=statement, ContentType="application/json")

    def _key(self, *names: str) -> str:
        return "/".join(filter(None, (self._prefix, *names)))

    def _client(self) -> Any:
        """Return a client; not kept, as it belongs to the thread that is left behind with it."""
        config = importlib.import_module("botocore.config").Config(
            connect_timeout=CONNECT_SECONDS, read_timeout=STALL_SECONDS, retries={"total_max_attempts": 2}
        )
        with _named():
            return importlib.import_module("boto3").client("s3", config=config)


def open_s3(rest: str) -> S3Storage:
    """Return the storage at ``BUCKET[/PREFIX]``.

    Raises:
        UsageError: this is no bucket.
        ToolMissingError: boto3 is not installed.
    """
    bucket, _, prefix = rest.partition("/")
    if not BUCKET.fullmatch(bucket) or not PREFIX.fullmatch(prefix):
        raise UsageError(f'"s3://{rest[:100]}" names no bucket of S3', hint="s3://bucket/prefix")
    if find_spec("boto3") is None:
        raise ToolMissingError("a remote cache on S3 needs boto3, which is not installed", hint=INSTALL)
    return S3Storage(bucket, prefix.strip("/"))


def _errors() -> Any:
    return importlib.import_module("botocore.exceptions")


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) or "no code"


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Say in a few words what boto3 says in many; its own may hold addresses with signatures."""
    try:
        yield
    except _errors().ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "?")
        raise RemoteError(f"it answers {_code(error)} (status {status})") from error
    except _errors().BotoCoreError as error:
        raise RemoteError(f"it cannot be asked: {_words(type(error).__name__)}") from error


def _words(name: str) -> str:
    """Return the words of a class's name: EndpointConnectionError is "endpoint connection error"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
