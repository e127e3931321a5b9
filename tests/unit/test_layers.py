"""The layer store: a layer is whole or not there, and what killed builds leave is removed, never what lives."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from layer_stores import ID, OTHER, Sync, add

from imagebuilder.direct import layers
from imagebuilder.direct.fulldisk import full_disk_named
from imagebuilder.direct.layers import INFO, UNSYNCED, Layer, LayerStore, disk_usage, remove_tree
from imagebuilder.direct.seals import SEAL, damage_of
from imagebuilder.errors import CacheError, CommandError, HostError, ImagebuilderError, StepError


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path / "cache", Sync())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_layer_holds_its_tree_its_volumes_and_its_info_and_nothing_else(store: LayerStore) -> None:
    with store.building(ID) as folder:
        assert folder is not None
        assert names(folder) == ["root", "volumes"]
        (folder / "root/file").write_text("content")
        (folder / "work/work").mkdir(parents=True)
        (folder / "apt.conf").write_text("not a part of it")
        layer = store.commit(folder, {"name": "base", "id": ID})
    store.settle()
    assert names(layer.path) == [INFO, "root", "volumes"]
    assert (layer.root / "file").read_text() == "content"
    kept = json.loads((layer.path / INFO).read_text())
    assert kept == layer.info
    assert kept.pop(SEAL).keys() == {"stamp", "content"}
    assert kept == {"name": "base", "id": ID}
    assert names(store.staging) == []
    assert store.get(ID) == layer


def test_a_layer_says_so_until_it_is_synced(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    with LayerStore(tmp_path, Sync(lambda folder: seen.append(names(folder / ID)))) as store:
        layer = add(store, ID)
        store.settle()
        assert seen == [[INFO, "root", UNSYNCED, "volumes"]]
        assert names(layer.path) == [INFO, "root", "volumes"]


def test_a_layer_that_was_not_synced_before_a_power_cut_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LayerStore(tmp_path, Sync())
    layer = add(store, ID)
    store.settle()
    (layer.path / UNSYNCED).write_text(layers.boot_id())  # as if we had been killed before
    assert store.get(ID) == layer
    monkeypatch.setattr(layers, "boot_id", lambda: "another")
    assert store.get(ID) is None
    assert list(store) == []
    assert names(add(store, ID).root) == ["file"]


def test_a_layer_that_cannot_be_synced_is_none(tmp_path: Path) -> None:
    store = LayerStore(tmp_path, Sync(code=1))
    with pytest.raises(HostError, match="cannot be written"), store:
        add(store, ID)
    assert store.get(ID) is None


def test_who_uses_a_layer_that_was_not_synced_brings_it_to_the_disk(tmp_path: Path) -> None:
    layer = add(LayerStore(tmp_path, Sync()), ID)
    sync = Sync()
    with LayerStore(tmp_path, sync) as store:
        assert store.use(ID) == layer
    assert sync.synced == [str(store.layers)]
    assert names(layer.path) == [INFO, "root", "volumes"]


def test_layers_are_synced_together_when_there_are_no_more_to_make(tmp_path: Path) -> None:
    sync = Sync()
    with LayerStore(tmp_path, sync) as store:
        made = [add(store, ID), add(store, OTHER)]
        assert sync.synced == []
        store.sync()
        assert [store.use(layer.id) for layer in made] == made
    assert sync.synced == [str(store.layers)]
    assert [names(layer.path) for layer in made] == [[INFO, "root", "volumes"]] * 2


def tampered(layer: Layer, how: str) -> None:
    """Damage a layer in one way; its size and times stay as they were where that is possible."""
    path = layer.root / "file"
    before = path.stat()
    if how == "removed":
        path.unlink()
    elif how == "added":
        (layer.root / "another").touch()
    elif how == "cut":
        path.write_bytes(b"")
    elif how == "mode":
        path.chmod(0o4755)
    elif how == "time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif how == "no-root":
        shutil.rmtree(layer.root)
    elif how == "volume":
        (layer.volumes / "containerd").mkdir()
    elif how == "info":
        (layer.path / INFO).write_bytes(b"{")
    elif how == "seal":
        (layer.path / INFO).write_text(json.dumps({**layer.info, SEAL: ["not", "one"]}))
    elif how == "bytes":
        path.write_text("x" * before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("how", ["removed", "added", "cut", "mode", "time", "no-root", "volume", "info", "seal"])
def test_a_damaged_layer_is_removed_when_it_is_asked_for_and_said_so(store: LayerStore, how: str) -> None:
    said: list[str] = []
    layer = add(store, ID)
    assert store.use(ID, said.append) == layer
    other = LayerStore(store.layers.parent, Sync())
    layers._close(store._used)  # as at the end of its block
    tampered(layer, how)
    assert other.use(ID, said.append) is None
    assert [line.partition(" (")[0] for line in said] == [f"layer {ID[:12]} in the cache is damaged"]
    assert not layer.path.exists()
    assert other.use(ID, said.append) is None, "nothing is left to say"
    assert len(said) == 1
    assert names(add(other, ID).root) == ["file"]


def test_a_changed_byte_is_seen_by_who_reads_all(store: LayerStore) -> None:
    layer = add(store, ID)
    assert damage_of(layer.path, layer.info, full=True) == ""
    tampered(layer, "bytes")
    assert damage_of(layer.path, layer.info) == ""
    assert damage_of(layer.path, layer.info, full=True) == "its files are not as they were made"


def test_a_seal_covers_links_and_folders_and_is_the_same_in_a_copy(store: LayerStore, tmp_path: Path) -> None:
    with store.building(ID) as folder:
        assert folder is not None
        (folder / "root/etc").mkdir()
        (folder / "root/etc/link").symlink_to("nowhere")
        (folder / "volumes/a").mkdir()
        (folder / "volumes/a/blob").write_bytes(bytes(3 << 20))
        layer = store.commit(folder, {"name": "base"})
    copy = tmp_path / "copy"
    shutil.copytree(layer.path, copy, symlinks=True)
    assert damage_of(copy, layer.info, full=True) == ""
    link = copy / "root/etc/link"
    before, folder_before = link.lstat(), link.parent.stat()
    link.unlink()
    link.symlink_to("elsewhr")  # as long as the other
    for path, status in ((link, before), (link.parent, folder_before)):
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    assert damage_of(copy, layer.info) == ""
    assert damage_of(copy, layer.info, full=True) != ""


def test_a_layer_without_a_seal_is_taken_as_it_is(store: LayerStore) -> None:
    layer = add(store, ID)
    (layer.path / INFO).write_text(json.dumps({"name": "base", "id": ID}))
    tampered(layer, "cut")
    found = store.use(ID)
    assert found is not None
    assert damage_of(found.path, found.info, full=True) == ""


def test_a_damaged_layer_that_another_bake_uses_is_not_used_and_not_removed(tmp_path: Path) -> None:
    with LayerStore(tmp_path, Sync()) as store:
        layer = add(store, ID)
        assert store.use(ID) == layer
        tampered(layer, "cut")
        with pytest.raises(CacheError, match=r"is damaged .*, and another bake uses it"):
            LayerStore(tmp_path, Sync()).use(ID)
    assert layer.path.exists()


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file system seem to be read-only, to those who ask."""
    monkeypatch.setattr("imagebuilder.content.os.access", lambda path, mode: mode != os.W_OK)


