"""Plans of exports of cutouts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import dask.array as da
import xarray as xr

from imageryxr.export.report import show_bytes
from imageryxr.graph.cutouts import CutoutLayer, cutout_layers


@dataclass(frozen=True)
class CutoutPlan:
    """What an export of cutouts reads, writes and holds in memory."""

    target: str
    """Path of the result."""
    cutouts: int
    """Number of cutouts."""
    requests: int
    """Number of storage chunks that are read, each once."""
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
    reads = [layer.reads for layer in layers.values()]
    return CutoutPlan(
        target,
        count,
        sum(len(group.chunks) for read in reads for group in read.groups),
        sum(group.bytes for read in reads for group in read.groups),
        written,
        sum(_peak_bytes(layer, width) for layer in layers.values()) + 2 * width * 8 * per_cutout,
    )


def _peak_bytes(layer: CutoutLayer, width: int) -> int:
    """Return the bytes of the groups of chunks in memory, if blocks run in the order of their first group."""
    reads = layer.reads
    uses = [0] * len(reads.groups)
    for groups in reads.of_block:
        for group in groups:
            uses[group] += 1
    held = peak = 0
    seen: set[int] = set()
    for groups in sorted(reads.of_block):
        for group in groups:
            if group not in seen:
                seen.add(group)
                held += reads.groups[group].bytes
        peak = max(peak, held)
        for group in groups:
            uses[group] -= 1
            if not uses[group]:
                held -= reads.groups[group].bytes
    # Each other thread may have read one more group.
    return peak + (width - 1) * max((group.bytes for group in reads.groups), default=0)
