"""Animated GIFs with a frame per slice, written with Pillow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from imageryxr.errors import OptionError, Wording, param
from imageryxr.export.plan.regions import Regions
from imageryxr.export.store.local import Place
from imageryxr.export.targets.base import ArrayInfo
from imageryxr.export.targets.slices import SliceTarget, single_file_axis
from imageryxr.graph.expr import Array

if TYPE_CHECKING:
    from PIL.Image import Image

# The format has 16-bit sizes.
LARGEST = 65535


@dataclass(frozen=True)
class Gif(SliceTarget):
    """An animated GIF whose frames are slices."""

    fps: float = 12.0

    kind = "single"
    suffixes = (".gif",)

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {"format": "gif", "axis": self.axis, "fps": self.fps}

    def problems(self) -> list[str]:
        """Return an error for frames that are larger than the format allows."""
        rows, columns = self.picture_shape
        if max(rows, columns) <= LARGEST:
            return []
        return [f"a frame would be {columns} × {rows} pixels; GIFs have at most {LARGEST}: export a smaller box"]

    def occupied(self) -> list[str]:
        """Return the file itself."""
        return [""]

    def key(self, index: int) -> str:
        """Return the name of a frame's temporary file."""
        return f"{index:08d}.frame"

    def page(self, index: int, plane: Array) -> bytes:
        """Return the frame's grey values, or its colours over black, because GIFs have no partial transparency."""
        if plane.dtype == np.bool_:
            plane = plane.astype(np.uint8) * 255
        if self.layer.channels:
            plane = ((plane[..., :3].astype(np.uint16) * plane[..., 3:] + 127) // 255).astype(np.uint8)
        return zlib.compress(np.ascontiguousarray(plane).tobytes(), 1)

    def assemble(self, regions: Regions, place: Place, path: str) -> None:
        """Write the frames in order, repeated for ever, with at most 256 colours per frame."""
        frames = self._frames(place)
        first = next(frames)
        first.save(
            path, format="GIF", save_all=True, append_images=frames, duration=round(1000 / self.fps), loop=0,
            optimize=False, disposal=1,
        )  # fmt: skip

    def _frames(self, place: Place) -> Iterator[Image]:
        from PIL import Image

        rows, columns = self.picture_shape
        shape = (rows, columns, 3) if self.layer.channels else (rows, columns)
        for i in range(self.layer.grid.shape[self.axis]):
            data = zlib.decompress(self.read_page(place, i))
            frame = Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape))
            yield frame.quantize(256) if self.layer.channels else frame


def gif(place: str, root: str, layer: ArrayInfo, *, axis: str = "z", fps: Any = 12.0) -> Gif:
    """Return the animated GIF at a path.

    Raises
    ------
    OptionError
        If the values are not a picture, or an option is outside its range.
    """
    if layer.channels not in (0, 4) or layer.dtype not in (np.uint8, np.bool_):
        raise OptionError(
            f"values of dtype {layer.dtype} cannot be frames of a GIF; ",
            Wording(
                "make a picture with to_rgba(image, contrast_limits=…) or overlay(image, segmentation)",
                "leave --raw out, which draws them (with --contrast low,high for deep images)",
            ),
        )
    if isinstance(fps, bool) or not isinstance(fps, Real) or not 0 < float(fps) <= 50:
        raise OptionError(param("fps", fps), " must be frames per second, above 0 and up to 50, the limit of viewers")
    return Gif(place, root, layer, single_file_axis(axis), float(fps))
