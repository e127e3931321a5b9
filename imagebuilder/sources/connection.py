"""One HTTP request: opened within a deadline that is really kept, and failures put into one line.

requests and urllib3 time each system call, not the whole: a name server that is silent, three dead addresses
one after another, or a header sent byte by byte outlast any timeout given to them. So a request is opened in
a thread of its own, which is left behind when the deadline passes; it closes what it got, whenever that is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imagebuilder.content import CHUNK
from imagebuilder.errors import UnreachableError
from imagebuilder.sources.addresses import host_of

# The host's own certificates first: a mirror's private authority is known there, not in Python's list.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


class TransientError(Exception):
    """A failure that may pass: the connection was reset, or the server asked for patience.

    Attributes:
        answered: the server had begun to answer.
        retry_after: seconds the server asked to wait, or None.
    """

    def __init__(self, message: str, *, answered: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.answered, self.retry_after = answered, retry_after


class Answer:
    """An open answer: status, headers with lower-case names, and a body to be read in pieces."""

    def __init__(self, url: str, session: Any, response: Any, stall: float) -> None:
        self.url = url
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self._session, self._response, self._stall = session, response, stall

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        self._session.close()

    def pieces(self, until: float) -> Iterator[bytes]:
        """Yield the body as it arrives, undecoded.

        Raises:
            TransientError: the connection broke, or ended too early.
            UnreachableError: nothing came for the stall time, or ``until`` has passed.
        """
        host, received = host_of(self.url), 0
        read = getattr(self._response.raw, "read1", self._response.raw.read)  # read1: urllib3 2 and later
        try:
            while piece := read(CHUNK, decode_content=False):
                received += len(piece)
                yield piece
                if time.monotonic() > until:
                    raise UnreachableError(f"{host} is too slow: the transfer was given up at its deadline")
        except Exception as error:
            if not _is_network(error):
                raise
            if _first(error, TimeoutError) or _first_named(error, "ReadTimeoutError"):
                message = f"{host} stopped sending: nothing came for {self._stall:.0f} s"
                raise UnreachableError(message) from error
            raise TransientError(f"{host} {reason(error)[0]}", answered=True) from error
        expected = self.headers.get("content-length", "")
        if expected.isdigit() and received < int(expected):
            raise TransientError(f"{host} broke off at {received} of {expected} bytes", answered=True)


def open_once(method: str, url: str, headers: Mapping[str, str], *, until: float, stall: float) -> Answer:
    """Send one request and wait for the head of its answer; redirects are not followed.

    Raises:
        UnreachableError: no answer by ``until`` (of the monotonic clock), or none can come.
        TransientError: the connection was reset.
    """
    seconds = max(0.05, until - time.monotonic())
    results: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
    abandoned, gate = threading.Event(), threading.Lock()

    def work() -> None:
        try:
            result: Answer | Exception = _request(method, url, headers, seconds, stall)
        except Exception as error:
            result = error
        with gate:
            if abandoned.is_set() and isinstance(result, Answer):
                result.close()
            results.put(result)

    threading.Thread(target=work, name=f"open {host_of(url)}", daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        with gate:
            abandoned.set()
            late = None if results.empty() else results.get()
        if isinstance(late, Answer):
            late.close()
        raise _unreachable(url, f"did not answer within {seconds:.0f} s") from None
    except BaseException:  # Ctrl-C
        abandoned.set()
        raise
    if isinstance(result, Answer):
        return result
    text, transient = reason(result, seconds)
    if transient:
        raise TransientError(f"{host_of(url)} {text}", answered=False) from result
    raise _unreachable(url, text) from result


def reason(error: BaseException, seconds: float = 0) -> tuple[str, bool]:
    """Return why a connection failed, in a few words, and whether trying again can help."""
    import http.client
    import ssl

    if _first(error, socket.gaierror):
        return "cannot be found: its name does not resolve", False
    if _first(error, ConnectionRefusedError):
        return "refused the connection", False
    if certificate := _first(error, ssl.SSLCertVerificationError):
        said = time.strftime("this machine's clock says %Y-%m-%d", time.gmtime(time.time()))
        return f"has a certificate that is not accepted: {certificate.verify_message} ({said})", False
    if tls := _first(error, ssl.SSLError):
        return f"failed in TLS: {getattr(tls, 'reason', None) or 'no reason given'}", False
    lost = (ConnectionResetError, BrokenPipeError, http.client.IncompleteRead, http.client.RemoteDisconnected)
    if any(_first(error, kind) for kind in lost):
        return "reset the connection", True
    if _first(error, TimeoutError) or _first_named(error, "ConnectTimeoutError", "ReadTimeoutError"):
        return f"did not answer within {seconds:.0f} s", False
    numbers = (found.errno for found in _causes(error) if isinstance(found, OSError))
    if number := next((number for number in numbers if number in errno.errorcode), None):
        return f"cannot be reached: {os.strerror(number)}", False
    return f"did not answer in HTTP ({type(error).__name__})", False


def _request(method: str, url: str, headers: Mapping[str, str], seconds: float, stall: float) -> Answer:
    import requests  # 190 ms; most commands need no network

    session = requests.Session()
    try:
        response = session.request(
            method, url,
            # identity: the hash is over the bytes as the server keeps them
            headers={"Accept-Encoding": "identity", "Connection": "close", **headers},
            # an auth that adds nothing keeps requests from replacing our Authorization by one of ~/.netrc
            auth=(lambda request: request) if "Authorization" in headers else None,
            timeout=(seconds, max(seconds, stall)),
            allow_redirects=False, stream=True, verify=certificates(),
        )  # fmt: skip
    except BaseException:
        session.close()
        raise
    return Answer(url, session, response, stall)


def certificates() -> str | bool:
    """Return the file of the authorities that are trusted; True is Python's own list."""
    named = [os.environ[name] for name in CA_VARIABLES if os.environ.get(name)]
    return next((bundle for bundle in (*named, *CA_BUNDLES) if Path(bundle).exists()), True)


def _unreachable(url: str, text: str) -> UnreachableError:
    return UnreachableError(f"{host_of(url)} {text}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that is inside it: causes, contexts, and errors given as arguments."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if isinstance(found, BaseException) and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [getattr(found, "reason", None), found.__cause__, found.__context__, *found.args]


def _first(error: BaseException, kind: type[Any]) -> Any:
    return next((found for found in _causes(error) if isinstance(found, kind)), None)


def _first_named(error: BaseException, *names: str) -> bool:
    return any(type(found).__name__ in names for found in _causes(error))


def _is_network(error: BaseException) -> bool:
    module = type(error).__module__.partition(".")[0]
    return module in ("requests", "urllib3", "http") or isinstance(error, OSError)


@contextlib.contextmanager
def closing_on_error(answer: Answer) -> Iterator[Answer]:
    """Close an answer when the block raises; else it stays open for the caller."""
    try:
        yield answer
    except BaseException:
        answer.close()
        raise
