"""Run a plan: submit a few regions at a time, record those that are done, retry those that fail."""

from __future__ import annotations

import heapq
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from msgspec.structs import replace

from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.errors import (
    AuthError,
    CodecError,
    ImageryError,
    LayerError,
    Message,
    MissingChunkError,
    OptionError,
    ScratchError,
    TargetError,
    Wording,
)
from imageryxr.export.commit.conflicts import warn_of_strays
from imageryxr.export.commit.manifest import Entry, Progress
from imageryxr.export.commit.session import Workspace
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.plan.regions import Stages
from imageryxr.export.read.reader import BUFFERS
from imageryxr.export.report import ExportReport, FailedRegion, progress_bar, update_bar, write_line
from imageryxr.export.run.executors import RegionExecutor
from imageryxr.export.run.task import IdTracker, Job, Outcome
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import attrs_on_grid, label_array
from imageryxr.sources.base import clean_message
from imageryxr.sources.fetch import memory_cache

OnError = Literal["raise", "collect"]

# Seconds before the retries of a region after a transient error: longer than most network outages.
RETRY_DELAYS = (2.0, 15.0, 60.0)
# Longest time of a round, in which the scheduler waits for one result.
TICK_SECONDS = 1.0
# Missing workers are reported after this many rounds without a result.
IDLE_ROUNDS = 2
# Errors that a retry cannot fix.
PERMANENT_ERRORS = (MissingChunkError, AuthError, CodecError, OptionError, LayerError)
# Transient errors, by class name, because the client libraries that define them may not be loaded.
TRANSIENT_ERRORS = (
    "ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "TimeoutError", "ProtocolError", "MaxRetryError",
    "ChunkedEncodingError", "ServerError", "KilledWorker", "CommClosedError", "CancelledError", "GenericError",
    "ConnectionResetError",
)  # fmt: skip
# Those of them that dask raises if a worker died. The others are also raised by sources, and by functions of users.
LOST_WORKER_ERRORS = ("KilledWorker", "CommClosedError", "CancelledError")


@dataclass
class _Tally:
    regions: int = 0
    tasks: int = 0
    bytes: int = 0
    kept_slices: int = 0
    retries: int = 0
    failed: list[FailedRegion] = field(default_factory=list)


def run_plan(
    plan: ExportPlan,
    *,
    overwrite: bool,
    resume: bool,
    retries: int,
    on_error: OnError,
    progress: bool | None,
) -> ExportReport:
    """Make every region that is not done, and publish the result."""
    began = time.perf_counter()
    run = _Run(plan, retries, on_error, progress)
    array, space, skipped = None, plan.workspace, 0
    if space is None:
        done = Progress(len(plan.regions))
        array = run.make_array(done)
    else:
        with space.open_session(overwrite=overwrite, resume=resume):
            skipped = int(space.progress.done.sum())
            run.write_files(space)
        done = space.progress
    tally = run.tally
    if not tally.failed:
        if space is not None and space.remote:
            memory_cache.cache.clear()  # the cache may contain chunks of the replaced result
        warn_of_strays(plan.target)
        run.tracker.warn()
    return ExportReport(
        plan.target.place,
        tally.regions,
        tally.bytes,
        time.perf_counter() - began,
        skipped,
        tuple(sorted(tally.failed, key=lambda f: f.number)),
        tuple(sorted(done.holes)),
        tally.retries,
        tally.tasks,
        () if tally.failed else run.tracker.absent(),
        None if tally.failed else array,
        tally.kept_slices,
    )


