"""Mirrors that break off, crawl or lie: a class, a hint, and then a good bake."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from local_servers import Handler, Route, answer, cut_off
from tinybake import What
from tinydistro import CONTAINERD, World, marks, serving
from tinyplace import Place, refused

from imagebuilder.errors import ImagebuilderError, UnreachableError, UntrustedError

pytestmark = marks
APT = "imagebuilder.sources.apt:"


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
