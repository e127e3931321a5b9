"""Where the files of many packages go in one tree, and that no path of it is written through a link."""

from __future__ import annotations

import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest
from debs import entry, folder, link, symlink, tar
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.direct.rootplan import Contents, RootPlan, path_filter, plan_root
from imagebuilder.direct.rootwriter import write_root
from imagebuilder.errors import ArtifactError
from imagebuilder.sources.debtar import Kind, Member, members


def package(name: str, *entries: bytes, replaces: tuple[str, ...] = ()) -> tuple[Contents, bytes]:
    data = tar(folder(b"./"), *entries)
    return Contents(package=name, members=tuple(members(data)), replaces=frozenset(replaces)), data


def planned(*packages: tuple[Contents, bytes], aliases: tuple[bytes, ...] = ()) -> RootPlan:
    return plan_root([contents for contents, _ in packages], aliases=aliases)


def paths(plan: RootPlan) -> list[bytes]:
    links = [placed.path for placed, _ in plan.links]
    return sorted([placed.path for placed in (*plan.files, *plan.symlinks)] + links)


def test_a_folder_that_is_a_link_elsewhere_is_followed() -> None:
    base = package("base", folder(b"./usr"), folder(b"./usr/lib"), symlink(b"./lib", b"usr/lib"))
    old = package(
        "old",
        folder(b"./lib"),
        folder(b"./lib/deep"),
        entry(b"./lib/deep/file"),
        link(b"./lib/same", b"./lib/deep/file"),
    )
    for packages in ((base, old), (old, base)):
        plan = planned(*packages)
        assert paths(plan) == [b"lib", b"usr/lib/deep/file", b"usr/lib/same"]
        assert list(plan.folders) == [b"", b"usr", b"usr/lib", b"usr/lib/deep"]
        assert [target for _, target in plan.links] == [b"usr/lib/deep/file"]


def test_an_older_release_has_its_usr_merged_though_no_package_says_so() -> None:
    plan = planned(
        package("old", folder(b"./bin"), entry(b"./bin/sh"), entry(b"./sbin/init")), aliases=(b"bin", b"sbin", b"lib")
    )
    assert paths(plan) == [b"bin", b"lib", b"sbin", b"usr/bin/sh", b"usr/sbin/init"]
    assert {placed.path: placed.member.target for placed in plan.symlinks} == {
        b"bin": b"usr/bin", b"sbin": b"usr/sbin", b"lib": b"usr/lib",
    }  # fmt: skip
    assert {b"usr/bin", b"usr/sbin", b"usr/lib"} <= plan.folders.keys()


def test_links_are_followed_as_the_kernel_would_and_never_above_the_root() -> None:
    plan = planned(
        package("links", symlink(b"./a", b"/b/c"), symlink(b"./b", b"../../../d/./e"), symlink(b"./x", b"a")),
        package("files", entry(b"./x/file")),
    )
    assert b"d/e/c/file" in paths(plan)
    assert list(plan.folders) == [b"", b"d", b"d/e", b"d/e/c"]


@pytest.mark.parametrize("target", [b"a", b"b", b"/a/x", b"./a/../a"])
def test_links_that_go_round_are_refused(target: bytes) -> None:
    with pytest.raises(ArtifactError, match="too many links"):
        planned(package("p", symlink(b"./a", target), symlink(b"./b", b"a"), entry(b"./a/file")))


def test_of_two_packages_with_one_file_the_one_that_replaces_the_other_has_it() -> None:
    old, new = package("old", entry(b"./usr/a")), package("new", entry(b"./usr/a"), replaces=("old",))
    for packages, winner, lost in (((old, new), 1, [{b"usr/a"}, set()]), ((new, old), 0, [set(), {b"usr/a"}])):
        plan = planned(*packages)
        assert [placed.package for placed in plan.files] == [winner]
        assert plan.lost == lost


