"""The formats of cutouts: Zarr, pictures and pages. Each defines its files and how the result becomes complete.

Each file appears whole, so the existing files are the journal of an export. Each export has a token. It first writes a
file with the token, by which a later run of the same export recognizes its files.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Formatter
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotation_values import column_texts, plain_values
from imageryxr.core.array_labels import CUTOUT, plain_attrs
from imageryxr.core.display import colors_of
from imageryxr.core.fork import cached_property
from imageryxr.core.zarr_groups import write_group
from imageryxr.errors import ImageryError, OptionError, TargetError, TargetExistsError, format_value, param
from imageryxr.export.cutouts.page import write_page
from imageryxr.export.cutouts.writers import (
    ROOT,
    CutoutFolder,
    CutoutPlace,
    CutoutSite,
    PictureFormat,
    PictureWriter,
    RowWriter,
    ZarrWriter,
    chunk_key,
    split_place,
)
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.store.local import HIDDEN
from imageryxr.export.targets.zarr_array import zarr_codec

TOKEN = "imageryxr_cutouts"
"""The attr of a Zarr group that identifies its export."""
TOKEN_BYTES = 400
"""The first bytes of a page contain the token of its export."""
# Number of pictures that are downloaded at a time.
_DOWNLOADS = 32
# Largest number of entries of a legend.
_MOST_NAMED = 24


class CutoutJob(ABC):
    """One export: the arrays, and where their cutouts are written."""

    data: CutoutPlace
    """The place to which cutouts are written."""
    keys: dict[tuple[str, int], str]
    """The file of each cutout of each variable."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        from dask.base import tokenize

        self.place, self.arrays, self.obj, self.options = place, arrays, obj, options
        self.columns = {str(n): np.asarray(c.values) for n, c in obj.coords.items() if c.dims == (CUTOUT,)}
        values = {n: a.variable._data for n, a in arrays.items()}
        folder, name = split_place(place)
        # a folder may contain pictures of the same cutouts under several patterns
        pattern = name if "{" in name else None
        token = tokenize("imageryxr.cutouts", type(self).__name__, values, self.columns, options, pattern)
        self.site = CutoutSite(folder, name, str(token))
        self.is_complete = False
        """Whether the target is the complete result of this call."""
        self.is_begun = False
        """Whether an earlier run of the same call has begun."""

    @property
    def token(self) -> bytes:
        """Identifies the export."""
        return self.site.token.encode()

    def done_cutouts(self) -> set[tuple[str, int]]:
        """Return the variable and the number of each written cutout."""
        if self.is_complete:
            return set(self.keys)
        if not self.is_begun:
            return set()
        size = self.data.size_lookup()
        return {cutout for cutout, key in self.keys.items() if size(key)}

    def prepare(self) -> None:
        """Write the file that identifies the export."""
        if isinstance(self.data, CutoutFolder):
            self.data.begin()
        self.data.put([(self.site.marker, self.token)])

    def _find_marker(self) -> bool:
        return self.data.get(self.site.marker) == self.token

    @abstractmethod
    def check_target(self, overwrite: bool) -> None:
        """Look up what exists; raise `TargetExistsError` if the target belongs to another call."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what this call has written, even a complete result."""

    @abstractmethod
    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some cutouts of a variable."""

    @abstractmethod
    def publish(self) -> int:
        """Complete the target and return its size in bytes."""


def exists_error(place: object) -> TargetExistsError:
    """Return the error for a target that another call has written."""
    return TargetExistsError(f"{place} exists; give ", param("overwrite", True), " to replace it, or give another name")


class ZarrJob(CutoutJob):
    """A Zarr group with one array per variable and one chunk per cutout, which xarray opens.

    It becomes readable when the metadata of the group are written, after all cutouts. On a disk, it is then renamed.
    """

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        self.keys = {
            (name, row): f"{name}/{chunk_key(row, array.ndim - 1)}"
            for name, array in arrays.items()
            for row in range(array.sizes[CUTOUT])
        }
        self.final = self.site.open(self.site.name)
        self.data = self.final if self.site.is_remote else self.site.open_work()

    def _stored_token(self) -> Any:
        root = self.final.get(ROOT)
        try:
            return None if root is None else json.loads(root).get("attributes", {}).get(TOKEN)
        except ValueError:
            return None

    def check_target(self, overwrite: bool) -> None:
        """Look up whether the target is complete; raise `TargetExistsError` if it belongs to another call."""
        self.is_complete = self._stored_token() == self.site.token
        if self.is_complete:
            return
        self.is_begun = self._find_marker()
        is_own = self.is_begun and self.data is self.final
        if not overwrite and not is_own and self.final.exists():
            raise exists_error(self.place)

    def discard(self) -> None:
        """Remove what this call has written, even a complete result."""
        if self._stored_token() == self.site.token:
            self.final.clear()
        if self._find_marker():
            self.data.clear()

    def prepare(self) -> None:
        """Remove what was there, unless an earlier run of the same export has begun."""
        if not self.is_begun:
            self.data.clear()
        super().prepare()

    @cached_property
    def _metadata(self) -> dict[str, bytes]:
        """The metadata of the group and its arrays, and the coordinates."""
        import zarr

        codec = {} if "compressor" not in self.options else {"compressors": zarr_codec(self.options["compressor"])}
        encoding = {name: {"chunks": (1, *array.shape[1:]), **codec} for name, array in self.arrays.items()}
        lazy = {name: _empty_like(array) for name, array in self.arrays.items()}
        dataset = xr.Dataset(lazy, attrs={**plain_attrs(self.obj.attrs), TOKEN: self.site.token})
        dataset = dataset.assign_coords({n: _without_fixed_text(c.variable) for n, c in self.obj.coords.items()})
        files: dict[str, Any] = {}
        write_group(dataset, zarr.storage.MemoryStore(files), compute=False, encoding=encoding)
        return {key: value.to_bytes() for key, value in files.items()}

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some cutouts of a variable."""
        return ZarrWriter(name, rows, self.data, self._metadata[f"{name}/{ROOT}"])

    def publish(self) -> int:
        """Write the coordinates and the metadata of the arrays, and last the metadata of the group."""
        if not self.is_complete:
            files = dict(self._metadata)
            root = files.pop(ROOT)
            self.data.put([*files.items(), (ROOT, root)])
            if isinstance(self.data, CutoutFolder) and isinstance(self.final, CutoutFolder):
                self.data.move(self.final)
            self.final.delete([self.site.marker])
            if isinstance(self.final, CutoutFolder):
                self.final.end()
        size = self.final.size_lookup()
        return sum(size(key) or 0 for key in self.final.names())


