"""Layers that builders share through a storage: taken from it, and given to it.

Nothing here fails a bake. A storage that is down, slow, full, or says what is not true is named once, in one line, and
not asked again; all that a bake takes from it has a time, and all that it gives has it once more.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from imagebuilder.config import ANYONE
from imagebuilder.direct.elsewhere import SECONDS, Sharing, fits
from imagebuilder.direct.layers import Layer, LayerStore
from imagebuilder.direct.remote.archive import read_archive, write_archive
from imagebuilder.direct.remote.statement import (
    KEYS_HINT,
    MAX_ARCHIVE,
    MAX_STATEMENT,
    MAX_UNPACKED,
    PrivateKey,
    PublicKey,
    Statement,
    load_signer,
    load_trusted,
    parse_statement,
)
from imagebuilder.direct.remote.storage import RemoteError, Storage, Watch, Watched, open_storage, within
from imagebuilder.errors import ArtifactError, CacheError, HostError, UntrustedError, UsageError
from imagebuilder.events import Stage
from imagebuilder.sources.addresses import safe_url

FAULTS = (RemoteError, UntrustedError, ArtifactError, CacheError, HostError, OSError)  # what a remote may do to us
T = TypeVar("T")


@dataclass(kw_only=True)
class RemoteCache:
    """A storage, and who is trusted there.

    Attributes:
        name: its address, for people.
        storage: has the layers.
        trusted: the keys that may sign; None: whoever can write there is trusted.
        sign: signs what is pushed; None: it is not signed.
        seconds: that all taking together may use up, and all pushing together.
    """

    name: str
    storage: Storage
    trusted: Sequence[PublicKey] | None
    sign: PrivateKey | None = None
    seconds: float = SECONDS
    fault: str = field(default="", init=False)
    _used: float = field(default=0.0, init=False)
    _taken: set[str] = field(default_factory=set, init=False)

    def take(self, layer_id: str, info: Mapping[str, Any] | None, store: LayerStore, stage: Stage) -> Layer | None:
        """Bring a layer into the store, and return it in use; None when it is not there, or not to be had."""
        if self.fault or not store.writable:
            return None
        try:
            statement = self._within(lambda _: self._statement(layer_id))
            if statement is None:
                return None
            if not fits(statement.info, info):
                raise RemoteError("what it says of a layer does not fit")
            with store.building(layer_id, stage.note) as folder:
                if folder is not None:
                    self._fill(statement, folder, stage)
                    store.commit(folder, statement.info)
        except FAULTS as error:
            self._give_up(error, stage)
            return None
        self._taken.add(layer_id)
        stage.note(f"taken from {self.name}")
        return store.use(layer_id, stage.note)

    def _statement(self, layer_id: str) -> Statement | None:
        data = self.storage.statement(layer_id, MAX_STATEMENT)
        return None if data is None else parse_statement(data, layer_id, self.trusted)

    def _fill(self, statement: Statement, folder: Path, stage: Stage) -> None:
        """Fetch an archive into a file without a name, and unpack it when its bytes are those that were stated."""
        with tempfile.TemporaryFile(dir=folder) as file:

            def fetch(watch: Watch) -> None:
                digest = hashlib.sha256()
                with self.storage.archive(statement.layer, statement.sha256) as pieces:
                    for piece in pieces:
                        watch.step(len(piece))
                        if watch.done > statement.size:
                            raise RemoteError("it sends more than was stated")
                        digest.update(piece)
                        file.write(piece)
                if watch.done != statement.size or digest.hexdigest() != statement.sha256:
                    raise RemoteError(f"it sends other bytes than were stated ({watch.done} of {statement.size})")

            self._within(fetch, lambda done: stage.update(done, statement.size, "B"))
            start = time.monotonic()
            file.seek(0)
            read_archive(file, folder, unpacked=statement.unpacked, until=start + self._left())
            self._used += time.monotonic() - start

    def push(self, layers: Sequence[Layer], store: LayerStore, stage: Stage) -> int:
        """Give layers to the remote, those that it does not have; return how many it has got.

        Args:
            layers: which.
            store: has room for an archive.
            stage: is told what is pushed, and what is wrong.
        """
        self._used, count = 0.0, 0
        for layer in layers:
            if self.fault:
                break
            try:
                if layer.id in self._taken or self._there(layer.id):
                    continue
                stage.note(f"layer {layer.info['name']} goes to {self.name}")
                with store.scratch(f"push-{layer.id}") as folder, tempfile.TemporaryFile(dir=folder) as file:
                    self._give(layer, file, stage)
                count += 1
            except FAULTS as error:
                self._give_up(error, stage)
        return count

    def _there(self, layer_id: str) -> bool:
        """Tell whether the remote has a layer that is good for us; one that is not is replaced."""
        try:
            statement = self._within(lambda _: self._statement(layer_id))
        except UntrustedError:
            return False
        return statement is not None and self._within(lambda _: self.storage.has(statement.sha256))

    def _give(self, layer: Layer, file: IO[bytes], stage: Stage) -> None:
        statement = self._within(lambda watch: _pack(layer, _Counted(file, watch)))
        data = statement.to_bytes(self.sign)
        if len(data) > MAX_STATEMENT or statement.size > MAX_ARCHIVE or statement.unpacked > MAX_UNPACKED:
            raise RemoteError(f"layer {layer.info['name']} is too large for it")

        def send(watch: Watch) -> None:
            self.storage.push(layer.id, data, Watched(file, watch), statement.sha256)

        self._within(send, lambda done: stage.update(done, statement.size, "B"))

    def _left(self) -> float:
        return max(0.0, self.seconds - self._used)

    def _within(self, work: Callable[[Watch], T], show: Callable[[int], None] = lambda done: None) -> T:
        if not self._left():
            raise RemoteError(f"it has had its {self.seconds:.0f} s")
        start = time.monotonic()
        try:
            return within(self._left(), work, show)
        finally:
            self._used += time.monotonic() - start

    def _give_up(self, error: Exception, stage: Stage) -> None:
        self.fault = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        stage.note(f"the remote cache {self.name} is left alone from here on: {self.fault}")


class _Counted:
    """Where an archive is written to: counted, and hashed."""

    def __init__(self, stream: IO[bytes], watch: Watch) -> None:
        self._stream, self._watch, self.digest = stream, watch, hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        self._watch.step(len(data))
        self.digest.update(data)
        return self._stream.write(data)

    @property
    def size(self) -> int:
        return self._watch.done


def _pack(layer: Layer, out: _Counted) -> Statement:
    """Write a layer's archive, and return what can be said of it."""
    unpacked = write_archive(layer.path, out)
    return Statement(layer=layer.id, info=layer.info, sha256=out.digest.hexdigest(), size=out.size, unpacked=unpacked)


def open_remote(sharing: Sharing) -> RemoteCache:
    """Return the remote cache that a user wants; nobody is asked yet.

    Raises:
        UsageError: the address is none, or it is not said who is trusted.
        DataError, HostError: a key is none, or cannot be read.
        ToolMissingError: the library for it is not installed.
    """
    sign = load_signer(sharing.sign) if sharing.sign else None
    trusted = [load_trusted(path) for path in sharing.trust]
    if sign is not None:
        trusted.append(sign.public_key())
    if not (trusted or sharing.anyone):
        raise UsageError(
            "a remote cache is used only when it is said whose layers are trusted there",
            hint=f'[cache] trust = ["layers.pub"], or trust = "{ANYONE}"',
        )
    if sharing.push and sign is None and not sharing.anyone:
        raise UsageError("what is pushed has to be signed", hint=f'[cache] sign = "layers.key"; {KEYS_HINT}')
    return RemoteCache(
        name=safe_url(sharing.remote), storage=open_storage(sharing.remote), sign=sign, seconds=sharing.seconds,
        trusted=None if sharing.anyone else trusted,
    )  # fmt: skip
