"""Plan an export: its target, regions, workers, memory and scratch space. Planning reads no voxels."""

from __future__ import annotations

import os
from dataclasses import astuple, replace
from functools import cache, partial
from typing import Any

import xarray as xr
from dask.base import tokenize
from dask.utils import key_split

from imageryxr.core.array_labels import layer_type_of
from imageryxr.core.bbox import DIMS, format_triple
from imageryxr.core.validate import check_flag
from imageryxr.errors import LayerError, Message, OptionError, Wording, param, warn
from imageryxr.export.commit.manifest import FORMAT
from imageryxr.export.commit.session import Workspace
from imageryxr.export.commit.source_overlap import refuse_sources, source_places
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.plan.reads import (
    SourceReads,
    coarse_memory,
    compute_costs,
    coverage_warning,
    dask_input_reads,
    region_memory,
    reread_factors,
    source_reads,
)
from imageryxr.export.plan.regions import Regions, Stages, choose_regions
from imageryxr.export.plan.slab_regions import SlabPlanner, check_scratch
from imageryxr.export.run.workers import PROCESS_BYTES, WorkerPool, available_memory
from imageryxr.export.targets.base import COARSER, ArrayInfo, SliceTarget, Target
from imageryxr.export.targets.pyramid import Pyramid
from imageryxr.export.targets.stack import Stack
from imageryxr.graph.dask_inputs import DaskInputs, has_computed_blocks
from imageryxr.graph.expr import Array, DaskLeaf, Expr, Leaf, LevelLeaf, Mapped
from imageryxr.graph.labelled import COORDS_ADVICE, BoxReader, Volume, box_reader
from imageryxr.graph.to_dask import blocks_below
from imageryxr.ops.square_pixels import square_reader
from imageryxr.render.figure.picture import warn_of_outline_axis
from imageryxr.sources.base import clean_message

# Maximum voxels of a region of a coarser level: the work that is repeated if a worker dies.
MAX_COARSE_VOXELS = 1 << 26
# Maximum number of tasks, enough for a petavoxel: each needs some bytes of memory to keep track of.
MAX_TASKS = 1 << 28
TASK_BYTES = 24


def plan_array(
    da: xr.DataArray | xr.Dataset,
    target: Any,
    pool: WorkerPool,
    *,
    overwrite: bool,
    scratch: Any,
    square: bool | None,
    options: dict[str, Any],
) -> ExportPlan:
    """Return the plan of an export; see `imageryxr.plan_export`."""
    folder = check_scratch(scratch)
    square = None if square is None else check_flag("square", square, "True, False or None")
    # imported here, because the formats load slowly
    from imageryxr.export.targets.registry import choose_target

    array = _check_array(da)
    layer_type = layer_type_of(array)
    read = _to_native_order(box_reader(array))
    read = replace(read, volume=replace(read.volume, splits=None))  # regions do not need this long list
    beyond = coverage_warning(read.volume.expr, read.volume.grid)
    if beyond:
        warn(beyond)
    if square:
        axis = options.get("axis") or next((d for d in "zyx" if f"{{{d}" in str(target)), "z")
        read = square_reader(read, axis, layer_type)
    channels = read.tail[0] if read.tail else 0
    volume = read.volume
    contrast = volume.attrs.get("contrast_limits")
    layer = ArrayInfo(
        volume.grid,
        channels,
        volume.expr.dtype,
        "image" if channels else layer_type,
        None if contrast is None or channels else (float(contrast[0]), float(contrast[1])),
    )
    chosen = choose_target(target, layer, **options)
    places = source_places(volume.expr, *volume.dask_inputs.values(), array.variable._data)
    refuse_sources(chosen, places)
    _check_square(chosen, square)
    if isinstance(chosen, SliceTarget):
        warn_of_outline_axis(array, DIMS[chosen.axis], "the stack is sliced")
    shown = tuple(clean_message(place) if "://" in place else place for place in places)
    call = _token(chosen, read), _describe_call(chosen, volume)
    return make_plan(chosen, read, pool, *call, overwrite=overwrite, scratch=folder, sources=shown)


