"""Text and colours that stay legible over a picture."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from imageryxr.core.colors import RGBA
from imageryxr.errors import ImageryWarning

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE: RGBA = (255, 255, 255, 255)
BLACK: RGBA = (0, 0, 0, 255)


#: Height in pixels below which nobody can read a text that is set in pixels.
LEGIBLE = 9


@lru_cache(maxsize=64)
def font(size: int) -> Any:
    """Return the font in a size in pixels."""
    # Pillow's own font has no µ; Matplotlib brings one that has.
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _stroke(size: int) -> int:
    return max(1, round(size / 14))


def text_extent(text: str, size: int) -> tuple[int, int]:
    """Measure a text with its rim: pixels across and down."""
    left, top, right, bottom = font(size).getbbox(text, stroke_width=_stroke(size))
    return math.ceil(right - left), math.ceil(bottom - top)


def top_of(text: str, size: int) -> int:
    """Return how far below the line's own top the highest letter of a text begins."""
    top: float = font(size).getbbox(text, stroke_width=_stroke(size))[1]
    return math.floor(top)


def fitting(text: str, size: int, width: int, height: int) -> int:
    """Give the largest size of a text, up to the one asked for, that fits; 0 if only one that nobody can read does.

    Warns
    -----
    ImageryWarning
        If the text is left out for that.
    """
    for fits in range(size, min(size, LEGIBLE) - 1, -1):
        wide, high = text_extent(text, fits)
        if wide <= width and high <= height:
            return fits
    warnings.warn(
        f"the text {text!r} is left out: where it belongs it would be less than {LEGIBLE} pixels high, which nobody "
        "can read; enlarge the picture first, as with to_pil(rgba, scale=4)",
        ImageryWarning,
        stacklevel=4,
    )
    return 0


def write(picture: Image, at: tuple[int, int], text: str, size: int, color: RGBA) -> None:
    """Write a text, with a rim of the opposite tone, which keeps it legible where membranes run under it."""
    from PIL import Image, ImageDraw

    face, stroke = font(size), _stroke(size)
    left, top, _, _ = face.getbbox(text, stroke_width=stroke)
    rim = BLACK if luminance(color) > MIDDLE else WHITE
    for ink, width in ((rim, stroke), (color, 0)):
        # Through a mask, for text drawn into RGBA mixes its edges with the colour that transparent pixels hide.
        mask = Image.new("L", picture.size, 0)
        ImageDraw.Draw(mask).text((at[0] - left, at[1] - top), text, fill=ink[3], font=face, stroke_width=width)
        layer = Image.new("RGBA", picture.size, (*ink[:3], 0))
        layer.putalpha(mask)
        picture.alpha_composite(layer)


# The luminance against which black and white have the same contrast (WCAG: (L + .05)² = 1.05 · .05).
MIDDLE = 0.179


def luminance(color: Sequence[float]) -> float:
    """Give the relative luminance of an sRGB colour: 0 black, 1 white."""
    red, green, blue = (math.pow(part / 255, 2.2) for part in color[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrasting(region: Image, behind: RGBA | None) -> RGBA:
    """Choose black or white, whichever stands out more from a region of a picture."""
    from PIL import Image, ImageStat

    ground = Image.new("RGBA", region.size, behind or WHITE)
    ground.alpha_composite(region)
    return WHITE if luminance(ImageStat.Stat(ground.convert("RGB")).mean) < MIDDLE else BLACK


def drowns(region: Image, color: RGBA) -> bool:
    """Tell whether a colour is lost against a twentieth of a region or more: contrast below 2 (WCAG)."""
    import numpy as np

    seen = (np.asarray(region.convert("RGB"), dtype=np.float64) / 255) ** 2.2 @ np.array([0.2126, 0.7152, 0.0722])
    own = luminance(color)
    contrast = (np.maximum(seen, own) + 0.05) / (np.minimum(seen, own) + 0.05)
    return bool((contrast < 2).mean() >= 0.05)
