"""Carrying out a plan: regions handed out a few at a time, noted when done, tried again when they fail."""

from __future__ import annotations

import heapq
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.errors import (
    AuthError,
    CodecError,
    ImageryError,
    LayerError,
    MissingChunkError,
    OptionError,
    ScratchError,
    TargetError,
)
from imageryxr.export.commit.session import Stages, Workspace
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.report import ExportReport, FailedRegion, bar, show_done, tell
from imageryxr.export.run.executors import Workers
from imageryxr.export.run.requested_ids import Asked
from imageryxr.export.run.task import Job, Outcome
from imageryxr.graph.labelled import attrs_on_grid, label_array
from imageryxr.sources.base import clean_message

OnError = Literal["raise", "collect"]

# Seconds before a region is tried again whose failure may pass: longer than a network is commonly away.
WAITS = (2.0, 15.0, 60.0)
# How often nothing comes back, a second each, before it is asked why.
PATIENCE = 2
# What no second try can mend.
FINAL = (MissingChunkError, AuthError, CodecError, OptionError, LayerError)
# What may pass by itself, by the names of the classes of clients that need not be loaded here.
PASSING = (
    "ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "TimeoutError", "ProtocolError", "MaxRetryError",
    "ChunkedEncodingError", "ServerError", "KilledWorker", "CommClosedError", "CancelledError", "GenericError",
    "ConnectionResetError",
)  # fmt: skip


@dataclass
class _Under:
    """A region that somebody is at."""

    number: int
    tries: int


@dataclass
class _Tally:
    regions: int = 0
    tasks: int = 0
    bytes: int = 0
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
    """Make every region that is not there, and bring the result to its place."""
    began = time.perf_counter()
    if plan.workspace is None:
        return _run_in_memory(plan, retries, on_error, progress, began)
    space = plan.workspace
    with space.opened(overwrite=overwrite, resume=resume):
        skipped = int(space.progress.done.sum())
        tally, asked = _Tally(), _asked(plan)
        if skipped:
            asked.resume(space.progress.ids, space.progress.all_ids)
        try:
            if skipped < len(space.stages):
                _run_stages(plan, space, tally, asked, skipped, retries, on_error, progress)
            if not tally.failed:
                published = space.publish()
                # of one file, what it was put together from is gone again
                tally.bytes = published if plan.target.kind == "single" else tally.bytes + published
        except BaseException as error:
            if space.abandon():
                error.add_note(_kept(space))
            raise
        if tally.failed:
            space.abandon()
    if not tally.failed:
        plan.target.done()
        asked.warn()
    return ExportReport(
        plan.target.place,
        tally.regions,
        tally.bytes,
        time.perf_counter() - began,
        skipped,
        tuple(sorted(tally.failed, key=lambda f: f.number)),
        tuple(sorted(space.progress.holes)),
        tally.retries,
        tally.tasks,
        () if tally.failed else asked.absent(),
    )


def _kept(space: Workspace) -> str:
    done, total = int(space.progress.done.sum()), len(space.stages)
    what = f"{done:,} of {total:,} tasks of {space.target.place} are done" if done else "slices that were finished are"
    return f"{what} {'and ' * bool(done)}kept: run the same call again to continue"


def _run_stages(
    plan: ExportPlan,
    space: Workspace,
    tally: _Tally,
    asked: Asked,
    skipped: int,
    retries: int,
    on_error: OnError,
    shown: bool | None,
) -> None:
    workers = plan.crew.make(Job(plan.target, space.data, plan.read, plan.how, space.continued))
    loop = _Loop(workers, space.stages, space.box, plan, tally, retries, on_error)
    try:
        with bar(plan.target.place, len(space.stages), skipped, shown) as shown_bar:
            loop.tick = lambda: show_done(shown_bar, skipped + tally.tasks, workers.under_way())
            for stage in range(len(space.stages.parts)):
                first = space.stages.start(stage)
                todo = np.flatnonzero(~space.progress.done[first : first + len(space.stages.parts[stage])]) + first
                for outcome in loop.outcomes(todo):
                    space.note(replace(outcome.entry, ids=asked.note(outcome.ids)))
                    tally.tasks += 1
                    tally.regions += stage == 0
                    tally.bytes += outcome.entry.size
                    loop.tick()
                if tally.failed:
                    break  # what follows is made from all of this stage
    except BaseException:
        workers.abort()
        raise
    workers.close()