def _empty_like(array: xr.DataArray) -> xr.DataArray:
    chunks = (1, *array.shape[1:])
    lazy = array.copy(data=da.zeros(array.shape, chunks=chunks, dtype=array.dtype))
    lazy.attrs = dict(plain_attrs(array.attrs))
    return lazy.drop_encoding()


def _without_fixed_text(variable: xr.Variable) -> xr.Variable:
    """Return a variable with text of any length, for which Zarr has a specification."""
    return variable.astype(object) if variable.dtype.kind == "U" else variable


class PicturesJob(CutoutJob):
    """A PNG or JPEG file per cutout."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        name, array = next(iter(arrays.items()))
        self.files = file_names(self.site.name, self.columns, array.sizes[CUTOUT], place)
        self.keys = {(name, row): file for row, file in enumerate(self.files)}
        self.format = PictureFormat.of(options, is_jpeg=not place.lower().endswith(".png"))
        self.data = self.site.open()

    def check_target(self, overwrite: bool) -> None:
        """Raise an error if a file exists that this call has not written."""
        self.is_begun = self._find_marker()
        found = None if self.is_begun or overwrite else next(self._existing_files(), None)
        if found is not None:
            raise exists_error(f"{self.data.url}/{found}")

    def _existing_files(self) -> Iterator[str]:
        size = self.data.size_lookup()
        return (file for file in self.files if size(file) is not None)

    def prepare(self) -> None:
        """Remove the pictures that this export replaces, and the marker files of the exports that wrote them."""
        if not self.is_begun:
            self.data.delete(list(self._existing_files()))
        marks, own = self.site.open(HIDDEN), f"names-{self.site.token[:12]}"
        for key in [key for key in marks.top_level_files() if key.startswith("names-") and key != own]:
            if not set(self.files).isdisjoint(json.loads(marks.get(key) or b"[]")):
                marks.delete([key, key.replace("names", "cutouts")])
        super().prepare()
        self.data.put([(f"{HIDDEN}/{own}", json.dumps(self.files).encode())])

    def discard(self) -> None:
        """Remove what this call has written."""
        if self._find_marker():
            self.data.delete([*self._existing_files(), self.site.marker])

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some pictures."""
        return PictureWriter(name, rows, self.data, self.files, self.format)

    def publish(self) -> int:
        """Return the size of all pictures."""
        if isinstance(self.data, CutoutFolder):
            self.data.end()
        size = self.data.size_lookup()
        return sum(size(file) or 0 for file in self.files)


