"""Stacks of pictures: a PNG or TIFF per slice."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from imageryxr.core.validate import check_whole
from imageryxr.errors import OptionError, Wording
from imageryxr.export.targets.base import ArrayInfo
from imageryxr.export.targets.slices import Stack, shown_values, split_pattern
from imageryxr.export.targets.tiff import check_compression, check_type, is_imagej_type, tiff_page_tags
from imageryxr.graph.expr import Array


@dataclass(frozen=True)
class PngStack(Stack):
    """A PNG per slice."""

    compress_level: int = 3

    suffixes = (".png",)

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {"format": "PNG", "pattern": self.pattern, "compress_level": self.compress_level}

    def page(self, index: int, plane: Array) -> bytes:
        """Return the PNG, with the pixel size in pixels per metre if the format can represent it."""
        from imageryxr.render.figure import array_to_pil

        width, height, _ = self.pixel
        # Pixels per metre are whole 31-bit numbers, enough down to half a nanometre; Pillow takes dots per inch.
        dpi = tuple(1e9 / size * 0.0254 for size in (width, height))
        extra: dict[str, Any] = {"dpi": dpi} if max(dpi) / 0.0254 < 2**31 else {}
        file = io.BytesIO()
        array_to_pil(plane).save(file, format="PNG", compress_level=self.compress_level, **extra)
        return file.getvalue()


def png_stack(place: str, layer: ArrayInfo, *, compress_level: int = 3) -> PngStack:
    """Return the PNG stack of a name pattern.

    Raises
    ------
    OptionError
        If the pattern does not name exactly one axis, or the values are not a picture.
    """
    root, pattern, axis = split_pattern(place)
    if layer.channels not in (0, 4) or (layer.channels and layer.dtype not in (np.uint8, np.bool_)):
        raise OptionError(
            f"{layer.channels} channels of dtype {layer.dtype} cannot be stored as PNG, which stores RGBA of uint8 or "
            "grey values of up to 16 bits (array.isel(rgba=0)); export other arrays to .ome.zarr"
        )
    if layer.dtype not in (np.uint8, np.uint16, np.bool_):
        raise OptionError(
            f"values of dtype {layer.dtype} cannot be stored as PNG; ",
            Wording(
                "make a picture with to_rgba(image, contrast_limits=…) or overlay(image, segmentation)",
                "leave --raw out, which draws them (with --contrast low,high for deep images)",
            ),
            ", or export ids to .ome.zarr",
        )
    check_whole("compress_level", compress_level, 0, 9, expected="0 (large and fast) to 9 (small and slow)")
    target = PngStack(place, root, layer, axis, pattern, compress_level)
    target.check_names()
    return target


@dataclass(frozen=True)
class TiffStack(Stack):
    """A TIFF per slice."""

    compression: str | None = "zlib"

    suffixes = (".tif", ".tiff")

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {"format": "TIFF", "pattern": self.pattern, "compression": self.compression}

    @property
    def plain(self) -> bool:
        """Whether slices are uncompressed."""
        return self.compression is None

    def page(self, index: int, plane: Array) -> bytes:
        """Return the TIFF, with the pixel size in the form that ImageJ reads."""
        import tifffile

        file = io.BytesIO()
        plane = np.ascontiguousarray(shown_values(plane))
        imagej = is_imagej_type(self.layer)
        tags = tiff_page_tags(self.layer, self.pixel, imagej=imagej)
        tifffile.imwrite(file, plane, compression=self.compression, imagej=imagej, **tags)
        return file.getvalue()


def tiff_stack(place: str, layer: ArrayInfo, *, compression: str | None = "zlib") -> TiffStack:
    """Return the TIFF stack of a name pattern.

    Raises
    ------
    OptionError
        If the pattern does not name exactly one axis, the compression is unknown, or the values are not numbers.
    """
    root, pattern, axis = split_pattern(place)
    check_type(layer)
    target = TiffStack(place, root, layer, axis, pattern, check_compression(compression))
    target.check_names()
    return target
