"""Check the ids that a caller requests, and record which of them occur in the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.bbox import IndexBox, is_covered_by
from imageryxr.core.colors.ids import list_ids
from imageryxr.core.fork import run_after_fork
from imageryxr.core.validate import name_array
from imageryxr.errors import LayerError, Message, MissingIdsWarning, Wording, warn
from imageryxr.graph.expr import Array, Expr
from imageryxr.graph.labelled import Volume, volume_of


def segmentation_volume(seg: xr.DataArray) -> Volume:
    """Return the volume of a segmentation.

    Raises `LayerError` if the values are not integers, or the attrs declare the array an image.
    """
    given: Any = seg
    if isinstance(given, xr.Dataset):
        found = [str(n) for n, v in given.data_vars.items() if v.attrs.get("layer_type", n) == "segmentation"]
        advice = f"its segmentation, ds[{found[0]!r}]" if len(found) == 1 else "its variable with ids"
        raise LayerError(
            f"a Dataset with the variables {list(map(str, given.data_vars))} was given; give {advice}, or call "
            "the method of the Dataset, such as ds.imagery.measure(), which passes both layers"
        )
    volume = volume_of(seg)
    if volume.attrs.get("layer_type") == "image":
        raise LayerError(
            f"{name_array(seg.name)} is an image, not a segmentation; give the segmentation, or set "
            "array.attrs['layer_type'] = 'segmentation' if its values are ids"
        )
    if volume.expr.dtype == np.bool_:
        raise LayerError(
            f"{name_array(seg.name)} is a mask (dtype bool); convert it to ids, e.g. mask.astype('uint8') for a "
            "segment with id 1"
        )
    if volume.expr.dtype.kind not in "iu":
        raise LayerError(
            f"{name_array(seg.name, 'the segmentation')} has dtype {volume.expr.dtype}, but ids are integers, and "
            "floats cannot represent ids above 2**53; open it with ",
            Wording("imageryxr.open_segmentation", "--segmentation"),
            ", give where(condition, 0) if where(condition) made floats of ids, or cast it with .astype('uint64') if "
            "its values are integers below 2**53 and none is NaN",
        )
    return volume


def id_array(ids: Iterable[Any] | int, what: str = "ids") -> npt.NDArray[np.uint64]:
    """Return ids as sorted, distinct uint64, without converting them to floats.

    Raises `IdError` if an id is not an integer from 1 to 2**64 - 1.
    """
    return np.array(sorted(set(list_ids(ids, what, low=1))), dtype=np.uint64)


_SEEN: ContextVar[dict[bytes, npt.NDArray[np.bool_]] | None] = ContextVar("imageryxr_ids_seen", default=None)


@contextmanager
def suspend_id_recording() -> Iterator[None]:
    """Disable `record_ids` in the block, so that `RequestedIds.record` warns about missing ids itself."""
    before = _SEEN.set(None)
    try:
        yield
    finally:
        _SEEN.reset(before)


@contextmanager
def record_ids() -> Iterator[dict[bytes, npt.NDArray[np.bool_]]]:
    """Collect which requested ids occur in the blocks computed in this context, as flags by `RequestedIds.packed`."""
    seen: dict[bytes, npt.NDArray[np.bool_]] = {}
    before = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(before)


def is_recording_ids() -> bool:
    """Return whether the caller is within `record_ids`."""
    return _SEEN.get() is not None


class RequestsIds(Expr):
    """Base class of expressions that record which requested ids occur in the data, to report the others."""

    @abstractmethod
    def request(self) -> tuple[RequestedIds, IndexBox] | None:
        """Return the requested ids and the box in which they may occur; None without requested ids.

        The box is that of the array in the request, even if the expression was cropped afterwards.
        """

    def record_request(self, box: IndexBox, labels: Array) -> None:
        """Record which of the ids occur in the labels of a box."""
        found = self.request()
        if found is not None:
            requested, whole = found
            requested.record(self, whole, box, labels)


@dataclass(frozen=True)
class RequestedIds:
    """The requested ids of a selection, in a form that tasks can compare, hash and pickle."""

    packed: bytes
    """The ids as ascending uint64."""

    @classmethod
    def of(cls, ids: Iterable[Any]) -> RequestedIds:
        """Return the requested ids; `id_array` checks them."""
        return cls(id_array(ids).tobytes())

    @property
    def array(self) -> npt.NDArray[np.uint64]:
        """The ids in ascending order."""
        return np.frombuffer(self.packed, np.uint64)

    def record(self, array: Expr, whole: IndexBox, box: IndexBox, labels: Array) -> None:
        """Record which requested ids occur in a box of an array; ``whole`` is the box of the array.

        Within `record_ids`, the caller combines the results, possibly of several processes. Otherwise this method warns
        about missing ids when this process has computed all boxes of the array.
        """
        from imageryxr.kernels import isin

        here, seen = isin.is_present(labels, self.array), _SEEN.get()
        if seen is not None:
            seen.setdefault(self.packed, np.zeros(len(here), np.bool_))[here] = True
            return
        found = _TALLIES.add(array, whole, box, here)
        absent = [] if found is None else self.array[~found].tolist()
        if absent:
            warn(self.missing_message(absent), MissingIdsWarning)

    def missing_message(self, absent: list[int]) -> Message:
        """Return the warning about requested ids that do not occur in the data."""
        shown = ", ".join(map(str, absent[:10])) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        return Message(
            f"{len(absent)} of the {len(self.array)} requested ids are not in the data: {shown}; ",
            Wording("imageryxr.unique_ids(segmentation)", "imageryxr measure"),
            " lists the ids that are",
        )


class _IdTallies:
    """Flags of the requested ids found so far, per array, until the computed boxes cover all of that array."""

    most_arrays, most_boxes = 64, 1024
    """Limits for arrays that are never computed completely; the oldest entries beyond these are dropped."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Clear all flags and create a new lock; after a fork, a thread that does not exist may hold the old one."""
        self._lock = Lock()
        self._open: dict[Expr, tuple[set[IndexBox], npt.NDArray[np.bool_]]] = {}

    def add(
        self, array: Expr, whole: IndexBox, box: IndexBox, found: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_] | None:
        """Add the flags of a box; return the combined flags if the boxes now cover the array, otherwise None."""
        part = box.clip(whole)
        if part == whole:
            return found
        with self._lock:
            boxes, flags = self._open.pop(array, (set(), np.zeros_like(found)))
            boxes.add(part)
            flags = flags | found
            if is_covered_by(boxes, whole):
                return flags
            if len(boxes) < self.most_boxes:
                self._open[array] = boxes, flags
            while len(self._open) > self.most_arrays:
                del self._open[next(iter(self._open))]
            return None


_TALLIES = _IdTallies()
run_after_fork(_TALLIES.forget)