def make_plan(
    target: Target,
    read: BoxReader,
    pool: WorkerPool,
    token: str,
    what: dict[str, Any],
    *,
    overwrite: bool,
    scratch: str | bool | None = None,
    sources: tuple[str, ...] = (),
) -> ExportPlan:
    """Return the plan of an export; look up what an earlier run of the same call has done. Reads no voxels."""
    expr, dask_inputs = read.volume.expr, read.volume.dask_inputs
    costs, reads_of = compute_costs(dask_inputs), cache(partial(source_reads, expr))
    memory_of = partial(region_memory, expr, target=target, costs=costs)
    slabs = None
    if isinstance(target, SliceTarget) and not dask_inputs:
        slabs = SlabPlanner(target, expr, pool, scratch, lambda regions: reread_factors(reads_of(regions)))
        regions = slabs.regions()
    else:
        # the sizes of dask blocks are known exactly, so no reserve for estimates is needed
        limits = pool.region_limits(2 if costs else 1)
        regions = choose_regions(
            expr, target.layer.grid.shape, target.granule, limits,
            memory_of=memory_of, reads_of=lambda regions: reread_factors(reads_of(regions)),
        )  # fmt: skip
    target = _enlarge_coarse_regions(target, pool.budget, pool.workers * pool.threads)
    workspace, done = _open_workspace(target, regions, token, what, overwrite)
    if workspace is not None:
        target, regions = workspace.target, workspace.stages.parts[0]
    if slabs is None:
        settings, working = None, pool.at_once(regions) * max(map(memory_of, {regions.largest(), regions[0]}))
    else:
        settings, working = slabs.settings(regions)
    reads, computes = _reads_and_computes(reads_of(regions), dask_inputs)
    return ExportPlan(
        target=target,
        shape=target.layer.grid.shape,
        voxel_bytes=target.layer.voxel_bytes,
        regions=regions,
        tasks=len(Stages((regions, *target.later))),
        reads=reads,
        computes=computes,
        peak_memory=_peak_memory(target, pool, max(working, pool.threads * coarse_memory(target))),
        pool=pool,
        sources=sources,
        done=done,
        scratch=slabs.spill_space(settings, regions) if slabs and settings else None,
        scratch_option=scratch,
        slab_settings=settings,
        read=read,
        workspace=workspace,
        overwrite=overwrite,
    )


def _open_workspace(
    target: Target, regions: Regions, token: str, what: dict[str, Any], overwrite: bool
) -> tuple[Workspace | None, int]:
    """Return the workspace of an export, None in memory, and how many tasks an earlier run of the call has done."""
    if target.kind == "memory":
        return None, 0
    stages = Stages((regions, *target.later))
    _check_count(stages, target)
    workspace = Workspace(target, stages, token, what)
    header = workspace.adopt_regions(overwrite)
    workspace.refuse(header, overwrite)
    if header is None or header.token != token:
        return workspace, 0
    return workspace, len({entry.number for entry in workspace.manifest.entries(header.run)})