def test_a_read_only_store_can_be_used_and_not_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = add(LayerStore(tmp_path, Sync()), ID)
    (tmp_path / "tmp/of-another").mkdir()
    read_only(monkeypatch)
    sync = Sync()
    with LayerStore(tmp_path, sync) as store:
        assert store.use(ID) == replace(layer, writable=False)
        assert store.use(OTHER) is None
        store.sweep()
        assert names(store.staging) == ["of-another"]
        with store.scratch("disk") as folder:
            assert names(folder) == []
            assert not folder.is_relative_to(tmp_path)
        with pytest.raises(CacheError, match=f"is read-only: it cannot take the layer {OTHER[:12]}") as caught:
            store.building(OTHER).__enter__()
        assert "--cache-dir" in caught.value.hint
        with pytest.raises(CacheError, match="read-only"):
            store.remove(layer)
    assert sync.synced == [], "nothing is brought to a disk that takes nothing"
    assert not (tmp_path / "locks" / OTHER).exists()


def test_a_damaged_layer_of_a_read_only_store_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tampered(add(LayerStore(tmp_path, Sync()), ID), "cut")
    read_only(monkeypatch)
    with pytest.raises(CacheError, match=r"is damaged .*, and the cache is read-only"):
        LayerStore(tmp_path, Sync()).use(ID)


