"""Sum and label the voxels, positions and grey values of segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import plain_attrs
from imageryxr.core.bbox import Index3, IndexBox, tidy
from imageryxr.core.grid import Grid
from imageryxr.core.validate import name_array, to_number, to_numbers
from imageryxr.errors import LayerError, Message, MissingIdsWarning, OptionError, Wording, param, warn
from imageryxr.graph.cutout_arrays import check_same_positions
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import Volume, volume_of
from imageryxr.measure.groups import Groups, PairSums, group_rows, merge_pairs
from imageryxr.ops.segment_ids import RequestedIds, segmentation_volume

AXES = ["x", "y", "z"]
_KEPT_ATTRS = ("source", "mip", "resolution", "timestamp")


def prepare_measurement(
    segmentation: xr.DataArray,
    image: xr.DataArray | None = None,
    *,
    ids: Iterable[int] | None = None,
    percentiles: Sequence[float] | None = None,
) -> tuple[list[Volume], partial[SegmentSums], RequestedIds | None]:
    """Check the arguments of `measure`; return the volumes, the task of a block and the requested ids."""
    labels = segmentation_volume(segmentation)
    volumes = [labels]
    if image is not None:
        volumes.append(_image_volume(image))
        check_same_positions(labels, volumes[1], "the segmentation and the image")
    if percentiles is not None:
        _check_percentiles(percentiles, volumes[1:])
    requested = None if ids is None else RequestedIds.of(ids)
    shape = labels.grid.shape
    # The left side is an upper bound of the sum of the indexes of a segment, as a Python integer, which has no limit.
    is_exact = int(np.prod(shape, dtype=object)) * max(shape) < 2**63
    task = partial(sum_block, requested=requested, histogram=percentiles is not None, is_exact=is_exact)
    return volumes, task, requested


def _image_volume(image: xr.DataArray) -> Volume:
    volume = volume_of(image)
    dtype = volume.expr.dtype
    if volume.attrs.get("layer_type") == "segmentation":
        raise LayerError(
            f"{name_array(image.name)} is a segmentation but was given as the image; measure takes (segmentation, "
            "image), and imageryxr.overlaps compares two segmentations"
        )
    if dtype.kind not in "buif":
        raise LayerError(f"{name_array(image.name, 'the image')} has dtype {dtype}; grey values are integers or floats")
    return volume


def _check_percentiles(percentiles: Sequence[float], images: list[Volume]) -> None:
    given: Any = [percentiles] if to_number(percentiles) is not None else percentiles
    values = to_numbers(given)
    is_empty = isinstance(given, list | tuple) and not given
    if not (values or is_empty) or not all(0 <= v <= 100 for v in values):
        example = param("percentiles", (5, 95))
        raise OptionError(param("percentiles", percentiles), " are not numbers from 0 to 100; write e.g. ", example)
    if any(0 < v < 1 for v in values) and max(values) <= 1:
        percents = tuple(tidy(round(100 * v, 9)) for v in values)
        warn(
            Message(
                param("percentiles", percentiles),
                " are percents from 0 to 100, and all of these are at most 1; if they are fractions, give ",
                param("percentiles", percents),
            )
        )
    if not images:
        advice = Wording("give measure(segmentation, image, percentiles=…)", "give --image SOURCE")
        raise OptionError(param("percentiles", text="…"), " needs an image whose grey values are measured; ", advice)
    dtype = images[0].expr.dtype
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise OptionError(
            param("percentiles"),
            f" needs an image of dtype uint8 or uint16, but the image has dtype {dtype}; ",
            Wording(
                "convert it with image.astype('uint16') if its values are integers from 0 to 65535",
                "give an image of 8 or 16 bits, or no --percentiles",
            ),
        )


# ---------------------------------------------------------------------------------------------------------
# partial results


@dataclass(frozen=True)
class SegmentSums:
    """Sums of the segments of a part of an array, in ascending order of id; indexes (z, y, x) count from its start."""

    ids: npt.NDArray[np.uint64]
    columns: dict[str, Array]
    """One row per segment: ``voxels``; ``sums`` (k, 3) of the indexes of all voxels, int64, or Python integers where
    int64 could overflow; ``first`` and ``last``; and with an image those of `imageryxr.kernels.segment_sums.GreySums`.
    """
    histogram: PairSums | None
    """Numbers of voxels by id and grey value."""


def sum_block(
    box: IndexBox,
    labels: Array,
    image: Array | None = None,
    *,
    requested: RequestedIds | None,
    histogram: bool,
    is_exact: bool,
) -> SegmentSums:
    """Return the sums of the segments of a block.

    With `histogram`, the grey values are counted. If `is_exact` is False, sums of indexes are Python integers, because
    they could exceed int64.
    """
    from imageryxr.kernels import segment_sums

    found, tally = segment_sums.sum_segments(labels, None if requested is None else requested.array)
    start = np.array(box.start, np.int64)
    kind = np.int64 if is_exact else object
    sums = found.sums.astype(kind) + found.voxels.astype(kind)[:, np.newaxis] * start.astype(kind)
    columns = {"voxels": found.voxels, "sums": sums, "first": found.first + start, "last": found.last + start}
    values = None
    if image is not None:
        columns |= segment_sums.sum_grey(labels, image, found, tally)._asdict()
        if histogram:
            pairs, counts = segment_sums.count_values(labels, image, tally)
            values = merge_pairs([PairSums(pairs, counts[:, np.newaxis])])
    return SegmentSums(found.ids, columns, values)


def concatenate_segments(parts: list[SegmentSums]) -> SegmentSums:
    """Return the rows of all parts; equal ids of different parts keep separate rows."""
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    tables = [part.histogram for part in parts if part.histogram is not None]
    histogram = PairSums(*map(np.concatenate, zip(*tables, strict=True))) if tables else None
    return SegmentSums(np.concatenate([part.ids for part in parts]), columns, histogram)


def merge_segments(parts: list[SegmentSums]) -> SegmentSums:
    """Return the sums of the segments of all parts."""
    if len(parts) == 1:
        return parts[0]
    parts = [part for part in parts if len(part.ids)] or parts[:1]
    found = concatenate_segments(parts)
    if not len(found.ids):
        return parts[0]
    groups, columns = group_rows(found.ids), found.columns
    merged = {name: groups.add(columns[name]) for name in ("voxels", "sums")}
    merged |= {name: groups.minimum(columns[name]) for name in ("first", "low") if name in columns}
    merged |= {name: groups.maximum(columns[name]) for name in ("last", "high") if name in columns}
    if "total" in columns:
        merged |= _merge_grey(columns, groups)
    histogram = None if found.histogram is None else merge_pairs([found.histogram])
    return SegmentSums(groups.one(found.ids), merged, histogram)


def _merge_grey(columns: dict[str, Array], groups: Groups) -> dict[str, Array]:
    """Merge sums and squared deviations as Chan, Golub and LeVeque (1979) do, relative to one reference of a group."""
    from imageryxr.kernels.segment_sums import subtract

    voxels, total, deviation = (columns[name] for name in ("voxels", "total", "deviation"))
    reference = groups.one(columns["reference"])
    with np.errstate(invalid="ignore", over="ignore"):
        total = total + voxels * subtract(columns["reference"], groups.spread(reference))
        merged = groups.add(total)
        shift = total / voxels - groups.spread(merged / groups.add(voxels))
        deviation = groups.add(deviation) + groups.add(voxels * shift**2)
    return {"reference": reference, "total": merged, "deviation": deviation}


# ---------------------------------------------------------------------------------------------------------
# the result


def label_segments(
    found: SegmentSums,
    volumes: list[Volume],
    requested: RequestedIds | None,
    percentiles: Sequence[float] | None,
    *,
    origin: npt.NDArray[np.float64] | None = None,
) -> xr.Dataset:
    """Return the Dataset of the sums of all segments; ``origin`` is the first voxel (x, y, z) of the array or row."""
    labels = volumes[0]
    absent = [] if requested is None else np.setdiff1d(requested.array, found.ids).tolist()
    if requested is not None and absent:
        warn(requested.missing_message(absent), MissingIdsWarning)
    grid, columns, voxels = labels.grid, found.columns, found.columns["voxels"]
    count = np.maximum(voxels, 1)[:, np.newaxis]
    centers = np.asarray(columns["sums"] / count, np.float64).reshape(-1, 3)
    data: dict[str, Any] = {
        "voxels": ("segment", voxels),
        "volume": ("segment", voxels * voxel_volume(grid), {"units": "nm3"}),
        "centroid": (("segment", "axis"), positions(centers + 0.5, grid, origin), {"units": "nm"}),
        "bbox_min": (("segment", "axis"), positions(columns["first"], grid, origin), {"units": "nm"}),
        "bbox_max": (("segment", "axis"), positions(columns["last"] + 1, grid, origin), {"units": "nm"}),
        "touches_edge": ("segment", _touches_edge(columns, grid.shape, labels.dropped)),
    }
    if "total" in columns:
        data["mean"] = ("segment", columns["reference"] + columns["total"] / count[:, 0])
        data["std"] = ("segment", np.sqrt(columns["deviation"] / count[:, 0]))
        data["min"], data["max"] = ("segment", columns["low"]), ("segment", columns["high"])
    coords: dict[str, Any] = {"segment": found.ids, "axis": AXES}
    if percentiles is not None and found.histogram is not None:
        levels = np.asarray(percentiles, np.float64).ravel()
        data["percentiles"] = (("segment", "percentile"), _percentiles(found.histogram, voxels, levels))
        coords["percentile"] = levels
    return xr.Dataset(data, coords=coords, attrs=kept_attrs(labels))


def kept_attrs(volume: Volume) -> dict[str, Any]:
    """Return the attributes of a segmentation that also describe its measurements."""
    known = {**volume.attrs, "resolution": volume.grid.resolution}
    return plain_attrs({name: known[name] for name in _KEPT_ATTRS if known.get(name) is not None})


def voxel_volume(grid: Grid) -> float:
    """Return the volume of a voxel in nm³."""
    x, y, z = grid.resolution
    return x * y * z


def positions(
    indexes: npt.NDArray[Any], grid: Grid, origin: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """Convert indexes (n, 3) as (z, y, x), relative to the voxel ``origin`` (x, y, z), to positions (x, y, z) in nm.

    By default, ``origin`` is the first voxel of the grid.
    """
    offset = np.array(grid.voxel_offset, np.float64) if origin is None else origin
    resolution = np.array(grid.resolution, np.float64)
    found: npt.NDArray[np.float64] = (indexes[:, ::-1] + offset) * resolution
    return found


def _touches_edge(columns: dict[str, Array], shape: Index3, dropped: tuple[str, ...]) -> Array:
    axes = [axis for axis, dim in enumerate("zyx") if dim not in dropped]
    touches: Array = ((columns["first"] == 0) | (columns["last"] == np.array(shape) - 1))[:, axes].any(axis=1)
    return touches


def _percentiles(
    histogram: PairSums, voxels: npt.NDArray[np.int64], levels: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    values = histogram.pairs[:, 1].astype(np.float64)
    ends = np.cumsum(histogram.sums[:, 0])
    before = (np.cumsum(voxels) - voxels)[:, np.newaxis]
    rank = levels / 100 * (voxels[:, np.newaxis] - 1)
    lower = np.floor(rank).astype(np.int64)
    upper = np.minimum(lower + 1, voxels[:, np.newaxis] - 1)
    low, high = (values[np.searchsorted(ends, before + at, side="right")] for at in (lower, upper))
    found: npt.NDArray[np.float64] = low + (high - low) * (rank - lower)
    return found
