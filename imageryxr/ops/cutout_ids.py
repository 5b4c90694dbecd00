"""Ids of each cutout that a caller requests of a segmentation, and which cutouts do not contain theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
from imageryxr.errors import MissingIdsWarning, warn
from imageryxr.ops.segment_ids import is_recording_ids

Ids = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
_TOPIC = "imageryxr-cutout-ids"


@dataclass(frozen=True)
class CutoutIds:
    """Requested ids of each cutout, in one column or several."""

    names: tuple[str, ...]
    """The names of the columns."""
    numbers: tuple[str, ...]
    """The label of each cutout."""
    values: Ids
    """The ids (cutout, column). 0 requests nothing."""

    def missing_message(self, is_present: Flags) -> str | None:
        """Return the warning about cutouts that lack their ids, from flags (cutout, column); None if none do."""
        parts = []
        for name, ids, found in zip(self.names, self.values.T, is_present.T, strict=True):
            absent = np.flatnonzero((ids != 0) & ~found)
            if len(absent):
                first = absent[0]
                parts.append(
                    f"{len(absent):,} of {len(ids):,} cutouts do not contain their {name}, e.g. cutout "
                    f"{self.numbers[first]}: {ids[first]}"
                )
        return "; ".join([*parts, "imageryxr.measure(segmentation) lists the ids in each cutout"]) if parts else None


class _CutoutTallies:
    """Flags of the ids found so far, per selection, until the computed blocks contain all of its cutouts."""

    most = 64
    """Limit on the selections that are never computed completely; the oldest are dropped beyond it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Clear all flags and create a new lock; in a forked child the old lock may be held by a missing thread."""
        self._lock = Lock()
        self._open: dict[str, tuple[Flags, Flags]] = {}

    def add(self, key: str, shape: tuple[int, ...], rows: npt.NDArray[np.int64], found: Flags) -> Flags | None:
        """Add the flags of some rows; return the flags of all rows if they are now complete, otherwise None."""
        with self._lock:
            done, flags = self._open.pop(key, (np.zeros(shape[0], np.bool_), np.zeros(shape, np.bool_)))
            done[rows], flags[rows] = True, found
            if done.all():
                return flags
            self._open[key] = done, flags
            while len(self._open) > self.most:
                del self._open[next(iter(self._open))]
            return None


_TALLIES = _CutoutTallies()
run_after_fork(_TALLIES.forget)


def record_cutouts(key: str, requested: CutoutIds, rows: npt.NDArray[np.int64], found: Flags) -> None:
    """Record which cutouts of a block contain their ids; warn when this process has computed all cutouts.

    ``key`` identifies the selection. Within `record_ids` nothing is recorded. A worker of a cluster reports to the
    scheduler; see `warn_of_cluster`.
    """
    if is_recording_ids():
        return
    worker = _current_worker()
    if worker is not None:
        worker.log_event(_TOPIC, {"key": key, "rows": rows.tolist(), "found": found.tolist()})
        return
    flags = _TALLIES.add(key, requested.values.shape, rows, found)
    message = None if flags is None else requested.missing_message(flags)
    if message is not None:
        warn(message, MissingIdsWarning)


def warn_of_cluster(client: Any, selections: Iterable[tuple[str, CutoutIds]]) -> None:
    """Warn about cutouts without their ids that the workers of a `distributed.Client` have computed.

    Each selection is its key and its ids. Cutouts that no worker has reported are not mentioned.
    """
    events = [message for _, message in client.get_events(_TOPIC)]
    for key, requested in selections:
        flags = np.ones(requested.values.shape, np.bool_)
        for event in events:
            if event["key"] == key:
                flags[list(event["rows"])] = event["found"]
        message = requested.missing_message(flags)
        if message is not None:
            warn(message, MissingIdsWarning)


def _current_worker() -> Any:
    """Return the worker of a cluster that runs this task; None in any other thread."""
    distributed = sys.modules.get("distributed")
    try:
        return None if distributed is None else distributed.get_worker()
    except ValueError:
        return None
