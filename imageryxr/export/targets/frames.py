"""The base class of films: one frame per slice."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from imageryxr.core.validate import check_number
from imageryxr.errors import Message, OptionError, Wording
from imageryxr.export.store.local import Place
from imageryxr.export.targets.base import COARSER, ArrayInfo
from imageryxr.export.targets.slices import SingleFile, shown_values
from imageryxr.graph.expr import Array


@dataclass(frozen=True)
class Film(SingleFile):
    """A film whose frames are slices."""

    fps: float = 12.0

    noun: ClassVar[str]
    """Name of the format in errors, in the plural."""
    largest: ClassVar[int]
    """Pixels that a side of a frame may have."""

    def problems(self) -> list[str]:
        """Return an error for frames that are larger than the format allows."""
        rows, columns = self.picture_shape
        if max(rows, columns) <= self.largest:
            return []
        problem = f"a frame would be {columns} × {rows} pixels; {self.noun} have at most {self.largest}: "
        return [Message(problem, "export a smaller box, or ", COARSER)]

    def frame(self, plane: Array) -> Array:
        """Return grey values, or colours over black where they are transparent, because films have no alpha."""
        plane = shown_values(plane)
        if not self.layer.channels:
            return plane
        if (plane[..., 3] == 255).all():
            return plane[..., :3]
        return np.asarray(((plane[..., :3].astype(np.uint16) * plane[..., 3:] + 127) // 255).astype(np.uint8))

    def read_frames(self, place: Place, shape: tuple[int, ...]) -> Iterator[Array]:
        """Iterate over the pixels of the temporary files, each of a shape."""
        for data in self.read_pages(place):
            yield np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)


def check_film(layer: ArrayInfo, what: str, fps: Any, most: float, advice: str = "") -> float:
    """Return the frames per second, or raise `OptionError` if values or rate do not suit a film; ``what`` names it."""
    if layer.channels not in (0, 4):
        raise OptionError(f"{layer.channels} channels of dtype {layer.dtype} cannot be frames of {what}: give RGBA")
    if layer.dtype not in (np.uint8, np.bool_):
        raise OptionError(
            f"values of dtype {layer.dtype} cannot be frames of {what}; ",
            Wording(
                "make a picture with to_rgba(image, contrast_limits=…) or overlay(image, segmentation)",
                "leave --raw out, which draws them (with --contrast low,high for deep images)",
            ),
        )
    expected = f"frames per second, above 0 and up to {most}{advice}"
    return float(check_number("fps", fps, 0, most, above=0, expected=expected))
