"""Layers from elsewhere: the second builder builds nothing, and whatever is wrong with a remote, the bake goes on."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric import ed25519
from layer_stores import ID, OTHER, Sync, add
from test_layer_statement import pem

from imagebuilder.bake import give
from imagebuilder.config import ANYONE
from imagebuilder.content import canonical_json, sha256_bytes
from imagebuilder.direct.elsewhere import Lower, Sharing, places
from imagebuilder.direct.engine import DirectEngine, LayerJob
from imagebuilder.direct.layers import Layer, LayerStore
from imagebuilder.direct.remote import cache as remote_cache
from imagebuilder.direct.remote import members
from imagebuilder.direct.remote.archive import END
from imagebuilder.direct.remote.cache import RemoteCache, open_remote
from imagebuilder.direct.remote.members import Member, encode
from imagebuilder.direct.remote.statement import Statement
from imagebuilder.direct.remote.storage import RemoteError, Watched, open_storage, within
from imagebuilder.direct.seals import SEAL, seal_of
from imagebuilder.errors import CacheError, ToolMissingError, UsageError
from imagebuilder.events import Progress, Stage, Tape

KEY = ed25519.Ed25519PrivateKey.generate()
INFO = {"name": "base", "id": ID}


class Memory:
    """A storage that keeps all in memory, and counts what it is asked."""

    def __init__(self) -> None:
        self.statements: dict[str, bytes] = {}
        self.archives: dict[str, bytes] = {}
        self.asked: list[str] = []

    def statement(self, layer_id: str, max_size: int) -> bytes | None:
        self.asked.append("statement")
        return self.statements.get(layer_id)

    @contextlib.contextmanager
    def archive(self, layer_id: str, sha256: str) -> Iterator[Iterator[bytes]]:
        self.asked.append("archive")
        if sha256 not in self.archives:
            raise RemoteError("it answers 404")
        stream = io.BytesIO(self.archives[sha256])
        yield iter(lambda: stream.read(100), b"")

    def has(self, sha256: str) -> bool:
        self.asked.append("has")
        return sha256 in self.archives

    def push(self, layer_id: str, statement: bytes, archive: io.RawIOBase, sha256: str) -> None:
        self.asked.append("push")
        data = b"".join(iter(lambda: archive.read(100), b""))
        assert sha256_bytes(data) == sha256
        assert len(data) == len(archive)  # type: ignore[arg-type]
        self.archives[sha256] = data
        self.statements[layer_id] = statement


def remote(storage: Any, **changes: Any) -> RemoteCache:
    return RemoteCache(**({"name": "s3://b", "storage": storage, "trusted": [KEY.public_key()], "sign": KEY} | changes))


def new_store(folder: Path) -> LayerStore:
    return LayerStore(folder, Sync())


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def stage(tape: Tape) -> Stage:
    return Stage(tape, "layer:base")


def notes(tape: Tape) -> list[str]:
    return [event.text for event in tape.events if event.kind == "note"]


@pytest.fixture
def full(tmp_path: Path, stage: Stage) -> Memory:
    """A storage with the layer of one builder."""
    storage, store = Memory(), new_store(tmp_path / "first")
    layer = add(store, ID)
    assert remote(storage).push([layer], store, Stage(Tape(), "push")) == 1
    storage.asked.clear()
    return storage


def test_the_second_builder_gets_the_same_layer(tmp_path: Path, full: Memory, stage: Stage, tape: Tape) -> None:
    store = new_store(tmp_path / "second")
    place = remote(full)
    layer = place.take(ID, INFO, store, stage)
    assert layer is not None
    first = new_store(tmp_path / "first").get(ID)
    assert first is not None
    assert seal_of(layer.path) == seal_of(first.path)
    assert layer.info == first.info
    assert (layer.path / "layer.json").read_bytes() == (first.path / "layer.json").read_bytes()
    assert notes(tape) == ["taken from s3://b"]
    assert list(store.staging.iterdir()) == []
    assert place.take(OTHER, None, store, stage) is None
    assert (notes(tape)[1:], place.fault) == ([], "")
    place.push([layer], store, stage)  # it knows where that came from
    assert full.asked == ["statement", "archive", "statement"]


class Nobody:
    """Who must not be needed."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def test_an_engine_builds_nothing_that_is_elsewhere(tmp_path: Path, full: Memory, tape: Tape) -> None:
    job = LayerJob(name="base", id=ID, packages=(), installed={}, steps=(), env={}, binds=(), texts={}, info={})
    nobody: Any = Nobody()
    engine = DirectEngine(
        store=new_store(tmp_path / "second"), runner=nobody, progress=Progress(tape), provision=tmp_path, suite="s",
        arch="amd64", log=tmp_path / "log", make_repository=nobody, elsewhere=[remote(Memory()), remote(full)],
    )  # fmt: skip
    (layer,) = engine.build([job])
    assert (layer.id, layer.info["name"]) == (ID, "base")
    assert [event.cached for event in tape.events if event.kind == "done"] == [True]
    full.asked.clear()
    engine.build([job])
    assert full.asked == []  # what is in the cache is not asked for elsewhere


