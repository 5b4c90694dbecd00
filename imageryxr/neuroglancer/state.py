"""Parse a Neuroglancer state: its camera, its layout and its layers.

The result is a `LinkState`, or a `LinkError` that names the invalid entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imageryxr.core.validate import to_whole
from imageryxr.errors import Message, OptionError, param
from imageryxr.neuroglancer.dimensions import AXES, read_dimensions
from imageryxr.neuroglancer.layout import LayerGroup, read_groups, read_panel
from imageryxr.neuroglancer.navigation import Dimensions, Pose, read_group_pose, read_pose
from imageryxr.neuroglancer.state_layers import (
    LinkLayer,
    SkippedLayer,
    has_known_axes,
    named_layers,
    public_json,
    read_layer_or_skip,
    resolve_segments,
)


@dataclass(frozen=True)
class LinkState:
    """A parsed Neuroglancer state."""

    pose: Pose
    """Camera of the state, or of the chosen layer group."""
    layers: tuple[LinkLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    order: tuple[str, ...]
    """Names of all layers, from bottom to top."""
    title: str = ""
    layout: str = ""
    """Layout of the viewer, or of the chosen group."""
    dimensions: Dimensions = field(default_factory=dict)
    groups: tuple[LayerGroup, ...] = ()
    """Groups of layers side by side; empty for a single viewer."""
    group: int = 0
    """Index of the chosen group."""
    rest: str = field(default="", repr=False, compare=False)
    """The state without its layers, as JSON."""

    @property
    def shown_layers(self) -> tuple[str, ...]:
        """Names of the layers of the viewer, or of the chosen group, from bottom to top."""
        return self.groups[self.group].layers if self.groups else self.order


def parse_state(state: Mapping[str, Any], group: int | None = None) -> LinkState:
    """Parse a JSON state as Neuroglancer writes it.

    `group` is the number of the layer group to use, from 0, by default the first; a link without groups is group 0.
    Raises `OptionError` if the group does not exist, and a `LinkError` that names an invalid entry.
    """
    dims = read_dimensions(state)
    named = named_layers(state.get("layers", []))
    found = [read_layer_or_skip(name, spec) for name, spec in named]
    names = tuple(name for name, _ in named)
    groups = read_groups(state.get("layout"))
    number = _check_group(groups, group)
    used = _referenced_dimensions(dims, found, state)
    pose = read_pose(state, dims, used)
    if groups:
        pose = read_group_pose(pose, groups[number].viewer, dims, used)
    title = state.get("title")
    return LinkState(
        pose,
        resolve_segments(found),
        tuple(layer for layer in found if isinstance(layer, SkippedLayer)),
        names,
        title if isinstance(title, str) else "",
        groups[number].panel if groups else "" if state.get("layout") is None else read_panel(state["layout"]),
        dims,
        groups,
        number,
        public_json({k: v for k, v in state.items() if k not in ("layers", "title")}),
    )


def _check_group(groups: Sequence[LayerGroup], group: int | None) -> int:
    count = len(groups)
    if group is None:
        return 0
    number = to_whole(group)
    if number is None or not 0 <= number < max(count, 1):
        have = f"its layer groups are 0 to {count - 1}"
        none = Message("it has no layer groups: omit ", param("group"))
        raise OptionError(param("group", group), ": the link has no such group; ", have if count else none)
    return number


def _referenced_dimensions(
    dims: Dimensions, layers: Sequence[LinkLayer | SkippedLayer], state: Mapping[str, Any]
) -> Dimensions:
    """Return the dimensions that at least one layer has; the viewer does not display the others."""
    if any(isinstance(layer, LinkLayer) and not has_known_axes(layer.source) for layer in layers) or not layers:
        return dims
    named = set(re.findall(r'"([^"]+)":', public_json(_output_dimensions(state.get("layers")))))
    return {name: value for name, value in dims.items() if name in AXES or name in named}


def _output_dimensions(layers: Any) -> list[Any]:
    """Return the output dimensions of all sources of all layers."""
    specs = layers.values() if isinstance(layers, Mapping) else layers if isinstance(layers, list) else []
    sources = [spec.get("source") for spec in specs if isinstance(spec, Mapping)]
    items = [item for source in sources for item in (source if isinstance(source, list) else [source])]
    transforms = [item.get("transform") for item in items if isinstance(item, Mapping)]
    return [t.get("outputDimensions") for t in transforms if isinstance(t, Mapping)]
