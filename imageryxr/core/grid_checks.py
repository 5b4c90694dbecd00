"""Check boxes and grids, and explain mismatches in errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from imageryxr.core.bbox import SNAP, BBox, IndexBox, Triple, format_triple, tidy, to_fraction
from imageryxr.core.grid import Grid
from imageryxr.errors import BoxError, GridMismatchError, Message, OutOfVolumeError, param, warn


def check_same_grid(a: Grid, b: Grid, what: str) -> None:
    """Raise `GridMismatchError` with the difference and a correction unless two grids are equal."""
    if a.shape == b.shape and a.shift_to(b) == (0, 0, 0):
        return
    steps = [abs(to_fraction(m) - to_fraction(n)) for m, n in zip(a.voxel_offset, b.voxel_offset, strict=True)]
    half = a.resolution == b.resolution and all(abs(step % 1 - Fraction(1, 2)) < SNAP for step in steps[:2])
    corner = param("assume", "corner")
    hint = Message("they are half a voxel apart, so if one is an OME-Zarr, open it with ", corner, "; or ")
    raise GridMismatchError(
        f"{what} do not lie on one grid: {a} against {b}; ",
        hint if half else "",
        "align them with imageryxr.align(image, segmentation) or imageryxr.regrid(array, like=other)",
    )


def out_of_volume_error(bbox: BBox, grid: Grid, what: str, others: Sequence[Grid] = ()) -> OutOfVolumeError:
    """Return the error for a box entirely outside a volume, with the most likely correction.

    The usual cause is numbers in another unit, so the message suggests a resolution in which the box would fit.
    """
    message = f"the box {bbox} lies wholly outside {what}, which covers {grid.bbox}"
    if bbox.resolution != grid.resolution:  # state both boxes in the same unit
        message += f", which is {_convert_unit(grid.bbox, bbox.resolution)}"
    units = [(1.0, 1.0, 1.0), *(g.resolution for g in (grid, *others))]
    for unit in units:
        again = BBox(bbox.lo, bbox.hi, resolution=unit)
        if unit != bbox.resolution and again.intersection(grid.bbox):
            kind = "nanometres" if unit == units[0] else f"voxels of {format_triple(unit)} nm"
            given = tuple(tidy(u) for u in unit)
            return OutOfVolumeError(f"{message}. Its numbers fit if they are {kind}: give ", param("resolution", given))
    repair = _reversed_axes_hint(bbox, grid, units)
    if repair:
        return OutOfVolumeError(f"{message}. ", repair)
    size = tuple(tidy(r) for r in grid.resolution)
    is_other_unit = bbox.resolution not in (units[0], grid.resolution)
    unit_hint = Message("in nm or with ", param("resolution", size)) if not is_other_unit else "in the unit of the box"
    return OutOfVolumeError(f"{message}; give corners inside it, ", unit_hint, " (points are x, y, z)")


# A box may extend beyond its volume, within limits: it must not have both more voxels than any real volume and this
# many times the voxels of its own volume, nor be so long that its coordinates alone would fill the memory.
_MAX_RATIO = 1000
_MAX_VOXELS = 2**50
_MAX_LENGTH = 2**26


def check_extent(box: IndexBox, bbox: BBox, grid: Grid, what: str) -> None:
    """Raise `BoxError` if a box is implausibly larger than its volume, before anything of that size is allocated."""
    is_too_large = box.voxels > _MAX_VOXELS and box.voxels > _MAX_RATIO * grid.box.voxels
    is_too_large |= any(n > _MAX_LENGTH and n > 4 * own for n, own in zip(box.shape, grid.shape, strict=True))
    if is_too_large:
        raise BoxError(
            f"the box {bbox} would be {format_triple(box.shape[::-1])} voxels, and {what} has "
            f"{format_triple(grid.shape[::-1])}, which cover {grid.bbox}: a box may extend beyond the volume, but not "
            "so far; give corners near the volume, and check the zeros and the resolution (nm per unit)"
        )


def _reversed_axes_hint(bbox: BBox, grid: Grid, units: Sequence[Triple]) -> str:
    """Return a hint if a box would fit with its corners read as (z, y, x), otherwise an empty string."""
    for unit in (bbox.resolution, bbox.resolution[::-1], *units):
        if BBox(bbox.lo[::-1], bbox.hi[::-1], resolution=unit).intersection(grid.bbox):
            also = Message(", with ", param("resolution", tuple(tidy(u) for u in unit)))
            changes = () if unit == bbox.resolution else (also,)
            return Message("Its numbers fit the other way round", *changes, ": points are (x, y, z), not (z, y, x)")
    return ""


def _convert_unit(bbox: BBox, unit: Triple) -> BBox:
    """Return the same box in another unit."""
    ends = zip(bbox.edges(), unit, strict=True)
    lo, hi = zip(*((tidy(a / to_fraction(u)), tidy(b / to_fraction(u))) for (a, b), u in ends), strict=True)
    return BBox(lo, hi, resolution=unit)


_TRANSLATION = "writers differ in whether the translation is the centre or the corner of a voxel"


def warn_half_voxel(first: Grid, first_attrs: Mapping[str, Any], second: Grid, second_attrs: Mapping[str, Any]) -> None:
    """Warn if one of two arrays is an OME-Zarr on a grid half a voxel from the grid of the other.

    According to the specification, an OME-Zarr without a translation has the centre of its first voxel at 0, while
    precomputed has the corner there. Many writers of OME-Zarr mean the corner.
    """
    for own, attrs, other in ((first, first_attrs, second), (second, second_attrs, first)):
        source = str(attrs.get("source", ""))
        if source.startswith("zarr") and _has_offset(own, 0.5) and _has_offset(other, 0):
            half = " × ".join(f"{r / 2:g}" for r in own.resolution)
            warn(
                Message(
                    f"the grid of {source} is exactly half a voxel ({half} nm) away from the grid of the ",
                    f"other layer: {_TRANSLATION}. If they should share a grid, open it with ",
                    param("assume", "corner"),
                )
            )
            return


def _has_offset(grid: Grid, part: float) -> bool:
    """Return whether a grid has a given fractional offset along x and y, and along z the same or none."""
    x, y, z = (to_fraction(o) % 1 for o in grid.voxel_offset)
    return all(abs(v - to_fraction(part)) < SNAP for v in (x, y)) and min(abs(z - to_fraction(part)), z) < SNAP
