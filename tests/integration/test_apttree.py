"""A host without apt, dpkg, gpg and mmdebstrap bakes, as an ordinary user, what a Debian host bakes as root.

The archive has the real packages of Debian that apt and a root tree are made of, beside those of the tiny distribution;
its key and its index are ours. What is Debian's on this host is hidden from the user, in a mount namespace of his own.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import otheruser
import pytest
import smallstack
import tinybake
import tinydistro
from leftovers import left_on_disk
from local_archive import Deb
from otheruser import User
from tinybake import Baked, What
from tinydistro import World, packages, serving

from imagebuilder import process
from imagebuilder.content import sha256_file
from imagebuilder.errors import ToolMissingError
from imagebuilder.model import LockedPackage
from imagebuilder.process import RealRunner
from imagebuilder.sources.debfile import control_text

LACKING = [program for program in otheruser.PROGRAMS if not process.find(program)]
pytestmark = [
    *tinydistro.marks,
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {' '.join(LACKING)}"),
]
PROGRAMS = (
    "apt-get", "apt-cache", "apt-config", "apt-key", "dpkg", "dpkg-deb", "dpkg-query", "mmdebstrap", "gpg", "gpgv",
    "sqv",
)  # fmt: skip
FOLDERS = ("/etc/apt", "/usr/share/keyrings", "/var/lib/dpkg", "/var/lib/apt")
STEPS = {
    "runtime/10-install.sh": "apt-get -qq update\napt-get -qq -y install docker.io containerd",
    "site/10-site.sh": "rm -rf /var/log/apt /var/log/*.log",  # as the step site/90-clean does
}
REPLACED = ("apt", "base-files", "busybox", "dpkg")  # of the tiny distribution, by the real ones
ROOT = Path(__file__).resolve().parents[2]
SEEN = (ROOT, Path(sys.prefix), Path(sys.base_prefix))
PYTHON = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True, kw_only=True)
class RealDeb(Deb):
    """A package of Debian's, as it is."""

    path: Path
    text: str

    def control(self) -> str:
        return self.text.rstrip("\n") + "\n"

    def build(self, folder: Path) -> bytes:
        return self.path.read_bytes()


def real(package: LockedPackage, scratch: Path) -> RealDeb:
    path = smallstack.CACHE / "debs" / package.filename
    text = control_text(path, scratch / "control", RealRunner())
    return RealDeb(name=package.name, version=package.version, arch=package.arch, path=path, text=text)


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with otheruser.other_user() as found:
        yield found


@pytest.fixture(scope="module")
def world(user: User) -> Iterator[World]:
    """Root's, in the home of the user: he can read it there."""
    folder = user.home / "world"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinydistro, "STEPS", {**tinydistro.STEPS, **STEPS})
        with serving(folder) as made:
            tiny = [deb for deb in packages() if deb.name not in REPLACED]
            made.serve([*(real(package, folder) for package in smallstack.locked()["base"]), *tiny])
            keyring = shutil.copyfile(made.key.keyring, folder / "keyring.gpg")
            profile = folder / "profiles/tiny.toml"
            profile.write_text(profile.read_text().replace(str(made.key.keyring), str(keyring)))
            yield made


def hidden() -> str:
    """Return shell that takes away what makes a host one of Debian's family, and looks whether it is gone."""
    paths = {path.resolve() for name in PROGRAMS if (path := process.find(name))}
    lines = [shlex.join(["mount", "--bind", "/dev/null", str(path)]) for path in sorted(paths)]
    lines += [f"mount -t tmpfs -o ro tmpfs {folder}" for folder in FOLDERS if Path(folder).is_dir()]
    lines += [f'[ -z "$(command -v {name})" ] || exit 99' for name in PROGRAMS]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a bake leaves: its cache, its artifact, its lock file."""

    folder: Path
    said: str

    @property
    def digest(self) -> str:
        (path,) = self.folder.glob("out/*/tiny-*")
        return sha256_file(path)

    @property
    def lock(self) -> str:
        return (self.folder / "lock").read_text()

    @property
    def layers(self) -> dict[str, str]:
        infos = (json.loads(path.read_bytes()) for path in self.folder.glob("cache/layers/*/layer.json"))
        return {info["name"]: info["id"] for info in infos}


def commands(world: World, folder: Path) -> list[list[str]]:
    """Return a bake, and what writes down what it took."""
    cache = ["--target", "qemu", "--cache-dir", str(folder / "cache")]
    bake = tinybake.command(world.folder, What(), [*cache, "--output", folder / "out"])
    return [bake, tinybake.command(world.folder, What(verb="lock"), [*cache, "--output", folder / "lock", "--offline"])]


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Baked by root, with the apt of this host."""
    folder = tmp_path_factory.mktemp("whole")
    said = [RealRunner().run(words, env=PYTHON, timeout=300, capture=True).stdout for words in commands(world, folder)]
    return Place(folder=folder, said="".join(said))


