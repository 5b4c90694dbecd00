"""Convert printed sizes (points, millimetres) to pixels."""

from __future__ import annotations

import math
from typing import Any

from imageryxr.core.validate import check_number, check_whole
from imageryxr.errors import Message, OptionError, param, warn
from imageryxr.render.figure.text import LEGIBLE

#: Pixels per inch that journals require in pictures with text.
PRINT_DPI = 300.0
#: Largest text height in pixels, below the limit of the font renderer.
TALLEST = 10_000
#: Smallest text height in points that journals accept.
LEAST_POINTS = 5.0


def check_length(name: str, value: Any, unit: str = "nm") -> float:
    """Return a positive length, or raise `OptionError`."""
    return float(check_number(name, value, above=0, unit=unit))


def pixels_per_point(label_size: Any, label_pt: Any, width_mm: Any, width: float) -> float | None:
    """Return the number of pixels per point on a picture ``width`` pixels wide; None if ``label_pt`` is None.

    Raises `OptionError` if both ``label_size`` and ``label_pt`` are given, or ``width_mm`` without ``label_pt``.
    """
    if label_pt is None:
        if width_mm is not None:
            raise OptionError(
                param("width_mm", width_mm), " is only used together with label_pt; give ", param("label_pt", 7)
            )
        return None
    if label_size is not None:
        raise OptionError("label_size (pixels) and label_pt (points) cannot be combined; give one of them")
    check_length("label_pt", label_pt, "points")
    dpi = PRINT_DPI if width_mm is None else width / (check_length("width_mm", width_mm, "mm") / 25.4)
    return dpi / 72


def label_pixels(label_size: int | None, label_pt: Any, width_mm: Any, width: float) -> int | None:
    """Return the height of text in pixels from ``label_size`` or ``label_pt``; None if both are None."""
    scale = pixels_per_point(label_size, label_pt, width_mm, width)
    if scale is None:
        return None if label_size is None else check_label_size(label_size)
    pixels = float(label_pt) * scale
    if pixels > TALLEST:
        raise OptionError(
            param("label_pt", label_pt), f" makes text more than {TALLEST:,} pixels high; give a smaller one"
        )
    return check_legible(label_pt, max(1, round(pixels)))


def check_label_size(value: Any, low: int = 1) -> int:
    """Return a height of text in pixels, or raise `OptionError`."""
    return check_whole("label_size", value, low, TALLEST, unit="pixels")


def check_legible(label_pt: Any, pixels: int) -> int:
    """Return the height of text in pixels; warn if the text is illegible."""
    if pixels < LEGIBLE:
        warn(
            Message(
                param("label_pt", text=f"{float(label_pt):g}"),
                f" is {pixels} pixels on this picture; text of less than {LEGIBLE} pixels is illegible; ",
                "enlarge the picture first, with ",
                param("scale", text=f"{math.ceil(LEGIBLE / pixels)}"),
            )
        )
    return pixels