def file_names(pattern: str, columns: Mapping[str, npt.NDArray[Any]], count: int, place: str) -> list[str]:
    """Return the name of the file of each row; raise `OptionError` if the table cannot fill the pattern."""
    fields = {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}
    unknown = sorted(fields - {*columns, CUTOUT})
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in sorted({*columns, CUTOUT}))
        raise OptionError(param("target", place), f" has the unknown field {{{unknown[0]}}}; the table has {known}")
    values: dict[str, list[Any]] = {name: plain_values(columns[name]) for name in fields & {*columns}}
    values.setdefault(CUTOUT, list(range(count)))
    names = []
    for row in range(count):
        try:
            names.append(pattern.format(**{n: _safe_part(n, v[row]) for n, v in values.items()}))
        except (ValueError, LookupError, AttributeError) as error:
            raise OptionError(param("target", place), f" cannot be filled for row {row}: {error}") from None
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(param("target", place), f" gives two cutouts the name {twice!r}; add {{cutout:05d}}")
    return names


def _safe_part(name: str, value: Any) -> Any:
    """Return a value for a file name; raise `ValueError` if it is missing, or text that would name another folder."""
    if value is None:
        raise ValueError(f"its {name!r} is missing; name the files by another column, or add the value")
    if isinstance(value, int | float):
        return value
    text = str(value)
    if not text or text in (".", "..") or any(c in text for c in "/\\\0"):
        raise ValueError(f"{text!r} cannot be part of a file name")
    return text


class PageJob(CutoutJob):
    """One HTML page that contains all pictures, which are files beside it until it is complete."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        name, array = next(iter(arrays.items()))
        self.format = PictureFormat.of(options)
        self.files = [f"{row}.{self.format.suffix}" for row in range(array.sizes[CUTOUT])]
        self.keys = {(name, row): file for row, file in enumerate(self.files)}
        self.table = {CUTOUT: np.arange(len(self.files)), **self.columns}
        self.labels = label_texts(self.table, options.get("labels"))
        self.data, self.folder = self.site.open_work(), self.site.open()

    def _page_start(self) -> bytes | None:
        return self.folder.get_start(self.site.name, TOKEN_BYTES)

    def check_target(self, overwrite: bool) -> None:
        """Look up whether the target is complete; raise `TargetExistsError` if it belongs to another call."""
        start = self._page_start()
        self.is_complete = self.token in (start or b"")
        if start is not None and not self.is_complete and not overwrite:
            raise exists_error(self.place)
        self.is_begun = self._find_marker()

    def discard(self) -> None:
        """Remove what this call has written, even a complete result."""
        self.data.clear()
        if self.token in (self._page_start() or b""):
            self.folder.delete([self.site.name])

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some pictures."""
        return PictureWriter(name, rows, self.data, self.files, self.format)

    def publish(self) -> int:
        """Write the page and remove the single pictures."""
        if self.is_complete:
            return self.folder.size(self.site.name) or 0
        if isinstance(self.folder, Bucket):
            with tempfile.TemporaryDirectory(prefix="imageryxr-") as folder:
                path = Path(folder) / self.site.name
                size = self._write(path)
                self.folder.upload(str(path), self.site.name)
        else:
            size = self._write(Path(self.folder.url) / self.site.name)
        self.data.clear()
        return size

    def _write(self, path: Path) -> int:
        (array,) = self.arrays.values()
        return write_page(
            path,
            self._read_pictures(),
            self.table,
            self.labels,
            title=path.stem,
            token=self.site.token,
            colors=_named_colors(array),
        )

    def _read_pictures(self) -> Iterator[bytes]:
        """Read the pictures in the order of the cutouts, several at a time."""
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            for start in range(0, len(self.files), 8 * _DOWNLOADS):
                files = self.files[start : start + 8 * _DOWNLOADS]
                for file, data in zip(files, pool.map(self.data.get, files), strict=True):
                    if data is None:
                        raise TargetError(
                            f"{self.data.url}/{file} was removed by another program during the export; the same call "
                            "continues, and writes it again"
                        )
                    yield data


def _named_colors(picture: xr.DataArray) -> dict[str, tuple[int, int, int]]:
    """Return the colours that a picture names, for a legend; none if it has more than a legend can show."""
    try:
        found = colors_of(picture)
    except ImageryError:
        return {}
    return {str(name): color for name, color in found.items()} if len(found) <= _MOST_NAMED else {}


def label_texts(columns: Mapping[str, npt.NDArray[Any]], name: str | None) -> Sequence[str]:
    """Return the texts of a column of the table; by default its ids, or the numbers of its rows."""
    chosen = name or ("id" if "id" in columns else CUTOUT)
    if not isinstance(chosen, str) or chosen not in columns:
        raise OptionError(
            f"labels={format_value(name)} is not a column of the cutouts; give the name of one: {', '.join(columns)}"
        )
    return column_texts(columns[chosen])
