"""containerd's image store, made the same whenever and by whomever it was filled.

Its databases say when each thing was made, and lie on disk as the order of transactions had it. Both have no meaning
for a node: the databases are written anew with fixed times. Names and values: containerd, ``core/metadata/buckets.go``
and ``core/snapshots/storage/bolt.go``.
"""

from __future__ import annotations

import struct
from pathlib import Path

from imagebuilder.direct import bolt
from imagebuilder.errors import ArtifactError

DATABASES = ("io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db")
LARGEST = 256 << 20  # bytes of a database; that of two images takes 128 KiB
TIMES = (b"createdat", b"updatedat")
# Go's time.Time.MarshalBinary: version, seconds since the year 1, nanoseconds, minutes east of UTC (-1: UTC itself).
EPOCH = struct.pack(">BqIh", 1, 62_135_596_800, 0, -1)


def settle(store: Path) -> None:
    """Write the databases of a store anew that nobody uses now; it need not be there.

    Args:
        store: the folder that is ``/var/lib/containerd`` in the image.

    Raises:
        ArtifactError: a database is damaged, or too large.
    """
    for name in DATABASES:
        path = store / name
        if not path.is_file():
            continue
        if path.stat().st_size > LARGEST:
            raise ArtifactError(f"{path} has more than {LARGEST} bytes", hint="preload fewer images")
        found = bolt.read(path.read_bytes())
        _fix_times(found)
        path.write_bytes(bolt.write(found))


def _fix_times(bucket: bolt.Bucket) -> None:
    for name, value in bucket.items.items():
        if isinstance(value, bolt.Bucket):
            _fix_times(value)
        elif name in TIMES and len(value) == len(EPOCH):
            bucket.items[name] = EPOCH