class _Run:
    """One run of a plan."""

    def __init__(self, plan: ExportPlan, retries: int, on_error: OnError, show_progress: bool | None) -> None:
        self.plan, self.retries, self.on_error, self.show_progress = plan, retries, on_error, show_progress
        self.tally = _Tally()
        self.tracker = IdTracker(plan.read.volume.expr, plan.read.volume.grid.box)

    def write_files(self, space: Workspace) -> None:
        """Write the regions that are not done, and publish the result unless a region failed."""
        done, tally = space.progress, self.tally
        if done.done.any():
            self.tracker.resume(done.ids, done.all_ids)
        try:
            if not done.done.all():
                job = Job(self.plan.target, space.data, self.plan.read, self.plan.slab_settings, space.is_continued)
                self._make_regions(job, space.stages, done, lambda entry, _: space.note(entry))
            if not tally.failed:
                published = space.publish()
                # a single file is assembled from temporary files, which do not count
                tally.bytes = published if self.plan.target.kind == "single" else tally.bytes + published
        except BaseException as error:
            if space.abandon():
                error.add_note(_resume_note(space))
            raise
        if tally.failed:
            space.abandon()

    def make_array(self, done: Progress) -> xr.DataArray:
        """Return the array, made in memory; incomplete if a region failed."""
        plan, layer = self.plan, self.plan.target.layer
        out = np.zeros((*plan.shape, *((layer.channels,) if layer.channels else ())), layer.dtype)

        def keep(entry: Entry, values: Array | None) -> None:
            out[plan.regions[entry.number].slices()] = values
            done.note(entry)

        self._make_regions(Job(plan.target, None, plan.read), Stages((plan.regions,)), done, keep)
        volume = plan.read.volume
        name = str(volume.name or "export")
        if layer.channels in (0, 4):
            return label_array(out, layer.grid, volume.attrs, name, tail="rgba" if layer.channels else None)
        # a subset of the channels r, g, b and a
        attrs = attrs_on_grid(volume.attrs, layer.grid)
        return xr.DataArray(out, dims=(*DIMS, "rgba"), coords=layer.grid.coords(), attrs=attrs, name=name)

    def _make_regions(
        self, job: Job, stages: Stages, done: Progress, keep: Callable[[Entry, Array | None], None]
    ) -> None:
        """Make the regions that are not done, stage by stage; `keep` receives each and its values in memory."""
        tally, skipped = self.tally, int(done.done.sum())
        workers = self.plan.pool.make(job)
        loop = _Scheduler(workers, stages, self.plan, tally, self.retries, self.on_error)
        try:
            with progress_bar(self.plan.target.place, len(stages), skipped, self.show_progress) as bar:
                loop.tick = lambda: update_bar(bar, skipped + tally.tasks, workers.partial_progress())
                for stage, regions in enumerate(stages.parts):
                    first = stages.start(stage)
                    todo = np.flatnonzero(~done.done[first : first + len(regions)]) + first
                    for outcome in loop.outcomes(todo):
                        keep(replace(outcome.entry, ids=self.tracker.record(outcome.ids)), outcome.values)
                        tally.tasks += 1
                        tally.regions += stage == 0
                        slices, size = outcome.kept
                        tally.bytes += outcome.entry.size - size if outcome.values is None else outcome.values.nbytes
                        tally.kept_slices += slices
                        loop.tick()
                    if tally.failed:
                        break  # the next stage needs all regions of this one
        except BaseException:
            workers.abort()
            raise
        else:
            workers.close()
        finally:
            BUFFERS.clear()


def _resume_note(space: Workspace) -> str:
    done, total = int(space.progress.done.sum()), len(space.stages)
    what = f"{done:,} of {total:,} tasks of {space.target.place} are done" if done else "slices that were finished are"
    return f"{what} {'and ' * bool(done)}kept: run the same call again to continue"


