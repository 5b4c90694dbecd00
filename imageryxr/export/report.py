"""The report of an export, and its progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any

import xarray as xr

from imageryxr.core.lazy_import import import_package
from imageryxr.core.units import show_bytes, show_count
from imageryxr.ops.progress import bar_size


@dataclass(frozen=True)
class FailedRegion:
    """A region that failed after all retries."""

    number: int
    box: str
    """The box of the region, in nm."""
    error: str

    def __str__(self) -> str:
        return f"task {self.number + 1:,}, {self.box}: {self.error}"


@dataclass(frozen=True)
class ExportReport:
    """The result of an export."""

    target: str
    """Path or URL of the result."""
    regions: int
    """Number of regions of the array that this run has written; `ExportPlan.regions` lists them all."""
    bytes_written: int
    """Bytes on disk that this run has written; for a single file, its size."""
    seconds: float
    """Wall time."""
    skipped: int = 0
    """Number of tasks that an earlier run of the same call had done."""
    failed: tuple[FailedRegion, ...] = ()
    """Regions that failed. The target is then unchanged, and the same call retries them."""
    holes: tuple[str, ...] = ()
    """Missing chunks of the sources that were filled with background, according to ``missing=``."""
    retries: int = 0
    """Number of retries of regions."""
    tasks: int = 0
    """Number of tasks that this run has done: regions of the array and of a pyramid's coarser levels. `tasks`,
    `skipped` and the failed tasks add up to `ExportPlan.tasks`."""
    absent_ids: tuple[int, ...] = ()
    """Requested ids that do not occur in the data. The tuple is also empty if they cannot be determined: if an earlier
    run has written all regions or some slices of a region, or if the array is a crop of the one with the ids."""
    result: xr.DataArray | None = field(default=None, repr=False, compare=False)
    """The array, for targets in memory."""
    kept_slices: int = 0
    """Number of slices of the tasks of this run that an earlier, interrupted run of the same call had written."""

    @property
    def complete(self) -> bool:
        """Whether the export is complete and its result published."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "target": self.target,
            "complete": self.complete,
            "regions": self.regions,
            "tasks": self.tasks,
            "skipped": self.skipped,
            "kept_slices": self.kept_slices,
            "failed": [str(f) for f in self.failed],
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "holes": list(self.holes),
            "retries": self.retries,
            "absent_ids": list(self.absent_ids),
        }

    def _repr_html_(self) -> str:
        return f"<pre style='white-space: pre-wrap'>{escape(repr(self))}</pre>"

    def __repr__(self) -> str:
        rate = f", {show_bytes(self.bytes_written / self.seconds)}/s" if self.seconds > 1 and self.bytes_written else ""
        written = f"{show_bytes(self.bytes_written)} written in {self.seconds:.1f} s{rate}"
        parts = [f"{_tasks(self.tasks, self.regions)}, {written}"]
        if self.skipped:
            parts.append(f"{show_count(self.skipped, 'task')} {'was' if self.skipped == 1 else 'were'} done before")
        if self.kept_slices:
            parts.append(f"{show_count(self.kept_slices, 'finished slice')} of an interrupted run kept")
        if self.holes:
            parts.append(f"{show_count(len(self.holes), 'missing chunk')} filled with background")
        if self.absent_ids:
            parts.append(f"{show_count(len(self.absent_ids), 'id')} not in the data")
        text = f"<ExportReport {self.target}: {'; '.join(parts)}>"
        if not self.failed:
            return text
        listed = "\n".join(f"  {f}" for f in self.failed[:20])
        kept = (
            "No partial result is kept for an array in memory."
            if self.target.startswith("memory:")
            else "The target is unchanged; run the same call again to retry the failed tasks."
        )
        more = f"\n  and {len(self.failed) - 20:,} more" if len(self.failed) > 20 else ""
        return f"{text[:-1]}; NOT COMPLETE, {show_count(len(self.failed), 'task')} failed>\n{listed}{more}\n{kept}"


def _tasks(tasks: int, regions: int) -> str:
    pyramid = f" and {tasks - regions:,} of a pyramid" if tasks > regions else ""
    return f"{show_count(tasks, 'task')} ({show_count(regions, 'region')}{pyramid})"


ON_PROGRESS: ContextVar[Callable[[float], None] | None] = ContextVar("imageryxr_on_progress", default=None)
"""A function that receives the share of a region that was completed since the last call; None without a listener."""


def add_progress(share: float) -> None:
    """Report to `ON_PROGRESS` that a further share, 0 to 1, of this thread's region is done."""
    callback = ON_PROGRESS.get()
    if callback is not None:
        callback(share)


_ON_DONE: ContextVar[Callable[[float], Any] | None] = ContextVar("imageryxr_on_done", default=None)


@contextmanager
def report_progress_to(callback: Callable[[float], Any]) -> Iterator[None]:
    """Call a function repeatedly with the completed share, 0 to 1, of an export that this thread runs in the block."""
    before = _ON_DONE.set(callback)
    try:
        yield
    finally:
        _ON_DONE.reset(before)


def update_bar(shown: Any, done: int, shares: float = 0.0) -> None:
    """Set a bar to a number of done tasks plus shares of running ones; report the completed share of the export."""
    shown.whole = done
    shown.update(max(0.0, done + shares - shown.n))  # a failed attempt does not move the bar back
    callback = _ON_DONE.get()
    if callback is not None and shown.total:
        shown.reached = max(getattr(shown, "reached", 0.0), done + shares)  # a disabled bar has no count
        callback(min(1.0, shown.reached / shown.total))


@cache
def _bar_class() -> type[Any]:
    """Return the class of all bars. There is only one, because tqdm starts a thread per class that never ends."""
    import_package("tqdm")
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """A bar whose length includes shares of tasks, and whose text counts whole tasks."""

        @property
        def format_dict(self) -> Any:
            return {**super().format_dict, "whole": getattr(self, "whole", self.initial)}

    return Bar


def progress_bar(place: str, total: int, skipped: int, shown: bool | None) -> Any:
    """Return a progress bar of tasks and shares of tasks, with rate and remaining time.

    Tasks that an earlier run had done, `skipped`, do not count towards the rate. If `shown` is None, the bar is shown
    in a notebook, and if standard error is a terminal.
    """
    show = _is_interactive() if shown is None else shown
    name = os.path.basename(place.rstrip("/"))[:40]
    size = bar_size() if show else {}
    text = "{l_bar}{bar}| {whole:,}/{total:,} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    return _bar_class()(
        total=total, initial=skipped, unit="task", desc=name, disable=not show, smoothing=0.1, bar_format=text, **size
    )


def write_line(text: str) -> None:
    """Write a line to standard error, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def _is_interactive() -> bool:
    shell = sys.modules.get("IPython")
    if shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell":
        return True
    return sys.stderr.isatty()
