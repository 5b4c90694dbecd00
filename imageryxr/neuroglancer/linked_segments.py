"""The segments and colours that the layers of a Neuroglancer state show, including those shared by linked layers.

The rules are those of Neuroglancer's ``layer/segmentation/index.ts``: layers are restored in the order of the state,
and a linked layer adds its segments, equivalences and colours to those of the layer at the root of its group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from imageryxr.core.colors.parse import RGBA, parse_color
from imageryxr.core.display import SegmentDisplay, merge_equivalences
from imageryxr.errors import ColorError, LinkError, format_value
from imageryxr.neuroglancer.validate import as_list, as_mapping, as_number, as_share, as_whole

TOP_ID = 2**64 - 1
LINKS = ("linkedSegmentationGroup", "linkedSegmentationColorGroup")


@dataclass(frozen=True)
class SegmentSettings:
    """Settings of one layer's segments in a state."""

    look: SegmentDisplay = field(default_factory=SegmentDisplay)
    """Alphas, saturation and other settings that are not shared; `combine_linked_segments` adds the shared ones."""
    group: str = ""
    """Name of the layer whose selected segments this layer shares."""
    color_group: str = ""
    """Name of the layer whose colours this layer shares."""
    listed: tuple[tuple[int, bool], ...] = ()
    """Ids in the order of the state, and whether each is visible."""
    equivalences: tuple[tuple[int, ...], ...] | None = None
    hide_zero: bool | None = None
    colors: Mapping[int, RGBA] = field(default_factory=dict)
    color_seed: int | None = None
    default_color: RGBA | None = None
    base_coloring: bool = False
    """Whether equivalent segments keep their own colours."""


@dataclass(frozen=True)
class LayerSegments:
    """The segments that a layer shows, including those of linked layers."""

    look: SegmentDisplay
    equivalences: tuple[tuple[int, ...], ...] = ()
    """Sets of ids that are shown as one segment."""
    shows_zero: bool = False
    """Whether the background, id 0, has a colour."""


@dataclass
class _Group:
    """Settings shared by the layers of a group."""

    listed: list[tuple[int, bool]] = field(default_factory=list)
    equivalences: tuple[tuple[int, ...], ...] = ()
    hide_zero: bool = True
    colors: dict[int, RGBA] = field(default_factory=dict)
    color_seed: int = 0
    default_color: RGBA | None = None


def read_segments(spec: Mapping[str, Any], where: str) -> SegmentSettings:
    """Read the segment settings of a segmentation layer; raise `LinkError` if an entry is invalid."""
    look = SegmentDisplay(
        selected_alpha=as_share(spec.get("selectedAlpha", 0.5), f"{where}.selectedAlpha"),
        rest_alpha=as_share(spec.get("notSelectedAlpha", 0.0), f"{where}.notSelectedAlpha"),
        saturation=as_share(spec.get("saturation", 1.0), f"{where}.saturation"),
        all_if_none_selected=spec.get("ignoreNullVisibleSet", True) is not False,
    )
    default, seed, hide = spec.get("segmentDefaultColor"), spec.get("colorSeed"), spec.get("hideSegmentZero")
    group = _layer_name(spec.get("linkedSegmentationGroup"))
    return SegmentSettings(
        look,
        group,
        _layer_name(spec.get("linkedSegmentationColorGroup", group)),
        _listed_ids(spec, where),
        _read_equivalences(spec.get("equivalences"), where),
        None if hide is None else hide is not False,
        _read_segment_colors(spec.get("segmentColors"), where),
        # As in the viewer (segment_color.ts), a seed is an unsigned integer of 32 bits.
        None if seed is None else int(as_number(seed, f"{where}.colorSeed")) % 2**32,
        None if default is None else read_color(default, f"{where}.segmentDefaultColor"),
        spec.get("baseSegmentColoring") is True,
    )


def combine_linked_segments(entries: Mapping[str, SegmentSettings]) -> dict[str, LayerSegments]:
    """Return the segments that each layer shows, by layer name; ``entries`` are in the order of the state."""
    groups, color_groups = {n: _Group() for n in entries}, {n: _Group() for n in entries}
    roots, color_roots = {n: n for n in entries}, {n: n for n in entries}
    for name, entry in entries.items():
        _link_to_root(roots, name, entry.group)
        _link_to_root(color_roots, name, entry.color_group)
        group, colors = groups[roots[name]], color_groups[color_roots[name]]
        group.listed += entry.listed
        group.equivalences = group.equivalences if entry.equivalences is None else entry.equivalences
        group.hide_zero = group.hide_zero if entry.hide_zero is None else entry.hide_zero
        colors.colors |= entry.colors
        colors.color_seed = colors.color_seed if entry.color_seed is None else entry.color_seed
        colors.default_color = entry.default_color or colors.default_color
    return {n: _layer_segments(e, groups[roots[n]], color_groups[color_roots[n]]) for n, e in entries.items()}


def _link_to_root(roots: dict[str, str], name: str, other: str) -> None:
    """Link a layer to the root of another layer; links to absent layers and circular links are ignored."""
    if other in roots and roots[other] != name:
        roots[name] = roots[other]


