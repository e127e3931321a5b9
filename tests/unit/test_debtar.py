"""The archive inside a package: what is read of it, and what no package may bring, whatever its index says."""

from __future__ import annotations

import pytest
from debs import BLOCK, entry, folder, header, link, symlink, tar
from hypothesis import example, given
from hypothesis import strategies as st

from imagebuilder.errors import ArtifactError
from imagebuilder.sources import debtar
from imagebuilder.sources.debtar import Kind, members

LONG = b"usr/" + b"/".join([b"n" * 60] * 5)
GOOD = tar(
    folder(b"./"), folder(b"./usr/"), entry(b"./usr/tool", b"bytes", mode=0o4755, gid=42),
    link(b"./usr/same", b"./usr/tool"), symlink(b"./usr/sh", b"../bin/dash"), entry(b"./" + LONG, b"x"),
    symlink(b"./usr/far", b"/" + LONG),
)  # fmt: skip


def test_members_are_as_the_headers_say() -> None:
    found = list(members(GOOD))
    assert [(member.path, member.kind.value) for member in found] == [
        (b"", "folder"), (b"usr", "folder"), (b"usr/tool", "file"), (b"usr/same", "link"), (b"usr/sh", "symlink"),
        (LONG, "file"), (b"usr/far", "symlink"),
    ]  # fmt: skip
    tool, same, shell = found[2:5]
    assert (tool.mode, tool.uid, tool.gid, tool.mtime) == (0o4755, 0, 42, 1_700_000_000)
    assert GOOD[tool.offset : tool.offset + tool.size] == b"bytes"
    assert same.target == b"usr/tool"
    assert shell.target == b"../bin/dash"
    assert found[6].target == b"/" + LONG


def test_a_name_may_be_split_as_posix_does() -> None:
    data = tar(header(b"name", magic=b"ustar\00000", prefix=b"./usr/share"))
    assert [member.path for member in members(data)] == [b"usr/share/name"]


def test_large_numbers_may_be_binary() -> None:
    raw = bytearray(header(b"a"))
    raw[136:148] = b"\x80" + (1 << 32).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    assert [member.mtime for member in members(tar(bytes(raw)))] == [1 << 32]


REFUSED = {
    "absolute": (entry(b"/etc/passwd", b"x"), "leads out"),
    "above": (entry(b"./../etc/passwd", b"x"), "leads out"),
    "above-within": (entry(b"./usr/../../etc", b"x"), "leads out"),
    "dot-within": (entry(b"./usr/./a", b"x"), "leads out"),
    "empty-part": (entry(b"./usr//a", b"x"), "leads out"),
    "line-break": (entry(b"./a\nb", b"x"), "line break"),
    "long-name-part": (entry(b"./" + b"n" * 256, b"x"), "leads out"),
    "long-path": (entry(b"./" + (b"n" * 50 + b"/") * 90 + b"n", b"x"), "too long"),
    "deep-path": (entry(b"./" + b"n/" * 129 + b"n", b"x"), "too long"),
    "far-symlink": (symlink(b"./a", b"../" * 129 + b"etc"), "too far"),
    "nothing": (entry(b"", b"x"), "no folder"),
    "slash-on-a-file": (entry(b"./a/", b"x"), "no folder"),
    "character-device": (header(b"./dev/mem", kind=b"3"), "no file, folder or link"),
    "block-device": (header(b"./dev/sda", kind=b"4"), "no file, folder or link"),
    "pipe": (header(b"./pipe", kind=b"6"), "no file, folder or link"),
    "pax": (header(b"./x", kind=b"x", size=10) + bytes(BLOCK), "no file, folder or link"),
    "sparse": (header(b"./x", kind=b"S"), "no file, folder or link"),
    "twice": (entry(b"./a", b"1") + entry(b"./a", b"2"), "twice"),
    "link-to-nothing": (link(b"./a", b"./b"), "no file before it"),
    "link-to-a-folder": (folder(b"./b") + link(b"./a", b"./b"), "no file before it"),
    "link-to-a-symlink": (symlink(b"./b", b"/etc") + link(b"./a", b"./b"), "no file before it"),
    "link-out": (link(b"./a", b"../../etc/shadow"), "leads out"),
    "symlink-to-nothing": (symlink(b"./a", b""), "leads nowhere"),
    "folder-with-content": (header(b"./a/", kind=b"5", size=4) + bytes(BLOCK), "no file has a content"),
    "the-builders-owner": (entry(b"./a", b"x", uid=1000), "owner 1000:0"),
    "the-builders-group": (entry(b"./a", b"x", gid=100), "owner 0:100"),
    "too-long": (header(b"./a", size=1 << 20), "longer than the archive"),
    "from-the-far-future": (entry(b"./a", b"x", mtime=1 << 33 | 1), "no file system knows"),
    "long-name-for-nobody": (header(b"L", kind=b"L", size=5) + bytes(BLOCK), "belongs to no member"),
    "long-name-twice": ((header(b"L", kind=b"L", size=5) + b"name".ljust(BLOCK, b"\0")) * 2, "comes twice"),
    "long-name-too-long": (header(b"L", kind=b"L", size=1 << 20) + bytes(1 << 20), "too long"),
}


