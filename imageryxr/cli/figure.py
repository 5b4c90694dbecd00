"""``imageryxr figure``: one slice with square pixels, marks, inset, scale bar and legend, in a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
import xarray as xr

import imageryxr as ix
from imageryxr.cli.commands import option, origin
from imageryxr.cli.messages import rename_parameters
from imageryxr.cli.options import (
    DrawingOptions,
    PlaceOptions,
    SourceOptions,
    check_one_slice,
    cut_layers,
    draw_layers,
    parse_numbers,
    split_names,
)
from imageryxr.core.array_labels import layer_type_of
from imageryxr.core.validate import check_whole
from imageryxr.errors import ImageryError, OptionError, warn
from imageryxr.export.plan.reads import coverage_warning
from imageryxr.graph.labelled import box_reader
from imageryxr.ops.square_pixels import square_pixels
from imageryxr.render.figure.picture import geometry_of
from imageryxr.render.figure.print_size import check_length, label_pixels
from imageryxr.render.figure.save import check_suffix, saved_size

if TYPE_CHECKING:
    from PIL.Image import Image


# ---------------------------------------------------------------------------------------------------------
# points of a table


@dataclass(frozen=True)
class PointOptions:
    """Tables whose points are drawn on the slice."""

    points: str | None = option("Draw the points of a table on the slice: points.csv or points.parquet.")
    points_column: str | None = option(
        "Column of their positions, such as pre_pt_position, or three columns: x,y,z. Default: x,y,z or the only one.",
        python="position",
        needs="--points FILE or --table NAME",
    )
    points_resolution: str = option(
        "Nanometres per unit of the positions: x,y,z; 1,1,1 means nm.", "1,1,1", python=(), needs="--points FILE"
    )
    table: str | None = option("Draw the rows of a CAVE table or view of --datastack, such as synapses_pni_2.")

    def read_points(self) -> list[xr.Dataset]:
        """Return the points of the table in a file."""
        if self.points is None:
            return []
        table, column = _read_table(self.points), self.points_column
        position: Any = ("x", "y", "z") if column is None else column
        if column is not None and column not in table.columns and "," in column:
            position = tuple(name.strip() for name in column.split(","))
        unit = parse_numbers(self.points_resolution, "--points-resolution", (3,))
        try:
            return [ix.as_annotations(table, position=position, resolution=unit)]
        except ImageryError as error:
            raise rename_parameters(error, resolution="points_resolution") from None

    def read_table_rows(self, rgba: xr.DataArray, ids: list[str] | None, tree: xr.DataTree | None) -> list[xr.Dataset]:
        """Return the rows of a CAVE table in a picture: those of the root ids, if any are given."""
        if self.table is None:
            return []
        if tree is None:
            raise OptionError(f"--table {self.table} is a table of a CAVE datastack; also give --datastack NAME")
        box = ix.grid_of(rgba).bbox
        return [tree.imagery.table(self.table, bbox=box, ids=ids, position=self.points_column)]


def draw_points(picture: Any, annotations: Sequence[xr.Dataset], scale: int) -> Any:
    """Return an array or Pillow picture with marks of 8 voxels' size; a voxel is ``scale`` pixels wide."""
    for part in annotations:
        picture = ix.annotate(picture, part, size=8 * scale, edgecolor="black", edgewidth=scale)
    return picture


def _read_table(path: str) -> Any:
    import pandas as pd

    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise OptionError(f"--points {path} is not a table; give a file that ends in .csv or .parquet")
    if not Path(path).is_file():
        raise OptionError(f"--points {path} does not exist; give the path of a .csv or .parquet file")
    try:
        return _read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise OptionError(f"--points {path} cannot be read: {str(error)[:200]}") from None


def _read_csv(path: str) -> Any:
    """Return the table of a CSV file, whose integers are exact."""
    import pandas as pd

    table = pd.read_csv(path, dtype_backend="numpy_nullable")
    # pandas reads 2**64 - 1, a valid id, as missing.
    names = [name for name in table.columns if table[name].dtype == "UInt64" and table[name].isna().any()]
    if names:
        texts = pd.read_csv(path, usecols=names, dtype=str)
        for name in names:
            whole = [int(text) if isinstance(text, str) else None for text in texts[name]]
            table[name] = pd.array(whole, dtype="UInt64")
    return table


