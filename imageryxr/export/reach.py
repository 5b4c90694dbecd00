"""Whether what is exported lies inside of its sources: beyond them it is 0, which nobody tells from data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from imageryxr.boxes import IndexBox
from imageryxr.expr import Clipped, Expr, LevelLeaf, Resampled, Shifted
from imageryxr.grid import Grid
from imageryxr.slicing import Sliced


def outside(expr: Expr, grid: Grid) -> str:
    """Return what is to be said of a box that reaches out of its sources; nothing if it does not.

    What is drawn over an image is drawn where the image is: of images and segmentations, the images count. Of several,
    the one that covers the most.

    Parameters
    ----------
    expr : Expr
        What is exported.
    grid : Grid
        Where it lies.
    """
    boxes: dict[LevelLeaf, list[IndexBox]] = {}
    for leaf, box in _extents(expr):
        boxes.setdefault(leaf, []).append(box)
    images = {leaf for leaf in boxes if leaf.source.layer_type == "image"}
    inside = {
        leaf: reduce(IndexBox.hull, found).clip(grid.box)
        for leaf, found in boxes.items()
        if not images or leaf in images
    }
    if not inside:
        return ""
    leaf, box = max(inside.items(), key=lambda pair: pair[1].voxels)
    if box == grid.box:
        return ""
    share = 100 * (1 - box.voxels / grid.box.voxels)
    where = f"only {grid.crop(box).bbox} lies" if box.voxels else "nothing lies"
    return (
        f"the box {grid.bbox} reaches out of {leaf.source.name}: {where} inside of it, and the other "
        f"{share:.2g} % are exported as 0, which is black and opaque in a picture over an image; give a box inside of "
        "it if that is not meant"
    )


def _extents(expr: Expr) -> Iterator[tuple[LevelLeaf, IndexBox]]:
    """Return where each level ends, in indexes of an expression; of one that is cut at an angle, nothing."""
    if isinstance(expr, LevelLeaf):
        yield expr, expr.bounds
    if isinstance(expr, Sliced):
        return
    for child in expr.inputs:
        for leaf, box in _extents(child):
            if isinstance(expr, Shifted):
                box = box.shift(expr.by, -1)
            elif isinstance(expr, Clipped):
                box = box.clip(expr.box)
            elif isinstance(expr, Resampled):
                box = expr.mapped(box)
            yield leaf, box
