"""Plan an export: its regions, workers, memory and scratch space. Planning reads no voxels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dask.utils import key_split

from imageryxr.core.bbox import format_triple
from imageryxr.errors import OptionError, param
from imageryxr.export.commit.session import Workspace
from imageryxr.export.plan.estimate import (
    PROCESS_BYTES,
    ComputeCost,
    SourceReads,
    compute_costs,
    dask_input_reads,
    region_memory,
    reread_factors,
    source_reads,
)
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.plan.regions import Regions, Stages, choose_regions
from imageryxr.export.plan.slab_regions import slab_planner
from imageryxr.export.read.drawing import BRICK_VOXELS, bricks
from imageryxr.export.read.sweep import volume_sweep
from imageryxr.export.run.workers import WorkerPool, available_memory
from imageryxr.export.targets.base import COARSER, Target
from imageryxr.export.targets.pyramid import Pyramid
from imageryxr.graph.dask_inputs import has_computed_blocks
from imageryxr.graph.labelled import BoxReader

# Maximum voxels of a region of a coarser level, which is what the loss of a worker costs.
MAX_COARSE_VOXELS = 1 << 26
# Maximum number of tasks, enough for a petavoxel: each needs some bytes of memory to keep track of.
MAX_TASKS = 1 << 28
TASK_BYTES = 24


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
    slabs, costs = slab_planner(target, read, pool, scratch), compute_costs(read.volume.dask_inputs)

    def memory_of(box: Any) -> int:
        expr, piece, spared = read.volume.expr, None, 0
        if target.kind != "memory":
            sweep = volume_sweep(expr, box, target.granule)
            piece, spared = next(bricks(sweep.slabs[0], target.granule)), sweep.spared
        return region_memory(
            expr, box, BRICK_VOXELS, target.encoding, piece=piece, spared=spared, page=target.page_bytes, inputs=costs
        )

    most = _max_region_memory(pool, costs)
    regions = slabs.regions() if slabs else _choose_volume_regions(target, read, pool, memory_of, most)
    target = _enlarge_coarse_regions(target, pool.budget, pool.workers * pool.threads)
    workspace, done = None, 0
    stages = Stages((regions, *target.later))
    if target.kind != "memory":
        _check_count(stages, target)
        workspace = Workspace(target, stages, token, what)
        header = workspace.adopt_regions(overwrite)
        workspace.refuse(header, overwrite)
        stages, target = workspace.stages, workspace.target
        regions = stages.parts[0]
        if header is not None and header.token == token:
            done = len({e.number for e in workspace.manifest.entries(header.run)})
    slab_settings = slabs.settings(regions) if slabs else None
    each = memory_of if slabs is None or slab_settings is None else partial(slabs.memory, slab_settings)
    at_once = slab_settings.at_once if slab_settings else pool.at_once(regions)
    working = at_once * max(map(each, [regions.largest(), regions[0]]))
    reads, computes = _reads_and_computes(read, regions)
    return ExportPlan(
        target=target,
        shape=target.layer.grid.shape,
        voxel_bytes=target.layer.voxel_bytes,
        regions=regions,
        tasks=len(stages),
        reads=reads,
        computes=computes,
        peak_memory=_peak_memory(target, pool, max(working, pool.threads * _coarse_memory(target))),
        pool=pool,
        sources=sources,
        done=done,
        scratch=slabs.spill_space(slab_settings, regions) if slabs and slab_settings else None,
        scratch_given=scratch if isinstance(scratch, str) else None,
        refuses_scratch=scratch is False,
        slab_settings=slab_settings,
        read=read,
        workspace=workspace,
        overwrite=overwrite,
    )


def _max_region_memory(pool: WorkerPool, costs: dict[str, ComputeCost]) -> int | None:
    """Return the bytes of memory that a region may use; None if unknown."""
    share = pool.memory_per_region()
    # the sizes of dask blocks are known exactly, so no reserve for estimates is needed
    return share if share is None or not costs else 2 * share


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


def _choose_volume_regions(
    target: Target, read: BoxReader, pool: WorkerPool, memory_of: Callable[[Any], int], most: int | None
) -> Regions:
    expr = read.volume.expr
    return choose_regions(
        expr,
        target.layer.grid.shape,
        target.granule,
        memory_of=memory_of,
        reads_of=lambda r: reread_factors(expr, r),
        budget=pool.budget,
        least=pool.workers * pool.threads,
        most=most,
        threads=pool.threads,
    )


def _reads_and_computes(read: BoxReader, regions: Regions) -> tuple[tuple[SourceReads, ...], tuple[SourceReads, ...]]:
    """Return the reads of sources, and the computed blocks of foreign dask arrays."""
    expr, dask_inputs = read.volume.expr, read.volume.dask_inputs
    found = [*source_reads(expr, regions), *dask_input_reads(expr, dask_inputs, regions)]
    held = {key_split(name) for name, array in dask_inputs.items() if has_computed_blocks(array)}
    computes = tuple(r for r in found if r.computed and r.source not in held)
    return tuple(r for r in found if not r.computed), computes


def _enlarge_coarse_regions(target: Target, budget: int, slots: int) -> Target:
    """Return a target whose coarser levels are made in regions as large as memory allows, with work for all workers."""
    voxels = target.coarse
    while voxels < MAX_COARSE_VOXELS:
        voxels *= 2
        larger = target.in_coarse(voxels)
        if not larger.later or len(larger.later[0]) < 8 * slots or _coarse_memory(larger) > budget:
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


def _coarse_memory(target: Target) -> int:
    """Return the most bytes of memory that a region of a pyramid's coarser levels needs."""
    most = 0
    for stage, regions in enumerate(target.later, 1):
        box = regions.largest()
        encoding = int((1 + target.encoding) * box.voxels * target.layer.voxel_bytes)
        most = max(most, target.derived_bytes(stage, box), encoding)
    return most
