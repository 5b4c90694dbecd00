"""What an export tells: while it runs, and when it has ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from html import escape
from typing import Any

import xarray as xr


@dataclass(frozen=True)
class FailedRegion:
    """A region that could not be made."""

    number: int
    box: str
    """Where it lies, in nm."""
    error: str

    def __str__(self) -> str:
        return f"task {self.number + 1:,}, {self.box}: {self.error}"


@dataclass(frozen=True)
class ExportReport:
    """What an export did."""

    target: str
    """Where the result is."""
    regions: int
    """How many regions of the array were written this time: what a plan's ``regions`` counts."""
    bytes_written: int
    """Bytes on disk, of what was written this time; the size of the file, where the target is one."""
    seconds: float
    """Wall time."""
    skipped: int = 0
    """How many tasks were there already, from an earlier run of the same call."""
    failed: tuple[FailedRegion, ...] = ()
    """Regions that could not be made; then the target is as it was before, and the same call tries them again."""
    holes: tuple[str, ...] = ()
    """Chunks that a source does not have and that were filled with background, as ``missing=`` says."""
    retries: int = 0
    """How often a region was tried again."""
    tasks: int = 0
    """How many tasks were done this time: regions of the array and of a pyramid's coarser levels, as a plan's
    ``tasks`` counts them. With `skipped` and those that failed they are all of the plan's."""
    absent_ids: tuple[int, ...] = ()
    """Ids that were asked for and are nowhere in the data; empty where that is not known: where all was there already,
    a killed run had left slices of a region, or less is exported than they were asked of."""
    result: xr.DataArray | None = field(default=None, repr=False, compare=False)
    """The array, for targets in memory."""

    @property
    def complete(self) -> bool:
        """Whether the result is whole and at its place."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "target": self.target,
            "complete": self.complete,
            "regions": self.regions,
            "tasks": self.tasks,
            "skipped": self.skipped,
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
        told = [f"{_tasks(self.tasks, self.regions)}, {written}"]
        if self.skipped:
            told.append(f"{_count(self.skipped, 'task')} {'was' if self.skipped == 1 else 'were'} there already")
        if self.holes:
            told.append(f"{_count(len(self.holes), 'missing chunk')} filled with background")
        if self.absent_ids:
            told.append(f"{_count(len(self.absent_ids), 'id')} not in the data")
        text = f"<ExportReport {self.target}: {'; '.join(told)}>"
        if not self.failed:
            return text
        listed = "\n".join(f"  {f}" for f in self.failed[:20])
        kept = (
            "Nothing of it is kept: an array in memory is whole, or not there."
            if self.target.startswith("memory:")
            else "The target is as it was before; run the same call again to make what is missing."
        )
        more = f"\n  and {len(self.failed) - 20:,} more" if len(self.failed) > 20 else ""
        return f"{text[:-1]}; NOT COMPLETE, {_count(len(self.failed), 'task')} failed>\n{listed}{more}\n{kept}"


def _tasks(tasks: int, regions: int) -> str:
    pyramid = f" and {tasks - regions:,} of a pyramid" if tasks > regions else ""
    return f"{_count(tasks, 'task')} ({_count(regions, 'region')}{pyramid})"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def show_bytes(count: float) -> str:
    """Return a count of bytes as people read it: 3.2 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


ADVANCE: ContextVar[Callable[[float], None] | None] = ContextVar("imageryxr_advance", default=None)
"""Takes which share of a region has been made since it was last told, where somebody looks."""


def advance(share: float) -> None:
    """Tell whoever looks of a share of the region that is under way in this thread."""
    told = ADVANCE.get()
    if told is not None:
        told(share)


_FOLLOWER: ContextVar[Callable[[float], Any] | None] = ContextVar("imageryxr_follower", default=None)


@contextmanager
def following(told: Callable[[float], Any]) -> Iterator[None]:
    """Report which share of an export, from 0 to 1, is done, while this thread runs one in the block."""
    before = _FOLLOWER.set(told)
    try:
        yield
    finally:
        _FOLLOWER.reset(before)


def show_done(shown: Any, done: int, shares: float = 0.0) -> None:
    """Move a bar to so many tasks and shares of those under way, and report it to a follower."""
    shown.whole = done
    shown.update(max(0.0, done + shares - shown.n))  # what a try had made that failed is not taken back
    told = _FOLLOWER.get()
    if told is not None and shown.total:
        shown.reached = max(getattr(shown, "reached", 0.0), done + shares)  # a bar that is not shown counts nothing
        told(min(1.0, shown.reached / shown.total))


def bar(place: str, total: int, skipped: int, shown: bool | None) -> Any:
    """Return a bar that counts tasks, and shares of them, with rate and time left; quiet where nobody looks.

    Parameters
    ----------
    place : str
        The target.
    total, skipped : int
        Tasks, and how many of them were there already: those do not count towards the rate.
    shown : bool or None
        None shows it in a notebook, and if standard error is a terminal.
    """
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """Counts whole tasks, while its length is that of shares, too."""

        @property
        def format_dict(self) -> Any:
            return {**super().format_dict, "whole": getattr(self, "whole", skipped)}

    show = _someone_looks() if shown is None else shown
    name = os.path.basename(place.rstrip("/"))[:40]
    # where a terminal says that it has no size, nothing would be seen
    size = {"ncols": 80, "nrows": 24} if show and _is_sizeless() else {}
    looks = "{l_bar}{bar}| {whole:,}/{total:,} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    return Bar(
        total=total, initial=skipped, unit="task", desc=name, disable=not show, smoothing=0.1, bar_format=looks, **size
    )


def tell(text: str) -> None:
    """Write a line to standard error, above a bar that may be there."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def _is_sizeless() -> bool:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns == 0
    except (OSError, ValueError, AttributeError):  # it is no terminal
        return False


def _someone_looks() -> bool:
    shell = sys.modules.get("IPython")
    if shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell":
        return True
    return sys.stderr.isatty()
