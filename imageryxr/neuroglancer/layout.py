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
    """A viewer in a layout that has several."""

    layers: tuple[str, ...]
    """Names of its layers, from bottom to top."""
    panel: str
    viewer: Mapping[str, Any]
    """The group as the state has it."""


def read_groups(layout: Any) -> tuple[LayerGroup, ...]:
    """Return the layer groups of a layout, from left to right and top to bottom; none where it is a single viewer.

    Groups without layers, which the viewer removes, are left out.

    Raises
    ------
    LinkError
        If the layout makes no sense.
    """
    out: list[LayerGroup] = []
    _collect(layout, "layout", out, 0)
    return tuple(group for group in out if group.layers)


def _collect(layout: Any, where: str, out: list[LayerGroup], depth: int) -> None:
    kind = layout.get("type") if isinstance(layout, Mapping) else None
    if kind in ("row", "column"):
        if depth > _MAX_DEPTH:
            raise LinkError(f"{where}: rows and columns lie in each other more than {_MAX_DEPTH} deep")
        for number, child in enumerate(as_list(layout.get("children"), f"{where}.children", None)):
            _collect(child, f"{where}.children[{number}]", out, depth + 1)
    elif kind == "viewer":
        names = layout.get("layers")
        listed = [] if names is None else as_list(names, f"{where}.layers", None)
        layers = tuple(dict.fromkeys(n for n in listed if isinstance(n, str)))
        out.append(LayerGroup(layers, read_panel(layout.get("layout")), layout))
        if len(out) > MAX_GROUPS:
            raise LinkError(f"the layout has more than {MAX_GROUPS} layer groups")


def read_panel(layout: Any) -> str:
    """Return the name of a viewer's own layout, such as ``"xz"``; "xy", the viewer's default, of anything else."""
    kind = layout.get("type") if isinstance(layout, Mapping) else layout
    return kind if isinstance(kind, str) and kind in PANELS else DEFAULT_PANEL


def layout_of_layers(layout: Any, names: Collection[str]) -> Any:
    """Return a layout without the layers, and then the groups, that a state does not have; None if nothing is left.

    The viewer refuses a layout that names a layer which is not there.
    """
    kind = layout.get("type") if isinstance(layout, Mapping) else None
    if kind in ("row", "column"):
        children = [layout_of_layers(child, names) for child in layout.get("children") or []]
        kept = [child for child in children if child is not None]
        return {**layout, "children": kept} if kept else None
    if kind == "viewer":
        kept = [name for name in layout.get("layers") or [] if name in names]
        return {**layout, "layers": kept} if kept else None
    return layout


def with_group(layout: Any, number: int, changes: Mapping[str, Any]) -> Any:
    """Return a layout in which one group, counted as `read_groups` does, has other settings."""
    return _changed(layout, [number], changes)


def _changed(layout: Any, left: list[int], changes: Mapping[str, Any]) -> Any:
    kind = layout.get("type") if isinstance(layout, Mapping) else None
    if kind in ("row", "column"):
        return {**layout, "children": [_changed(child, left, changes) for child in layout.get("children") or []]}
    if kind != "viewer" or not layout.get("layers"):
        return layout
    left[0] -= 1
    return {**layout, **changes} if left[0] == -1 else layout
