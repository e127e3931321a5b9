"""dpkg's database as it is after unpacking, and the order in which scripts run."""

from __future__ import annotations

import pytest
from debs import control, entry, folder, symlink, tar
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.direct import dpkgdb
from imagebuilder.direct.dpkgdb import Package, parse_package
from imagebuilder.errors import ArtifactError
from imagebuilder.sources.debtar import members


def package(name: str, *lines: str, **files: str) -> Package:
    text = "\n".join([f"Package: {name}", "Version: 1.0-1", "Architecture: amd64", *lines, ""])
    return parse_package(control(text, **files))


def test_a_control_file_is_read_with_what_is_folded_left_as_it_is() -> None:
    made = package("one", "Depends: b (>= 1) | c, d:any", "Description: short", " long", " .", "Multi-Arch: same")
    assert made.fields["Description"] == "short"
    assert made.text.endswith("Description: short\n long\n .\nMulti-Arch: same\n")
    assert made.names("Depends") == [["b", "c"], ["d"]]
    assert made.names("Suggests") == []
    assert made.key == "one:amd64"
    assert package("one").key == "one"


BAD = {
    "no-name": control("Version: 1\nArchitecture: all\n"),
    "a-path-as-name": control("Package: ../a\nVersion: 1\nArchitecture: all\n"),
    "a-path-as-architecture": control("Package: abc\nVersion: 1\nArchitecture: ../x\n"),
    "no-version": control("Package: abc\nArchitecture: all\n"),
    "two-paragraphs": control(
        "Package: abc\nVersion: 1\nArchitecture: all\n\nPackage: dpkg\nStatus: install ok installed\n"
    ),
    "a-status": control("Package: abc\nVersion: 1\nArchitecture: all\nStatus: install ok installed\n"),
    "a-folder": tar(folder(b"./"), folder(b"./scripts")),
    "a-link": tar(folder(b"./"), symlink(b"./postinst", b"/bin/sh")),
    "a-path": tar(folder(b"./"), entry(b"./deep/postinst", b"x")),
    "an-odd-name": tar(folder(b"./"), entry(b"./Post.inst", b"x")),
    "empty": tar(),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=key) for key, data in BAD.items()])
def test_what_is_no_control_archive_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="control"):
        parse_package(data)


def test_every_package_is_unpacked_and_its_configuration_files_are_noted() -> None:
    one = package("one", "Description: x", " y", conffiles="/etc/a\n/etc/b\nremove-on-upgrade /etc/gone\n")
    assert dpkgdb.status([package("two"), one], {"/etc/a": "0cc1"}) == (
        "Package: one\nVersion: 1.0-1\nArchitecture: amd64\nDescription: x\n y\nStatus: install ok unpacked\n"
        "Conffiles:\n /etc/a 0cc1\n /etc/b newconffile\n /etc/gone newconffile remove-on-upgrade\n"
        "\nPackage: two\nVersion: 1.0-1\nArchitecture: amd64\nStatus: install ok unpacked\n"
    )


def test_a_list_has_every_path_but_those_that_another_package_took_over() -> None:
    listed = list(members(tar(folder(b"./"), folder(b"./usr/"), entry(b"./usr/a", b"x"), symlink(b"./usr/b", b"a"))))
    assert dpkgdb.file_list(listed) == b"/.\n/usr\n/usr/a\n/usr/b\n"
    assert dpkgdb.file_list(listed, {b"usr/a"}) == b"/.\n/usr\n/usr/b\n"


def test_sums_are_of_files_that_are_no_configuration() -> None:
    listed = list(members(tar(folder(b"./"), entry(b"./usr/a", b"x"), entry(b"./etc/b", b"y"))))
    found = {b"usr/a": dpkgdb.md5(b"x"), b"etc/b": dpkgdb.md5(b"y")}
    assert dpkgdb.sums(listed, found, ["/etc/b"]) == b"9dd4e461268c8034f5c8564e155c67a6  usr/a\n"


def test_triggers_are_noted_for_whoever_waits_for_them() -> None:
    lines = (
        "# none\ninterest /usr/lib/x # why\ninterest-noawait rebuild\nactivate-noawait ldconfig\ninterest-await again\n"
    )
    both = package("one", "Multi-Arch: same", triggers=lines), package("two", triggers="interest rebuild\n")
    assert dpkgdb.triggers(both) == {
        "File": "/usr/lib/x one:amd64\n", "again": "one:amd64\n", "rebuild": "one:amd64/noawait\ntwo\n",
    }  # fmt: skip
    for name in ("../../etc/x", "File", ".", "a/b"):
        with pytest.raises(ArtifactError, match="is no trigger"):
            dpkgdb.triggers([package("one", triggers=f"interest {name}\n")])


def order(*packages: Package) -> list[str]:
    return [item.name for item in dpkgdb.in_order(packages)]


def test_what_is_depended_on_comes_first() -> None:
    made = (
        package("aa", "Depends: bb | cc, missing"),
        package("cc", "Pre-Depends: dd"),
        package("dd"),
        package("bb", "Depends: cc"),
    )
    assert order(*made) == ["dd", "cc", "bb", "aa"]
    assert order(*reversed(made)) == ["dd", "cc", "bb", "aa"]


def test_what_provides_a_name_stands_for_it() -> None:
    made = package("aa", "Depends: awk"), package("mawk", "Provides: awk (= 1)")
    assert order(*made) == ["mawk", "aa"]


def test_users_come_first_then_what_is_essential_then_what_is_pre_depended_on() -> None:
    made = (
        package("aa"), package("zz-shell", "Essential: yes", "Depends: zz-lib"), package("zz-lib"),
        package("mm", "Pre-Depends: yy"), package("yy"), package("base-files", "Essential: yes", "Pre-Depends: awk"),
        package("base-passwd", "Essential: yes"), package("gawk", "Provides: awk"),
    )  # fmt: skip
    assert order(*made) == ["base-passwd", "gawk", "base-files", "zz-lib", "zz-shell", "yy", "mm", "aa"]
    assert dpkgdb.essential(made) == {"base-passwd", "gawk", "base-files", "zz-lib", "zz-shell"}


def test_where_dependencies_go_round_pre_dependencies_count() -> None:
    assert order(package("aa", "Depends: bb"), package("bb", "Pre-Depends: aa")) == ["aa", "bb"]
    assert order(package("aa", "Pre-Depends: bb"), package("bb", "Depends: aa")) == ["bb", "aa"]
    far = package("aa", "Depends: cc"), package("cc", "Depends: bb"), package("bb", "Pre-Depends: aa")
    assert order(*far) == ["cc", "aa", "bb"]
    both = package("aa", "Pre-Depends: bb"), package("bb", "Pre-Depends: aa"), package("cc")
    assert sorted(order(*both)) == ["aa", "bb", "cc"]


NAMES = [f"p{number}" for number in range(8)]
EDGES = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=4))


@given(EDGES, EDGES)
def test_any_dependencies_give_every_package_one_place(
    depends: dict[str, list[str]], before: dict[str, list[str]]
) -> None:
    made = [
        package(name, f"Depends: {', '.join(depends.get(name, []))}", f"Pre-Depends: {', '.join(before.get(name, []))}")
        for name in NAMES
    ]
    found = order(*made)
    assert sorted(found) == NAMES
    assert found == order(*reversed(made))