def _layer_segments(entry: SegmentSettings, group: _Group, colors: _Group) -> LayerSegments:
    representative = merge_equivalences(group.equivalences)
    selected = dict.fromkeys(representative.get(i, i) for i, visible in group.listed if visible)
    hidden = dict.fromkeys(representative.get(i, i) for i, visible in group.listed if not visible)
    everything = not selected and entry.look.all_if_none_selected
    shows_zero = not group.hide_zero and (everything or 0 in selected or entry.look.rest_alpha > 0)
    if group.hide_zero and set(selected) != {0}:
        # The viewer shows no segment if only 0 is selected, but all segments if none is selected.
        selected.pop(0, None)
    look = replace(
        entry.look,
        selected_ids=tuple(selected),
        hidden_ids=tuple(i for i in hidden if i and i not in selected),
        colors=dict(colors.colors),
        color_seed=colors.color_seed,
        default_color=colors.default_color,
    )
    return LayerSegments(look, group.equivalences, shows_zero)


def _layer_name(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _listed_ids(spec: Mapping[str, Any], where: str) -> tuple[tuple[int, bool], ...]:
    out = []
    for item in _read_id_list(spec, "segments", where):
        off = isinstance(item, str) and item.startswith("!")
        out.append((as_whole(item[1:] if off else item, f"{where}.segments", TOP_ID), not off))
    hidden = _read_id_list(spec, "hiddenSegments", where)
    return (*out, *((as_whole(i, f"{where}.hiddenSegments", TOP_ID), False) for i in hidden))


def _read_id_list(spec: Mapping[str, Any], key: str, where: str) -> list[Any]:
    ids = spec.get(key)
    return [] if ids is None else as_list(ids, f"{where}.{key}", None)


def _read_equivalences(value: Any, where: str) -> tuple[tuple[int, ...], ...] | None:
    if value is None:
        return None
    what = f"{where}.equivalences"
    sets = [as_list(group, what, None) for group in as_list(value, what, None)]
    return tuple(tuple(as_whole(i, what, TOP_ID) for i in group) for group in sets)


def _read_segment_colors(value: Any, where: str) -> dict[int, RGBA]:
    out = {}
    for key, color in as_mapping(value, f"{where}.segmentColors").items():
        number = as_whole(key, f"{where}.segmentColors", TOP_ID)
        if number:
            r, g, b, _ = read_color(color, f"{where}.segmentColors[{key}]")
            out[number] = (r, g, b, 255)  # the viewer ignores alpha in segmentColors
    return out


def read_color(value: Any, what: str) -> RGBA:
    """Return a colour of a state: a name, a hex string, or ``rgb(…)`` or ``rgba(…)`` as in CSS.

    Raises `LinkError` if it is not a colour.
    """
    if isinstance(value, str):
        parts = re.fullmatch(r"\s*rgba?\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?:,\s*([\d.]+)\s*)?\)\s*", value)
        try:
            if parts is None:
                return parse_color(value)
            r, g, b = (int(p) for p in parts.groups()[:3])
            return parse_color((r, g, b, round(255 * float(parts.group(4) or 1))))
        except (ColorError, ValueError):
            pass
    raise LinkError(f"{what}={format_value(value)} is not a colour; give a name or a hex colour such as '#ff0000'")


# ---------------------------------------------------------------------------------------------------------
# links between the layers of a state that is written


def restore_links(layers: Mapping[str, dict[str, Any]], ours: set[str]) -> dict[str, dict[str, Any]]:
    """Return the layers of a state without links that would change the segments or colours that a layer shows.

    `layers` are in the order of the state. The entries of a layer in `ours` list all segments and colours that it
    should show, so its links to other layers are removed if they would add more.
    """
    while True:
        linked = [n for n in ours if any(key in layers[n] for key in LINKS)]
        if not linked:
            return dict(layers)
        alone = {n: {k: v for k, v in spec.items() if k not in LINKS} for n, spec in layers.items()}
        actual, expected = _visible_segments(layers), _visible_segments(alone)
        wrong = {n for n in ours if actual.get(n) != expected.get(n)}
        wrong |= {
            n for n in linked if any(isinstance(layers[n].get(k), str) and layers[n][k] not in layers for k in LINKS)
        }
        if not wrong:
            return dict(layers)
        # The root of a group has no link itself: if only a root is wrong, remove all links.
        drop = wrong & set(linked) or set(linked)
        layers = {n: alone[n] if n in drop else spec for n, spec in layers.items()}


def _visible_segments(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    entries = {}
    for name, spec in layers.items():
        if str(spec.get("type")).startswith("segmentation"):
            try:
                entries[name] = read_segments(spec, name)
            except LinkError:
                continue
    return {name: _comparable(shown) for name, shown in combine_linked_segments(entries).items()}


def _comparable(shown: Any) -> Any:
    look = shown.look
    ids = set(look.selected_ids), set(look.hidden_ids), {frozenset(s) for s in shown.equivalences}
    return *ids, look.colors, look.color_seed, look.default_color