# ---------------------------------------------------------------------------------------------------------
# pictures


@dataclass(frozen=True)
class PictureOptions:
    """The scale bar, legend and inset of a picture, and its printed size."""

    square: bool = option("Resample to square pixels, or draw one pixel per voxel.", True)
    scale: int = option("Pixels per voxel, 1 to 100.", 1)
    scale_bar: bool = option("Draw a scale bar.", True)
    legend: bool = option("List the colours of --ids, or of the largest segments.", False)
    inset: str | None = option(
        "Magnify a part in a corner: x0,y0,z0:x1,y1,z1 in units of --resolution; or two numbers per corner, across and "
        "down."
    )
    inset_zoom: int = option("Magnification of the inset.", 3, python="zoom", needs="--inset x0,y0,z0:x1,y1,z1")
    label_pt: float | None = option("Height of text in points; default with --width-mm: 7.")
    width_mm: float | None = option("Printed width in mm; with --dpi the picture is resampled to both.")
    dpi: float | None = option("Pixels per inch in print; default: 300, or by --width-mm.")
    overwrite: bool = option("Replace a target that exists.", False)

    def __post_init__(self) -> None:
        check_whole("scale", self.scale, 1, 100, unit="pixels per voxel")
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
        """Height of the text in points: as given, or 7 if only the printed width is given; otherwise None."""
        return 7.0 if self.label_pt is None and self.width_mm is not None else self.label_pt


def decorate(
    rgba: xr.DataArray,
    layers: Iterable[xr.DataArray],
    annotations: Sequence[xr.Dataset],
    ids: list[str] | None,
    unit: list[float],
    axis: str,
    look: PictureOptions,
) -> Image:
    """Compute a slice, and return its picture with annotations, inset, scale bar and legend."""
    drawn = None
    if look.inset is None:
        drawn = draw_points(ix.to_pil(rgba, scale=look.scale), annotations, look.scale)
    else:  # the marks are drawn first, so that the inset also magnifies them
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


def _text_size(rgba: xr.DataArray, colors: dict[int, object] | None, look: PictureOptions) -> int | None:
    """Return the height of text in pixels, which depends on the width of the picture with its legend."""
    if look.points is None:
        return None
    rows, columns = (rgba.sizes[dim] for dim in "zyx" if rgba.sizes[dim] > 1 or dim != _thin(rgba))
    from PIL import Image

    blank = Image.new("L", (columns * look.scale, rows * look.scale))
    if colors is not None:
        text = geometry_of(ix.legend(blank, colors, label_pt=look.points, width_mm=look.width_mm)).text
        return None if text is None else text.height
    return label_pixels(None, look.points, look.width_mm, blank.width)


def _thin(rgba: xr.DataArray) -> str:
    return next(dim for dim in "zyx" if rgba.sizes[dim] == 1)


def _listed_colors(rgba: xr.DataArray, layers: Iterable[xr.DataArray], ids: list[str] | None) -> dict[int, object]:
    segmentations = [layer for layer in layers if layer_type_of(layer) == "segmentation"]
    if not segmentations:
        raise OptionError("--legend lists segments: give --segmentation SOURCE, or a link that has one")
    if ids is not None:
        return dict(ix.colors_of(rgba, ids))
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


def write(picture: Image, out: Path, look: PictureOptions, *, where: ix.BBox) -> None:
    """Write a picture and print what was written."""
    ix.save_figure(picture, out, dpi=look.dpi, width_mm=look.width_mm, overwrite=look.overwrite)
    width, height = saved_size(picture, look.dpi, look.width_mm)
    print(f"wrote {out}: {width} × {height} pixels, {where}")


def warn_outside(rgba: xr.DataArray) -> None:
    """Warn if a part of a picture lies outside its sources, where the picture is black."""
    volume = box_reader(rgba).volume
    beyond = coverage_warning(volume.expr, volume.grid, "drawn")
    if beyond:
        warn(beyond)


