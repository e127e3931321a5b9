"""A stand-in for Keystone: the one request that Packer's openstack builder makes while it validates.

Strict: any other request, or one that does not state what it must, is answered with an error and remembered.
API: https://docs.openstack.org/api-ref/identity/v3/ "Password authentication with scoped authorization".
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REGION = "RegionOne"
LARGEST = 64 << 10  # bytes of a request; a real one has some 300
USER = {"OS_USERNAME": "builder", "OS_PASSWORD": "not-a-word", "OS_PROJECT_NAME": "images", "OS_DOMAIN_NAME": "Default"}
SERVICES = ("compute", "image", "network", "volumev3")


class Keystone:
    """What a running stand-in was asked: ``tokens`` it gave, and ``problems`` with requests."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v3"
        self.tokens = 0
        self.problems: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """The variables of an RC file."""
        return {**USER, "OS_TENANT_NAME": USER["OS_PROJECT_NAME"], "OS_AUTH_URL": self.url, "OS_REGION_NAME": REGION}

    def check(self, method: str, path: str, body: bytes) -> str:
        """Return what is wrong with a request, or an empty string."""
        if (method, path) != ("POST", "/v3/auth/tokens"):
            return f"{method} {path}: not what Packer asks while it validates"
        try:
            auth = json.loads(body)["auth"]
            user = auth["identity"]["password"]["user"]
            named = (user["name"], user["password"], user["domain"]["name"], auth["scope"]["project"]["name"])
            methods = auth["identity"]["methods"]
        except (ValueError, KeyError, TypeError) as error:
            return f"POST {path}: {error!r} in {body[:200]!r}"
        wanted = (USER["OS_USERNAME"], USER["OS_PASSWORD"], USER["OS_DOMAIN_NAME"], USER["OS_PROJECT_NAME"])
        if methods != ["password"] or named != wanted:
            return f"POST {path}: wrong methods or names"
        return ""

    def token(self) -> dict[str, Any]:
        """Return the body of a token: the catalog names every service in the region."""
        self.tokens += 1
        host = self.url.rpartition("/")[0]
        catalog = [
            {"type": kind, "name": kind, "id": kind, "endpoints": [
                {"id": kind, "interface": "public", "region": REGION, "region_id": REGION, "url": f"{host}/{kind}"},
            ]}
            for kind in SERVICES
        ]  # fmt: skip
        times = {"issued_at": "2026-01-01T00:00:00.000000Z", "expires_at": "2099-01-01T00:00:00.000000Z"}
        return {"token": {"methods": ["password"], "catalog": catalog, **times}}


@contextmanager
def keystone() -> Iterator[Keystone]:
    """Run a stand-in on a free port of this host; fail when it was asked something that it should not be."""
    state: list[Keystone] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(min(length, LARGEST))
            problem = state[0].check(self.command, self.path, body)
            if problem:
                state[0].problems.append(problem)
            self.send_response(400 if problem else 201)
            data = json.dumps({"error": {"message": problem}} if problem else state[0].token()).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if not problem:
                self.send_header("X-Subject-Token", "a-token")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.append(Keystone(server.server_address[1]))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state[0]
        assert not state[0].problems
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
