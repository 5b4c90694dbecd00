"""Record which cutouts contain the ids that the caller requests in them, and warn about the others."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
from imageryxr.errors import MissingIdsWarning, warn
from imageryxr.ops.segment_ids import is_recording_ids

Ids = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
_TOPIC = "imageryxr-cutout-ids"
# Prefix of environment variables, one for each active `report_missing`, with the folder to which blocks are reported.
_FOLDERS = "IMAGERYXR_CUTOUT_IDS_"


@dataclass(frozen=True)
class CutoutIds:
    """The requested ids of each cutout, in one or several columns."""

    names: tuple[str, ...]
    """The names of the columns."""
    numbers: tuple[str, ...]
    """The label of each cutout."""
    values: Ids
    """The ids (cutout, column); 0 means no id."""

    def missing_message(self, is_present: Flags, is_known: Flags | None = None) -> str | None:
        """Return the warning about cutouts that do not contain their ids; None if all do.

        ``is_present`` has the flags (cutout, column). Cutouts for which ``is_known`` is False are not counted: an
        earlier run has written them.
        """
        is_known = np.ones(len(is_present), np.bool_) if is_known is None else is_known
        parts = []
        for name, ids, found in zip(self.names, self.values.T, is_present.T, strict=True):
            absent = np.flatnonzero((ids != 0) & ~found & is_known)
            if len(absent):
                first = absent[0]
                parts.append(
                    f"{len(absent):,} of {np.count_nonzero(is_known):,} cutouts do not contain their {name}, e.g. "
                    f"cutout {self.numbers[first]}: {ids[first]}"
                )
        if not parts:
            return None
        rest = np.count_nonzero(~is_known)
        parts += [f"the other {rest:,} cutouts were written by an earlier run and are not counted"] if rest else []
        return "; ".join([*parts, "imageryxr.measure(segmentation) lists the ids in each cutout"])


class _CutoutTallies:
    """Flags of the ids found so far, per selection, until the computed blocks contain all of its cutouts."""

    most = 64
    """Limit on the selections that are never computed completely; the oldest are dropped beyond it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Clear all flags and create a new lock; after a fork, a thread that does not exist may hold the old one."""
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

    ``key`` identifies the selection. Within `record_ids` nothing is recorded. Within `report_missing`, and in a worker
    of a cluster, the block is reported to the process that started the computation.
    """
    if is_recording_ids():
        return
    event = {"key": key, "rows": rows.tolist(), "found": found.tolist()}
    worker = _current_worker()
    if worker is not None:
        worker.log_event(_TOPIC, event)
        return
    folders = [folder for name, folder in os.environ.items() if name.startswith(_FOLDERS)]
    files = [file for folder in folders if (file := Path(folder, key)).exists()]
    for file in files:
        with file.open("ab", buffering=0) as events:  # unbuffered, so that each line is appended by a single write
            events.write(json.dumps(event).encode() + b"\n")
    if files:
        return
    flags = _TALLIES.add(key, requested.values.shape, rows, found)
    message = None if flags is None else requested.missing_message(flags)
    if message is not None:
        warn(message, MissingIdsWarning)


@contextmanager
def report_missing(selections: Iterable[tuple[str, CutoutIds]], client: Any = None) -> Iterator[None]:
    """Warn, when the context ends, about the cutouts computed in it that do not contain their ids.

    The cutouts may be computed by any thread, process or worker.

    Parameters
    ----------
    selections : iterable of (str, CutoutIds)
        The key and the ids of each selection.
    client : distributed.Client, optional
        The cluster that computes them.
    """
    chosen = dict(selections)
    with TemporaryDirectory(prefix="imageryxr-") as folder:
        for key in chosen:
            Path(folder, key).touch()
        variable = _FOLDERS + uuid4().hex
        os.environ[variable] = folder  # new processes inherit the variable
        try:
            yield
        finally:
            del os.environ[variable]
        events = [json.loads(line) for key in chosen for line in Path(folder, key).read_text().splitlines()]
    if client is not None:
        events += [event for _, event in client.get_events(_TOPIC)]
    for key, requested in chosen.items():
        found, is_known = np.zeros(requested.values.shape, np.bool_), np.zeros(len(requested.values), np.bool_)
        for event in events:
            if event["key"] == key:
                rows = list(event["rows"])  # distributed returns tuples
                found[rows], is_known[rows] = event["found"], True
        message = requested.missing_message(found, is_known)
        if message is not None:
            warn(message, MissingIdsWarning)


def _current_worker() -> Any:
    """Return the worker of a cluster that runs this task; None in any other thread."""
    distributed = sys.modules.get("distributed")
    try:
        return None if distributed is None else distributed.get_worker()
    except ValueError:
        return None
