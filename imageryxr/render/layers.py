"""Options of one layer of an overlay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from imageryxr.core.colors.mapping import ColorSpec
from imageryxr.core.colors.parse import hex_color, parse_color
from imageryxr.core.validate import check_choice, check_flag, check_number, to_flag, to_number
from imageryxr.errors import OptionError, param

Side = Literal["out", "in"]


@dataclass(frozen=True, slots=True)
class Outline:
    """Options for outlines, for ``overlay(outline=…)``.

    Outlines are drawn slice by slice, in the plane of the picture. A pixel belongs to an outline if its distance to the
    segment is at most ``width``. The distance is counted in steps along rows and columns, as in repeated dilation by a
    cross.

    Parameters
    ----------
    width : float, default 10
        Width of the line in ``unit``.
    side : {"out", "in"}, default "out"
        Side of the border on which the line is drawn: outside, which keeps the whole segment visible, or inside, so
        that lines of neighbours never cover each other.
    merge : bool, default True
        Whether segments that touch are outlined as one. Use False with ``side="in"`` to see lines between neighbours:
        in dense tissue, where all cells touch, merged outlines appear only where the segmentation ends. A warning, once
        per process, reports such a picture of all cells.
    alpha : float, default 1
        Opacity, from 0 (invisible) to 1 (opaque).
    unit : {"px", "nm"}, default "px"
        Pixels of the picture, or nanometres, which keep the line's width the same at all resolutions.
    color : optional
        One colour for all lines, such as ``"white"``, in any form of a colour in `overlay`. Default: that of each
        segment.

    Raises
    ------
    OptionError
        If a value is outside its range.
    ColorError
        If ``color`` is not a colour.

    Examples
    --------
    >>> import imageryxr as ix
    >>> ix.Outline(3, side="in", color="white")
    Outline(width=3, side='in', merge=True, alpha=1.0, unit='px', color='#ffffff')
    """

    width: float = 10
    side: Side = "out"
    merge: bool = True
    alpha: float = 1.0
    unit: Literal["px", "nm"] = "px"
    color: Any = None

    def __post_init__(self) -> None:
        unit = check_choice("unit", self.unit, ("px", "nm"), expected="'px' (pixels) or 'nm' (nanometres)")
        checked = {
            "width": check_number("width", self.width, above=0, unit=unit),
            "side": check_choice("side", self.side, ("out", "in")),
            "merge": check_flag("merge", self.merge),
            "alpha": check_alpha(self.alpha, "outline alpha"),
            "unit": unit,
            "color": None if self.color is None else hex_color(parse_color(self.color)),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class Layer:
    """A segmentation, or masks, with its own drawing options, for ``overlay(image, [Layer(…), …])``.

    Parameters
    ----------
    segmentation : DataArray, or masks
        As in `overlay`.
    ids, colors, alpha, rest_alpha, outline, overlap : optional
        As in `overlay`. None stands for the value in the call of `overlay`; ``outline=False`` draws no lines.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> cells = ix.Layer(ds.segmentation, alpha=0.2)
    >>> one = ix.Layer(ds.segmentation, ids=[1], colors={1: "red"}, alpha=0, outline=2)
    >>> ix.overlay(ds.image, [cells, one]).sizes["rgba"]
    4
    """

    segmentation: Any = field(repr=False)
    ids: Iterable[int] | None = None
    colors: ColorSpec | Sequence[Any] = None
    alpha: float | Mapping[Any, float] | None = None
    rest_alpha: float | None = None
    outline: Outline | int | bool | None = None
    overlap: bool | None = None

    def __post_init__(self) -> None:
        if self.overlap is not None:
            check_flag("overlap", self.overlap, "True (later masks cover earlier ones), False or None")

    def fill_defaults(self, call: Layer) -> Layer:
        """Return the layer with its unset options taken from the call."""
        names = ("ids", "colors", "alpha", "rest_alpha", "outline", "overlap")
        return replace(self, **{n: getattr(call, n) for n in names if getattr(self, n) is None})

    @property
    def holds_masks(self) -> bool:
        """Whether the layer is a bool array, a dict or list of arrays, or a result of `split_masks`."""
        item = self.segmentation
        if isinstance(item, list | tuple) or (isinstance(item, Mapping) and not isinstance(item, xr.Dataset)):
            return True
        return is_mask(item) or (isinstance(item, xr.DataArray) and "segment" in item.dims)


def is_mask(item: Any) -> bool:
    """Return whether an object is a single mask: a bool array without a "segment" dim."""
    return hasattr(item, "dtype") and item.dtype == np.bool_ and not (hasattr(item, "dims") and "segment" in item.dims)


def parse_outline(outline: Any) -> Outline | None:
    """Return the outline for a width, a bool, an `Outline` or None."""
    width, flag = to_number(outline), to_flag(outline)
    if outline is None or flag is False or width == 0:
        return None
    if flag is True:
        return Outline()
    if isinstance(outline, Outline):
        return outline
    if width is not None:
        return Outline(width)
    raise OptionError(
        param("outline", outline), " must be an Outline, a width in pixels, True or None; e.g. ", param("outline", 3)
    )


def check_alpha(alpha: Any, what: str) -> float:
    """Return an alpha, or raise `OptionError`."""
    return check_number(what, alpha, 0, 1, expected="a number from 0 (nothing) to 1 (opaque)")
