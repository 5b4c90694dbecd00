"""Names of the attributes that describe how a layer is displayed, and the display settings of segments.

Layers opened from a Neuroglancer link or a datastack have these attributes. `overlay` uses them as defaults, and
`neuroglancer_link` writes them back. Every verb keeps them. Nested values are stored as JSON text, which any file
format can store; readers also accept nested values, and the arrays and scalars into which files convert lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from imageryxr.core.array_labels import list_from_attr, parse_json_attr
from imageryxr.core.colors.ids import MAX_ID, MAX_SEED
from imageryxr.core.colors.mapping import Colors
from imageryxr.core.colors.parse import RGBA, hex_color, parse_color
from imageryxr.core.validate import check_number, check_whole, to_id

#: Name of a layer in the viewer.
LAYER = "layer"
#: Whether the layer is visible in the viewer.
VISIBLE = "visible"
#: The grey values shown as black and white.
CONTRAST_LIMITS = "contrast_limits"
#: Opacity of an image over the layers below it.
OPACITY = "opacity"
#: Selected segments.
SELECTED_IDS = "selected_ids"
#: Segments that are listed but hidden.
HIDDEN_IDS = "hidden_ids"
#: Colours of individual segments, as JSON: id (a string of digits) → "#rrggbb" or "#rrggbbaa".
COLORS = "colors"
#: Seed of the viewer's colour hash.
COLOR_SEED = "color_seed"
#: One colour for all other segments, instead of the hash.
DEFAULT_COLOR = "default_color"
#: Opacity of selected segments.
SELECTED_ALPHA = "selected_alpha"
#: Opacity of the other segments.
REST_ALPHA = "rest_alpha"
#: Saturation of the colours: 1 leaves them unchanged, 0 is white.
SATURATION = "saturation"
#: Sets of ids that are shown as one segment with the smallest id of the set: a list of lists, as JSON.
EQUIVALENCES = "equivalences"
#: Whether all segments are shown if none is selected.
ALL_IF_NONE = "all_if_none_selected"

#: Source of a layer in its link, as JSON, if it is more than an address.
LINK_SOURCE = "link_source"
#: Timestamp of a layer, as written in its link: viewers use different units.
LINK_TIMESTAMP = "link_timestamp"
#: All other properties of a layer in its link, as JSON; `neuroglancer_link` writes them back unchanged.
LINK_LAYER = "link_layer"
#: Shader of an image.
SHADER = "shader"

#: The colour map of annotations on a picture, with its limits and the name of the column, as JSON.
ANNOTATION_SCALE = "annotation_scale"

#: The segments by which annotations on a picture are coloured, id → colour, as JSON.
ANNOTATION_IDS = "annotation_ids"

# Attributes of a whole link:
#: Nanometres per unit of the positions, by axis, as JSON.
DIMENSIONS = "dimensions"
#: The point at the centre of the view.
POSITION = "position"
#: Nanometres per pixel of the screen.
NM_PER_PIXEL = "nm_per_pixel"
#: The quaternion (x, y, z, w) of the cross sections.
ORIENTATION = "orientation"
#: Names of all layers, from bottom to top.
LAYER_ORDER = "layer_order"
#: Layers that cannot be opened, as JSON.
UNSUPPORTED = "unsupported_layers"
#: Layers that were not requested, as JSON, each as written in the link.
UNOPENED = "unopened_layers"
#: The display dimensions, if they are not x, y and z.
DISPLAY = "display_dimensions"
#: All other properties of the link, as JSON; `neuroglancer_link` writes them back unchanged.
LINK_STATE = "link_state"


@dataclass(frozen=True)
class SegmentDisplay:
    """Display settings of the segments of a layer; the defaults are Neuroglancer's."""

    selected_ids: tuple[int, ...] = ()
    hidden_ids: tuple[int, ...] = ()
    colors: Mapping[int, RGBA] = field(default_factory=dict)
    color_seed: int = 0
    default_color: RGBA | None = None
    selected_alpha: float = 0.5
    rest_alpha: float = 0.0
    saturation: float = 1.0
    all_if_none_selected: bool = True

    def to_attrs(self) -> dict[str, Any]:
        """Return all settings as attributes, defaults included: their presence marks a layer with display settings."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        out[SELECTED_IDS], out[HIDDEN_IDS] = list(self.selected_ids), list(self.hidden_ids)
        out[COLORS] = {str(segment): hex_color(color) for segment, color in self.colors.items()}
        out[DEFAULT_COLOR] = "" if self.default_color is None else hex_color(self.default_color)
        return out

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> SegmentDisplay | None:
        """Parse display settings from attributes; return None if there are none.

        Raises
        ------
        OptionError, ColorError
            If the value of an attribute is invalid.
        """
        found = {f.name: attrs[f.name] for f in fields(cls) if f.name in attrs}
        if not found:
            return None
        for name in (SELECTED_IDS, HIDDEN_IDS):
            if name in found:
                found[name] = tuple(_check_integer(i, name, MAX_ID) for i in list_from_attr(found[name]))
        if COLORS in found:
            colors = dict(parse_json_attr(found[COLORS]))
            found[COLORS] = {_check_integer(k, COLORS, MAX_ID): parse_color(v) for k, v in colors.items()}
        if DEFAULT_COLOR in found:
            found[DEFAULT_COLOR] = parse_color(found[DEFAULT_COLOR]) if found[DEFAULT_COLOR] else None
        if COLOR_SEED in found:
            found[COLOR_SEED] = _check_integer(found[COLOR_SEED], COLOR_SEED, MAX_SEED)
        for name in (SELECTED_ALPHA, REST_ALPHA, SATURATION):
            if name in found:
                found[name] = check_number(f"attrs[{name!r}]", found[name], 0, 1)
        if ALL_IF_NONE in found:
            found[ALL_IF_NONE] = bool(found[ALL_IF_NONE])
        return cls(**found)

    @property
    def resolved_colors(self) -> Colors:
        """The colour of every segment."""
        ids = np.array([i for i in self.colors if i], dtype=np.uint64)
        rgba = np.array([self.colors[i] for i in self.colors if i], dtype=np.uint8).reshape(-1, 4)
        if self.default_color is not None:
            return Colors(ids, rgba[:, :3], fallback=np.array([self.default_color[:3]], dtype=np.uint8))
        return Colors(ids, rgba[:, :3], mode="neuroglancer", seed=self.color_seed)

    @property
    def alphas(self) -> dict[int, float]:
        """Opacity of the segments whose colour includes an alpha; it applies whether or not they are selected."""
        return {i: color[3] / 255 for i, color in self.colors.items() if color[3] < 255 and i}


def merge_equivalences(sets: Iterable[Sequence[int]]) -> dict[int, int]:
    """Map each id to the smallest id that it is equivalent to, given sets of equivalent ids."""
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


def _check_integer(value: Any, name: str, top: int) -> int:
    return check_whole(f"attrs[{name!r}]", to_id(value) if isinstance(value, str) else value, 0, top)
