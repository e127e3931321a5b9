"""apt's own packages, found without apt: what is trusted, what is taken, what is refused. The mirror is a folder."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pysequoia
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder import resources
from imagebuilder.errors import ImagebuilderError, ToolMissingError, UnresolvableError, UntrustedError
from imagebuilder.events import Stage, Tape
from imagebuilder.sources import aptseed, openpgp
from imagebuilder.sources.apt import Archive
from imagebuilder.sources.aptseed import Seed, ask, bring, closure
from imagebuilder.sources.download import Downloader

DAY = 86400.0
DATE, TODAY = "Sat, 15 Aug 2026 08:00:00 UTC", 1786780800.0 + 3600
ARCHIVE = Archive(name="debian", suite="tiny", arch="amd64", components=("main",), keyring="", mirror="http://m/debian")
INDEX = "dists/tiny/main/binary-amd64/Packages"


class Key:
    """A signing key of a test's own; ``keyring`` is what a client has of it."""

    def __init__(self, name: str, **more: Any) -> None:
        made = pysequoia.Tsk.generate(f"{name} <{name}@example.invalid>", **more)
        self._signer = made.signer()
        self.public = made.extract_certificate()
        self.keyring = bytes(self.public)

    def clearsign(self, text: str) -> bytes:
        return pysequoia.sign(self._signer, text.encode(), mode=pysequoia.SignatureMode.CLEAR)


@pytest.fixture(scope="module")
def key() -> Key:
    return Key("archive")


@pytest.fixture(scope="module")
def other() -> Key:
    return Key("other")


def stanza(name: str, **fields: str) -> str:
    """A stanza of an index; ``Pre_Depends`` is ``Pre-Depends``."""
    data = f"the package {name}".encode()
    full = {
        "Package": name, "Version": "1.0", "Architecture": "amd64", "Filename": f"pool/{name}.deb",
        "Size": str(len(data)), "SHA256": hashlib.sha256(data).hexdigest(), "Description": "x", **fields,
    }  # fmt: skip
    return "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in full.items() if value)


PACKAGES = (
    stanza("apt", Version="1:2.0~x-1", Depends="libapt (>= 1), editor | vim"),
    stanza("base", Essential="yes", Pre_Depends="awk"),
    stanza("gawk", Provides="awk"),
    stanza("libapt", Architecture="all"),
    stanza("mawk", Provides="awk", Priority="required"),
    stanza("unneeded", Depends="nowhere"),
    stanza("vim"),
)


