"""Write cutouts: the folders and buckets of their files, and the writers in which dask stores blocks.

The complete files in such a place are the journal of the export.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.fork import cached_property
from imageryxr.core.validate import check_whole
from imageryxr.errors import LayerError, TargetError
from imageryxr.export.commit.manifest import open_lock
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.store.lease import Lease, WorkerWatch
from imageryxr.export.store.local import HIDDEN, FileRecord, Folder, disk_errors, is_remote, replaced_file
from imageryxr.render.figure import array_to_pil

ROOT = "zarr.json"
"""The metadata file of a Zarr group or array."""


@dataclass(frozen=True)
class CutoutFolder(Folder):
    """A local folder in which each file is complete or absent. Files are not flushed to the disk one by one."""

    def put(self, files: Iterable[tuple[str, bytes]]) -> dict[str, FileRecord]:
        """Write files under temporary names, then rename them."""
        records = {}
        for key, data in files:
            with replaced_file(Path(self.root, key), self.scratch) as temporary:
                temporary.write_bytes(data)
            records[key] = FileRecord.of(data)
        return records

    def get_start(self, key: str, size: int) -> bytes | None:
        """Return the first `size` bytes of a file; None if there is no file, and no bytes if it is a folder."""
        path = os.path.join(self.root, key)
        try:
            with open(path, "rb") as file:
                return file.read(size)
        except OSError:
            return b"" if os.path.lexists(path) else None

    def clear(self) -> None:
        """Remove the folder, or the file in its place."""
        with disk_errors(self.root):
            if os.path.isdir(self.root) and not os.path.islink(self.root):
                shutil.rmtree(self.root)
            elif self.exists():
                os.unlink(self.root)

    def begin(self) -> None:
        """Create the folder of incomplete files; writing fails without it."""
        with disk_errors(self.root):
            shutil.rmtree(self.scratch, ignore_errors=True)
            os.makedirs(self.scratch)

    def move(self, final: CutoutFolder) -> None:
        """Move the folder to its final place, and remove what was there."""
        final.clear()
        with disk_errors(final.root):
            os.replace(self.root, final.root)

    def end(self) -> None:
        """Remove the folder of incomplete files."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        with suppress(OSError):  # the hidden folder has other files
            os.rmdir(os.path.dirname(self.scratch))


CutoutPlace = CutoutFolder | Bucket


@dataclass
class MarkerWatch(WorkerWatch):
    """A check by workers, which hold no lease, that their export still runs, by the object that identifies it."""

    url: str
    marker: str
    """The object below `url` that identifies the export, see `CutoutSite.marker`."""
    content: bytes
    """The content of this object while the export runs."""

    def confirm(self) -> None:
        """Read the object; raise `TargetError` if the export has ended or another one has started."""
        if Bucket(self.url).get(self.marker) != self.content:
            raise TargetError(
                f"{self.url}/{self.marker} was removed or replaced: this export ended or another one started, and the "
                "cutouts that a worker was still processing are not written",
                taken=True,
            )


def split_place(place: str) -> tuple[str, str]:
    """Return the folder of a path, URL or pattern, and the name in it, which may be a pattern."""
    place = place.rstrip("/") if is_remote(place) else os.path.abspath(place)
    folder = place.partition("{")[0].rpartition("/")[0]
    name = place[len(folder) + 1 :]
    if folder.endswith(":/"):
        raise TargetError(f"{place} is a whole bucket; give a path in it, such as s3://bucket/{name.strip('/')}")
    return folder, name


class CutoutSite:
    """The place to which an export of cutouts writes: the folder of its target, on a disk or in a bucket.

    `token` identifies the export.
    """

    def __init__(self, folder: str, name: str, token: str) -> None:
        self.folder, self.name, self.token = folder, name, token
        lock = f"{HIDDEN}/cutouts-{hashlib.sha256(name.encode()).hexdigest()[:12]}.lock"
        self._lock = open_lock(folder, lock)

    @property
    def is_remote(self) -> bool:
        """Whether the target is in a bucket."""
        return isinstance(self._lock, Lease)

    @property
    def marker(self) -> str:
        """The file in the place of the cutouts that identifies the export."""
        return f"{HIDDEN}/cutouts-{self.token[:12]}"

    def hold_lock(self) -> AbstractContextManager[None]:
        """Exclude other exports to the target; raise `TargetError` if another process is exporting to it."""
        return self._lock.hold()

    def open(self, name: str = "") -> CutoutPlace:
        """Return the folder, or another folder in it."""
        url = f"{self.folder}/{name}".rstrip("/") or "/"
        if isinstance(self._lock, Lease):
            return Bucket(url, self._lock, MarkerWatch(url, self.marker, self.token.encode()))
        return CutoutFolder(url, f"{url}/{HIDDEN}/new-{self.token[:12]}")

    def open_work(self) -> CutoutPlace:
        """Return the folder for cutouts that are not published one by one."""
        return self.open(f"{HIDDEN}/{self.name}-{self.token[:12]}")


