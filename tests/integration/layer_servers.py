"""Real servers that keep things for a while: Debian's docker-registry, and moto's S3."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import process
from imagebuilder.errors import UnreachableError
from imagebuilder.sources.download import Downloader

USER, PASSWORD = "builder", "secret"
# crypt(3) of the password: what htpasswd -B writes, at its lowest cost.
HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"


@contextlib.contextmanager
def running_registry(root: Path, *, users: bool = False) -> Iterator[str]:
    """Run Debian's docker-registry on a folder; hand out its host and port.

    Args:
        root: the folder; has its log too.
        users: who asks has to be USER.
    """
    program = process.find("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    port = free_port()
    config: dict[str, Any] = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(root)}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "log": {"level": "error", "accesslog": {"disabled": True}},
    }
    if users:
        (root / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(root / "htpasswd")}}
    (root / "config.yml").write_text(json.dumps(config))
    with running([program, "serve", root / "config.yml"], f"http://127.0.0.1:{port}/v2/", root / "log"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def running_s3(root: Path) -> Iterator[str]:
    """Run moto's S3 server; hand out its address. It keeps all in memory."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], url, root / "log"):
        yield url


@contextlib.contextmanager
def running(argv: list[str | Path], url: str, log: Path) -> Iterator[None]:
    """Run a server; go on when it answers."""
    with log.open("wb") as stream:
        child = process.spawn(argv, stdout=stream, stderr=stream)
    try:
        for _ in range(600):
            with contextlib.suppress(UnreachableError):
                Downloader(connect_timeout=1).probe(url)
                break
            assert child.poll() is None, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.stop(child)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
