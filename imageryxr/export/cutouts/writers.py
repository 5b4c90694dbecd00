"""Writers of cutouts, which dask stores blocks in."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.validate import check_whole
from imageryxr.errors import LayerError
from imageryxr.export.cutouts.places import CutoutPlace
from imageryxr.render.figure import array_to_pil

ROOT = "zarr.json"
"""The metadata file of a Zarr group or array."""


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
