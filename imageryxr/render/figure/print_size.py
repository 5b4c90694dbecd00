"""Sizes in print: points and millimetres as pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from imageryxr.errors import OptionError, warn
from imageryxr.render.figure.text import LEGIBLE

#: What journals ask of pictures with text on them.
PRINT_DPI = 300.0
#: Points below which journals send text back.
LEAST_POINTS = 5.0


def check_length(name: str, value: Any, unit: str = "nm") -> float:
    """Return a positive length, or raise `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        raise OptionError(f"{name}={value!r} is not a length in {unit}; write a number above 0")
    return float(value)


def pixels_per_point(label_size: Any, label_pt: Any, width_mm: Any, width: float) -> float | None:
    """Return how many pixels a point is on a picture of some width in pixels; None if no size is given in points.

    Raises
    ------
    OptionError
        If the height of text is given twice, or a printed width without points.
    """
    if label_pt is None:
        if width_mm is not None:
            raise OptionError(f"width_mm={width_mm!r} is the printed width that label_pt counts for; give label_pt=7")
        return None
    if label_size is not None:
        raise OptionError("label_size and label_pt are the same in pixels and in points; give one of them")
    check_length("label_pt", label_pt, "points")
    dpi = PRINT_DPI if width_mm is None else width / (check_length("width_mm", width_mm, "mm") / 25.4)
    return dpi / 72


def label_pixels(label_size: int | None, label_pt: Any, width_mm: Any, width: float) -> int | None:
    """Return the height of text in pixels, given in pixels or in points; None if it is not given."""
    scale = pixels_per_point(label_size, label_pt, width_mm, width)
    return label_size if scale is None else check_legible(label_pt, max(1, round(label_pt * scale)))


def check_legible(label_pt: float, pixels: int) -> int:
    """Return the height of text in pixels; warn if it cannot be read."""
    if pixels < LEGIBLE:
        warn(
            f"label_pt={label_pt:g} is {pixels} pixels on this picture, and text of less than {LEGIBLE} cannot be "
            f"read; enlarge the picture first, with scale={math.ceil(LEGIBLE / pixels)}"
        )
    return pixels


def points_of(text: int, dpi: float) -> float:
    """Return the height in points of text that is so many pixels high."""
    return text * 72 / dpi
