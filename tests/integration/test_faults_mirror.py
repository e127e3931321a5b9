"""Mirrors that break off, crawl, lie, or show what they had before: a class, a hint, and then a good bake."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from local_archive import DATE, Key
from local_servers import Handler, Route, answer, cut_off
from tinybake import What
from tinydistro import CONTAINERD, KUBELET, World, marks, serving
from tinyplace import Place, refused

from imagebuilder.errors import ImagebuilderError, UnreachableError, UntrustedError

pytestmark = marks
SUITE = "/debian/dists/tiny"
INDEX = f"{SUITE}/main/binary-amd64/Packages"
APT, OURS = "imagebuilder.sources.apt:", "imagebuilder.sources.download:"


@dataclass(frozen=True, kw_only=True)
class Warm:
    """The distribution, and a place where it was baked."""

    world: World
    place: Place
    right: str


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with pytest.MonkeyPatch.context() as patch, serving(tmp_path_factory.mktemp("tiny")) as world:
        place = Place.below(tmp_path_factory.mktemp("warm"), patch)
        found = place.bake(world)
        assert found.code == 0, found.said
        yield Warm(world=world, place=place, right=place.digest)


@pytest.fixture
def place(warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A warm cache without what comes from outside for the upper layers."""
    made = Place.below(tmp_path, monkeypatch, warm.place)
    made.forget("debs/containerd_*", "payloads/*", layers=("runtime", "kubernetes", "site"))
    yield made
    warm.world.restore()


def crawling(data: bytes) -> Route:
    """Promise all of it, and send a byte now and then."""

    def serve(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        try:
            for byte in data:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.1)
        except OSError:  # the other side has given up
            handler.close_connection = True

    return serve


def other_bytes(data: bytes) -> Route:
    return lambda handler: answer(handler, bytes([data[0] ^ 1]) + data[1:])


def too_short(data: bytes) -> Route:
    return lambda handler: answer(handler, data[:-1])


def too_long(data: bytes) -> Route:
    return lambda handler: answer(handler, data + b"?") if handler.command != "HEAD" else answer(handler, data)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a server does instead of giving a file, and what the bake says of it."""

    route: Callable[[bytes], Route]
    kind: type[ImagebuilderError]
    words: str
    constants: dict[str, Any] = field(default_factory=dict)


SLOW = {"CRAWL_SECONDS": 1.0, "SLOWEST": 10_000_000}
PACKAGE = {
    "cut": Fault(route=cut_off, kind=UnreachableError, words="the archive of tiny"),
    "crawls": Fault(
        route=crawling, kind=UnreachableError, words="is too slow: it was given up",
        constants={APT + name: value for name, value in SLOW.items()},
    ),
    "hash": Fault(route=other_bytes, kind=UntrustedError, words="whose hash is not the one in its signed index"),
    "size": Fault(route=too_short, kind=UntrustedError, words="whose hash is not the one in its signed index"),
}  # fmt: skip
PROGRAM = {
    "cut": Fault(
        route=cut_off, kind=UnreachableError, words="127.0.0.1", constants={OURS + "BACKOFF_SECONDS": 0.01}
    ),
    "crawls": Fault(
        route=crawling, kind=UnreachableError, words="is too slow: the transfer was given up",
        constants={OURS + name: value for name, value in SLOW.items()},
    ),
    "hash": Fault(route=other_bytes, kind=UntrustedError, words="has the wrong checksum; nothing of it was kept"),
    "size": Fault(route=too_long, kind=UntrustedError, words="is larger than the"),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKAGE)
def test_a_package_that_does_not_come_as_it_should(warm: Warm, place: Place, name: str) -> None:
    fault = PACKAGE[name]
    warm.world.site.routes[CONTAINERD] = fault.route(warm.world.archive.debs[Path(CONTAINERD).name])
    found = place.bake(warm.world, What(constants=fault.constants))
    refused(found, fault.kind, fault.words)
    assert found.failed == ["layer:runtime"]
    place.is_clean()
    warm.world.restore()
    place.good(warm.world, warm.right)


@pytest.mark.parametrize("name", PROGRAM)
def test_a_program_that_does_not_come_as_it_should(warm: Warm, place: Place, name: str) -> None:
    fault = PROGRAM[name]
    warm.world.site.routes[KUBELET] = fault.route(warm.world.kubelet)
    found = place.bake(warm.world, What(constants=fault.constants))
    refused(found, fault.kind, fault.words)
    assert found.failed == ["source:binaries"]
    place.is_clean()
    warm.world.restore()
    place.good(warm.world, warm.right)


def dated(text: str, date: str) -> str:
    return text.replace(DATE, date)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda text: dated(text, "Sat, 01 Aug 2026 08:00:00 UTC"), "older than the one", id="rolled-back"),
        pytest.param(
            lambda text: text.replace("SHA256:", "Valid-Until: Sun, 16 Aug 2026 08:00:00 UTC\nSHA256:"),
            "no longer valid, by this machine's clock", id="expired",
        ),
        pytest.param(
            lambda text: dated(text, "Mon, 15 Aug 2095 08:00:00 UTC"), "from the future, by this machine's clock",
            id="from-the-future",
        ),
        pytest.param(lambda text: text.replace("SHA256:\n ", "SHA256:\n 0"), "", id="hash"),
    ],
)  # fmt: skip
def test_an_index_that_must_not_be_taken(warm: Warm, place: Place, change: Callable[[str], str], words: str) -> None:
    warm.world.sign(change(warm.world.archive.release))
    refused(place.bake(warm.world, None, "--refresh"), UntrustedError, words)
    place.is_clean()
    warm.world.restore()
    place.good(warm.world, warm.right, "--refresh")


def test_an_index_that_is_a_little_older_is_not_taken_either(warm: Warm, place: Place) -> None:
    """The servers behind one address do not have the newest at the same time: what the cache has is used."""
    warm.world.sign(dated(warm.world.archive.release, "Fri, 14 Aug 2026 20:00:00 UTC"))
    place.good(warm.world, warm.right, "--refresh")
    dates = [path.read_text() for path in place.cache.glob("apt/*/var/lib/apt/lists/*InRelease")]
    assert dates
    assert all(DATE in text for text in dates)


def test_a_signature_whose_key_has_expired_by_this_machines_clock(warm: Warm, place: Place) -> None:
    """As on a machine that believes to be in 2040. At 1970 it is the index's date that is refused, not the key."""
    key = Key("odd", clock="20200101T000000", expires="1y")
    trusted = warm.world.key.keyring.read_bytes()
    try:
        warm.world.key.keyring.write_bytes(key.keyring.read_bytes())
        warm.world.site.routes[f"{SUITE}/InRelease"] = lambda h: answer(h, key.clearsign(warm.world.archive.release))
        found = place.bake(warm.world, None, "--refresh")
        refused(found, UntrustedError, "clock", time.strftime("it says %Y-"))
        place.is_clean()
    finally:
        warm.world.key.keyring.write_bytes(trusted)
        key.close()
    warm.world.restore()
    place.good(warm.world, warm.right, "--refresh")


@pytest.mark.parametrize("name", ["cut", "crawls"])
def test_an_index_that_does_not_come_to_its_end(warm: Warm, place: Place, name: str) -> None:
    route = {"cut": cut_off, "crawls": crawling}[name]
    warm.world.site.routes[INDEX] = route(warm.world.archive.packages)
    found = place.bake(warm.world, What(constants={APT + "UPDATE_SECONDS": 4}), "--refresh")
    refused(found, UnreachableError, warm.world.archive.url)
    place.is_clean()
    warm.world.restore()
    place.good(warm.world, warm.right, "--refresh")