# ---------------------------------------------------------------------------------------------------------
# writers


@dataclass(frozen=True, eq=False)
class RowWriter(ABC):
    """Writer of one variable, for `dask.array.store`; small and picklable.

    Block ``[a:b]`` of the stored array contains the cutouts ``rows[a:b]`` of the whole table.
    """

    name: str
    rows: npt.NDArray[np.int64]
    data: CutoutPlace
    on_done: Callable[[int], Any] | None = field(default=None, kw_only=True)
    """Receives the number of written cutouts, in this process only."""

    def __getstate__(self) -> dict[str, Any]:
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "on_done": None}

    def __setitem__(self, index: tuple[slice, ...], block: npt.NDArray[Any]) -> None:
        rows = self.rows[index[0]].tolist()
        self.write(rows, block)
        if self.on_done is not None:
            self.on_done(len(rows))

    def write(self, rows: list[int], block: npt.NDArray[Any]) -> None:
        """Write the cutouts of some rows."""
        self.data.put(self.encode(rows, block))

    @abstractmethod
    def encode(self, rows: list[int], block: npt.NDArray[Any]) -> Iterator[tuple[str, bytes]]:
        """Iterate over the files of some rows, with their content."""


def chunk_key(row: int, ndim: int) -> str:
    """Return the file of a cutout in a Zarr array of cutouts of `ndim` dims, one per chunk."""
    return "/".join(["c", str(row), *["0"] * ndim])


@dataclass(frozen=True, eq=False)
class ZarrWriter(RowWriter):
    """Writer into a Zarr array with one chunk per cutout."""

    metadata: bytes
    """The metadata of the array."""

    @cached_property
    def _encoder(self) -> tuple[Any, dict[str, Any]]:
        """An array in memory, which encodes the chunks, and its files."""
        import zarr
        from zarr.core.buffer import default_buffer_prototype

        files: dict[str, Any] = {ROOT: default_buffer_prototype().buffer.from_bytes(self.metadata)}
        opened = zarr.open_array(zarr.storage.MemoryStore(files), mode="r+", zarr_format=3)
        # Cutouts of background also become files, because the files are the journal of the export.
        config: Any = {"order": "C", "write_empty_chunks": True}
        return zarr.Array(zarr.AsyncArray(opened.metadata, opened.store_path, config)), files

    def encode(self, rows: list[int], block: npt.NDArray[Any]) -> Iterator[tuple[str, bytes]]:
        """Iterate over whole chunks."""
        array, files = self._encoder
        for row, values in zip(rows, block, strict=True):
            array[row] = values
            key = chunk_key(row, values.ndim)
            yield f"{self.name}/{key}", files.pop(key).to_bytes()


@dataclass(frozen=True)
class PictureFormat:
    """The files of pictures: PNG, or JPEG if there is a quality."""

    scale: int = 1
    """Pixels per voxel and side."""
    compress_level: int = 3
    """Of PNG."""
    quality: int | None = None
    """Of JPEG."""

    @classmethod
    def of(cls, options: Mapping[str, Any], *, is_jpeg: bool = False) -> PictureFormat:
        """Return the format of the options of an export, after checking them."""
        quality = options.get("quality", 85 if is_jpeg else None)
        return cls(
            check_whole("scale", options.get("scale", 1), 1, 100, unit="pixels per voxel"),
            check_whole("compress_level", options.get("compress_level", 3), 0, 9),
            None if quality is None else check_whole("quality", quality, 1, 100),
        )

    @property
    def suffix(self) -> str:
        """The end of the name of a file."""
        return "png" if self.quality is None else "jpeg"

    def encode(self, plane: npt.NDArray[Any]) -> bytes:
        """Return the file of a picture."""
        if self.scale > 1:
            plane = plane.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        data = io.BytesIO()
        if self.quality is None:
            array_to_pil(plane).save(data, "PNG", compress_level=self.compress_level)
            return data.getvalue()
        if plane.ndim == 3 and plane[..., 3].min() < 255:
            raise LayerError(
                "a picture of a cutout is transparent, which JPEG cannot store; export it as PNG, or draw it over an "
                "image: overlay(boxes.image, …)"
            )
        picture = array_to_pil(plane)
        picture.convert("L" if plane.ndim == 2 else "RGB").save(data, "JPEG", quality=self.quality)
        return data.getvalue()


@dataclass(frozen=True, eq=False)
class PictureWriter(RowWriter):
    """Writer of one picture per cutout."""

    keys: list[str]
    """The file of each row."""
    format: PictureFormat

    def encode(self, rows: list[int], block: npt.NDArray[Any]) -> Iterator[tuple[str, bytes]]:
        """Iterate over files."""
        for row, plane in zip(rows, block, strict=True):
            yield self.keys[row], self.format.encode(plane)
