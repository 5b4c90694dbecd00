"""Carrying out a plan: regions computed and written by threads, few at a time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from imageryxr.export.plan import ExportPlan, show_bytes
from imageryxr.expr import Array
from imageryxr.grid import IndexBox


@dataclass(frozen=True)
class ExportReport:
    """What an export did."""

    target: str
    """Where the result is."""
    regions: int
    """How many regions were written."""
    bytes_written: int
    """Bytes on disk."""
    seconds: float
    """Wall time."""

    def __repr__(self) -> str:
        return (
            f"<ExportReport {self.target}: {self.regions} regions, {show_bytes(self.bytes_written)} written "
            f"in {self.seconds:.1f} s>"
        )


def run_plan(
    plan: ExportPlan, read: Callable[[IndexBox], Array], *, workers: int | None, progress: bool | None
) -> ExportReport:
    """Compute and write every region; on any failure remove what was begun and raise.

    At most two regions a thread are under way, so memory does not grow with the size of the export.
    """
    from tqdm.auto import tqdm

    began = time.perf_counter()
    count = workers or os.cpu_count() or 1
    shown = sys.stderr.isatty() if progress is None else progress
    plan.target.begin()
    try:
        with tqdm(total=len(plan.regions), unit="region", disable=not shown, desc=_short(plan.target.place)) as bar:
            written = _all_regions(plan, read, count, bar)
        written += plan.target.finish()
    except BaseException:
        plan.target.abandon()
        raise
    return ExportReport(plan.target.place, len(plan.regions), written, time.perf_counter() - began)


def _all_regions(plan: ExportPlan, read: Callable[[IndexBox], Array], count: int, bar: Any) -> int:
    def one(box: IndexBox) -> int:
        return plan.target.write(box, read(box))

    written, under_way = 0, set[Future[int]]()
    with ThreadPoolExecutor(count, thread_name_prefix="imageryxr-export") as pool:
        try:
            for box in plan.regions:
                if len(under_way) >= count:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    written += sum(f.result() for f in done)
                    bar.update(len(done))
                under_way.add(pool.submit(one, box))
            for future in under_way:
                written += future.result()
                bar.update(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return written


def _short(place: str) -> str:
    return os.path.basename(place.rstrip("/"))[:40]
