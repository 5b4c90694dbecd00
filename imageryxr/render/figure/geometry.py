"""Metadata of a picture: size of its pixels, areas that are already used, height of its text."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from imageryxr.core.colors.record import DRAWN_COLORS
from imageryxr.core.display import ANNOTATION_IDS, ANNOTATION_SCALE
from imageryxr.core.grid import Grid

if TYPE_CHECKING:
    from PIL.Image import Image

Rect: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels; right and bottom exclusive."""

NM = "nm_per_pixel"
_KEY = "imageryxr"
KEPT_ATTRS = ("plane_axes", DRAWN_COLORS, ANNOTATION_SCALE, ANNOTATION_IDS)
"""Attrs of an array that a picture of it keeps: the directions of a plane, and the colours that were drawn."""
# Samples per side, compared to distinguish a copy of a picture from a crop or an enlargement.
_SAMPLES = 32


@dataclass(frozen=True)
class View:
    """A rectangle of a picture that shows a slice of a volume."""

    rect: Rect
    grid: Grid
    """Grid of its pixels, which has one voxel along ``axis``."""
    axis: int
    """The axis across the slice: 0 for z, 1 for y, 2 for x."""
    attrs: Mapping[str, Any]
    """Those of `KEPT_ATTRS` that the array has."""
    covered: tuple[Rect, ...] = ()
    """Areas of the picture that show other things, such as scale bars."""

    def shift(self, left: int, top: int) -> View:
        """Return the view at another place in a picture."""

        def moved(rect: Rect) -> Rect:
            return rect[0] + left, rect[1] + top, rect[2] + left, rect[3] + top

        return replace(self, rect=moved(self.rect), covered=tuple(map(moved, self.covered)))

    def cover(self, rect: Rect) -> View:
        """Return the view with one more covered area, such as that of an inset, which shows other data."""
        return replace(self, covered=(*self.covered, rect))


@dataclass(frozen=True)
class Geometry:
    """Metadata of one picture and of copies that show the same."""

    size: tuple[int, int]
    nm: tuple[float, float] | None
    """Width and height of a pixel in nm."""
    taken: tuple[Rect, ...] = ()
    """Areas of insets, scale bars and legends."""
    text: int | None = None
    """Height in pixels of the smallest text."""
    views: tuple[View, ...] = ()
    """The slices that the picture shows."""
    samples: bytes = field(default=b"", repr=False)
    owner: Any = field(default=None, compare=False, repr=False)
    """A weak reference to the picture."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Geometry, (self.size, self.nm, self.taken, self.text, self.views, self.samples))

    def is_valid_for(self, picture: Image) -> bool:
        """Return whether the metadata belong to a picture; Pillow keeps ``info`` when it crops and resizes."""
        if picture.size != self.size:
            return False
        if self.owner is not None and self.owner() is picture:
            return True
        return _is_same_picture(self.samples, _sample_pixels(picture))


def geometry_of(picture: Any) -> Geometry | None:
    """Return the metadata of a picture; None for pictures of other origin and for cropped or resized ones."""
    geometry = getattr(picture, "info", {}).get(_KEY)
    return geometry if isinstance(geometry, Geometry) and geometry.is_valid_for(picture) else None


def stale_pixel_size(picture: Any) -> str | None:
    """Return the pixel size in a picture's ``info``, which may be outdated by cropping or resizing."""
    value = getattr(picture, "info", {}).get(NM)
    return None if value is None else f"{float(value):g}" if isinstance(value, int | float) else str(value)


def views_of(picture: Any) -> tuple[View, ...]:
    """Return the slices that a picture shows; none for pictures of other origin and for cropped or resized ones."""
    geometry = geometry_of(picture)
    return () if geometry is None else geometry.views


def attach_geometry(
    picture: Image,
    nm: tuple[float, float] | None,
    taken: Iterable[Rect] = (),
    text: int | None = None,
    views: Iterable[View] = (),
) -> Image:
    """Store metadata in a picture and return the same picture."""
    samples, owner = _sample_pixels(picture), weakref.ref(picture)
    geometry = Geometry(picture.size, nm, tuple(taken), text, tuple(views), samples, owner)
    picture.info.pop(NM, None)
    if nm is not None:
        picture.info[NM] = nm[0]
    picture.info[_KEY] = geometry
    return picture


def smallest_text(*sizes: int | None) -> int | None:
    """Return the smallest of several text heights; None if there is no text."""
    return min((size for size in sizes if size), default=None)


def overlap_area(a: Rect, b: Rect) -> int:
    """Return the number of pixels that two rectangles share."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, across) * max(0, down)


def _sample_pixels(picture: Image) -> bytes:
    from PIL.Image import Resampling

    small = picture.resize((_SAMPLES, _SAMPLES), Resampling.NEAREST)
    return (small.convert("RGB") if small.mode in ("RGBA", "P") else small).convert("L").tobytes()


def _is_same_picture(one: bytes, other: bytes) -> bool:
    """Return whether samples agree outside of the background; False for pictures of one tone."""
    a, b = (np.frombuffer(samples, np.uint8).astype(int) for samples in (one, other))
    if len(a) != len(b):
        return False
    ground = int(np.bincount(a).argmax())
    seen = (abs(a - ground) > 2) | (abs(b - ground) > 2)
    return bool(seen.sum() >= 8 and (abs(a - b)[seen] <= 2).mean() >= 0.8)
