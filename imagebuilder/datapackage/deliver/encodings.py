"""A package or pointer document, in each form that a transport carries. All of them give the same bytes every time.

What the agent accepts is the other half: ``imagebuilder/agent/agent.py``, ``decode``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from imagebuilder.content import sha256_bytes
from imagebuilder.datapackage.deliver.iso9660 import iso9660

FILE_NAME = "imagebuilder.ibdata"  # on disks and in sandboxes
PART_TYPE = "application/x-imagebuilder-data"
BOUNDARY = "==imagebuilder=="  # base64 has no such line
SMBIOS_PREFIX = b"io.systemd.credential.binary:imagebuilder.data="
NO_USER_DATA = b"#cloud-config\n{}\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """What is delivered.

    Attributes:
        data: a package file, or a pointer document.
        name: of the machine, as the file is called.
        url: where the file will be, for a kernel line; may be empty.
    """

    data: bytes
    name: str
    url: str = ""


def _lines(data: bytes) -> bytes:
    return base64.encodebytes(data)  # lines of 76, as RFC 2045 wants them


def mime(payload: Payload) -> bytes:
    """Return a MIME text with one part, to which cloud-init's own parts may be added."""
    head = (
        f'Content-Type: multipart/mixed; boundary="{BOUNDARY}"\nMIME-Version: 1.0\n\n--{BOUNDARY}\n'
        f"Content-Type: {PART_TYPE}\nContent-Transfer-Encoding: base64\n"
        f'Content-Disposition: attachment; filename="{FILE_NAME}"\n\n'
    )
    return head.encode() + _lines(payload.data) + f"--{BOUNDARY}--\n".encode()


def one_line(payload: Payload) -> bytes:
    """Return base64 without a line's end: some platforms keep it, and some tools stop there."""
    return base64.b64encode(payload.data)


def smbios(payload: Payload) -> bytes:
    """Return the OEM string that systemd and the agent know; QEMU takes the file's content as it is."""
    return SMBIOS_PREFIX + base64.b64encode(payload.data)


def seed(payload: Payload) -> Mapping[str, bytes]:
    """Return the files of a ``cidata`` volume.

    Beside ours are the two that cloud-init looks for, so that an image with it takes the disk without complaint. The
    instance is named by the machine, not by the package: another package does not make it another instance, for
    which cloud-init would make new host keys.
    """
    meta_data = json.dumps({"instance-id": f"imagebuilder-{payload.name}"}).encode() + b"\n"
    return {FILE_NAME: payload.data, "meta-data": meta_data, "user-data": NO_USER_DATA}


def cidata(payload: Payload) -> bytes:
    """Return an ISO image labelled ``cidata``, of cloud-init's NoCloud kind."""
    return iso9660("cidata", seed(payload))


def config_drive(payload: Payload) -> bytes:
    """Return an ISO image labelled ``config-2``, as OpenStack's Nova makes them."""
    meta_data = json.dumps({"uuid": f"imagebuilder-{payload.name}", "hostname": payload.name}).encode() + b"\n"
    return iso9660(
        "config-2", {"openstack/latest/meta_data.json": meta_data, "openstack/latest/user_data": mime(payload)}
    )


def secret(payload: Payload) -> bytes:
    """Return a Kubernetes Secret whose keys become the files of a ``cidata`` volume (KubeVirt's ``volumeLabel``)."""
    data = {name: base64.b64encode(content).decode() for name, content in seed(payload).items()}
    manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{payload.name}-data"}, "data": data}
    return json.dumps(manifest, indent=1).encode() + b"\n"


def kernel_line(payload: Payload) -> bytes:
    """Return the words for the kernel's command line.

    An address with a placeholder serves many machines, each with a package of its own: it has no checksum.
    """
    digest = "" if "{" in payload.url else f" imagebuilder.sha256={sha256_bytes(payload.data)}"
    return f"imagebuilder.data={payload.url}{digest}\n".encode()


# Form: how its file is called, and what makes it. The form mesos is several files: see mesos.py.
FORMS: Mapping[str, tuple[str, Callable[[Payload], bytes]]] = {
    "mime": ("user-data.txt", mime),
    "raw": (FILE_NAME, lambda payload: payload.data),
    "base64": ("data.b64", one_line),
    "smbios": ("smbios.txt", smbios),
    "cidata": ("cidata.iso", cidata),
    "config-drive": ("config-drive.iso", config_drive),
    "secret": ("secret.json", secret),
    "kernel-line": ("kernel-line.txt", kernel_line),
}
