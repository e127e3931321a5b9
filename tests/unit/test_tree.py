"""Layers merge as overlayfs merges them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from imagebuilder.direct.tree import Entry, merge
from imagebuilder.errors import ArtifactError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and trusted attributes need root")
Make = Callable[..., Path]


@pytest.fixture
def layer(tmp_path: Path) -> Make:
    """Makes a layer: path -> text, or None for a directory, or "WHITEOUT"."""
    count = 0

    def make(names: dict[str, str | None]) -> Path:
        nonlocal count
        count += 1
        root = tmp_path / f"layer-{count}"
        root.mkdir()
        for name, text in names.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.mkdir(exist_ok=True)
            elif text == "WHITEOUT":
                os.mknod(path, stat.S_IFCHR, 0)
            else:
                path.write_text(text)
        return root

    return make


def opaque(path: Path, value: bytes = b"y") -> None:
    os.setxattr(path, "trusted.overlay.opaque", value)


def content(tree: list[Entry]) -> dict[str, str | None]:
    """Return what is in a tree: path -> text, or None for a directory."""
    return {
        os.fsdecode(entry.path): None if stat.S_ISDIR(entry.mode) else Path(os.fsdecode(entry.host)).read_text()
        for entry in tree[1:]
    }


def test_directories_merge_and_the_upper_file_wins(layer: Make) -> None:
    lower = layer({"etc/a": "lower", "etc/b": "lower", "usr/x": "lower"})
    upper = layer({"etc/b": "upper", "etc/c": "upper"})
    (upper / "etc").chmod(0o700)
    tree = merge([upper, lower])
    assert content(tree) == {"etc": None, "etc/a": "lower", "etc/b": "upper", "etc/c": "upper", "usr": None,
                             "usr/x": "lower"}  # fmt: skip
    assert stat.S_IMODE(tree[1].mode) == 0o700
    assert [entry.parent for entry in tree] == [0, 0, 1, 1, 1, 0, 5]


@needs_root
@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        pytest.param({"d/a": "WHITEOUT"}, {"d": None, "d/b": "0"}, id="file gone"),
        pytest.param({"d": "WHITEOUT"}, {}, id="directory gone"),
        pytest.param({"d": "file"}, {"d": "file"}, id="directory becomes file"),
        pytest.param({"d/a/x": "1"}, {"d": None, "d/a": None, "d/a/x": "1", "d/b": "0"}, id="file becomes directory"),
        pytest.param({"nothing": "WHITEOUT"}, {"d": None, "d/a": "0", "d/b": "0"}, id="nothing gone"),
    ],
)
def test_upper_names_hide_lower_ones(
    layer: Make, upper: dict[str, str | None], expected: dict[str, str | None]
) -> None:
    assert content(merge([layer(upper), layer({"d/a": "0", "d/b": "0"})])) == expected


@needs_root
def test_what_comes_back_above_a_whiteout_is_seen_alone(layer: Make) -> None:
    stack = [layer({"d/new": "2"}), layer({"d": "WHITEOUT"}), layer({"d/old": "0"})]
    assert content(merge(stack)) == {"d": None, "d/new": "2"}
    stack = [layer({"d/new": "2"}), layer({"d": "file"}), layer({"d/old": "0"})]
    assert content(merge(stack)) == {"d": None, "d/new": "2"}


@needs_root
@pytest.mark.parametrize("name", ["trusted.overlay.opaque", "user.overlay.opaque"])
def test_an_opaque_directory_hides_all_below_it(layer: Make, name: str) -> None:
    top, middle, bottom = layer({"d/c": "2"}), layer({"d/b": "1"}), layer({"d/a": "0", "e": "0"})
    os.setxattr(middle / "d", name, b"y")
    tree = merge([top, middle, bottom])
    assert content(tree) == {"d": None, "d/b": "1", "d/c": "2", "e": "0"}
    assert [entry.xattrs for entry in tree] == [()] * len(tree)


@needs_root
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trusted.overlay.redirect", b"/x"), ("trusted.overlay.metacopy", b""), ("user.overlay.whiteout", b""),
        ("trusted.overlay.opaque", b"x"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("below", [False, True])
def test_features_of_overlayfs_that_are_not_known_are_refused(
    layer: Make, name: str, value: bytes, below: bool
) -> None:
    root = layer({"d/f": ""})
    os.setxattr(root / "d", name, value)
    with pytest.raises(ArtifactError, match=r"layer-1/d .*(has the attribute|is opaque)"):
        merge([layer({"d/g": ""}), root] if below else [root])


@needs_root
def test_attributes_are_kept_but_those_of_overlayfs(layer: Make) -> None:
    root = layer({"f": ""})
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    for name, value in {
        "user.b": b"2", "user.a": b"", "security.capability": capability, "trusted.overlay.origin": b"x",
    }.items():  # fmt: skip
        os.setxattr(root / "f", name, value)
    assert merge([root])[1].xattrs == (("security.capability", capability), ("user.a", b""), ("user.b", b"2"))


def test_hard_links_are_of_one_layer_and_copying_up_breaks_them(layer: Make) -> None:
    lower, upper = layer({"a": "x"}), layer({"c": "up"})
    for name in ("b", "c", "d/e"):
        (lower / name).parent.mkdir(exist_ok=True)
        os.link(lower / "a", lower / name)
    tree = merge([upper, lower])
    links = {os.fsdecode(entry.path): os.fsdecode(tree[entry.link].path) for entry in tree}
    assert links == {"": "", "a": "a", "b": "a", "c": "c", "d": "d", "d/e": "a"}


@needs_root
def test_volumes_are_whole_and_literal(layer: Make, tmp_path: Path) -> None:
    """What containerd keeps is in overlayfs's form too, and has to stay so."""
    volume = layer({"snap/gone": "WHITEOUT", "snap/f": "in the image"})
    opaque(volume / "snap")
    volume.chmod(0o711)
    root = layer({"var/lib/c/hidden": "x", "var/lib/d": "y"})
    tree = {os.fsdecode(entry.path): entry for entry in merge([root], {"/var/lib/c": volume})}
    assert list(tree) == ["", "var", "var/lib", "var/lib/c", "var/lib/c/snap", "var/lib/c/snap/f",
                          "var/lib/c/snap/gone", "var/lib/d"]  # fmt: skip
    assert stat.S_IMODE(tree["var/lib/c"].mode) == 0o711
    assert stat.S_ISCHR(tree["var/lib/c/snap/gone"].mode)
    assert tree["var/lib/c/snap"].xattrs == (("trusted.overlay.opaque", b"y"),)


