"""Legible text and contrasting colours on pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from imageryxr.core.colors import RGBA
from imageryxr.errors import Message, Wording, warn

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE: RGBA = (255, 255, 255, 255)
BLACK: RGBA = (0, 0, 0, 255)


#: Height in pixels below which text is illegible.
LEGIBLE = 9


@lru_cache(maxsize=64)
def font(size: int) -> Any:
    """Return the font for a size in pixels."""
    # The font that Matplotlib includes has the character µ, which Pillow's own font lacks.
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def one_line(text: str) -> str:
    """Return a text without line breaks, which the font renderer cannot lay out."""
    return " ".join(text.splitlines())


def _stroke_width(size: int) -> int:
    return max(1, round(size / 14))


def text_extent(text: str, size: int) -> tuple[int, int]:
    """Return the width and height in pixels of a text with its rim."""
    left, top, right, bottom = font(size).getbbox(text, stroke_width=_stroke_width(size))
    return math.ceil(right - left), math.ceil(bottom - top)


def text_top(text: str, size: int) -> int:
    """Return the distance in pixels from the top of the line to the top of the highest letter."""
    top: float = font(size).getbbox(text, stroke_width=_stroke_width(size))[1]
    return math.floor(top)


def fit_text_size(text: str, size: int, width: int, height: int) -> int:
    """Return the largest size, up to ``size``, at which a text fits; 0 if it would be illegible.

    Warns
    -----
    ImageryWarning
        If the result is 0, so that the text is omitted.
    """
    for fits in range(size, min(size, LEGIBLE) - 1, -1):
        wide, high = text_extent(text, fits)
        if wide <= width and high <= height:
            return fits
    warn(
        Message(
            f"the text {text!r} is omitted because it would be less than {LEGIBLE} pixels high, which ",
            "is illegible; enlarge the picture first, e.g. with ",
            Wording("to_pil(rgba, scale=4)", "--scale 4"),
        )
    )
    return 0


def draw_text(picture: Image, at: tuple[int, int], text: str, size: int, color: RGBA) -> None:
    """Draw a text with a rim of the opposite tone, which keeps it legible over any background."""
    from PIL import Image, ImageDraw

    face, stroke = font(size), _stroke_width(size)
    left, top, _, _ = face.getbbox(text, stroke_width=stroke)
    rim = BLACK if luminance(color) > MIDDLE else WHITE
    for ink, width in ((rim, stroke), (color, 0)):
        # Drawn through a mask, because Pillow blends the edges of text with the colour of transparent pixels.
        mask = Image.new("L", picture.size, 0)
        ImageDraw.Draw(mask).text((at[0] - left, at[1] - top), text, fill=ink[3], font=face, stroke_width=width)
        layer = Image.new("RGBA", picture.size, (*ink[:3], 0))
        layer.putalpha(mask)
        picture.alpha_composite(layer)


# Luminance to which black and white have the same contrast (WCAG: (L + .05)² = 1.05 · .05).
MIDDLE = 0.179


def luminance(color: Sequence[float]) -> float:
    """Return the relative luminance of an sRGB colour: 0 for black, 1 for white."""
    red, green, blue = (math.pow(part / 255, 2.2) for part in color[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrasting_color(region: Image, behind: RGBA | None) -> RGBA:
    """Return black or white, whichever has more contrast to a region of a picture."""
    from PIL import Image, ImageStat

    ground = Image.new("RGBA", region.size, behind or WHITE)
    ground.alpha_composite(region)
    return WHITE if luminance(ImageStat.Stat(ground.convert("RGB")).mean) < MIDDLE else BLACK


def has_low_contrast(region: Image, color: RGBA) -> bool:
    """Return whether a colour's contrast (WCAG) is below 2 in at least 5 % of a region."""
    import numpy as np

    seen = (np.asarray(region.convert("RGB"), dtype=np.float64) / 255) ** 2.2 @ np.array([0.2126, 0.7152, 0.0722])
    own = luminance(color)
    contrast = (np.maximum(seen, own) + 0.05) / (np.minimum(seen, own) + 0.05)
    return bool((contrast < 2).mean() >= 0.05)
