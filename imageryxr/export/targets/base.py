"""The base classes of export targets: of all, of those whose files are slices, and of files assembled from slices.

A target defines the files of a region and their content. It is a small picklable value that opens nothing. The engine
writes the files atomically and records the finished regions, so a new format is one module here, and every format can
be continued and written by several machines.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from imageryxr.core.bbox import DIMS, Index3, IndexBox
from imageryxr.core.grid import Grid
from imageryxr.core.validate import check_axis, check_choice, check_counts
from imageryxr.errors import Message, OptionError, TargetError, Wording, param
from imageryxr.export.commit.manifest import Kind, SliceNames
from imageryxr.export.plan.regions import Regions
from imageryxr.export.store.bucket import Place
from imageryxr.export.store.local import is_remote
from imageryxr.graph.expr import Array

# Voxels of a region of a pyramid's coarser level, unless a chunk is larger or memory allows more.
REGION_VOXELS = 1 << 20

DRAW_ADVICE = Wording(
    "make a picture with to_rgba(image, contrast_limits=…) or overlay(image, segmentation)",
    "leave --raw out, which draws them (with --contrast low,high for deep images)",
)
"""Advice for values that are not a picture."""
COARSER = Message("a coarser level (", param("mip", ...), ")")
"""Advice for exports that are too large."""


@dataclass(frozen=True)
class ArrayInfo:
    """The properties of the exported array that a target needs."""

    grid: Grid
    channels: int
    """Size of the channel axis, 4 for RGBA; 0 without such an axis."""
    dtype: np.dtype[Any]
    layer_type: str
    contrast: tuple[float, float] | None = None
    """The grey values that are displayed as black and white."""

    @property
    def voxel_bytes(self) -> int:
        """Bytes of one voxel, channels included."""
        return self.dtype.itemsize * max(1, self.channels)


@dataclass(frozen=True)
class Target(ABC):
    """A format at a path or URL.

    Keys are names of files below ``root``. Equal regions have equal keys, and equal values give equal bytes.
    """

    place: str
    """The path or URL of the result, as the caller gave it."""
    root: str
    """The folder or prefix that keys are relative to; the file itself for a single-file target."""
    layer: ArrayInfo

    kind: ClassVar[Kind] = "tree"
    """Whether the result is a folder, several files of a shared folder, a single file, or an array in memory."""
    encoding: ClassVar[float] = 1.5
    """Bytes of memory while a region is encoded, for each byte of the region."""

    @property
    def granule(self) -> Index3:
        """Voxels (z, y, x) that must be written together. Sizes of regions are multiples of it."""
        return (1, 1, 1)

    @property
    def coarse(self) -> int:
        """Approximate number of voxels of a region of the later stages."""
        return REGION_VOXELS

    def with_coarse(self, voxels: int) -> Target:
        """Return the same target with later stages in regions of about `voxels` voxels."""
        return self

    @property
    def later(self) -> tuple[Regions, ...]:
        """Regions of the stages after the first, such as the coarser levels of a pyramid."""
        return ()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the format and its options as plain data: everything besides the voxels that determines the bytes."""

    @property
    def is_uncompressed(self) -> bool:
        """Whether the result is uncompressed, so that it needs at least the bytes of the voxels."""
        return False

    @property
    def page_bytes(self) -> int:
        """Bytes of memory to make one file of a region, in addition to `encoding`."""
        return 0

    @property
    def assembling_bytes(self) -> int:
        """Bytes of memory that `assemble` needs, in the process that runs the export."""
        return 0

    def problems(self) -> list[str]:
        """Return the reasons why the format cannot store the array, each with advice."""
        return []

    def advice(self) -> str | None:
        """Return a note on the format for the plan, if there is one."""
        return None

    def preamble(self) -> dict[str, bytes]:
        """Return the files that are written before the first region."""
        return {}

    def commit(self) -> dict[str, bytes]:
        """Return the files that are written last, without which readers cannot open the result."""
        return {}

    def identifying_keys(self) -> list[str]:
        """Return the keys whose files show that the target exists."""
        return list(self.commit())

    def names(self) -> SliceNames | None:
        """Return a value from which `keys_from_names` lists all files; None unless the target shares its folder."""
        return None

    def keys_from_names(self, names: SliceNames) -> list[str]:
        """Return the keys of another export to this target, from the result of its `names`."""
        return []

    @abstractmethod
    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return the files of a region."""

    @abstractmethod
    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Iterate over the files of a region with their content, in the order of `keys`."""