def _asked(plan: ExportPlan) -> Asked:
    return Asked(plan.read.volume.expr, plan.read.volume.grid.box)


class _Loop:
    """Hands regions out and takes them back, whoever makes them."""

    def __init__(
        self,
        workers: Workers,
        stages: Stages,
        box_of: Any,
        plan: ExportPlan,
        tally: _Tally,
        retries: int,
        on_error: OnError,
    ) -> None:
        self.workers, self.stages, self.box_of = workers, stages, box_of
        self.plan, self.tally, self.retries, self.on_error = plan, tally, retries, on_error
        self.back: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.under_way: dict[Any, _Under] = {}
        self.waiting: list[tuple[float, int, int]] = []
        """When, which region, how many tries: a heap."""
        self.idle = 0
        """How often in a row there was nothing to take back."""
        self.told = False
        self.tick: Callable[[], None] = lambda: None
        """Called every second, while nothing comes back."""

    def outcomes(self, numbers: Any) -> Iterator[Outcome]:
        """Return what becomes of regions, in the order in which they are done."""
        todo = map(int, numbers)  # of which there may be too many for a list
        last = not len(numbers)
        try:
            while True:
                while len(self.under_way) < self.workers.slots():
                    following = self._next(todo) if not last else self._due()
                    if following is None:
                        last = True
                        following = self._due()
                    if following is None:
                        break
                    self._hand_out(*following)
                if last and not self.under_way and not self.waiting:
                    return
                outcome = self._take_back()
                if outcome is not None:
                    yield outcome
        finally:
            self.workers.cancel(list(self.under_way))
            self.under_way.clear()
            self.waiting.clear()

    def _due(self) -> tuple[int, int] | None:
        if self.waiting and self.waiting[0][0] <= time.monotonic():
            _, number, tries = heapq.heappop(self.waiting)
            return number, tries
        return None

    def _next(self, todo: Iterator[int]) -> tuple[int, int] | None:
        due = self._due()
        if due is not None:
            return due
        number = next(todo, None)
        return None if number is None else (number, 0)

    def _hand_out(self, number: int, tries: int) -> None:
        stage, box = self.box_of(number)
        future = self.workers.submit(number, stage, box)
        self.under_way[future] = _Under(number, tries)
        future.add_done_callback(self.back.put)

    def _take_back(self) -> Outcome | None:
        wait = 1.0 if not self.waiting else min(1.0, max(0.01, self.waiting[0][0] - time.monotonic()))
        try:
            future = self.back.get(timeout=wait)
        except queue.Empty:
            self._look_for_lost()
            self._tell_of_waiting()
            self.tick()
            return None
        self.idle = 0
        region = self.under_way.pop(future, None)
        if region is None:
            return None
        try:
            outcome: Outcome = future.result()
        except Exception as error:
            self._failed(region, error)
            return None
        return outcome

    def _tell_of_waiting(self) -> None:
        """Say once what is waited for, to whoever sees nothing happen, also where no bar is shown."""
        self.idle += 1
        lacking = "" if self.told or self.idle < PATIENCE else self.workers.lacks()
        if lacking:
            tell(lacking)
            self.told = True

    def _look_for_lost(self) -> None:
        # A client that has lost its scheduler forgets what it was asked for, and calls nobody back.
        self.workers.check()
        for future in list(self.under_way):
            if future.cancelled():
                self.back.put(future)

    def _failed(self, region: _Under, error: Exception) -> None:
        self.workers.check()
        wait = self._wait(region, error) if region.tries < self.retries else None
        if wait is not None:
            heapq.heappush(self.waiting, (time.monotonic() + wait, region.number, region.tries + 1))
            self.tally.retries += 1
            return
        stage, box = self.box_of(region.number)
        where = _where(self.plan, stage, box)
        if self.on_error == "raise" or self._ends_all(error):
            error.add_note(f"in task {region.number + 1:,} of {len(self.stages):,}, {where}, try {region.tries + 1}")
            if not isinstance(error, ImageryError) and type(error).__name__ in (*PASSING, "BrokenProcessPool"):
                raise TargetError(_lost(region.number, where, error)) from error
            raise error
        message = clean_message(str(error)) or type(error).__name__
        self.tally.failed.append(FailedRegion(region.number, where, message))

    def _wait(self, region: _Under, error: Exception) -> float | None:
        """Return the seconds after which a region is tried again; None where that is of no use."""
        patient = WAITS[min(region.tries, len(WAITS) - 1)]
        if isinstance(error, ScratchError):
            if self.workers.elsewhere(region.number, error.worker):
                return 0.0
            # other regions give room back; a folder that is not there does not come
            return patient if error.full and error.worker is not None else None
        if isinstance(error, FINAL) or self._ends_all(error):
            return None
        # What may pass gets time to; what may not is tried at once, in case it was chance.
        return patient if _may_pass(error) else 0.0

    def _ends_all(self, error: Exception) -> bool:
        """Tell whether an error is that of all regions that are still to come."""
        if isinstance(error, ScratchError):
            return error.worker is None
        return isinstance(error, TargetError) and (error.full or error.taken)


