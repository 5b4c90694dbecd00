"""Plan and run exports of cutouts: Zarr with one chunk per cutout, a picture per cutout, or a page of pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import CUTOUT
from imageryxr.core.units import show_bytes
from imageryxr.core.validate import check_whole, name_array
from imageryxr.errors import LayerError, Message, OptionError, Wording
from imageryxr.export.cutouts.formats import CutoutJob, PageJob, PicturesJob, ZarrJob
from imageryxr.export.report import ExportReport, progress_bar, update_bar
from imageryxr.export.store.local import is_remote
from imageryxr.export.targets.omezarr import check_compressor
from imageryxr.graph.cutout_blocks import CutoutLayer, ReadPlan, cutout_layers
from imageryxr.graph.cutout_reads import BATCH_BYTES, KEPT_BYTES, ChunkId, chunk_bytes
from imageryxr.ops.cutout_columns import selections_of
from imageryxr.ops.cutout_ids import report_missing
from imageryxr.ops.cutout_verbs import central_slices

_KINDS = "'boxes.zarr', 'gallery/{cutout:05d}.png', 'gallery/{cutout:05d}.jpg' or 'gallery.html'"
_JPEG = (".jpg", ".jpeg")
_OPTIONS: dict[str, tuple[type[CutoutJob], set[str]]] = {
    ".zarr": (ZarrJob, {"compressor"}),
    ".html": (PageJob, {"labels", "quality", "scale"}),
    ".png": (PicturesJob, {"compress_level", "scale"}),
    **dict.fromkeys(_JPEG, (PicturesJob, {"quality", "scale"})),
}
"""The kinds of targets, by the ends of their names, and their options."""


def export_cutouts(
    obj: xr.DataArray | xr.Dataset,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = True,
    client: Any = None,
    workers: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> ExportReport:
    """Write the cutouts that no earlier, interrupted call has written; see `imageryxr.export`."""
    if workers is not None:
        check_whole("workers", workers, 1)
    job = _make_job(obj, target, options)
    begin = time.monotonic()
    with job.site.hold_lock():
        return _run(job, begin, overwrite, resume, client, workers, progress)


def _run(
    job: CutoutJob, begin: float, overwrite: bool, resume: bool, client: Any, workers: int | None, progress: bool | None
) -> ExportReport:
    if not resume:
        job.discard()
    job.check_target(overwrite)
    rows = {name: np.arange(a.sizes[CUTOUT]) for name, a in job.arrays.items()}
    done = job.done_cutouts()
    rows = {n: r[[(n, int(i)) not in done for i in r]] for n, r in rows.items()}
    total = sum(a.sizes[CUTOUT] for a in job.arrays.values())
    left = sum(map(len, rows.values()))
    scheduler = _scheduler(client, workers)
    if left:
        job.prepare()
        dask_arrays = [a.variable._data for a in job.arrays.values() if isinstance(a.variable._data, da.Array)]
        selections = [one for array in dask_arrays for one in selections_of(array)]
        cluster = client if hasattr(client, "get_events") else None
        with report_missing(selections, cluster), progress_bar(job.place, total, total - left, progress) as shown:
            update_bar(shown, total - left)
            context, lock = copy_context(), Lock()  # dask's threads lack this context, which has the callback

            def advance(count: int) -> None:
                with lock:
                    context.run(update_bar, shown, shown.whole + count)

            try:
                _store(job, {name: r for name, r in rows.items() if len(r)}, advance, scheduler)
            except BaseException as error:
                error.add_note(_resume_note(job, total))
                raise
    size = job.publish()
    return ExportReport(job.place, left, size, time.monotonic() - begin, total - left, tasks=left)


def _resume_note(job: CutoutJob, total: int) -> Message:
    """Return a note on how many cutouts of a stopped export are kept, and how to continue it."""
    job.is_begun = True
    kept = f"{len(job.done_cutouts()):,} of {total:,} cutouts of {job.place} are written and kept: run the same "
    return Message(kept, Wording("call", "command"), " again to continue")


def _store(
    job: CutoutJob, rows: Mapping[str, npt.NDArray[np.int64]], on_done: Callable[[int], None], scheduler: dict[str, Any]
) -> None:
    sources, targets = [], []
    for name, own in rows.items():
        array = job.arrays[name]
        part = array if len(own) == array.sizes[CUTOUT] else array.isel({CUTOUT: own})
        data = part.variable._data
        sources.append(data if isinstance(data, da.Array) else da.from_array(part.values, {0: 8}))
        targets.append(replace(job.writer(name, own), on_done=on_done))
    # One graph for all cutouts, so that each chunk is read once; blocks are released as soon as they are written.
    da.store(sources, targets, lock=False, **scheduler)  # type: ignore[arg-type]


def _scheduler(client: Any, workers: int | None) -> dict[str, Any]:
    """Return the arguments that choose dask's scheduler; setting dask's configuration would affect other threads."""
    if client is None or isinstance(client, str):
        if client not in (None, "threads", "processes"):
            raise OptionError(
                f"client={client!r} is not a scheduler of cutouts; give 'threads', 'processes' or a distributed.Client"
            )
        return {"scheduler": client or "threads", **({"num_workers": workers} if workers else {})}
    return {"scheduler": client}


def _make_job(obj: xr.DataArray | xr.Dataset, target: Any, options: dict[str, Any]) -> CutoutJob:
    text = os.fspath(target) if isinstance(target, str | os.PathLike) else ""
    text = text if is_remote(text) else os.path.expanduser(text.removeprefix("file://"))
    suffix = Path(text).suffix.lower()
    arrays = _arrays_of(obj)
    if not obj.sizes[CUTOUT]:
        raise LayerError(f"the array has no cutouts to write to {text!r}; select at least one")
    if suffix not in _OPTIONS or ("{" in text) != (_OPTIONS[suffix][0] is PicturesJob):
        raise OptionError(f"target={text!r} is not a format of cutouts; give {_KINDS}")
    if text.lower().endswith(".ome.zarr"):
        plain = f"{text[:-9]}.zarr"
        raise OptionError(
            f"target={text!r} is the name of an OME-Zarr, whose images have no dim 'cutout'; give {plain!r}, a group "
            "of arrays that xarray.open_zarr opens"
        )
    kind, allowed = _OPTIONS[suffix]
    unknown = sorted(n for n, v in options.items() if n not in allowed and v is not None)
    if unknown:
        names = ", ".join(sorted(allowed))
        raise OptionError(f"{unknown[0]}=… is not an option of cutouts as {suffix}; its options: {names}")
    if "compressor" in options:
        options = {**options, "compressor": check_compressor(options["compressor"])}
    if suffix != ".zarr":
        arrays = {name: central_slices(array) for name, array in arrays.items()}
        _check_pictures(arrays, text, is_jpeg=suffix in _JPEG or options.get("quality") is not None)
    return kind(text, arrays, obj, {n: v for n, v in options.items() if v is not None})


def _arrays_of(obj: xr.DataArray | xr.Dataset) -> dict[str, xr.DataArray]:
    if isinstance(obj, xr.DataArray):
        return {str(obj.name or "cutouts"): obj.transpose(CUTOUT, ...)}
    return {str(n): v.transpose(CUTOUT, ...) for n, v in obj.data_vars.items() if CUTOUT in v.dims and v.ndim > 1}


def _check_pictures(arrays: Mapping[str, xr.DataArray], text: str, *, is_jpeg: bool) -> None:
    if len(arrays) != 1:
        raise LayerError(
            f"a Dataset with the variables {list(arrays)} is not a picture; draw it first: "
            f"export(overlay(boxes.image, boxes.segmentation), {text!r})"
        )
    array = next(iter(arrays.values()))
    is_picture = array.dims[-1] == "rgba" or array.dtype in (np.uint8, np.uint16, np.bool_)
    if array.ndim - (array.dims[-1] == "rgba") != 3 or not is_picture:
        raise LayerError(
            f"{name_array(array.name)} has dims {array.dims} and dtype {array.dtype}, which is not a picture; draw it "
            "first with overlay or to_rgba"
        )
    if is_jpeg and array.dtype == np.uint16:
        raise LayerError(
            f"{name_array(array.name)} has dtype uint16, which JPEG cannot store; draw it first with to_rgba"
        )


# ---------------------------------------------------------------------------------------------------------
# plans


@dataclass(frozen=True)
class CutoutPlan:
    """The plan of an export of cutouts: what it reads and writes, and the memory that it needs."""

    target: str
    """Path of the result."""
    cutouts: int
    """Number of cutouts."""
    requests: int
    """Number of distinct storage chunks that are read. Where cutouts are dense, some chunks are read twice."""
    bytes_to_read: int
    """Decoded bytes of these chunks."""
    bytes_to_write: int
    """Bytes of the result before compression."""
    memory: int
    """Estimated peak of the chunks and cutouts in memory, in bytes, with one thread per core."""

    def __repr__(self) -> str:
        return (
            f"<CutoutPlan {self.target}: {self.cutouts:,} cutouts; reads {self.requests:,} chunks, "
            f"{show_bytes(self.bytes_to_read)} decoded; writes {show_bytes(self.bytes_to_write)} before compression; "
            f"about {show_bytes(self.memory)} in memory>"
        )


def plan_cutout_export(
    obj: xr.DataArray | xr.Dataset,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    client: Any = None,
    workers: int | None = None,
    **options: Any,
) -> CutoutPlan:
    """Return the plan of an export of cutouts; see `imageryxr.plan_export`."""
    if workers is not None:
        check_whole("workers", workers, 1)
    job = _make_job(obj, target, options)
    job.check_target(overwrite)
    layers: dict[str, CutoutLayer] = {}
    for array in job.arrays.values():
        if isinstance(array.variable._data, da.Array):
            layers |= {layer.name: layer for layer in cutout_layers(array.data)}
    plans = [layer.reads for layer in layers.values()]
    written = sum(array.nbytes for array in job.arrays.values())
    count = next(iter(job.arrays.values())).sizes[CUTOUT]
    threads = workers or os.cpu_count() or 1
    return CutoutPlan(
        job.place,
        count,
        sum(len(plan.chunks) for plan in plans),
        sum(_bytes_of(plan, plan.chunks) for plan in plans),
        written,
        sum(_peak_bytes(plan, threads) for plan in plans) + 2 * threads * 8 * (written // max(1, count)),
    )


def _bytes_of(plan: ReadPlan, chunks: Iterable[ChunkId]) -> int:
    sizes = [chunk_bytes(leaf) for leaf in plan.leaves]
    return sum(sizes[number] for number, _ in chunks)


def _peak_bytes(plan: ReadPlan, threads: int) -> int:
    """Return the bytes of the chunks of one batch per thread, of their cutouts, and of the chunks that are kept."""
    batch = max((_bytes_of(plan, batch.chunks) for batch in plan.batches), default=0)
    kept = min(KEPT_BYTES, _bytes_of(plan, plan.uses))
    return min(threads, len(plan.batches)) * (batch + BATCH_BYTES) + kept
