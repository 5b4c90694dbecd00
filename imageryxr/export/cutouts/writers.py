"""Writers of cutouts, which dask stores blocks in, and the journal of what they have written."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.export.store.local import disk_errors, replaced_file
from imageryxr.render.figure import array_to_pil


class RowJournal:
    """A text file with a line for each written cutout; thread-safe, and shared by the processes of one machine.

    A line is appended after the cutout was written, so a killed export loses at most the lines of a few cutouts.
    """

    def __init__(self, path: Path, on_done: Callable[[int], Any] | None = None) -> None:
        self.path, self.on_done = path, on_done
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (RowJournal, (self.path,))

    def done(self) -> set[tuple[str, int]]:
        """Return the variable and the number of each written cutout; an incomplete last line is ignored."""
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return set()
        found = set()
        for line in lines:
            row, _, name = line.partition(" ")
            if row.isdecimal():
                found.add((name, int(row)))
        return found

    def add(self, name: str, rows: Iterable[int]) -> None:
        """Append cutouts of a variable."""
        text = "".join(f"{row} {name}\n" for row in rows).encode()
        # One write to a file that is opened for appending is not interleaved with those of other processes.
        with self._lock:
            number = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(number, text)
            finally:
                os.close(number)
            if self.on_done is not None:
                self.on_done(text.count(b"\n"))


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
            with replaced_file(Path(self.files[row])) as beside:
                array_to_pil(plane).save(beside, compress_level=self.compress_level)
