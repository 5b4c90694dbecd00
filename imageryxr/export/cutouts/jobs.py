"""Run exports of cutouts: Zarr with one chunk per cutout, a picture per cutout, or a page of pictures."""

from __future__ import annotations

import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from string import Formatter
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.errors import LayerError, OptionError, TargetExistsError
from imageryxr.export.cutouts.cutout_plan import CutoutPlan, plan_cutouts
from imageryxr.export.cutouts.page import write_page
from imageryxr.export.cutouts.writers import PictureWriter, RowJournal, RowWriter, ZarrWriter
from imageryxr.export.report import ExportReport, progress_bar
from imageryxr.export.store.local import disk_errors
from imageryxr.graph.labelled import CUTOUT
from imageryxr.ops.cutout_verbs import central_slices

_KINDS = "'boxes.zarr', 'gallery/{cutout:05d}.png' or 'gallery.html'"


def export_cutouts(
    obj: xr.DataArray | xr.Dataset,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = True,
    client: Any = None,
    workers: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> ExportReport:
    """Write cutouts, those that an interrupted call has not written; see `imageryxr.export`."""
    job = _make_job(obj, target, options)
    begin = time.monotonic()
    if not resume:
        job.discard()
    job.check_target(overwrite)
    rows = {name: np.arange(a.sizes[CUTOUT]) for name, a in job.arrays.items()}
    done = job.journal.done()
    rows = {n: r[[(n, int(i)) not in done or job.is_missing(n, int(i)) for i in r]] for n, r in rows.items()}
    total = sum(a.sizes[CUTOUT] for a in job.arrays.values())
    left = sum(map(len, rows.values()))
    if left:
        job.prepare()
        with progress_bar(job.place, total, total - left, progress) as shown, _scheduler(client, workers):
            job.journal.on_done = shown.update
            _store(job, {name: r for name, r in rows.items() if len(r)})
    size = job.publish()
    return ExportReport(job.place, left, size, time.monotonic() - begin, total - left, tasks=left)


def plan_cutout_export(
    obj: xr.DataArray | xr.Dataset, target: str | os.PathLike[str], *, workers: int | None = None, **options: Any
) -> CutoutPlan:
    """Return the plan of an export of cutouts; see `imageryxr.plan_export`."""
    known = {name: options.pop(name) for name in ("overwrite", "client") if name in options}
    job = _make_job(obj, target, options)
    job.check_target(bool(known.get("overwrite", False)))
    return plan_cutouts(job.arrays, job.place, workers)


def _store(job: Job, rows: Mapping[str, npt.NDArray[np.int64]]) -> None:
    sources, targets = [], []
    for name, own in rows.items():
        array = job.arrays[name]
        part = array if len(own) == array.sizes[CUTOUT] else array.isel({CUTOUT: own})
        data = part.variable._data
        sources.append(data if isinstance(data, da.Array) else da.from_array(part.values, {0: 8}))
        targets.append(job.writer(name, own))
    # One graph for all cutouts, so that each chunk is read once; blocks are released as soon as they are written.
    da.store(sources, targets, lock=False)  # type: ignore[arg-type]


def _scheduler(client: Any, workers: int | None) -> AbstractContextManager[Any]:
    if client is None or isinstance(client, str):
        if client not in (None, "threads", "processes"):
            raise OptionError(
                f"client={client!r} is not a scheduler of cutouts; give 'threads', 'processes' or a distributed.Client"
            )
        chosen: dict[str, Any] = {"scheduler": client or "threads", **({"num_workers": workers} if workers else {})}
        return dask.config.set(chosen)
    return dask.config.set({"scheduler": client})


def _make_job(obj: xr.DataArray | xr.Dataset, target: Any, options: dict[str, Any]) -> Job:
    text = os.fspath(target) if isinstance(target, str | os.PathLike) else ""
    if "://" in str(text).removeprefix("file://"):
        raise OptionError(f"target={text!r} is not on a local disk; export cutouts to {_KINDS}, and copy the result")
    text = os.path.expanduser(str(text).removeprefix("file://"))
    suffix = Path(text).suffix.lower()
    arrays = _arrays_of(obj)
    kinds: dict[str, type[ZarrJob | PageJob | PicturesJob]] = {".zarr": ZarrJob, ".html": PageJob, ".png": PicturesJob}
    if suffix not in kinds or ("{" in text) != (suffix == ".png"):
        raise OptionError(f"target={text!r} is not a format of cutouts; give {_KINDS}")
    allowed = {".zarr": set(), ".html": {"labels"}, ".png": {"compress_level"}}[suffix]
    unknown = sorted(n for n, v in options.items() if n not in allowed and v is not None)
    if unknown:
        names = ", ".join(sorted(allowed)) or "none"
        raise OptionError(f"{unknown[0]}=… is not an option of cutouts as {suffix}; its options: {names}")
    if suffix != ".zarr":
        arrays = {name: central_slices(array) for name, array in arrays.items()}
        _check_pictures(arrays, text)
    return kinds[suffix](text, arrays, obj, {n: v for n, v in options.items() if v is not None})


def _arrays_of(obj: xr.DataArray | xr.Dataset) -> dict[str, xr.DataArray]:
    if isinstance(obj, xr.DataArray):
        return {str(obj.name or "cutouts"): obj.transpose(CUTOUT, ...)}
    return {str(n): v.transpose(CUTOUT, ...) for n, v in obj.data_vars.items() if CUTOUT in v.dims and v.ndim > 1}


def _check_pictures(arrays: Mapping[str, xr.DataArray], text: str) -> None:
    if len(arrays) != 1:
        raise LayerError(
            f"a Dataset with the variables {list(arrays)} is not a picture; draw it first: "
            f"export(overlay(boxes.image, boxes.segmentation), {text!r})"
        )
    array = next(iter(arrays.values()))
    is_picture = array.dims[-1] == "rgba" or array.dtype in (np.uint8, np.uint16, np.bool_)
    if array.ndim - (array.dims[-1] == "rgba") != 3 or not is_picture:
        raise LayerError(
            f"{array.name!r} has dims {array.dims} and dtype {array.dtype}, which is not a picture; draw it first with "
            "overlay or to_rgba"
        )


class Job(ABC):
    """One export: the arrays, where they are written, and the journal of what was written."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        from dask.base import tokenize

        self.place, self.arrays, self.obj, self.options = place, arrays, obj, options
        table = {str(n): np.asarray(c.values) for n, c in obj.coords.items() if c.dims == (CUTOUT,)}
        values = {n: a.variable._data for n, a in arrays.items()}
        self.token = str(tokenize("imageryxr.cutouts", type(self).__name__, values, table, options))
        self.columns = table
        self.path = Path(os.path.abspath(place))
        self.work = self.path.with_name(f".{self.path.name}.{self.token[:12]}.partial")
        self.journal = RowJournal(self.work / "journal")

    def is_missing(self, name: str, row: int) -> bool:
        """Return whether a cutout in the journal has to be written again."""
        return False

    def prepare(self) -> None:
        """Create the folder of the journal."""
        with disk_errors(self.place):
            self.work.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Remove what an interrupted call has written."""
        shutil.rmtree(self.work, ignore_errors=True)

    @abstractmethod
    def check_target(self, overwrite: bool) -> None:
        """Raise `TargetExistsError` if the target belongs to another call."""

    @abstractmethod
    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some cutouts of a variable."""

    @abstractmethod
    def publish(self) -> int:
        """Complete the target and return its size in bytes."""


def _exists_error(place: object) -> TargetExistsError:
    return TargetExistsError(f"{place} exists; give overwrite=True to replace it, or give another name")


class ZarrJob(Job):
    """A Zarr group with one array per variable and one chunk per cutout, which xarray opens."""

    @property
    def store(self) -> Path:
        """The incomplete group."""
        return self.work / "store.zarr"

    def check_target(self, overwrite: bool) -> None:
        """Skip everything if the target is the result of this call."""
        if not self.path.exists():
            return
        if self._stored_token() == self.token:
            self.journal = _CompleteJournal(self.path)
        elif not overwrite:
            raise _exists_error(self.place)

    def discard(self) -> None:
        """Remove what this call has written, also if it was complete."""
        super().discard()
        if self._stored_token() == self.token:
            shutil.rmtree(self.path)

    def _stored_token(self) -> Any:
        import zarr

        try:
            return zarr.open_group(self.path, mode="r").attrs.get("imageryxr_cutouts")
        except (OSError, ValueError, KeyError):
            return None

    def prepare(self) -> None:
        """Write the metadata and the coordinates."""
        super().prepare()
        if self.journal.done() and self.store.exists():
            return
        encoding = {name: {"chunks": (1, *array.shape[1:])} for name, array in self.arrays.items()}
        lazy = {name: _empty_like(array) for name, array in self.arrays.items()}
        dataset = xr.Dataset(lazy, attrs={**_plain(self.obj), "imageryxr_cutouts": self.token})
        dataset = dataset.assign_coords({n: _without_fixed_text(c.variable) for n, c in self.obj.coords.items()})
        with disk_errors(self.place):
            dataset.to_zarr(self.store, mode="w", compute=False, encoding=encoding, zarr_format=3, consolidated=False)

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some cutouts of a variable."""
        return ZarrWriter(name, rows, self.journal, str(self.store))

    def publish(self) -> int:
        """Move the complete group to its place."""
        if self.store.exists():
            with disk_errors(self.place):
                if self.path.exists():
                    shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()
                os.replace(self.store, self.path)
                shutil.rmtree(self.work)
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


class _CompleteJournal(RowJournal):
    """The journal of a complete export, in which every cutout is done."""

    def done(self) -> Any:
        """Return a collection that contains every cutout."""
        return _Everything()


class _Everything:
    def __contains__(self, item: object) -> bool:
        return True


def _empty_like(array: xr.DataArray) -> xr.DataArray:
    chunks = (1, *array.shape[1:])
    lazy = array.copy(data=da.zeros(array.shape, chunks=chunks, dtype=array.dtype))
    lazy.attrs = _plain(array)
    return lazy.drop_encoding()


def _without_fixed_text(variable: xr.Variable) -> xr.Variable:
    """Return a variable with text of any length, for which Zarr has a specification."""
    return variable.astype(object) if variable.dtype.kind == "U" else variable


def _plain(obj: xr.DataArray | xr.Dataset) -> dict[str, Any]:
    from imageryxr.core.array_labels import plain_attrs

    return dict(plain_attrs(obj.attrs))


class PicturesJob(Job):
    """A PNG file per cutout."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        self.files = _file_names(place, self.columns, next(iter(arrays.values())).sizes[CUTOUT])
        root = Path(place.partition("{")[0] + "x").parent
        self.work = Path(os.path.abspath(root)) / ".imageryxr" / f"cutouts-{self.token[:12]}"
        self.journal = RowJournal(self.work / "journal")

    def check_target(self, overwrite: bool) -> None:
        """Raise an error if a file exists that this call has not written."""
        if overwrite:
            return
        name, done = next(iter(self.arrays)), self.journal.done()
        found = next((f for i, f in enumerate(self.files) if (name, i) not in done and os.path.exists(f)), None)
        # Without a journal no call of this kind has begun here; with one, the file of a killed call may lack its line.
        if found is not None and not self.work.exists():
            raise _exists_error(found)

    def is_missing(self, name: str, row: int) -> bool:
        """Return whether a picture was deleted."""
        return not os.path.exists(self.files[row])

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some pictures."""
        return PictureWriter(name, rows, self.journal, self.files, self.options.get("compress_level", 3))

    def publish(self) -> int:
        """Return the size of all pictures."""
        return sum(os.path.getsize(file) for file in self.files)


def _file_names(pattern: str, columns: Mapping[str, npt.NDArray[Any]], count: int) -> list[str]:
    fields = {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}
    unknown = sorted(fields - {*columns, CUTOUT})
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in sorted({*columns, CUTOUT}))
        raise OptionError(f"target={pattern!r} has the unknown field {{{unknown[0]}}}; the table has {known}")
    values = {name: columns[name] for name in fields & {*columns}}
    values.setdefault(CUTOUT, np.arange(count))
    names = []
    for row in range(count):
        try:
            filled = {n: v[row].item() if isinstance(v[row], np.generic) else v[row] for n, v in values.items()}
            names.append(pattern.format(**{n: _safe_part(v) for n, v in filled.items()}))
        except (ValueError, LookupError, AttributeError) as error:
            raise OptionError(f"target={pattern!r} cannot be filled for row {row}: {error}") from None
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"target={pattern!r} gives two cutouts the name {twice!r}; add {{cutout:05d}}")
    return names


