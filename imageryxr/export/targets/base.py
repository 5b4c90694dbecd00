"""What every export target owes: the `Target` contract.

A target says which files a region becomes, and what is in them; it is a small picklable value that opens nothing. Where
the files go, that each is whole or not there, what is done already and what is missing: that is the engine's part.
So a new format is one module here, and every format can be resumed and written by many machines.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.core.grid import Grid
from imageryxr.errors import OptionError
from imageryxr.export.plan.regions import Regions
from imageryxr.export.store.local import Place
from imageryxr.graph.expr import Array

# Voxels of a region of a pyramid's coarser level, unless a chunk is larger, or there is memory for more.
REGION_VOXELS = 1 << 20

Kind = Literal["tree", "files", "single", "memory"]


@dataclass(frozen=True)
class ArrayInfo:
    """What there is to export: all that a target needs to know of the array."""

    grid: Grid
    channels: int
    """4 for RGBA, 0 for arrays without such an axis."""
    dtype: np.dtype[Any]
    layer_type: str
    contrast: tuple[float, float] | None = None
    """The grey values that are black and white."""

    @property
    def voxel_bytes(self) -> int:
        """Bytes of one voxel, channels included."""
        return self.dtype.itemsize * max(1, self.channels)


@dataclass(frozen=True)
class Target(ABC):
    """A format at a place.

    Keys name files below ``root``. The same region always becomes the same keys, and the same values the same bytes.
    """

    place: str
    """Where the result will be, as people name it."""
    root: str
    """The folder or prefix that keys are relative to; the file itself for a target of one file."""
    layer: ArrayInfo

    kind: ClassVar[Kind] = "tree"
    """Whether the result is a folder of its own, files among others, one file, or no file."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Which endings name the format."""
    encoding: ClassVar[float] = 1.5
    """Bytes held while a region is encoded, for each of its own."""
    earlier: ClassVar[dict[str, Any]] = {}
    """What `describe` said nothing of in earlier versions, as it was then."""

    @property
    def granule(self) -> Index3:
        """Voxels (z, y, x) that must be written together: a region is a whole number of them."""
        return (1, 1, 1)

    @property
    def coarse(self) -> int:
        """Voxels of a region of the later stages, about."""
        return REGION_VOXELS

    def in_coarse(self, voxels: int) -> Target:
        """Return the same target with later stages in regions of so many voxels, about."""
        return self

    @property
    def later(self) -> tuple[Regions, ...]:
        """Regions of the stages after the first, which are made from what was written before: a pyramid's levels."""
        return ()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the format and its options as plain data: what, beside the voxels, decides the bytes."""

    def identity(self) -> dict[str, Any]:
        """Return what `describe` says, as earlier versions would: their exports of the same bytes are continued."""
        return {k: v for k, v in self.describe().items() if self.earlier.get(k) != v or k not in self.earlier}

    @property
    def plain(self) -> bool:
        """Whether the result is as large as the voxels are, at the least."""
        return False

    @property
    def page_bytes(self) -> int:
        """Bytes that making one of a region's files takes, beside what `encoding` counts."""
        return 0

    @property
    def assembling_bytes(self) -> int:
        """Bytes that `assemble` takes, in the process that leads the export."""
        return 0

    def problems(self) -> list[str]:
        """Return why the format cannot hold this, each with what to do; nothing if it can."""
        return []

    def advice(self) -> str | None:
        """Return what whoever reads the plan should know of the format, if there is something."""
        return None

    def preamble(self) -> dict[str, bytes]:
        """Return the files that are written before the first region."""
        return {}

    def commit(self) -> dict[str, bytes]:
        """Return the files that are written last: without them nothing opens what is there."""
        return {}

    def occupied(self) -> list[str]:
        """Return the keys of which any, if it is there, means that the target exists."""
        return list(self.commit())

    def names(self) -> dict[str, Any] | None:
        """Return what `named` lists all files by, as plain data, for a target whose files lie among others."""
        return None

    def named(self, names: dict[str, Any]) -> list[str]:
        """Return the keys of another export to this place, by what its `names` gave."""
        return []

    @abstractmethod
    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return the files that a region becomes."""

    @abstractmethod
    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Return the files of a region with their content, in the order of `keys`."""

    def derive(self, stage: int, box: IndexBox, place: Place) -> Array:
        """Return the values of a region of a later stage, from what is at ``place``."""
        raise NotImplementedError

    def derived_bytes(self, stage: int, box: IndexBox) -> int:
        """Return the bytes that `derive` takes at the most, its result included."""
        return 0

    def assemble(self, regions: Regions, place: Place, path: str) -> None:
        """Write the one file of a target of that kind from what the regions became."""
        raise NotImplementedError

    def done(self) -> None:  # noqa: B027 - most have nothing to tell
        """Tell of what a user should know now that the result is at its place."""


def refuse_fractions(layer: ArrayInfo, layer_type: str | None) -> None:
    """Raise `OptionError` if a segmentation has values that are no ids."""
    if (layer_type or layer.layer_type) == "segmentation" and layer.dtype.kind not in "uib":
        raise OptionError(
            f"values of dtype {layer.dtype} are no ids of a segmentation: give array.astype('uint64'), or "
            "layer_type='image' if they are none"
        )


def three_counts(value: Any, name: str) -> Index3:
    """Return three counts of voxels (z, y, x), or raise `OptionError`."""
    try:
        z, y, x = (operator.index(v) for v in value)
    except (TypeError, ValueError):
        z = y = x = 0
    if min(z, y, x) < 1:
        raise OptionError(f"{name}={value!r} is not three positive counts of voxels (z, y, x)")
    return z, y, x
