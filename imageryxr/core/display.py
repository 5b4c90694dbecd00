"""How a layer wants to be shown: the attributes that say so, named in one place.

Layers opened from a Neuroglancer link or a datastack carry these attributes, `overlay` follows them unless told
otherwise, and `neuroglancer_link` writes them back. They survive every verb. Nested ones are held as JSON text, which
any file takes; readers also accept the nested form, and the arrays and scalars that a file gives back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from imageryxr.core.attrs import decoded
from imageryxr.core.colors.mapping import Colors
from imageryxr.core.colors.neuroglancer import MAX_SEED
from imageryxr.core.colors.parse import RGBA, parse_color
from imageryxr.errors import OptionError

#: Name of a layer in the viewer.
LAYER = "layer"
#: Whether it is switched on there.
VISIBLE = "visible"
#: Grey values shown black and white.
CONTRAST_LIMITS = "contrast_limits"
#: How opaque an image lies over the layers below it.
OPACITY = "opacity"
#: Segments that are switched on.
SELECTED_IDS = "selected_ids"
#: Segments that are listed, and switched off.
HIDDEN_IDS = "hidden_ids"
#: Segments whose colour somebody chose, as JSON: id, as a string of digits, to "#rrggbb" or "#rrggbbaa".
COLORS = "colors"
#: Seed of the viewer's colour hash.
COLOR_SEED = "color_seed"
#: One colour for all other segments, in place of the hash.
DEFAULT_COLOR = "default_color"
#: How opaque selected segments are.
SELECTED_ALPHA = "selected_alpha"
#: How opaque the others are.
REST_ALPHA = "rest_alpha"
#: 1 for the colours as they are, 0 for white.
SATURATION = "saturation"
#: Sets of ids that are shown as one, each as its smallest: lists of them, as JSON.
EQUIVALENCES = "equivalences"
#: Whether all segments are shown where none is selected.
ALL_IF_NONE = "all_if_none_selected"

#: Source of a layer as its link has it, as JSON, where that is more than an address.
LINK_SOURCE = "link_source"
#: Instant of a layer that changes in time, as its link writes it: viewers differ in the unit.
LINK_TIMESTAMP = "link_timestamp"
#: What else a link says of a layer, as JSON: it goes back into a link as it came.
LINK_LAYER = "link_layer"
#: Shader of an image.
SHADER = "shader"

#: Of a whole link: nm per unit of its positions, by axis, as JSON; the point it looks at; nm per pixel on the screen;
#: the quaternion (x, y, z, w) of its cross sections; all layers, from bottom to top; as JSON, those not opened.
DIMENSIONS = "dimensions"
POSITION = "position"
NM_PER_PIXEL = "nm_per_pixel"
ORIENTATION = "orientation"
LAYER_ORDER = "layer_order"
UNSUPPORTED = "unsupported_layers"
#: Layers of a link that were not asked for, each as it stands there, as JSON.
UNOPENED = "unopened_layers"
#: The dimensions that the screen calls x, y and z, where these are others.
DISPLAY = "display_dimensions"
#: What else a link says, as JSON: it goes back into a link as it came.
LINK_STATE = "link_state"


@dataclass(frozen=True)
class SegmentLook:
    """How the segments of a layer are shown; the defaults are Neuroglancer's."""

    selected_ids: tuple[int, ...] = ()
    hidden_ids: tuple[int, ...] = ()
    colors: Mapping[int, RGBA] = field(default_factory=dict)
    color_seed: int = 0
    default_color: RGBA | None = None
    selected_alpha: float = 0.5
    rest_alpha: float = 0.0
    saturation: float = 1.0
    all_if_none_selected: bool = True

    def attrs(self) -> dict[str, Any]:
        """Return the look as attributes, all of them: those at their defaults say that the layer has a look."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        out[SELECTED_IDS], out[HIDDEN_IDS] = list(self.selected_ids), list(self.hidden_ids)
        out[COLORS] = {str(segment): hex_color(color) for segment, color in self.colors.items()}
        out[DEFAULT_COLOR] = "" if self.default_color is None else hex_color(self.default_color)
        return out

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> SegmentLook | None:
        """Read the look that attributes describe, or None where they say nothing of one.

        Raises
        ------
        OptionError, ColorError
            If an attribute was set to something that it cannot be.
        """
        said = {f.name: attrs[f.name] for f in fields(cls) if f.name in attrs}
        if not said:
            return None
        for name in (SELECTED_IDS, HIDDEN_IDS):
            if name in said:
                said[name] = tuple(_whole(i, name, 2**64 - 1) for i in np.atleast_1d(np.asarray(said[name], object)))
        if COLORS in said:
            colors = dict(decoded(said[COLORS]))
            said[COLORS] = {_whole(k, COLORS, 2**64 - 1): parse_color(v) for k, v in colors.items()}
        if DEFAULT_COLOR in said:
            said[DEFAULT_COLOR] = parse_color(said[DEFAULT_COLOR]) if said[DEFAULT_COLOR] else None
        if COLOR_SEED in said:
            said[COLOR_SEED] = _whole(said[COLOR_SEED], COLOR_SEED, MAX_SEED)
        for name in (SELECTED_ALPHA, REST_ALPHA, SATURATION):
            if name in said:
                said[name] = _share(said[name], name)
        if ALL_IF_NONE in said:
            said[ALL_IF_NONE] = bool(said[ALL_IF_NONE])
        return cls(**said)

    @property
    def chosen(self) -> Colors:
        """The colour of every segment."""
        ids = np.array([i for i in self.colors if i], dtype=np.uint64)
        rgba = np.array([self.colors[i] for i in self.colors if i], dtype=np.uint8).reshape(-1, 4)
        if self.default_color is not None:
            return Colors(ids, rgba[:, :3], fallback=np.array([self.default_color[:3]], dtype=np.uint8))
        return Colors(ids, rgba[:, :3], mode="neuroglancer", seed=self.color_seed)

    @property
    def alphas(self) -> dict[int, float]:
        """Those segments whose colour says how opaque they are, whether they are selected or not."""
        return {i: color[3] / 255 for i, color in self.colors.items() if color[3] < 255 and i}


def joined_ids(sets: Iterable[Sequence[int]]) -> dict[int, int]:
    """Return what sets of ids that are shown as one make of each id in them: the smallest that it is joined with."""
    root: dict[int, int] = {}

    def find(i: int) -> int:
        while root.setdefault(i, i) != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for group in sets:
        for i in group[1:]:
            first, second = find(group[0]), find(i)
            root[max(first, second)] = min(first, second)
    return {i: find(i) for i in list(root)}


def hex_color(color: RGBA) -> str:
    """Return a colour as "#rrggbb", or "#rrggbbaa" where it is not opaque."""
    return "#" + bytes(color if color[3] < 255 else color[:3]).hex()


def _whole(value: Any, name: str, top: int) -> int:
    text = str(value)
    if not text.isdecimal() or int(text) > top:
        raise OptionError(f"attrs[{name!r}] holds {value!r}, which is not a whole number from 0 to {top}")
    return int(text)


def _share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise OptionError(f"attrs[{name!r}]={value!r} is not a number from 0 to 1")
    return float(value)
