"""Which segments a Neuroglancer state shows and in which colours, layers that share them included.

The rules are those of Neuroglancer's ``layer/segmentation/index.ts``: layers are restored in the order of the state,
and a linked one adds its segments, equivalences and colours to those of the layer at the root of its group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from imageryxr.core.colors.parse import RGBA, parse_color
from imageryxr.core.display import SegmentDisplay, merge_equivalences
from imageryxr.errors import ColorError, LinkError
from imageryxr.neuroglancer.validate import as_list, as_mapping, as_share, as_whole, shown

TOP_ID = 2**64 - 1


@dataclass(frozen=True)
class SegmentEntry:
    """What one layer of a state says of its segments."""

    look: SegmentDisplay = field(default_factory=SegmentDisplay)
    """Alphas, saturation and the like, which a layer never shares; the rest is combined by `shown_segments`."""
    group: str = ""
    """Name of the layer whose selection this one shares."""
    color_group: str = ""
    """Name of the layer whose colours this one shares."""
    listed: tuple[tuple[int, bool], ...] = ()
    """Ids in the order of the state, and whether each is switched on."""
    equivalences: tuple[tuple[int, ...], ...] | None = None
    hide_zero: bool | None = None
    colors: Mapping[int, RGBA] = field(default_factory=dict)
    color_seed: int | None = None
    default_color: RGBA | None = None
    base_coloring: bool = False
    """Whether segments that are shown as one keep colours of their own."""


@dataclass(frozen=True)
class ShownSegments:
    """What a layer shows, with all that it shares."""

    look: SegmentDisplay
    equivalences: tuple[tuple[int, ...], ...] = ()
    """Sets of ids that are shown as one."""
    shows_zero: bool = False
    """Whether the background, id 0, has a colour, too."""


@dataclass
class _Group:
    """What the layers of a group share."""

    listed: list[tuple[int, bool]] = field(default_factory=list)
    equivalences: tuple[tuple[int, ...], ...] = ()
    hide_zero: bool = True
    colors: dict[int, RGBA] = field(default_factory=dict)
    color_seed: int = 0
    default_color: RGBA | None = None


def read_segments(spec: Mapping[str, Any], where: str) -> SegmentEntry:
    """Read what a segmentation layer says of its segments.

    Raises
    ------
    LinkError
        If an entry makes no sense.
    """
    look = SegmentDisplay(
        selected_alpha=as_share(spec.get("selectedAlpha", 0.5), f"{where}.selectedAlpha"),
        rest_alpha=as_share(spec.get("notSelectedAlpha", 0.0), f"{where}.notSelectedAlpha"),
        saturation=as_share(spec.get("saturation", 1.0), f"{where}.saturation"),
        all_if_none_selected=spec.get("ignoreNullVisibleSet", True) is not False,
    )
    default, seed, hide = spec.get("segmentDefaultColor"), spec.get("colorSeed"), spec.get("hideSegmentZero")
    group = _name(spec.get("linkedSegmentationGroup"))
    return SegmentEntry(
        look,
        group,
        _name(spec.get("linkedSegmentationColorGroup", group)),
        _listed(spec, where),
        _equivalences(spec.get("equivalences"), where),
        None if hide is None else hide is not False,
        _segment_colors(spec.get("segmentColors"), where),
        None if seed is None else as_whole(seed, f"{where}.colorSeed", 2**32 - 1),
        None if default is None else _color(default, f"{where}.segmentDefaultColor"),
        spec.get("baseSegmentColoring") is True,
    )


def shown_segments(entries: Mapping[str, SegmentEntry]) -> dict[str, ShownSegments]:
    """Return what each layer shows; ``entries`` are in the order of the state, by the name of the layer."""
    groups, color_groups = {n: _Group() for n in entries}, {n: _Group() for n in entries}
    roots, color_roots = {n: n for n in entries}, {n: n for n in entries}
    for name, entry in entries.items():
        _link(roots, name, entry.group)
        _link(color_roots, name, entry.color_group)
        group, colors = groups[roots[name]], color_groups[color_roots[name]]
        group.listed += entry.listed
        group.equivalences = group.equivalences if entry.equivalences is None else entry.equivalences
        group.hide_zero = group.hide_zero if entry.hide_zero is None else entry.hide_zero
        colors.colors |= entry.colors
        colors.color_seed = colors.color_seed if entry.color_seed is None else entry.color_seed
        colors.default_color = entry.default_color or colors.default_color
    return {n: _shown(e, groups[roots[n]], color_groups[color_roots[n]]) for n, e in entries.items()}


def _link(roots: dict[str, str], name: str, other: str) -> None:
    """Link a layer to the root of another one; a link to no layer, or one that leads back to it, is none."""
    if other in roots and roots[other] != name:
        roots[name] = roots[other]


def _shown(entry: SegmentEntry, group: _Group, colors: _Group) -> ShownSegments:
    one = merge_equivalences(group.equivalences)
    selected = dict.fromkeys(one.get(i, i) for i, on in group.listed if on)
    hidden = dict.fromkeys(one.get(i, i) for i, on in group.listed if not on)
    everything = not selected and entry.look.all_if_none_selected
    shows_zero = not group.hide_zero and (everything or 0 in selected or entry.look.rest_alpha > 0)
    if group.hide_zero and set(selected) != {0}:
        selected.pop(0, None)  # alone it stays: the viewer shows no segment then, where it shows all of an empty list
    look = replace(
        entry.look,
        selected_ids=tuple(selected),
        hidden_ids=tuple(i for i in hidden if i and i not in selected),
        colors=dict(colors.colors),
        color_seed=colors.color_seed,
        default_color=colors.default_color,
    )
    return ShownSegments(look, group.equivalences, shows_zero)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _listed(spec: Mapping[str, Any], where: str) -> tuple[tuple[int, bool], ...]:
    out = []
    for item in _ids(spec, "segments", where):
        off = isinstance(item, str) and item.startswith("!")
        out.append((as_whole(item[1:] if off else item, f"{where}.segments", TOP_ID), not off))
    hidden = _ids(spec, "hiddenSegments", where)
    return (*out, *((as_whole(i, f"{where}.hiddenSegments", TOP_ID), False) for i in hidden))


def _ids(spec: Mapping[str, Any], key: str, where: str) -> list[Any]:
    given = spec.get(key)
    return [] if given is None else as_list(given, f"{where}.{key}", None)


def _equivalences(value: Any, where: str) -> tuple[tuple[int, ...], ...] | None:
    if value is None:
        return None
    what = f"{where}.equivalences"
    sets = [as_list(group, what, None) for group in as_list(value, what, None)]
    return tuple(tuple(as_whole(i, what, TOP_ID) for i in group) for group in sets)


def _segment_colors(value: Any, where: str) -> dict[int, RGBA]:
    out = {}
    for key, color in as_mapping(value, f"{where}.segmentColors").items():
        number = as_whole(key, f"{where}.segmentColors", TOP_ID)
        if number:
            r, g, b, _ = _color(color, f"{where}.segmentColors[{key}]")
            out[number] = (r, g, b, 255)  # the viewer does not read an alpha here
    return out


def _color(value: Any, what: str) -> RGBA:
    if isinstance(value, str):
        parts = re.fullmatch(r"\s*rgba?\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?:,\s*([\d.]+)\s*)?\)\s*", value)
        try:
            if parts is None:
                return parse_color(value)
            r, g, b = (int(p) for p in parts.groups()[:3])
            return parse_color((r, g, b, round(255 * float(parts.group(4) or 1))))
        except (ColorError, ValueError):
            pass
    raise LinkError(f"{what}={shown(value)} is no colour")
