"""Layer stores for tests: whoever starts ``sync`` is a fake, and a layer is one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from imagebuilder.direct.layers import INFO, Layer, LayerStore

ID = "1" * 64
OTHER = "2" * 64


class Sync:
    """Takes the one program that the store starts; ``look`` sees the folder as it is at that moment."""

    def __init__(self, look: Callable[[Path], None] = lambda folder: None, *, code: int = 0) -> None:
        self.synced: list[str] = []
        self._look, self._code = look, code

    def __call__(self, argv: Sequence[str], **options: Any) -> Any:
        program, flag, folder = argv
        assert (program, flag) == ("sync", "-f")
        self.synced.append(folder)
        self._look(Path(folder))
        return SimpleNamespace(wait=lambda: self._code, poll=lambda: self._code)


def add(store: LayerStore, layer_id: str, *, used: float | None = None) -> Layer:
    """Build a layer with one file in it, last used at the time ``used``."""
    with store.building(layer_id) as folder:
        assert folder is not None
        (folder / "root/file").write_text(layer_id)
        layer = store.commit(folder, {"name": "base", "id": layer_id})
    if used is not None:
        os.utime(layer.path / INFO, (used, used))
    return layer
