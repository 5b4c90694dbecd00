"""The plan of an export: what it will read, write and need."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

from imageryxr.core.bbox import DIMS, Index3
from imageryxr.core.units import show_bytes, show_count
from imageryxr.errors import Message, OptionError, join_messages, param, warn
from imageryxr.export.commit.session import Workspace
from imageryxr.export.plan.reads import SourceReads
from imageryxr.export.plan.regions import Regions
from imageryxr.export.plan.slab_regions import SpillSpace
from imageryxr.export.read.spill import free_bytes
from imageryxr.export.read.sweep import SlabSettings
from imageryxr.export.run.workers import PROCESS_BYTES, WorkerPool, available_memory
from imageryxr.export.targets.base import COARSER, SliceTarget, Target
from imageryxr.export.targets.pyramid import Pyramid
from imageryxr.graph.dask_inputs import count_lost_blocks
from imageryxr.graph.labelled import BoxReader

FEWER_THREADS = Message("fewer threads per worker (", param("workers", ...), ")")
# With more files, file systems and listings become slow and buckets expensive.
MANY_FILES = 10_000_000


@dataclass(frozen=True, eq=False)
class ExportPlan:
    """The plan of an export: what it reads and writes, its regions, and the resources that it needs.

    Planning reads no voxels and writes nothing. Bytes are those of uncompressed voxels.
    """

    target: Target
    """The target of the export."""
    shape: Index3
    """Voxels (z, y, x)."""
    voxel_bytes: int
    """Bytes of one voxel in memory."""
    regions: Regions
    """Boxes (z, y, x) of the array, each made by one worker; multiples of the target's chunks."""
    tasks: int
    """Regions of all stages: those of the array, and those of a pyramid's coarser levels."""
    reads: tuple[SourceReads, ...]
    """The reads of each source, in whole chunks; a chunk that is fetched twice counts twice."""
    computes: tuple[SourceReads, ...]
    """The blocks of the user's dask arrays that are computed; a block that is computed twice counts twice, and
    persisted blocks do not count."""
    peak_memory: int
    """Estimate of the most bytes of memory that a worker process needs, with all its threads."""
    pool: WorkerPool
    """The workers of the export."""
    sources: tuple[str, ...] = ()
    """URLs and paths that the array is read from, if known; the target overlaps none of them."""
    done: int = 0
    """Tasks that the manifest of an earlier run of the same call lists as done."""
    scratch: SpillSpace | None = None
    """Scratch space on local disks, if memory is too small to read each chunk once; None if none is needed."""
    scratch_option: str | bool | None = field(repr=False, default=None)
    """The `scratch` argument: a folder, None for the default, or False for no scratch files."""
    slab_settings: SlabSettings | None = field(repr=False, default=None)
    read: BoxReader = field(repr=False, default=None)  # type: ignore[assignment]
    workspace: Workspace | None = field(repr=False, default=None)
    overwrite: bool = False

    @property
    def bytes_to_write(self) -> int:
        """Bytes of the exported array, before compression, without a pyramid."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.voxel_bytes

    @property
    def pyramid_bytes(self) -> int:
        """Bytes of a pyramid's coarser levels, before compression; `bytes_to_write` does not include them."""
        return sum(math.prod(regions.shape) for regions in self.target.later) * self.voxel_bytes

    @property
    def files_to_write(self) -> int:
        """Approximate number of written files, with those of a pyramid; in a bucket each is a request."""
        count = 0.0
        for stage, regions in enumerate((self.regions, *self.target.later)):
            box = regions.largest()
            count += len(self.target.keys(stage, box)) / max(1, box.voxels) * math.prod(regions.shape)
        return math.ceil(count)

    @property
    def bytes_to_read(self) -> int:
        """Bytes that are read of all sources, with repeated reads."""
        return sum(r.bytes for r in self.reads)

    @property
    def requests(self) -> int:
        """Approximate number of fetched chunks; over a network each is a request."""
        return sum(r.requests for r in self.reads)

    @property
    def region_bytes(self) -> int:
        """Bytes of the largest region."""
        return self.regions.largest().voxels * self.voxel_bytes

    def validate(self) -> None:
        """Raise an error if the export cannot succeed: memory, permissions, limits of the format. Reads no voxels.

        Raises
        ------
        OptionError
            If the format cannot hold the array, or a worker has too little memory.
        TargetError
            If the target cannot be written.
        TargetExistsError
            If the target exists, was written by another call, and may not be replaced.
        """
        self.check_resources()
        if self.workspace is not None:
            self.workspace.refuse(self.workspace.load(self.overwrite), self.overwrite)

    def check_resources(self) -> None:
        """Raise an error if memory, disks, permissions or the format do not suffice; planning has checked the rest."""
        if isinstance(self.scratch_option, str) and self.pool.kind != "cluster":
            free_bytes(self.scratch_option)  # a folder that was given must be usable, even if it is not needed
        scratch = [] if self.scratch is None else self.scratch.problems(self.pool)
        problems = [*self.target.problems(), *self._lost_blocks(), *self._memory_problems(), *scratch]
        if problems:
            raise OptionError(f"{self.target.place} cannot be written: ", join_messages("; and ", problems))
        if self.workspace is not None:
            self.workspace.site.check_writable(self.bytes_to_write + self.pyramid_bytes)

    def _lost_blocks(self) -> list[str]:
        lost = count_lost_blocks(self.read.volume.dask_inputs)
        if not lost:
            return []
        return [
            f"{lost:,} blocks of a persisted dask array are no longer on their cluster: persist() it again with that "
            "cluster's Client open, or export the array from before persist()"
        ]

    def _memory_problems(self) -> list[str]:
        limit, in_memory = self.pool.memory, self.target.kind == "memory"
        result = self.bytes_to_write if in_memory else 0
        available = available_memory()
        if in_memory and self.pool.kind == "threads" and limit is not None:
            available = limit if available is None else min(available, limit)
        if available is not None and result > available:
            return [
                Message(
                    f"the array needs {show_bytes(result)} of memory; {show_bytes(available)} are available: export ",
                    " it to .ome.zarr, or export a smaller box or ",
                    COARSER,
                )
            ]
        if limit is None or self.peak_memory <= limit:
            return []
        assembling = PROCESS_BYTES + self.target.assembling_bytes
        if self.target.assembling_bytes and assembling == self.peak_memory:
            return [
                Message(
                    f"assembling the file needs {show_bytes(assembling)} of memory; {show_bytes(limit)} are ",
                    "available: give more memory, a smaller box, or ",
                    COARSER,
                )
            ]
        return [
            Message(
                f"a worker needs {show_bytes(self.peak_memory)} of memory and has {show_bytes(limit)}: ",
                self._memory_advice(),
            )
        ]

    def warn_of_rereads(self) -> None:
        """Warn if many chunks are read or blocks computed repeatedly, with advice on how to avoid it."""
        self._warn_of_computing()
        if (advice := self._fewer_files()) is not None:
            warn(Message(f"{self.target.place}: ", advice))
        again = max(self.reads, key=lambda r: r.bytes - r.distinct_bytes, default=None)
        if again is None or again.rereads < 2 or again.bytes - again.distinct_bytes < 1e9:
            return
        ways = ["more memory per worker"] + ([FEWER_THREADS] if self.pool.threads > 1 else [])
        if isinstance(self.target, SliceTarget):
            scratch = Message("a folder for scratch files (", param("scratch", ...), ")")
            ways += [scratch] if self.scratch_option is False else []
            ways.append("export to .ome.zarr, whose regions need not be whole slices")
        text = (
            f"each chunk of {again.source} is read {again.rereads:.1f} times, {show_bytes(again.bytes)} instead of "
            f"{show_bytes(again.distinct_bytes)}, because the regions that fit into a worker's memory are thinner than "
            "its chunks; to read less, use "
        )
        warn(Message(text, join_messages(", or ", ways)))

    def _warn_of_computing(self) -> None:
        again = max(self.computes, key=lambda r: r.requests - r.chunks, default=None)
        if again is None or again.requests < 1.5 * again.chunks or again.requests - again.chunks < 8:
            return
        if isinstance(self.target, SliceTarget):
            axis = DIMS[self.target.axis]
            chunks = ", ".join(f"{d}={self.regions.step[i] if d == axis else -1}" for i, d in enumerate(DIMS))
            way = (
                f"make its blocks thin along {axis} before costly operations (array.chunk({chunks})), or export it to "
                ".ome.zarr first and export that to slices"
            )
        else:
            way = Message(
                "give ", param("chunks", ...), " or ", param("shards", ...), " that divide the sizes of its blocks"
            )
        text = (
            f"each block of the dask array {again.source!r} is computed {again.requests / again.chunks:.1f} times, "
            f"{again.requests:,} computations of {again.chunks:,} blocks, because regions as large as its blocks do "
            "not fit into a worker's memory: give workers more memory; or "
        )
        warn(Message(text, way, "; or persist() it"))

    def _fewer_files(self) -> str | None:
        if self.files_to_write < MANY_FILES or not isinstance(self.target, Pyramid):
            return None
        ways = Message("larger ", param("chunks", ...))
        if self.target.describe().get("shards", 0) is None and self.target.describe()["format"] != "OME-Zarr 0.4":
            z, y, x = (c * n for c, n in zip(self.target.granule, (8, 8, 8), strict=True))
            ways = Message(param("shards", (z, y, x)), ", which stores 512 chunks per file")
        return Message(f"about {self.files_to_write:,} files are slow on a disk or a bucket: give ", ways)

    def _memory_advice(self) -> str:
        granule = self.target.granule
        process = f"{show_bytes(PROCESS_BYTES)} of that are the process itself and its libraries"
        busy = (
            self.pool.threads if self.slab_settings is None else self.slab_settings.at_once * self.slab_settings.threads
        )
        advice: list[str] = [FEWER_THREADS] if busy > 1 else []
        if isinstance(self.target, SliceTarget):
            advice.append("export to .ome.zarr, whose regions need not be whole slices")
        elif granule != (1, 1, 1):
            advice.append(Message("smaller ", param("chunks", ...), " or ", param("shards", ...)))
        return Message(f"{process}; ", join_messages(", or ", ["give workers with more memory", *advice]))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan's numbers as plain data."""
        return {
            "target": self.target.place,
            **{k: v for k, v in self._options().items() if v is not None},
            "shape": list(self.shape),
            "regions": len(self.regions),
            "region": list(self.regions.largest().shape),
            "tasks": self.tasks,
            "done": self.done,
            "bytes_to_write": self.bytes_to_write,
            "pyramid_bytes": self.pyramid_bytes,
            "files_to_write": self.files_to_write,
            "bytes_to_read": self.bytes_to_read,
            "requests": self.requests,
            "reads": [
                {
                    "source": r.source,
                    "mip": r.mip,
                    "bytes": r.bytes,
                    "distinct_bytes": r.distinct_bytes,
                    "rereads": round(r.rereads, 3),
                    "requests": r.requests,
                }
                for r in self.reads
            ],
            "computes": [
                {"array": r.source, "blocks": r.chunks, "computed": r.requests, "bytes": r.bytes} for r in self.computes
            ],
            "peak_memory": self.peak_memory,
            "workers": self.pool.workers,
            "threads": self.pool.threads,
            "memory": self.pool.memory,
            "scratch": None if self.scratch is None else self.scratch.to_dict(),
        }

    def _options(self) -> dict[str, Any]:
        """Return the format and its options as the caller gives them."""
        options = self.target.describe()
        return {**options, "axis": DIMS[options["axis"]]} if "axis" in options else options

    def _tasks_text(self) -> str:
        later = self.tasks - len(self.regions)
        of_pyramid = f", and {later:,} of a pyramid's coarser levels" if later else ""
        return f"one per region{of_pyramid}" + (f", {self.done:,} of them done before" if self.done else "")

    def _idle_workers(self) -> str | None:
        """Return advice if there are more workers than regions; None otherwise."""
        idle = self.pool.workers - len(self.regions)
        if self.pool.kind == "threads" or idle <= 0:
            return None
        kind = "workers" if self.pool.kind == "cluster" else "processes"
        return (
            f"{idle:,} of {self.pool.workers:,} {kind} will be idle, because more regions would read the same chunks "
            f"twice: fewer {kind} are as fast"
        )

    def _expected_text(self) -> str:
        """Return how many workers have joined, if some are expected."""
        expected, count = self.pool.expected, self.pool.workers
        if not expected:
            return ""
        here = count - expected
        return f", {f'{here:,}' if here else 'none'} of them {'is' if here < 2 else 'are'} there yet"

    def _regions_text(self) -> str:
        return "1 region of " if len(self.regions) == 1 else f"{len(self.regions):,} regions of up to "

    def _workers_text(self) -> str:
        count, kind = self.pool.workers * self.pool.threads, self.pool.kind
        if kind == "cluster":
            return f"{self.pool.workers:,} × {self.pool.threads:,} {kind}{self._expected_text()}"
        return f"{count:,} {kind if count > 1 else kind.removesuffix('es' if kind == 'processes' else 's')}"

    def _read_rows(self) -> Iterator[tuple[str, str]]:
        for r in self.reads:
            again = f"each chunk {r.rereads:.2f} times" if r.rereads > 1.005 else "each chunk once"
            where = f"about {r.requests:,} requests, of {r.source} (mip {r.mip})"
            yield "read", f"{show_bytes(r.bytes)} decoded, {again}, {where}"

    def _rows(self) -> list[tuple[str, str]]:
        z, y, x = self.shape
        dz, dy, dx = self.regions.largest().shape
        given = {k: v for k, v in self._options().items() if v is not None and k != "format"}
        options = ", ".join(f"{k}={v}{' (z, y, x)' * (k in ('chunks', 'shards'))}" for k, v in given.items())
        rows = [
            ("format", f"{self.target.describe()['format']}{f' ({options})' if options else ''}"),
            ("voxels", f"{x:,} × {y:,} × {z:,} (x, y, z)"),
            ("regions", f"{self._regions_text()}{dx:,} × {dy:,} × {dz:,} voxels"),
            ("tasks", f"{self.tasks:,}: {self._tasks_text()}"),
            *self._read_rows(),
        ]
        rows += [
            ("compute", f"{show_count(r.chunks, 'block')} of {r.source!r}, each {r.requests / r.chunks:.2f} times")
            for r in self.computes
        ]
        each = f"{show_bytes(self.region_bytes)} per region"
        also = f" and {show_bytes(self.pyramid_bytes)} of a pyramid" if self.pyramid_bytes else ""
        files = f", about {self.files_to_write:,} files" if self.files_to_write else ""
        rows.append(("write", f"{show_bytes(self.bytes_to_write)}{also} before compression, {each}{files}"))
        advice = (self._fewer_files(), self._idle_workers(), self.target.advice())
        rows += [("advice", text) for text in advice if text is not None]
        limit = f" of {show_bytes(self.pool.memory)}" if self.pool.memory is not None else ""
        process = f"{show_bytes(PROCESS_BYTES)} for the process itself included"
        rows.append(
            ("memory", f"up to {show_bytes(self.peak_memory)}{limit} per worker, {process}; {self._workers_text()}")
        )
        if self.scratch is not None:
            rows.append(("scratch", str(self.scratch)))
        return rows

    def __repr__(self) -> str:
        lines = "\n".join(f"  {name + ':':<9}{text}" for name, text in self._rows())
        return f"<ExportPlan {self.target.place}>\n{lines}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in self._rows()
        )
        return f"<div><b>ExportPlan</b> <code>{escape(self.target.place)}</code><table>{rows}</table></div>"
