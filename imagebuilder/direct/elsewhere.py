"""Who may have a layer that the cache does not have. Another cache folder is here; remote caches are in ``remote``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imagebuilder.content import canonical_json
from imagebuilder.direct.layers import Layer, LayerStore
from imagebuilder.direct.seals import SEAL
from imagebuilder.errors import CacheError
from imagebuilder.events import Stage

SECONDS = 120.0  # for all layers of a bake; a stack of 300 MB at 25 Mbit/s takes 96


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """With whom layers are shared.

    Attributes:
        lower: other cache folders, whose layers are used where they are.
        remote: the address of a remote cache; empty: none.
        push: give it what it does not have.
        trust: files of the keys that may sign its layers.
        anyone: trust whoever can write there, with or without keys.
        sign: file of the key that signs what is pushed, and that is trusted as well.
        seconds: that a bake gives it to take layers from it, and once more to push some.
    """

    lower: tuple[Path, ...] = ()
    remote: str = ""
    push: bool = False
    trust: tuple[Path, ...] = ()
    anyone: bool = False
    sign: Path | None = None
    seconds: float = SECONDS


class Elsewhere(Protocol):
    """A place that may have a layer which the cache does not have."""

    def take(self, layer_id: str, info: Mapping[str, Any] | None, store: LayerStore, stage: Stage) -> Layer | None:
        """Return a layer that a bake can use until it ends, or None. It never fails; ``stage`` hears what is wrong.

        Args:
            layer_id: which.
            info: what its info has to be, but for the seal; None: whatever it is.
            store: the cache's.
            stage: what the layer is taken for.
        """

    def push(self, layers: Sequence[Layer], store: LayerStore, stage: Stage) -> int:
        """Give layers to the place, those that it does not have, and return how many it has got. It never fails."""


@dataclass(frozen=True, kw_only=True)
class Lower:
    """Another cache folder: its layers are used where they are, and it may be read-only."""

    store: LayerStore

    def take(self, layer_id: str, info: Mapping[str, Any] | None, store: LayerStore, stage: Stage) -> Layer | None:
        """Return a layer of the folder; a damaged one counts as not there."""
        try:
            found = self.store.use(layer_id, stage.note)
        except (CacheError, OSError) as error:
            stage.note(str(error))
            return None
        if found is None or not fits(found.info, info):
            return None
        stage.note(f"taken from {self.store.layers.parent}")
        return found

    def push(self, layers: Sequence[Layer], store: LayerStore, stage: Stage) -> int:
        """Give nothing: who bakes with that folder fills it."""
        return 0


@contextlib.contextmanager
def places(sharing: Sharing, *, offline: bool = False) -> Iterator[list[Elsewhere]]:
    """Hand out who may have layers, the nearest first; what was taken from a folder stays there until the block ends.

    Raises:
        UsageError, DataError, HostError, ToolMissingError: the remote cache, or a key, cannot be what it is said to be.
    """
    with contextlib.ExitStack() as stack:
        found: list[Elsewhere] = [
            Lower(store=stack.enter_context(LayerStore(folder, read_only=True))) for folder in sharing.lower
        ]
        if sharing.remote and not offline:
            from imagebuilder.direct.remote.cache import open_remote  # and cryptography, which others do not need

            found.append(open_remote(sharing))
        yield found


def fits(found: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Tell whether a layer's info is what it has to be; the seal is of what was made, not of what it is made from."""
    without = {key: value for key, value in found.items() if key != SEAL}
    return wanted is None or without == json.loads(canonical_json(wanted))
