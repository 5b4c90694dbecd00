"""Exports of cutouts to a bucket. An object appears whole, so the objects that exist are the journal.

Each export has a token. It writes an object with the token first, so that a later run recognizes the objects of the
same export. A Zarr group becomes readable when its root metadata are written, after all cutouts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.export.cutouts.local_jobs import TOKEN, CompleteJournal, Job, exists_error, file_names, write_metadata
from imageryxr.export.cutouts.writers import RowJournal, RowWriter
from imageryxr.export.store.bucket import Bucket, bucket_errors, bucket_store
from imageryxr.graph.labelled import CUTOUT
from imageryxr.render.figure import array_to_pil

_ROOT = "zarr.json"


class ObjectJournal(RowJournal):
    """The journal of an export to a bucket: the cutouts whose objects exist.

    Parameters
    ----------
    bucket : Bucket
        The prefix of the objects.
    keys : mapping
        The object of each cutout of each variable.
    """

    def __init__(self, bucket: Bucket, keys: Mapping[tuple[str, int], str]) -> None:
        super().__init__(Path())
        self.bucket, self.keys = bucket, keys
        self.is_ours = False
        """Whether an earlier run of the same export has begun."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectJournal, (self.bucket, {}))

    def done(self) -> set[tuple[str, int]]:
        """Return the variable and the number of each written cutout."""
        if not self.is_ours:
            return set()
        listed = set(self.bucket.names())
        return {cutout for cutout, key in self.keys.items() if key in listed}

    def add(self, name: str, rows: Iterable[int]) -> None:
        """Count cutouts, whose objects exist, towards the progress."""
        with self._lock:
            if self.on_done is not None:
                self.on_done(len(list(rows)))


class _BucketJob(Job):
    """An export whose objects are written to their final names."""

    bucket: Bucket
    journal: RowJournal

    def _set_up(self, url: str, keys: dict[tuple[str, int], str]) -> None:
        self.bucket = Bucket(url)
        self.objects = ObjectJournal(self.bucket, keys)
        self.journal = self.objects

    @property
    def marker(self) -> str:
        """The object that identifies the export."""
        return f".imageryxr/cutouts-{self.token[:12]}"

    def prepare(self) -> None:
        """Write the object that identifies the export."""
        self.bucket.put([(self.marker, self.token.encode())])

    def _find_marker(self) -> bool:
        return self.bucket.get(self.marker) == self.token.encode()


class BucketZarrJob(_BucketJob):
    """A Zarr group with one array per variable and one object per cutout."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        keys = {
            (name, row): "/".join([name, "c", str(row), *["0"] * (array.ndim - 1)])
            for name, array in arrays.items()
            for row in range(array.sizes[CUTOUT])
        }
        self._set_up(place.rstrip("/"), keys)

    def _stored_token(self) -> Any:
        root = self.bucket.get(_ROOT)
        return None if root is None else json.loads(root).get("attributes", {}).get(TOKEN, "")

    def check_target(self, overwrite: bool) -> None:
        """Skip everything if the target is the result of this call."""
        stored = self._stored_token()
        if stored == self.token:
            self.journal = CompleteJournal(Path())
        elif stored is None and self._find_marker():
            self.objects.is_ours = True
        elif not overwrite and next(iter(self.bucket.names()), None) is not None:
            raise exists_error(self.place)

    def discard(self) -> None:
        """Remove what this call has written, also if it was complete."""
        if self._stored_token() == self.token or self._find_marker():
            self.bucket.clear()

    def prepare(self) -> None:
        """Remove what was there, and write the coordinates and the metadata of the arrays."""
        if self.objects.is_ours:
            return
        self.bucket.clear()
        super().prepare()
        self.bucket.put([(key, data) for key, data in self._metadata().items() if key != _ROOT])

    def _metadata(self) -> dict[str, bytes]:
        import zarr

        files: dict[str, Any] = {}
        write_metadata(self, zarr.storage.MemoryStore(files))
        return {key: value.to_bytes() for key, value in files.items()}

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some cutouts of a variable."""
        return BucketZarrWriter(name, rows, self.journal, self.bucket.url)

    def publish(self) -> int:
        """Write the metadata of the group."""
        if not isinstance(self.journal, CompleteJournal):
            self.bucket.put([(_ROOT, self._metadata()[_ROOT])])
            self.bucket.delete([self.marker])
        return sum(self.bucket.sizes().values())


class BucketPicturesJob(_BucketJob):
    """An object with a PNG picture per cutout."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        name, array = next(iter(arrays.items()))
        url = place.partition("{")[0].rpartition("/")[0]
        names = [file[len(url) + 1 :] for file in file_names(place, self.columns, array.sizes[CUTOUT])]
        self._set_up(url, {(name, row): key for row, key in enumerate(names)})

    def check_target(self, overwrite: bool) -> None:
        """Raise an error if an object exists that this call has not written."""
        self.objects.is_ours = self._find_marker()
        if self.objects.is_ours or overwrite:
            return
        keys = set(self.objects.keys.values())
        found = next((name for name in self.bucket.names() if name in keys), None)
        if found is not None:
            raise exists_error(f"{self.bucket.url}/{found}")

    def discard(self) -> None:
        """Forget what this call has written: it is written again."""
        self.bucket.delete([self.marker])

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some pictures."""
        keys = [self.objects.keys[name, row] for row in range(self.arrays[name].sizes[CUTOUT])]
        return BucketPictureWriter(name, rows, self.journal, self.bucket, keys, self.options.get("compress_level", 3))

    def publish(self) -> int:
        """Return the size of all pictures."""
        sizes = self.bucket.sizes()
        return sum(sizes.get(key, 0) for key in self.objects.keys.values())


@dataclass(frozen=True, eq=False)
class BucketZarrWriter(RowWriter):
    """Writer into a Zarr array in a bucket with one object per cutout."""

    url: str = ""

    @cached_property
    def _array(self) -> Any:
        import zarr

        store = zarr.storage.ObjectStore(bucket_store(self.url))
        # Cutouts of background also become objects, since objects are the journal.
        with zarr.config.set({"array.write_empty_chunks": True}):
            return zarr.open_array(store, path=self.name, mode="r+", zarr_format=3)

    def write(self, rows: list[int], block: npt.NDArray[Any]) -> None:
        """Write whole chunks."""
        with bucket_errors(self.url):
            for row, values in zip(rows, block, strict=True):
                self._array[row] = values

    def __reduce__(self) -> tuple[Any, ...]:
        return (BucketZarrWriter, (self.name, self.rows, self.journal, self.url))


@dataclass(frozen=True, eq=False)
class BucketPictureWriter(RowWriter):
    """Writer of one PNG object per cutout."""

    bucket: Bucket = field(default_factory=lambda: Bucket(""))
    keys: list[str] = field(default_factory=list)
    """The object of each row."""
    compress_level: int = 3

    def write(self, rows: list[int], block: npt.NDArray[Any]) -> None:
        """Write pictures."""
        for row, plane in zip(rows, block, strict=True):
            data = io.BytesIO()
            array_to_pil(plane).save(data, "PNG", compress_level=self.compress_level)
            self.bucket.put([(self.keys[row], data.getvalue())])