def _lost(number: int, where: str, error: Exception) -> str:
    guard = "; a script that uses processes needs `if __name__ == '__main__':` around what it does"
    return (
        f"task {number + 1:,}, {where}, was lost with its worker again and again ({type(error).__name__}: "
        f"{clean_message(str(error))}); the likeliest cause is too little memory: plan_export tells what a worker takes"
        + (guard if type(error).__name__ == "BrokenProcessPool" else "")
    )


def _where(plan: ExportPlan, stage: int, box: IndexBox) -> str:
    grid = plan.target.layer.grid if not stage else getattr(plan.target, "grids", [plan.target.layer.grid])[stage]
    return f"{f'level {stage}, ' if stage else ''}{grid.crop(box).bbox}"


def _may_pass(error: BaseException | None) -> bool:
    seen = set[int]()  # what users raise may go round in circles
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        names = {c.__name__ for c in type(error).__mro__}
        status = getattr(getattr(error, "response", None), "status_code", 0) or 0
        if names & set(PASSING) or status in (408, 429) or status >= 500:
            return True
        error = error.__cause__ or error.__context__
    return False


# ---------------------------------------------------------------------------------------------------------
# into memory


def _run_in_memory(
    plan: ExportPlan, retries: int, on_error: OnError, progress: bool | None, began: float
) -> ExportReport:
    layer, tally, holes = plan.target.layer, _Tally(), set[str]()
    tail = (layer.channels,) if layer.channels else ()
    out = np.zeros((*plan.shape, *tail), layer.dtype)
    workers = plan.crew.make(Job(plan.target, None, plan.read))
    stages = Stages((plan.regions,))
    loop = _Loop(workers, stages, lambda n: (0, plan.regions[n]), plan, tally, retries, on_error)
    asked = _asked(plan)
    try:
        with bar(plan.target.place, len(stages), 0, progress) as shown_bar:
            for outcome in loop.outcomes(np.arange(len(stages))):
                assert outcome.values is not None
                out[plan.regions[outcome.entry.number].slices()] = outcome.values
                holes.update(outcome.entry.holes)
                asked.note(outcome.ids)
                tally.tasks += 1
                tally.regions += 1
                tally.bytes += outcome.values.nbytes
                show_done(shown_bar, tally.tasks)
    except BaseException:
        workers.abort()
        raise
    workers.close()
    if not tally.failed:
        asked.warn()
    volume = plan.read.volume
    name = str(volume.name or "export")
    if layer.channels in (0, 4):
        array = label_array(out, layer.grid, volume.attrs, name, tail="rgba" if layer.channels else None)
    else:  # some of r, g, b and a, without their names
        attrs = attrs_on_grid(volume.attrs, layer.grid)
        array = xr.DataArray(out, dims=(*DIMS, "rgba"), coords=layer.grid.coords(), attrs=attrs, name=name)
    seconds = time.perf_counter() - began
    failed = tuple(sorted(tally.failed, key=lambda f: f.number))
    return ExportReport(
        plan.target.place, tally.regions, tally.bytes, seconds, 0, failed, tuple(sorted(holes)), tally.retries,
        tally.tasks, () if failed else asked.absent(), None if failed else array,
    )  # fmt: skip
