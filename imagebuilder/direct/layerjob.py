"""What one layer is built from. Apart from the engine: a bake that finds nothing to do does not wait for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imagebuilder.direct.sandbox import Bind
from imagebuilder.model import LockedPackage


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerJob:
    """All that one layer is built from.

    Attributes:
        id: its content id.
        packages: exact packages that it adds, as found in ``repository``.
        installed: every package of the tree with its version, once the layer is complete.
        steps: paths below ``provision/steps``.
        env: environment of the steps.
        binds: files and folders that the steps see.
        texts: files of the tree that are written before the steps run, by their absolute path.
        info: plain data for ``layer.json``.
        on_base: it is made on the lowest layer alone, whatever else is below it.
        fast: make the lowest layer with :mod:`imagebuilder.direct.fastroot`, not with mmdebstrap.
    """

    name: str
    id: str
    packages: tuple[LockedPackage, ...]
    installed: Mapping[str, str]
    steps: tuple[str, ...]
    env: Mapping[str, str]
    binds: tuple[Bind, ...]
    texts: Mapping[str, str]
    info: Mapping[str, object]
    on_base: bool = False
    fast: bool = True

    @property
    def whole_info(self) -> dict[str, object]:
        """Return what ``layer.json`` says, but for the seal."""
        return {"name": self.name, "id": self.id, **self.info}
