"""One TIFF of all slices: as ImageJ reads it, as OME-TIFF, and as BigTIFF where it is large."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from imageryxr.errors import OptionError, TargetError
from imageryxr.export.plan.regions import Regions
from imageryxr.export.store.local import Place
from imageryxr.export.targets.base import ArrayInfo
from imageryxr.export.targets.slices import SliceTarget, single_file_axis
from imageryxr.graph.expr import Array

COMPRESSIONS = (None, "zlib")
# A classic TIFF counts its bytes in 32 bits; what is not pixels takes some of them.
CLASSIC_BYTES = 2**32 - 2**25


def check_compression(compression: Any) -> str | None:
    """Return how a TIFF is compressed, or raise `OptionError`."""
    value = None if compression in ("none", "None") else compression
    if value not in COMPRESSIONS:
        raise OptionError(f"compression={compression!r} must be 'zlib' (lossless, which every reader knows) or None")
    return value


def check_type(layer: ArrayInfo) -> None:
    """Raise `OptionError` if a TIFF has no such values."""
    if layer.dtype.kind not in "uifbc" or layer.dtype.itemsize > (16 if layer.dtype.kind == "c" else 8):
        raise OptionError(f"values of dtype {layer.dtype} cannot be stored as TIFF; it holds numbers of up to 64 bits")
    if layer.channels not in (0, 3, 4):
        raise OptionError(
            f"a TIFF of {layer.channels} channels is no picture that programs know: export grey values "
            "(array.isel(rgba=0)), RGB or RGBA, or all channels to .ome.zarr"
        )


def is_imagej_type(layer: ArrayInfo) -> bool:
    """Tell whether ImageJ's kind of TIFF holds such values: colours it has of 8 bits only."""
    return layer.dtype in (np.uint8, np.bool_) or (not layer.channels and layer.dtype in (np.uint16, np.float32))


def tiff_page_tags(layer: ArrayInfo, pixel: tuple[float, float, float], *, imagej: bool) -> dict[str, Any]:
    """Return what `tifffile` is to write of colours and voxel size: for ImageJ its ``spacing`` and ``unit``."""
    width, height, depth = pixel
    tags: dict[str, Any] = {"photometric": "rgb" if layer.channels else "minisblack"}
    if layer.channels == 4:
        tags["extrasamples"] = ["unassalpha"]
    if imagej:
        # per nm, the unit that is named: that is how ImageJ understands them
        return {
            **tags,
            "resolution": (1 / width, 1 / height),
            "resolutionunit": "NONE",
            "metadata": {"spacing": depth, "unit": "nm"},
        }
    return {
        **tags,
        "resolution": (1e7 / width, 1e7 / height),
        "resolutionunit": "CENTIMETER",
        "metadata": {"spacing": depth, "unit": "nm"},
    }


