"""Exports of cutouts to a page in a bucket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.errors import TargetError
from imageryxr.export.cutouts.bucket_jobs import BucketJob, BucketPictureWriter, split_url
from imageryxr.export.cutouts.local_jobs import TOKEN_BYTES, CompleteJournal, exists_error, lock_name, page_table
from imageryxr.export.cutouts.page import write_page
from imageryxr.export.cutouts.writers import RowWriter
from imageryxr.export.store.bucket import Bucket
from imageryxr.graph.cutout_arrays import CUTOUT

# Pictures that are downloaded at once.
_DOWNLOADS = 32


class BucketPageJob(BucketJob):
    """One HTML page that contains all pictures, which are objects beside it until it is complete."""

    def __init__(self, place: str, arrays: dict[str, xr.DataArray], obj: Any, options: dict[str, Any]) -> None:
        super().__init__(place, arrays, obj, options)
        name, array = next(iter(arrays.items()))
        self.table, self.labels = page_table(self.columns, array.sizes[CUTOUT], options.get("labels"))
        folder, self.page = split_url(place)
        keys = {(name, row): f"{row}.png" for row in range(array.sizes[CUTOUT])}
        self._set_up(
            f"{folder}/.imageryxr/{self.page}-{self.token[:12]}", keys, (folder, f".imageryxr/{lock_name(self.page)}")
        )
        self.folder = Bucket(folder, self._lease)

    def check_target(self, overwrite: bool) -> None:
        """Skip everything if the target is the result of this call."""
        start = self.folder.get_start(self.page, TOKEN_BYTES)
        if start is not None and self.token.encode() in start:
            self.journal = CompleteJournal(Path())
        elif start is not None and not overwrite:
            raise exists_error(self.place)
        else:
            self.objects.is_ours = self._find_marker()

    def discard(self) -> None:
        """Remove what this call has written, also if it was complete."""
        self.bucket.clear()
        if self.token.encode() in (self.folder.get_start(self.page, TOKEN_BYTES) or b""):
            self.folder.delete([self.page])

    def writer(self, name: str, rows: npt.NDArray[np.int64]) -> RowWriter:
        """Return the writer of some pictures."""
        keys = [key for (own, _), key in self.objects.keys.items() if own == name]
        return BucketPictureWriter(name, rows, self.journal, self.bucket, keys)

    def publish(self) -> int:
        """Upload the page and remove the single pictures."""
        if isinstance(self.journal, CompleteJournal):
            return self.folder.sizes()[self.page]
        with tempfile.TemporaryDirectory(prefix="imageryxr-") as folder:
            path = Path(folder) / self.page
            size = write_page(path, self._read_pictures(), self.table, self.labels, path.stem, self.token)
            self.folder.upload(str(path), self.page)
        self.bucket.clear()
        return size

    def _read_pictures(self) -> Iterator[bytes]:
        """Download the pictures in the order of the cutouts, some at once."""
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            every = list(self.objects.keys.values())
            for start in range(0, len(every), 8 * _DOWNLOADS):
                keys = every[start : start + 8 * _DOWNLOADS]
                for key, data in zip(keys, pool.map(self.bucket.get, keys), strict=True):
                    if data is None:
                        raise TargetError(
                            f"{self.bucket.url}/{key} was removed by another program during the export; the same call "
                            "continues, and writes it again"
                        )
                    yield data
