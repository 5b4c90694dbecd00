"""What an export will do, as a value with numbers, before it does it."""

from __future__ import annotations

import math
import os
import shutil
import uuid
import warnings
from dataclasses import dataclass, field
from functools import partial
from html import escape
from typing import Any

from imageryxr.boxes import DIMS, Index3
from imageryxr.errors import ImageryWarning, OptionError, TargetError
from imageryxr.export.cutting import Scratch, cutter_of
from imageryxr.export.estimate import PROCESS_BYTES, SourceReads, region_memory, rereads, source_reads
from imageryxr.export.executors import Crew
from imageryxr.export.reading import BRICK_VOXELS
from imageryxr.export.regions import Regions, choose_regions
from imageryxr.export.report import show_bytes
from imageryxr.export.slicewise import Slicewise
from imageryxr.export.storage import Bucket
from imageryxr.export.targets.base import Target
from imageryxr.export.targets.slices import SliceTarget
from imageryxr.export.workspace import Stages, Workspace
from imageryxr.volumes import BoxReader


@dataclass(frozen=True, eq=False)
class ExportPlan:
    """An export, planned: what is read and written, in which regions, and what that takes.

    Nothing was read or written yet. Bytes are those of uncompressed voxels, and estimates where that is said.
    """

    target: Target
    """What is written to."""
    shape: Index3
    """Voxels (z, y, x)."""
    voxel_bytes: int
    """Bytes of one voxel in memory."""
    regions: Regions
    """Boxes (z, y, x) of the array, each made by one worker; whole numbers of the target's chunks."""
    tasks: int
    """Regions of all stages: those of the array, and those of a pyramid's coarser levels."""
    reads: tuple[SourceReads, ...]
    """What is read of each source, chunks counted whole and as often as they are fetched."""
    peak_memory: int
    """Bytes that a worker takes at the most, estimated: all its threads, and the process itself."""
    crew: Crew
    """Who will do the work."""
    done: int = 0
    """Tasks that are done already, by an earlier run of the same call, by its own account."""
    scratch: Scratch | None = None
    """What waits on a local disk, where memory is too little to read each chunk once; None if nothing does."""
    refuses_scratch: bool = field(repr=False, default=False)
    how: Slicewise | None = field(repr=False, default=None)
    read: BoxReader = field(repr=False, default=None)  # type: ignore[assignment]
    workspace: Workspace | None = field(repr=False, default=None)
    overwrite: bool = False

    @property
    def bytes_to_write(self) -> int:
        """Bytes of the exported array, before compression, without a pyramid."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.voxel_bytes

    @property
    def pyramid_bytes(self) -> int:
        """Bytes of a pyramid's coarser levels, which come on top, before compression."""
        return sum(math.prod(regions.shape) for regions in self.target.later) * self.voxel_bytes

    @property
    def files_to_write(self) -> int:
        """Files that are written, about, those of a pyramid included: into a bucket each is a request."""
        count = 0.0
        for stage, regions in enumerate((self.regions, *self.target.later)):
            box = regions.largest()
            count += len(self.target.keys(stage, box)) / max(1, box.voxels) * math.prod(regions.shape)
        return math.ceil(count)

    @property
    def bytes_to_read(self) -> int:
        """Bytes that are read of all sources together, re-reads included."""
        return sum(r.bytes for r in self.reads)

    @property
    def requests(self) -> int:
        """Chunks that are fetched, about: over a network each is a request."""
        return sum(r.requests for r in self.reads)

    @property
    def region_bytes(self) -> int:
        """Bytes of the largest region."""
        return self.regions.largest().voxels * self.voxel_bytes

    def validate(self) -> None:
        """Raise if the export cannot work: memory, rights, limits of the format. Reads and leaves nothing.

        Raises
        ------
        OptionError
            If the format cannot hold this, or a worker has too little memory.
        TargetError
            If the target cannot be written to.
        TargetExistsError
            If it is there, of another call, and may not be replaced.
        """
        problems = self.target.problems()
        limit = self.crew.memory
        if limit is not None and self.peak_memory > limit:
            problems.append(
                f"a worker would take {show_bytes(self.peak_memory)} and has {show_bytes(limit)}: {self._less_memory()}"
            )
        if self.scratch is not None:
            problems += self.scratch.problems(self.crew)
        if problems:
            raise OptionError(f"{self.target.place} cannot be written: {'; and '.join(problems)}")
        if self.workspace is not None:
            self.workspace.refuse(self.workspace.keeper.load(), self.overwrite)
            plain = self.target.describe().get("compression", "some") is None
            _check_writable(self.workspace, self.bytes_to_write if plain else 0)

    def warn_of_rereads(self) -> None:
        """Warn if much is read again and again: that takes long, and may cost money, and there are ways around it."""
        again = max(self.reads, key=lambda r: r.bytes - r.distinct_bytes, default=None)
        if again is None or again.rereads < 2 or again.bytes - again.distinct_bytes < 1e9:
            return
        ways = ["more memory a worker"] + (["fewer threads a worker (workers=…)"] if self.crew.threads > 1 else [])
        if isinstance(self.target, SliceTarget):
            ways += ["a folder for scratch=…, where what was read waits"] if self.refuses_scratch else []
            ways.append("export to .ome.zarr, whose regions need not be whole slices")
        warnings.warn(
            f"each chunk of {again.source} is read {again.rereads:.1f} times, {show_bytes(again.bytes)} where "
            f"{show_bytes(again.distinct_bytes)} are needed, as what a worker has memory for is thinner than its "
            f"chunks; less is read with {', or '.join(ways)}",
            ImageryWarning,
            stacklevel=3,
        )

    def _less_memory(self) -> str:
        granule = self.target.granule
        process = f"{show_bytes(PROCESS_BYTES)} of that are the process itself, with its libraries"
        busy = self.crew.threads if self.how is None else self.how.at_once * self.how.threads
        advice = ["fewer threads a worker (workers=…)"] if busy > 1 else []
        if isinstance(self.target, SliceTarget):
            advice.append("export to .ome.zarr, whose regions need not be whole slices")
        elif granule != (1, 1, 1):
            advice.append("smaller chunks=… or shards=…")
        return f"{process}; {', or '.join(['give workers with more memory', *advice])}"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan's numbers as plain data."""
        return {
            "target": self.target.place,
            **{k: v for k, v in self._said().items() if v is not None},
            "shape": list(self.shape),
            "regions": len(self.regions),
            "region": list(self.regions.step),
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
            "peak_memory": self.peak_memory,
            "workers": self.crew.workers,
            "threads": self.crew.threads,
            "memory": self.crew.memory,
            "scratch": None if self.scratch is None else self.scratch.to_dict(),
        }

    def _said(self) -> dict[str, Any]:
        """Return the format and its options in the words in which they are given."""
        said = self.target.describe()
        return {**said, "axis": DIMS[said["axis"]]} if "axis" in said else said

    def _tasks_are(self) -> str:
        later = self.tasks - len(self.regions)
        return "one a region" + (f", and {later:,} of a pyramid's coarser levels" if later else "")

    def _regions_are(self) -> str:
        return "1 region of " if len(self.regions) == 1 else f"{len(self.regions):,} regions of up to "

    def _rows(self) -> list[tuple[str, str]]:
        z, y, x = self.shape
        dz, dy, dx = self.regions.largest().shape
        options = ", ".join(f"{k}={v}" for k, v in self._said().items() if v is not None and k != "format")
        rows = [
            ("format", f"{self.target.describe()['format']}{f' ({options})' if options else ''}"),
            ("voxels", f"{x:,} × {y:,} × {z:,}"),
            ("regions", f"{self._regions_are()}{dx:,} × {dy:,} × {dz:,} voxels"),
            ("tasks", f"{self.tasks:,}: {self._tasks_are()}" + (f", {self.done:,} of them done" if self.done else "")),
        ]
        for r in self.reads:
            again = f", each chunk {r.rereads:.2f} times" if r.rereads > 1.005 else ", each chunk once"
            rows.append(
                ("read", f"{show_bytes(r.bytes)}{again}, about {r.requests:,} requests, of {r.source} (mip {r.mip})")
            )
        each = f"{show_bytes(self.region_bytes)} a region"
        also = f" and {show_bytes(self.pyramid_bytes)} of a pyramid" if self.pyramid_bytes else ""
        files = f", about {self.files_to_write:,} files" if self.files_to_write else ""
        rows.append(("write", f"{show_bytes(self.bytes_to_write)}{also} before compression, {each}{files}"))
        have = f" of {show_bytes(self.crew.memory)}" if self.crew.memory is not None else ""
        count, kind = self.crew.workers * self.crew.threads, self.crew.kind
        crew = f"{count:,} {kind if count > 1 else kind.removesuffix('es' if kind == 'processes' else 's')}"
        if kind == "cluster":
            crew = f"{self.crew.workers:,} × {self.crew.threads:,} {kind}"
        process = f"{show_bytes(PROCESS_BYTES)} for the process itself included"
        rows.append(("memory", f"up to {show_bytes(self.peak_memory)}{have} a worker, {process}; {crew}"))
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