def test_what_the_remote_has_is_not_pushed_again(tmp_path: Path, full: Memory, stage: Stage) -> None:
    store = new_store(tmp_path / "first")
    layer = store.use(ID)
    assert layer is not None
    assert remote(full).push([layer], store, stage) == 0
    assert full.asked == ["statement", "has"]


def test_an_archive_that_was_lost_is_pushed_again(tmp_path: Path, full: Memory, stage: Stage, tape: Tape) -> None:
    full.archives.clear()
    place = remote(full)
    assert place.take(ID, INFO, new_store(tmp_path / "second"), stage) is None
    assert place.fault
    store = new_store(tmp_path / "first")
    layer = store.use(ID)
    assert layer is not None
    assert remote(full).push([layer], store, stage) == 1
    assert remote(full).take(ID, INFO, new_store(tmp_path / "second"), stage) is not None


def test_what_is_signed_by_others_is_replaced(tmp_path: Path, full: Memory, stage: Stage) -> None:
    store, key = new_store(tmp_path / "first"), ed25519.Ed25519PrivateKey.generate()
    layer = store.use(ID)
    assert layer is not None
    assert remote(full, trusted=[key.public_key()], sign=key).push([layer], store, stage) == 1
    taken = remote(full, trusted=[key.public_key()]).take(ID, INFO, new_store(tmp_path / "second"), stage)
    assert taken is not None


# What a remote does, and what is said of it.
def down(storage: Memory) -> None:
    def refuse(*_: Any) -> None:
        raise RemoteError("it refused the connection")

    storage.statement = refuse  # type: ignore[method-assign, assignment]


def broken(storage: Memory) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ECONNRESET, "Connection reset by peer")

    storage.archive = fail  # type: ignore[method-assign, assignment]


def odd(storage: Memory) -> None:
    storage.statement = lambda *_: urlsplit("http://[")  # type: ignore[method-assign, assignment, return-value]


def document(storage: Memory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.statements[ID])
    return found


def forged(storage: Memory) -> None:
    said = document(storage)
    data = b"another archive"
    said["archive"] |= {"sha256": sha256_bytes(data), "size": len(data)}
    storage.archives[sha256_bytes(data)] = data
    storage.statements[ID] = canonical_json(said)


def unsigned(storage: Memory) -> None:
    said = document(storage)
    del said["signature"]
    storage.statements[ID] = canonical_json(said)


def swapped(storage: Memory) -> None:
    said = Statement(layer=OTHER, info=INFO | {"id": OTHER}, sha256="a" * 64, size=1, unpacked=1)
    storage.statements[ID] = said.to_bytes(KEY)


def truncated(storage: Memory) -> None:
    storage.archives = {sha256: data[:-1] for sha256, data in storage.archives.items()}


def lying(storage: Memory) -> None:
    storage.archives = {sha256: data[:-1] + b"x" for sha256, data in storage.archives.items()}


def endless(storage: Memory) -> None:
    storage.archives = {sha256: data + bytes(1000) for sha256, data in storage.archives.items()}


def other_info(storage: Memory) -> None:
    signed(storage, [], name="runtime")


def signed(storage: Memory, listed: list[Member], **info: Any) -> None:
    """Put an archive of these members there that is signed well."""
    folders = [
        Member(path=path, kind=members.FOLDER, mode=0o755, uid=0, gid=0, mtime_ns=0) for path in (b"root", b"volumes")
    ]
    raw = b"".join(map(encode, [*folders, *listed])) + END
    data = zstandard.ZstdCompressor().compress(raw)
    storage.archives[sha256_bytes(data)] = data
    seal = {"stamp": "a" * 64, "content": "b" * 64}
    said = Statement(
        layer=ID, info=INFO | {SEAL: seal} | info, sha256=sha256_bytes(data), size=len(data), unpacked=len(raw)
    )
    storage.statements[ID] = said.to_bytes(KEY)


def other_content(storage: Memory) -> None:
    signed(storage, [])


def hostile(storage: Memory) -> None:
    link = Member(path=b"root/a", kind=members.SYMLINK, mode=0o777, uid=0, gid=0, mtime_ns=0, target=b"../../..")
    signed(storage, [link, link._replace(path=b"root/a/b")])