@dataclass
class Mirror:
    """An archive in a folder, signed by a key."""

    folder: Path
    key: Key
    keyring: Path
    release: dict[str, str] = field(default_factory=dict)
    hashed: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.release = {"Codename": "tiny", "Date": DATE}
        for text in PACKAGES:
            name = text.split()[1]
            self.put(f"pool/{name}.deb", f"the package {name}".encode())
        self.serve("\n".join(PACKAGES))
        self.keyring.write_bytes(self.key.keyring)

    @property
    def archive(self) -> Archive:
        return replace(ARCHIVE, keyring=str(self.keyring), mirror=f"file://{self.folder}/")

    def put(self, path: str, data: bytes) -> Path:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(data)
        return self.folder / path

    def serve(self, index: str, ending: str = ".xz") -> None:
        """Serve another index, compressed in one way only."""
        pack: Mapping[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
        packed = pack[ending](index.encode())
        self.hashed = {INDEX.removeprefix("dists/tiny/") + ending: packed}
        self.put(INDEX + ending, packed)
        self.sign()

    def text(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.release.items()]
        lines += ["MD5Sum:", f" {'0' * 32} 1 main/binary-amd64/Packages.xz", "SHA256:"]
        lines += [f" {hashlib.sha256(data).hexdigest()} {len(data):>8} {name}" for name, data in self.hashed.items()]
        return "\n".join(lines) + "\n"

    def sign(self, key: Key | None = None) -> Path:
        return self.put("dists/tiny/InRelease", (key or self.key).clearsign(self.text()))

    def ask(self, before: str = "") -> Seed | None:
        return ask(self.archive, Downloader(), before)

    def refused(self, kind: type[ImagebuilderError], message: str, hint: str = "--mirror") -> ImagebuilderError:
        with pytest.raises(kind, match=message) as caught:
            self.ask()
        assert type(caught.value) is kind
        assert hint in caught.value.hint
        return caught.value


@pytest.fixture
def mirror(key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setattr(time, "time", lambda: TODAY)
    return Mirror(folder=tmp_path / "mirror", key=key, keyring=tmp_path / "archive.gpg")


def names(found: Seed | None) -> list[str]:
    assert found is not None
    return [package.name for package in found.packages]


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_apt_and_what_is_essential_are_found_with_what_they_need(mirror: Mirror, ending: str) -> None:
    mirror.serve("\n".join(PACKAGES), ending)
    found = mirror.ask()
    assert names(found) == ["apt", "base", "libapt", "mawk", "vim"]
    assert found is not None
    assert found.date == DATE
    apt, libapt = found.packages[0], found.packages[2]
    assert (apt.version, apt.filename) == ("1:2.0~x-1", "apt_1%3a2.0~x-1_amd64.deb")
    assert (libapt.arch, libapt.uri) == ("all", f"file://{mirror.folder}/pool/libapt.deb")


def test_packages_come_as_the_index_says_and_wrong_ones_are_not_kept(mirror: Mirror, tmp_path: Path) -> None:
    found, store, tape = mirror.ask(), tmp_path / "store", Tape()
    assert found is not None
    bring(found.packages, store, Stage(tape, "apt"))
    assert {path.name for path in store.iterdir()} == {package.filename for package in found.packages}
    assert (tape.events[-1].done, tape.events[-1].total) == (5, 5)
    # one that is damaged is fetched again; one that is another there is refused
    (store / found.packages[1].filename).write_bytes(b"damaged")
    bring(found.packages, store, Stage(tape, "apt"))
    assert (store / found.packages[1].filename).read_bytes() == b"the package base"
    (store / found.packages[2].filename).unlink()
    mirror.put("pool/libapt.deb", b"the package libapT")
    with pytest.raises(UntrustedError, match="wrong checksum"):
        bring(found.packages, store, Stage(tape, "apt"))
    assert not (store / found.packages[2].filename).exists()


def test_without_a_mirror_the_error_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError, match="apt is not on this host, and no mirror of debian is named") as caught:
        ask(replace(ARCHIVE, mirror=""), Downloader())
    assert "--mirror debian=URL" in caught.value.hint


# --- signatures


def test_an_index_of_another_key_is_refused(mirror: Mirror, other: Key) -> None:
    mirror.sign(other)
    mirror.refused(UntrustedError, "has an index without a valid signature", "its key")


def test_an_index_that_was_changed_after_signing_is_refused(mirror: Mirror) -> None:
    path = mirror.sign()
    path.write_bytes(path.read_bytes().replace(b"08:00:00", b"09:00:00"))
    mirror.refused(UntrustedError, "has an index without a valid signature", "its key")


@pytest.mark.parametrize("data", [b"", b"Codename: tiny\n", b"\0" * 99], ids=["empty", "unsigned", "zeros"])
def test_an_index_that_is_not_signed_is_refused(mirror: Mirror, data: bytes) -> None:
    mirror.put("dists/tiny/InRelease", data)
    mirror.refused(UntrustedError, "has an index without a valid signature", "its key")


def test_what_stands_around_the_signed_text_does_not_count(mirror: Mirror) -> None:
    path = mirror.sign()
    mirror.release["Codename"] = "other"
    before = mirror.text().encode()
    path.write_bytes(before + b"\n" + path.read_bytes() + before)
    try:
        assert names(mirror.ask())[0] == "apt"
    except UntrustedError as error:
        assert "without a valid signature" in error.message


def test_a_key_that_is_no_longer_valid_is_none(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Key("short", validity_seconds=int(400 * DAY))
    mirror.keyring.write_bytes(short.keyring)
    mirror.sign(short)
    assert names(mirror.ask())[0] == "apt"
    assert short.public.expiration is not None
    monkeypatch.setattr(time, "time", lambda: short.public.expiration.timestamp() + 1)  # type: ignore[union-attr]
    mirror.refused(UntrustedError, "has an index without a valid signature", "this machine's clock")


def test_one_known_key_of_several_is_enough(mirror: Mirror, key: Key, other: Key) -> None:
    mirror.keyring.write_bytes(other.keyring + key.keyring)
    assert names(mirror.ask())[0] == "apt"
    assert openpgp.verified(key.clearsign("x\n"), other.keyring + key.keyring) == b"x\n"
    assert openpgp.verified(key.clearsign("x\n"), b"no keys") is None


def test_fingerprints_are_those_of_the_keys(key: Key, other: Key) -> None:
    assert openpgp.fingerprints(str(key.public).encode()) == [key.public.fingerprint.upper()]
    assert len(openpgp.fingerprints(other.keyring + key.keyring)) == 2
    assert openpgp.fingerprints(b"<html>no</html>") == []
    assert openpgp.fingerprints(b"") == []


def test_a_keyring_that_this_host_lacks_comes_with_us(tmp_path: Path) -> None:
    (own := tmp_path / "debian-archive-keyring.gpg").write_bytes(b"x")
    assert openpgp.keyring_of(str(own)) == own
    ours = openpgp.keyring_of("/nonexistent/debian-archive-keyring.gpg")
    assert ours.is_relative_to(resources.folder("os_profiles"))
    found = openpgp.fingerprints(ours.read_bytes())
    # The automatic keys of Debian 12 and 13, as https://ftp-master.debian.org/keys.html has them.
    assert {"B8B80B5B623EAB6AD8775C45B7C5D7D6350947F8", "04B54C3CDCA79751B16BC6B5225629DF75B188BD"} <= set(found)
    with pytest.raises(ToolMissingError, match=r"/nonexistent/none[.]gpg is not on this host"):
        openpgp.keyring_of("/nonexistent/none.gpg")


# --- what the index says of itself


def test_an_index_that_is_no_longer_valid_is_refused(mirror: Mirror) -> None:
    mirror.release["Valid-Until"] = "Sat, 15 Aug 2026 08:30:00 UTC"
    mirror.sign()
    mirror.refused(UntrustedError, "has an index that is no longer valid", "it says 2026-08-15 09:00 UTC")


def test_an_index_from_the_future_is_refused(mirror: Mirror) -> None:
    mirror.release["Date"] = "Sat, 15 Aug 2026 09:05:00 UTC"
    mirror.sign()
    mirror.refused(UntrustedError, "has an index from the future", "set this machine's clock")


def test_the_index_of_another_release_is_refused(mirror: Mirror) -> None:
    mirror.release["Codename"] = "older"
    mirror.sign()
    mirror.refused(UntrustedError, "gives the index of older for that of tiny")


def test_an_index_does_not_go_back(mirror: Mirror) -> None:
    assert mirror.ask(DATE) is not None
    assert mirror.ask("Sat, 15 Aug 2026 12:00:00 UTC") is None, "servers lag a little"
    with pytest.raises(UntrustedError, match="older than the one that it gave before"):
        mirror.ask("Wed, 19 Aug 2026 08:00:00 UTC")


def test_an_index_of_another_hash_is_refused(mirror: Mirror) -> None:
    path = mirror.folder / f"{INDEX}.xz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    error = mirror.refused(UntrustedError, "sent a file whose hash is not the one")
    assert hashlib.sha256(data).hexdigest() in error.context


def test_an_index_that_is_longer_than_stated_is_refused(mirror: Mirror) -> None:
    path = mirror.folder / f"{INDEX}.xz"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UntrustedError, match="larger than"):
        mirror.ask()


def test_an_index_that_unpacks_to_too_much_is_refused(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aptseed, "TEXT_LIMIT", 100)
    for ending in (".gz", ".xz"):
        mirror.serve("\n".join(PACKAGES), ending)
        mirror.refused(UntrustedError, "has an index that cannot be read: it is not whole, or too large")


def test_an_index_is_taken_by_its_hash_where_the_archive_has_that(mirror: Mirror) -> None:
    (packed,) = mirror.hashed.values()
    mirror.release["Acquire-By-Hash"] = "yes"
    mirror.sign()
    (mirror.folder / f"{INDEX}.xz").unlink()
    mirror.refused(UnresolvableError, "is no file", "it must have this release")
    mirror.put(f"{Path(INDEX).parent}/by-hash/SHA256/{hashlib.sha256(packed).hexdigest()}", packed)
    assert names(mirror.ask())[0] == "apt"


def test_a_mirror_without_the_release_or_the_architecture(mirror: Mirror) -> None:
    other = replace(mirror.archive, arch="arm64")
    with pytest.raises(UnresolvableError, match="has no packages of tiny for arm64"):
        ask(other, Downloader())
    (mirror.folder / "dists/tiny/InRelease").unlink()
    mirror.refused(UnresolvableError, "is no file", "it must have this release")


def test_no_password_of_a_mirror_is_told(mirror: Mirror) -> None:
    with pytest.raises(UnresolvableError) as caught:
        closure([], replace(ARCHIVE, mirror="http://user:secret@m/debian"))
    assert caught.value.message.startswith("http://m/debian ")


# --- the closure


def stanzas(*texts: str) -> list[dict[str, str]]:
    return [dict(line.split(": ", 1) for line in text.splitlines()) for text in texts]


def taken(*texts: str) -> list[str]:
    return [package.name for package in closure(stanzas(*texts), ARCHIVE)]


def test_of_alternatives_the_first_there_is_and_none_twice() -> None:
    apt = stanza("apt", Depends="none | b:any (>= 1) [amd64] | c, c | b, virtual")
    assert taken(apt, stanza("b"), stanza("c", Provides="virtual (= 1)")) == ["apt", "b", "c"]
    assert taken(apt, stanza("c", Provides="virtual")) == ["apt", "c"]


def test_packages_that_need_each_other_come_to_an_end() -> None:
    assert taken(stanza("apt", Depends="a"), stanza("a", Pre_Depends="b"), stanza("b", Depends="a, apt")) == [
        "a", "apt", "b"
    ]  # fmt: skip


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(UnresolvableError, match="http://m/debian does not have what a needs: b or c"):
        taken(stanza("apt", Depends="a"), stanza("a", Depends="b (>= 2) | c"))
    with pytest.raises(UnresolvableError, match="does not have what a root tree needs: apt"):
        taken(stanza("apt", Architecture="arm64"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("Version", "../1", id="path-in-version"),
        pytest.param("Version", "", id="no-version"),
        pytest.param("SHA256", "", id="no-hash"),
        pytest.param("SHA256", "0" * 63, id="short-hash"),
        pytest.param("Size", "-1", id="negative"),
        pytest.param("Size", str((1 << 30) + 1), id="huge"),
        pytest.param("Filename", "a b", id="space-in-address"),
    ],
)
def test_a_package_that_is_not_described_as_one_must_be(name: str, value: str) -> None:
    with pytest.raises(UntrustedError, match=f"a package has no fitting {name}"):
        taken(stanza("apt", **{name: value}))


@given(st.text(max_size=300))
def test_any_text_is_an_index_or_refused(text: str) -> None:
    try:
        found = closure(aptseed._stanzas(text), ARCHIVE)
    except (UnresolvableError, UntrustedError):
        return
    assert all("/" not in package.filename for package in found)
