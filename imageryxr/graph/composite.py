"""Expressions that composite RGBA layers and combine masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from imageryxr.core.bbox import IndexBox
from imageryxr.graph.expr import Array, Expr


@dataclass(frozen=True)
class LayerStack(Expr):
    """Composite of RGBA layers, the first at the bottom."""

    layers: tuple[Expr, ...]
    first_wins: bool = False
    """Whether the lowest layer with any paint decides a pixel, instead of the layers above covering it."""
    tail: tuple[int, ...] = (4,)

    @property
    def dtype(self) -> np.dtype[Any]:
        """RGBA is uint8."""
        return np.dtype(np.uint8)

    @property
    def bounds(self) -> IndexBox:
        """The smallest box that contains all layers."""
        whole = self.layers[0].bounds
        for layer in self.layers[1:]:
            whole = whole.hull(layer.bounds)
        return whole

    @property
    def inputs(self) -> tuple[Expr, ...]:
        """The layers."""
        return self.layers

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the same box for each layer."""
        return (box,) * len(self.layers)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the composited layers."""
        from imageryxr.kernels import fill

        out = arrays[0]
        for layer in arrays[1:]:
            out = np.where(out[..., 3:] > 0, out, layer) if self.first_wins else fill.alpha_over(out, layer)
        return out


@dataclass(frozen=True)
class MaskedLayer(Expr):
    """An RGBA layer, transparent where the layer ``by`` is transparent."""

    layer: Expr
    by: Expr
    tail: tuple[int, ...] = (4,)

    @property
    def dtype(self) -> np.dtype[Any]:
        """RGBA is uint8."""
        return np.dtype(np.uint8)

    @property
    def bounds(self) -> IndexBox:
        """The bounds of the layer."""
        return self.layer.bounds

    @property
    def inputs(self) -> tuple[Expr, ...]:
        """Both layers."""
        return (self.layer, self.by)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the same box for both layers."""
        return (box, box)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the first layer where the second has any paint, and transparent pixels elsewhere."""
        return np.where(arrays[1][..., 3:] > 0, arrays[0], np.uint8(0))


@dataclass(frozen=True)
class MaskUnion(Expr):
    """Union of several masks: 1 where any of them is not 0."""

    masks: tuple[Expr, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Masks are labels, 0 and 1, of type uint8."""
        return np.dtype(np.uint8)

    @property
    def bounds(self) -> IndexBox:
        """The smallest box that contains all masks."""
        whole = self.masks[0].bounds
        for mask in self.masks[1:]:
            whole = whole.hull(mask.bounds)
        return whole

    @property
    def inputs(self) -> tuple[Expr, ...]:
        """The masks."""
        return self.masks

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the same box for each mask."""
        return (box,) * len(self.masks)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the union."""
        return np.asarray(np.any([a != 0 for a in arrays], axis=0)).astype(np.uint8)
