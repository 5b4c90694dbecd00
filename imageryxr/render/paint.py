"""Expressions and options for filled and outlined segments."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.core.colors import Colors, resolve_colors
from imageryxr.core.display import SegmentDisplay
from imageryxr.core.grid import Grid
from imageryxr.errors import Message, OptionError, Wording, param, warn
from imageryxr.graph.expr import Array, Expr
from imageryxr.graph.labelled import Volume
from imageryxr.ops.segment_ids import RequestedIds, id_array, id_list

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
        in dense tissue, where all cells touch, merged outlines appear only where the segmentation ends. Computing such
        a picture of all cells warns, once per process.
    alpha : float, default 1
        Opacity, from 0 (invisible) to 1 (opaque).
    unit : {"px", "nm"}, default "px"
        Pixels of the picture, or nanometres, which keep the line's width the same at all resolutions.

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
            raise OptionError(
                "an outline cannot have ",
                param("width", self.width),
                f": give a positive number of {self.unit}, e.g. ",
                param("width", 3),
            )
        if self.side not in ("out", "in"):
            raise OptionError("an outline cannot have ", param("side", self.side), ": its side is 'out' or 'in'")
        if self.unit not in ("px", "nm"):
            raise OptionError(
                "an outline cannot have ",
                param("unit", self.unit),
                ": give ",
                param("unit", "px"),
                " (pixels) or ",
                param("unit", "nm"),
                " (nanometres)",
            )
        if not isinstance(self.merge, bool | np.bool_):
            raise OptionError(
                "an outline cannot have ",
                param("merge", self.merge),
                ": give ",
                param("merge", True),
                " or ",
                param("merge", False),
            )
        check_alpha(self.alpha, "alpha of an outline")


@dataclass(frozen=True)
class PaintedSegments(Expr):
    """Expression of filled and outlined segments, over an image or alone."""

    labels: Expr
    image: Expr | None
    fill: Paint | None
    line: Paint | None
    limit: float
    steps: tuple[float, float]
    side: Side
    merge: bool
    axis: int
    """The axis across the slices."""
    halo: tuple[int, int, int]
    whole: IndexBox
    """All voxels of the picture; a later crop does not change them."""
    tail: tuple[int, ...] = (4,)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of RGBA, uint8."""
        return np.dtype(np.uint8)

    @property
    def bounds(self) -> IndexBox:
        """The smallest box that contains the segments and the image."""
        return self.labels.bounds if self.image is None else self.labels.bounds.hull(self.image.bounds)

    @property
    def inputs(self) -> tuple[Expr, ...]:
        """The segments, and the image if there is one."""
        return (self.labels,) if self.image is None else (self.labels, self.image)

    @property
    def requested(self) -> RequestedIds | None:
        """The requested ids, if there are any."""
        paint = self.fill or self.line
        return None if paint is None else paint.requested

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box of the segments, grown by the halo of the lines, and the box of the image."""
        # Outside the data is unknown, not background: a segment cut by the edge of the volume has no line there.
        wide = box.grow(self.halo).clip(self.labels.bounds).hull(box)
        return (wide,) if self.image is None else (wide, box)

    def cores(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box without a halo, once per input."""
        return (box,) * len(self.inputs)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return a block of RGBA, painted in one pass."""
        from imageryxr.kernels import outline as kernel

        labels, image = arrays[0], arrays[1] if self.image is not None else None
        inner = box.slices(self.needs(box)[0])
        if self.requested is not None:
            self.requested.record(self, self.whole, box, labels)
        order = (self.axis, *(a for a in range(3) if a != self.axis))
        self._warn_if_merged(labels[inner].transpose(order))
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

    def _warn_if_merged(self, labels: Array) -> None:
        """Warn once per process if merged outlines of dense tissue are invisible."""
        line = self.line
        if (
            line is None
            or not self.merge
            or self.side != "out"
            or line.selected is not None
            or line.requested is not None
        ):
            return
        if _HAS_WARNED or not line.colors.shows_all or not _is_dense(labels):
            return
        with _WARNING_LOCK:  # several threads draw blocks
            if _HAS_WARNED:
                return
            _HAS_WARNED.append(True)
        warn(
            Message(
                "the cells of the segmentation touch each other and are outlined as one, so ",
                "outlines appear only where the segmentation ends; give ",
                Wording("outline=Outline(2, side='in', merge=False)", "--outline 2 --outline-side in --no-merge"),
                " to outline each cell",
            )
        )


# Not empty if this process has warned about merged outlines: one warning is enough for all blocks and pictures.
_HAS_WARNED: list[bool] = []
_WARNING_LOCK = threading.Lock()
# A block with fewer borders in its sampled rows is too small to be judged.
_MIN_BORDERS = 250


def _is_dense(labels: Array) -> bool:
    """Return whether nearly all borders in a block are between two cells; samples every fourth row."""
    rows = labels[:, ::4]
    left, right = rows[..., :-1], rows[..., 1:]
    borders = left != right
    count = int(np.count_nonzero(borders))
    if count < _MIN_BORDERS:
        return False
    of_background = int(np.count_nonzero(borders & ((left == 0) | (right == 0))))
    return of_background < 0.01 * count


@dataclass(frozen=True)
class Paint:
    """Colours and alphas of segment ids."""

    colors: Colors
    alpha: float
    """Alpha of the selected segments."""
    requested: RequestedIds | None = None
    """Requested ids; those that do not occur in the data are reported."""
    selected: RequestedIds | None = None
    """Segments that have ``alpha``; None for all."""
    rest: float = 0.0
    """Alpha of the other segments."""
    own: tuple[bytes, bytes] | None = None
    """Ids (ascending uint64) and alphas (float64) of segments that have their own alpha."""
    saturation: float = 1.0

    @property
    def has_fill(self) -> bool:
        """Whether any segment is filled."""
        return self.alpha > 0 or self.rest > 0 or self.own is not None

    def line(self, alpha: float) -> Paint:
        """Return the paint of outlines; only selected segments have them."""
        return replace(self, alpha=float(alpha), rest=0.0, own=None)

    def table(self, labels: Array) -> Any:
        """Return the colour table of the kernels."""
        plain = self.selected is None and self.own is None and self.saturation == 1
        if plain and self.colors.mode == "table":
            return _cached_table(self)
        from imageryxr.kernels import color_table, relabel

        present = relabel.distinct_ids(labels)
        rgba = self._rgba(present)
        shown = rgba[:, 3] > 0
        return color_table.build_color_table(present[shown], rgba[shown], ())

    def _rgba(self, ids: Array) -> Array:
        shown = self.colors.is_shown(ids)
        alpha = np.full(len(ids), self.alpha)
        if self.selected is not None:
            alpha = np.where(np.isin(ids, self.selected.array), self.alpha, self.rest)
        alpha = alpha * (self.colors.alphas_for(ids) / 255)
        if self.own is not None:
            known, alphas = np.frombuffer(self.own[0], np.uint64), np.frombuffer(self.own[1], np.float64)
            places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
            alpha = np.where((known[places] == ids) & shown, alphas[places], alpha)
        out = np.empty((len(ids), 4), np.uint8)
        rgb = self.colors.colors_for(ids).astype(float)
        out[:, :3] = np.floor(255 + (rgb - 255) * self.saturation + 0.5)
        out[:, 3] = np.floor(alpha * 255 + 0.5)
        return out


@lru_cache(maxsize=64)
def _cached_table(paint: Paint) -> Any:
    from imageryxr.kernels import color_table

    colors = paint.colors
    shown = _rgba(colors.rgb, paint.alpha, colors.alpha)
    return color_table.build_color_table(colors.ids, shown, _rgba(colors.fallback, paint.alpha))


def _rgba(rgb: Array, alpha: float, own: Array | None = None) -> Array:
    out = np.empty((len(rgb), 4), np.uint8)
    out[:, :3] = rgb
    out[:, 3] = math.floor(alpha * 255 + 0.5) if own is None else np.floor(alpha * own.astype(float) + 0.5)
    return out


# ---------------------------------------------------------------------------------------------------------
# arguments


def paint_segments(
    labels: Expr, grid: Grid, image: Expr | None, fill: Paint | None, line: Paint | None, style: Outline, axis: str
) -> PaintedSegments:
    """Return the expression of filled and outlined segments over an image."""
    across = check_axis(axis)
    limit, steps, halo = _outline_reach(style, grid, across) if line is not None else (0.0, (1.0, 1.0), (0, 0, 0))
    return PaintedSegments(labels, image, fill, line, limit, steps, style.side, style.merge, across, halo, grid.box)


def _outline_reach(style: Outline, grid: Grid, across: int) -> tuple[float, tuple[float, float], tuple[int, int, int]]:
    from imageryxr.kernels import outline as kernel

    plane = [a for a in range(3) if a != across]
    steps = tuple(grid.axes[a].resolution if style.unit == "nm" else 1.0 for a in plane)
    rows, columns = kernel.halo_size(float(style.width), (steps[0], steps[1]))
    halo = [0, 0, 0]
    if rows == columns == 0:
        pixel = " × ".join(f"{grid.axes[a].resolution:g}" for a in reversed(plane))
        warn(f"an outline of {style.width:g} {style.unit} is thinner than a pixel ({pixel} nm) and is not drawn")
    halo[plane[0]], halo[plane[1]] = rows, columns
    return float(style.width), (steps[0], steps[1]), (halo[0], halo[1], halo[2])


def parse_paint(colors: Any, ids: Iterable[int] | None, alpha: Any, rest_alpha: Any, volume: Volume | None) -> Paint:
    """Return the paint for the caller's colours and alphas; missing ones come from the layer's attributes."""
    look = None if volume is None else SegmentDisplay.from_attrs(volume.attrs)
    # in the caller's order, because some palettes assign colours by rank
    chosen = None if ids is None else id_list(ids)
    base, own = _parse_alphas(alpha, 0.2 if look is None else look.selected_alpha)
    rest = None if rest_alpha is None else check_alpha(rest_alpha, "rest_alpha")
    if look is None:
        return _paint_named(resolve_colors(colors, chosen), colors, chosen, base, rest or 0.0, own)
    found = look.resolved_colors if colors is None else resolve_colors(colors, chosen)
    if chosen is not None or isinstance(colors, Mapping):
        return _paint_named(found, colors, chosen, base, rest or 0.0, own)
    everything = look.all_if_none_selected and not look.selected_ids
    shown = None if everything else RequestedIds.of([i for i in look.selected_ids if i])
    own = {**look.alphas, **own} if colors is None else own
    saturation = look.saturation if colors is None else 1.0
    return Paint(found, base, None, shown, look.rest_alpha if rest is None else rest, _pack_alphas(own), saturation)


def _paint_named(
    found: Colors, colors: Any, chosen: list[int] | None, alpha: float, rest: float, own: dict[int, float]
) -> Paint:
    """Return the paint of the segments that the caller listed, and of the others with alpha ``rest``."""
    if rest > 0 and isinstance(colors, Mapping):
        named = RequestedIds.of([i for i in found.ids.tolist() if i])
        # segments without a colour in the dict get the default colour of their id
        found = replace(resolve_colors(colors), fallback=resolve_colors(None).fallback)
        if chosen is None:
            return Paint(found, alpha, None, named, rest, _pack_alphas(own))
    if chosen is None:
        return Paint(found, alpha, own=_pack_alphas(own))
    requested = RequestedIds.of(chosen)
    own = {i: a for i, a in own.items() if i in set(requested.array.tolist())}
    if rest > 0 and not found.shows_all:
        found = _add_other_colors(found, resolve_colors(colors))
    needed = found.shows_all or rest > 0
    return Paint(found, alpha, requested, requested if needed else None, rest, _pack_alphas(own))


def _add_other_colors(chosen: Colors, everyone: Colors) -> Colors:
    others = ~np.isin(everyone.ids, chosen.ids)
    ids = np.concatenate([chosen.ids, everyone.ids[others]])
    rgb = np.concatenate([chosen.rgb, everyone.rgb[others]])
    return replace(everyone, ids=ids, rgb=rgb, alpha=None)


def _parse_alphas(alpha: Any, default: float) -> tuple[float, dict[int, float]]:
    if alpha is None:
        return default, {}
    if not isinstance(alpha, Mapping):
        return check_alpha(alpha, "alpha"), {}
    own = {}
    for key, value in alpha.items():
        (number,) = id_array([key], "alpha").tolist()
        own[number] = check_alpha(value, f"alpha[{key!r}]")
    return default, own


def _pack_alphas(own: Mapping[int, float]) -> tuple[bytes, bytes] | None:
    if not own:
        return None
    ids = np.array(sorted(own), dtype=np.uint64)
    return ids.tobytes(), np.array([own[i] for i in ids.tolist()], dtype=np.float64).tobytes()


def parse_outline(outline: Any) -> Outline | None:
    """Return the outline for a width, a bool, an `Outline` or None."""
    if outline is None or outline is False or (_is_number(outline) and outline == 0):
        return None
    if outline is True:
        return Outline()
    if isinstance(outline, Outline):
        return outline
    if _is_number(outline):
        return Outline(outline)
    raise OptionError(
        param("outline", outline), " must be an Outline, a width in pixels, True or None; e.g. ", param("outline", 3)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_alpha(alpha: Any, what: str) -> float:
    """Return an alpha, or raise `OptionError`."""
    if not _is_number(alpha) or not 0 <= alpha <= 1:
        raise OptionError(param(what, alpha), " must be a number from 0 (nothing) to 1 (opaque)")
    return float(alpha)


def check_axis(axis: Any) -> int:
    """Return the number of the axis across the slices, or raise `OptionError`."""
    if axis not in DIMS:
        raise OptionError(param("axis", axis), " must be 'z', 'y' or 'x': the axis across the slices")
    return DIMS.index(axis)
