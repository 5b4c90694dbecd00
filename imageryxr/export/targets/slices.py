"""Base classes of targets whose files are slices: stacks of pictures, and single files assembled from slices."""

from __future__ import annotations

import math
import os
import re
import string
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from imageryxr.core.bbox import DIMS, Index3, IndexBox
from imageryxr.core.grid import Axis
from imageryxr.core.validate import check_axis
from imageryxr.errors import OptionError, param
from imageryxr.export.commit.manifest import SliceNames
from imageryxr.export.store.local import Place
from imageryxr.export.targets.base import Target, lost_object
from imageryxr.graph.expr import Array

# Rounding error of offsets that are computed from coordinates, in voxels.
INDEX_SLACK = 1e-6


@dataclass(frozen=True)
class SliceTarget(Target):
    """A target whose regions are whole slices across one axis."""

    axis: int
    """Number of the axis across the slices: z, y, x."""

    encoding = 0.0  # slice by slice: see `page_bytes`

    @property
    def granule(self) -> Index3:
        """One whole slice."""
        size = list(self.layer.grid.shape)
        size[self.axis] = 1
        return (size[0], size[1], size[2])

    @property
    def pixel(self) -> tuple[float, float, float]:
        """Width, height and distance of a picture's pixels in nm."""
        rows, columns = (self.layer.grid.axes[a] for a in range(3) if a != self.axis)
        return columns.resolution, rows.resolution, self.layer.grid.axes[self.axis].resolution

    @property
    def picture_shape(self) -> tuple[int, int]:
        """Rows and columns of a picture."""
        rows, columns = (self.layer.grid.shape[a] for a in range(3) if a != self.axis)
        return rows, columns

    @property
    def page_bytes(self) -> int:
        """Bytes of a slice, three times: its values, its bytes, and compressed."""
        rows, columns = self.picture_shape
        return 3 * rows * columns * self.layer.voxel_bytes

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the name of a slice's file."""

    @abstractmethod
    def page(self, index: int, plane: Array) -> bytes:
        """Return the content of a slice's file."""

    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return one file per slice."""
        return [self.key(i) for i in range(box.start[self.axis], box.stop[self.axis])]

    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Iterate over the files of the slices."""
        first = box.start[self.axis]
        for i in range(first, box.stop[self.axis]):
            yield self.key(i), self.page(i, np.take(values, i - first, axis=self.axis))


def shown_values(plane: Array) -> Array:
    """Return the values of a slice as programs show them: booleans as 0 and 255."""
    return plane if plane.dtype != np.bool_ else plane.astype(np.uint8) * 255


@dataclass(frozen=True)
class SingleFile(SliceTarget):
    """A file that is assembled from temporary files of its slices."""

    kind = "single"

    @property
    def assembling_bytes(self) -> int:
        """The bytes of one slice, because slices are appended one by one."""
        return self.page_bytes

    def occupied(self) -> list[str]:
        """Return the file itself."""
        return [""]

    def key(self, index: int) -> str:
        """Return the name of a slice's temporary file."""
        return f"{index:08d}.page"

    def read_pages(self, place: Place) -> Iterator[bytes]:
        """Iterate over the temporary files of the slices, in order."""
        for index in range(self.layer.grid.shape[self.axis]):
            data = place.get(self.key(index))
            if data is None:
                raise lost_object(place, self.key(index))
            yield data


def single_file_axis(axis: Any) -> int:
    """Return the number of the axis across the slices of a single file."""
    return DIMS.index(check_axis(axis))


