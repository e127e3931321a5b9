"""Which compressors an image's bytes depend on, and whether this machine's are the ones that it was made with.

They come with Python and with the packages of ours that bring one, so a lock file names them. What counts is not their
version but what they write: many versions write the same. That is seen by compressing a sample.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from imagebuilder import gzips

SAMPLE_SEED = b"imagebuilder"
_WORDS = 60_000  # in the sample: some 400 KB, more than a cluster of any format has
# What each format is compressed by, besides what is inside the image.
USED_BY: Mapping[str, tuple[str, ...]] = {
    "raw": (), "vhd": (), "qcow2": ("zstd",), "vmdk": ("zlib",), "ova": ("zlib",), "tar.gz": ("zlib",),
    "box": ("zlib", "zstd"),
}  # fmt: skip
INITRAMFS = "zstd"  # that of the small one


@dataclass(frozen=True, kw_only=True, slots=True)
class Compressor:
    """A compressor of this machine.

    Attributes:
        version: as it calls itself.
        sample: sha256 of what it makes of the sample, at the levels that we use.
    """

    version: str
    sample: str


def used(disk_format: str, *, small_initramfs: bool) -> dict[str, Compressor]:
    """Return, by name, the compressors that an image in this format depends on, as they are here."""
    names = {*USED_BY[disk_format], *([INITRAMFS] if small_initramfs else [])}
    data = sample()
    return {name: _KNOWN[name](data) for name in sorted(names)}


def sample() -> bytes:
    """Return bytes that compress to about a third: words of 1 to 12 bytes, in an order that chance has given."""
    bits = hashlib.shake_256(SAMPLE_SEED).digest(256 * 13 + _WORDS)
    words = [bits[at * 13 : at * 13 + 1 + bits[at * 13 + 12] % 12] for at in range(256)]
    return b"".join(words[number] for number in bits[256 * 13 :])


def _zlib(data: bytes) -> Compressor:
    stream = io.BytesIO()
    with gzips.Writer(stream) as stored:
        stored.write(data)
    packed = [stream.getvalue(), zlib.compress(data, 1)]
    return Compressor(version=zlib.ZLIB_RUNTIME_VERSION, sample=hashlib.sha256(b"".join(packed)).hexdigest())


def _zstd(data: bytes) -> Compressor:
    import zstandard

    packed = [zstandard.ZstdCompressor(level=level).compress(data) for level in (1, 9)]
    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    return Compressor(
        version=f"{version} of zstandard {zstandard.__version__}", sample=hashlib.sha256(b"".join(packed)).hexdigest()
    )


_KNOWN: Mapping[str, Callable[[bytes], Compressor]] = {"zlib": _zlib, "zstd": _zstd}
