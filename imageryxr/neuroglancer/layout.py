"""The layout of a Neuroglancer state: one viewer, or groups of layers side by side.

The rules are those of Neuroglancer's ``layer_groups_layout.ts`` and ``data_panel_layout.ts``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from imageryxr.errors import LinkError
from imageryxr.neuroglancer.validate import as_list

#: Layouts of a viewer, by name.
PANELS = ("4panel", "4panel-alt", "3d", "xy", "xz", "yz", "xy-3d", "xz-3d", "yz-3d")
DEFAULT_PANEL = "xy"
MAX_GROUPS = 200
_MAX_DEPTH = 30


@dataclass(frozen=True)
class LayerGroup:
    """One viewer of a layout with several viewers."""

    layers: tuple[str, ...]
    """Layer names, from bottom to top."""
    panel: str
    viewer: Mapping[str, Any]
    """The group's entry in the state."""


def read_groups(layout: Any) -> tuple[LayerGroup, ...]:
    """Return the layer groups of a layout, from left to right and top to bottom; empty for a single viewer.

    Groups without layers are skipped because the viewer removes them.

    Raises `LinkError` if the layout is invalid.
    """
    out: list[LayerGroup] = []
    _collect_groups(layout, "layout", out, 0)
    return tuple(group for group in out if group.layers)


def _collect_groups(layout: Any, where: str, out: list[LayerGroup], depth: int) -> None:
    kind = layout.get("type") if isinstance(layout, Mapping) else None
    if kind in ("row", "column"):
        if depth > _MAX_DEPTH:
            raise LinkError(f"{where}: rows and columns are nested more than {_MAX_DEPTH} levels deep")
        for number, child in enumerate(as_list(layout.get("children"), f"{where}.children", None)):
            _collect_groups(child, f"{where}.children[{number}]", out, depth + 1)
    elif kind == "viewer":
        names = layout.get("layers")
        listed = [] if names is None else as_list(names, f"{where}.layers", None)
        layers = tuple(dict.fromkeys(n for n in listed if isinstance(n, str)))
        out.append(LayerGroup(layers, read_panel(layout.get("layout")), layout))
        if len(out) > MAX_GROUPS:
            raise LinkError(f"the layout has more than {MAX_GROUPS} layer groups")


def read_panel(layout: Any) -> str:
    """Return the name of a viewer's own layout, such as ``"xz"``, or "xy", the viewer's default."""
    kind = layout.get("type") if isinstance(layout, Mapping) else layout
    return kind if isinstance(kind, str) and kind in PANELS else DEFAULT_PANEL


def prune_layout(layout: Any, names: Collection[str]) -> Any:
    """Return a layout with only the layers in `names` and without the groups that become empty; None if all are empty.

    The viewer rejects a layout that names an absent layer.
    """
    kind = layout.get("type") if isinstance(layout, Mapping) else None
    if kind in ("row", "column"):
        children = [prune_layout(child, names) for child in layout.get("children") or []]
        kept = [child for child in children if child is not None]
        return {**layout, "children": kept} if kept else None
    if kind == "viewer":
        kept = [name for name in layout.get("layers") or [] if name in names]
        return {**layout, "layers": kept} if kept else None
    return layout


def update_group(layout: Any, number: int, changes: Mapping[str, Any]) -> Any:
    """Return a layout in which the settings of one group are changed; groups are numbered as in `read_groups`."""
    return _update_nth_group(layout, [number], changes)


def _update_nth_group(layout: Any, left: list[int], changes: Mapping[str, Any]) -> Any:
    kind = layout.get("type") if isinstance(layout, Mapping) else None
    if kind in ("row", "column"):
        return {
            **layout,
            "children": [_update_nth_group(child, left, changes) for child in layout.get("children") or []],
        }
    if kind != "viewer" or not layout.get("layers"):
        return layout
    left[0] -= 1
    return {**layout, **changes} if left[0] == -1 else layout
