"""Insets: a part of a picture, magnified in its corner."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import xarray as xr

from imageryxr.core.bbox import DIMS, BBox
from imageryxr.core.colors import RGBA, parse_color
from imageryxr.core.grid import grid_of
from imageryxr.errors import ImageryWarning, OptionError, OutOfVolumeError
from imageryxr.render.figure.geometry import Rect, geometry_of, smallest, with_geometry
from imageryxr.render.figure.print_size import label_pixels
from imageryxr.render.figure.scale_bars import Position, check_position, draw_bar, pixel_size
from imageryxr.render.figure.slice_image import plane_of, to_pil

if TYPE_CHECKING:
    from PIL.Image import Image


def inset(
    picture: xr.DataArray,
    bbox: BBox,
    *,
    zoom: int = 3,
    detail: xr.DataArray | None = None,
    position: Position | None = None,
    color: Any = "white",
    line: int | None = None,
    scale: int = 1,
    scale_bar: bool = False,
    label_size: int | None = None,
    label_pt: float | None = None,
    width_mm: float | None = None,
) -> Image:
    """Draw a part of a picture magnified in its corner, and frame both; computes the picture.

    Parameters
    ----------
    picture : DataArray
        One slice, as `to_pil` takes it, with coordinates.
    bbox : BBox
        The part, on the picture's axes; across them it need not reach the slice.
    zoom : int, default 3
        How many times larger than in the picture the part is drawn, on each side.
    detail : DataArray, optional
        The same place from a finer level, for the magnified part to show more. Default: the picture's own voxels.
    position : {"top right", "top left", "bottom right", "bottom left"}, optional
        The corner. Default: the first of these where the inset leaves the part that it magnifies to see.
    color : colour, default "white"
        Of the frames.
    line : int, optional
        Width of the frames in pixels. Default: a 250th of the picture, at least 2.
    scale : int, default 1
        Pixels per voxel of the picture, as in `to_pil`.
    scale_bar : bool, default False
        Whether to draw two scale bars: one in the inset, and one in a corner of the picture that the inset leaves free.
    label_size, label_pt, width_mm : optional
        Height of their text, as in `scale_bar`.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, or RGBA where the picture is transparent somewhere; of the picture's size. It holds where the inset
        is, so that `scale_bar` takes another corner.

    Raises
    ------
    OutOfVolumeError
        If the part lies outside the picture.
    OptionError
        If it would not fit, magnified.

    Warns
    -----
    ImageryWarning
        If the inset covers some of the part that it magnifies.

    Examples
    --------
    >>> from imageryxr.core.grid import Grid
    >>> grid = Grid((1, 90, 120), (8, 8, 40), (0, 0, 0))
    >>> import numpy as np
    >>> em = xr.DataArray(np.zeros(grid.shape, np.uint8), dims=("z", "y", "x"), coords=grid.coords())
    >>> em = em.assign_attrs(resolution=grid.resolution)
    >>> inset(em, BBox((10, 10, 0), (22, 20, 1), resolution=(8, 8, 40))).size
    (120, 90)
    """
    from PIL import Image as PilImage

    check_position(position)
    step = pixel_size(picture, None) / scale if scale_bar else None
    plain = to_pil(picture, scale=scale)
    whole = plain.convert("RGBA")
    left, top, right, bottom = (scale * n for n in _part(picture, bbox))
    width, height = (right - left) * zoom, (bottom - top) * zoom
    line = max(2, min(whole.size) // 250) if line is None else line
    margin = 2 * line
    if zoom < 1 or width + 2 * margin > whole.width or height + 2 * margin > whole.height:
        raise OptionError(
            f"zoom={zoom} makes an inset of {width} × {height} pixels, which does not fit into the picture of "
            f"{whole.width} × {whole.height}; make the part or the zoom smaller"
        )
    part = whole.crop((left, top, right, bottom)) if detail is None else _detail(detail, bbox)
    part = part.resize((width, height), PilImage.Resampling.NEAREST if detail is None else PilImage.Resampling.LANCZOS)
    places = _corners(whole.size, (width, height), margin)
    covered = {at: _shared((left, top, right, bottom), (*place, width, height), line) for at, place in places.items()}
    corner = min(covered, key=covered.__getitem__) if position is None else position
    if covered[corner]:
        _warn_covered(corner, covered)
    size = label_pixels(label_size, label_pt, width_mm, whole.width)
    text: int | None = None
    if step is not None:
        _, _, text = draw_bar(part, step / zoom, None, None, None, label=True, text_size=size, taken=())
    x, y = places[corner]
    whole.paste(part, (x, y))
    marked: Rect = (left, top, right, bottom)
    frames = [_framed(whole, box, color, line) for box in (marked, (x, y, x + width, y + height))]
    if step is not None:
        _, bar, other = draw_bar(whole, step, None, None, None, label=True, text_size=size, taken=frames)
        frames, text = [*frames, bar], smallest(text, other)
    opaque = whole.getchannel("A").getextrema()[0] == 255
    held = geometry_of(plain)
    return with_geometry(whole.convert("RGB") if opaque else whole, None if held is None else held.nm, frames, text)


def _framed(whole: Image, box: Rect, color: Any, line: int) -> Rect:
    """Draw a frame around a rectangle; return both together."""
    from PIL import ImageDraw

    ink: RGBA = parse_color(color)
    left, top, right, bottom = box
    frame = (left - line, top - line, right + line, bottom + line)
    ImageDraw.Draw(whole).rectangle((*frame[:2], frame[2] - 1, frame[3] - 1), outline=ink, width=line)
    return frame


def _corners(whole: tuple[int, int], size: tuple[int, int], margin: int) -> dict[str, tuple[int, int]]:
    """Return where an inset begins (x, y) in each corner, the corner to prefer first."""
    near, far_x, far_y = margin, whole[0] - size[0] - margin, whole[1] - size[1] - margin
    return {
        "top right": (far_x, near),
        "top left": (near, near),
        "bottom right": (far_x, far_y),
        "bottom left": (near, far_y),
    }


def _shared(part: tuple[int, int, int, int], place: tuple[int, int, int, int], line: int) -> int:
    """Return how many pixels of a part an inset at (x, y, width, height) covers, with its frame."""
    left, top, right, bottom = part
    x, y, width, height = place
    across = min(right, x + width + line) - max(left, x - line)
    down = min(bottom, y + height + line) - max(top, y - line)
    return max(0, across) * max(0, down)


def _warn_covered(corner: str, covered: dict[str, int]) -> None:
    free = [f"position={name!r}" for name, pixels in covered.items() if not pixels]
    advice = f"give {' or '.join(free)}" if free else "no corner is free: make the part or the zoom smaller"
    warnings.warn(
        f"the inset in the {corner} corner covers {covered[corner]:,} pixels of the part that it magnifies; {advice}",
        ImageryWarning,
        stacklevel=3,
    )


def _part(picture: xr.DataArray, bbox: BBox) -> tuple[int, int, int, int]:
    """Return the pixels (left, top, right, bottom) that a box covers."""
    rows, columns = (str(d) for d in plane_of(picture).dims if d != "rgba")
    grid = grid_of(picture)
    start, stop = grid.select(bbox)
    ranges = dict(zip(DIMS, zip(start, stop, strict=True), strict=True))
    (top, bottom), (left, right) = ranges[rows], ranges[columns]
    sizes = dict(zip(DIMS, grid.shape, strict=True))
    if top < 0 or left < 0 or bottom > sizes[rows] or right > sizes[columns]:
        raise OutOfVolumeError(f"the part {bbox} reaches outside of the picture, which covers {grid.bbox}")
    return left, top, right, bottom


def _detail(detail: xr.DataArray, bbox: BBox) -> Image:
    left, top, right, bottom = _part(detail, bbox)
    rows, columns = (str(d) for d in plane_of(detail).dims if d != "rgba")
    return to_pil(detail.isel({rows: slice(top, bottom), columns: slice(left, right)})).convert("RGBA")
