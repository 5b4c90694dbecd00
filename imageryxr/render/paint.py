"""Expressions of pictures: filled and outlined segments, and stacks of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from imageryxr.core.bbox import IndexBox
from imageryxr.core.colors import Colors, resolve_colors
from imageryxr.core.colors.ids import list_ids
from imageryxr.core.colors.palettes import TypePalette
from imageryxr.core.colors.parse import parse_color
from imageryxr.core.display import SegmentDisplay, describe_colors
from imageryxr.core.fork import cached_property
from imageryxr.core.grid import Grid
from imageryxr.errors import Message, Wording, warn
from imageryxr.graph.cutout_arrays import check_same_positions
from imageryxr.graph.expr import Array, Expr, Mapped
from imageryxr.graph.labelled import Volume
from imageryxr.ops.segment_ids import RequestedIds, RequestsIds, id_array
from imageryxr.render.layers import Layer, Outline, check_alpha, parse_outline

# Arguments of the kernel for pictures without outlines.
_NO_OUTLINE = Outline()


class RgbaExpr(Expr):
    """Base of expressions of RGBA pictures."""

    dtype = np.dtype(np.uint8)
    tail = (4,)


@dataclass(frozen=True)
class LayerStack(RgbaExpr):
    """Composite of RGBA layers, the first at the bottom."""

    layers: tuple[Expr, ...]
    first_wins: bool = False
    """Whether the lowest layer with any alpha is shown at each pixel, instead of layers drawn over each other."""

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the composited layers."""
        from imageryxr.kernels import fill

        out = arrays[0]
        for layer in arrays[1:]:
            out = np.where(out[..., 3:] > 0, out, layer) if self.first_wins else fill.alpha_over(out, layer)
        return out


def grey_to_rgba(image: Expr, opacity: float = 1.0) -> Expr:
    """Return grey values as RGBA with the given opacity."""
    return Mapped(image, partial(_gray_to_rgba, opacity=opacity), "uint8", tail=(4,))


def _gray_to_rgba(values: Array, opacity: float) -> Array:
    from imageryxr.kernels import fill

    out = fill.gray_to_rgba(values)
    if opacity < 1:
        out = np.array(out)
        out[..., 3] = int(opacity * 255 + 0.5)
    return out


