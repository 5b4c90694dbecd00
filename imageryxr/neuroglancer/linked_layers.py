"""Links between segmentation layers of a written state, which share a selection or colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imageryxr.errors import LinkError
from imageryxr.neuroglancer.linked_segments import combine_linked_segments, read_segments

LINKS = ("linkedSegmentationGroup", "linkedSegmentationColorGroup")


def restore_links(layers: Mapping[str, dict[str, Any]], ours: set[str]) -> dict[str, dict[str, Any]]:
    """Return the layers of a state without the links that would change which segments or colours a layer shows.

    Parameters
    ----------
    layers : mapping
        The layers by name, in the order of the state.
    ours : set of str
        Names of the layers whose entries list everything that they should show. A link that adds to it is removed.
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
