"""Writing a folder: whole or not at all, and never over anything that is not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imagebuilder.errors import UsageError
from imagebuilder.packer.folder import MARKER, archive, write_folder, write_index
from imagebuilder.packer.render import Item

FILES = {"a.hcl": Item(data=b"a"), "scripts/x.sh": Item(data=b"x", mode=0o755)}


def test_a_folder_is_written_with_its_marker(tmp_path: Path) -> None:
    folder = tmp_path / "new/folder"
    assert write_folder(folder, FILES, name="cell")
    assert (folder / "scripts/x.sh").read_bytes() == b"x"
    assert (folder / "scripts/x.sh").stat().st_mode & 0o777 == 0o755
    marker = json.loads((folder / MARKER).read_bytes())
    assert marker["cell"] == "cell"
    assert sorted(marker["files"]) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["folder"], "nothing is left aside"


def test_a_folder_that_is_just_so_is_left_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", FILES, name="cell")
    before = (tmp_path / "f").stat().st_ino
    assert not write_folder(tmp_path / "f", FILES, name="cell")
    assert (tmp_path / "f").stat().st_ino == before


def test_a_folder_of_ours_is_made_anew(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", FILES, name="cell")
    assert write_folder(tmp_path / "f", {"b.hcl": Item(data=b"b")}, name="cell")
    assert sorted(os.listdir(tmp_path / "f")) == [MARKER, "b.hcl"]
    assert os.listdir(tmp_path) == ["f"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    assert write_folder(tmp_path / "f", FILES, name="cell")


def foreign(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")


def with_a_new_file(folder: Path) -> None:
    write_folder(folder, FILES, name="cell")
    (folder / "scripts/mine.sh").write_text("mine")


def changed(folder: Path) -> None:
    write_folder(folder, FILES, name="cell")
    (folder / "a.hcl").write_text("mine")


def with_a_broken_marker(folder: Path) -> None:
    write_folder(folder, FILES, name="cell")
    (folder / MARKER).write_text("{")


def a_file(folder: Path) -> None:
    folder.write_text("mine")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(foreign, "is not empty, and was not made", id="foreign"),
        pytest.param(with_a_new_file, "holds files of yours", id="new-file"),
        pytest.param(changed, "holds changes of yours", id="changed"),
        pytest.param(with_a_broken_marker, "was not made by imagebuilder", id="marker"),
        pytest.param(a_file, "is not a folder", id="file"),
    ],
)
def test_what_is_not_ours_is_not_touched(tmp_path: Path, make: object, said: str) -> None:
    folder = tmp_path / "f"
    make(folder)  # type: ignore[operator]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=said) as caught:
        write_folder(folder, {"b.hcl": Item(data=b"b")}, name="cell")
    assert "--output" in caught.value.hint
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", FILES, name="cell")
    with pytest.raises(FileNotFoundError):
        write_folder(tmp_path / "f", {"b": Item(data=b"b"), "c": Item(data=tmp_path / "gone")}, name="cell")
    assert (tmp_path / "f/a.hcl").read_bytes() == b"a"
    assert os.listdir(tmp_path) == ["f"]


def test_what_folders_have_in_common_is_linked(tmp_path: Path) -> None:
    shared: dict[tuple[str, int], Path] = {}
    write_folder(tmp_path / "one", FILES, name="one", shared=shared)
    write_folder(tmp_path / "two", {**FILES, "a.hcl": Item(data=b"other")}, name="two", shared=shared)
    assert (tmp_path / "one/scripts/x.sh").samefile(tmp_path / "two/scripts/x.sh")
    assert (tmp_path / "one/a.hcl").read_bytes() == b"a"
    assert (tmp_path / "two/a.hcl").read_bytes() == b"other"


def test_an_archive_holds_links_and_empty_folders_and_nothing_of_the_builder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "etc/empty").mkdir(parents=True)
        (folder / "etc/link").symlink_to("nowhere")
        (folder / "etc/file").write_text("x")
        (folder / "etc/file").chmod(0o664 if name == "one" else 0o644)
        os.utime(folder / "etc/file", (1, 1) if name == "one" else None)
    assert archive(tmp_path / "one") == archive(tmp_path / "two")
    (tmp_path / "two/etc/file").chmod(0o600)
    assert archive(tmp_path / "one") != archive(tmp_path / "two")


def test_an_index_goes_only_over_our_own(tmp_path: Path) -> None:
    write_index(tmp_path, "# one\n", json.dumps({"kind": "PackerFolders"}))
    write_index(tmp_path, "# two\n", json.dumps({"kind": "PackerFolders"}))
    assert (tmp_path / "README.md").read_text() == "# two\n"
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    with pytest.raises(UsageError, match=r"README\.md was not made"):
        write_index(other, "# three\n", "{}")
    (other / "README.md").unlink()
    (other / "index.json").write_text("[]")
    with pytest.raises(UsageError, match=r"index\.json was not made"):
        write_index(other, "# three\n", "{}")