def lost_object(place: Place, key: str) -> TargetError:
    """Return the error for a file of this export that does not exist any more."""
    return TargetError(
        f"{place.url}/{key} was removed by another program during the export; run the same call again to restore it"
    )


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that volumes store: uint8 for bool."""
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype


def check_layer_type(layer: ArrayInfo, layer_type: Any) -> ArrayInfo:
    """Return the properties of an array with a given layer type, or raise `OptionError` if its values do not fit."""
    given = check_choice(
        "layer_type", layer_type, ("image", "segmentation", None), expected="'image' or 'segmentation'"
    )
    layer = replace(layer, layer_type=given or layer.layer_type)
    if layer.layer_type == "segmentation" and layer.dtype.kind not in "uib":
        raise OptionError(
            f"values of dtype {layer.dtype} are not ids of a segmentation: give array.fillna(0).astype('uint64'), or ",
            param("layer_type", "image"),
            " for an image",
        )
    return layer


def check_voxels(value: Any, name: str) -> Index3:
    """Return three counts of voxels (z, y, x), or raise `OptionError`."""
    z, y, x = check_counts(name, value, "three positive counts of voxels (z, y, x)")
    return z, y, x


# ---------------------------------------------------------------------------------------------------------
# slices


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
        sizes = [axis.resolution for axis in self.layer.grid.axes]
        distance = sizes.pop(self.axis)
        rows, columns = sizes
        return columns, rows, distance

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
    def page(self, plane: Array) -> bytes:
        """Return the content of a slice's file."""

    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return one file per slice."""
        return [self.key(i) for i in range(box.start[self.axis], box.stop[self.axis])]

    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Iterate over the files of the slices."""
        first = box.start[self.axis]
        for i in range(first, box.stop[self.axis]):
            yield self.key(i), self.page(np.take(values, i - first, axis=self.axis))


def shown_values(plane: Array) -> Array:
    """Return the values of a slice as programs show them: booleans as 0 and 255."""
    return plane if plane.dtype != np.bool_ else plane.astype(np.uint8) * 255


@dataclass(frozen=True)
class SingleFile(SliceTarget):
    """A file that is assembled from temporary files of its slices."""

    kind = "single"

    @property
    def assembling_bytes(self) -> int:
        """Bytes of one slice, because slices are appended one by one."""
        return self.page_bytes

    def identifying_keys(self) -> list[str]:
        """Return the file itself."""
        return [""]

    def key(self, index: int) -> str:
        """Return the name of a slice's temporary file."""
        return f"{index:08d}.page"

    @abstractmethod
    def assemble(self, place: Place, path: str) -> None:
        """Write the file from the temporary files of the slices."""

    def read_pages(self, place: Place) -> Iterator[bytes]:
        """Iterate over the temporary files of the slices, in order."""
        for index in range(self.layer.grid.shape[self.axis]):
            data = place.get(self.key(index))
            if data is None:
                raise lost_object(place, self.key(index))
            yield data


def target_root(place: str) -> str:
    """Return the absolute path or the URL that a target's keys are relative to."""
    place = place.removeprefix("file://")
    return place.rstrip("/") if is_remote(place) else os.path.abspath(os.path.expanduser(place))


def single_file_axis(axis: Any) -> int:
    """Return the number of the axis across the slices of a single file."""
    return DIMS.index(check_axis(axis))
