"""Colour over imagery: overlays, outlines, and layers of both."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import xarray as xr

from imageryxr.colors import Colors, resolve_colors
from imageryxr.errors import ImageryWarning, LayerError, OptionError
from imageryxr.expr import Array, Expr, Mapped
from imageryxr.grid import DIMS, Grid, IndexBox, same_grid
from imageryxr.segments import AskedIds, id_list, segmentation_volume
from imageryxr.volumes import Volume, result, volume_of

Side = Literal["out", "in"]


@dataclass(frozen=True, slots=True)
class Outline:
    """How outlines are drawn; what ``overlay(outline=…)`` takes.

    Outlines are drawn slice by slice, in the plane of the picture. A pixel belongs to an outline if it lies within
    ``width`` of the segment, steps counted along rows and columns, as repeated dilation by a cross counts.

    Parameters
    ----------
    width : float, default 10
        In ``unit``.
    side : {"out", "in"}, default "out"
        Outside the segment, which leaves all of it to see, or inside, where neighbours never cover each other.
    merge : bool, default True
        Whether segments that touch are outlined as one. Take False to see the line between neighbours.
    alpha : float, default 1
        0 (nothing) to 1 (opaque).
    unit : {"px", "nm"}, default "px"
        Pixels of the picture; or nanometres, which keeps a line's width across resolutions.

    Raises
    ------
    OptionError
        If a value is outside its range.

    Examples
    --------
    >>> Outline(3, side="in")
    Outline(width=3, side='in', merge=True, alpha=1.0, unit='px')
    """

    width: float = 10
    side: Side = "out"
    merge: bool = True
    alpha: float = 1.0
    unit: Literal["px", "nm"] = "px"

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not _is_number(self.width) or not 0 < self.width < math.inf:
            raise OptionError(f"width={self.width!r} of an outline must be a positive number of {self.unit}, e.g. 3")
        if self.side not in ("out", "in"):
            raise OptionError(f"side={self.side!r} of an outline must be 'out' or 'in'")
        if self.unit not in ("px", "nm"):
            raise OptionError(f"unit={self.unit!r} of an outline must be 'px' (pixels) or 'nm' (nanometres)")
        if not isinstance(self.merge, bool | np.bool_):
            raise OptionError(f"merge={self.merge!r} of an outline must be True or False")
        _check_alpha(self.alpha, "alpha of an outline")


@dataclass(frozen=True)
class _Painted(Expr):
    """Segments filled and outlined, over an image or alone."""

    labels: Expr
    image: Expr | None
    fill: _Paint | None
    line: _Paint | None
    limit: float
    steps: tuple[float, float]
    side: Side
    merge: bool
    axis: int
    """The axis across the slices."""
    halo: tuple[int, int, int]
    whole: IndexBox
    """All voxels of the picture, of which a crop may be made later."""
    tail: tuple[int, ...] = (4,)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @property
    def bounds(self) -> IndexBox:
        return self.labels.bounds if self.image is None else self.labels.bounds.hull(self.image.bounds)

    @property
    def inputs(self) -> tuple[Expr, ...]:
        return (self.labels,) if self.image is None else (self.labels, self.image)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        # What lies beyond the data is unknown rather than background: a segment that the edge of the volume cuts
        # gets no line there.
        wide = box.grow(self.halo).clip(self.labels.bounds).hull(box)
        return (wide,) if self.image is None else (wide, box)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        from imageryxr.kernels import outline as kernel

        labels, image = arrays[0], arrays[1] if self.image is not None else None
        inner = box.slices(self.needs(box)[0])
        paint = self.fill or self.line
        if paint is not None and paint.asked is not None:
            paint.asked.report(self, self.whole, box, labels)
        order = (self.axis, *(a for a in range(3) if a != self.axis))
        drawn = kernel.paint(
            labels.transpose(order),
            None if image is None else image.transpose(order),
            None if self.fill is None else self.fill.table(labels),
            None if self.line is None else self.line.table(labels),
            limit=self.limit,
            steps=self.steps,
            side=self.side,
            merge=self.merge,
            inner=(inner[order[0]], inner[order[1]], inner[order[2]]),
        )
        back = [order.index(a) for a in range(3)]
        return np.asarray(drawn.transpose(*back, 3))


@dataclass(frozen=True)
class _Paint:
    """Which ids have which colour, at an alpha."""

    colors: Colors
    alpha: float
    asked: AskedIds | None

    def table(self, labels: Array) -> Any:
        """Return the table that kernels look colours up in."""
        if self.colors.mode == "table":
            return _table(self)
        import fastremap

        from imageryxr.kernels import lookup

        present = fastremap.unique(labels)
        present = present[present != 0].astype(np.uint64)
        return lookup.build_table(present, _rgba(self.colors.colors_for(present), self.alpha), ())


@lru_cache(maxsize=64)
def _table(paint: _Paint) -> Any:
    from imageryxr.kernels import lookup

    colors = paint.colors
    shown = _rgba(colors.rgb, paint.alpha, colors.alpha)
    return lookup.build_table(colors.ids, shown, _rgba(colors.fallback, paint.alpha))


def _rgba(rgb: Array, alpha: float, own: Array | None = None) -> Array:
    out = np.empty((len(rgb), 4), np.uint8)
    out[:, :3] = rgb
    out[:, 3] = math.floor(alpha * 255 + 0.5) if own is None else np.floor(alpha * own.astype(float) + 0.5)
    return out


def overlay(
    image: xr.DataArray | None,
    segmentation: xr.DataArray,
    *,
    ids: Iterable[int] | None = None,
    colors: Any = None,
    alpha: float = 0.2,
    outline: Outline | int | bool | None = None,
    contrast_limits: tuple[float, float] | None = None,
    axis: str = "z",
) -> xr.DataArray:
    """Draw segments in colour over an image.

    Lazy: reads nothing. A block reads image and segmentation once and draws in one pass.

    Parameters
    ----------
    image : DataArray or None
        Grey values (z, y, x): uint8, or another type with contrast limits. None draws the segments on nothing.
    segmentation : DataArray
        Ids (z, y, x) on the same grid; `align` brings them there.
    ids : iterable of int, optional
        Draw these only. Default: all, or those that ``colors`` names.
    colors : optional
        None for colours that depend on the id alone, so that a block, a job and a figure agree; a dict id → colour;
        the name of a palette; ``"neuroglancer"`` or ``("neuroglancer", seed)`` for the viewer's colours. A colour is
        a name, a hex string, floats from 0 to 1 or ints from 0 to 255. A palette's name spreads its colours over
        ``ids``; where those are not given, the hash of an id picks one, so that two cells may share it: for a
        figure of a few dozen cells give ``palette(unique_ids(segmentation), name)``.
    alpha : float, default 0.2
        How opaque the fill is, 0 to 1. 0 draws outlines only.
    outline : Outline, int or bool, optional
        Lines around segments, too: an `Outline`, a width in pixels, or True for the default one.
    contrast_limits : (low, high), optional
        The grey values that become black and white. Default: those in the image's attrs; uint8 needs none.
    axis : {"z", "y", "x"}, default "z"
        The axis across the slices in which outlines are drawn.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), straight alpha; opaque where there is an image. Attrs are those of the image, and
        with outlines ``outline_axis``.

    Raises
    ------
    GridMismatchError
        If the two do not lie on one grid.
    LayerError
        If the image is neither uint8 nor has contrast limits, or the segmentation is not of an integer type.
    ColorError
        If a colour or palette cannot be read, or an id of ``ids`` has no colour in the dict.
    OptionError
        If another argument is outside its range.

    Warns
    -----
    MissingIdsWarning
        When all blocks are computed in one process, of ids that are not in the data.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=2)
    >>> picture.dims, picture.dtype
    (('z', 'y', 'x', 'rgba'), dtype('uint8'))
    """
    labels = segmentation_volume(segmentation)
    picture = None if image is None else _grey(image, contrast_limits)
    if picture is not None:
        same_grid(picture.grid, labels.grid, "the image and the segmentation")
    style = _norm_outline(outline)
    paint = _paint(colors, ids, _check_alpha(alpha, "alpha"))
    line = None if style is None else replace(paint, alpha=float(style.alpha))
    expr = _painted(labels, picture, paint if alpha > 0 or line is None else None, line, style or Outline(), axis)
    volumes = [labels] if picture is None else [picture, labels]
    attrs = {**volumes[0].attrs}
    if picture is not None and "source" in labels.attrs:
        attrs["segmentation_source"] = labels.attrs["source"]
    if line is not None:
        attrs["outline_axis"] = axis
    return _drawn(expr, volumes, attrs, "overlay")


def outline(
    segmentation: xr.DataArray,
    *,
    width: float = 10,
    side: Side = "out",
    merge: bool = True,
    colors: Any = None,
    alpha: float = 1.0,
    unit: Literal["px", "nm"] = "px",
    ids: Iterable[int] | None = None,
    axis: str = "z",
) -> xr.DataArray:
    """Draw the outlines of segments, as a layer of their own.

    Lazy: reads nothing. Lines are exact across block borders, and at the border of a crop they follow from the data
    beyond it where there are any; the edge of the data makes no line.

    Parameters
    ----------
    segmentation : DataArray
        Ids (z, y, x).
    width, side, merge, alpha, unit
        As in `Outline`.
    colors, ids, axis
        As in `overlay`.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), transparent between the lines; where several outlines lie over each other they
        are laid one over the other in the order of the ids. `composite` puts it over a picture.

    Raises
    ------
    ImageryError
        As `overlay`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample(sample_path).segmentation)
    >>> ix.outline(seg, width=3, side="in", merge=False).sizes["rgba"]
    4
    """
    style = Outline(width, side, merge, alpha, unit)
    labels = segmentation_volume(segmentation)
    paint = _paint(colors, ids, float(style.alpha))
    expr = _painted(labels, None, None, paint, style, axis)
    return _drawn(expr, [labels], {**labels.attrs, "outline_axis": axis}, "outline")


def to_rgba(image: xr.DataArray, *, contrast_limits: tuple[float, float] | None = None) -> xr.DataArray:
    """Turn grey values into an opaque RGBA picture.

    Lazy: reads nothing.

    Parameters
    ----------
    image : DataArray
        Grey values (z, y, x).
    contrast_limits : (low, high), optional
        The values that become black and white; (high, low) inverts. Default: those in the attrs; uint8 needs none.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), alpha 255.

    Raises
    ------
    LayerError
        If the image is not uint8 and no limits are known.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample(sample_path).image)
    >>> ix.to_rgba(em, contrast_limits=(60, 220)).dims
    ('z', 'y', 'x', 'rgba')
    """
    volume = _grey(image, contrast_limits)
    return _drawn(Mapped(volume.expr, _gray_to_rgba, "uint8", tail=(4,)), [volume], volume.attrs, "rgba")


def composite(*layers: xr.DataArray) -> xr.DataArray:
    """Lay RGBA layers over each other, the first at the bottom.

    Lazy: reads nothing, and what several layers need of one source is read once.

    Parameters
    ----------
    *layers : DataArray
        uint8, dims (z, y, x, rgba), on one grid; as `to_rgba`, `overlay` and `outline` give them.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), straight alpha, rounded to the nearest. Attrs are those of the first layer.

    Raises
    ------
    OptionError
        If there is no layer.
    LayerError
        If one is not RGBA.
    GridMismatchError
        If they do not lie on one grid.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> ix.composite(ix.to_rgba(ds.image), ix.outline(ds.segmentation, width=2)).name
    'composite'
    """
    if not layers:
        raise OptionError("composite was given no layers; give RGBA arrays, the bottom one first")
    volumes = [_rgba_volume(layer, i) for i, layer in enumerate(layers)]
    for i, volume in enumerate(volumes[1:], 1):
        same_grid(volume.grid, volumes[0].grid, f"layers {i} and 0")
    return _drawn(_Stacked(tuple(v.expr for v in volumes)), volumes, volumes[0].attrs, "composite")


@dataclass(frozen=True)
class _Stacked(Expr):
    """RGBA layers, the first at the bottom."""

    layers: tuple[Expr, ...]
    tail: tuple[int, ...] = (4,)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @property
    def bounds(self) -> IndexBox:
        whole = self.layers[0].bounds
        for layer in self.layers[1:]:
            whole = whole.hull(layer.bounds)
        return whole

    @property
    def inputs(self) -> tuple[Expr, ...]:
        return self.layers

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        return (box,) * len(self.layers)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        from imageryxr.kernels import fill

        out = arrays[0]
        for layer in arrays[1:]:
            out = fill.alpha_over(out, layer)
        return out


# ---------------------------------------------------------------------------------------------------------
# arguments


def _painted(
    labels: Volume, picture: Volume | None, fill: _Paint | None, line: _Paint | None, style: Outline, axis: str
) -> _Painted:
    across = _check_axis(axis)
    limit, steps, halo = _reach(style, labels.grid, across) if line is not None else (0.0, (1.0, 1.0), (0, 0, 0))
    image = None if picture is None else picture.expr
    side, merge = style.side, style.merge
    return _Painted(labels.expr, image, fill, line, limit, steps, side, merge, across, halo, labels.box)


def _reach(style: Outline, grid: Grid, across: int) -> tuple[float, tuple[float, float], tuple[int, int, int]]:
    from imageryxr.kernels import outline as kernel

    plane = [a for a in range(3) if a != across]
    steps = tuple(grid.axes[a].resolution if style.unit == "nm" else 1.0 for a in plane)
    rows, columns = kernel.reach(float(style.width), (steps[0], steps[1]))
    halo = [0, 0, 0]
    if rows == columns == 0:
        pixel = " × ".join(f"{grid.axes[a].resolution:g}" for a in reversed(plane))
        warnings.warn(
            f"an outline of {style.width:g} {style.unit} is thinner than a pixel ({pixel} nm): nothing of it is drawn",
            ImageryWarning,
            stacklevel=4,
        )
    halo[plane[0]], halo[plane[1]] = rows, columns
    return float(style.width), (steps[0], steps[1]), (halo[0], halo[1], halo[2])


def _drawn(expr: Expr, volumes: list[Volume], attrs: dict[str, Any], name: str) -> xr.DataArray:
    # grey values and ids are what the attribute tells apart; a picture is neither
    kept = {k: v for k, v in attrs.items() if k != "layer_type"}
    return result(expr, volumes[0].grid, *volumes, attrs=kept, name=name, tail="rgba")


def _paint(colors: Any, ids: Iterable[int] | None, alpha: float) -> _Paint:
    # in the order given: palettes that go by rank go by that of the caller
    chosen = None if ids is None else id_list(ids)
    asked = None if chosen is None else AskedIds.of(chosen)
    return _Paint(resolve_colors(colors, chosen), float(alpha), asked)


def _grey(image: xr.DataArray, limits: tuple[float, float] | None) -> Volume:
    volume = volume_of(image)
    dtype = volume.expr.dtype
    if volume.attrs.get("layer_type") == "segmentation":
        raise LayerError(f"{image.name!r} is a segmentation, not an image; overlay takes (image, segmentation)")
    if dtype == np.bool_:
        raise LayerError(f"{image.name!r} is a mask (dtype bool); make grey of it: mask.astype('uint8') * 255")
    limits = volume.attrs.get("contrast_limits") if limits is None else limits
    if limits is None and dtype == np.uint8:
        return volume
    if limits is None:
        raise LayerError(
            f"the image {image.name!r} has dtype {dtype}, and which values are black and white is not known; give "
            "contrast_limits=(low, high), e.g. contrast_limits=(0, 4095), or set them in its attrs"
        )
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise LayerError(f"the image {image.name!r} has dtype {dtype}, which holds no grey values")
    low, high = _check_limits(limits)
    return replace(volume, expr=Mapped(volume.expr, partial(_contrast, low=low, high=high), "uint8"))


def _check_limits(limits: Any) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in limits)
    except (TypeError, ValueError):
        raise OptionError(f"contrast_limits={limits!r} is not a pair of numbers (low, high), e.g. (60, 200)") from None
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        raise OptionError(f"contrast_limits={limits!r} must be two different finite numbers (low, high)")
    return low, high


def _rgba_volume(layer: xr.DataArray, number: int) -> Volume:
    what = f"layer {number}"
    if not isinstance(layer, xr.DataArray) or "rgba" not in layer.dims:
        raise LayerError(f"{what} is no RGBA array; make it one with to_rgba(image), overlay(…) or outline(…)")
    if layer.sizes["rgba"] != 4 or layer.dtype != np.uint8:
        raise LayerError(f"{what} has dtype {layer.dtype} and {layer.sizes['rgba']} channels; RGBA is uint8 with 4")
    return volume_of(layer, tail=("rgba",))


def _norm_outline(outline: Any) -> Outline | None:
    if outline is None or outline is False or (_is_number(outline) and outline == 0):
        return None
    if outline is True:
        return Outline()
    if isinstance(outline, Outline):
        return outline
    if _is_number(outline):
        return Outline(outline)
    raise OptionError(f"outline={outline!r} must be an Outline, a width in pixels, True or None; e.g. outline=3")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _check_alpha(alpha: Any, what: str) -> float:
    if not _is_number(alpha) or not 0 <= alpha <= 1:
        raise OptionError(f"{what}={alpha!r} must be a number from 0 (nothing) to 1 (opaque)")
    return float(alpha)


def _check_axis(axis: Any) -> int:
    if axis not in DIMS:
        raise OptionError(f"axis={axis!r} must be 'z', 'y' or 'x': the axis across the slices")
    return DIMS.index(axis)


def _contrast(values: Array, low: float, high: float) -> Array:
    from imageryxr.kernels import fill

    return fill.to_uint8(values, low, high)


def _gray_to_rgba(values: Array) -> Array:
    from imageryxr.kernels import fill

    return fill.gray_to_rgba(values)
