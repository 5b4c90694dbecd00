"""A TIFF of all slices: for ImageJ, as OME-TIFF, or as BigTIFF."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from imageryxr.core.validate import check_choice, check_flag
from imageryxr.errors import Message, OptionError, Wording, param
from imageryxr.export.store.bucket import Place
from imageryxr.export.targets.base import ArrayInfo, SingleFile, shown_values, single_file_axis, target_root
from imageryxr.graph.expr import Array

COMPRESSIONS = (None, "zlib")
# A classic TIFF has 32-bit offsets; some bytes are needed for tags.
CLASSIC_BYTES = 2**32 - 2**25


def check_compression(compression: Any) -> str | None:
    """Return the compression of a TIFF, or raise `OptionError`."""
    expected = Message("'zlib' (lossless, supported by all readers)", Wording(" or None", " or 'none'"))
    value = check_choice("compression", compression, (*COMPRESSIONS, "none", "None"), expected=expected)
    return "zlib" if value == "zlib" else None


def check_type(layer: ArrayInfo) -> None:
    """Raise `OptionError` if a TIFF cannot store values of this type."""
    if layer.dtype.kind not in "uifbc" or layer.dtype.itemsize > (16 if layer.dtype.kind == "c" else 8):
        raise OptionError(
            f"values of dtype {layer.dtype} cannot be stored as TIFF, which stores numbers of up to 64 bits"
        )
    if layer.channels not in (0, 3, 4):
        raise OptionError(
            f"a TIFF of {layer.channels} channels is not a picture that programs support: export grey values "
            "(array.isel(rgba=0)), RGB or RGBA, or export all channels to .ome.zarr"
        )


def is_imagej_type(layer: ArrayInfo) -> bool:
    """Return whether ImageJ's kind of TIFF can store values of this type; its colours have 8 bits."""
    return layer.dtype in (np.uint8, np.bool_) or (not layer.channels and layer.dtype in (np.uint16, np.float32))


def tiff_page_tags(layer: ArrayInfo, pixel: tuple[float, float, float], *, imagej: bool) -> dict[str, Any]:
    """Return the arguments of `tifffile` for colours and voxel size; with `imagej` in the form that ImageJ reads."""
    width, height, depth = pixel
    tags: dict[str, Any] = {"photometric": "rgb" if layer.channels else "minisblack"}
    if layer.channels == 4:
        tags["extrasamples"] = ["unassalpha"]
    # ImageJ expects the resolution per unit, here per nm
    unit, per = ("NONE", 1.0) if imagej else ("CENTIMETER", 1e7)
    resolution = {"resolution": (per / width, per / height), "resolutionunit": unit}
    return {**tags, **resolution, "metadata": {"spacing": depth, "unit": "nm"}}


