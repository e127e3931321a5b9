"""What the downloader says, decides and hides; nothing here opens a connection."""

from __future__ import annotations

import errno
import hashlib
import http.client
import socket
import ssl
from pathlib import Path

import pytest

from imagebuilder.errors import HostError, UnreachableError, UnresolvableError, UntrustedError, UsageError
from imagebuilder.sources.addresses import host_of, local_path, redirected, safe_url, same_origin
from imagebuilder.sources.connection import reason
from imagebuilder.sources.download import Downloader

DATA = b"some bytes"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@dl.k8s.io/a/b?token=secret#secret", "https://dl.k8s.io/a/b"),
        ("https://user:secret@dl.k8s.io?token=secret", "https://dl.k8s.io"),
        ("https://user:se@cret@dl.k8s.io:8443/x", "https://dl.k8s.io:8443/x"),
        ("http://dl.k8s.io", "http://dl.k8s.io"),
        ("/a/plain/path", "/a/plain/path"),
        ("ftp://user:secret@host/x", "ftp://host/x"),
    ],
)
def test_an_address_in_a_message_has_no_credentials(url: str, shown: str) -> None:
    assert safe_url(url) == shown
    assert "secret" not in host_of(url)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b%20c", Path("/a/b c")),
        ("file://localhost/a", Path("/a")),
        ("file:relative/x", Path("relative/x")),
        ("/a/b", Path("/a/b")),
        ("https://dl.k8s.io/x", None),
    ],
)
def test_local_addresses(url: str, path: Path | None) -> None:
    assert local_path(url) == path


@pytest.mark.parametrize("url", ["ftp://host/x", "file://elsewhere/x", "https:///x", "http://host:port/x", "https://"])
def test_other_addresses_are_refused_without_their_credentials(url: str) -> None:
    with pytest.raises(UsageError):
        local_path(url)


def test_a_redirect_never_leads_down_to_http() -> None:
    with pytest.raises(UntrustedError) as caught:
        redirected("https://dl.k8s.io/x", "http://user:secret@dl.k8s.io/x?secret")
    assert "secret" not in caught.value.message + caught.value.context
    assert redirected("http://dl.k8s.io/x", "https://dl.k8s.io/x") == "https://dl.k8s.io/x"
    assert redirected("https://dl.k8s.io/a/b", "../c") == "https://dl.k8s.io/c"


@pytest.mark.parametrize("location", ["file:///etc/shadow", "ftp://x/y", "https://", "http://[::1"])
def test_a_redirect_leads_to_http_only(location: str) -> None:
    with pytest.raises(UnresolvableError):
        redirected("http://dl.k8s.io/x", location)


def test_origins() -> None:
    assert same_origin("https://dl.k8s.io/a", "https://dl.k8s.io:443/b")
    assert not same_origin("https://dl.k8s.io/a", "http://dl.k8s.io/a")
    assert not same_origin("https://dl.k8s.io/a", "https://cdn.dl.k8s.io/a")


def wrapped(error: BaseException) -> OSError:
    outer = OSError("https://user:secret@host/ failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "says", "transient"),
    [
        (socket.gaierror(-2, "Name or service not known"), "its name does not resolve", False),
        (ConnectionRefusedError(), "refused the connection", False),
        (ConnectionResetError(), "reset the connection", True),
        (http.client.RemoteDisconnected("x"), "reset the connection", True),
        (http.client.IncompleteRead(b""), "reset the connection", True),
        (TimeoutError(), "did not answer within 5 s", False),
        (ssl.SSLError(1, "x"), "failed in TLS", False),
        (OSError(errno.ENETUNREACH, "x"), "cannot be reached: Network is unreachable", False),
        (http.client.BadStatusLine("x"), "did not answer in HTTP", False),
    ],
)
def test_a_failure_is_put_into_one_line(error: BaseException, says: str, transient: bool) -> None:
    text, again = reason(wrapped(error), 5)
    assert says in text
    assert again is transient
    assert "secret" not in text
    assert "\n" not in text


def test_a_local_file_is_fetched_and_verified(tmp_path: Path) -> None:
    source, seen = tmp_path / "source", list[tuple[int, int]]()
    source.write_bytes(DATA)
    locked = Downloader().fetch(
        f"file://{source}", tmp_path / "x" / "y", sha256=SHA256, max_size=10, on_progress=lambda *at: seen.append(at)
    )
    assert (locked.name, locked.sha256, locked.size) == ("y", SHA256, 10)
    assert (tmp_path / "x" / "y").read_bytes() == DATA
    assert seen == [(10, 10)]


@pytest.mark.parametrize(("sha256", "max_size"), [("0" * 64, 10), (SHA256, 9)], ids=["hash", "size"])
def test_nothing_is_left_of_what_is_refused(tmp_path: Path, sha256: str, max_size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)
    target.mkdir()
    with pytest.raises(UntrustedError):
        Downloader().fetch(str(source), target / "y", sha256=sha256, max_size=max_size)
    assert list(target.iterdir()) == []


def test_an_old_file_stays_when_a_new_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    (tmp_path / "y").write_bytes(b"old")
    with pytest.raises(UntrustedError):
        Downloader().fetch(str(tmp_path / "source"), tmp_path / "y", sha256="0" * 64, max_size=10)
    assert (tmp_path / "y").read_bytes() == b"old"


def test_missing_local_files(tmp_path: Path) -> None:
    with pytest.raises(UnresolvableError):
        Downloader().fetch(str(tmp_path / "no"), tmp_path / "y", sha256=None, max_size=1)
    with pytest.raises(UnresolvableError):
        Downloader().get_bytes(str(tmp_path), max_size=1)
    with pytest.raises(UnreachableError):
        Downloader().probe(str(tmp_path / "no"))


def test_what_cannot_be_written_is_the_hosts_fault(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError):
        Downloader().fetch(str(tmp_path / "source"), tmp_path / "file" / "y", sha256=None, max_size=10)


def test_a_small_local_answer(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    answer = Downloader().get_bytes(str(tmp_path / "source"), max_size=10)
    assert (answer.body, answer.headers["content-length"]) == (DATA, "10")
    with pytest.raises(UntrustedError):
        Downloader().get_bytes(str(tmp_path / "source"), max_size=9)