def test_nobody_removes_a_layer_that_a_bake_uses(tmp_path: Path) -> None:
    other = LayerStore(tmp_path, Sync())
    with LayerStore(tmp_path, Sync()) as store:
        assert store.use(ID) is None
        layer = add(store, ID)
        assert store.use(ID) == layer
        assert not other.remove(layer)
        assert other.get(ID) == layer
    assert other.remove(layer)
    assert other.get(ID) is None


def test_a_build_that_fails_leaves_nothing(store: LayerStore) -> None:
    with pytest.raises(ZeroDivisionError), store.building(ID) as folder:
        assert folder is not None
        (folder / "root/file").write_text("half")
        raise ZeroDivisionError
    assert names(store.layers) == names(store.staging) == []


def test_what_is_there_is_not_built_again(store: LayerStore) -> None:
    add(store, ID)
    with store.building(ID) as folder:
        assert folder is None
    assert store.get(ID) is not None


def test_a_folder_without_info_is_no_layer_and_makes_way(store: LayerStore) -> None:
    (store.layers / ID / "root").mkdir(parents=True)
    (store.layers / ID / "root/old").touch()
    assert store.get(ID) is None
    assert list(store) == []
    assert names(add(store, ID).root) == ["file"]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe", b"null", b"[]"], ids=["empty", "half", "bytes", "null", "list"]
)
def test_a_broken_info_file_says_what_to_remove(store: LayerStore, text: bytes) -> None:
    layer = add(store, ID)
    (layer.path / INFO).write_bytes(text)
    with pytest.raises(CacheError, match=INFO) as caught:
        store.get(ID)
    assert caught.value.hint == f"rm -r {layer.path}"
    with pytest.raises(CacheError), store.building(ID):
        pass
    assert list(store) == []
    shutil.rmtree(layer.path)  # what the hint says
    assert store.get(ID) is None


def test_using_a_layer_keeps_it_young_and_looking_does_not(store: LayerStore) -> None:
    add(store, ID, used=100.0)
    assert [layer.id for layer in store] == [ID]
    assert store.get_quietly(ID) is not None
    assert [layer.id for layer in store.unused_since(3600)] == [ID]
    store.get(ID)
    assert store.unused_since(3600) == []


def test_the_longest_unused_come_first(store: LayerStore) -> None:
    ids = [str(number) * 64 for number in range(4)]
    for layer_id, used in zip(ids, (300.0, 100.0, 400.0, 200.0), strict=True):
        add(store, layer_id, used=used)
    assert [layer.id for layer in store] == [ids[1], ids[3], ids[0], ids[2]]
    assert [layer.id for layer in store.unused_since(0)] == [ids[1], ids[3], ids[0], ids[2]]


def test_a_layer_that_another_process_removes_meanwhile_is_passed_over(store: LayerStore) -> None:
    add(store, ID, used=100.0)
    gone = add(store, OTHER, used=200.0)
    listing: Iterator[Layer] = iter(store)
    assert next(listing).id == ID
    store.remove(gone)
    assert list(listing) == []


