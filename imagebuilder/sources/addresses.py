"""Addresses of files: which are local, and how they are named in messages, without credentials."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from imagebuilder.errors import UnresolvableError, UntrustedError, UsageError

PORTS = {"http": 80, "https": 443}


def local_path(url: str) -> Path | None:
    """Return the path of a ``file:`` address or of a plain path; None for ``http:`` and ``https:``.

    Raises:
        UsageError: the address is of another kind.
    """
    if url.startswith("file:"):
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{safe_url(url)} names a file on another host", hint="file:///path")
        return Path(unquote(parts.path))
    if "://" not in url:
        return Path(url)
    split(url)
    return None


def split(url: str) -> SplitResult:
    """Return the parts of an HTTP address.

    Raises:
        UsageError: it is none.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UsageError(f"{safe_url(url)} is not an http, https or file address")
    return parts


def host_of(url: str) -> str:
    """Return host and port of an address, for messages."""
    return urlsplit(url).netloc.rpartition("@")[2]


def safe_url(url: str) -> str:
    """Return an address without user, password, query and fragment: what may stand in a message."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    path = path.partition("?")[0].partition("#")[0]
    return f"{scheme}://{authority.rpartition('@')[2].partition('?')[0]}{slash}{path}"


def same_origin(one: str, other: str) -> bool:
    """Tell whether two addresses have the same scheme, host and port."""
    return _origin(one) == _origin(other)


def redirected(url: str, location: str) -> str:
    """Return where a redirect leads.

    Raises:
        UntrustedError: it leads from https to something less, or to something that is not HTTP.
        UnresolvableError: it leads nowhere.
    """
    try:
        target = urljoin(url, location)
        parts = split(target)
    except (ValueError, UsageError):
        raise UnresolvableError(f"{host_of(url)} redirects {safe_url(url)} to no HTTP address") from None
    if urlsplit(url).scheme == "https" and parts.scheme != "https":
        raise UntrustedError(
            f"{host_of(url)} redirects from https to http, which anyone can change on the way",
            context=f"{safe_url(url)} -> {safe_url(target)}",
        )
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or PORTS.get(parts.scheme)