@dataclass(frozen=True)
class TiffFile(SingleFile):
    """All slices in one TIFF."""

    compression: str | None = "zlib"
    bigtiff: bool = False
    ome: bool = False

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {
            "format": "OME-TIFF" if self.ome else "TIFF",
            "axis": self.axis,
            "compression": self.compression,
            "bigtiff": self.bigtiff,
        }

    def problems(self) -> list[str]:
        """Return an error for arrays that exceed 32-bit offsets."""
        total = self.layer.grid.box.voxels * self.layer.voxel_bytes
        if self.bigtiff or total <= CLASSIC_BYTES:
            return []
        return [
            Message(
                f"a TIFF has at most 4 GiB; the array has {total / 2**30:,.1f} GiB before compression: give ",
                param("bigtiff", True),
                ", or a pattern such as 'stack/z{z:04d}.tif' for one file per slice",
            )
        ]

    def advice(self) -> str | None:
        """Return a note if most programs cannot read the distance of the slices from this file."""
        if self.ome or self._is_imagej or self.layer.grid.shape[self.axis] == 1:
            return None
        why = "BigTIFF" if self.bigtiff and is_imagej_type(self.layer) else f"values of dtype {self.layer.dtype}"
        other = ".ome.zarr" if _is_unsupported_by_ome(self.layer) else ".ome.tif"
        return (
            f"only tifffile reads the distance of the slices, {self.pixel[2]:g} nm, from this file, because ImageJ "
            f"does not support {why}; a name that ends in {other} stores it for other programs"
        )

    @property
    def is_uncompressed(self) -> bool:
        """Whether pages are uncompressed."""
        return self.compression is None

    def page(self, plane: Array) -> bytes:
        """Return the pixels of a slice, compressed as in the file."""
        data = shown_values(plane).tobytes()
        return zlib.compress(data, 6) if self.compression else data

    def assemble(self, place: Place, path: str) -> None:
        """Write the pages into one file."""
        import tifffile

        count = self.layer.grid.shape[self.axis]
        dtype = np.dtype(np.uint8) if self.layer.dtype == np.bool_ else self.layer.dtype
        samples = (
            (self.layer.channels,) if self.layer.channels else (1,) if self._is_one_wide and self._is_imagej else ()
        )
        shape = (count, *self.picture_shape, *samples)
        # without these arguments, tifffile writes slices that are one voxel wide as the rows of a single page
        narrow: dict[str, Any] = {"planarconfig": "contig", "extrasamples": ()} if self._is_one_wide else {}
        with tifffile.TiffWriter(path, bigtiff=self.bigtiff, ome=self.ome, imagej=self._is_imagej) as writer:
            writer.write(
                self._pages(place, shape[1:], dtype),
                shape=shape,
                dtype=dtype,
                compression=self.compression,
                # one strip per page, because each page is already compressed as a whole
                rowsperstrip=self.picture_shape[0],
                **self._tags(),
                **({} if self._is_imagej else narrow),
            )

    @property
    def _is_imagej(self) -> bool:
        return not self.ome and not self.bigtiff and is_imagej_type(self.layer)

    def _tags(self) -> dict[str, Any]:
        tags = tiff_page_tags(self.layer, self.pixel, imagej=self._is_imagej)
        width, height, depth = self.pixel
        if self.ome:
            # a fixed identifier, so that equal exports give equal bytes
            name = f"imageryxr {self.layer.grid} {self.describe()}"
            tags["metadata"] = {
                "axes": "ZYXS" if self.layer.channels else "ZYX",
                "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, name)}",
                "PhysicalSizeX": width, "PhysicalSizeXUnit": "nm",
                "PhysicalSizeY": height, "PhysicalSizeYUnit": "nm",
                "PhysicalSizeZ": depth, "PhysicalSizeZUnit": "nm",
            }  # fmt: skip
        else:
            samples = self.layer.channels or (self._is_one_wide and self._is_imagej)
            tags["metadata"] = {**tags["metadata"], "axes": "ZYXS" if samples else "ZYX"}
        return tags

    @property
    def _is_one_wide(self) -> bool:
        """Whether slices have no channels and are one voxel wide."""
        return not self.layer.channels and self.picture_shape[1] == 1

    def _pages(self, place: Place, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Any]:
        for data in self.read_pages(place):
            yield data if self.compression else np.frombuffer(data, dtype).reshape(shape)


def _is_unsupported_by_ome(layer: ArrayInfo) -> bool:
    """Return whether OME-TIFF cannot store values of this type."""
    return (layer.dtype.itemsize > 4 and layer.dtype.kind in "iu") or layer.dtype == np.float16


def tiff_file(
    place: str, layer: ArrayInfo, *, axis: str = "z", compression: str | None = "zlib", bigtiff: bool = False
) -> TiffFile:
    """Return the TIFF at a path, or raise `OptionError`."""
    check_type(layer)
    ome = place.lower().endswith((".ome.tif", ".ome.tiff"))
    if ome and _is_unsupported_by_ome(layer) and layer.dtype.kind in "iu":
        raise OptionError(
            f"ids of dtype {layer.dtype} cannot be stored as OME-TIFF, whose integers have at most 32 bits; export "
            "them to .ome.zarr, precomputed:// or a plain .tif"
        )
    if ome and _is_unsupported_by_ome(layer):
        raise OptionError(
            "values of dtype float16 cannot be stored as OME-TIFF",
            Wording(": give array.astype('float32'), or a plain .tif", "; write a plain .tif"),
        )
    number, kind = single_file_axis(axis), check_compression(compression)
    return TiffFile(place, target_root(place), layer, number, kind, check_flag("bigtiff", bigtiff), ome)