class _Scheduler:
    """Submits regions to an executor and collects their outcomes."""

    def __init__(
        self,
        workers: RegionExecutor,
        stages: Stages,
        plan: ExportPlan,
        tally: _Tally,
        retries: int,
        on_error: OnError,
    ) -> None:
        self.workers, self.stages = workers, stages
        self.plan, self.tally, self.retries, self.on_error = plan, tally, retries, on_error
        self.finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Futures that have finished."""
        self.under_way: dict[Any, tuple[int, int]] = {}
        """Region number and failed attempts of each submitted region, by its future."""
        self.waiting: list[tuple[float, int, int]] = []
        """Regions that wait for a retry: a heap of (time, region number, failed attempts)."""
        self.lost = set[int]()
        """Regions whose last worker died. They wait until other regions have freed memory."""
        self.idle = 0
        """Number of successive rounds in which no future finished."""
        self.is_wait_reported = False
        self.tick: Callable[[], None] = lambda: None
        """Called every `TICK_SECONDS` while no region finishes."""

    def outcomes(self, numbers: Any) -> Iterator[Outcome]:
        """Yield the outcomes of regions as they finish."""
        begun = 0
        try:
            while begun < len(numbers) or self.under_way or self.waiting:
                if begun == len(numbers) and not self.under_way:
                    self._end_waits()
                while len(self.under_way) < self.workers.slots():
                    if self.waiting and self.waiting[0][0] <= time.monotonic():
                        _, number, tries = heapq.heappop(self.waiting)
                    elif begun < len(numbers):
                        number, tries, begun = int(numbers[begun]), 0, begun + 1
                    else:
                        break
                    self._submit(number, tries)
                outcome = self._collect()
                if outcome is not None:
                    yield outcome
        finally:
            self.workers.cancel(list(self.under_way))
            self.under_way.clear()
            self.waiting.clear()

    def _end_waits(self) -> None:
        """Let regions whose worker died be retried now, because no other region uses memory."""
        self.waiting = [(0.0 if number in self.lost else at, number, tries) for at, number, tries in self.waiting]
        heapq.heapify(self.waiting)

    def _submit(self, number: int, tries: int) -> None:
        stage, box = self.stages.box(number)
        future = self.workers.submit(number, stage, box)
        self.under_way[future] = number, tries
        future.add_done_callback(self.finished.put)

    def _collect(self) -> Outcome | None:
        wait = TICK_SECONDS
        if self.waiting:
            wait = min(wait, max(0.01, self.waiting[0][0] - time.monotonic()))
        try:
            future = self.finished.get(timeout=wait)
        except queue.Empty:
            self._collect_cancelled()
            self._report_waiting()
            self.tick()
            return None
        self.idle = 0
        region = self.under_way.pop(future, None)
        if region is None:
            return None
        try:
            outcome: Outcome = future.result()
        except Exception as error:
            self._handle_failure(*region, error)
            return None
        return outcome

    def _report_waiting(self) -> None:
        """Report missing workers once, even if no progress bar is shown."""
        self.idle += 1
        is_due = not self.is_wait_reported and self.idle >= IDLE_ROUNDS
        if is_due and (message := self.workers.missing_workers_message()):
            write_line(message)
            self.is_wait_reported = True

    def _collect_cancelled(self) -> None:
        # A client that has lost its scheduler cancels its futures without calling their callbacks.
        self.workers.check()
        for future in list(self.under_way):
            if future.cancelled():
                self.finished.put(future)

    def _handle_failure(self, number: int, tries: int, error: Exception) -> None:
        self.workers.check()
        (self.lost.add if type(error).__name__ == "KilledWorker" else self.lost.discard)(number)
        wait = self._retry_delay(number, tries, error) if tries < self.retries else None
        if wait is not None:
            heapq.heappush(self.waiting, (time.monotonic() + wait, number, tries + 1))
            self.tally.retries += 1
            return
        stage, box = self.stages.box(number)
        where = _describe_box(self.plan, stage, box)
        if self.on_error == "raise" or self._is_fatal(error):
            error.add_note(f"in task {number + 1:,} of {len(self.stages):,}, {where}, try {tries + 1}")
            if not isinstance(error, ImageryError) and type(error).__name__ in TRANSIENT_ERRORS:
                raise TargetError(_transient_error_message(f"task {number + 1:,}, {where},", tries, error)) from error
            raise error
        message = clean_message(str(error)) or type(error).__name__
        if isinstance(error, ImageryError) and message == error.message:
            message = error.message  # a `Message`, whose parts the command line renders in its own terms
        self.tally.failed.append(FailedRegion(number, where, message))

    def _retry_delay(self, number: int, tries: int, error: Exception) -> float | None:
        """Return the seconds to wait before a region is retried; None if a retry is useless."""
        patient = RETRY_DELAYS[min(tries, len(RETRY_DELAYS) - 1)]
        if isinstance(error, ScratchError):
            if self.workers.avoid_worker(number, error.worker):
                return 0.0
            # other regions will free space on a full disk; a missing folder stays missing
            return patient if error.full and error.worker is not None else None
        if isinstance(error, PERMANENT_ERRORS) or self._is_fatal(error):
            return None
        # Transient errors are retried after a delay, all others at once.
        return patient if _is_transient(error) else 0.0

    def _is_fatal(self, error: Exception) -> bool:
        """Return whether an error would occur in all remaining regions."""
        if isinstance(error, ScratchError):
            return error.worker is None
        return isinstance(error, TargetError) and (error.full or error.taken)


def _transient_error_message(task: str, tries: int, error: Exception) -> str:
    kind, text = type(error).__name__, clean_message(str(error))
    if kind not in LOST_WORKER_ERRORS:
        times = "once" if not tries else f"{tries + 1} times"
        return (
            f"{task} failed {times}, the last time with {kind}{text and ': '}{text}. A source, or the function of a "
            "dask array, lost the connection that it reads from: check it, and run the same call again to continue"
        )
    return Message(
        f"{task} failed repeatedly because its worker died ({kind}: {text}); probably it has too little memory: ",
        Wording("plan_export returns what a worker needs", "--dry-run shows what a worker needs"),
    )


def _describe_box(plan: ExportPlan, stage: int, box: IndexBox) -> str:
    grid = plan.target.layer.grid if not stage else getattr(plan.target, "grids", [plan.target.layer.grid])[stage]
    return f"{f'level {stage}, ' if stage else ''}{grid.crop(box).bbox}"


def _is_transient(error: BaseException | None) -> bool:
    seen = set[int]()  # chains of user-defined errors may be circular
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        names = {c.__name__ for c in type(error).__mro__}
        status = getattr(getattr(error, "response", None), "status_code", 0) or 0
        if names & set(TRANSIENT_ERRORS) or status in (408, 429) or status >= 500:
            return True
        error = error.__cause__ or error.__context__
    return False
