"""Makes the test vectors of the data package, with the standard library's tar and gzip and none of our code.

    python -m tests.vectors.make            writes tests/vectors/data-package/

Every bad package has one defect, and is well signed unless the defect is the signature. ``index.json`` states what a
reader is given besides the package, and for each file the code with which it is refused, or null.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

FOLDER = Path(__file__).resolve().parent / "data-package"
SECRETS = {"signing": 0x1F5C0B6E5A, "other": 0x2B7D3E9F11}  # of keys that nothing but these tests trusts
FILES = {
    "/etc/cni/net.d/10-bridge.conflist": b'{"cniVersion":"1.0.0","name":"pods","plugins":[]}\n',
    "/etc/kubernetes/manifests/hello.yaml": b"apiVersion: v1\nkind: Pod\nmetadata: {name: hello}\n",
    "/var/lib/kubelet/config.yaml": b"apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n",
}
CONDITIONS = {
    "now": "2026-11-24T12:00:00Z",
    "applied": {"cluster": "demo", "node": "node-1", "generation": 5},
    "machine": {
        "hostname": "node-1", "uuid": "4c4c4544-0051-3610-8052-b4c04f564831", "serial": "ABC123",
        "mac": ["52:54:00:12:34:56"],
    },
    "image": {
        "apiVersion": "imagebuilder/v1", "kind": "ImageFacts", "id": "debian-13-amd64-qemu-k1.35", "arch": "amd64",
        "init": "systemd", "kubelet": "1.35.8", "runtimes": ["containerd", "docker"],
    },
}  # fmt: skip

Data = dict[str, Any]


def key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(SECRETS[name], ec.SECP256R1())


def public(name: str, encoding: serialization.Encoding = serialization.Encoding.PEM) -> bytes:
    return key(name).public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(name: str) -> str:
    return hashlib.sha256(public(name, serialization.Encoding.DER)).hexdigest()[:32]


def canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    return text.encode()


def sign(data: bytes, name: str = "signing") -> bytes:
    return key(name).sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def manifest(files: Mapping[str, bytes] = FILES, /, **changes: Any) -> Data:
    entries = [
        {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "mode": "0600", "owner": "0:0"}
        for path, data in sorted(files.items())
    ]
    return {
        "apiVersion": "imagebuilder/v1", "kind": "DataPackage", "cluster": "demo", "node": "node-1",
        "role": "standalone", "generation": 7, "notBefore": "2026-11-24T00:00:00Z", "notAfter": "2027-11-24T00:00:00Z",
        "keyId": key_id("signing"), "selectors": {}, "requires": {}, "settings": {}, "files": entries, **changes,
    }  # fmt: skip


Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes, **fields: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def entries(said: Data | bytes, files: Mapping[str, bytes] = FILES, signature: bytes = b"") -> list[Entry]:
    data = said if isinstance(said, bytes) else canonical(said)
    names = [("manifest.json", data), ("manifest.sig", signature or sign(data))]
    return [entry(*item) for item in (*names, *((f"files{path}", files[path]) for path in sorted(files)))]


def tar(items: list[Entry], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as archive:
        for info, data in items:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=9, mtime=0)


def package(said: Data | bytes | None = None, files: Mapping[str, bytes] = FILES, **more: Any) -> bytes:
    return zipped(tar(entries(manifest(files) if said is None else said, files, **more)))


def at_path(path: str) -> bytes:
    return package(files={path: b"x"})


def edited(change: Callable[[list[Entry]], None]) -> bytes:
    items = entries(manifest())
    change(items)
    return zipped(tar(items))


def patched(at: int, data: bytes) -> bytes:
    """A package whose archive has other bytes somewhere."""
    whole = tar(entries(manifest()))
    return zipped(whole[:at] + data + whole[at + len(data) :])


def typed(kind: bytes) -> Callable[[list[Entry]], None]:
    def change(items: list[Entry]) -> None:
        info, _ = items[2]
        info.type, info.linkname, info.size = kind, "/etc/shadow", 0
        items[2] = (info, b"")

    return change


def pointer(**changes: Any) -> bytes:
    data = package()
    said = {
        "apiVersion": "imagebuilder/v1", "kind": "DataPackagePointer", "url": "https://files.example/node-1.ibdata",
        "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "keyId": key_id("signing"), **changes,
    }  # fmt: skip
    signature = said.pop("signature", None) or base64.b64encode(sign(canonical(said))).decode()
    return canonical(said | {"signature": signature})


def full() -> Data:
    return manifest(
        role="worker",
        selectors={"hostname": ["node-1"], "uuid": ["4C4C4544-0051-3610-8052-B4C04F564831"],
                   "serial": ["abc123", "xyz"], "mac": ["52:54:00:12:34:56"]},
        requires={"kubelet": {"min": "1.35", "below": "1.36"}, "runtime": "containerd", "arch": "amd64",
                  "init": "systemd"},
        settings={"hostname": "node-1.example.com", "proxy": {"http": "http://proxy.example:3128", "no": "localhost"},
                  "sshAuthorizedKeys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1zc2gtZWQyNTUxOQ== zoe@example"]},
    )  # fmt: skip


def without(said: Data, name: str) -> Data:
    return {key: value for key, value in said.items() if key != name}


def first_file(**changes: Any) -> bytes:
    said = manifest()
    said["files"][0] |= changes
    return package(said)


def many(count: int) -> bytes:
    return package(files={f"/etc/kubernetes/f{number:03}": b"" for number in range(count)})


def twice() -> bytes:
    said = manifest()
    said["files"].append(said["files"][-1])
    items = entries(said)
    return zipped(tar([*items, items[-1]]))


def behind_the_end() -> bytes:
    whole = tar(entries(manifest()))
    return zipped(whole[:-1] + b"x")


ENVELOPE = {
    "good-standalone": (None, "three files, any machine", lambda: package()),
    "good-full": (None, "every key of the manifest", lambda: package(full())),
    "good-empty": (None, "no files at all", lambda: package(files={})),
    "good-most-entries": (None, "254 files", lambda: many(254)),
    "good-longest-path": (None, "200 bytes, split in the header", lambda: at_path(f"/etc/kubernetes/{'a' * 92}/{'b' * 91}")),
    "size-packed": ("E_SIZE", "more than 1 MiB packed", lambda: package() + bytes(1 << 20)),
    "size-bomb": ("E_SIZE", "5 MiB of zeros in 5 KB", lambda: package(files={"/etc/kubernetes/zeros": bytes(5 << 20)})),
    "size-entries": ("E_SIZE", "255 files", lambda: many(255)),
    "size-manifest": ("E_SIZE", "a manifest above 256 KiB", lambda: package(manifest(padding=" " * (257 << 10)))),
    "format-empty": ("E_FORMAT", "no bytes", lambda: b""),
    "format-not-gzip": ("E_FORMAT", "a bare tar", lambda: tar(entries(manifest()))[:4096]),
    "format-gzip-name": ("E_FORMAT", "a file name in the gzip header", lambda: b"\x1f\x8b\x08\x08" + package()[4:10] + b"x\0" + package()[10:]),
    "format-truncated": ("E_FORMAT", "the last 100 bytes are missing", lambda: package()[:-100]),
    "format-crc": ("E_FORMAT", "a wrong CRC-32", lambda: package()[:-8] + bytes(4) + package()[-4:]),
    "format-trailing": ("E_FORMAT", "bytes behind the gzip member", lambda: package() + b"x"),
    "format-second-member": ("E_FORMAT", "a second gzip member", lambda: package() + zipped(b"x")),
}  # fmt: skip
ARCHIVE = {
    "format-order": ("E_FORMAT", "the signature before the manifest", lambda: edited(lambda items: items.insert(0, items.pop(1)))),
    "format-file-order": ("E_FORMAT", "the archive's order is not the manifest's", lambda: edited(lambda items: items.append(items.pop(2)))),
    "format-missing-file": ("E_FORMAT", "the last file is not in the archive", lambda: edited(lambda items: items.pop() and None)),
    "format-extra-file": ("E_FORMAT", "a file that the manifest does not name", lambda: edited(lambda items: items.append(entry("files/etc/kubernetes/x", b"x")))),
    "format-unsigned": ("E_FORMAT", "no manifest.sig", lambda: edited(lambda items: items.pop(1) and None)),
    "format-symlink": ("E_FORMAT", "a symbolic link", lambda: edited(typed(tarfile.SYMTYPE))),
    "format-hardlink": ("E_FORMAT", "a hard link", lambda: edited(typed(tarfile.LNKTYPE))),
    "format-device": ("E_FORMAT", "a block device", lambda: edited(typed(tarfile.BLKTYPE))),
    "format-fifo": ("E_FORMAT", "a FIFO", lambda: edited(typed(tarfile.FIFOTYPE))),
    "format-folder": ("E_FORMAT", "a folder", lambda: edited(typed(tarfile.DIRTYPE))),
    "format-sparse": ("E_FORMAT", "a GNU sparse file", lambda: edited(typed(b"S"))),
    "format-mode": ("E_FORMAT", "mode 0644 in the archive", lambda: edited(lambda items: setattr(items[2][0], "mode", 0o644))),
    "format-owner": ("E_FORMAT", "an owner's name", lambda: edited(lambda items: setattr(items[2][0], "uname", "root"))),
    "format-mtime": ("E_FORMAT", "a time", lambda: edited(lambda items: setattr(items[2][0], "mtime", 1))),
    "format-pax": ("E_FORMAT", "a pax header first", lambda: zipped(tar([entry("manifest.json", canonical(manifest()), pax_headers={"path": "../x"}), *entries(manifest())[1:]], tarfile.PAX_FORMAT))),
    "format-checksum": ("E_FORMAT", "a wrong checksum of a header", lambda: patched(148, b"000000")),
    "format-size-field": ("E_FORMAT", "a size in base 256", lambda: patched(124, b"\x80" + bytes(11))),
    "format-padding": ("E_FORMAT", "a byte that is not zero behind the content", lambda: patched(512 + 1023, b"x")),
    "format-tail": ("E_FORMAT", "a byte that is not zero in the end blocks", behind_the_end),
    "format-short-end": ("E_FORMAT", "not padded to 10240", lambda: zipped(tar(entries(manifest()))[:-512])),
    "format-long-end": ("E_FORMAT", "a record too many", lambda: zipped(tar(entries(manifest())) + bytes(10240))),
    "size-signature": ("E_SIZE", "73 bytes of signature", lambda: package(signature=bytes(73))),
    "digest-content": ("E_DIGEST", "one letter of a file is another", lambda: package(manifest(), {**FILES, "/etc/kubernetes/manifests/hello.yaml": FILES["/etc/kubernetes/manifests/hello.yaml"].replace(b"hello", b"jello")})),
    "digest-size": ("E_DIGEST", "a file is longer than the manifest says", lambda: package(manifest(), {**FILES, "/var/lib/kubelet/config.yaml": FILES["/var/lib/kubelet/config.yaml"] + b"x"})),
}  # fmt: skip
MANIFEST = {
    "format-json": ("E_FORMAT", "a manifest that is no JSON", lambda: package(b"{\n")),
    "format-utf8": ("E_FORMAT", "a manifest that is not UTF-8", lambda: package(b'{"\xff":1}\n')),
    "format-array": ("E_FORMAT", "a manifest that is an array", lambda: package(b"[]\n")),
    "format-deep": ("E_FORMAT", "100,000 arrays within each other", lambda: package(b"[" * 100_000)),
    "format-spaces": ("E_FORMAT", "not canonical: spaces", lambda: package(json.dumps(manifest(), sort_keys=True).encode() + b"\n")),
    "format-no-line-feed": ("E_FORMAT", "not canonical: no line feed at the end", lambda: package(canonical(manifest())[:-1])),
    "format-duplicate-key": ("E_FORMAT", "not canonical: a key is there twice", lambda: package(canonical(manifest()).replace(b'"node":', b'"node":"node-2","node":', 1))),
    "format-escaped": ("E_FORMAT", "not canonical: an escape where none is needed", lambda: package(canonical(manifest()).replace(b'"demo"', b'"\\u0064emo"', 1))),
    "format-unknown-key": ("E_FORMAT", "a key that is not in the format", lambda: package(manifest(script="/bin/sh"))),
    "format-unknown-deep-key": ("E_FORMAT", "such a key of a file", lambda: first_file(xattrs={})),
    "format-missing-key": ("E_FORMAT", "no notAfter", lambda: package(without(manifest(), "notAfter"))),
    "format-missing-owner": ("E_FORMAT", "a file without owner", lambda: package(manifest(files=[without(file, "owner") for file in manifest()["files"]]))),
    "format-null": ("E_FORMAT", "null for an optional key", lambda: package(manifest(requires={"arch": None}))),
    "format-version": ("E_FORMAT", "another apiVersion", lambda: package(manifest(apiVersion="imagebuilder/v2"))),
    "format-kind": ("E_FORMAT", "another kind", lambda: package(manifest(kind="Image"))),
    "format-role": ("E_FORMAT", "a role that is not one", lambda: package(manifest(role="master"))),
    "format-generation-zero": ("E_FORMAT", "generation 0", lambda: package(manifest(generation=0))),
    "format-generation-type": ("E_FORMAT", "the generation as a string", lambda: package(manifest(generation="7"))),
    "format-generation-true": ("E_FORMAT", "true as the generation", lambda: package(manifest(generation=True))),
    "format-generation-float": ("E_FORMAT", "7.0 as the generation", lambda: package(manifest(generation=7.0))),
    "format-generation-large": ("E_FORMAT", "a generation of 2^53", lambda: package(manifest(generation=1 << 53))),
    "format-node-name": ("E_FORMAT", "a node that is not a DNS name", lambda: package(manifest(node="Node_1"))),
    "format-time": ("E_FORMAT", "a day that does not exist", lambda: package(manifest(notBefore="2026-02-30T00:00:00Z"))),
    "format-time-order": ("E_FORMAT", "notAfter before notBefore", lambda: package(manifest(notAfter="2026-11-23T00:00:00Z"))),
    "format-selector-empty": ("E_FORMAT", "a selector without values", lambda: package(manifest(selectors={"mac": []}))),
    "format-ssh-line-feed": ("E_FORMAT", "two lines in one SSH key", lambda: package(manifest(settings={"sshAuthorizedKeys": ["ssh-ed25519 AAAA x\nssh-ed25519 AAAA y"]}))),
    "format-proxy-line-feed": ("E_FORMAT", "a line feed in a proxy", lambda: package(manifest(settings={"proxy": {"http": "http://p\nExecStart=/bin/sh"}}))),
    "format-proxy-quote": ("E_FORMAT", "a quote in a proxy", lambda: package(manifest(settings={"proxy": {"http": 'http://p"'}}))),
    "format-hostname": ("E_FORMAT", "a host name with a slash", lambda: package(manifest(settings={"hostname": "../x"}))),
    "format-file-mode": ("E_FORMAT", "mode 4755", lambda: first_file(mode="4755")),
    "format-file-owner": ("E_FORMAT", "owner 1000:1000", lambda: first_file(owner="1000:1000")),
    "format-file-digest": ("E_FORMAT", "a digest in upper case", lambda: first_file(sha256="A" * 64)),
    "format-file-size": ("E_FORMAT", "a size below zero", lambda: first_file(size=-1)),
    "format-twice": ("E_FORMAT", "a path twice", twice),
    "format-unsorted": ("E_FORMAT", "paths that are not sorted", lambda: package(manifest(files=manifest()["files"][::-1]))),
    "path-unit": ("E_PATH", "a unit", lambda: at_path("/etc/systemd/system/x.service")),
    "path-shadow": ("E_PATH", "the passwords", lambda: at_path("/etc/shadow")),
    "path-dots": ("E_PATH", "a way out of an allowed folder", lambda: at_path("/etc/kubernetes/../passwd")),
    "path-dot": ("E_PATH", "a dot as a part", lambda: at_path("/etc/kubernetes/./x")),
    "path-relative": ("E_PATH", "no leading slash", lambda: package(manifest({"etc/kubernetes/x": b"x"}), {"/etc/kubernetes/x": b"x"})),
    "path-empty-part": ("E_PATH", "two slashes", lambda: at_path("/etc/kubernetes//x")),
    "path-trailing-slash": ("E_PATH", "a folder", lambda: at_path("/etc/kubernetes/x/")),
    "path-line-feed": ("E_PATH", "a line feed", lambda: at_path("/etc/kubernetes/x\n")),
    "path-letter": ("E_PATH", "a letter that is not ASCII", lambda: package(manifest({"/etc/kubernetes/é": b"x"}), {"/etc/kubernetes/e": b"x"})),
    "path-long": ("E_PATH", "201 bytes", lambda: at_path(f"/etc/kubernetes/{'a' * 92}/{'b' * 92}")),
    "path-under-file": ("E_PATH", "a file as the folder of another", lambda: package(files={"/etc/kubernetes/a": b"", "/etc/kubernetes/a/b": b""})),
    "path-under-allowed-file": ("E_PATH", "below a path that is allowed as a file", lambda: at_path("/etc/default/kubelet/x")),
    "path-prefix": ("E_PATH", "a folder whose name begins like an allowed one", lambda: at_path("/etc/kubernetes.d/x")),
}  # fmt: skip
TRUST = {
    "key-unknown": ("E_KEY", "signed with a key that is not trusted", lambda: package(manifest(keyId=key_id("other")), signature=sign(canonical(manifest(keyId=key_id("other"))), "other"))),
    "signature-other-key": ("E_SIGNATURE", "names the trusted key, signed with another", lambda: package(signature=sign(canonical(manifest()), "other"))),
    "signature-other-manifest": ("E_SIGNATURE", "the signature of another manifest", lambda: package(signature=sign(canonical(manifest(generation=6))))),
    "signature-not-der": ("E_SIGNATURE", "a signature that is not DER", lambda: package(signature=b"x" * 70)),
    "early": ("E_EARLY", "not yet valid", lambda: package(manifest(notBefore="2027-01-01T00:00:00Z"))),
    "expired": ("E_EXPIRED", "no longer valid", lambda: package(manifest(notBefore="2026-09-01T00:00:00Z", notAfter="2026-11-20T00:00:00Z"))),
    "capability-kubelet-below": ("E_CAPABILITY", "an older kubelet is wanted", lambda: package(manifest(requires={"kubelet": {"min": "1.34", "below": "1.35"}}))),
    "capability-kubelet-min": ("E_CAPABILITY", "a newer kubelet is wanted", lambda: package(manifest(requires={"kubelet": {"min": "1.35.9", "below": "1.36"}}))),
    "capability-arch": ("E_CAPABILITY", "another architecture", lambda: package(manifest(requires={"arch": "arm64"}))),
    "capability-init": ("E_CAPABILITY", "another init", lambda: package(manifest(requires={"init": "sysvinit"}))),
    "pointer-good": (None, "a pointer to good-standalone", lambda: pointer()),
    "pointer-file-url": ("E_FORMAT", "an address that is not of http", lambda: pointer(url="file:///etc/shadow")),
    "pointer-unknown-key": ("E_FORMAT", "a key that is not in the format", lambda: pointer(headers={})),
    "pointer-size": ("E_FORMAT", "to more than 1 MiB", lambda: pointer(size=(1 << 20) + 1)),
    "pointer-key": ("E_KEY", "names a key that is not trusted", lambda: pointer(keyId=key_id("other"))),
    "pointer-signature": ("E_SIGNATURE", "the signature of something else", lambda: pointer(signature=base64.b64encode(sign(b"x")).decode())),
}  # fmt: skip
NODE = {
    "node-hostname": ("E_NODE", "another host name", lambda: package(manifest(selectors={"hostname": ["node-2"]}))),
    "node-one-of-two": ("E_NODE", "the MAC address fits, the serial number does not", lambda: package(manifest(selectors={"mac": ["52:54:00:12:34:56"], "serial": ["x"]}))),
    "generation-older": ("E_GENERATION", "older than what is applied", lambda: package(manifest(generation=4))),
}  # fmt: skip
GROUPS: Mapping[str, Mapping[str, tuple[str | None, str, Callable[[], bytes]]]] = {
    "read": {**ENVELOPE, **ARCHIVE, **MANIFEST}, "trust": TRUST, "node": NODE,
}  # fmt: skip


def make() -> dict[str, bytes]:
    """Every file of the folder, by name."""
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    made = {f"{name}.pub": public(name) for name in SECRETS}
    made["signing.key"] = key("signing").private_bytes(pem, pkcs8, serialization.NoEncryption())
    rows = []
    for stage, group in GROUPS.items():
        for name, (code, why, data) in group.items():
            file = f"{name}.{'json' if name.startswith('pointer') else 'ibdata'}"
            made[file] = data()
            rows.append({"file": file, "code": code, "stage": stage, "why": why})
    made["index.json"] = (
        json.dumps({**CONDITIONS, "trusted": ["signing.pub"], "vectors": rows}, indent=1) + "\n"
    ).encode()
    return made


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    for name, data in make().items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