def test_a_name_that_vanishes_while_the_store_is_listed_is_passed_over(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, ID)
    there = list(store.layers.glob(f"*/{INFO}"))
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*there, store.layers / OTHER / INFO])
    assert [layer.id for layer in store] == [ID]
    assert store.unused_since(3600) == []


def test_remove(store: LayerStore) -> None:
    layer, other = add(store, ID), add(store, OTHER)
    store.remove(layer)
    store.remove(layer)  # by another process meanwhile
    assert store.get(ID) is None
    assert store.get(OTHER) == other
    assert names(store.staging) == []
    add(store, ID)


def test_sweep_removes_what_the_dead_left_and_keeps_what_somebody_holds(tmp_path: Path) -> None:
    store, another = (LayerStore(tmp_path, Sync()) for _ in range(2))
    (store.staging / "disk-of-a-killed-bake/out").mkdir(parents=True)
    (store.staging / OTHER / "root").mkdir(parents=True)
    (store.staging / "a-file").touch()
    with store.building(ID) as folder:
        assert folder is not None
        another.sweep()  # flock(2) is per open file: a second store here is like one of another process
        assert names(store.staging) == [ID]
        with another.lock(ID, wait=False) as held:
            assert not held
        store.commit(folder, {"name": "base"})
    with another.lock(ID, wait=False) as held:
        assert held
    assert names(store.layers) == [ID]


def test_building_starts_empty_whatever_was_left_there(store: LayerStore) -> None:
    (store.staging / ID / "root").mkdir(parents=True)
    (store.staging / ID / "root/half").touch()
    assert names(add(store, ID).root) == ["file"]


def test_scratch_is_empty_and_does_not_stay(store: LayerStore) -> None:
    (store.staging / "disk/old").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), store.scratch("disk") as folder:
        assert names(folder) == []
        (folder / "disk.raw").touch()
        raise ZeroDivisionError
    assert names(store.staging) == []


def test_a_cache_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be used: Not a directory") as caught:
        LayerStore(tmp_path / "file", Sync())
    assert "--cache-dir" in caught.value.hint


def test_remove_tree_stops_at_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = tmp_path / "tree/below/mounted"
    mounted.mkdir(parents=True)
    (mounted / "precious").touch()
    real = Path.lstat

    def lstat(self: Path) -> Any:
        return SimpleNamespace(st_dev=-1) if self == mounted else real(self)

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(HostError, match="another file system") as caught:
        remove_tree(tmp_path / "tree")
    assert caught.value.hint == f"umount {mounted}"
    assert (mounted / "precious").exists()


def test_remove_tree_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").touch()
    (tmp_path / "tree/a").mkdir(parents=True)
    (tmp_path / "tree/a/link").symlink_to(tmp_path / "outside")
    (tmp_path / "tree/dangling").symlink_to("nowhere")
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "tree")  # not there: nothing to do
    assert names(tmp_path) == ["outside"]
    assert names(tmp_path / "outside") == ["precious"]


def test_remove_tree_says_what_it_could_not_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(layers.shutil, "rmtree", refuse)
    with pytest.raises(HostError, match="Read-only file system") as caught:
        remove_tree(tmp_path)
    assert caught.value.hint == f"rm -r {tmp_path}"


@pytest.mark.parametrize("kind", [CommandError, StepError])
@pytest.mark.parametrize("said", ["No space left on device", "E: You don't have enough free space in /var."])
def test_a_full_disk_is_named_as_such(tmp_path: Path, kind: type[ImagebuilderError], said: str) -> None:
    with pytest.raises(HostError, match="no space") as caught, full_disk_named(tmp_path):
        raise kind("tar ended with exit code 2", context=f"tar: x: {said}")
    assert "tar: x" in caught.value.context
    with pytest.raises(kind), full_disk_named(tmp_path):
        raise kind("tar ended with exit code 2", context="tar: x: Not found")


def test_disk_usage_counts_a_hard_link_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    alone = disk_usage(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert disk_usage(tmp_path) == alone
