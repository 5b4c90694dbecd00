"""Metadata of a picture: size of its pixels, areas that are already used, height of its text."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Rect: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels; right and bottom exclusive."""

NM = "nm_per_pixel"
_KEY = "imageryxr"
# Samples per side, compared to distinguish a copy of a picture from a crop or an enlargement.
_SAMPLES = 32


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
    samples: bytes = field(default=b"", repr=False)
    owner: Any = field(default=None, compare=False, repr=False)
    """A weak reference to the picture."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Geometry, (self.size, self.nm, self.taken, self.text, self.samples))

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


def attach_geometry(
    picture: Image, nm: tuple[float, float] | None, taken: Iterable[Rect] = (), text: int | None = None
) -> Image:
    """Store metadata in a picture and return the same picture."""
    geometry = Geometry(picture.size, nm, tuple(taken), text, _sample_pixels(picture), weakref.ref(picture))
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
