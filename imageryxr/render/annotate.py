"""Draw annotations on pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotation_values import column_texts
from imageryxr.core.annotations import DIM, ENDS, RADII, annotation_type_of, stack_axes
from imageryxr.core.array_labels import has_cutouts
from imageryxr.core.bbox import DIMS, snap_places
from imageryxr.core.colors import parse_color
from imageryxr.core.display import DRAWN_COLORS
from imageryxr.core.grid import Grid
from imageryxr.core.validate import check_axis, check_choice, check_flag, check_number
from imageryxr.errors import LayerError, OptionError, format_value
from imageryxr.graph.cutout_arrays import first_cutout, grids_in_volume
from imageryxr.graph.evaluate import evaluate
from imageryxr.graph.expr import Array, ArrayLeaf
from imageryxr.ops.annotation_tables import as_annotations
from imageryxr.ops.cutout_align import map_placed_cutouts
from imageryxr.render.annotate_picture import accepts_pictures
from imageryxr.render.figure.print_size import check_label_size, label_pixels
from imageryxr.render.figure.text import LEGIBLE
from imageryxr.render.mark_colors import column_values, mark_colors
from imageryxr.render.mark_labels import LabelStyle
from imageryxr.render.mark_selection import rows_near_picture, warn_other_unit
from imageryxr.render.mark_shapes import Marker, MarkStyle
from imageryxr.render.marks import Annotated, Marks
from imageryxr.render.overlay import label_rgba, rgba_volume

Floats = npt.NDArray[np.float64]
# Largest number of cutouts in which annotations are searched before the unit of the positions is checked.
_MOST_CHECKED = 100


@accepts_pictures
def annotate(
    picture: Any,
    annotations: Any,
    *,
    color: Any = "yellow",
    colors: Any = None,
    cmap: str | None = None,
    limits: tuple[float, float] | None = None,
    size: float | str = 8,
    unit: Literal["px", "nm"] = "px",
    marker: Marker = "circle",
    width: float | None = None,
    edgecolor: Any = None,
    edgewidth: float = 1,
    fill: float = 0,
    alpha: float = 1.0,
    depth: float | None = None,
    fade: bool = False,
    labels: str | None = None,
    label_size: int | None = None,
    label_pt: float | None = None,
    width_mm: float | None = None,
    label_color: Any = "white",
    axis: Literal["z", "y", "x"] | None = None,
) -> xr.DataArray:
    """Draw points, lines, boxes and ellipsoids on a picture, at their position in nanometres.

    Lazy: reads nothing. The result does not depend on the blocks of the picture, and each block receives only its own
    annotations. On a stack, an annotation is drawn in the slices in which it lies. On a result of `plane`, distances
    are those to the plane.

    Parameters
    ----------
    picture : DataArray or PIL.Image.Image
        RGBA (z, y, x, rgba), as `overlay` and `to_rgba` return it: a slice, a stack, a plane at any angle, or `cutouts`
        (cutout, z, y, x, rgba). On a Pillow picture of such arrays, from `to_pil`, `montage` or `scale_bar`, marks are
        drawn at the resolution of its pixels, and each tile has the annotations of its own slice.
    annotations : Dataset, DataFrame or other table
        Result of `as_annotations` or of a function that opens annotations, or a table of points in nm.
    color : colour, str or dict, default "yellow"
        One colour; or the name of a column; or a dict annotation id → colour. A column of segment ids, which has the
        dtype uint64 or a name such as ``"pre_pt_root_id"``, gives each annotation the colour of its segment in the
        picture. A column of numbers is drawn with a colour map, and so are ids if ``cmap`` or ``limits`` is given. The
        values of any other column are categories; they keep their colours if a selection of the Dataset lacks some of
        them. Missing values are grey.
    colors : optional
        For a column: a dict value → colour, in which absent values are grey; or the name of a palette, as in `palette`.
        For a column of segment ids: any form of ``colors`` of `overlay`.
    cmap : str, default "viridis"
        Colour map of a column of numbers.
    limits : (low, high), optional
        The numbers at the ends of the colour map. Default: the least and the greatest.
    size : float or str, default 8
        Diameter of markers in ``unit``, or the name of a column of diameters.
    unit : {"px", "nm"}, default "px"
        Unit of ``size``: pixels of the picture, or nanometres in the volume.
    marker : {"circle", "ring", "cross", "x", "square", "triangle"}, default "circle"
        Shape of points.
    width : float, optional
        Width in pixels of lines, of outlines of boxes and ellipsoids, and of strokes of markers. Default: 2; for rings
        and crosses a fifth of their size, at least 1.5.
    edgecolor : colour, optional
        Colour of an edge around each mark.
    edgewidth : float, default 1
        Width of the edge in pixels.
    fill : float, default 0
        Opacity of the interior of boxes and ellipsoids, relative to ``alpha``.
    alpha : float, default 1.0
        Opacity of the marks.
    depth : float, optional
        Draw annotations within this distance of the centre of the slice, in nm. Default: annotations in the slice
        itself, so that each point, and each box of the thickness of a slice, is drawn in exactly one slice. Ellipsoids
        and boxes are drawn as their section at the centre of the slice, or where they are nearest to it; with a depth,
        as their section nearest to their own centre.
    fade : bool, default False
        Whether marks and their labels become more transparent with their distance, and invisible at ``depth``.
    labels : str, optional
        Name of the column whose text is written beside each mark, moved apart so that no two labels overlap. Labels
        without room are omitted, with one warning.
    label_size : int, optional
        Height of the labels in pixels. Default: 12 or, on a Pillow picture, 1/40 of the smaller side of
        its slices if that is more.
    label_pt : float, optional
        Height of the labels in points at the printed width, instead of ``label_size``.
    width_mm : float, optional
        Printed width of the picture, for ``label_pt``. Default: its width at 300 pixels per inch.
    label_color : colour or None, default "white"
        Colour of the labels, which have a contrasting halo. None: the colour of each mark.
    axis : {"z", "y", "x"}, optional
        The axis across the slices. Default: the first one that was dropped or has size 1, otherwise z.

    Returns
    -------
    DataArray or PIL.Image.Image
        A Pillow picture if ``picture`` is one; otherwise uint8, dims of ``picture``, straight alpha. The attrs record
        the colours of categories and the colour map, which `legend` draws.

    Raises
    ------
    LayerError
        If ``picture`` is not RGBA, or its position in the volume is unknown.
    BoxError, OptionError, LayerError
        If ``annotations`` is not a table of positions; see `as_annotations`.
    ColorError
        If a colour or palette is invalid.
    OptionError
        If another argument is invalid.

    Warns
    -----
    ImageryWarning
        If no annotation lies in the picture, but some would in another unit or order: voxels, micrometres, nm that were
        multiplied by a resolution, or (z, y, x). Annotations elsewhere or in other slices cause no warning.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> slice_ = ix.to_rgba(ix.crop(em, ix.BBox.around((4600, 2560, 130), (64, 64), resolution=(8, 8, 40))))
    >>> points = ix.as_annotations([[4600.5, 2560.5, 130.5]], resolution=(8, 8, 40))
    >>> ix.annotate(slice_, points, color="red").values[0, 32, 32]
    array([255,   0,   0, 255], dtype=uint8)
    """
    is_many = has_cutouts(_check_picture(picture))
    volume = rgba_volume(first_cutout(picture) if is_many else picture, "the picture")
    table = as_annotations(annotations)
    across = _slice_axis(picture, axis)
    opacity = check_number("alpha", alpha, 0, 1)
    sizes = _sizes(table, size)
    stroke = _stroke_width(width, annotation_type_of(table), marker, unit, size)
    style = _mark_style(marker, unit, stroke, edgecolor, edgewidth, depth, fade, fill, picture, volume.grid, across)
    texts = _label_texts(table, labels)
    label_style = LabelStyle(
        _label_height(label_size, label_pt, width_mm, picture.sizes.get(DIMS[_turned_axes(across)[2]], 1)),
        None if label_color is None else parse_color(label_color),
    )
    drawing = _Drawing(table, style, across, sizes, texts, label_style)
    rows = None
    if is_many:
        _warn_other_unit(drawing, islice(grids_in_volume(picture), _MOST_CHECKED))
    else:
        rows = drawing.rows_near(volume.grid)
        _warn_other_unit(drawing, [volume.grid])
    made = mark_colors(table, picture, color, colors, cmap, limits, rows)
    rgba = made.rgba.copy()
    rgba[:, 3] = np.rint(rgba[:, 3] * opacity).astype(np.uint8)
    attrs = {**volume.attrs, **made.attrs}
    if made.record is not None:
        attrs[DRAWN_COLORS] = json.dumps([*json.loads(volume.attrs.get(DRAWN_COLORS, "[]")), made.record])
    name = str(picture.name) if picture.name is not None else "picture"
    if is_many:
        drawn = map_placed_cutouts(picture, partial(drawing.draw_cutout, rgba=rgba), ("rgba",), "annotate")
        return drawn.assign_attrs(attrs).rename(name)
    return label_rgba(Annotated(volume.expr, drawing.marks(volume.grid, rows, rgba), across), [volume], attrs, name)


def _warn_other_unit(drawing: _Drawing, grids: Iterable[Grid]) -> None:
    """Warn if no annotation lies on any of the pictures, but some would lie on the first one in another unit."""
    first = None
    for grid in grids if drawing.table.sizes[DIM] else ():
        first = first or grid
        rows = drawing.rows_near(grid)
        if rows is None or len(rows):
            return
    if first is not None:
        warn_other_unit(drawing.table, first, drawing.style, _turned_axes(drawing.across))


@dataclass(frozen=True)
class _Drawing:
    """Annotations with their style, to be drawn on pictures of one size and resolution."""

    table: xr.Dataset
    style: MarkStyle
    across: int
    sizes: npt.NDArray[np.float32]
    texts: npt.NDArray[Any] | None
    labels: LabelStyle

    def rows_near(self, grid: Grid) -> npt.NDArray[np.int64] | None:
        """Return the rows of annotations that a picture may show, or None for all."""
        return rows_near_picture(self.table, grid, self.style, _turned_axes(self.across), self.sizes)

    def marks(self, grid: Grid, rows: npt.NDArray[np.int64] | None, rgba: npt.NDArray[np.uint8]) -> Marks:
        """Return the marks of some rows, or of all, on the grid of a picture; ``rgba`` has the colours of the rows."""
        sizes, texts = self.sizes, self.texts
        if rows is not None:
            sizes = sizes if len(sizes) == 1 else sizes[rows]
            texts = None if texts is None else texts[rows]
        marks = _place_marks(self.table, rows, grid, self.style, self.across, rgba, sizes)
        return marks if texts is None else replace(marks, texts=texts, labels=self.labels)

    def draw_cutout(self, values: Array, grid: Grid, rgba: npt.NDArray[np.uint8]) -> Array:
        """Return the picture of a cutout with its marks; ``rgba`` has the colours of all rows, or one."""
        rows = self.rows_near(grid)
        if rows is not None and not len(rows):
            return values
        marks = self.marks(grid, rows, rgba if rows is None or len(rgba) == 1 else rgba[rows])
        return evaluate(Annotated(ArrayLeaf(values, tail=(4,)), marks, self.across), grid.box)


def _mark_style(
    marker: Any,
    unit: Any,
    width: float,
    edgecolor: Any,
    edgewidth: float,
    depth: float | None,
    fade: bool,
    fill: float,
    picture: xr.DataArray,
    grid: Grid,
    axis: int,
) -> MarkStyle:
    """Return the style of marks on a picture, after checking the arguments that define it."""
    if check_flag("fade", fade) and depth is None:
        raise OptionError("fade=True needs depth=…, the distance in nm at which marks become invisible")
    edge = None if edgecolor is None else parse_color(edgecolor)
    edge_width = 0.0 if edgecolor is None else check_number("edgewidth", edgewidth, 0)
    depth = None if depth is None else check_number("depth", depth, 0)
    order, spacing = _turned_axes(axis), grid.resolution[::-1]
    # The directions (x, y, z) of the axes (slice, row, column) of the picture in the volume.
    axes = np.reshape(picture.attrs.get("plane_axes", np.eye(3)), (3, 3)).astype(np.float64)
    directions = tuple(map(tuple, axes[::-1][order].tolist()))
    fill, frame = check_number("fill", fill, 0, 1), (grid.shape[order[1]], grid.shape[order[2]])
    steps = (spacing[order[0]], spacing[order[1]], spacing[order[2]])
    return MarkStyle(marker, unit, width, edge, edge_width, depth, bool(fade), fill, steps, directions, frame)


def _check_picture(picture: Any) -> xr.DataArray:
    if isinstance(picture, xr.DataArray):
        return picture
    raise LayerError(
        f"annotate needs an array with coordinates in nm or a Pillow picture of one, but was given a "
        f"{type(picture).__name__}; give the result of overlay(…), to_rgba(…), to_pil(…) or montage(…)"
    )


def _slice_axis(picture: xr.DataArray, axis: Any) -> int:
    if axis is not None:
        return DIMS.index(check_axis(axis))
    thin = [dim for dim in DIMS if dim not in picture.dims] or [dim for dim in DIMS if picture.sizes.get(dim, 1) == 1]
    return DIMS.index(thin[0]) if thin else 0


def _turned_axes(axis: int) -> list[int]:
    """Return the axes of the array in the order (slice, row, column)."""
    return [axis, *(other for other in range(3) if other != axis)]


def _label_height(label_size: Any, label_pt: Any, width_mm: Any, width: int) -> int:
    height = label_pixels(label_size, label_pt, width_mm, width)
    return 12 if height is None else height if label_size is None else check_label_size(label_size, LEGIBLE)


def _sizes(table: xr.Dataset, size: Any) -> npt.NDArray[np.float32]:
    if not isinstance(size, str):
        return np.array([check_number("size", size, 0)], np.float32)
    values = column_values(table, size, "size")
    if values.dtype.kind not in "iuf":
        raise OptionError(
            f"the column size={format_value(size)} contains {values.dtype} values; give a column of numbers"
        )
    numbers = values.astype(np.float64)
    bad = np.flatnonzero(~(numbers >= 0) | np.isinf(numbers))
    if len(bad):
        raise OptionError(
            f"the column size={format_value(size)} contains {numbers[bad[0]]:g} in row {bad[0]}; sizes must be numbers "
            "of at least 0, and 0 draws nothing"
        )
    return numbers.astype(np.float32)


def _stroke_width(width: Any, kind: str, marker: Any, unit: Any, size: Any) -> float:
    check_choice("marker", marker, get_args(Marker))
    check_choice("unit", unit, ("px", "nm"))
    if width is not None:
        return check_number("width", width, 0)
    if kind != "point" or unit == "nm" or isinstance(size, str):
        return 2.0
    return max(1.5, float(size) / 5)


def _place_marks(
    table: xr.Dataset,
    rows: npt.NDArray[np.int64] | None,
    grid: Grid,
    style: MarkStyle,
    axis: int,
    rgba: npt.NDArray[np.uint8],
    sizes: npt.NDArray[np.float32],
) -> Marks:
    """Return annotations in the pixels of a picture."""
    offset = np.array(grid.voxel_offset[::-1], np.float64)[_turned_axes(axis)]
    turned = np.array(style.directions).T

    def places(names: tuple[str, str, str]) -> Floats:
        return snap_places(stack_axes(table, (names[2], names[1], names[0]), rows) @ turned / style.spacing - offset)

    kind, start = table.attrs.get("annotation_type", "point"), places(("z", "y", "x"))
    extent = np.empty((0, 3))
    if kind == "line":
        extent = places(ENDS)
    elif kind == "box":
        first, last = stack_axes(table, ("x", "y", "z"), rows), stack_axes(table, ENDS[::-1], rows)
        extent = np.abs(last - first) / 2
        start = (first + last) / 2 @ turned / style.spacing - offset
    elif kind == "ellipsoid":
        extent = stack_axes(table, RADII[::-1], rows)
    return Marks(kind, style, start, extent, rgba, sizes)


def _label_texts(table: xr.Dataset, labels: Any) -> npt.NDArray[Any] | None:
    return None if labels is None else np.array(column_texts(column_values(table, labels, "labels")), dtype=object)
