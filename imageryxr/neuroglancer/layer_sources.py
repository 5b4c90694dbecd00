"""Resolve the source, channel, time and placement of a link's layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imageryxr.errors import ChoiceError, LayerError
from imageryxr.neuroglancer.dimensions import Placement, si_scale
from imageryxr.neuroglancer.navigation import Dimensions
from imageryxr.neuroglancer.state import LinkState
from imageryxr.neuroglancer.state_layers import LinkLayer
from imageryxr.neuroglancer.transform import AxisPlace
from imageryxr.sources.base import Source
from imageryxr.sources.resolve import resolve_source
from imageryxr.sources.transposed import TransposedSource

_AXIS = {"channel": "c", "time": "t"}


def resolve_layer_source(layer: LinkLayer, state: LinkState, **options: Any) -> tuple[Source, Placement]:
    """Return the source of a layer, at the channel and time that the link shows, and its placement.

    `options` are those of `resolve_source`; a ``channel`` or ``time`` in them overrides that of the link. Reads only
    metadata, twice if the source has several channels or times. Raises `LayerError` if the layer's transform cannot be
    drawn, or if the link's channel or time is outside the data, and the errors of `resolve_source`.
    """
    kind: Any = "segmentation" if layer.kind == "segmentation" else None
    options = {key: value for key, value in options.items() if value is not None}
    source, counts = resolve_first(layer.source, kind, **options)
    axes = viewer_axes(source, counts)
    placement, others = layer.transform.apply(axes)
    picks: dict[str, Any] = {}
    for what, count in counts.items():
        name = next(axis for axis in axes if axis[0] == _AXIS[what])
        own = next((o[1:] for o in getattr(source, "others", ()) if o[0] == name[0]), (None, 0.0))
        picks[what] = _displayed_index(name, others, count, layer, state, own)
    if any(picks.values()):
        source = resolve_source(layer.source, kind, **options, **picks)
    order = placement.order
    return (source if order == (0, 1, 2) else TransposedSource(source, order)), placement


def resolve_first(source: str, kind: Any, **options: Any) -> tuple[Source, dict[str, int]]:
    """Return a source at the channel and time in `options`, or at the first ones, and the number of each."""
    counts: dict[str, int] = {}
    while True:
        try:
            first: dict[str, Any] = dict.fromkeys(counts, 0)
            return resolve_source(source, kind, **options, **first), counts
        except ChoiceError as error:
            if error.what in counts or error.what in options:
                raise
            counts[error.what] = error.count


def viewer_axes(source: Source, counts: Any = ()) -> tuple[str, ...]:
    """Return Neuroglancer's names of a source's axes, in the source's order."""
    stored = getattr(source, "axes", None)
    if stored is not None:
        return tuple("c'" if axis == "c" else axis for axis in stored)
    return ("x", "y", "z", "c^") if "channel" in counts else ("x", "y", "z")


def _displayed_index(
    axis: str,
    places: Mapping[str, AxisPlace],
    count: int,
    layer: LinkLayer,
    state: LinkState,
    own_scale: tuple[float | None, float],
) -> int:
    """Return the index of the channel or time that the link shows; the middle one by default."""
    place = places[axis]
    if place.name.endswith("^"):
        return _check_index(layer.channel, count, place.name)
    own = place.name.endswith("'")
    dims: Dimensions = layer.local_dimensions if own else state.dimensions
    step, start = own_scale
    scale = si_scale(*dims[place.name]) if place.name in dims else place.output or step or 1.0
    found = dict(layer.position if own else state.pose.places)
    if own and not dims:  # unnamed local positions are in the order of the source's axes
        local = [p.name for p in places.values() if p.name.endswith("'")]
        found = {name: found[f"{i}'"] for i, name in enumerate(local) if f"{i}'" in found}
    if place.name not in found:
        return count // 2
    return _check_index(place.index(found[place.name], scale, step, start), count, place.name)


def _check_index(index: int, count: int, name: str) -> int:
    if not 0 <= index < count:
        raise LayerError(
            f"the link shows index {index} of the dimension {name}, but the source has 0 to {count - 1}; select one of "
            "these in the viewer, and copy the link again"
        )
    return index
