"""Ten thousand packages that are wrong: each has a code, none is written, none costs more memory than stated."""

from __future__ import annotations

import gzip
import random
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagebuilder.agent import agent
from tests.agent_node import FILES, WRITING, Node, archive, entries, key_id, manifest, pack, package, sign

MIB = 1 << 20
GOOD = package()
TAR = gzip.decompress(GOOD)


class ReadOnly(agent.Disk):
    """A disk that nothing may be written to while packages are verified."""

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        assert function not in WRITING
        assert function is not agent.os.open or not arguments[1] & (agent.os.O_WRONLY | agent.os.O_RDWR)
        return function(*arguments, **options)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node.make(tmp_path_factory.mktemp("fuzz") / "root")


@pytest.fixture(scope="module")
def host(node: Node) -> agent.Host:
    return node.host(ReadOnly(str(node.root)))


def verdict(host: agent.Host, data: bytes) -> str:
    """Return the code of a package; anything else than a refusal is a failure of the agent's."""
    try:
        agent.Agent(host).verify(agent.Candidate("fuzz", data), False)
    except agent.Refused as refused:
        assert refused.code in agent.CODES
        assert refused.text.isascii()
        assert refused.text.isprintable()
        return refused.code
    return "OK"


def test_the_unspoiled_one_is_accepted(host: agent.Host) -> None:
    assert verdict(host, GOOD) == "OK"


def spoiled(chance: random.Random, data: bytes) -> bytes:
    """Return bytes with some changed, removed, doubled or inserted."""
    body = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(body) or 1)
        size = chance.choice((1, 1, 2, 8, 512))
        kind = chance.randrange(5)
        if kind == 0:
            body[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del body[at : at + size]
        elif kind == 2:
            body[at:at] = body[at : at + size]
        elif kind == 3:
            body[at : at + size] = chance.randbytes(size)
        else:
            del body[max(at, 1) :]
    return bytes(body)


def test_spoiled_bytes(host: agent.Host) -> None:
    chance = random.Random(1)
    codes: dict[str, int] = {}
    for _ in range(4000):
        data = spoiled(chance, GOOD)
        code = verdict(host, data)
        # Level and system of the gzip header say nothing, and are not signed.
        assert code != "OK" or data[10:] == GOOD[10:]
        codes[code] = codes.get(code, 0) + 1
    assert codes["E_FORMAT"] > 2000


def test_spoiled_archives(host: agent.Host) -> None:
    chance = random.Random(2)
    codes = set()
    for _ in range(5000):
        data = spoiled(chance, TAR)
        # A checksum that is right lets the spoiled fields be looked at.
        if chance.random() < 0.5:
            data = checksummed(data)
        code = verdict(host, gzip.compress(data, 1, mtime=0))
        assert code != "OK" or (len(data) == len(TAR) and differs_in_checksum_form(data))
        codes.add(code)
    assert codes >= {"E_FORMAT", "E_SIGNATURE", "E_DIGEST"}


def checksummed(data: bytes) -> bytes:
    """Return an archive with the checksums of all blocks that look like headers made right."""
    body = bytearray(data)
    for at in range(0, len(body) - 511, 512):
        if body[at + 257 : at + 262] == b"ustar":
            body[at + 148 : at + 156] = b" " * 8
            body[at + 148 : at + 156] = b"%06o\0 " % sum(body[at : at + 512])
    return bytes(body)


def differs_in_checksum_form(data: bytes) -> bool:
    """Say whether an archive is the good one but for how its numbers are written."""
    pairs = enumerate(zip(data, TAR, strict=True))
    return all(a == b or {a, b} <= set(b"\0 ") or at % 512 in range(148, 156) for at, (a, b) in pairs)


WORDS = st.sampled_from(
    [
        "",
        "..",
        "/",
        "/etc/passwd",
        "/etc/kubernetes/../passwd",
        "0600",
        "2026-11-24T00:00:00Z",
        "x" * 300,
        "é",
        "\0",
        "\n",
    ]
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | WORDS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of everything in a document."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*at, key))


FULL = manifest(
    selectors={"uuid": ["11111111-2222-3333-4444-555555555555"]},
    requires={"kubelet": {"min": "1.35"}, "arch": "amd64"},
    settings={"hostname": "n", "sshAuthorizedKeys": ["ssh-ed25519 AAAA"], "proxy": {"http": "http://p"}},
)
PLACES = [path for path in paths_of(FULL) if path and path != ("keyId",)]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), new=ODD)
def test_signed_nonsense(host: agent.Host, place: tuple[Any, ...], new: Any) -> None:
    """A trusted signer that goes mad cannot do more than a code, either."""
    try:
        data = pack(archive(entries(changed(FULL, place, new), FILES)))
    except (ValueError, UnicodeError):
        return  # no JSON
    verdict(host, data)


