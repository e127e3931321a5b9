"""The catalog of boxes: whatever is added, pruned or cut short, it stays good."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from imagebuilder.content import sha256_file
from imagebuilder.errors import ArtifactError, CatalogError, UsageError
from imagebuilder.publish import catalog as module
from imagebuilder.publish.boxnames import version_key
from imagebuilder.publish.catalog import Added, Catalog, Wanted

URL = "https://boxes.example.com/v"
DAY = "20261124"


def make_box(path: Path, *, provider: str = "hyperv", arch: str = "amd64", content: bytes = b"disk") -> Path:
    """A small box; not for libvirt, whose disks are looked at."""
    metadata = {"provider": provider} | ({"architecture": arch} if arch else {})
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (
            ("metadata.json", json.dumps(metadata).encode()),
            ("info.json", b'{"name": "debian-13-k1.35", "kubernetes": "1.35.8"}'),
            ("disk.vhdx", content),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    found = Catalog(tmp_path / "catalog")
    assert found.create(URL, "Boxes of a test")
    return found


@pytest.fixture
def add(catalog: Catalog, tmp_path: Path) -> Callable[..., Added]:
    def run(version: str = "", name: str = "k8s/debian", **fields: object) -> Added:
        box = make_box(tmp_path / "x.box", **fields)  # type: ignore[arg-type]
        return catalog.add(box, Wanted(name=name, version=version, day=DAY, arch="amd64"))

    return run


Add = Callable[..., Added]


def read(catalog: Catalog, name: str = "k8s/debian") -> dict[str, object]:
    value: dict[str, object] = json.loads((catalog.folder / f"{name}.json").read_text())
    return value


def test_a_box_is_added_as_vagrant_wants_to_find_it(catalog: Catalog, add: Add) -> None:
    added = add("1.0.0")
    assert added.url == f"{URL}/k8s/debian.json"
    assert added.path == catalog.folder / "k8s/debian/1.0.0/hyperv-amd64.box"
    assert read(catalog)["name"] == "k8s/debian"
    version = read(catalog)["versions"][0]  # type: ignore[index]
    assert (version["version"], version["status"]) == ("1.0.0", "active")
    entry = version["providers"][0]
    assert {key: entry[key] for key in ("name", "url", "checksum_type", "checksum", "architecture")} == {
        "name": "hyperv", "url": f"{URL}/k8s/debian/1.0.0/hyperv-amd64.box", "checksum_type": "sha256",
        "checksum": sha256_file(added.path), "architecture": "amd64",
    }  # fmt: skip
    assert entry["default_architecture"] is True
    assert catalog.check() == []


def test_amd64_comes_last_and_is_the_default(catalog: Catalog, add: Add) -> None:
    for arch, provider in (("amd64", "hyperv"), ("arm64", "hyperv"), ("arm64", "docker")):
        add("1.0.0", arch=arch, provider=provider)
    providers = read(catalog)["versions"][0]["providers"]  # type: ignore[index]
    assert [(one["name"], one["architecture"], one["default_architecture"]) for one in providers] == [
        ("docker", "arm64", True), ("hyperv", "arm64", False), ("hyperv", "amd64", True),
    ]  # fmt: skip


def test_versions_are_made_up_from_the_day(add: Add) -> None:
    assert add(content=b"1").version == f"{DAY}.0"
    assert add(content=b"1", provider="docker").version == f"{DAY}.0", "another provider of the same version"
    assert add(content=b"2").version == f"{DAY}.1"
    again = add(content=b"2")
    assert (again.version, again.unchanged) == (f"{DAY}.1", True)


def test_a_name_is_made_up_from_the_box(add: Add) -> None:
    assert add(name="").name == "imagebuilder/debian-13-k1.35"


def test_a_published_version_never_changes(catalog: Catalog, add: Add) -> None:
    first = add("1.0.0", content=b"1")
    assert add("1.0.0", content=b"1").unchanged
    before = first.path.read_bytes()
    with pytest.raises(UsageError, match="published with other bytes"):
        add("1.0.0", content=b"2")
    assert first.path.read_bytes() == before
    with pytest.raises(UsageError, match=r"same version to Vagrant as 1\.0\.0"):
        add("1.0", content=b"2")


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [("debian", "1.0", "no name"), ("a/b", "latest", "no version"), ("K8S/Debian", "1.0", "upper and lower case")],
)
def test_what_vagrant_would_refuse_is_refused(
    name: str, version: str, message: str, catalog: Catalog, add: Add
) -> None:
    add("1.0.0")
    before = sorted(catalog.folder.rglob("*"))
    with pytest.raises(UsageError, match=message) as caught:
        add(version, name)
    assert caught.value.hint
    assert sorted(catalog.folder.rglob("*")) == before


def test_a_box_without_architecture_takes_the_one_that_is_given(tmp_path: Path, catalog: Catalog) -> None:
    box = make_box(tmp_path / "x.box", arch="")
    assert catalog.add(box, Wanted(name="a/b", version="1", arch="arm64")).arch == "arm64"
    with pytest.raises(UsageError, match="architecture"):
        catalog.add(box, Wanted(name="a/b", version="2"))


def test_a_box_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(ArtifactError, match="not what its manifest says"):
        catalog.add(make_box(tmp_path / "x.box"), Wanted(name="a/b", version="1", sha256="0" * 64))


def test_prune_keeps_the_newest(catalog: Catalog, add: Add) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.0", "1.10.0-rc1"):
        add(version, content=version.encode())
    add("1.0.0", "other/box")
    assert catalog.prune(2, "k8s/debian") == [("k8s/debian", "1.9.0"), ("k8s/debian", "1.2.0")]
    assert [one["version"] for one in read(catalog)["versions"]] == ["1.10.0", "1.10.0-rc1"]  # type: ignore[attr-defined]
    assert sorted(path.name for path in (catalog.folder / "k8s/debian").iterdir()) == ["1.10.0", "1.10.0-rc1"]
    assert catalog.prune(1) == [("k8s/debian", "1.10.0-rc1")]
    assert catalog.check() == []
    assert "1.9.0" not in (catalog.folder / "index.html").read_text()


def test_prune_of_what_is_not_there_is_refused(catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="no box a/b"):
        catalog.prune(1, "a/b")
    with pytest.raises(UsageError, match="at least one"):
        catalog.prune(0)


def test_check_finds_what_is_missing_damaged_and_left_over(catalog: Catalog, add: Add) -> None:
    missing, damaged = add("1.0.0").path, add("2.0.0").path
    missing.unlink()
    damaged.write_bytes(b"other")
    (damaged.parent / "stray.box").touch()
    assert catalog.check() == [
        "k8s/debian/2.0.0/hyperv-amd64.box: its checksum is not the one in the catalog",
        "k8s/debian/1.0.0/hyperv-amd64.box: missing",
        "k8s/debian/2.0.0/stray.box: no version of the box names it",
    ]
    assert not add("1.0.0").unchanged, "a file that is missing is put back"
    catalog.prune(5)
    assert catalog.check() == ["k8s/debian/2.0.0/hyperv-amd64.box: its checksum is not the one in the catalog"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b'{"name": "other/box", "versions": []}', b'{"name": "k8s/debian"}', b"[]", b"\xff\xfe",
     b'{"name": "k8s/debian", "versions": [{"version": "1", "providers": []}, {"version": "1.0", "providers": []}]}'],
)  # fmt: skip
def test_a_damaged_catalog_is_refused_and_left_as_it_is(damage: bytes, catalog: Catalog, add: Add) -> None:
    add("1.0.0")
    add("1.0.0", "other/box")
    path = catalog.folder / "k8s/debian.json"
    path.write_bytes(damage)
    kept = {file: file.read_bytes() for file in catalog.folder.rglob("*") if file.is_file()}
    for change in (lambda: add("2.0.0"), lambda: add("2.0.0", "other/box"), lambda: catalog.prune(1), catalog.check):
        with pytest.raises(CatalogError, match=r"debian\.json is damaged") as caught:
            change()
        assert "backup" in caught.value.hint
    assert {file: file.read_bytes() for file in catalog.folder.rglob("*") if file.is_file()} == kept


def test_a_folder_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(CatalogError, match="no catalog"):
        Catalog(tmp_path).boxes() or Catalog(tmp_path).prune(1)
    with pytest.raises(UsageError, match="neither empty nor a catalog"):
        Catalog(tmp_path).create(URL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_another_address_reaches_every_file(catalog: Catalog, add: Add) -> None:
    add("1.0.0")
    assert not catalog.create("http://127.0.0.1:1/x/")
    assert catalog.state().title == "Boxes of a test"
    entry = read(catalog)["versions"][0]["providers"][0]  # type: ignore[index]
    assert entry["url"] == "http://127.0.0.1:1/x/k8s/debian/1.0.0/hyperv-amd64.box"
    assert catalog.check() == []


def test_keys_of_others_stay(catalog: Catalog, add: Add) -> None:
    add("1.0.0")
    path = catalog.folder / "k8s/debian.json"
    value = json.loads(path.read_text())
    value["short_description"], value["versions"][0]["description_markdown"] = "short", "words"
    value["theirs"] = {"a": [1]}
    path.write_text(json.dumps(value))
    add("1.1.0", content=b"2")
    now = json.loads(path.read_text())
    assert (now["theirs"], now["short_description"]) == ({"a": [1]}, "short")
    assert now["versions"][1]["description_markdown"] == "words"


class Cut(Exception):
    """The power is gone."""


def cut_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """End the process, so to speak, before the ``count``-th file is written or removed."""
    left = count

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Cut
            return function(*args, **options)

        return run

    for name in ("writing", "write_json", "write_atomic"):
        monkeypatch.setattr(module, name, wrap(getattr(module, name)))
    monkeypatch.setattr(Path, "unlink", wrap(Path.unlink))


@pytest.mark.parametrize("count", range(3))
def test_an_add_that_is_cut_short_leaves_a_good_catalog(
    count: int, catalog: Catalog, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("1.0.0", content=b"1")
    with monkeypatch.context() as patched, pytest.raises(Cut):
        cut_at(patched, count)
        add("2.0.0", content=b"2")
    assert [line for line in catalog.check() if "no version" not in line] == []
    assert not add("2.0.0", content=b"2").unchanged or count == 2
    assert catalog.check() == []
    assert "2.0.0" in (catalog.folder / "index.html").read_text()


@pytest.mark.parametrize("count", range(3))
def test_a_prune_that_is_cut_short_leaves_a_good_catalog(
    count: int, catalog: Catalog, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        add(version, content=version.encode())
    with monkeypatch.context() as patched, pytest.raises(Cut):
        cut_at(patched, count)
        catalog.prune(1)
    assert [line for line in catalog.check() if "no version" not in line] == []
    catalog.prune(1)
    assert catalog.check() == []
    assert [one["version"] for one in read(catalog)["versions"]] == ["3.0.0"]  # type: ignore[attr-defined]


def test_the_page_shows_what_there_is_and_runs_nothing_of_it(catalog: Catalog, tmp_path: Path) -> None:
    wanted = Wanted(name="k8s/debian", version="1.0.0", arch="amd64", description="<script>alert(1)</script>")
    catalog.add(make_box(tmp_path / "x.box"), wanted)
    page = (catalog.folder / "index.html").read_text()
    assert f"vagrant init k8s/debian {URL}/k8s/debian.json" in page
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "1.35.8" in page and sha256_file(catalog.folder / "k8s/debian/1.0.0/hyperv-amd64.box") in page
    assert 'src="' not in page and "@import" not in page and 'rel="stylesheet"' not in page


class Changes(RuleBasedStateMachine):
    """Any adds and prunes: the catalog names just what is there, sorted, and every file is whole."""

    names = st.sampled_from(["a/one", "a/two", "b/one"])

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self.scratch.name)
        self.catalog = Catalog(self.folder / "catalog")
        self.catalog.create(URL)
        self.expected: dict[str, dict[str, dict[tuple[str, str], bytes]]] = {}

    def teardown(self) -> None:
        self.scratch.cleanup()

    @rule(
        name=names,
        version=st.sampled_from(["1.0", "1.0.0", "1.10", "1.9", "2.0-rc1", "2"]),
        provider=st.sampled_from(["hyperv", "docker"]),
        arch=st.sampled_from(["amd64", "arm64"]),
        content=st.sampled_from([b"1", b"2"]),
    )
    def add(self, name: str, version: str, provider: str, arch: str, content: bytes) -> None:
        versions = self.expected.setdefault(name, {})
        box = make_box(self.folder / "x.box", provider=provider, arch=arch, content=content)
        clash = any(known != version and version_key(known) == version_key(version) for known in versions)
        old = versions.get(version, {}).get((provider, arch))
        wanted = Wanted(name=name, version=version)
        if clash or (old is not None and old != box.read_bytes()):
            with pytest.raises(UsageError):
                self.catalog.add(box, wanted)
            return
        assert self.catalog.add(box, wanted).unchanged == (old is not None)
        versions.setdefault(version, {})[provider, arch] = box.read_bytes()

    @rule(keep=st.integers(1, 3))
    def prune(self, keep: int) -> None:
        removed = self.catalog.prune(keep)
        for name, versions in self.expected.items():
            for version in sorted(versions, key=version_key, reverse=True)[keep:]:
                removed.remove((name, version))
                del versions[version]
        assert removed == []

    @invariant()
    def it_is_good(self) -> None:
        assert self.catalog.check() == []
        found = {box.name: box for box in self.catalog.boxes()}
        assert {name for name, versions in self.expected.items() if versions} == set(found)
        for name, box in found.items():
            keys = [version_key(version.version) for version in box.versions]
            assert keys == sorted(keys, reverse=True)
            files = {
                version.version: {
                    file.key: (
                        self.catalog.folder / name / version.version / f"{file.name}-{file.architecture}.box"
                    ).read_bytes()
                    for file in version.providers
                }
                for version in box.versions
            }
            assert files == self.expected[name]


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
