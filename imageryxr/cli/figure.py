"""What ``imageryxr figure`` does with what is drawn: square pixels, inset, scale bar, legend, and the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
import xarray as xr

import imageryxr as ix
from imageryxr.cli.options import parse_numbers
from imageryxr.cli.points import draw_points
from imageryxr.errors import OptionError, warn
from imageryxr.export.plan.reads import coverage_warning
from imageryxr.graph.labelled import box_reader
from imageryxr.ops.align import layer_type_of
from imageryxr.ops.square_pixels import square_pixels
from imageryxr.render.figure.geometry import geometry_of
from imageryxr.render.figure.print_size import check_length, label_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

Square = Annotated[
    bool,
    typer.Option("--square/--no-square", help="Resample to square pixels, or keep a voxel a pixel."),
]
Scale = Annotated[int, typer.Option(help="Pixels per voxel, 1 to 100.")]
ScaleBar = Annotated[bool, typer.Option("--scale-bar/--no-scale-bar", help="Draw a scale bar.")]
Legend = Annotated[
    bool,
    typer.Option("--legend", help="List the colours of --ids, or of the largest segments."),
]
Inset = Annotated[
    str | None,
    typer.Option(
        help="Magnify a part in a corner: x0,y0,z0:x1,y1,z1 in units of --resolution; or two numbers a corner, across "
        "and down."
    ),
]
InsetZoom = Annotated[int, typer.Option(help="How many times it is magnified.")]
LabelPt = Annotated[
    float | None,
    typer.Option(help="Height of text in points; default with --width-mm: 7."),
]
WidthMm = Annotated[
    float | None,
    typer.Option(help="Printed width in mm; with --dpi the picture is resampled to both."),
]
Dpi = Annotated[float | None, typer.Option(help="Pixels per inch in print; default: 300, or by --width-mm.")]


@dataclass(frozen=True)
class Decoration:
    """What is drawn onto the picture, and how it is printed."""

    scale: int
    scale_bar: bool
    legend: bool
    inset: str | None
    inset_zoom: int
    label_pt: float | None
    width_mm: float | None
    dpi: float | None

    def __post_init__(self) -> None:
        check_scale(self.scale)
        units = (
            ("label_pt", self.label_pt, "points"),
            ("width_mm", self.width_mm, "mm"),
            ("dpi", self.dpi, "pixels per inch"),
        )
        for name, value, unit in units:
            if value is not None:
                check_length(name, value, unit)

    @property
    def points(self) -> float | None:
        """Height of the text in points, if it is given or a printed width is."""
        return 7.0 if self.label_pt is None and self.width_mm is not None else self.label_pt


def decorated(
    rgba: xr.DataArray,
    layers: Iterable[xr.DataArray],
    annotations: Sequence[xr.Dataset],
    ids: str | None,
    unit: list[float],
    axis: str,
    look: Decoration,
) -> Image:
    """Return the picture of a slice with its annotations, inset, scale bar and legend; computes."""
    drawn = None
    if look.inset is None:
        drawn = draw_points(ix.to_pil(rgba, scale=look.scale), annotations, look.scale)
    else:  # an inset magnifies voxels, with the marks on them
        rgba = draw_points(rgba, annotations, 1)
    colors = _listed_colors(rgba, layers, ids) if look.legend else None
    size = _text_size(rgba, colors, look)
    if drawn is None:
        box = inset_box(str(look.inset), unit, axis, ix.grid_of(rgba))
        drawn = ix.inset(
            rgba, box, zoom=look.inset_zoom, scale=look.scale, scale_bar=look.scale_bar, label_size=size
        )  # fmt: skip
    elif look.scale_bar:
        drawn = ix.scale_bar(drawn, label_size=size)
    return drawn if colors is None else ix.legend(drawn, colors, label_size=size)


def _text_size(rgba: xr.DataArray, colors: dict[int, object] | None, look: Decoration) -> int | None:
    """Return the height of text in pixels: it depends on the width of the picture with its legend."""
    if look.points is None:
        return None
    rows, columns = (rgba.sizes[dim] for dim in "zyx" if rgba.sizes[dim] > 1 or dim != _thin(rgba))
    from PIL import Image

    blank = Image.new("L", (columns * look.scale, rows * look.scale))
    if colors is not None:
        held = geometry_of(ix.legend(blank, colors, label_pt=look.points, width_mm=look.width_mm))
        return None if held is None else held.text
    return label_pixels(None, look.points, look.width_mm, blank.width)


def _thin(rgba: xr.DataArray) -> str:
    return next(dim for dim in "zyx" if rgba.sizes[dim] == 1)


def _listed_colors(rgba: xr.DataArray, layers: Iterable[xr.DataArray], ids: str | None) -> dict[int, object]:
    segmentations = [layer for layer in layers if layer_type_of(layer) == "segmentation"]
    if not segmentations:
        raise OptionError("--legend lists segments: give --segmentation SOURCE, or a link that has one")
    if ids is not None:
        return dict(ix.colors_of(rgba, [i.strip() for i in ids.split(",")]))
    voxels: dict[int, int] = {}
    for layer in segmentations:
        for number, count in zip(*ix.unique_ids(layer, counts=True), strict=True):
            voxels[int(number)] = voxels.get(int(number), 0) + int(count)
    largest = sorted(voxels, key=lambda number: (-voxels[number], number))
    return dict(ix.colors_of(rgba, np.array(largest, np.uint64)))


def inset_box(text: str, unit: list[float], axis: str, grid: ix.Grid) -> ix.BBox:
    """Return the box of an inset: corners of three numbers, or of two, across and down the picture."""
    corners = text.split(":")
    if len(corners) != 2:
        raise OptionError(f"--inset {text} is not two corners; write x0,y0,z0:x1,y1,z1, or x0,y0:x1,y1")
    lo, hi = (parse_numbers(corner, "--inset", (2, 3)) for corner in corners)
    number = "xyz".index(axis)
    edges = grid.axes["zyx".index(axis)].edges()
    for corner, edge in ((lo, edges[0]), (hi, edges[1])):
        if len(corner) == 2:
            corner.insert(number, float(edge) / unit[number])
    return ix.BBox(lo, hi, resolution=unit)


def write(picture: Image, out: Path, look: Decoration, *, overwrite: bool, where: ix.BBox) -> None:
    """Write a picture and print what was written."""
    from PIL import Image

    ix.save_figure(picture, out, dpi=look.dpi, width_mm=look.width_mm, overwrite=overwrite)
    with Image.open(out) as saved:
        print(f"wrote {out}: {saved.width} × {saved.height} pixels, {where}")


def check_scale(scale: int) -> int:
    """Return how many pixels a voxel takes, or raise `OptionError`."""
    if not 1 <= scale <= 100:
        raise OptionError(f"--scale {scale} is not a whole number of pixels per voxel from 1 to 100")
    return scale


def warn_outside(rgba: xr.DataArray) -> None:
    """Warn if a part of what is drawn lies outside of its sources, where it is black."""
    volume = box_reader(rgba).volume
    beyond = coverage_warning(volume.expr, volume.grid, "drawn")
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
