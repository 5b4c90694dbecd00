"""Animated GIFs with a frame per slice, written with Pillow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imageryxr.export.plan.regions import Regions
from imageryxr.export.store.local import Place
from imageryxr.export.targets.base import ArrayInfo
from imageryxr.export.targets.frames import Film, check_film
from imageryxr.export.targets.slices import single_file_axis
from imageryxr.graph.expr import Array

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Gif(Film):
    """An animated GIF whose frames are slices."""

    suffixes = (".gif",)
    noun = "GIFs"
    largest = 65535  # the format has 16-bit sizes

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {"format": "gif", "axis": self.axis, "fps": self.fps}

    def page(self, index: int, plane: Array) -> bytes:
        """Return the frame's grey values or colours."""
        return zlib.compress(np.ascontiguousarray(self.frame(plane)).tobytes(), 1)

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

        shape = (*self.picture_shape, 3) if self.layer.channels else self.picture_shape
        for pixels in self.read_frames(place, shape):
            frame = Image.fromarray(pixels)
            yield frame.quantize(256) if self.layer.channels else frame


def gif(place: str, root: str, layer: ArrayInfo, *, axis: str = "z", fps: Any = 12.0) -> Gif:
    """Return the animated GIF at a path.

    Raises
    ------
    OptionError
        If the values are not a picture, or an option is outside its range.
    """
    rate = check_film(layer, "a GIF", fps, 50, ", the limit of viewers")
    return Gif(place, root, layer, single_file_axis(axis), rate)
