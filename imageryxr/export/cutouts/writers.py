"""Targets of exports of cutouts, which dask stores blocks in."""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.export.cutouts.row_journal import RowJournal
from imageryxr.export.store.local import disk_errors
from imageryxr.render.figure import array_to_pil


@dataclass(frozen=True, eq=False)
class RowWriter(ABC):
    """Writer of one variable, for `dask.array.store`; small and picklable.

    Block ``[a:b]`` of the stored array contains the cutouts ``rows[a:b]`` of the whole table.
    """

    name: str
    rows: npt.NDArray[np.int64]
    journal: RowJournal

    def __setitem__(self, index: tuple[slice, ...], block: npt.NDArray[Any]) -> None:
        rows = self.rows[index[0]].tolist()
        self.write(rows, block)
        self.journal.add(self.name, rows)

    @abstractmethod
    def write(self, rows: list[int], block: npt.NDArray[Any]) -> None:
        """Write the cutouts of some rows."""


@dataclass(frozen=True, eq=False)
class ZarrWriter(RowWriter):
    """Writer into a Zarr array with one chunk per cutout."""

    path: str = ""

    @cached_property
    def _array(self) -> Any:
        import zarr

        return zarr.open_group(self.path, mode="r+")[self.name]

    def write(self, rows: list[int], block: npt.NDArray[Any]) -> None:
        """Write whole chunks."""
        with disk_errors(self.path):
            for row, values in zip(rows, block, strict=True):
                self._array[row] = values

    def __reduce__(self) -> tuple[Any, ...]:
        return (ZarrWriter, (self.name, self.rows, self.journal, self.path))


@dataclass(frozen=True, eq=False)
class PictureWriter(RowWriter):
    """Writer of one PNG file per cutout."""

    files: list[str] = field(default_factory=list)
    """The file of each row."""
    compress_level: int = 3

    def write(self, rows: list[int], block: npt.NDArray[Any]) -> None:
        """Write pictures, each atomically."""
        for row, plane in zip(rows, block, strict=True):
            file = Path(self.files[row])
            beside = file.with_name(f".{uuid.uuid4().hex[:12]}.png")
            with disk_errors(str(file)):
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    array_to_pil(plane).save(beside, compress_level=self.compress_level)
                    os.replace(beside, file)
                finally:
                    beside.unlink(missing_ok=True)
