"""Whatever is damaged in the cache is dropped and made again by the very bake that wants it, and never used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tinydistro import World, marks, serving
from tinyplace import Place

pytestmark = marks
UPPER = ("runtime", "kubernetes", "site")


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


def flip(path: Path) -> None:
    """Change one byte in the middle; size and mode stay."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Take the last byte away."""
    path.write_bytes(path.read_bytes()[:-1])


def lie(path: Path) -> None:
    """Change what was found, in a file that still is what it must look like."""
    data = json.loads(path.read_bytes())
    data["data"]["epoch"] += 86400
    path.write_bytes(json.dumps(data).encode())


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is damaged, by a pattern below the place, and which layers have to be made for it to be wanted."""

    path: str
    how: Callable[[Path], object] = flip
    layers: tuple[str, ...] = ()
    said: str = ""
    artifact: bool = False


DAMAGES = {
    "program": Damage(path="cache/payloads/*/kubelet", layers=("kubernetes", "site"), said="it was removed"),
    "program-cut": Damage(path="cache/payloads/*/kubelet", how=cut, layers=UPPER, said="it was removed"),
    "program-info": Damage(path="cache/payloads/*/payload.json", layers=UPPER, said="it was removed"),
    "image": Damage(path="cache/images/*.tar", layers=("kubernetes", "site"), said="it was removed"),
    "package": Damage(path="cache/debs/containerd_*", layers=UPPER, said="it is fetched again"),
    "package-cut": Damage(path="cache/debs/containerd_*", how=cut, layers=UPPER),
    "decompressed": Damage(path="cache/debs/unpacked/*.tar", layers=("base", "tools", *UPPER)),
    "decompressed-note": Damage(path="cache/debs/unpacked/*.json", layers=("base", "tools", *UPPER)),
    "layer-file": Damage(path="cache/layers/*/root/usr/bin/containerd", said="is damaged"),
    "layer-volume": Damage(path="cache/layers/*/volumes/containerd/store/blob", said="is damaged"),
    "layer-info": Damage(path="cache/layers/*/layer.json", how=cut, said="is damaged"),
    "answer": Damage(path="cache/resolved/*.json", how=lie),
    "answer-cut": Damage(path="cache/resolved/*.json", how=cut),
    "artifact": Damage(path="out/*/tiny-*", artifact=True),
    "artifact-cut": Damage(path="out/*/tiny-*", how=cut, artifact=True),
    "manifest": Damage(path="out/*/manifest.json", how=cut, artifact=True),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_made_again(warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    damage = DAMAGES[name]
    place = Place.below(tmp_path, monkeypatch, warm.place)
    paths = [path for path in sorted(tmp_path.glob(damage.path)) if not path.is_symlink()]
    damaged = {}
    for path in paths:
        damage.how(path)
        damaged[path] = path.read_bytes()
    assert damaged
    if not damage.artifact:
        place.forget(layers=damage.layers)
    found = place.good(warm.world, warm.right)
    assert damage.said in found.said
    assert [path for path, data in damaged.items() if path.exists() and path.read_bytes() == data] == []
    again = place.good(warm.world, warm.right)
    assert "(unchanged)" in again.said
