"""Attributes that describe how a layer is displayed, and the colours that a picture was drawn with.

Layers opened from a Neuroglancer link or a datastack have these attributes. `overlay` uses them as defaults, and
`neuroglancer_link` writes them back. Every verb keeps them. Nested values are stored as JSON text, which any file
format can store; readers also accept nested values, and the arrays and scalars into which files convert lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from imageryxr.core.array_labels import list_from_attr, parse_json_attr
from imageryxr.core.colors.ids import MAX_ID, MAX_SEED, unique_id_array
from imageryxr.core.colors.mapping import Colors
from imageryxr.core.colors.palettes import stable_table
from imageryxr.core.colors.parse import RGB, RGBA, hex_color, parse_color
from imageryxr.core.validate import check_number, check_whole, to_id, to_items
from imageryxr.errors import ColorError, OptionError

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

#: The colours of the segments of a picture, as JSON: a list with one entry per layer, the top layer last.
DRAWN_COLORS = "drawn_colors"

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
        """Return all settings as attributes, including defaults: their presence marks a layer with display settings."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        out[SELECTED_IDS], out[HIDDEN_IDS] = list(self.selected_ids), list(self.hidden_ids)
        out[COLORS] = {str(segment): hex_color(color) for segment, color in self.colors.items()}
        out[DEFAULT_COLOR] = "" if self.default_color is None else hex_color(self.default_color)
        return out

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> SegmentDisplay | None:
        """Parse display settings from attributes; return None if there are none."""
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


# ---------------------------------------------------------------------------------------------------------
# the colours of a picture, from which its legend is made

# Attributes are written to every file of a picture, so they must stay small.
_MAX_IDS = 5000


def describe_colors(
    colors: Colors,
    selected: Iterable[int] | None,
    has_rest: bool,
    saturation: float,
    types: Mapping[str, RGB] | None = None,
) -> dict[str, Any]:
    """Return a description, for JSON, of the colours of a layer's segments.

    `selected` are the selected segments, None for all; `has_rest` is whether the others are also drawn; a `saturation`
    of 1 leaves the colours unchanged, 0 is white. The result has ``ids`` (id → "#rrggbb"), ``unselected`` (the same for
    unselected ids with a colour of their own, if there are any), ``others`` (how the colours of other ids are
    determined; None if they are not drawn) and ``saturation``. If there are too many ids for an attribute, ``omitted``
    is their number. The colours of the `types` of a palette by type are ``types``, without those of other segments.
    """
    ids = colors.ids if selected is None else np.array(list(selected), np.uint64)
    ids = ids[colors.is_shown(ids)]
    others: Any = None
    if colors.shows_all and (selected is None or has_rest):
        others = ["neuroglancer", colors.seed] if colors.mode == "neuroglancer" else _name_of_table(colors)
    out: dict[str, Any] = {"ids": {}, "others": others, "saturation": saturation}
    unselected = np.setdiff1d(colors.ids, ids) if has_rest and selected is not None else ids[:0]
    if types:
        drawn = set(map(tuple, colors.colors_for(ids).tolist()))
        out["types"] = {name: "#" + bytes(color).hex() for name, color in types.items() if color in drawn}
    count = len(ids) + len(unselected)
    if count > _MAX_IDS:
        return {**out, "omitted": count}
    out["ids"] = _hex_colors(colors, ids, saturation)
    return {**out, "unselected": _hex_colors(colors, unselected, saturation)} if len(unselected) else out


def _hex_colors(colors: Colors, ids: Any, saturation: float) -> dict[str, str]:
    rgb = _desaturate(colors.colors_for(ids), saturation).tolist()
    return {str(i): "#" + bytes(c).hex() for i, c in zip(ids.tolist(), rgb, strict=True)}