CLASHES = {
    "a-file-of-two": ((entry(b"./a"),), (entry(b"./a"),), "is in one and other"),
    "a-file-that-is-a-folder": ((entry(b"./a"),), (entry(b"./a/b"),), "is a folder, and is none"),
    "a-link-and-a-file": ((symlink(b"./a", b"b"),), (entry(b"./a"),), "is in one and other"),
    "one-place-by-two-names": (
        (symlink(b"./lib", b"usr/lib"), entry(b"./lib/a"), entry(b"./usr/lib/a")), (), "is in one and one",
    ),
    "a-hard-link-to-what-another-took": (
        (entry(b"./a"), link(b"./b", b"./a")), (entry(b"./a"),), "hard link to a file that is not kept",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other", "why"), [pytest.param(*value, id=key) for key, value in CLASHES.items()])
def test_what_makes_no_one_tree_is_refused(one: tuple[bytes, ...], other: tuple[bytes, ...], why: str) -> None:
    replaces = ("one",) if "hard link" in why else ()
    with pytest.raises(ArtifactError, match=why):
        planned(package("one", *one), package("other", *other, replaces=replaces))


def test_the_first_package_says_what_a_folder_is() -> None:
    plan = planned(package("one", folder(b"./a", 0o700)), package("other", folder(b"./a", 0o777), entry(b"./b/c")))
    placed = plan.folders[b"a"]
    assert placed is not None
    assert (placed.package, placed.member.mode) == (0, 0o700)
    assert plan.folders[b"b"] is None


EXCLUDES, INCLUDES = (
    ("/usr/share/doc/*", "/usr/share/locale/*"),
    ("/usr/share/doc/*/copyright", "/usr/share/locale/x.alias"),
)


@pytest.mark.parametrize(
    ("path", "kind", "left_out"),
    [
        (b"usr/share/doc", Kind.FOLDER, False),
        (b"usr/share/doc/a", Kind.FOLDER, False),  # something in it may be kept
        (b"usr/share/doc/a/readme", Kind.FILE, True),
        (b"usr/share/doc/a/copyright", Kind.FILE, False),
        (b"usr/share/doc/a/deep/copyright", Kind.FILE, False),  # an asterisk is any number of folders: dpkg(1)
        (b"usr/share/doc/other", Kind.SYMLINK, False),
        (b"usr/share/locale/de", Kind.FOLDER, True),
        (b"usr/share/locale/x.alias", Kind.FILE, False),
        (b"usr/share/docs", Kind.FILE, False),
        (b"\xff", Kind.FILE, False),
    ],
)  # fmt: skip
def test_what_dpkg_leaves_out_is_left_out(path: bytes, kind: Kind, left_out: bool) -> None:
    member = Member(path, kind, 0, 0, 0, 0, 0, 0, b"")
    assert path_filter(EXCLUDES, INCLUDES)(member) is left_out
    assert path_filter((), ())(member) is False


NAMES = st.lists(st.sampled_from([b"a", b"b", b"usr"]), min_size=1, max_size=3).map(b"/".join)
TARGETS = st.sampled_from([b"a", b"../b", b"/usr", b"/", b"..", b".", b"b/a", b"../../../../etc"])
ENTRIES = st.one_of(NAMES.map(entry), NAMES.map(folder), st.builds(symlink, NAMES, TARGETS))


def kept_apart(items: list[bytes]) -> list[bytes]:
    """Return headers whose names are all different: others are refused earlier."""
    return list({item[:100]: item for item in items}.values())


@given(st.lists(st.lists(ENTRIES, max_size=5).map(kept_apart), max_size=3))
def test_a_plan_is_whole_and_none_of_its_paths_leads_through_a_link(archives: list[list[bytes]]) -> None:
    packages = [package(f"p{number}", *entries) for number, entries in enumerate(archives)]
    try:
        plan = planned(*packages, aliases=(b"usr",) if len(archives) == 2 else ())
    except ArtifactError:
        return
    others = paths(plan)
    assert len(set(others)) == len(others)
    assert not set(others) & plan.folders.keys()
    for path in (*others, *plan.folders):
        assert path == b"" or path.rpartition(b"/")[0] in plan.folders
        assert b".." not in path.split(b"/")
    assert list(plan.folders) == sorted(plan.folders)


def mine(contents: Contents) -> Contents:
    """Return a package that belongs to whoever runs the test."""
    own = tuple(member._replace(uid=os.getuid(), gid=os.getgid()) for member in contents.members)
    return Contents(package=contents.package, members=own, replaces=contents.replaces)


def test_a_tree_is_written_as_planned(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    one, data = package(
        "one", folder(b"./usr", 0o711), entry(b"./usr/tool", b"run", mode=0o4750), link(b"./usr/same", b"./usr/tool"),
        symlink(b"./escape", os.fsencode(outside)), entry(b"./escape/file", b"x"), entry(b"./empty"),
    )  # fmt: skip
    write_root(planned((mine(one), data)), lambda number: nullcontext(data), root)
    assert list(outside.iterdir()) == []
    inside = root / outside.relative_to("/") / "file"  # where the link leads within the tree
    assert inside.read_bytes() == b"x"
    assert os.readlink(root / "escape") == str(outside)
    tool = (root / "usr/tool").stat()
    assert (stat.S_IMODE(tool.st_mode), tool.st_nlink, tool.st_mtime_ns) == (0o4750, 2, 1_700_000_000 * 10**9)
    assert (root / "usr/same").read_bytes() == b"run"
    assert stat.S_IMODE((root / "usr").stat().st_mode) == 0o711
    assert (root / "usr").stat().st_mtime == 1_700_000_000
    assert (root / "escape").lstat().st_mtime == 1_700_000_000
    assert (root / "empty").stat().st_size == 0


def test_nothing_is_written_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    one, data = package("one", entry(b"./a", b"x"))
    with pytest.raises(FileExistsError):
        write_root(planned((mine(one), data)), lambda number: nullcontext(data), tmp_path)
    assert not (tmp_path / "elsewhere").exists()