def make_plan(
    target: Target,
    read: BoxReader,
    crew: Crew,
    token: str,
    what: dict[str, Any],
    *,
    overwrite: bool,
    scratch: str | bool | None = None,
) -> ExportPlan:
    """Return the plan of an export; looks for what an earlier run of the same call has left, and reads no voxel."""
    expr = read.volume.expr
    cutter = cutter_of(target, read, crew, scratch)

    def memory_of(box: Any) -> int:
        return region_memory(expr, box, BRICK_VOXELS, target.encoding)

    regions = cutter.regions() if cutter else choose_regions(
        expr,
        target.layer.grid.shape,
        target.granule,
        memory_of=memory_of,
        reads_of=lambda r: rereads(expr, r),
        budget=crew.budget,
        least=crew.workers * crew.threads,
        most=crew.share(),
        threads=crew.threads,
    )  # fmt: skip
    workspace, done = None, 0
    stages = Stages.of(regions, target)
    if target.kind != "memory":
        workspace = Workspace(target, stages, token, what)
        header = workspace.adopt_cut()
        workspace.refuse(header, overwrite)
        stages = workspace.stages
        regions = stages.parts[0]
        if header is not None and header.token == token:
            done = len({e.number for e in workspace.keeper.entries(header.run)})
    how = cutter.how(regions) if cutter else None
    each = memory_of if cutter is None or how is None else partial(cutter.memory, how)
    at_once = crew.at_once(regions) if how is None else how.at_once
    working = at_once * max(map(each, [regions.largest(), regions[0]]))
    return ExportPlan(
        target=target,
        shape=target.layer.grid.shape,
        voxel_bytes=target.layer.voxel_bytes,
        regions=regions,
        tasks=len(stages),
        reads=tuple(source_reads(expr, regions)),
        peak_memory=PROCESS_BYTES + max(working, crew.threads * _later(target)),
        crew=crew,
        done=done,
        scratch=cutter.scratch(how, regions) if cutter and how and how.spilled else None,
        refuses_scratch=scratch is False,
        how=how,
        read=read,
        workspace=workspace,
        overwrite=overwrite,
    )