@pytest.fixture(scope="module")
def bare(world: World, user: User, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Baked by the user, on a host that has none of it."""
    folder, said = user.home / "bare", ""
    user.run(["mkdir", folder, folder / "tmp"], tmp_path_factory.mktemp("stash"))
    for words in commands(world, folder):
        stash, env = tmp_path_factory.mktemp("stash"), {**PYTHON, "TMPDIR": str(folder / "tmp")}
        found = user.run(words, stash, SEEN, env=env, first=hidden(), check=False)
        assert found.returncode == 0, (found.stdout, found.tail)
        said += found.stdout
    return Place(folder=folder, said=said)


def test_a_bare_host_bakes_the_same_bytes_from_the_same_lock(whole: Place, bare: Place) -> None:
    assert "begin apt-tree" in bare.said
    assert "apt-tree" not in whole.said
    assert bare.lock == whole.lock
    assert '"name": "apt"' in bare.lock
    assert bare.digest == whole.digest


def test_layers_are_the_same_but_for_the_tree_that_apt_is_in(whole: Place, bare: Place) -> None:
    layers = bare.layers
    assert layers.pop("apt")
    assert layers == whole.layers
    assert {"base", "runtime", "tools"} <= layers.keys()


def test_nothing_is_left(bare: Place) -> None:
    assert left_on_disk(bare.folder / "cache") == []
    assert list((bare.folder / "tmp").iterdir()) == []
    assert list((bare.folder / "cache/apt").glob(".*")) == []


def test_a_tree_that_is_there_is_used_again(world: World, user: User, bare: Place, tmp_path: Path) -> None:
    def packages_asked() -> int:
        return sum("/pool/" in path for _, path, _ in world.site.asked)

    before = packages_asked()
    words = ["--target", "qemu", "--cache-dir", bare.folder / "cache", "--output", bare.folder / "again", "--refresh"]
    again = tinybake.command(world.folder, What(verb="lock"), words)
    found = user.run(again, tmp_path, SEEN, env=PYTHON, first=hidden(), check=False)
    assert found.returncode == 0, (found.stdout, found.tail)
    assert (bare.folder / "again").read_text() == bare.lock
    assert packages_asked() == before


def lock_of_debian(user: User, stash: Path, *more: str) -> Baked:
    """Ask for Debian's own versions, with the real profile, on the bare host."""
    words = ["lock", "--os", "debian", "--target", "qemu", "--cache-dir", str(user.home / "other"), *more]
    found = user.run(
        [sys.executable, "-m", "imagebuilder", *words], stash, SEEN, env=PYTHON, first=hidden(), check=False
    )
    return Baked(code=found.returncode, said="\n".join([found.stdout, *found.tail]))


def test_without_a_mirror_a_bare_host_is_told_to_name_one(user: User, tmp_path: Path) -> None:
    found = lock_of_debian(user, tmp_path)
    assert found.code == ToolMissingError.exit_code, found.said
    assert "apt is not on this host, and no mirror of debian is named" in found.said
    assert "--mirror debian=URL" in found.said


def test_an_archive_of_another_key_gets_no_tree(world: World, user: User, tmp_path: Path) -> None:
    """The keyring that comes with us has Debian's keys, not that of this archive."""
    site = world.archive.url
    world.site.serve("/debian/dists/trixie/InRelease", world.key.clearsign(world.archive.release))
    found = lock_of_debian(user, tmp_path, "--mirror", f"debian={site}")
    assert found.code != 0
    assert f"{site} has an index without a valid signature" in found.said
    assert not list((user.home / "other/layers").iterdir())
