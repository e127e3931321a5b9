"""A treemap: each part of an image as a rectangle of its share, nearly square.

The squarified algorithm of Bruls, Huizing and van Wijk (2000, https://www.win.tue.nl/~vanwijk/stm.pdf).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imagebuilder.verify.model import Inventory

WIDTH, HEIGHT = 160.0, 90.0  # of the whole map, in units of its own
SMALLEST = 0.004  # of the whole: what is smaller cannot be seen, and is one cell with others like it
NO_PACKAGE, NO_LAYER = "files of no package", "packages"


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A rectangle, in the map's units."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A part of the map: ``size`` in bytes, the number of its layer, and where it lies."""

    name: str
    size: int
    layer: int
    box: Box


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """The packages of a layer, the largest first: name and bytes."""

    name: str
    parts: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """Return the bytes of all."""
        return sum(size for _, size in self.parts)


def layers_of(inventory: Inventory, layer_by_package: Mapping[str, str]) -> tuple[Layer, ...]:
    """Return an image's bytes by layer, in the layers' order; last what no package says is its own.

    Args:
        inventory: of the image.
        layer_by_package: as its manifest says; packages that are not in it are of no layer.
    """
    parts: dict[str, list[tuple[str, int]]] = {layer: [] for layer in layer_by_package.values()}
    for package in inventory.packages:
        parts.setdefault(layer_by_package.get(package.name, NO_LAYER), []).append((package.name, package.size))
    rest = inventory.installed_size - sum(package.size for package in inventory.packages)
    if rest > 0:
        parts[NO_PACKAGE] = [(NO_PACKAGE, rest)]
    layers = (
        Layer(name=name, parts=tuple(sorted(inside, key=lambda part: (-part[1], part[0]))))
        for name, inside in parts.items()
    )
    return tuple(layer for layer in layers if layer.size)


def treemap(layers: Sequence[Layer]) -> tuple[Cell, ...]:
    """Return the cells of a map of ``WIDTH`` by ``HEIGHT``: a block for each layer, in it a cell for each package."""
    total = sum(layer.size for layer in layers)
    order = sorted(range(len(layers)), key=lambda at: (-layers[at].size, at))
    boxes = squarify([layers[at].size for at in order], Box(left=0, top=0, width=WIDTH, height=HEIGHT))
    return tuple(
        Cell(name=name, size=size, layer=at, box=inner)
        for at, outer in zip(order, boxes, strict=True)
        for (name, size), inner in _inside(_pooled(layers[at].parts, total * SMALLEST), outer)
    )


def _inside(parts: Sequence[tuple[str, int]], box: Box) -> list[tuple[tuple[str, int], Box]]:
    return list(zip(parts, squarify([size for _, size in parts], box), strict=True))


def _pooled(parts: Sequence[tuple[str, int]], least: float) -> list[tuple[str, int]]:
    """Return the parts that can be seen, and the sum of the others."""
    seen = [part for part in parts if part[1] >= least]
    small = [size for _, size in parts if size < least]
    pool = [(f"{len(small)} smaller packages", sum(small))] if sum(small) else []
    return sorted([*seen, *pool], key=lambda part: (-part[1], part[0]))


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Return a rectangle for each size, that fill ``box`` and are as square as the algorithm gets them.

    Args:
        sizes: above zero, the largest first.
        box: what is to be filled.
    """
    scale = box.width * box.height / sum(sizes) if sizes else 0
    areas, boxes, at = [size * scale for size in sizes], [], 0
    while at < len(areas):
        side, end = min(box.width, box.height), at + 1
        while end < len(areas) and _worst(areas[at : end + 1], side) <= _worst(areas[at:end], side):
            end += 1
        placed, box = _strip(areas[at:end], box)
        boxes += placed
        at = end
    return boxes


def _worst(areas: Sequence[float], side: float) -> float:
    """Return the worst ratio of sides in a strip; what has no area has no shape, and is as bad as can be."""
    thickness = sum(areas) / side if side else 0.0
    if not thickness or not min(areas):
        return float("inf")
    return max(max(thickness**2 / area, area / thickness**2) for area in areas)


def _strip(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """Return a strip of cells along the shorter side, and what is left of the box."""
    wide, side = box.width >= box.height, min(box.width, box.height)
    thickness, along, placed = sum(areas) / side if side else 0.0, 0.0, []
    for area in areas:
        length = area / thickness if thickness else 0.0
        if wide:
            placed.append(Box(left=box.left, top=box.top + along, width=thickness, height=length))
        else:
            placed.append(Box(left=box.left + along, top=box.top, width=length, height=thickness))
        along += length
    if wide:
        rest = Box(left=box.left + thickness, top=box.top, width=max(box.width - thickness, 0.0), height=box.height)
    else:
        rest = Box(left=box.left, top=box.top + thickness, width=box.width, height=max(box.height - thickness, 0.0))
    return placed, rest