def _later(target: Target) -> int:
    """Return the most that a region of a pyramid's coarser levels takes."""
    most = 0
    for stage, regions in enumerate(target.later, 1):
        box = regions.largest()
        encoding = int((1 + target.encoding) * box.voxels * target.layer.voxel_bytes)
        most = max(most, target.derived_bytes(stage, box), encoding)
    return most


def _check_writable(workspace: Workspace, least: int) -> None:
    probe = f"{workspace.name}-probe-{uuid.uuid4().hex[:8]}"
    if workspace.remote:
        bucket = Bucket(workspace.folder)
        bucket.put([(probe, b"imageryxr")])
        bucket.delete([probe])
        return
    folder = workspace.folder
    while not os.path.isdir(folder):
        if os.path.lexists(folder) and not os.path.isdir(folder):  # it may have been made just now
            raise TargetError(f"could not write {workspace.target.place}: {folder} is a file, not a folder")
        folder = os.path.dirname(folder)
    try:
        path = os.path.join(folder, probe)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(path)
    except OSError as error:
        # /proc says "no such file" of a folder that is there: what is known is that nothing can be made in it
        raise TargetError(
            f"could not write {workspace.target.place}: no file can be made in the folder {folder} ({error.strerror}); "
            "choose another target, or get the right to write there"
        ) from error
    free = shutil.disk_usage(folder).free
    if least > free:
        raise TargetError(
            f"could not write {workspace.target.place}: it takes {show_bytes(least)}, and {show_bytes(free)} are free "
            f"in {folder}"
        )