@dataclass(frozen=True)
class TiffFile(SliceTarget):
    """All slices in one TIFF."""

    compression: str | None = "zlib"
    bigtiff: bool = False
    ome: bool = False

    kind = "single"
    suffixes = (".tif", ".tiff", ".ome.tif", ".ome.tiff")

    def describe(self) -> dict[str, Any]:
        """Return what the file is like."""
        return {
            "format": "OME-TIFF" if self.ome else "TIFF",
            "axis": self.axis,
            "compression": self.compression,
            "bigtiff": self.bigtiff,
        }

    def problems(self) -> list[str]:
        """Refuse more than fits into 32 bits."""
        total = self.layer.grid.box.voxels * self.layer.voxel_bytes
        if self.bigtiff or total <= CLASSIC_BYTES:
            return []
        return [
            f"a TIFF holds at most 4 GiB, and these are {total / 2**30:,.1f} GiB before compression: give "
            "bigtiff=True, or a pattern such as 'stack/z{z:04d}.tif' for a file a slice"
        ]

    def advice(self) -> str | None:
        """Tell where programs do not find how far apart slices are."""
        if self.ome or self._imagej or self.layer.grid.shape[self.axis] == 1:
            return None
        why = "ImageJ has no BigTIFF" if self.bigtiff and is_imagej_type(self.layer) else "ImageJ has no such values"
        other = ".ome.zarr" if _not_in_ome(self.layer) else ".ome.tif"
        return (
            f"how far apart the slices are, {self.pixel[2]:g} nm, stands only where tifffile reads it, as {why}; a "
            f"name that ends in {other} has it for others"
        )

    @property
    def plain(self) -> bool:
        """Where pages are not compressed."""
        return self.compression is None

    def occupied(self) -> list[str]:
        """Return the file itself."""
        return [""]

    def key(self, index: int) -> str:
        """Return the name of a slice that waits for the file to be put together."""
        return f"{index:08d}.page"

    def page(self, index: int, plane: Array) -> bytes:
        """Return the pixels of a slice, compressed as they will stand in the file."""
        data = (plane if plane.dtype != np.bool_ else plane.astype(np.uint8) * 255).tobytes()
        return zlib.compress(data, 6) if self.compression else data

    def assemble(self, regions: Regions, place: Place, path: str) -> None:
        """Write the pages into one file."""
        import tifffile

        count = self.layer.grid.shape[self.axis]
        dtype = np.dtype(np.uint8) if self.layer.dtype == np.bool_ else self.layer.dtype
        samples = (self.layer.channels,) if self.layer.channels else (1,) if self._one_wide and self._imagej else ()
        shape = (count, *self.picture_shape, *samples)
        # unless it is told, tifffile takes slices one voxel wide for the rows of a single page
        narrow: dict[str, Any] = {"planarconfig": "contig", "extrasamples": ()} if self._one_wide else {}
        with tifffile.TiffWriter(path, bigtiff=self.bigtiff, ome=self.ome, imagej=self._imagej) as writer:
            writer.write(
                self._pages(place, count, shape[1:], dtype),
                shape=shape,
                dtype=dtype,
                compression=self.compression,
                # one strip a page: the pages are compressed already, each on its own
                rowsperstrip=self.picture_shape[0],
                **self._tags(count),
                **({} if self._imagej else narrow),
            )

    @property
    def _imagej(self) -> bool:
        return not self.ome and not self.bigtiff and is_imagej_type(self.layer)

    def _tags(self, count: int) -> dict[str, Any]:
        tags = tiff_page_tags(self.layer, self.pixel, imagej=self._imagej)
        width, height, depth = self.pixel
        if self.ome:
            # the identifier is part of the file: the same export gives the same bytes
            name = f"imageryxr {self.layer.grid} {self.describe()}"
            tags["metadata"] = {
                "axes": "ZYXS" if self.layer.channels else "ZYX",
                "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, name)}",
                "PhysicalSizeX": width, "PhysicalSizeXUnit": "nm",
                "PhysicalSizeY": height, "PhysicalSizeYUnit": "nm",
                "PhysicalSizeZ": depth, "PhysicalSizeZUnit": "nm",
            }  # fmt: skip
        else:
            samples = self.layer.channels or (self._imagej and self._one_wide)
            tags["metadata"] = {**tags["metadata"], "axes": "ZYXS" if samples else "ZYX"}
        return tags

    @property
    def _one_wide(self) -> bool:
        """Whether slices are of grey values or ids, and one voxel wide."""
        return not self.layer.channels and self.picture_shape[1] == 1

    def _pages(self, place: Place, count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Any]:
        for i in range(count):
            data = place.get(self.key(i))
            if data is None:
                raise TargetError(f"slice {i} of {self.place} is lost: {place.url}/{self.key(i)} is not there any more")
            yield data if self.compression else np.frombuffer(data, dtype).reshape(shape)


def _not_in_ome(layer: ArrayInfo) -> bool:
    """Tell whether OME-TIFF has no such values."""
    return (layer.dtype.itemsize > 4 and layer.dtype.kind in "iu") or layer.dtype == np.float16


def tiff_file(
    place: str, root: str, layer: ArrayInfo, *, axis: str = "z", compression: str | None = "zlib", bigtiff: bool = False
) -> TiffFile:
    """Return the TIFF at a path.

    Raises
    ------
    OptionError
        If an option is none, or OME-TIFF cannot hold the values.
    """
    check_type(layer)
    ome = place.lower().endswith((".ome.tif", ".ome.tiff"))
    if ome and _not_in_ome(layer) and layer.dtype.kind in "iu":
        raise OptionError(
            f"OME-TIFF holds no ids of dtype {layer.dtype} (its whole numbers have 32 bits at the most); export them "
            "to .ome.zarr, precomputed:// or a plain .tif"
        )
    if ome and _not_in_ome(layer):
        raise OptionError("OME-TIFF holds no values of dtype float16: give array.astype('float32'), or a plain .tif")
    return TiffFile(place, root, layer, single_file_axis(axis), check_compression(compression), bool(bigtiff), ome)