FAULTS = {
    down: "it refused the connection",
    broken: "Connection reset by peer",
    odd: "its answer is not understood (ValueError: Invalid IPv6 URL)",
    forged: "its signature is wrong",
    unsigned: "it is not signed",
    swapped: "its statement is of another layer",
    truncated: "it sends other bytes than were stated",
    lying: "it sends other bytes than were stated",
    endless: "it sends more than was stated",
    other_info: "what it says of a layer does not fit",
    other_content: "layer 111111111111 is not as its seal says",
    hostile: "a layer's archive cannot have this: a name in a folder that is not there: b'root/a/b'",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_whatever_is_wrong_the_bake_goes_on_without_it(
    fault: Any, tmp_path: Path, full: Memory, stage: Stage, tape: Tape
) -> None:
    fault(full)
    store, place = new_store(tmp_path / "second"), remote(full)
    assert place.take(ID, INFO, store, stage) is None
    asked = len(full.asked)
    assert place.take(ID, INFO, store, stage) is None
    assert len(full.asked) == asked  # nobody asks again
    assert len(notes(tape)) == 1
    assert notes(tape)[0].startswith(f"the remote cache s3://b is left alone from here on: {FAULTS[fault]}")
    assert [list(folder.iterdir()) for folder in (store.layers, store.staging)] == [[], []]
    add(store, ID)


def test_unsigned_layers_are_taken_by_who_trusts_anyone(tmp_path: Path, full: Memory, stage: Stage) -> None:
    unsigned(full)
    assert remote(full, trusted=None).take(ID, INFO, new_store(tmp_path / "second"), stage) is not None


@pytest.mark.parametrize("method", ["statement", "archive"])
def test_a_remote_that_does_not_end_has_its_time(
    method: str, tmp_path: Path, full: Memory, stage: Stage, tape: Tape
) -> None:
    end = threading.Event()
    setattr(full, method, lambda *_: end.wait(60))
    place = remote(full, seconds=0.3)
    assert place.take(ID, INFO, new_store(tmp_path / "second"), stage) is None
    assert not end.is_set()
    assert "left alone from here on: it was not done within" in notes(tape)[0]
    end.set()


def test_all_questions_share_one_time(tmp_path: Path, full: Memory, stage: Stage) -> None:
    place = remote(full, seconds=0.0)
    assert place.take(OTHER, INFO, new_store(tmp_path / "second"), stage) is None
    assert place.fault == "it has had its 0 s"
    assert full.asked == []


def test_who_is_left_behind_ends_at_its_next_step() -> None:
    go, ended = threading.Event(), threading.Event()

    def work(watch: Any) -> None:
        go.wait(60)
        try:
            watch.step(1)
        finally:
            ended.set()

    with pytest.raises(RemoteError, match="not done within 0 s"):
        within(0.01, work)
    go.set()
    assert ended.wait(60)


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(errno.ENOSPC, "No space left on device"), "No space"), (RemoteError("it answers 403"), "it answers 403")],
)
def test_a_remote_that_takes_nothing_fails_no_bake(
    error: Exception, said: str, tmp_path: Path, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    storage, store = Memory(), new_store(tmp_path)
    monkeypatch.setattr(storage, "push", refuse)
    layers = [add(store, ID), add(store, OTHER)]
    give(layers, [remote(storage)], store, Progress(tape))
    assert len(notes(tape)) == 2
    assert notes(tape)[0] == "layer base goes to s3://b"
    assert f"left alone from here on: {said}" in notes(tape)[1]
    assert storage.asked == ["statement"]
    assert list(store.staging.iterdir()) == []


def test_a_layer_that_cannot_be_archived_is_not_pushed(tmp_path: Path, stage: Stage) -> None:
    storage, store = Memory(), new_store(tmp_path)
    layer = add(store, ID)
    os.mknod(layer.root / "socket", stat.S_IFSOCK | 0o600)
    place = remote(storage)
    assert place.push([layer], store, stage) == 0
    assert "no file, folder, link or device: b'root/socket'" in place.fault
    assert storage.statements == {}


def test_a_layer_that_is_too_large_is_not_pushed(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, store = Memory(), new_store(tmp_path)
    monkeypatch.setattr(remote_cache, "MAX_ARCHIVE", 1)
    place = remote(storage)
    assert place.push([add(store, ID)], store, stage) == 0
    assert place.fault == "layer base is too large for it"
    assert storage.statements == {}


def test_a_read_only_cache_takes_nothing_from_a_remote(tmp_path: Path, full: Memory, stage: Stage, tape: Tape) -> None:
    new_store(tmp_path / "second")
    store = LayerStore(tmp_path / "second", Sync(), read_only=True)
    assert remote(full).take(ID, INFO, store, stage) is None
    assert (full.asked, notes(tape)) == ([], [])


def test_a_layer_of_a_lower_folder_is_used_where_it_is(tmp_path: Path, stage: Stage, tape: Tape) -> None:
    layer = add(new_store(tmp_path / "shared"), ID)
    before = sorted(path for path in (tmp_path / "shared").rglob("*"))
    store = new_store(tmp_path / "own")
    with places(Sharing(lower=(tmp_path / "shared", tmp_path / "none"))) as elsewhere:
        found: list[Layer | None] = [place.take(ID, INFO, store, stage) for place in elsewhere]
        assert [place.push([layer], store, stage) for place in elsewhere] == [0, 0]
        assert not new_store(tmp_path / "shared").remove(layer)  # it is in use
    assert [one and one.path for one in found] == [layer.path, None]
    assert notes(tape) == [f"taken from {tmp_path / 'shared'}"]
    assert sorted(path for path in (tmp_path / "shared").rglob("*")) == before
    assert not (tmp_path / "none").exists()
    assert list(store.layers.iterdir()) == []


def test_a_damaged_layer_of_a_lower_folder_is_left_there(tmp_path: Path, stage: Stage, tape: Tape) -> None:
    layer = add(new_store(tmp_path / "shared"), ID)
    os.truncate(layer.root / "file", 1)
    place = Lower(store=LayerStore(tmp_path / "shared", Sync(), read_only=True))
    assert place.take(ID, INFO, new_store(tmp_path / "own"), stage) is None
    assert "is damaged (its files are not as they were made), and the cache is read-only" in notes(tape)[0]
    assert layer.path.exists()


def test_a_lower_layer_of_other_inputs_is_not_used(tmp_path: Path, stage: Stage) -> None:
    add(new_store(tmp_path / "shared"), ID)
    place = Lower(store=LayerStore(tmp_path / "shared", Sync(), read_only=True))
    assert place.take(ID, INFO | {"steps": []}, new_store(tmp_path / "own"), stage) is None


def test_a_seal_that_does_not_fit_keeps_a_layer_out(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.building(ID) as folder:
        assert folder is not None
        with pytest.raises(CacheError, match="not as its seal says"):
            store.commit(folder, INFO | {SEAL: {"stamp": "", "content": ""}})
    assert store.get(ID) is None


def test_offline_asks_no_remote(tmp_path: Path) -> None:
    with places(Sharing(remote="s3://bucket", anyone=True), offline=True) as elsewhere:
        assert elsewhere == []


@pytest.fixture
def sharing(tmp_path: Path) -> Sharing:
    public, private = tmp_path / "layers.pub", tmp_path / "layers.key"
    public.write_bytes(pem(KEY, private=False))
    private.write_bytes(pem(KEY, private=True))
    private.chmod(0o600)
    return Sharing(remote="oci://registry.example:5000/layers", trust=(public,), sign=private)


def test_a_remote_is_opened_with_its_keys(sharing: Sharing) -> None:
    place = open_remote(sharing)
    assert (place.name, len(place.trusted or ())) == ("oci://registry.example:5000/layers", 2)
    assert len(open_remote(replace(sharing, trust=())).trusted or ()) == 1  # who signs trusts himself
    assert open_remote(replace(sharing, anyone=True)).trusted is None


def test_it_has_to_be_said_who_is_trusted(sharing: Sharing) -> None:
    with pytest.raises(UsageError, match="said whose layers are trusted") as caught:
        open_remote(replace(sharing, trust=(), sign=None))
    assert ANYONE in caught.value.hint
    with pytest.raises(UsageError, match="has to be signed"):
        open_remote(replace(sharing, sign=None, push=True))
    assert open_remote(replace(sharing, sign=None, push=True, anyone=True)).sign is None


@pytest.mark.parametrize(
    "url",
    ["", "s3://", "ftp://host/x", "s3:bucket", "s3://B", "s3://bucket/a b", "oci://registry.example", "oci://host:5000",
     "oci://host:5000/Name", "oci://host:5000/name:tag", "oci://layers/name", "oci://user:hunter2@host/name"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_storage(url)
    assert "hunter2" not in caught.value.message


def test_a_missing_boto3_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebuilder.direct.remote.s3.find_spec", lambda name: None)
    with pytest.raises(ToolMissingError, match="boto3") as caught:
        open_storage("s3://bucket/prefix")
    assert caught.value.hint == "pip install 'imagebuilder[s3]'"


def test_a_watched_file_can_be_read_again() -> None:
    def work(watch: Any) -> list[Any]:
        file = Watched(io.BytesIO(b"12345"), watch)
        return [len(file), file.read(2), file.tell(), file.seek(0), file.read(), file.readable(), file.seekable()]

    assert within(60, work) == [5, b"12", 2, 0, b"12345", True, True]
