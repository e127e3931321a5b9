"""A small apt archive on 127.0.0.1, made from nothing: tiny packages, a throwaway key, an index of our own.

It is a stand-in for a distribution's archive and for pkgs.k8s.io and download.docker.com: what apt does with it is
real, what is in its packages is not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local_servers import Site

DATE = "Sat, 15 Aug 2026 08:00:00 UTC"
EPOCH = 1786780800  # the same
TOOLS = ("apt-get", "dpkg-deb", "gpg", "gpgv", "mmdebstrap")


def missing_tools() -> list[str]:
    return [name for name in TOOLS if shutil.which(name) is None]


def run(*argv: str | Path, data: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
    return subprocess.run(
        [str(word) for word in argv], input=data, capture_output=True, check=True, timeout=60, env=env
    ).stdout


class Key:
    """A throwaway signing key in a home of its own; ``keyring`` is what a client has of it."""

    def __init__(self, name: str, *, clock: str = "", expires: str = "never") -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ib-gpg-"))  # short: the agent's socket lies in it
        self._gpg = ("gpg", "--homedir", self.home, "--batch", "--quiet", "--passphrase", "", "--pinentry-mode",
                     "loopback")  # fmt: skip
        if clock:  # as on a machine where it is that time, for instance 20400101T000000
            self._gpg = (*self._gpg, "--faked-system-time", f"{clock}!")
        run(*self._gpg, "--quick-generate-key", f"{name} <{name}@example.invalid>", "ed25519", "sign", expires)
        listed = run(*self._gpg, "--list-keys", "--with-colons").decode()
        self.fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
        self.armored = run(*self._gpg, "--armor", "--export")
        self.keyring = self.home / "public.gpg"
        self.keyring.write_bytes(run(*self._gpg, "--export"))

    def clearsign(self, text: str) -> bytes:
        return run(*self._gpg, "--clearsign", data=text.encode())

    def detach(self, text: str) -> bytes:
        return run(*self._gpg, "--armor", "--detach-sign", data=text.encode())

    def close(self) -> None:
        run("gpgconf", "--homedir", self.home, "--kill", "gpg-agent")
        shutil.rmtree(self.home, ignore_errors=True)  # its agent removes its sockets meanwhile


@dataclass(frozen=True, kw_only=True)
class Deb:
    """A package: its name in the pool has no epoch, as in Debian."""

    name: str
    version: str = "1.0"
    arch: str = "amd64"
    fields: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def filename(self) -> str:
        return f"{self.name}_{self.version.partition(':')[2] or self.version}_{self.arch}.deb"

    def control(self) -> str:
        lines = [f"Package: {self.name}", f"Version: {self.version}", f"Architecture: {self.arch}"]
        lines += ["Maintainer: nobody <nobody@example.invalid>", "Description: a stand-in"]
        return "\n".join([*lines, *(f"{key}: {value}" for key, value in self.fields.items())]) + "\n"

    def build(self, folder: Path) -> bytes:
        """Return the package's bytes, built below ``folder``."""
        tree = folder / self.filename.removesuffix(".deb")
        for path, data in self.files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
            (tree / path).chmod(0o755)
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(self.control())
        for path in [tree, *tree.rglob("*")]:  # the same package is the same bytes, whenever it is built
            os.utime(path, (EPOCH, EPOCH))
        out, env = folder / self.filename, {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, out, env=env)
        return out.read_bytes()


@dataclass
class LocalArchive:
    """Packages in a suite, on a site. What is served can be spoilt by another ``site.serve``."""

    site: Site
    url: str
    suite: str
    debs: dict[str, bytes]
    packages: bytes
    release: str


def index_of(debs: Iterable[Deb], built: Mapping[str, bytes], pool: str) -> bytes:
    return "\n".join(
        f"{deb.control()}Filename: {pool}{deb.filename}\nSize: {len(built[deb.filename])}\n"
        f"SHA256: {hashlib.sha256(built[deb.filename]).hexdigest()}\n"
        for deb in debs
    ).encode()


def release_of(suite: str, component: str, files: Mapping[str, bytes]) -> str:
    lines = ["Origin: stand-in", f"Suite: {suite}", f"Codename: {suite}", f"Date: {DATE}", "Architectures: amd64",
             f"Components: {component}", "SHA256:"]  # fmt: skip
    lines += [f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}" for name, data in files.items()]
    return "\n".join(lines) + "\n"


def publish(
    site: Site, key: Key, debs: Iterable[Deb], work: Path, *, suite: str = "tiny", prefix: str = "/debian",
    component: str = "main",
) -> LocalArchive:  # fmt: skip
    """Serve packages as a distribution's archive does, or, with the suite ``/``, flat as pkgs.k8s.io does."""
    debs, flat = list(debs), suite == "/"
    work.mkdir(parents=True, exist_ok=True)
    built = {deb.filename: deb.build(work) for deb in debs}
    pool = "amd64/" if flat else f"pool/{component}/"
    for name, data in built.items():
        for path in {name, name.replace("+", "%2b").replace("~", "%7e")}:  # apt quotes these
            site.serve(f"{prefix}/{pool}{path}", data)
    packages = index_of(debs, built, pool)
    where = "" if flat else f"/dists/{suite}"
    file = "Packages" if flat else f"{component}/binary-amd64/Packages"
    release = release_of("stable" if flat else suite, component, {file: packages})
    site.serve(f"{prefix}{where}/{file}", packages)
    site.serve(f"{prefix}{where}/Release", release.encode())
    site.serve(f"{prefix}{where}/InRelease", key.clearsign(release))
    site.serve(f"{prefix}{where}/Release.gpg", key.detach(release))
    return LocalArchive(
        site=site, url=f"{site.url}{prefix}", suite=suite, debs=built, packages=packages, release=release
    )
