"""OpenPGP keys and signatures, without any program of the host (RFC 9580; section 7 is the clear-signed text)."""

from __future__ import annotations

import time
from pathlib import Path

from imagebuilder import resources
from imagebuilder.errors import ToolMissingError, UntrustedError

KEYRINGS = "keyrings"  # below os_profiles: what distributions sign with, for hosts of another family


def keyring_of(path: str) -> Path:
    """Return this host's own keyring, or the one of the same name that comes with us.

    Raises:
        ToolMissingError: there is neither.
    """
    for keyring in (Path(path), resources.folder("os_profiles") / KEYRINGS / Path(path).name):
        if keyring.is_file():
            return keyring
    raise ToolMissingError(f"the keyring {path} is not on this host", hint="imagebuilder doctor")


def fingerprints(keys: bytes) -> list[str]:
    """Return the fingerprint of each key in a file, in upper case; none where it holds no keys."""
    import pysequoia  # most commands verify nothing

    try:
        return [key.fingerprint.upper() for key in pysequoia.Cert.split_bytes(keys)]
    except (RuntimeError, ValueError):
        return []


def require_key(keys: bytes, fingerprint: str, *, url: str, name: str) -> None:
    """Refuse a file of keys that is not just the one key that a repository must have.

    Args:
        keys: the file.
        fingerprint: of the key, in upper case.
        url: where the file is from.
        name: of the repository.

    Raises:
        UntrustedError: it is not.
    """
    found = fingerprints(keys)
    if found != [fingerprint]:
        raise UntrustedError(
            f"the key at {url} is not the one that {name} must have",
            context=f"expected {fingerprint}\nfound    {', '.join(found) or 'no key'}",
            hint=f"name a mirror with its own key: [mirror.{name}] in imagebuilder.toml",
        )


def verified(message: bytes, keyring: bytes) -> bytes | None:
    """Return the signed text of a clear-signed message: what stands around it is not a part of it.

    One good signature is enough, as for apt: an archive signs with the key of each release that is in use.

    Args:
        message: the message.
        keyring: keys that may sign it, binary or armored.

    Returns:
        The text, or None where none of the keys has signed just this, or the one that has is no longer valid.
    """
    import pysequoia

    try:
        keys = pysequoia.Cert.split_bytes(keyring)
        found = pysequoia.verify(bytes=message, store=lambda ids: keys)
    except (RuntimeError, ValueError):
        return None
    now = time.time()
    good = {
        key.fingerprint
        for key in keys
        if not key.is_revoked and (key.expiration is None or key.expiration.timestamp() > now)
    }
    return found.bytes if any(signature.certificate in good for signature in found.valid_sigs) else None
