"""Measure a segmentation region by region into a file; continue after an interruption.

The sums of each region are stored in a folder beside the target. A measurement that was stopped continues with the
regions that are not stored. The sums of all regions are merged at the end, and the folder is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.bbox import IndexBox, block_starts, format_triple
from imageryxr.core.fork import cached_property
from imageryxr.core.units import show_bytes
from imageryxr.core.write_file import disk_problem
from imageryxr.core.zarr_groups import write_group
from imageryxr.errors import ImageryError, Message, OptionError, TargetError, TargetExistsError, Wording, param
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import Volume
from imageryxr.graph.reduction import block_splits, group_shape, reduce_volumes
from imageryxr.measure.groups import PairSums
from imageryxr.measure.segment_tables import SegmentSums, label_segments, merge_segments, prepare_measurement
from imageryxr.measure.table import to_dataframe
from imageryxr.ops.segment_ids import RequestedIds

FORMATS = (".parquet", ".csv", ".zarr")
_REGION_VOXELS = 1 << 28
"""Voxels of a region: the work that an interruption may repeat."""
_MERGED_AT_ONCE = 16
_FORMAT = 2
"""Version of the columns in the files of regions."""


@dataclass(frozen=True)
class MeasurementPlan:
    """The plan of a measurement, from `plan_measurement`; creating it reads no voxels.

    Attributes
    ----------
    target
        The file to write.
    regions
        The boxes of voxels (z, y, x) that are measured one after the other.
    done
        The regions that an earlier run has stored.
    """

    target: Path
    regions: tuple[IndexBox, ...]
    volumes: tuple[Volume, ...]
    task: Callable[..., SegmentSums]
    requested: RequestedIds | None
    percentiles: tuple[float, ...] | None

    @property
    def voxels(self) -> int:
        """Number of voxels to measure."""
        return self.volumes[0].grid.box.voxels

    @property
    def read_bytes(self) -> int:
        """Bytes of the decoded voxels of all layers."""
        return self.voxels * sum(volume.expr.dtype.itemsize for volume in self.volumes)

    @property
    def folder(self) -> Path:
        """The folder of the sums of finished regions."""
        return self.target.with_name(f"{self.target.name}.partial")

    @property
    def done(self) -> frozenset[IndexBox]:
        """The regions that are stored already."""
        return frozenset(box for box in self.regions if self.part(box).exists())

    @property
    def record(self) -> Path:
        """The file that states that the target is the complete result of this measurement."""
        text = json.dumps([self.target.name, self.description], sort_keys=True)
        return self.target.parent / ".imageryxr" / f"measure-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"

    @property
    def segments(self) -> int | None:
        """Number of segments in the target if it is the complete result of this measurement; otherwise None."""
        try:
            stored = json.loads(self.record.read_text())
            return int(stored["segments"]) if stored["target"] == _file_stamp(self.target) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def part(self, box: IndexBox) -> Path:
        """Return the file of the sums of a region."""
        return self.folder / f"z{box.start[0]}_y{box.start[1]}_x{box.start[2]}.npz"

    @cached_property
    def description(self) -> dict[str, Any]:
        """The layers and options of the measurement as JSON; an unfinished one continues only if they are equal."""
        layers = [
            {
                **{name: str(volume.attrs.get(name)) for name in ("source", "mip", "timestamp")},
                "grid": str(volume.grid),
                "dtype": str(volume.expr.dtype),
            }
            for volume in self.volumes
        ]
        ids = None if self.requested is None else self.requested.array.tolist()
        levels = None if self.percentiles is None else list(self.percentiles)
        return {"layers": layers, "ids": ids, "percentiles": levels, "regions": len(self.regions)}

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "target": str(self.target),
            "regions": len(self.regions),
            "regions_done": len(self.done) if self.segments is None else len(self.regions),
            "complete": self.segments is not None,
            "voxels": self.voxels,
            "read_bytes": self.read_bytes,
            "layers": self.description["layers"],
        }

    def __str__(self) -> str:
        sizes = format_triple(self.volumes[0].grid.shape[::-1])
        count = len(self.volumes)
        done = f"of which {len(self.done):,} are done" if self.segments is None else "all done: the target is complete"
        lines = [
            f"measurement of {sizes} voxels to {self.target}",
            f"  reads: {show_bytes(self.read_bytes)} of {count} layer{'s' if count > 1 else ''}, each chunk once",
            f"  regions: {len(self.regions):,}, {done}",
        ]
        return "\n".join(lines)


def plan_measurement(
    segmentation: xr.DataArray,
    target: str | Path,
    image: xr.DataArray | None = None,
    *,
    ids: Iterable[int] | None = None,
    percentiles: Sequence[float] | None = None,
) -> MeasurementPlan:
    """Return the plan of a measurement to a file; reads no voxels.

    Parameters
    ----------
    segmentation, image, ids, percentiles
        As in `measure`.
    target : str or Path
        A file that ends in .parquet or .csv, or a folder that ends in .zarr.

    Raises
    ------
    OptionError
        If the target has another ending, or is not a local path.
    ImageryError
        The errors of `measure`.
    """
    path = Path(target)
    if path.suffix not in FORMATS or "://" in str(target):
        raise OptionError(f"the target {str(target)!r} must be a local path that ends in {', '.join(FORMATS)}")
    volumes, task, requested = prepare_measurement(segmentation, image, ids=ids, percentiles=percentiles)
    levels = None if percentiles is None else tuple(float(p) for p in percentiles)
    return MeasurementPlan(path, tuple(_regions(volumes)), tuple(volumes), task, requested, levels)


def _regions(volumes: Sequence[Volume]) -> list[IndexBox]:
    """Return boxes of whole blocks, of about `_REGION_VOXELS` each, that cover the grid."""
    whole = volumes[0].grid.box
    starts = block_starts(block_splits(volumes, whole))
    counts = [len(s) - 1 for s in starts]
    largest = [max(b - a for a, b in pairwise(s)) for s in starts]
    sizes = group_shape(counts, max(1, _REGION_VOXELS // (largest[0] * largest[1] * largest[2])))
    cuts = [[*s[:-1:n], s[-1]] for s, n in zip(starts, sizes, strict=True)]
    spans = [list(pairwise(c)) for c in cuts]
    return [IndexBox((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z, y, x in product(*spans)]


def run_measurement(
    plan: MeasurementPlan,
    *,
    overwrite: bool = False,
    resume: bool = True,
    report: Callable[[int], None] = lambda done: None,
) -> xr.Dataset:
    """Measure all regions of a plan, write the target and return the measurements; computes.

    Parameters
    ----------
    plan : MeasurementPlan
        From `plan_measurement`.
    overwrite : bool, default False
        Whether to replace a target that exists.
    resume : bool, default True
        Whether to continue an unfinished measurement of the same layers and options, or to start again.
    report : callable, optional
        Called with the number of finished regions after each region.

    Raises
    ------
    TargetExistsError
        If the target exists and is not the result of this measurement, or if the folder beside it contains an
        unfinished measurement of other layers or options.
    TargetError
        If a file cannot be written.
    """
    if os.path.exists(plan.target) and not overwrite and plan.segments is None:
        overwrite_it = param("overwrite", True)
        raise TargetExistsError(f"{plan.target} exists; give ", overwrite_it, " to replace it, or another name")
    try:
        _open_folder(plan, resume)
        done = plan.done
        report(len(done))
        for number, box in enumerate([box for box in plan.regions if box not in done], len(done) + 1):
            _save(reduce_volumes(plan.volumes, plan.task, merge_segments, box=box), plan.part(box))
            report(number)
        found = _merge_files([plan.part(box) for box in plan.regions])
        result = label_segments(found, list(plan.volumes), plan.requested, plan.percentiles)
        write_measurements(result, plan.target)
        stored = {"target": _file_stamp(plan.target), "segments": result.sizes["segment"]}
        plan.record.parent.mkdir(exist_ok=True)
        _replace(plan.record, lambda path: path.write_text(json.dumps(stored)))
        shutil.rmtree(plan.folder)
    except BaseException as error:
        if not isinstance(error, OSError) or isinstance(error, ImageryError):
            error.add_note(_resume_note(plan, resume))
            raise
        reason, advice = disk_problem(error)
        failed = TargetError(f"{plan.target} cannot be written: {reason}; {advice}, or choose another target")
        failed.add_note(_resume_note(plan, resume))
        raise failed from error
    return result


def _resume_note(plan: MeasurementPlan, resume: bool) -> Message:
    """Return a note on a measurement that has stopped: its finished regions, and how to continue."""
    count, total = len(plan.done), len(plan.regions)
    if not count:
        return Message(f"none of {total:,} regions of {plan.target} was finished")
    without = () if resume else (" without ", param("resume", False))
    same = Wording("run the same call", "run the same command")
    return Message(
        f"{count:,} of {total:,} regions of {plan.target} are done and kept in {plan.folder}: ",
        same,
        " again",
        *without,
        " to continue",
    )


def _file_stamp(target: Path) -> list[int]:
    """Return the size and the time of the last change of a file, or of the metadata of a Zarr group."""
    found = (target / "zarr.json" if target.is_dir() else target).stat()
    return [found.st_size, found.st_mtime_ns]


def _open_folder(plan: MeasurementPlan, resume: bool) -> None:
    """Create the folder of finished regions, or check that it belongs to the same measurement."""
    manifest = plan.folder / "measurement.json"
    if plan.folder.exists() and not resume:
        shutil.rmtree(plan.folder)
    description = {**plan.description, "format": _FORMAT}
    if manifest.exists() and json.loads(manifest.read_text()) != description:
        raise TargetExistsError(
            f"{plan.folder} contains an unfinished measurement of other layers, options or timestamps, or of another "
            "version of imageryxr; give the same ones, ",
            param("resume", False),
            " to delete it and start again, or another name",
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    _replace(manifest, lambda path: path.write_text(json.dumps(description)))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file or folder under another name and then rename it, so that it is never incomplete."""
    new = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        write(new)
        if path.is_dir():
            shutil.rmtree(path)
        new.replace(path)
    finally:
        if new.is_dir():
            shutil.rmtree(new, ignore_errors=True)
        else:
            new.unlink(missing_ok=True)