@dataclass(frozen=True)
class LinkOptions:
    """The layers of a link that are drawn, and limits on what the link may load."""

    layers: str | None = option("Draw only these layers of a link: name,name,…")
    group: int | None = option("Panel of a link with several panels to draw, from 0.")
    allow_local: bool = option("Allow a link to read files and servers of this machine.", False)
    max_state_size: str = option("The largest state of a link to read, such as '16 MB'.", "4 MB")


def figure(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="[LINK] OUT", help="A Neuroglancer link or state (optional), and the picture to write."),
    ],
    sources: SourceOptions,
    link: LinkOptions,
    place: PlaceOptions,
    drawing: DrawingOptions,
    picture: PictureOptions,
    points: PointOptions,
) -> None:
    """Draw one slice: an image with coloured or outlined segments, or the view of a Neuroglancer link.

    Default position: the middle of the volume, or the position of the link. For a link, --center and --size are in
    voxels of the link, and colours, opacities and contrast are those of the link unless they are given.
    """
    address, out = _link_and_target(paths)
    check_suffix(out)
    if os.path.exists(out) and not picture.overwrite:
        raise ix.errors.TargetExistsError(f"{out} exists; give --overwrite to replace it, or another name")
    axis = drawing.axis or "z"
    options = drawing.overlay_options(axis)
    tree = None
    if address is not None:
        _refuse_options(context, picture.inset)
        dataset = _link_view(address, place, link, sources.missing)
        rgba, layers = dataset.imagery.overlay(**options), {str(n): v for n, v in dataset.data_vars.items()}
    else:
        if idle := _typed(context, _OF_LINKS):
            raise OptionError(
                f"{', '.join(idle)} {'needs' if len(idle) == 1 else 'need'} a link: write imageryxr figure LINK {out}"
            )
        opened, tree = sources.open()
        layers = cut_layers(opened, place.box(place.unit(tree), axis), plane=axis, to=place.to)
        check_one_slice(layers, axis)
        rgba = draw_layers(layers, options)
    warn_outside(rgba)
    if picture.square:
        rgba = square_pixels(rgba, axis)
    marks = points.read_points() + points.read_table_rows(rgba, drawing.id_list, tree)
    drawn = decorate(rgba, layers.values(), marks, drawing.id_list, place.unit(tree), axis, picture)
    write(drawn, out, picture, where=ix.grid_of(rgba).bbox)


def _link_and_target(paths: list[str]) -> tuple[str | None, Path]:
    if len(paths) > 2:
        raise OptionError(
            f"figure takes a link and a picture to write, or a picture only; {len(paths)} arguments were given"
        )
    return (paths[0] if len(paths) == 2 else None), Path(paths[-1])


_OF_LINKS = ("layers", "group", "allow_local", "max_state_size")
_OF_SOURCES = ("image", "segmentation", "image_mip", "seg_mip", "channel", "time", "assume", "datastack",
               "server_address", "timestamp", "agglomerate", "bbox", "to", "table")  # fmt: skip


def _typed(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Return the flags of the options that the command line gives."""
    return [f"--{name.replace('_', '-')}" for name in names if origin(context, name) == "COMMANDLINE"]


def _refuse_options(context: typer.Context, inset: str | None) -> None:
    """Raise `OptionError` if options are given that have no effect with a link."""
    # The corners of an inset are in units of --resolution.
    given = _typed(context, _OF_SOURCES if inset is not None else (*_OF_SOURCES, "resolution"))
    if given:
        raise OptionError(f"a link defines the layers, the position and its unit; omit {', '.join(given)}")


def _link_view(address: str, place: PlaceOptions, link: LinkOptions, missing: Any) -> xr.Dataset:
    limits: dict[str, Any] = {
        "allow_local": link.allow_local,
        "max_state_size": link.max_state_size,
        "missing": missing,
    }
    tree = ix.open_neuroglancer(address, layers=split_names(link.layers), group=link.group, **limits)
    shape = (512, 512) if place.size is None else parse_numbers(place.size, "--size", (2, 3))
    point = None if place.center is None else parse_numbers(place.center, "--center", (3,))
    dataset: xr.Dataset = tree.imagery.view(size=shape, center=point)
    return dataset
