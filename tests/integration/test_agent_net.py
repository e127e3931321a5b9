"""The agent against stand-ins of the metadata services, and against servers that misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import metadata_servers as cloud
import pytest
from local_servers import Route, Site, answer, dripping, in_turn, listening, reset, silent, stalling, trickling
from node_standins import Node

from imagebuilder.agent import agent

pytestmark = pytest.mark.integration

# What the agent takes for a package: whether it is one, is judged elsewhere.
PACKAGE = b"\x1f\x8b" + bytes(300)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def named(host: agent.SourceHost, **bases: str) -> agent.SourceHost:
    for name, base in bases.items():
        host.services[name] = [base]
    return host


def hurried(node: Node, **bases: str) -> agent.SourceHost:
    node.hurry()
    return named(node.host, **bases)


def only(found: tuple[list[agent.Candidate], list[agent.Problem]]) -> agent.Candidate:
    assert [problem.text for problem in found[1]] == []
    (candidate,) = found[0]
    return candidate


def failed(found: tuple[list[agent.Candidate], list[agent.Problem]]) -> agent.Problem:
    assert found[0] == []
    (problem,) = found[1]
    return problem


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


SERVICES = [
    pytest.param("aws", "ec2", cloud.ec2, id="ec2"),
    pytest.param("gce", "gce", lambda site, data: cloud.gce(site, {"imagebuilder-data": data}), id="gce"),
    pytest.param("gce", "gce", lambda site, data: cloud.gce(site, {"user-data": data}), id="gce-user-data"),
    pytest.param("azure", "azure", cloud.azure, id="azure"),
    pytest.param("openstack", "openstack", cloud.openstack, id="openstack"),
    pytest.param("digitalocean", "digitalocean", cloud.digitalocean, id="digitalocean"),
    pytest.param("hcloud", "hcloud", cloud.hcloud, id="hcloud"),
]


@pytest.mark.parametrize(("firmware", "name", "serve"), SERVICES)
def test_services_give_a_package(
    tmp_path: Path, site: Site, firmware: str, name: str, serve: Callable[[Site, bytes], None]
) -> None:
    serve(site, PACKAGE)
    host = named(Node(tmp_path, firmware).host, **{name: site.url})
    candidate = only(agent.find("net", host))
    assert (candidate.origin, candidate.data, candidate.release) == (name, PACKAGE, None)
    assert all("Proxy" not in name for _, _, headers in site.asked for name in headers)


@pytest.mark.parametrize(("firmware", "name", "serve"), SERVICES)
def test_user_data_for_cloud_init_is_no_package_and_no_problem(
    tmp_path: Path, site: Site, firmware: str, name: str, serve: Callable[[Site, bytes], None]
) -> None:
    serve(site, b"#cloud-config\npackages: [vim]\n")
    candidates, problems = agent.find("net", named(Node(tmp_path, firmware).host, **{name: site.url}))
    ours_alone = "/computeMetadata/v1/instance/attributes/imagebuilder-data" in site.routes
    assert candidates == [] and [problem.code for problem in problems] == ["E_FORMAT"] * ours_alone


def test_version_1_of_ec2s_service_is_never_used(tmp_path: Path, site: Site) -> None:
    site.serve("/2019-10-01/user-data", PACKAGE)
    assert "no session token" in failed(agent.find("net", named(Node(tmp_path, "aws").host, ec2=site.url))).text


def test_an_expired_token_is_replaced(tmp_path: Path, site: Site) -> None:
    cloud.ec2(site, PACKAGE)
    path = "/2019-10-01/user-data"
    site.routes[path] = in_turn(lambda handler: answer(handler, b"", status=401), site.routes[path])
    assert only(agent.find("net", named(Node(tmp_path, "aws").host, ec2=site.url))).data == PACKAGE
    assert [method for method, _, _ in site.asked] == ["PUT", "GET", "PUT", "GET"]


def test_the_second_address_is_asked_where_the_first_is_dead(tmp_path: Path, site: Site) -> None:
    cloud.ec2(site, PACKAGE)
    host = Node(tmp_path, "aws").host
    host.services["ec2"] = [f"http://127.0.0.1:{free_port()}", site.url]
    assert only(agent.find("net", host)).data == PACKAGE


class Six(cloud.BaseHTTPRequestHandler):
    """What an IPv6 address gives; it notes what it was called."""

    called: str = ""

    def do_GET(self) -> None:  # noqa: N802  # its base class calls it so
        type(self).called = self.headers["Host"]
        answer(self, PACKAGE)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_an_ipv6_address_with_a_network_card(tmp_path: Path) -> None:
    import http.server

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6

    try:
        server = Server(("::1", 0), Six)
    except OSError:
        pytest.skip("this machine has no IPv6")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        node = Node(tmp_path, "openstack")
        node.put("/sys/class/net/lo/address", b"00:00:00:00:00:00")
        node.put("/sys/class/net/eth0/address", b"52:54:00:00:00:01")
        node.host.services["openstack"] = ["http://[fe80::a9fe:a9fe%{interface}]"]
        assert agent._bases(node.host, "openstack") == ["http://[fe80::a9fe:a9fe%eth0]"]
        node.host.services["openstack"] = [f"http://[::1]:{server.server_port}"]
        assert only(agent.find("net", node.host)).data == PACKAGE
        assert Six.called == f"[::1]:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def status(number: int, **headers: str) -> Route:
    return lambda handler: answer(handler, b"", status=number, **headers)


@pytest.mark.parametrize("number", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(tmp_path: Path, site: Site, number: int) -> None:
    cloud.openstack(site, PACKAGE)
    path = "/openstack/latest/user_data"
    site.routes[path] = in_turn(status(number), site.routes[path])
    host = named(Node(tmp_path, "openstack").host, openstack=site.url)
    waited: list[float] = []
    host.sleep = waited.append
    assert only(agent.find("net", host)).data == PACKAGE
    assert waited == [agent.FIRST_PAUSE]


@pytest.mark.parametrize("number", [404, 410, 429])
def test_azure_says_404_and_410_while_it_is_updated(tmp_path: Path, site: Site, number: int) -> None:
    cloud.azure(site, PACKAGE)
    (path,) = site.routes
    site.routes[path] = in_turn(status(number), status(number), site.routes[path])
    host = named(Node(tmp_path, "azure").host, azure=site.url)
    waited: list[float] = []
    host.sleep = waited.append
    assert only(agent.find("net", host)).data == PACKAGE
    assert waited == [agent.FIRST_PAUSE, 2 * agent.FIRST_PAUSE]


def test_retry_after_is_kept(tmp_path: Path, site: Site) -> None:
    site.routes["/hetzner/v1/userdata"] = in_turn(status(429, Retry_After="7"), status(404))
    host = named(Node(tmp_path, "hcloud").host, hcloud=site.url)
    host.source_seconds = 60.0
    waited: list[float] = []
    host.sleep = waited.append
    assert "404" in failed(agent.find("net", host)).text
    assert waited == [7.0]


def test_retry_after_beyond_the_deadline_ends_it(tmp_path: Path, site: Site) -> None:
    site.routes["/hetzner/v1/userdata"] = status(429, Retry_After="3600")
    host = named(Node(tmp_path, "hcloud").host, hcloud=site.url)
    host.sleep = lambda seconds: pytest.fail(f"slept {seconds} s")
    assert "answers 429" in failed(agent.find("net", host)).text
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    ("route", "code", "text"),
    [
        pytest.param(status(404), "E_SOURCE", "404", id="404"),
        pytest.param(status(403), "E_SOURCE", "403", id="403"),
        pytest.param(status(302, Location="file:///etc/shadow"), "E_SOURCE", "302", id="redirect"),
        pytest.param(reset, "E_SIZE", "bytes", id="too-much"),
        pytest.param(lambda one: answer(one, bytes(3 << 20), stated=False), "E_SIZE", "more than", id="unstated"),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_asked_once(tmp_path: Path, site: Site, route: Route, code: str, text: str) -> None:
    site.routes["/hetzner/v1/userdata"] = route
    problem = failed(agent.find("net", named(Node(tmp_path, "hcloud").host, hcloud=site.url)))
    assert (problem.origin, problem.code) == ("hcloud", code) and text in problem.text
    assert len(site.asked) == 1


def flooding(connection: socket.socket) -> None:
    """Promise 10 GB, and send as much as is taken."""
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        while True:
            connection.sendall(bytes(1 << 16))


def endless(connection: socket.socket) -> None:
    """Send for ever, without a length."""
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(1 << 16))


def hanging_up(connection: socket.socket) -> None:
    connection.close()


def babbling(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(b"220 mail.example ESMTP\r\n")
        connection.close()


@pytest.mark.parametrize(
    ("serve", "code"),
    [
        (silent, "E_SOURCE"), (dripping, "E_SOURCE"), (stalling, "E_SOURCE"), (trickling, "E_SOURCE"),
        (hanging_up, "E_SOURCE"), (babbling, "E_SOURCE"), (flooding, "E_SIZE"), (endless, "E_SIZE"),
    ],
)  # fmt: skip
def test_a_server_that_misbehaves_is_a_problem_and_no_hang(
    tmp_path: Path, serve: Callable[[socket.socket], None], code: str
) -> None:
    with listening(serve) as url:
        problem = failed(agent.find("net", hurried(Node(tmp_path, "hcloud"), hcloud=url.removesuffix("/file"))))
    assert (problem.origin, problem.code) == ("hcloud", code)


def test_a_refused_connection_is_a_problem(tmp_path: Path) -> None:
    host = hurried(Node(tmp_path, "hcloud"), hcloud=f"http://127.0.0.1:{free_port()}")
    assert "refused" in failed(agent.find("net", host)).text


def test_a_name_that_is_never_resolved_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60))
    node = Node(tmp_path)
    node.put("/proc/cmdline", b"imagebuilder.data=http://nobody.example/n.ibdata")
    node.host.fetch_seconds = 0.2
    try:
        assert "no whole answer" in failed(agent.find("net", node.host)).text
    finally:
        over.set()


def test_all_sources_together_have_an_end(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.put("/proc/cmdline", b"imagebuilder.services=ec2,gce,azure")
    now = [0.0]
    node.host.monotonic, node.host.scope_seconds, node.host.source_seconds = (lambda: now[0]), 15.0, 10.0

    def sleep(seconds: float) -> None:
        now[0] += seconds * step

    node.host.sleep = sleep
    step = 1
    assert [problem.text for problem in agent.find("net", node.host)[1]] == ["has no address"] * 3
    assert 10.0 < now[0] <= 15.0
    now, step = [0.0], 40  # a machine that was suspended meanwhile
    skipped = "not asked: the 15 s for all sources together are over"
    assert [problem.text for problem in agent.find("net", node.host)[1]] == ["has no address", skipped, skipped]


def test_the_kernel_line_names_an_address(tmp_path: Path, site: Site) -> None:
    node = Node(tmp_path)
    node.put("/sys/class/dmi/id/product_uuid", b"ABC\n")
    digest = hashlib.sha256(PACKAGE).hexdigest()
    url = site.serve("/abc/n.ibdata", PACKAGE).replace("abc", "{uuid}")
    node.put("/proc/cmdline", f"quiet imagebuilder.data={url} imagebuilder.sha256={digest}\n".encode())
    assert only(agent.find("net", node.host)).origin == "kernel-line"
    node.put("/proc/cmdline", f"imagebuilder.data={url} imagebuilder.sha256={'0' * 64}".encode())
    assert failed(agent.find("net", node.host)).code == "E_DIGEST"
    node.put("/proc/cmdline", f"imagebuilder.data={url}".encode())
    assert only(agent.find("net", node.host)).data == PACKAGE
    node.put("/proc/cmdline", b"imagebuilder.data=file:///etc/shadow")
    node.hurry()
    assert failed(agent.find("net", node.host)).code == "E_SOURCE"


def pointer(url: str, data: bytes = PACKAGE, **change: Any) -> bytes:
    document = {
        "apiVersion": "imagebuilder/v1", "kind": "DataPackagePointer", "url": url, "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "keyId": "1" * 32, "signature": "c2lnbmF0dXJl",
    }  # fmt: skip
    return json.dumps(document | change).encode()


def accept(*_: object) -> None:
    """Take every signature for a good one."""


def test_a_pointer_is_followed(tmp_path: Path, site: Site) -> None:
    url = site.serve("/n.ibdata", PACKAGE)
    site.routes["/moved"] = status(302, Location="/n.ibdata")
    host = Node(tmp_path).host
    for address in (url, site.url + "/moved"):
        assert agent.fetch_pointer(pointer(address), host, accept) == PACKAGE


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"size": len(PACKAGE) - 1}, "E_SIZE", id="longer"),
        pytest.param({"size": len(PACKAGE) + 1}, "E_DIGEST", id="shorter"),
        pytest.param({"sha256": "0" * 64}, "E_DIGEST", id="other-bytes"),
    ],
)
def test_a_pointer_to_other_bytes_is_refused(tmp_path: Path, site: Site, change: dict[str, Any], code: str) -> None:
    url = site.serve("/n.ibdata", PACKAGE)
    with pytest.raises(agent.SourceError) as caught:
        agent.fetch_pointer(pointer(url, **change), Node(tmp_path).host, accept)
    assert caught.value.code == code


@pytest.mark.parametrize("target", ["file:///etc/shadow", "ftp://127.0.0.1/x", "gopher://x", "", "/loop"])
def test_redirects_elsewhere_are_not_followed(tmp_path: Path, site: Site, target: str) -> None:
    site.routes["/loop"] = status(301, Location=target)
    with pytest.raises(agent.SourceError, match="redirects") as caught:
        agent.fetch_pointer(pointer(site.url + "/loop"), Node(tmp_path).host, accept)
    assert caught.value.code == "E_SOURCE"


@pytest.mark.parametrize("serve", [silent, dripping, stalling, trickling])
def test_a_pointer_to_a_server_that_never_ends_is_given_up(
    tmp_path: Path, serve: Callable[[socket.socket], None]
) -> None:
    with listening(serve) as url, pytest.raises(agent.SourceError) as caught:
        agent.fetch_pointer(pointer(url, bytes(1000)), hurried(Node(tmp_path)), accept)
    assert caught.value.code == "E_SOURCE"
