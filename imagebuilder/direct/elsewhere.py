"""Who may have a layer that the cache does not have. Another cache folder is here; remote caches are in ``remote``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from imagebuilder.content import canonical_json
from imagebuilder.direct.layers import Layer, LayerStore
from imagebuilder.direct.seals import SEAL
from imagebuilder.errors import CacheError
from imagebuilder.events import Stage


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


def fits(found: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Tell whether a layer's info is what it has to be; the seal is of what was made, not of what it is made from."""
    without = {key: value for key, value in found.items() if key != SEAL}
    return wanted is None or without == json.loads(canonical_json(wanted))