@dataclass(frozen=True)
class Stack(SliceTarget):
    """A stack of pictures, one per slice, named by a pattern."""

    pattern: str
    """The pattern, relative to ``root``."""

    kind = "files"

    def key(self, index: int) -> str:
        """Return the name of a slice's file."""
        return self._slice_name(index, self.layer.grid.axes[self.axis])

    def _slice_name(self, index: int, axis: Axis) -> str:
        return _fill_pattern(self.pattern, DIMS[self.axis], index, axis)

    def names(self) -> SliceNames:
        """Return the pattern, and the slices that it is filled in with."""
        axis = self.layer.grid.axes[self.axis]
        return SliceNames(self.pattern, DIMS[self.axis], axis.size, axis.resolution, axis.offset)

    def named(self, names: SliceNames) -> list[str]:
        """Return the files of another stack of this pattern."""
        return slice_names(names) if (names.pattern, names.axis) == (self.pattern, DIMS[self.axis]) else []

    def occupied(self) -> list[str]:
        """Return the names of all files."""
        axis = self.layer.grid.axes[self.axis]
        return [self._slice_name(i, axis) for i in range(axis.size)]

    def check_names(self) -> None:
        """Raise `OptionError` if the pattern cannot be filled in, or gives two slices the same name."""
        try:
            names = self.occupied()
        except (ValueError, KeyError, IndexError) as error:
            name = DIMS[self.axis]
            field = f"{{{name}_nm:.0f}}" if f"{{{name}_nm" in self.pattern else f"{{{name}:04d}}"
            raise OptionError(
                param("target", self.place), f" cannot be filled in ({error}); write e.g. '{field}.png'"
            ) from None
        if any("\0" in name for name in names):
            raise OptionError(
                param("target", self.place), " gives slices names with a NUL byte; write e.g. 'z{z:04d}.png'"
            )
        if len(set(names)) < len(names):
            name = DIMS[self.axis]
            raise OptionError(
                param("target", self.place), f" gives two slices the same name; write {{{name}:04d}} for the index"
            )


def _fill_pattern(pattern: str, dim: str, index: int, axis: Axis) -> str:
    values: dict[str, int | float] = {dim: index}
    if f"{{{dim}_index" in pattern:
        values[f"{dim}_index"] = math.floor(axis.offset + index + INDEX_SLACK)
    if f"{{{dim}_nm" in pattern:
        values[f"{dim}_nm"] = float(Axis(1, axis.resolution, axis.offset + index).centers()[0])
    return pattern.format(**values)


def slice_names(names: SliceNames) -> list[str]:
    """Return the files of a stack from the result of its `Stack.names`; none if its pattern is invalid."""
    axis = Axis(names.count, names.resolution, names.offset)
    try:
        split_pattern(names.pattern)
        return [_fill_pattern(names.pattern, names.axis, i, axis) for i in range(axis.size)]
    except (ValueError, LookupError, AttributeError, TypeError):
        return []


def split_pattern(text: str) -> tuple[str, str, int]:
    """Return the root folder, the pattern below it, and the axis of a name pattern.

    Raises
    ------
    OptionError
        If the pattern does not name exactly one axis.
    """
    try:
        parts = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise OptionError(
            param("target", text), f" cannot be filled in ({error}); write e.g. 'z{{z:04d}}.png'"
        ) from None
    if re.search(r"[1-9]\d{3,}", "".join(spec or "" for _, _, spec, _ in string.Formatter().parse(text))):
        raise OptionError(param("target", text), " has a field of thousands of characters; write e.g. 'z{z:04d}.png'")
    axes = {name.removesuffix("_nm").removesuffix("_index") for name in parts}
    if len(axes) != 1 or not axes <= set(DIMS):
        found = f"; it names {sorted(axes)}" if axes else ""
        raise OptionError(
            param("target", text),
            " must name one axis to slice along, by index or by nm: e.g. ",
            f"'stack/z{{z:04d}}.png', 'stack/z{{z_index:06d}}.png', 'stack/{{x_nm:.0f}}nm.png'{found}",
        )
    text = os.path.expanduser(text) if text.startswith("~") else text
    fixed = text.split("{", 1)[0]
    folder, _, _ = fixed.rpartition("/")
    remote = "://" in text
    root = folder if remote else os.path.abspath(folder or ("/" if fixed.startswith("/") else "."))
    pattern = text[len(folder) + 1 :] if "/" in fixed else text
    return root, pattern, DIMS.index(axes.pop())
