"""Exports of cutouts to a bucket. An object appears whole, so the objects that exist are the journal.

Each export has a token. It writes an object with the token first, so that a later run recognizes the objects of the
same export. A Zarr group becomes readable when its root metadata are written, after all cutouts. A lease excludes other
exports to the same target.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.errors import TargetError
from imageryxr.export.cutouts.local_jobs import (
    TOKEN,
    CompleteJournal,
    Job,
    exists_error,
    file_names,
    lock_name,
    pattern_token,
    write_metadata,
)
from imageryxr.export.cutouts.writers import RowJournal, RowWriter
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.store.lease import Lease
from imageryxr.graph.cutout_arrays import CUTOUT
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


class BucketJob(Job):
    """An export whose objects are written to their final names."""

    bucket: Bucket
    journal: RowJournal
    marker: str
    """The object that identifies the export."""

    def _set_up(self, url: str, keys: dict[tuple[str, int], str], lock: tuple[str, str]) -> None:
        """Open the bucket.

        Parameters
        ----------
        url : str
            The prefix of the objects.
        keys : dict
            The object of each cutout of each variable.
        lock : (str, str)
            The prefix and the name of the lease.
        """
        self.marker = f".imageryxr/cutouts-{self.token[:12]}"
        self._lease = Lease(Bucket(lock[0], fresh=True), lock[1])
        self.bucket = Bucket(url, self._lease, MarkerWatch(url, self.marker, self.token.encode()))
        self.objects = ObjectJournal(self.bucket, keys)
        self.journal = self.objects

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lease of the target."""
        return self._lease.hold()

    def prepare(self) -> None:
        """Write the object that identifies the export."""
        self.bucket.put([(self.marker, self.token.encode())])

    def _find_marker(self) -> bool:
        return self.bucket.get(self.marker) == self.token.encode()


def split_url(url: str) -> tuple[str, str]:
    """Return the folder and the name of a target in a bucket."""
    folder, _, name = url.rstrip("/").rpartition("/")
    if folder.endswith(":/"):
        raise TargetError(f"{url} is a whole bucket; give a path in it, such as s3://bucket/{name}")
    return folder, name


@dataclass
class MarkerWatch:
    """A check by workers, which hold no lease, that their export still runs, by the object that identifies it.

    Parameters
    ----------
    url, marker : str
        Prefix and name of the object.
    content : bytes
        Its content.
    """

    VALID_SECONDS: ClassVar[float] = 2.0
    """Seconds for which the result of a check is reused."""

    url: str
    marker: str
    content: bytes
    _confirmed: float = 0.0

    def ensure(self) -> None:
        """Check unless the last check is recent."""
        if abs(time.time() - self._confirmed) > self.VALID_SECONDS:
            self.check()

    def check(self) -> None:
        """Read the object; raise `TargetError` if the export has ended or another one has started."""
        requested = time.time()
        if Bucket(self.url).get(self.marker) != self.content:
            raise TargetError(
                f"{self.url}/{self.marker} was removed: this export ended or another one started, and the cutouts that "
                "a worker was still processing are not written",
                taken=True,
            )
        self._confirmed = requested


class BucketZarrJob(BucketJob):
    """A Zarr group with one array per variable and one object per cutout."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        keys = {
            (name, row): "/".join([name, "c", str(row), *["0"] * (array.ndim - 1)])
            for name, array in arrays.items()
            for row in range(array.sizes[CUTOUT])
        }
        folder, name = split_url(place)
        self._set_up(place.rstrip("/"), keys, (folder, f".imageryxr/{lock_name(name)}"))

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
        """Remove what was there, unless an earlier run of the same export has begun."""
        if not self.objects.is_ours:
            self.bucket.clear()
            super().prepare()

    @cached_property
    def _metadata(self) -> dict[str, bytes]:
        import zarr

        files: dict[str, Any] = {}
        write_metadata(self, zarr.storage.MemoryStore(files))
        return {key: value.to_bytes() for key, value in files.items()}

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some cutouts of a variable."""
        return BucketZarrWriter(name, rows, self.journal, self.bucket, self._metadata[f"{name}/{_ROOT}"])

    def publish(self) -> int:
        """Write the coordinates and the metadata of the arrays, and then those of the group."""
        if not isinstance(self.journal, CompleteJournal):
            files = dict(self._metadata)
            root = files.pop(_ROOT)
            self.bucket.put([*files.items(), (_ROOT, root)])
            self.bucket.delete([self.marker])
        return sum(self.bucket.sizes().values())


class BucketPicturesJob(BucketJob):
    """An object with a PNG picture per cutout."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        name, array = next(iter(arrays.items()))
        url = place.partition("{")[0].rpartition("/")[0]
        self.pattern = place[len(url) + 1 :]
        self.token = pattern_token(self.token, self.pattern)
        names = [file[len(url) + 1 :] for file in file_names(place, self.columns, array.sizes[CUTOUT])]
        split_url(place)
        self._set_up(
            url, {(name, row): key for row, key in enumerate(names)}, (url, f".imageryxr/{lock_name(self.pattern)}")
        )

    def prepare(self) -> None:
        """Write the object that identifies the export, and remove those of exports whose pictures this one replaces."""
        others = Bucket(f"{self.bucket.url}/.imageryxr")
        own, names = f"names-{self.token[:12]}", list(self.objects.keys.values())
        for key in [key for key in others.names() if key.startswith("names-") and key != own]:
            if not set(names).isdisjoint(json.loads(others.get(key) or b"[]")):
                others.delete([key, key.replace("names", "cutouts")])
        others.put([(own, json.dumps(names).encode())])
        super().prepare()

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

    bucket: Bucket = field(default_factory=lambda: Bucket(""))
    metadata: bytes = b""
    """The metadata of the array."""

    @cached_property
    def _encoded(self) -> dict[str, Any]:
        """The files of an array in memory, which encodes the chunks."""
        from zarr.core.buffer import default_buffer_prototype

        return {_ROOT: default_buffer_prototype().buffer.from_bytes(self.metadata)}

    @cached_property
    def _array(self) -> Any:
        import zarr

        # Cutouts of background also become objects, since objects are the journal.
        with zarr.config.set({"array.write_empty_chunks": True}):
            return zarr.open_array(zarr.storage.MemoryStore(self._encoded), mode="r+", zarr_format=3)

    def write(self, rows: list[int], block: npt.NDArray[Any]) -> None:
        """Write whole chunks."""
        for row, values in zip(rows, block, strict=True):
            self._array[row] = values
            key = "/".join(["c", str(row), *["0"] * values.ndim])
            self.bucket.put([(f"{self.name}/{key}", self._encoded.pop(key).to_bytes())])

    def __reduce__(self) -> tuple[Any, ...]:
        return (BucketZarrWriter, (self.name, self.rows, self.journal, self.bucket, self.metadata))


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