def edited(**fields: Any) -> bytes:
    """Return a signed package with a header field of its third entry spoiled."""

    def edit(entry: tarfile.TarInfo) -> None:
        if entry.name.startswith("files/"):
            for name, value in fields.items():
                setattr(entry, name, value)

    return pack(archive(entries(manifest(), FILES), edit))


def listed(change: Callable[[list[tuple[str, bytes]]], Any]) -> bytes:
    """Return a signed package whose entries were changed."""
    found = entries(manifest(), FILES)
    change(found)
    return pack(archive(found))


HUGE = b"0" * 64
ODDITIES = {
    "link": edited(type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "symlink": edited(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "linkname": edited(linkname="/etc/passwd"),
    "device": edited(type=tarfile.CHRTYPE, devmajor=1),
    "folder": edited(type=tarfile.DIRTYPE),
    "fifo": edited(type=tarfile.FIFOTYPE),
    "contiguous": edited(type=tarfile.CONTTYPE),
    "old-regular": edited(type=tarfile.AREGTYPE),
    "sparse": edited(type=tarfile.GNUTYPE_SPARSE),
    "pax": edited(type=tarfile.XHDTYPE),
    "global": edited(type=tarfile.XGLTYPE),
    "long-name": edited(type=tarfile.GNUTYPE_LONGNAME),
    "setuid": edited(mode=0o4755),
    "owner": edited(uid=1),
    "owner-name": edited(uname="root"),
    "time": edited(mtime=1),
    "swapped": listed(lambda found: found.insert(2, found.pop())),
    "twice": listed(lambda found: found.insert(3, found[3])),
    "missing": listed(lambda found: found.pop()),
    "more": listed(lambda found: found.append(("files/etc/kubernetes/zz", b"x"))),
    "no-manifest": listed(lambda found: found.pop(0)),
    "no-signature": listed(lambda found: found.pop(1)),
    "gnu-tar": pack(TAR.replace(b"ustar\x0000", b"ustar  \0")),
    "no-end": pack(TAR[: len(TAR) - 10240]),
    "odd-end": pack(TAR + bytes(512)),
    "second-archive": pack(TAR + TAR),
    "nested-gzip": pack(GOOD),
    "named-gzip": gzip.compress(TAR, mtime=1),
    "deep-json": pack(archive([("manifest.json", b"[" * 200_000), ("manifest.sig", sign(b"[" * 200_000))])),
    "long-number": pack(archive([("manifest.json", b'{"a":%s}\n' % (b"9" * 200_000)), ("manifest.sig", b"x")])),
    "key-twice": pack(archive([("manifest.json", b'{"a":1,"a":1}\n'), ("manifest.sig", b"x")])),
    "no-key": pack(archive([("manifest.json", b"{}\n"), ("manifest.sig", b"x")])),
    "long-manifest": pack(archive([("manifest.json", bytes(257 << 10)), ("manifest.sig", b"x")])),
    "long-signature": pack(archive([("manifest.json", b"{}\n"), ("manifest.sig", bytes(257))])),
    "many-files": package({f"/etc/kubernetes/{number}": b"" for number in range(255)}),
    "bomb-manifest": pack(TAR[:124] + b"77777777777\0" + TAR[136:512] + bytes(200 * MIB)),
    "bomb-file": package({"/etc/kubernetes/x": bytes(4 * MIB)}),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in ODDITIES.items()])
def test_oddities_cost_no_memory(host: agent.Host, data: bytes) -> None:
    tracemalloc.start()
    try:
        assert verdict(host, data) in ("E_FORMAT", "E_SIZE", "E_KEY", "E_PATH")
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()


def test_base_256_sizes_are_refused(host: agent.Host) -> None:
    spoiled_size = bytearray(TAR)
    spoiled_size[124:136] = b"\x80" + bytes(10) + b"\xff"
    assert verdict(host, pack(checksummed(bytes(spoiled_size)))) == "E_FORMAT"


def test_through_the_whole_program_nothing_is_written(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "run", lambda *_, **__: 0)
    chance = random.Random(3)
    before = node.tree()
    for number in range(300):
        data = spoiled(chance, GOOD) if number % 2 else gzip.compress(checksummed(spoiled(chance, TAR)), 1, mtime=0)
        if verdict(node.host(ReadOnly(str(node.root))), data) == "OK":
            continue
        assert node.apply(data) in agent.CODES
        assert node.tree() == before
    assert key_id() == manifest()["keyId"]
