"""Whether what is exported lies inside of its sources: beyond them it is 0, which nobody tells from data."""

from __future__ import annotations

from functools import reduce

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.graph.expr import Clipped, Expr, LevelLeaf, Resampled, Shifted
from imageryxr.graph.oblique import PlaneSlice
from imageryxr.graph.strides import Strided

# Per cent of a box that may lie beyond a segmentation unsaid: its edge is seldom just where the image's is.
MIN_SEGMENTATION_PERCENT = 1.0


def coverage_warning(expr: Expr, grid: Grid, verb: str = "exported") -> str:
    """Return what is to be said of a box that reaches out of its sources; nothing if it does not.

    What is drawn over an image is drawn where the image is: of images and segmentations, the images count, and then
    the segmentations as they are, whatever was cut from them. Of several, the one that covers the most.

    Parameters
    ----------
    expr : Expr
        What is exported.
    grid : Grid
        Where it lies.
    verb : str, default "exported"
        What is done with it, as a participle.
    """
    found = _level_extents(expr)
    images = [pair for pair in found if pair[0].source.layer_type == "image"]
    said = _coverage_message(images or found, grid)
    if said:
        return (
            f"{said} are {verb} as 0, which is black and opaque in a picture over an image; give a box inside of it "
            "if that is not meant"
        )
    if images:
        whole = _level_extents(expr, cut=False)
        said = _coverage_message(
            [pair for pair in whole if pair[0].source.layer_type != "image"], grid, MIN_SEGMENTATION_PERCENT
        )
    return said and f"{said} show no cell; give a box inside of it if that is not meant"


def _coverage_message(extents: list[tuple[LevelLeaf, IndexBox]], grid: Grid, few: float = 0.0) -> str:
    boxes: dict[LevelLeaf, list[IndexBox]] = {}
    for leaf, box in extents:
        boxes.setdefault(leaf, []).append(box)
    inside = {leaf: reduce(IndexBox.hull, found).clip(grid.box) for leaf, found in boxes.items()}
    if not inside:
        return ""
    leaf, box = max(inside.items(), key=lambda pair: pair[1].voxels)
    share = 100 * (1 - box.voxels / grid.box.voxels)
    if box == grid.box or share < few:
        return ""
    where = f"only {grid.crop(box).bbox} lies" if box.voxels else "nothing lies"
    return f"the box {grid.bbox} reaches out of {leaf.source.name}: {where} inside of it, and the other {share:.2g} %"


def _level_extents(expr: Expr, *, cut: bool = True) -> list[tuple[LevelLeaf, IndexBox]]:
    """Return where each level ends, in indexes of an expression; of one that is cut at an angle, nothing."""
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
