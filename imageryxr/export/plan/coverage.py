"""Warn of an export that reaches beyond its sources, where it is 0 and cannot be distinguished from data."""

from __future__ import annotations

from functools import reduce

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.graph.expr import Clipped, Expr, LevelLeaf, Resampled, Shifted
from imageryxr.graph.oblique import PlaneSlice
from imageryxr.graph.strides import Strided

# A smaller percentage outside a segmentation is not reported, because its edge seldom matches that of the image.
MIN_SEGMENTATION_PERCENT = 1.0


def coverage_warning(expr: Expr, grid: Grid, verb: str = "exported") -> str:
    """Return a warning about a box that reaches beyond its sources; an empty string if it does not.

    The images are checked first, because overlays are drawn over them; then the segmentations, without the boxes that
    they were cropped to. Of several sources, the one that covers most of the box is reported.

    Parameters
    ----------
    expr : Expr
        The exported expression.
    grid : Grid
        The grid of the expression.
    verb : str, default "exported"
        The action in the warning, as a participle.
    """
    found = _level_extents(expr)
    images = [pair for pair in found if pair[0].source.layer_type == "image"]
    message = _coverage_message(images or found, grid)
    if message:
        return (
            f"{message} are {verb} as 0, which is black and opaque in a picture over an image; give a box inside the "
            "source to avoid this"
        )
    if images:
        whole = _level_extents(expr, cut=False)
        message = _coverage_message(
            [pair for pair in whole if pair[0].source.layer_type != "image"], grid, MIN_SEGMENTATION_PERCENT
        )
    return message and f"{message} show no cell; give a box inside the source to avoid this"


def _coverage_message(extents: list[tuple[LevelLeaf, IndexBox]], grid: Grid, least_percent: float = 0.0) -> str:
    boxes: dict[LevelLeaf, list[IndexBox]] = {}
    for leaf, box in extents:
        boxes.setdefault(leaf, []).append(box)
    inside = {leaf: reduce(IndexBox.hull, found).clip(grid.box) for leaf, found in boxes.items()}
    if not inside:
        return ""
    leaf, box = max(inside.items(), key=lambda pair: pair[1].voxels)
    share = 100 * (1 - box.voxels / grid.box.voxels)
    if box == grid.box or share < least_percent:
        return ""
    where = f"only {grid.crop(box).bbox} lies" if box.voxels else "nothing lies"
    return (
        f"the box {grid.bbox} reaches beyond {leaf.source.name}: {where} inside the source, and the other {share:.2g} %"
    )


def _level_extents(expr: Expr, *, cut: bool = True) -> list[tuple[LevelLeaf, IndexBox]]:
    """Return the bounds of each level in the indexes of an expression; levels below an oblique plane are left out."""
    if isinstance(expr, LevelLeaf):
        return [(expr, expr.bounds)]
    if isinstance(expr, PlaneSlice):
        return []
    found = [pair for child in expr.inputs for pair in _level_extents(child, cut=cut)]
    if isinstance(expr, Shifted):
        return [(leaf, box.shift(expr.by, -1)) for leaf, box in found]
    if isinstance(expr, Clipped) and cut:
        return [(leaf, box.clip(expr.box)) for leaf, box in found]
    if isinstance(expr, Resampled | Strided):
        return [(leaf, expr.box_from_child(box)) for leaf, box in found]
    return found