def _check_count(stages: Stages, target: Target) -> None:
    """Raise `OptionError` if an export has more tasks than memory can keep track of."""
    have = available_memory()
    most = MAX_TASKS if have is None else min(MAX_TASKS, have // TASK_BYTES)
    if len(stages) <= most:
        return
    ways = ("larger ", param("chunks", ...), " or ", param("shards", ...), ", ") if isinstance(target, Pyramid) else ()
    size = format_triple(target.layer.grid.shape[::-1])
    raise OptionError(
        f"{target.place} has {size} voxels and needs {len(stages):,} tasks, more than the maximum of {most:,}: give ",
        *ways,
        *("a smaller box, or ", COARSER),
    )


def _reads_and_computes(
    found: list[SourceReads], dask_inputs: DaskInputs
) -> tuple[tuple[SourceReads, ...], tuple[SourceReads, ...]]:
    """Return the reads of sources, and the computed blocks of a user's dask arrays."""
    found = [*found, *dask_input_reads(found, dask_inputs)]
    persisted = {key_split(name) for name, array in dask_inputs.items() if has_computed_blocks(array)}
    computes = tuple(r for r in found if r.computed and r.source not in persisted)
    return tuple(r for r in found if not r.computed), computes


def _enlarge_coarse_regions(target: Target, budget: int, slots: int) -> Target:
    """Return a target whose coarser levels are made in regions as large as memory allows, with work for all workers."""
    voxels = target.coarse
    while voxels < MAX_COARSE_VOXELS:
        voxels *= 2
        larger = target.with_coarse(voxels)
        if not larger.later or len(larger.later[0]) < 8 * slots or coarse_memory(larger) > budget:
            break
        target = larger
    return target


def _peak_memory(target: Target, pool: WorkerPool, working: int) -> int:
    """Return the peak memory of a worker process in bytes."""
    # the calling process assembles files; on a cluster, it is not a worker
    assembling = 0 if pool.kind == "cluster" else target.assembling_bytes
    # with threads, a result in memory is in the same process
    beside = target.kind == "memory" and pool.kind == "threads"
    result = target.layer.grid.box.voxels * target.layer.voxel_bytes if beside else 0
    return PROCESS_BYTES + result + max(working, assembling)


# ---------------------------------------------------------------------------------------------------------
# the array and the call


def _to_native_order(read: BoxReader) -> BoxReader:
    """Return a reader whose values have native byte order, which formats and encoders require."""
    expr = read.volume.expr
    if expr.dtype.isnative:
        return read
    native = Mapped(expr, _native_values, expr.dtype.newbyteorder("=").str, expr.lead, expr.tail)
    return replace(read, volume=replace(read.volume, expr=native))


def _native_values(values: Array) -> Array:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _check_square(chosen: Target, square: bool | None) -> None:
    if square and not isinstance(chosen, SliceTarget):
        raise OptionError(
            param("square", True),
            f" is for slices (a stack of pictures, a TIFF, a video), and {chosen.place} is a volume, ",
            "whose voxels keep their size; leave ",
            param("square"),
            " out",
            Wording(", or bring the array onto another grid first with regrid(array, resolution)", ""),
        )
    if square is None and isinstance(chosen, Stack):
        axes = chosen.layer.grid.axes
        rows, columns = (axes[a].resolution for a in range(3) if a != chosen.axis)
        if rows != columns:
            warn(
                Message(
                    f"the pixels of slices across {DIMS[chosen.axis]} are {columns:g} × {rows:g} nm, but programs ",
                    "show them as squares: give ",
                    param("square", True),
                    " to resample them, or ",
                    param("square", False),
                    " for one pixel per voxel",
                ),
            )


def _token(target: Target, read: BoxReader) -> str:
    layer = target.layer
    place = astuple(layer.grid)
    return str(tokenize("imageryxr.export", FORMAT, read.volume.expr, place, layer.channels, target.describe()))


def _describe_call(target: Target, volume: Volume) -> dict[str, Any]:
    """Return a readable description of the call, for the manifest and for errors about another call's export."""
    sources = sorted(set(_source_names(volume.expr, volume.dask_inputs)))
    return {**target.describe(), "sources": sources, "box": str(volume.grid.bbox)}


def _source_names(expr: Expr, dask_inputs: dict[str, Any]) -> list[str]:
    if isinstance(expr, LevelLeaf):
        when = expr.source.attrs.get("timestamp")
        return [f"{expr.source.name}, mip {expr.mip}{f', at {when}' if when else ''}"]
    if isinstance(expr, DaskLeaf):
        return [_dask_array_name(dask_inputs.get(expr.name))]
    if isinstance(expr, Leaf):
        return ["an array in memory"]
    return [name for child in expr.inputs for name in _source_names(child, dask_inputs)]


def _dask_array_name(array: Any) -> str:
    below = [] if array is None else blocks_below(array)
    names = sorted({name for expr, _ in below for name in _source_names(expr, {})})
    return f"a dask array of {' and '.join(names)}" if names else "a dask array"


def _check_array(da: Any) -> xr.DataArray:
    if isinstance(da, xr.DataArray):
        _check_colors(da)
        return da
    advice = "give one as open_image, open_segmentation and the verbs return it"
    if isinstance(da, xr.Dataset):
        advice = "give one variable, or draw it first: export(overlay(ds.image, ds.segmentation), target)"
    elif isinstance(da, str | os.PathLike):
        advice = "the array comes first, then the target: export(array, target)"
    elif hasattr(da, "__array__"):
        advice = COORDS_ADVICE
    raise LayerError(f"export takes an xarray.DataArray, not a {type(da).__name__}; {advice}")


def _check_colors(da: xr.DataArray) -> None:
    # Only the order of the colours is checked here; the target checks their number.
    if "rgba" not in da.dims or "rgba" not in da.coords:
        return
    names = [str(name) for name in da["rgba"].values]
    if names != list("rgba")[: len(names)]:
        raise LayerError(
            f"files store colours in the order r, g, b, a, but this array has {', '.join(names)}: give "
            "array.sel(rgba=['r', 'g', 'b', 'a']), or one channel as grey values, such as "
            "array.sel(rgba='r', drop=True)"
        )
