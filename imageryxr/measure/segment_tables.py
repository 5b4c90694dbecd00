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
from imageryxr.core.validate import to_number, to_numbers
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
    # The sum of the indexes of a segment is at most this; Python's integers have no limit.
    is_exact = int(np.prod(shape, dtype=object)) * max(shape) < 2**63
    task = partial(sum_block, requested=requested, histogram=percentiles is not None, is_exact=is_exact)
    return volumes, task, requested


def _image_volume(image: xr.DataArray) -> Volume:
    volume = volume_of(image)
    dtype = volume.expr.dtype
    if volume.attrs.get("layer_type") == "segmentation":
        raise LayerError(
            f"{image.name!r} is a segmentation but was given as the image; measure takes (segmentation, image), and "
            "imageryxr.overlaps compares two segmentations"
        )
    if dtype.kind not in "buif":
        raise LayerError(f"the image {image.name!r} has dtype {dtype}; grey values are integers or floats")
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
        raise OptionError(param("percentiles", text="…"), " are those of the grey values of an image; ", advice)
    dtype = images[0].expr.dtype
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise OptionError(
            param("percentiles"),
            f" come from exact histograms of uint8 or uint16 values, but the image has dtype {dtype}; ",
            Wording(
                "convert it with image.astype('uint16') if its values are integers from 0 to 65535",
                "give an image of 8 or 16 bits, or no --percentiles",
            ),
        )


# ---------------------------------------------------------------------------------------------------------
# partial results


@dataclass(frozen=True)
class Grey:
    """Grey values of segments: the mean, the sum of squared deviations from it, and the range."""

    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    low: Array
    high: Array


@dataclass(frozen=True)
class SegmentSums:
    """Sums of the segments of a part of an array, in ascending order of id; indexes (z, y, x) count from its start."""

    ids: npt.NDArray[np.uint64]
    voxels: npt.NDArray[np.int64]
    sums: Array
    """(k, 3), the sums of the indexes of all voxels: int64, or Python integers where int64 could overflow."""
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    grey: Grey | None
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
    """Return the sums of the segments of a block."""
    from imageryxr.kernels import segment_sums

    found, tally = segment_sums.sum_segments(labels, None if requested is None else requested.array)
    grey = values = None
    if image is not None:
        grey = Grey(*segment_sums.sum_grey(labels, image, found, tally))
        if histogram:
            pairs, counts = segment_sums.count_values(labels, image, tally)
            values = merge_pairs([PairSums(pairs, counts[:, np.newaxis])])
    start = np.array(box.start, np.int64)
    kind = np.int64 if is_exact else object
    sums = found.sums.astype(kind) + found.voxels.astype(kind)[:, np.newaxis] * start.astype(kind)
    return SegmentSums(found.ids, found.voxels, sums, found.first + start, found.last + start, grey, values)


def merge_segments(parts: list[SegmentSums]) -> SegmentSums:
    """Return the sums of the segments of all parts."""
    if len(parts) == 1:
        return parts[0]
    parts = [part for part in parts if len(part.ids)] or parts[:1]
    ids = np.concatenate([part.ids for part in parts])
    if not len(ids):
        return parts[0]
    groups = group_rows(ids)
    voxels, sums, first, last = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("voxels", "sums", "first", "last")
    )
    greys = [part.grey for part in parts if part.grey is not None]
    histograms = [part.histogram for part in parts if part.histogram is not None]
    return SegmentSums(
        groups.one(ids),
        groups.add(voxels),
        groups.add(sums),
        groups.minimum(first),
        groups.maximum(last),
        _merge_grey(greys, voxels, groups) if greys else None,
        merge_pairs(histograms) if histograms else None,
    )


def _merge_grey(parts: list[Grey], voxels: npt.NDArray[np.int64], groups: Groups) -> Grey:
    """Merge means and squared deviations as Chan, Golub and LeVeque (1979) do, relative to one mean of each group."""
    names = ("mean", "deviation", "low", "high")
    mean, deviation, low, high = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    reference = groups.one(mean)
    with np.errstate(invalid="ignore"):
        shift = groups.add(voxels * (mean - groups.spread(reference))) / groups.add(voxels)
        # The difference of infinite means is NaN, but their sum is infinite if their signs are equal.
        merged = np.where(np.isfinite(shift), reference + shift, groups.add(mean))
        deviation = groups.add(deviation) + groups.add(voxels * (mean - groups.spread(merged)) ** 2)
    return Grey(merged, deviation, groups.minimum(low), groups.maximum(high))


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
    grid, count = labels.grid, np.maximum(found.voxels, 1)[:, np.newaxis]
    centers = np.asarray(found.sums / count, np.float64).reshape(-1, 3)
    data: dict[str, Any] = {
        "voxels": ("segment", found.voxels),
        "volume": ("segment", found.voxels * voxel_volume(grid), {"units": "nm3"}),
        "centroid": (("segment", "axis"), positions(centers + 0.5, grid, origin), {"units": "nm"}),
        "bbox_min": (("segment", "axis"), positions(found.first, grid, origin), {"units": "nm"}),
        "bbox_max": (("segment", "axis"), positions(found.last + 1, grid, origin), {"units": "nm"}),
        "touches_edge": ("segment", _touches_edge(found, grid.shape, labels.dropped)),
    }
    if found.grey is not None:
        data["mean"] = ("segment", found.grey.mean)
        data["std"] = ("segment", np.sqrt(found.grey.deviation / count[:, 0]))
        data["min"], data["max"] = ("segment", found.grey.low), ("segment", found.grey.high)
    coords: dict[str, Any] = {"segment": found.ids, "axis": AXES}
    if percentiles is not None and found.histogram is not None:
        levels = np.asarray(percentiles, np.float64).ravel()
        data["percentiles"] = (("segment", "percentile"), _percentiles(found.histogram, found.voxels, levels))
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
    """Return positions (n, 3) along x, y, z in nm of places (z, y, x) in voxels from a voxel (x, y, z).

    The default of ``origin`` is the first voxel of the grid.
    """
    offset = np.array(grid.voxel_offset, np.float64) if origin is None else origin
    resolution = np.array(grid.resolution, np.float64)
    found: npt.NDArray[np.float64] = (indexes[:, ::-1] + offset) * resolution
    return found


def _touches_edge(found: SegmentSums, shape: Index3, dropped: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    axes = [axis for axis, dim in enumerate("zyx") if dim not in dropped]
    touches: npt.NDArray[np.bool_] = ((found.first == 0) | (found.last == np.array(shape) - 1))[:, axes].any(axis=1)
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