def test_a_volume_without_a_place_is_refused_and_one_beside_nothing_is_put(layer: Make) -> None:
    volume = layer({"f": "v"})
    assert content(merge([layer({"var": None})], {"/var/new": volume})) == {
        "var": None, "var/new": None, "var/new/f": "v",
    }  # fmt: skip
    with pytest.raises(ArtifactError, match="no folder /opt/x"):
        merge([layer({"var": None})], {"/opt/x/new": volume})


def test_facts_of_every_kind_are_taken_and_the_order_is_that_of_paths(layer: Make) -> None:
    root = layer({"d/f": "12345", "d.e": "", "d/a/b": ""})
    os.symlink("no/where", root / "link")
    os.mkfifo(root / "pipe", 0o640)
    os.utime(root / "d/f", ns=(0, 1_234_567_890_123_456_789))
    if os.geteuid() == 0:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(root / "d/f", 70000, 80000)
    tree = merge([root])
    found = {os.fsdecode(entry.path): entry for entry in tree}
    names = ["", "d", "d/a", "d/a/b", "d/f", "d.e", "link", *(["null"] if os.geteuid() == 0 else []), "pipe"]
    assert list(found) == names
    assert found["link"].target == b"no/where"
    assert (found["d/f"].size, found["d/f"].mtime_ns) == (5, 1_234_567_890_123_456_789)
    assert stat.S_ISFIFO(found["pipe"].mode)
    if os.geteuid() == 0:
        assert found["null"].rdev == os.makedev(1, 3)
        assert (found["d/f"].uid, found["d/f"].gid) == (70000, 80000)


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/root")
    with open(os.fsencode(tmp_path) + b"/root/\xff\xfe", "wb"):
        pass
    assert [entry.path for entry in merge([tmp_path / "root"])] == [b"", b"\xff\xfe"]


def test_the_marks_of_overlays_in_a_volume_are_those_of_root(layer: Make, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "snapshot").mkdir(parents=True)
    try:
        os.setxattr(volume / "snapshot", "user.overlay.opaque", b"y")
        os.setxattr(volume / "snapshot", "user.other", b"1")
    except OSError as error:
        pytest.skip(f"this file system has no such attributes: {error}")
    tree = merge([layer({"var": None})], {"/var/volume": volume})
    found = {entry.path: entry.xattrs for entry in tree}
    assert found[b"var/volume/snapshot"] == (("trusted.overlay.opaque", b"y"), ("user.other", b"1"))
