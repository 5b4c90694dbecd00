"""Plans of exports of cutouts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import dask.array as da
import xarray as xr

from imageryxr.core.units import show_bytes
from imageryxr.graph.cutout_reads import BATCH_BYTES, KEPT_BYTES, ChunkId, chunk_bytes
from imageryxr.graph.cutouts import CutoutLayer, ReadPlan, cutout_layers


@dataclass(frozen=True)
class CutoutPlan:
    """What an export of cutouts reads, writes and holds in memory."""

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


def plan_cutouts(arrays: Mapping[str, xr.DataArray], target: str, threads: int | None = None) -> CutoutPlan:
    """Return the plan of an export of arrays of the same cutouts; reads no voxels."""
    layers: dict[str, CutoutLayer] = {}
    for array in arrays.values():
        if isinstance(array.variable._data, da.Array):
            layers |= {layer.name: layer for layer in cutout_layers(array.data)}
    written = sum(array.nbytes for array in arrays.values())
    count = next(iter(arrays.values())).sizes["cutout"]
    per_cutout = written // max(1, count)
    width = threads or os.cpu_count() or 1
    plans = [layer.reads for layer in layers.values()]
    return CutoutPlan(
        target,
        count,
        sum(len(plan.chunks) for plan in plans),
        sum(_bytes_of(plan, plan.chunks) for plan in plans),
        written,
        sum(_peak_bytes(plan, width) for plan in plans) + 2 * width * 8 * per_cutout,
    )


def _bytes_of(plan: ReadPlan, chunks: Iterable[ChunkId]) -> int:
    sizes = [chunk_bytes(leaf) for leaf in plan.leaves]
    return sum(sizes[number] for number, _ in chunks)


def _peak_bytes(plan: ReadPlan, width: int) -> int:
    """Return the bytes of the chunks of one batch per thread, of their cutouts, and of the chunks that are kept."""
    batch = max((_bytes_of(plan, batch.chunks) for batch in plan.batches), default=0)
    kept = min(KEPT_BYTES, _bytes_of(plan, plan.uses))
    return min(width, len(plan.batches)) * (batch + BATCH_BYTES) + kept