def describe_masks(colors: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a description, for JSON, of the colours of named masks."""
    named = {str(name): "#" + bytes(color[:3]).hex() for name, color in colors.items()}
    return {"ids": named, "others": None, "saturation": 1.0}


def colors_of(picture: Any, ids: Any = None) -> dict[Any, RGB]:
    """Return the colours of the segments in a picture.

    The attributes of a picture record its colours, also after it was computed or written to a file. No data are read.

    Parameters
    ----------
    picture : DataArray
        A picture from `overlay`, `outline` or `composite`.
    ids : iterable of int, optional
        The ids of the segments, for example from `unique_ids`. The default is the ids that the picture lists. It lists
        none, so that ``ids`` is required, if its colours depend on the id alone.

    Returns
    -------
    dict
        Id → (r, g, b), each 0–255, in the order of ``ids``, without segments that are not drawn. For masks: name →
        (r, g, b). If several layers draw a segment, the colour is that of the top layer.

    Raises
    ------
    ColorError
        If the attributes of the array do not record its colours, for example of more than 5000 listed ids.
    OptionError
        If ``ids`` is required.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> picture = ix.overlay(ds.image, ds.segmentation, ids=[1, 2], colors={1: "red", 2: "blue"})
    >>> ix.colors_of(picture)
    {1: (255, 0, 0), 2: (0, 0, 255)}
    >>> seeded = ix.overlay(ds.image, ds.segmentation, colors=("neuroglancer", 7))
    >>> ix.colors_of(seeded, [5]) == ix.palette([5], ("neuroglancer", 7))
    True
    """
    layers = _parse_layers(picture)
    omitted = sum(layer.get("omitted", 0) for layer in layers)
    if omitted:
        raise ColorError(
            f"the picture shows {omitted:,} segments of listed ids, more than the {_MAX_IDS:,} that its attributes "
            "record; use the colours that it was drawn with, as in imageryxr.palette(ids, colors); those of a link are "
            f"the attr {COLORS!r} of its layer"
        )
    if ids is None:
        return _all_colors(layers)
    ids = list(ids) if isinstance(ids, Iterator | Set) else ids
    wanted = [ids] if isinstance(ids, str) else to_items(ids)
    names = {name for layer in layers for name in layer["ids"]}
    if wanted and all(isinstance(item, str) and item in names and not item.isdecimal() for item in wanted):
        return {name: _find_color(layers, name) for name in wanted}  # type: ignore[misc]
    distinct = unique_id_array(ids)
    rgb, is_drawn = recorded_colors(picture, distinct)
    return {i: (r, g, b) for i, (r, g, b) in zip(distinct[is_drawn].tolist(), rgb[is_drawn].tolist(), strict=True)}


def legend_colors(picture: Any) -> dict[Any, RGB]:
    """Return the colours that the legend of a picture lists: of types, and of segments of layers without types."""
    layers = _parse_layers(picture)
    types = {name: color for layer in layers for name, color in layer.get("types", {}).items()}
    if not types:
        return colors_of(picture)
    others = [layer for layer in layers if layer["ids"] and not layer.get("types")]
    typed: dict[Any, RGB] = {name: parse_color(color)[:3] for name, color in types.items()}
    return typed | (_all_colors(others) if others else {})


def recorded_colors(picture: Any, ids: Any) -> tuple[Any, Any]:
    """Return the colours of many segments in a picture, without reading data.

    The result is uint8 (n, 3), and whether each of the distinct `ids` is drawn, bool (n,). A picture without a record
    draws none.
    """
    rgb, found = np.zeros((len(ids), 3), np.uint8), np.zeros(len(ids), bool)
    try:
        layers = _parse_layers(picture)
    except ColorError:
        return rgb, found
    for layer in (layer for layer in layers if "omitted" not in layer):
        own = {**layer["ids"], **layer.get("unselected", {})}
        listed = {int(name): parse_color(color)[:3] for name, color in own.items() if name.isdecimal()}
        shown = Colors(np.array(list(listed), np.uint64), np.array(list(listed.values()), np.uint8).reshape(-1, 3))
        for colors, saturation in ((shown, 1.0), (layer["others"], layer["saturation"])):
            if colors is None:
                continue
            rule = colors if isinstance(colors, Colors) else _parse_others(colors)
            new = rule.is_shown(ids) & ~found
            rgb[new], found[new] = _desaturate(rule.colors_for(ids[new]), saturation), True
    return rgb, found


def _parse_layers(picture: Any) -> list[dict[str, Any]]:
    text = getattr(picture, "attrs", {}).get(DRAWN_COLORS)
    try:
        layers = json.loads(str(text))
        assert all(isinstance(layer["ids"], dict) and "others" in layer for layer in layers)
    except (TypeError, ValueError, KeyError, AssertionError):
        raise ColorError(
            f"this {type(picture).__name__} does not record the colours that it was drawn with; give the array that "
            "overlay or outline returned (a PIL picture has no attributes), or a dict id → colour"
        ) from None
    return [dict(layer) for layer in reversed(layers)]


def _all_colors(layers: list[dict[str, Any]]) -> dict[Any, RGB]:
    names = [name for layer in layers for name in layer["ids"]]
    if not names:
        raise OptionError(
            "the picture does not list the ids that it shows: its colours depend on the ids alone; give the ids as the "
            "second argument, for example imageryxr.unique_ids(segmentation), or those of annotations: "
            "np.unique(annotations.pre_pt_root_id)"
        )
    keys = {name: int(name) if name.isdecimal() else name for name in names}
    return {keys[name]: color for name in keys if (color := _find_color(layers, name)) is not None}


def _find_color(layers: list[dict[str, Any]], name: str) -> RGB | None:
    for layer in layers:
        own = {**layer.get("unselected", {}), **layer["ids"]}
        if name in own:
            return parse_color(own[name])[:3]
        if layer["others"] is not None and name.isdecimal():
            rgb = _desaturate(_parse_others(layer["others"]).colors_for([int(name)]), layer["saturation"])[0]
            return (int(rgb[0]), int(rgb[1]), int(rgb[2]))
    return None


def _desaturate(rgb: Any, saturation: float) -> Any:
    return np.floor(255 + (rgb.astype(float) - 255) * saturation + 0.5).astype(np.uint8)


def _name_of_table(colors: Colors) -> str:
    if np.array_equal(colors.fallback, stable_table()):
        return "stable"
    return colors.fallback.tobytes().hex()


def _parse_others(stated: Any) -> Colors:
    if isinstance(stated, list):
        return Colors(mode="neuroglancer", seed=int(stated[1]))
    if stated == "stable":
        return Colors(fallback=stable_table())
    return Colors(fallback=np.frombuffer(bytes.fromhex(stated), np.uint8).reshape(-1, 3))
