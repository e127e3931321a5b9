"""The packages that apt says it would fetch."""

from __future__ import annotations

import re
import urllib.parse

from imagebuilder.errors import UntrustedError
from imagebuilder.model import LockedPackage
from imagebuilder.sources.aptmessages import OTHER_MIRROR

PACKAGE_LIMIT = 1 << 30  # bytes of one package; the largest that we meet (a kernel) has 110 MiB
URI_LINE = re.compile(  # name, version and architecture as Debian's policy, section 5.6, allows them, quoted by apt
    r"'([^']+)' (([a-z0-9][a-z0-9+.-]*)_([A-Za-z0-9.+~%-]+)_([a-z0-9-]+)\.deb) ([0-9]{1,15}) SHA256:([0-9a-f]{64})"
)


def file_name(name: str, version: str, arch: str) -> str:
    """Return how apt names the file of a package: the colon of an epoch is quoted."""
    return f"{name}_{version.replace(':', '%3a')}_{arch}.deb"


def parse_uris(output: str) -> tuple[LockedPackage, ...]:
    """Parse ``apt-get --print-uris``: lines of ``'URI' FILE SIZE SHA256:HASH`` (apt-get(8)).

    Raises:
        UntrustedError: a line has no SHA256 (the index is too old to be trusted), or is not of this form; no
            package is left out silently.
    """
    packages = []
    for line in output.splitlines():
        if not line.startswith("'"):
            continue
        found = URI_LINE.fullmatch(line)
        if not found:
            raise UntrustedError("the index has no SHA256 for a package", context=line[:500], hint=OTHER_MIRROR)
        uri, filename, name, version, arch, size, digest = found.groups()
        if int(size) > PACKAGE_LIMIT:
            raise UntrustedError(f"the index says that {filename} has {size} bytes", context=uri, hint=OTHER_MIRROR)
        packages.append(
            LockedPackage(
                name=name, version=urllib.parse.unquote(version), arch=arch, filename=filename, uri=uri,
                sha256=digest, size=int(size),
            )
        )  # fmt: skip
    return tuple(sorted(packages, key=lambda package: (package.name, package.arch)))