def _safe_part(value: Any) -> Any:
    """Return a value for a file name; raise `ValueError` for text that would name another folder."""
    if isinstance(value, int | float):
        return value
    text = str(value)
    if not text or text in (".", "..") or any(c in text for c in "/\\\0"):
        raise ValueError(f"{text!r} cannot be part of a file name")
    return text


class PageJob(Job):
    """One HTML page that contains all pictures."""

    @property
    def files(self) -> list[str]:
        """The pictures, beside the page until it is complete."""
        count = next(iter(self.arrays.values())).sizes[CUTOUT]
        return [str(self.work / f"{row}.png") for row in range(count)]

    def check_target(self, overwrite: bool) -> None:
        """Skip everything if the target is the result of this call."""
        if not self.path.exists():
            return
        if self._is_own():
            self.journal = _CompleteJournal(self.path)
        elif not overwrite:
            raise _exists_error(self.place)

    def _is_own(self) -> bool:
        try:
            with self.path.open(encoding="utf-8") as file:
                return self.token in file.read(400)
        except (OSError, UnicodeDecodeError):
            return False

    def discard(self) -> None:
        """Remove what this call has written, also if it was complete."""
        super().discard()
        if self._is_own():
            self.path.unlink()

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some pictures."""
        return PictureWriter(name, rows, self.journal, self.files)

    def publish(self) -> int:
        """Write the page and remove the single pictures."""
        if isinstance(self.journal, _CompleteJournal):
            return self.path.stat().st_size
        columns = {CUTOUT: np.arange(len(self.files)), **self.columns}
        labels = label_texts(columns, self.options.get("labels"))
        size = write_page(self.path, [Path(f) for f in self.files], columns, labels, self.path.stem, self.token)
        shutil.rmtree(self.work)
        return size


def label_texts(columns: Mapping[str, npt.NDArray[Any]], name: str | None) -> Sequence[str]:
    """Return the texts of a column of the table; by default its ids, or the numbers of its rows."""
    chosen = name or ("id" if "id" in columns else CUTOUT)
    if chosen not in columns:
        raise OptionError(f"labels={name!r} is not a column of the cutouts; give one of {', '.join(columns)}")
    return [str(value) for value in columns[chosen]]
