"""What ``imageryxr figure`` does with what is drawn: square pixels, and the picture in its file."""

from __future__ import annotations

from typing import Annotated

import typer
import xarray as xr

import imageryxr as ix
from imageryxr.errors import OptionError, warn
from imageryxr.export.reach import outside
from imageryxr.export.square import square_pixels
from imageryxr.volumes import box_reader

Square = Annotated[
    bool,
    typer.Option("--square/--no-square", help="Resample to square pixels, or keep a voxel a pixel."),
]
Scale = Annotated[int, typer.Option(help="Pixels per voxel, 1 to 100.")]


def check_scale(scale: int) -> int:
    """Return how many pixels a voxel takes, or raise `OptionError`."""
    if not 1 <= scale <= 100:
        raise OptionError(f"--scale {scale} is not a whole number of pixels per voxel from 1 to 100")
    return scale


def warn_outside(rgba: xr.DataArray) -> None:
    """Warn if a part of what is drawn lies outside of its sources, where it is black."""
    volume = box_reader(rgba).volume
    beyond = outside(volume.expr, volume.grid, "drawn")
    if beyond:
        warn(beyond)


def shaped(rgba: xr.DataArray, axis: str, *, square: bool) -> xr.DataArray:
    """Return a slice with square pixels, or as it is with a warning that names the other option."""
    if square:
        return square_pixels(rgba, axis)
    sizes = dict(zip("xyz", ix.grid_of(rgba).resolution, strict=True))
    rows, columns = (dim for dim in "zyx" if dim != axis)
    if sizes[rows] != sizes[columns]:
        warn(
            f"the pixels are {sizes[columns]:g} × {sizes[rows]:g} nm and are drawn as squares: the picture is not in "
            f"proportion, and a scale bar holds along {columns} alone; leave --no-square out to resample them"
        )
    return rgba
