"""Layers of a written state that share a selection or colours with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imageryxr.errors import LinkError
from imageryxr.neuroglancer.linked_segments import read_segments, shown_segments

LINKS = ("linkedSegmentationGroup", "linkedSegmentationColorGroup")


def with_links(layers: Mapping[str, dict[str, Any]], ours: set[str]) -> dict[str, dict[str, Any]]:
    """Return layers of a state, linked to each other as far as each then shows what it should.

    Parameters
    ----------
    layers : mapping
        The layers by name, in the order of the state.
    ours : set of str
        Names of those that list all that they should show. A link that adds to it is left out.
    """
    while True:
        linked = [n for n in ours if any(key in layers[n] for key in LINKS)]
        if not linked:
            return dict(layers)
        alone = {n: {k: v for k, v in spec.items() if k not in LINKS} for n, spec in layers.items()}
        shown, wanted = _shown(layers), _shown(alone)
        wrong = {n for n in ours if shown.get(n) != wanted.get(n)}
        wrong |= {
            n for n in linked if any(isinstance(layers[n].get(k), str) and layers[n][k] not in layers for k in LINKS)
        }
        if not wrong:
            return dict(layers)
        # A layer at the root of a group is wrong for what others add to it.
        drop = wrong & set(linked) or set(linked)
        layers = {n: alone[n] if n in drop else spec for n, spec in layers.items()}


def _shown(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    entries = {}
    for name, spec in layers.items():
        if str(spec.get("type")).startswith("segmentation"):
            try:
                entries[name] = read_segments(spec, name)
            except LinkError:
                continue
    return {name: _facts(shown) for name, shown in shown_segments(entries).items()}


def _facts(shown: Any) -> Any:
    look = shown.look
    ids = set(look.selected_ids), set(look.hidden_ids), {frozenset(s) for s in shown.equivalences}
    return *ids, look.colors, look.color_seed, look.default_color
