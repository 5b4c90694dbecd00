"""Stacks of pictures: a PNG or TIFF per slice, named by a pattern."""

from __future__ import annotations

import io
import math
import os
import re
import string
from dataclasses import dataclass
from typing import Any

import numpy as np

from imageryxr.core.bbox import DIMS
from imageryxr.core.fork import cached_property
from imageryxr.core.grid import Axis
from imageryxr.core.validate import check_whole
from imageryxr.errors import OptionError, Wording, param
from imageryxr.export.commit.manifest import SliceNames
from imageryxr.export.store.local import is_remote
from imageryxr.export.targets.base import DRAW_ADVICE, ArrayInfo, SliceTarget, shown_values
from imageryxr.export.targets.tiff import check_compression, check_type, is_imagej_type, tiff_page_tags
from imageryxr.graph.expr import Array

# Rounding error of offsets that are computed from coordinates, in voxels.
INDEX_SLACK = 1e-6


@dataclass(frozen=True)
class Stack(SliceTarget):
    """A stack of pictures, one per slice, named by a pattern."""

    pattern: str
    """The pattern, relative to ``root``."""

    kind = "files"

    def key(self, index: int) -> str:
        """Return the name of a slice's file."""
        return fill_pattern(self.pattern, DIMS[self.axis], index, self._across)

    @cached_property
    def _across(self) -> Axis:
        """The axis across the slices."""
        return self.layer.grid.axes[self.axis]

    def names(self) -> SliceNames:
        """Return the pattern, and the slices that it is filled in with."""
        axis = self._across
        return SliceNames(self.pattern, DIMS[self.axis], axis.size, axis.resolution, axis.offset)

    def keys_from_names(self, names: SliceNames) -> list[str]:
        """Return the files of another stack of this pattern."""
        return slice_names(names) if (names.pattern, names.axis) == (self.pattern, DIMS[self.axis]) else []

    def identifying_keys(self) -> list[str]:
        """Return the names of all files."""
        return [self.key(i) for i in range(self._across.size)]

    def check_names(self) -> None:
        """Raise `OptionError` if the pattern cannot be filled in, or gives two slices the same name."""
        try:
            names = self.identifying_keys()
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


# ---------------------------------------------------------------------------------------------------------
# patterns


def fill_pattern(pattern: str, dim: str, index: int, axis: Axis, **more: object) -> str:
    """Return the name of a slice across a dim, with the values of other fields."""
    values: dict[str, object] = {dim: index, **more}
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
        return [fill_pattern(names.pattern, names.axis, i, axis) for i in range(axis.size)]
    except (ValueError, LookupError, AttributeError, TypeError):
        return []


def split_pattern(text: str) -> tuple[str, str, int]:
    """Return the root folder, the pattern below it, and the axis of a name pattern, or raise `OptionError`."""
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
        one = Wording(f"save_figure(array, {text!r})", f"imageryxr figure {text}")
        local = () if is_remote(text) else ("; for one slice write ", one)
        found = ("; it names ", str(sorted(axes))) if axes else local
        raise OptionError(
            param("target", text),
            " must name one axis to slice along, by index or by nm: e.g. ",
            "'stack/z{z:04d}.png', 'stack/z{z_index:06d}.png', 'stack/{x_nm:.0f}nm.png'",
            *found,
        )
    text = os.path.expanduser(text) if text.startswith("~") else text
    fixed = text.split("{", 1)[0]
    folder, _, _ = fixed.rpartition("/")
    root = folder if is_remote(text) else os.path.abspath(folder or ("/" if fixed.startswith("/") else "."))
    pattern = text[len(folder) + 1 :] if "/" in fixed else text
    return root, pattern, DIMS.index(axes.pop())


# ---------------------------------------------------------------------------------------------------------
# formats


@dataclass(frozen=True)
class PngStack(Stack):
    """A PNG per slice."""

    compress_level: int = 3

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {"format": "PNG", "pattern": self.pattern, "compress_level": self.compress_level}

    def page(self, plane: Array) -> bytes:
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
    """Return the PNG stack of a name pattern, or raise `OptionError`."""
    root, pattern, axis = split_pattern(place)
    if layer.channels not in (0, 4) or (layer.channels and layer.dtype not in (np.uint8, np.bool_)):
        raise OptionError(
            f"{layer.channels} channels of dtype {layer.dtype} cannot be stored as PNG, which stores RGBA of uint8 or "
            "grey values of up to 16 bits (array.isel(rgba=0)); export other arrays to .ome.zarr"
        )
    if layer.dtype not in (np.uint8, np.uint16, np.bool_):
        raise OptionError(
            f"values of dtype {layer.dtype} cannot be stored as PNG; ",
            DRAW_ADVICE,
            ", or export ids to .ome.zarr",
        )
    level = check_whole("compress_level", compress_level, 0, 9, expected="0 (large and fast) to 9 (small and slow)")
    target = PngStack(place, root, layer, axis, pattern, level)
    target.check_names()
    return target


@dataclass(frozen=True)
class TiffStack(Stack):
    """A TIFF per slice."""

    compression: str | None = "zlib"

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {"format": "TIFF", "pattern": self.pattern, "compression": self.compression}

    @property
    def is_uncompressed(self) -> bool:
        """Whether slices are uncompressed."""
        return self.compression is None

    def page(self, plane: Array) -> bytes:
        """Return the TIFF, with the pixel size in the form that ImageJ reads."""
        import tifffile

        file = io.BytesIO()
        plane = np.ascontiguousarray(shown_values(plane))
        imagej = is_imagej_type(self.layer)
        tags = tiff_page_tags(self.layer, self.pixel, imagej=imagej)
        tifffile.imwrite(file, plane, compression=self.compression, imagej=imagej, **tags)
        return file.getvalue()


def tiff_stack(place: str, layer: ArrayInfo, *, compression: str | None = "zlib") -> TiffStack:
    """Return the TIFF stack of a name pattern, or raise `OptionError`."""
    root, pattern, axis = split_pattern(place)
    check_type(layer)
    target = TiffStack(place, root, layer, axis, pattern, check_compression(compression))
    target.check_names()
    return target
