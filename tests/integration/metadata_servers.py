"""Strict local stand-ins for the metadata services of clouds: each refuses what the real one refuses.

They stand in for services that exist only inside the clouds; paths, headers and refusals are those of the platforms'
documentation (see ``imagebuilder/agent/agent.py``).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from local_servers import Route, Site, answer

TOKEN = "AQAEAHh0b2tlbi1vZi10aGUtc3RhbmQtaW4tMDAwMDAwMDAwMDAwMDAwMDAwMDA="
Handler = BaseHTTPRequestHandler


def guarded(route: Route, allowed: Callable[[Handler], bool], status: int) -> Route:
    """Answer with ``status`` what a request without the right headers asks for."""
    return lambda handler: route(handler) if allowed(handler) else answer(handler, b"refused", status=status)


def ec2(site: Site, data: bytes) -> None:
    """Instance metadata, version 2: no token without a TTL, no data without a token."""

    def token(handler: Handler) -> None:
        ttl = handler.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if handler.command != "PUT" or not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return answer(handler, b"", status=400)
        if handler.headers.get("X-Forwarded-For"):
            return answer(handler, b"", status=403)
        return answer(handler, TOKEN.encode())

    site.routes["/latest/api/token"] = token
    site.routes["/2019-10-01/user-data"] = guarded(
        lambda handler: answer(handler, data),
        lambda handler: handler.command == "GET" and handler.headers.get("X-aws-ec2-metadata-token") == TOKEN, 401,
    )  # fmt: skip


def gce(site: Site, attributes: dict[str, bytes]) -> None:
    """Compute Engine: the header is a must, and a proxy's header a reason to refuse."""

    def allowed(handler: Handler) -> bool:
        return handler.headers.get("Metadata-Flavor") == "Google" and not handler.headers.get("X-Forwarded-For")

    for name, data in attributes.items():
        path = f"/computeMetadata/v1/instance/attributes/{name}"
        site.routes[path] = guarded(lambda handler, data=data: answer(handler, data), allowed, 403)  # type: ignore[misc]


def azure(site: Site, data: bytes) -> None:
    """Azure: the header is a must; what is answered is base64."""
    site.routes["/metadata/instance/compute/userData?api-version=2021-01-01&format=text"] = guarded(
        lambda handler: answer(handler, base64.b64encode(data)),
        lambda handler: handler.headers.get("Metadata") == "true" and not handler.headers.get("X-Forwarded-For"), 400,
    )  # fmt: skip


def openstack(site: Site, data: bytes) -> None:
    """OpenStack: Nova tells machines apart by address, and refuses a proxy's header."""
    site.routes["/openstack/latest/user_data"] = guarded(
        lambda handler: answer(handler, data), lambda handler: not handler.headers.get("X-Forwarded-For"), 400
    )


def digitalocean(site: Site, data: bytes) -> None:
    """DigitalOcean."""
    site.serve("/metadata/v1/user-data", data)


def hcloud(site: Site, data: bytes) -> None:
    """Hetzner Cloud."""
    site.serve("/hetzner/v1/userdata", data)
