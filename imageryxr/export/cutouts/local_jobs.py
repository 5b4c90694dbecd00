"""Exports of cutouts to a local disk: what is written where, and how it becomes complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from string import Formatter
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.zarr_groups import write_group
from imageryxr.errors import OptionError, TargetExistsError, param
from imageryxr.export.cutouts.page import write_page
from imageryxr.export.cutouts.writers import PictureWriter, RowJournal, RowWriter, ZarrWriter
from imageryxr.export.store.local import TargetLock, disk_errors
from imageryxr.graph.cutout_arrays import CUTOUT
from imageryxr.ops.cutout_verbs import column_texts

TOKEN = "imageryxr_cutouts"
"""The attr of a Zarr group that identifies its export."""
TOKEN_BYTES = 400
"""The first bytes of a page contain the token of its export."""


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

    def locked(self) -> AbstractContextManager[None]:
        """Exclude other exports to the target; raise `TargetError` if another process is exporting to it."""
        return TargetLock(str(self.path.with_name(f".{self.path.name}.lock"))).hold()

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


def exists_error(place: object) -> TargetExistsError:
    """Return the error for a target that another call has written."""
    return TargetExistsError(f"{place} exists; give ", param("overwrite", True), " to replace it, or give another name")


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
            self.journal = CompleteJournal(self.path)
        elif not overwrite:
            raise exists_error(self.place)

    def discard(self) -> None:
        """Remove what this call has written, also if it was complete."""
        super().discard()
        if self._stored_token() == self.token:
            shutil.rmtree(self.path)

    def _stored_token(self) -> Any:
        import zarr

        try:
            return zarr.open_group(self.path, mode="r").attrs.get(TOKEN)
        except (OSError, ValueError, KeyError):
            return None

    def prepare(self) -> None:
        """Write the metadata and the coordinates."""
        super().prepare()
        if self.journal.done() and self.store.exists():
            return
        with disk_errors(self.place):
            write_metadata(self, self.store)

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


def write_metadata(job: Job, store: Any) -> None:
    """Write a Zarr group with the coordinates and the metadata of all arrays, and no chunks of the arrays."""
    encoding = {name: {"chunks": (1, *array.shape[1:])} for name, array in job.arrays.items()}
    lazy = {name: _empty_like(array) for name, array in job.arrays.items()}
    dataset = xr.Dataset(lazy, attrs={**_plain(job.obj), TOKEN: job.token})
    dataset = dataset.assign_coords({n: _without_fixed_text(c.variable) for n, c in job.obj.coords.items()})
    write_group(dataset, store, compute=False, encoding=encoding)


class CompleteJournal(RowJournal):
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
        self.files = file_names(place, self.columns, next(iter(arrays.values())).sizes[CUTOUT])
        root = os.path.dirname(place.partition("{")[0])
        self.pattern = place[len(root) :].lstrip("/")
        self.names = [file[len(root) :].lstrip("/") for file in self.files]
        self.token = pattern_token(self.token, self.pattern)
        self.work = Path(os.path.abspath(root)) / ".imageryxr" / f"cutouts-{self.token[:12]}"
        self.journal = RowJournal(self.work / "journal")

    def locked(self) -> AbstractContextManager[None]:
        """Exclude other exports to the same pattern."""
        return TargetLock(str(self.work.with_name(lock_name(self.pattern)))).hold()

    def check_target(self, overwrite: bool) -> None:
        """Raise an error if a file exists that this call has not written."""
        if overwrite:
            return
        name, done = next(iter(self.arrays)), self.journal.done()
        found = next((f for i, f in enumerate(self.files) if (name, i) not in done and os.path.exists(f)), None)
        # Without a journal no call of this kind has begun here; with one, the file of a killed call may lack its line.
        if found is not None and not self.work.exists():
            raise exists_error(found)

    def prepare(self) -> None:
        """Create the folder of the journal, and remove those of exports whose pictures this one replaces."""
        super().prepare()
        with disk_errors(self.place):
            for other in self.work.parent.glob("cutouts-*/names.json"):
                if other.parent != self.work and not set(self.names).isdisjoint(json.loads(other.read_bytes())):
                    shutil.rmtree(other.parent)
            (self.work / "names.json").write_text(json.dumps(self.names))

    def is_missing(self, name: str, row: int) -> bool:
        """Return whether a picture was deleted."""
        return not os.path.exists(self.files[row])

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some pictures."""
        return PictureWriter(name, rows, self.journal, self.files, self.options.get("compress_level", 3))

    def publish(self) -> int:
        """Return the size of all pictures."""
        return sum(os.path.getsize(file) for file in self.files)


def pattern_token(token: str, pattern: str) -> str:
    """Return the token of an export of pictures: a folder may contain the same cutouts under several patterns."""
    return hashlib.sha256(f"{token} {pattern}".encode()).hexdigest()


def lock_name(target: str) -> str:
    """Return the name of the lock of a target, which may be a pattern."""
    return f"cutouts-{hashlib.sha256(target.encode()).hexdigest()[:12]}.lock"


def file_names(pattern: str, columns: Mapping[str, npt.NDArray[Any]], count: int) -> list[str]:
    """Return the name of the file of each row; raise `OptionError` if the table cannot fill the pattern."""
    fields = {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}
    unknown = sorted(fields - {*columns, CUTOUT})
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in sorted({*columns, CUTOUT}))
        raise OptionError(param("target", pattern), f" has the unknown field {{{unknown[0]}}}; the table has {known}")
    values = {name: columns[name] for name in fields & {*columns}}
    values.setdefault(CUTOUT, np.arange(count))
    names = []
    for row in range(count):
        try:
            filled = {n: v[row].item() if isinstance(v[row], np.generic) else v[row] for n, v in values.items()}
            names.append(pattern.format(**{n: _safe_part(v) for n, v in filled.items()}))
        except (ValueError, LookupError, AttributeError) as error:
            raise OptionError(param("target", pattern), f" cannot be filled for row {row}: {error}") from None
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(param("target", pattern), f" gives two cutouts the name {twice!r}; add {{cutout:05d}}")
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

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        self.table, self.labels = page_table(self.columns, len(self.files), options.get("labels"))

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
            self.journal = CompleteJournal(self.path)
        elif not overwrite:
            raise exists_error(self.place)

    def _is_own(self) -> bool:
        try:
            with self.path.open("rb") as file:
                return self.token.encode() in file.read(TOKEN_BYTES)
        except OSError:
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
        if isinstance(self.journal, CompleteJournal):
            return self.path.stat().st_size
        pictures = (Path(file).read_bytes() for file in self.files)
        size = write_page(self.path, pictures, self.table, self.labels, self.path.stem, self.token)
        shutil.rmtree(self.work)
        return size


def page_table(
    columns: Mapping[str, npt.NDArray[Any]], count: int, labels: str | None
) -> tuple[dict[str, npt.NDArray[Any]], Sequence[str]]:
    """Return the columns by which a page can be sorted, and the text below each picture."""
    table = {CUTOUT: np.arange(count), **columns}
    return table, label_texts(table, labels)


def label_texts(columns: Mapping[str, npt.NDArray[Any]], name: str | None) -> Sequence[str]:
    """Return the texts of a column of the table; by default its ids, or the numbers of its rows."""
    chosen = name or ("id" if "id" in columns else CUTOUT)
    if chosen not in columns:
        raise OptionError(f"labels={name!r} is not a column of the cutouts; give one of {', '.join(columns)}")
    return column_texts(columns[chosen])