@dataclass(frozen=True)
class PaintedSegments(RgbaExpr, RequestsIds):
    """Filled and outlined segments, over an image or alone."""

    labels: Expr
    image: Expr | None
    colors: Colors
    grid: Grid
    """The grid of the picture when it was drawn; cropping the picture does not change it."""
    axis: int
    """The axis across the slices."""
    outline: Outline | None
    alpha: float
    """Alpha of the fill of the selected segments; their outlines have the alpha of ``outline``."""
    requested: RequestedIds | None = None
    """Requested ids; those that do not occur in the data are reported."""
    selected: RequestedIds | None = None
    """Segments that have ``alpha`` and outlines; None for all."""
    rest: float = 0.0
    """Alpha of the fill of the other segments."""
    own: tuple[bytes, bytes] | None = None
    """Ids (ascending uint64) and alphas (float64) of segments whose fill has its own alpha."""
    saturation: float = 1.0

    @cached_property
    def _steps(self) -> tuple[float, float]:
        """Length of a pixel along rows and columns, in the unit of the outline's width."""
        return _pixel_size(self.outline, self.grid, self.axis)

    @cached_property
    def _halo(self) -> tuple[int, int, int]:
        halo = [0, 0, 0]
        if self.outline is not None:
            from imageryxr.kernels import outline as kernel

            rows, columns = _plane_axes(self.axis)
            halo[rows], halo[columns] = kernel.halo_size(float(self.outline.width), self._steps)
        return (halo[0], halo[1], halo[2])

    def request(self) -> tuple[RequestedIds, IndexBox] | None:
        """Return the requested ids and all voxels of the picture."""
        return None if self.requested is None else (self.requested, self.grid.box)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box of the segments, grown by the halo of the lines, and the box of the image."""
        # Voxels outside the data are unknown, not background, so no line is drawn where the volume cuts a segment.
        wide = box.grow(self._halo).clip(self.labels.bounds).hull(box)
        return (wide, box)[: len(self.inputs)]

    def cores(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box without a halo, once per input."""
        return (box,) * len(self.inputs)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return a block of RGBA, painted in one pass."""
        from imageryxr.kernels import outline as kernel

        labels, image = arrays[0], arrays[1] if self.image is not None else None
        inner = box.slices(self.needs(box)[0])
        self.record_request(box, labels)
        order = (self.axis, *_plane_axes(self.axis))
        self._warn_if_merged(labels[inner].transpose(order))
        style = self.outline or _NO_OUTLINE
        drawn = kernel.paint(
            labels.transpose(order),
            None if image is None else image.transpose(order),
            self._fill_table(labels),
            None if self.outline is None else self._line_table(labels, self.outline),
            limit=float(style.width),
            steps=self._steps,
            side=style.side,
            merge=style.merge,
            inner=(inner[order[0]], inner[order[1]], inner[order[2]]),
        )
        back = [order.index(a) for a in range(3)]
        return np.asarray(drawn.transpose(*back, 3))

    def describe_colors(self, given: Any) -> dict[str, Any]:
        """Return the colours of the segments and their types, for the attributes of the picture."""
        selected = None if self.selected is None else self.selected.array.tolist()
        types = given.types if isinstance(given, TypePalette) else None
        return describe_colors(self.colors, selected, self.rest > 0, self.saturation, types)

    def _fill_table(self, labels: Array) -> Any:
        """Return the colour table of the fill; None if only outlines are drawn."""
        is_filled = self.alpha > 0 or self.rest > 0 or self.own is not None
        return self._table(labels, self.alpha, self.rest, self.own) if is_filled or self.outline is None else None

    def _line_table(self, labels: Array, style: Outline) -> Any:
        """Return the colour table of the outlines."""
        if style.color is None:
            return self._table(labels, style.alpha, 0.0, None)
        *rgb, alpha = parse_color(style.color)
        in_one_color = replace(self, colors=self.colors.in_one_color(rgb), saturation=1.0)
        return in_one_color._table(labels, style.alpha * alpha / 255, 0.0, None)

    def _table(self, labels: Array, alpha: float, rest: float, own: tuple[bytes, bytes] | None) -> Any:
        """Return the colour table of the kernels; ``alpha``, ``rest`` and ``own`` as in the fields of this class."""
        if self.colors.mode == "table" and self.selected is None and own is None and self.saturation == 1:
            return _cached_table(self.colors, alpha)
        from imageryxr.kernels import color_table, relabel

        ids = relabel.distinct_ids(labels)
        shown = self.colors.is_shown(ids)
        alphas = np.full(len(ids), alpha)
        if self.selected is not None:
            alphas = np.where(np.isin(ids, self.selected.array), alpha, rest)
        alphas = alphas * (self.colors.alphas_for(ids) / 255)
        if own is not None:
            known, own_alphas = np.frombuffer(own[0], np.uint64), np.frombuffer(own[1], np.float64)
            places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
            alphas = np.where((known[places] == ids) & shown, own_alphas[places], alphas)
        rgba = np.empty((len(ids), 4), np.uint8)
        rgb = self.colors.colors_for(ids).astype(float)
        rgba[:, :3] = np.floor(255 + (rgb - 255) * self.saturation + 0.5)
        rgba[:, 3] = np.floor(alphas * 255 + 0.5)
        drawn = rgba[:, 3] > 0
        return color_table.build_color_table(ids[drawn], rgba[drawn], ())

    def _warn_if_merged(self, labels: Array) -> None:
        """Warn once per process if merged outlines of dense tissue are invisible."""
        line = self.outline
        if (
            line is None
            or not line.merge
            or line.side != "out"
            or self.selected is not None
            or self.requested is not None
        ):
            return
        if _HAS_WARNED or not self.colors.shows_all or not _is_dense(labels):
            return
        _HAS_WARNED.append(this := object())
        if _HAS_WARNED[0] is not this:  # another thread that draws blocks has warned first
            return
        warn(
            Message(
                "the cells of the segmentation touch each other and are outlined as one, so ",
                "outlines appear only where the segmentation ends; give ",
                Wording("outline=Outline(2, side='in', merge=False)", "--outline 2 --outline-side in --no-merge"),
                " to outline each cell",
            )
        )


# Not empty after this process has warned about merged outlines, to warn once for all blocks and pictures.
_HAS_WARNED: list[object] = []
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


@lru_cache(maxsize=64)
def _cached_table(colors: Colors, alpha: float) -> Any:
    from imageryxr.kernels import color_table

    shown = _rgba(colors.rgb, alpha, colors.alpha)
    return color_table.build_color_table(colors.ids, shown, _rgba(colors.fallback, alpha))


def _rgba(rgb: Array, alpha: float, own: Array | None = None) -> Array:
    out = np.empty((len(rgb), 4), np.uint8)
    out[:, :3] = rgb
    out[:, 3] = math.floor(alpha * 255 + 0.5) if own is None else np.floor(alpha * own.astype(float) + 0.5)
    return out


def _plane_axes(across: int) -> tuple[int, int]:
    """Return the axes of rows and columns of a slice."""
    rows, columns = (axis for axis in range(3) if axis != across)
    return rows, columns


def _pixel_size(style: Outline | None, grid: Grid, across: int) -> tuple[float, float]:
    if style is None or style.unit == "px":
        return (1.0, 1.0)
    rows, columns = _plane_axes(across)
    return grid.axes[rows].resolution, grid.axes[columns].resolution


def warn_if_thin(style: Outline, grid: Grid, across: int) -> None:
    """Warn if an outline is thinner than a pixel."""
    size = _pixel_size(style, grid, across)
    if style.width >= min(size):
        return  # before the import of the kernels, which is slow and only needed to compute blocks
    from imageryxr.kernels import outline as kernel

    if kernel.halo_size(float(style.width), size) == (0, 0):
        pixel = " × ".join(f"{grid.axes[a].resolution:g}" for a in reversed(_plane_axes(across)))
        warn(f"an outline of {style.width:g} {style.unit} is thinner than a pixel ({pixel} nm) and is not drawn")


@dataclass
class Canvas:
    """The parts of a picture, to which layers are added from bottom to top."""

    image: Volume | None
    axis: int
    """The axis across the slices."""
    exprs: list[Expr] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)
    """The image, if there is one, and the segmentations and masks."""
    colors: list[dict[str, Any]] = field(default_factory=list)
    """The colours of each layer, for the attributes of the picture."""
    is_outlined: bool = False

    def __post_init__(self) -> None:
        if self.image is not None:
            self.volumes.append(self.image)

    def take_image(self) -> Expr | None:
        """Return the image for the first layer, which is drawn with it in one pass, and None for later layers."""
        return None if self.image is None or self.exprs else self.image.expr

    def add_volume(self, volume: Volume, what: str) -> None:
        """Add a volume that is drawn; raise `GridMismatchError` unless it is on the grid of the first one."""
        if self.image is not None:
            check_same_positions(self.image, volume, f"the image and {what}")
        elif self.volumes:
            check_same_positions(volume, self.volumes[0], f"{what} and the first one")
        self.volumes.append(volume)

    def add_layer(self, exprs: Sequence[Expr], colors: dict[str, Any]) -> None:
        """Draw the expressions of a layer over those below."""
        self.exprs += exprs
        self.colors.append(colors)


# ---------------------------------------------------------------------------------------------------------
# arguments


def paint_segments(labels: Volume, image: Expr | None, layer: Layer, axis: int) -> PaintedSegments:
    """Return the expression of a segmentation with the options of a layer; by default with the colours in its attrs."""
    style = parse_outline(layer.outline)
    if style is not None:
        warn_if_thin(style, labels.grid, axis)
    look = SegmentDisplay.from_attrs(labels.attrs)
    # The order of the caller is kept, because some palettes assign colours in the order of the ids.
    chosen = None if layer.ids is None else list_ids(layer.ids, low=1)
    alpha, own = _parse_alphas(layer.alpha, 0.2 if look is None else look.selected_alpha)
    rest = None if layer.rest_alpha is None else check_alpha(layer.rest_alpha, "rest_alpha")
    given: Any = layer.colors
    colors = look.resolved_colors if look is not None and given is None else resolve_colors(given, chosen)
    painted = PaintedSegments(labels.expr, image, colors, labels.grid, axis, style, alpha)
    if look is None or chosen is not None or isinstance(given, Mapping):
        return _paint_named(painted, given, chosen, rest or 0.0, own)
    everything = look.all_if_none_selected and not look.selected_ids
    painted = replace(
        painted,
        selected=None if everything else RequestedIds.of([i for i in look.selected_ids if i]),
        rest=look.rest_alpha if rest is None else rest,
        own=_pack_alphas(own if given is not None else {**look.alphas, **own}),
    )
    return painted if given is not None else replace(painted, saturation=look.saturation)


def _paint_named(
    painted: PaintedSegments, colors: Any, chosen: list[int] | None, rest: float, own: dict[int, float]
) -> PaintedSegments:
    """Return the expression in which the segments that the caller listed are drawn, the others with alpha ``rest``."""
    found = painted.colors
    if rest > 0 and isinstance(colors, Mapping):
        named = RequestedIds.of([i for i in found.ids.tolist() if i])
        # Segments without a colour in the dict get the default colour of their id.
        found = replace(resolve_colors(colors), fallback=resolve_colors(None).fallback)
        if chosen is None:
            return replace(painted, colors=found, selected=named, rest=rest, own=_pack_alphas(own))
    if chosen is None:
        return replace(painted, own=_pack_alphas(own))
    requested = RequestedIds.of(chosen)
    own = {i: a for i, a in own.items() if i in set(requested.array.tolist())}
    if rest > 0 and not found.shows_all:
        found = _add_other_colors(found, resolve_colors(colors))
    selected = requested if found.shows_all or rest > 0 else None
    return replace(painted, colors=found, requested=requested, selected=selected, rest=rest, own=_pack_alphas(own))


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
