"""The one downloader: HTTP(S), ``file:`` addresses and plain paths.

Order of trust: an address is followed (never from https down to http), the size is capped while bytes arrive,
the hash is checked, and only then does the file get its name. Whoever does not answer is given up within
seconds. Messages name hosts, never credentials or query strings.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from imagebuilder.content import CHUNK, writing
from imagebuilder.errors import HostError, UnreachableError, UnresolvableError, UntrustedError
from imagebuilder.model import LockedFile
from imagebuilder.sources.addresses import host_of, local_path, redirected, safe_url, same_origin
from imagebuilder.sources.connection import Answer, TransientError, closing_on_error, open_once

CONNECT_SECONDS = 5.0  # from the request to the head of the answer: an unreachable source is given up
STALL_SECONDS = 30.0  # without a byte in the middle of a transfer
DEADLINE_SECONDS = 3600.0  # for one file, with its retries: 100 MB at 30 kB/s
CRAWL_SECONDS, SLOWEST = 60.0, 10_000  # once it sends: seconds, and as many more as this many bytes a second take
ATTEMPTS = 5  # the first, and four after errors that TransientError names
BACKOFF_SECONDS = 0.5  # doubled each time: 0.5 + 1 + 2 + 4 = 7.5 s in all
MAX_RETRY_AFTER = 10.0  # seconds: a server that asks for more patience is given up at once
MAX_REDIRECTS = 5  # dl.k8s.io and registries take one or two
REDIRECTS = (301, 302, 303, 307, 308)
BUSY = (429, 502, 503, 504)

AGAIN = "run the command again, or name another place with --mirror"
OnProgress = Callable[[int, int], None]  # bytes so far, bytes in all (0: unknown)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """An answer that was read whole: ``headers`` have lower-case names; ``url`` is where it came from."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """What is asked for, and until when (monotonic clock): the head of the answer, and all of it."""

    method: str
    url: str
    headers: Mapping[str, str]
    allowed: tuple[int, ...]
    head_until: float
    until: float


class Downloader:
    """Fetches files.

    Args:
        connect_timeout: seconds until an address that does not answer is given up, redirects included.
        stall_timeout: seconds without a byte in the middle of a transfer.
        deadline: seconds for one whole transfer, with its retries.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = CONNECT_SECONDS,
        stall_timeout: float = STALL_SECONDS,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self._connect, self._stall, self._deadline = connect_timeout, stall_timeout, deadline

    def fetch(
        self,
        url: str,
        destination: Path,
        *,
        sha256: str | None,
        max_size: int,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> LockedFile:
        """Fetch a file: verified first, then renamed into place.

        Args:
            url: ``http:``, ``https:``, ``file:`` or a plain path.
            destination: where the file goes.
            sha256: the hash it must have, or None when no hash is known yet.
            max_size: bytes above which it is refused.
            headers: added to the request; Authorization is not sent on to another host.
            on_progress: called with the bytes so far and in all (0 when unknown).

        Returns:
            Its name, address without credentials, hash and size.

        Raises:
            UnreachableError: no answer, or the transfer broke off again and again.
            UnresolvableError: the source answered that it does not have it, or does not give it.
            UntrustedError: wrong hash, too large, or a redirect that must not be followed.
            HostError: it cannot be written.
        """
        try:
            with writing(destination) as stream:
                sink = _Sink(stream, url, max_size, on_progress or _ignore)
                self._into(sink, url, headers or {})
                sink.expect(sha256)
        except OSError as error:
            message = f"cannot write {destination}: {error.strerror or error}"
            raise HostError(message, hint=f"df -h {destination.parent}") from error
        except (UnreachableError, UntrustedError) as error:
            error.hint = error.hint or AGAIN
            raise
        return LockedFile(name=destination.name, path=safe_url(url), sha256=sink.sha256, size=sink.size)

    def get_bytes(
        self,
        url: str,
        *,
        max_size: int,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        allowed: tuple[int, ...] = (),
    ) -> Response:
        """Return a small answer whole.

        Args:
            url: as for :meth:`fetch`.
            max_size: bytes above which it is refused.
            headers: added to the request; Authorization is not sent on to another host.
            method: ``GET``, or ``HEAD`` for the headers alone.
            allowed: statuses beside 2xx that are an answer, not an error.

        Raises:
            UnreachableError, UnresolvableError, UntrustedError: as for :meth:`fetch`.
        """
        if (path := local_path(url)) is not None:
            with _local(path) as (stream, size):
                _check_size(size, max_size, url)
                length = {"content-length": str(size)}
                return Response(url=url, status=200, headers=length, body=stream.read(max_size))

        def attempt(request: _Request) -> Response:
            with self._answer(request) as answer:
                pieces = [] if method == "HEAD" else _capped(answer, request, max_size)
                data = b"".join(pieces)
                return Response(url=answer.url, status=answer.status, headers=answer.headers, body=data)

        return self._with_retries(method, url, headers or {}, allowed, attempt)

    def probe(self, url: str) -> None:
        """Ask whether anything answers at an address; what it answers does not matter, but for a gateway.

        Raises:
            UnreachableError: nothing does, within the connect timeout.
        """
        if (path := local_path(url)) is not None:
            if not path.exists():
                raise UnreachableError(f"{path} does not exist")
            return
        until = time.monotonic() + self._connect
        try:
            with open_once("HEAD", url, {}, until=until, stall=self._stall) as answer:
                if answer.status in (502, 503, 504):
                    raise UnreachableError(f"{host_of(url)} answered with status {answer.status}")
        except TransientError as error:
            raise UnreachableError(str(error)) from error

    def _into(self, sink: _Sink, url: str, headers: Mapping[str, str]) -> None:
        if (path := local_path(url)) is not None:
            with _local(path) as (stream, size):
                sink.begin(size)
                while piece := stream.read(CHUNK):
                    sink.take(piece)
            return

        def attempt(request: _Request) -> None:
            with self._answer(request) as answer:
                sink.begin(_length(answer))
                for piece in answer.pieces(_patience(answer, request)):
                    sink.take(piece)

        self._with_retries("GET", url, headers, (), attempt)

    def _with_retries(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        allowed: tuple[int, ...],
        attempt: Callable[[_Request], T],
    ) -> T:
        """Try again after a transient error, after a pause, as long as the deadlines allow."""
        until = time.monotonic() + self._deadline
        head_until = time.monotonic() + self._connect
        for number in range(1, ATTEMPTS + 1):
            request = _Request(
                method=method, url=url, headers=headers, allowed=allowed, until=until,
                head_until=min(until, head_until),
            )  # fmt: skip
            try:
                return attempt(request)
            except TransientError as error:
                pause = max(BACKOFF_SECONDS * 2 ** (number - 1), error.retry_after or 0)
                limit = until if error.answered else request.head_until
                if number == ATTEMPTS or pause > MAX_RETRY_AFTER or time.monotonic() + pause >= limit:
                    tried = "" if number == 1 else f", {number} times"
                    raise UnreachableError(f"{error}{tried}", context=safe_url(url)) from error
                time.sleep(pause)
                if error.answered:
                    head_until = time.monotonic() + self._connect
        raise AssertionError("unreachable")

    def _answer(self, request: _Request) -> Answer:
        """Return the answer at the end of the redirects.

        Raises:
            TransientError: worth another attempt.
            UnreachableError, UnresolvableError, UntrustedError: not worth one.
        """
        url, headers = request.url, dict(request.headers)
        for _ in range(MAX_REDIRECTS + 1):
            answer = open_once(request.method, url, headers, until=request.head_until, stall=self._stall)
            with closing_on_error(answer):
                location = answer.headers.get("location", "")
                if answer.status not in REDIRECTS or not location:
                    _check_status(answer, request.allowed)
                    return answer
                target = redirected(url, location)
            answer.close()
            if not same_origin(url, target):
                headers.pop("Authorization", None)
            url = target
        raise UnresolvableError(f"{host_of(request.url)} redirects more than {MAX_REDIRECTS} times")


class _Sink:
    """Where a transfer goes: counts, caps, hashes and writes."""

    def __init__(self, stream: IO[bytes], url: str, max_size: int, on_progress: OnProgress) -> None:
        self._stream, self._url, self._max, self._on_progress = stream, url, max_size, on_progress
        self._digest, self._total = hashlib.sha256(), 0
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def begin(self, total: int) -> None:
        """Start (again) from the first byte; ``total`` is what the source states, 0 when nothing."""
        _check_size(total, self._max, self._url)
        self._stream.seek(0)
        self._stream.truncate()
        self._digest, self._total, self.size = hashlib.sha256(), total, 0

    def take(self, piece: bytes) -> None:
        self.size += len(piece)
        _check_size(self.size, self._max, self._url)
        self._digest.update(piece)
        self._stream.write(piece)
        self._on_progress(self.size, self._total)

    def expect(self, sha256: str | None) -> None:
        if sha256 is not None and self.sha256 != sha256.lower():
            raise UntrustedError(
                f"{safe_url(self._url)} has the wrong checksum; nothing of it was kept",
                context=f"expected sha256 {sha256}\nreceived sha256 {self.sha256}",
            )


def _ignore(done: int, total: int) -> None:
    """Show no progress."""


def _capped(answer: Answer, request: _Request, max_size: int) -> Iterator[bytes]:
    _check_size(_length(answer), max_size, request.url)
    received = 0
    for piece in answer.pieces(request.until):
        received += len(piece)
        _check_size(received, max_size, request.url)
        yield piece


def _patience(answer: Answer, request: _Request) -> float:
    """Return until when a body may take; one of unknown length has the whole deadline."""
    length = _length(answer)
    return min(request.until, time.monotonic() + CRAWL_SECONDS + length / SLOWEST) if length else request.until


def _length(answer: Answer) -> int:
    length = answer.headers.get("content-length", "")
    return int(length) if length.isdigit() else 0


def _check_size(size: int, max_size: int, url: str) -> None:
    if size > max_size:
        raise UntrustedError(f"{safe_url(url)} is larger than the {max_size} bytes it may have")


def _check_status(answer: Answer, allowed: tuple[int, ...]) -> None:
    status, host = answer.status, host_of(answer.url)
    if 200 <= status < 300 or status in allowed:
        return
    if status in BUSY:
        patience = answer.headers.get("retry-after", "")
        raise TransientError(
            f"{host} answered with status {status}", answered=True,
            retry_after=float(patience) if patience.isdigit() else None,
        )  # fmt: skip
    if status >= 500:
        raise UnreachableError(f"{host} answered with status {status}", context=safe_url(answer.url))
    verb = "does not have" if status in (404, 410) else f"does not give (status {status})"
    raise UnresolvableError(f"{host} {verb} {safe_url(answer.url)}")


@contextlib.contextmanager
def _local(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    if not path.is_file():
        raise UnresolvableError(f"{path} is no file")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UnresolvableError(f"{path} cannot be read: {error.strerror}") from error
    with stream:
        yield stream, path.stat().st_size
