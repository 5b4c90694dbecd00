"""What a picture holds beside its pixels: how large they are, where something is drawn, how high its text is."""

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
# Samples along each side by which a copy of a picture is told from a part or an enlargement of it.
_SAMPLES = 32


@dataclass(frozen=True)
class Geometry:
    """What is true of one picture, and of copies of it that show the same."""

    size: tuple[int, int]
    nm: tuple[float, float] | None
    """Nanometres across and down a pixel."""
    taken: tuple[Rect, ...] = ()
    """Where insets, scale bars and legends are."""
    text: int | None = None
    """Height in pixels of the smallest text."""
    samples: bytes = field(default=b"", repr=False)
    owner: Any = field(default=None, compare=False, repr=False)
    """A weak reference to the picture."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Geometry, (self.size, self.nm, self.taken, self.text, self.samples))

    def holds_for(self, picture: Image) -> bool:
        """Return whether it is of this picture: Pillow keeps ``info`` when it crops and resizes."""
        if picture.size != self.size:
            return False
        if self.owner is not None and self.owner() is picture:
            return True
        return _show_the_same(self.samples, _sampled(picture))


def geometry_of(picture: Any) -> Geometry | None:
    """Return what a picture of this package holds; None of any other, and of one that was cropped or resized."""
    held = getattr(picture, "info", {}).get(_KEY)
    return held if isinstance(held, Geometry) and held.holds_for(picture) else None


def outdated_nm(picture: Any) -> str | None:
    """Return the pixel size that a picture holds and that may not be its own."""
    value = getattr(picture, "info", {}).get(NM)
    return None if value is None else f"{float(value):g}" if isinstance(value, int | float) else str(value)


def with_geometry(
    picture: Image, nm: tuple[float, float] | None, taken: Iterable[Rect] = (), text: int | None = None
) -> Image:
    """Return the picture itself, with what is true of it."""
    held = Geometry(picture.size, nm, tuple(taken), text, _sampled(picture), weakref.ref(picture))
    picture.info.pop(NM, None)
    if nm is not None:
        picture.info[NM] = nm[0]
    picture.info[_KEY] = held
    return picture


def smallest(*sizes: int | None) -> int | None:
    """Return the smallest height of text among those that there are."""
    return min((size for size in sizes if size), default=None)


def overlap(a: Rect, b: Rect) -> int:
    """Return how many pixels two rectangles share."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, across) * max(0, down)


def _sampled(picture: Image) -> bytes:
    from PIL.Image import Resampling

    small = picture.resize((_SAMPLES, _SAMPLES), Resampling.NEAREST)
    return (small.convert("RGB") if small.mode in ("RGBA", "P") else small).convert("L").tobytes()


def _show_the_same(one: bytes, other: bytes) -> bool:
    """Return whether samples agree wherever there is something to see; a picture of one tone shows nothing."""
    a, b = (np.frombuffer(samples, np.uint8).astype(int) for samples in (one, other))
    if len(a) != len(b):
        return False
    ground = int(np.bincount(a).argmax())
    seen = (abs(a - ground) > 2) | (abs(b - ground) > 2)
    return bool(seen.sum() >= 8 and (abs(a - b)[seen] <= 2).mean() >= 0.8)
