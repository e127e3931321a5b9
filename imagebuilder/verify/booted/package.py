"""A data package for one verification: a key pair of this run, and a standalone node with one static pod.

The pod is the pause image, which every node has for its sandboxes: it needs no registry, no program and no port. It is
on the pods' network, so that the CNI plugins are proven with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from imagebuilder.datapackage.cluster import Cluster
from imagebuilder.datapackage.create import SKEW, build_manifest
from imagebuilder.datapackage.format import pack
from imagebuilder.datapackage.generations import Entry
from imagebuilder.datapackage.manifest import format_time
from imagebuilder.datapackage.pkifiles import Pki
from imagebuilder.datapackage.render import render
from imagebuilder.datapackage.signing import key_id, sign
from imagebuilder.strict import validate

NODE, POD = "verify", "imagebuilder-verify"
TRUST_FILE = "/etc/imagebuilder/trust.d/imagebuilder-verify.pem"
VALIDITY = timedelta(hours=6)
# Any kubelet takes it: which one it is, is for another check to say.
VERSIONS = {"minimum": "1.0", "below": "2.0"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Throwaway:
    """What a guest gets: ``public`` in PEM for its trust.d, then ``data``, the package file."""

    public: bytes
    data: bytes = field(repr=False)


def pod(image: str) -> Mapping[str, Any]:
    """Return the static pod; YAML is a superset of JSON, so that kubelet and we read the same."""
    container = {"name": "pause", "image": image, "imagePullPolicy": "Never"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": "kube-system"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }


def throwaway(folder: Path, *, image: str, family: str, now: datetime) -> Throwaway:
    """Return a package that no other key than this run's has signed; the private half is forgotten at once.

    Args:
        folder: for the static pod's file, which may stay there.
        image: that the pod runs; it must be in the guest.
        family: of the guest, ``debian`` or ``redhat``.
        now: the time of the host, which the guest's clock is taken from.

    Raises:
        DataError: there is no package with this image's name.
    """
    manifest = folder / "pause.json"
    manifest.write_text(json.dumps(pod(image)))
    node = {"name": NODE, "role": "standalone", "family": family, "manifests": [str(manifest)]}
    cluster = validate({"name": NODE, "kubernetes": VERSIONS, "nodes": [node]}, Cluster, "verify")
    files = render(cluster, cluster.nodes[0], Pki(folder))
    key = ec.generate_private_key(ec.SECP256R1())
    entry = Entry(
        generation=1, content="", not_before=format_time(now - SKEW), not_after=format_time(now + VALIDITY)
    )  # fmt: skip
    said = build_manifest(cluster, cluster.nodes[0], files, key_id(key.public_key()), entry)
    data = pack(said, {path: file.data for path, file in files.items()}, sign(key, said.to_bytes()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Throwaway(public=public, data=data)
