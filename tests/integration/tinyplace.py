"""Where a tiny bake writes, what its image is, and what has to be gone when it has ended."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from leftovers import left_on_disk, nothing_runs
from local_archive import run
from tinybake import Baked, What, bake
from tinydistro import World

from imagebuilder.content import sha256_file
from imagebuilder.errors import ImagebuilderError


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder that has all that a bake writes: ``cache``, ``out``, and ``scratch`` for temporary files."""

    folder: Path

    @classmethod
    def below(cls, folder: Path, patch: pytest.MonkeyPatch, warm: Place | None = None) -> Place:
        """Make one, with a copy of what another one has, and let its programs put their temporary files there."""
        (folder / "scratch").mkdir()
        patch.setenv("TMPDIR", str(folder / "scratch"))
        if warm:
            # With devices, and with times: seals and stamps cover these.
            run("cp", "-a", warm.folder / "cache", warm.folder / "out", folder)
        return cls(folder=folder)

    @property
    def cache(self) -> Path:
        """Return the cache folder."""
        return self.folder / "cache"

    @property
    def image(self) -> Path:
        """Return the artifact."""
        (path,) = self.folder.glob("out/*/tiny-*")
        return path

    @property
    def digest(self) -> str:
        """Return the artifact's sha256."""
        return sha256_file(self.image)

    def bake(self, world: World, what: What | None = None, *more: str) -> Baked:
        """Bake into it."""
        return bake(world.folder, self.cache, self.folder / "out", what, *more)

    def good(self, world: World, right: str, *more: str) -> Baked:
        """Bake into it; that must give the right image, and leave nothing."""
        found = self.bake(world, None, *more)
        assert found.code == 0, found.said
        assert self.digest == right
        self.is_clean()
        return found

    def is_clean(self) -> None:
        """Raise AssertionError when a bake that has cleaned up has left anything."""
        self.nothing_runs()
        left = [*left_on_disk(self.cache), *left_on_disk(self.folder / "out")]
        assert left == [], left  # which pytest does not show of a helper

    def nothing_runs(self) -> None:
        """Raise AssertionError when a bake that may have been killed left what no later one can find."""
        nothing_runs(self.folder)
        assert list((self.folder / "scratch").iterdir()) == []

    def layers(self, *names: str) -> list[Path]:
        """Return the folders of the layers of these names."""
        infos = self.cache.glob("layers/*/layer.json") if names else ()
        return [path.parent for path in infos if json.loads(path.read_bytes())["name"] in names]

    def forget(self, *patterns: str, layers: tuple[str, ...] = ()) -> None:
        """Remove the artifact, and what is named, from the cache."""
        for path in (
            *self.folder.glob("out/*"),
            *self.layers(*layers),
            *(p for x in patterns for p in self.cache.glob(x)),
        ):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def refused(found: Baked, kind: type[ImagebuilderError], *words: str) -> None:
    """Raise AssertionError unless a bake failed with a class, said words, and gave a hint."""
    assert found.code == kind.exit_code, found.said
    assert f"({kind.ref}, exit code" in found.said
    assert "\nhint: " in found.said, found.said
    for word in words:
        assert word in found.said, found.said