@pytest.mark.parametrize(("entries", "why"), [pytest.param(*value, id=key) for key, value in REFUSED.items()])
def test_what_no_package_may_bring_is_refused(entries: bytes, why: str) -> None:
    with pytest.raises(ArtifactError, match=why):
        list(members(tar(folder(b"./"), entries)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"", "no end", id="empty"),
        pytest.param(entry(b"a", b"x"), "no end", id="cut-at-a-header"),
        pytest.param(entry(b"a", b"x")[:700], "no end|longer", id="cut-in-a-file"),
        pytest.param(b"\x01" * BLOCK + bytes(BLOCK), "not octal|sum", id="no-tar"),
        pytest.param(GOOD.replace(b"usr/tool", b"usr/tooL", 1), "sum is wrong", id="changed"),
    ],
)
def test_what_is_no_whole_archive_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ArtifactError, match=why):
        list(members(data))


def test_no_archive_lists_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debtar, "MEMBER_LIMIT", 10)
    assert len(list(members(tar(*(entry(b"./%d" % number) for number in range(10)))))) == 10
    with pytest.raises(ArtifactError, match="more than 10 members"):
        list(members(tar(*(entry(b"./%d" % number) for number in range(11)))))


def test_no_names_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debtar, "NAMES_LIMIT", 300)
    entries = [entry(b"./%099d" % number) for number in range(4)]
    assert len(list(members(tar(*entries[:3])))) == 3
    with pytest.raises(ArtifactError, match="names have more than 300 bytes"):
        list(members(tar(*entries)))


def harmless(data: bytes) -> None:
    """Read whatever it is: an error of ours, or members that stay inside the root and inside the archive."""
    try:
        found = list(members(data))
    except ArtifactError:
        return
    files = {member.path for member in found if member.kind in (Kind.FILE, Kind.LINK)}
    for member in found:
        parts = member.path.split(b"/")
        assert not member.path.startswith(b"/")
        assert b".." not in parts
        assert member.path == b"" or b"" not in parts
        assert b"\0" not in member.path + member.target
        assert 0 <= member.offset <= member.offset + member.size <= len(data)
        assert member.mode <= 0o7777
        assert all(owner <= 99 or owner == 65534 for owner in (member.uid, member.gid))
        assert member.kind is not Kind.LINK or member.target in files
    assert len({member.path for member in found}) == len(found)


@given(st.binary(max_size=4096))
@example(bytes(1024))
def test_any_bytes_are_harmless(data: bytes) -> None:
    harmless(data)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4), st.booleans())
def test_a_spoilt_archive_is_harmless(changes: list[tuple[int, int]], mend: bool) -> None:
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
        if mend:  # so that more than the sum is looked at
            start = place - place % BLOCK
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])
    harmless(bytes(data))


NAMES = st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"usr", b"n" * 101]), max_size=4).map(b"/".join)


@given(st.lists(st.tuples(NAMES, st.sampled_from([b"0", b"1", b"2", b"5", b"3", b"L", b"K"]), NAMES), max_size=6))
def test_any_headers_are_harmless(items: list[tuple[bytes, bytes, bytes]]) -> None:
    harmless(tar(*(entry(name, kind=kind, target=target) for name, kind, target in items)))
