"""Scale bars."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import xarray as xr

from imageryxr.boxes import DIMS
from imageryxr.colors import RGBA, parse_color
from imageryxr.errors import GridError, OptionError, warn
from imageryxr.figure.lettering import BLACK, MIDDLE, WHITE, contrasting, drowns, fitting, luminance, text_extent, write
from imageryxr.figure.montages import check_count
from imageryxr.figure.slices import plane_of, to_pil
from imageryxr.grid import grid_of

if TYPE_CHECKING:
    from PIL.Image import Image

Position: TypeAlias = Literal["bottom right", "bottom left", "top right", "top left"]


def scale_bar(
    image: xr.DataArray | Image,
    *,
    nm_per_pixel: float | None = None,
    length: float | None = None,
    position: Position = "bottom right",
    color: Any = None,
    label: bool = True,
    label_size: int | None = None,
    scale: int = 1,
) -> Image:
    """Draw a scale bar onto a copy of a picture; computes the picture.

    Parameters
    ----------
    image : DataArray or PIL.Image.Image
        One slice, as `to_pil` takes it, or a picture.
    nm_per_pixel : float, optional
        Width of a pixel in nm. Default for a DataArray: the resolution of its columns.
        A picture does not know its own, and a resized one has another than its data.
    length : float, optional
        Length of the bar in nm. Default: the longest of 1, 2, 5, 10, 20, … that is at most a quarter of the width.
    position : {"bottom right", "bottom left", "top right", "top left"}, default "bottom right"
        Which corner it stands in.
    color : colour, optional
        Anything that `parse_color` reads. Default: black or white, whichever stands out from what lies under the bar.
    label : bool, default True
        Whether to write the length, such as "500 nm" or "2 µm", next to the bar.
    label_size : int, optional
        Height of the text in pixels. Default: a twenty-second of the smaller side, at least 12.
    scale : int, default 1
        Pixels per voxel of a DataArray, as in `to_pil`.

    Returns
    -------
    PIL.Image.Image
        Of the same size. Mode L stays L if the colour is a grey, RGBA stays RGBA, anything else becomes RGB.

    Raises
    ------
    OptionError
        If the size of a pixel is unknown, or the bar does not fit.

    Warns
    -----
    ImageryWarning
        If the text is left out because it could not be read on so small a picture.

    Examples
    --------
    >>> from PIL import Image
    >>> scale_bar(Image.new("L", (400, 300)), nm_per_pixel=4).mode
    'L'
    """
    if position not in get_args(Position):
        raise OptionError(f"position={position!r} is none of {', '.join(map(repr, get_args(Position)))}")
    step = pixel_size(image, nm_per_pixel)
    if isinstance(image, xr.DataArray):
        picture = to_pil(image, scale=scale)
        step = step if nm_per_pixel is not None else step / scale
    elif scale != 1:
        raise OptionError(f"scale={scale!r} enlarges an array, and this is a picture; give the array")
    else:
        picture = image
    length = nice_below(picture.width * step / 4) if length is None else check_length("length", length)
    pixels = max(1, round(length / step))
    margin = max(2, min(picture.size) // 30)
    if pixels > picture.width - 2 * margin:
        raise OptionError(
            f"a bar of {length_text(length)} takes {pixels} pixels of {step:g} nm, and the picture is {picture.width} "
            f"wide; write length={nice_below(picture.width * step / 4):g}, or leave it out"
        )
    canvas = picture.convert("RGBA")
    ink = _draw_bar(canvas, pixels, margin, position, color, length_text(length) if label else "", label_size)
    if picture.mode == "L" and ink[0] == ink[1] == ink[2]:
        return canvas.convert("L")
    return canvas if picture.mode == "RGBA" else canvas.convert("RGB")


def _draw_bar(
    canvas: Image, pixels: int, margin: int, position: str, color: Any, text: str, text_size: int | None
) -> RGBA:
    """Draw bar and text into a corner, the bar nearer to the edge; return the colour used."""
    thick = max(2, min(canvas.size) // 80)
    asked = max(12, min(canvas.size) // 22) if text_size is None else check_count("label_size", text_size, 1)
    size = fitting(text, asked, canvas.width - 2 * margin, canvas.height - 2 * margin - thick) if text else 0
    text = text if size else ""
    width, height = text_extent(text, size) if text else (0, 0)
    gap = max(1, thick // 2) if text else 0
    total, wide = thick + gap + height, max(pixels, width)
    left = margin if position.endswith("left") else canvas.width - margin - wide
    bottom = position.startswith("bottom")
    top = canvas.height - margin - total if bottom else margin
    ink = parse_color(color) if color is not None else None
    if ink is None:
        ink = contrasting(canvas.crop((left, top, left + wide, top + total)), None)
    if text:
        write(canvas, (left + (wide - width) // 2, top if bottom else top + thick + gap), text, size, ink)
    at = (left + (wide - pixels) // 2, top + height + gap if bottom else top)
    strip = (at[0], at[1], at[0] + pixels, at[1] + thick)
    if drowns(canvas.crop(strip), ink):
        # Above and below only: at its ends a rim would make the bar longer than it says.
        rim = max(1, thick // 4)
        other = BLACK if luminance(ink) > MIDDLE else WHITE
        _fill_box(canvas, (at[0], at[1] - rim), (pixels, thick + 2 * rim), other)
    _fill_box(canvas, at, (pixels, thick), ink)
    return ink


def _fill_box(canvas: Image, at: tuple[int, int], size: tuple[int, int], color: RGBA) -> None:
    from PIL import Image

    canvas.alpha_composite(Image.new("RGBA", size, color), (max(0, at[0]), max(0, at[1])))


def pixel_size(image: Any, nm_per_pixel: float | None) -> float:
    """Return how many nm a pixel is wide: as given, else as an array's coordinates say."""
    if nm_per_pixel is not None:
        return check_length("nm_per_pixel", nm_per_pixel)
    if not isinstance(image, xr.DataArray):
        raise OptionError("a picture does not know how many nm a pixel is wide; write nm_per_pixel=…")
    rows, columns = [str(dim) for dim in plane_of(image).dims if dim != "rgba"][-2:]
    try:
        sizes = dict(zip(DIMS[::-1], map(float, grid_of(image).resolution), strict=True))
    except GridError as error:
        raise OptionError(
            f"the width of a pixel cannot be read from the array: {error}; or write nm_per_pixel=…"
        ) from None
    if sizes[rows] != sizes[columns]:
        warn(
            f"the pixels are {sizes[columns]:g} × {sizes[rows]:g} nm and are shown as squares: lengths hold along "
            f"{columns} alone; bring the array onto a grid of square pixels first, with regrid(array, resolution)"
        )
    return sizes[columns]


def check_length(name: str, value: Any, unit: str = "nm") -> float:
    """Return a positive length, or raise `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        raise OptionError(f"{name}={value!r} is not a length in {unit}; write a number above 0")
    return float(value)


def nice_below(length: float) -> float:
    """Give the largest of …, 1, 2, 5, 10, 20, 50, … that is not above a length."""
    decade = math.pow(10, math.floor(math.log10(length)))
    # Decades either side too: the logarithm of 1000 may come out a hair below 3.
    lengths = [m * d for d in (decade / 10, decade, decade * 10) for m in (1, 2, 5)]
    return max(nice for nice in lengths if nice <= length * (1 + 1e-9))


def length_text(nm: float) -> str:
    """Write a length in the unit that fits it."""
    for unit, size in (("mm", 1e6), ("µm", 1e3)):
        if nm >= size:
            return f"{nm / size:g} {unit}"
    return f"{nm:g} nm"