def write_measurements(measurements: xr.Dataset, target: Path) -> None:
    """Write measurements to a Parquet or CSV table, or to a Zarr group, which keeps their dims and attrs."""
    writers: dict[str, Callable[[Path], Any]] = {
        ".parquet": lambda path: to_dataframe(measurements).to_parquet(path),
        ".csv": lambda path: to_dataframe(measurements).to_csv(path),
        ".zarr": lambda path: write_group(_as_zarr(measurements), path),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    _replace(target, writers[target.suffix])


def _as_zarr(measurements: xr.Dataset) -> xr.Dataset:
    # Zarr 3 specifies strings of variable length only.
    return measurements.assign_coords(axis=measurements["axis"].astype(object))


# ---------------------------------------------------------------------------------------------------------
# files of regions


def _save(sums: SegmentSums, path: Path) -> None:
    arrays = {"ids": sums.ids, **sums.columns}
    if arrays["sums"].dtype == object:  # Python integers beyond int64, which are stored as two int64
        whole = arrays.pop("sums")
        arrays |= {"sums_high": (whole >> 32).astype(np.int64), "sums_low": (whole & 0xFFFFFFFF).astype(np.int64)}
    if sums.histogram is not None:
        arrays |= {f"histogram_{name}": values for name, values in sums.histogram._asdict().items()}

    def write(new: Path) -> None:
        with new.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    _replace(path, write)


def _load(path: Path) -> SegmentSums:
    with np.load(path) as file:
        arrays: dict[str, Array] = dict(file)
    if "sums_high" in arrays:
        arrays["sums"] = (arrays.pop("sums_high").astype(object) << 32) + arrays.pop("sums_low").astype(object)
    tables = [arrays.pop(f"histogram_{name}") for name in PairSums._fields if f"histogram_{name}" in arrays]
    return SegmentSums(arrays.pop("ids"), arrays, PairSums(*tables) if tables else None)


def _merge_files(paths: list[Path]) -> SegmentSums:
    found = _load(paths[0])
    for i in range(1, len(paths), _MERGED_AT_ONCE):
        found = merge_segments([found, *map(_load, paths[i : i + _MERGED_AT_ONCE])])
    return found
