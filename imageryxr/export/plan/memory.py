"""Estimates of the memory that a region of a volume needs, computed from its expression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from imageryxr.core.bbox import IndexBox
from imageryxr.export.plan.reads import chunk_extent
from imageryxr.export.read.sweep import BRICK_VOXELS, box_bytes, bricks, volume_sweep
from imageryxr.export.targets.base import Target
from imageryxr.export.targets.pyramid import Pyramid
from imageryxr.graph.dask_inputs import DaskInputs, has_computed_blocks, has_independent_blocks, is_in_memory
from imageryxr.graph.evaluate import required_boxes
from imageryxr.graph.expr import DaskLeaf, Expr, Leaf
from imageryxr.graph.to_dask import blocks_below

# Memory of a read per byte of its result, which includes compressed bytes and a decoded chunk.
FETCH_FACTOR = 1.25
# Blocks in memory at a time, for a dask array whose blocks are computed one by one.
BLOCKS_IN_MEMORY = 3


def region_memory(
    expr: Expr, box: IndexBox, target: Target | None = None, costs: Mapping[str, ComputeCost] | None = None
) -> int:
    """Return the most bytes of memory that a region needs while it is read, drawn, encoded and written.

    Without a target, the region is drawn at once and not encoded. `costs` are those of computing foreign dask arrays,
    by name. Memory that user-defined functions need beyond their inputs and outputs is unknown and not counted.
    """
    piece, brick, spared, encoding, page = box, box.voxels, 0, 0.0, 0
    if target is not None:
        brick, encoding, page = BRICK_VOXELS, target.encoding, target.page_bytes
        if target.kind != "memory":
            sweep = volume_sweep(expr, box, target.granule)
            piece, spared = next(bricks(sweep.slabs[0], target.granule)), sweep.spared
    needs = required_boxes(expr, box)
    given = sum(box_bytes(leaf, b) for leaf, boxes in needs.items() for b in boxes if isinstance(leaf, DaskLeaf))
    stored = sum(box_bytes(leaf, b) for leaf, boxes in needs.items() for b in boxes if not isinstance(leaf, DaskLeaf))
    stored -= spared
    flight = _compute_bytes({leaf: boxes for leaf, boxes in needs.items() if isinstance(leaf, DaskLeaf)}, costs or {})
    drawing = min(1.0, brick / max(1, piece.voxels)) * drawing_bytes(expr, piece)
    # a leaf is exported as it was read, without drawing
    result = box_bytes(expr, piece)
    drawn = 0 if isinstance(expr, Leaf) else result
    return int(
        max(given + flight, given + FETCH_FACTOR * stored + max(drawn + drawing, drawn + encoding * result + page))
    )


def drawing_bytes(expr: Expr, box: IndexBox) -> int:
    """Return the bytes of all intermediate results of a box, without its sources."""
    box = box.clip(expr.bounds)
    if isinstance(expr, Leaf) or not box.voxels:
        return 0
    pairs = zip(expr.inputs, expr.needs(box), strict=True)
    return box_bytes(expr, box) + sum(drawing_bytes(child, need) for child, need in pairs)


def coarse_memory(target: Target) -> int:
    """Return the most bytes of memory that a region of a pyramid's coarser levels needs."""
    if not isinstance(target, Pyramid):
        return 0
    most = 0
    for stage, regions in enumerate(target.later, 1):
        box = regions.largest()
        encoding = int((1 + target.encoding) * box.voxels * target.layer.voxel_bytes)
        most = max(most, target.derived_bytes(stage, box), encoding)
    return most


# ---------------------------------------------------------------------------------------------------------
# blocks of foreign dask arrays


@dataclass(frozen=True)
class ComputeCost:
    """The memory that computing blocks of a foreign dask array needs in addition to the blocks."""

    apart: bool
    """Whether each block is computed on its own."""
    below: int
    """Bytes that the expressions in its graph need per block."""
    held: float = 2.0
    """Bytes in memory per byte of the blocks if all are computed at once; 0 if they are in memory anyway."""


def compute_costs(dask_inputs: DaskInputs) -> dict[str, ComputeCost]:
    """Return the memory that computing blocks of each foreign array needs."""
    found = {}
    for name, array in dask_inputs.items():
        below = [region_memory(expr, box) for expr, box in map(_largest_block, blocks_below(array))]
        if has_computed_blocks(array):
            found[name] = ComputeCost(apart=False, below=0, held=0.0 if is_in_memory(array) else 1.0)
        else:
            found[name] = ComputeCost(has_independent_blocks(array), max(below, default=0))
    return found


def _largest_block(below: tuple[Expr, tuple[tuple[int, ...], ...]]) -> tuple[Expr, IndexBox]:
    expr, splits = below
    box = IndexBox.of_shape(tuple(map(max, splits)))
    return expr, box


def _compute_bytes(needs: Mapping[DaskLeaf, list[IndexBox]], dask_inputs: Mapping[str, ComputeCost]) -> int:
    """Return the bytes of memory that computing boxes of foreign arrays needs; blocks are computed whole.

    Independent blocks are computed one after the other. Blocks with shared inputs are assumed to be in memory at the
    same time, with inputs of the same size.
    """
    apart, together = [0], 0
    for leaf, boxes in needs.items():
        size = leaf.dtype.itemsize * math.prod((*leaf.lead, *leaf.tail))
        how = dask_inputs.get(leaf.name, ComputeCost(apart=False, below=0))
        whole = int(how.held * size * sum(math.prod(chunk_extent(box, leaf)[0]) for box in boxes))
        if how.apart:
            apart.append(min(BLOCKS_IN_MEMORY * size * math.prod(map(max, leaf.splits)), whole) + how.below)
        else:
            together += whole + how.below
    return max(apart) + together
