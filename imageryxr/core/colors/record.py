"""The colours that a picture was drawn with, kept in its attributes, so that a legend matches it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from imageryxr.core.colors.ids import as_ids
from imageryxr.core.colors.mapping import Colors
from imageryxr.core.colors.palettes import stable_table
from imageryxr.core.colors.parse import RGB, parse_color
from imageryxr.errors import ColorError, OptionError

#: The attribute of a picture: JSON, a list with an entry for each layer of segments, the top one last.
DRAWN_COLORS = "drawn_colors"
# Attributes go into every file that a picture is written to.
_MOST_IDS = 5000


def describe_colors(
    colors: Colors, selected: Iterable[int] | None, has_rest: bool, saturation: float
) -> dict[str, Any]:
    """Return how a layer's segments are coloured, as JSON holds it.

    Parameters
    ----------
    colors : Colors
        The colour of every segment.
    selected : iterable of int or None
        The only segments that are drawn in full; None for all.
    has_rest : bool
        Whether the others are drawn at all.
    saturation : float
        1 for the colours as they are, 0 for white.

    Returns
    -------
    dict
        ``ids`` (id → "#rrggbb"), ``others`` (how an id that is not listed gets its colour; None if it is not drawn) and
        ``saturation``; ``omitted`` counts ids where they are too many for an attribute.
    """
    ids = colors.ids if selected is None else np.array(list(selected), np.uint64)
    ids = ids[colors.shows(ids)]
    others: Any = None
    if colors.shows_all and (selected is None or has_rest):
        others = ["neuroglancer", colors.seed] if colors.mode == "neuroglancer" else _name_of_table(colors)
    out: dict[str, Any] = {"ids": {}, "others": others, "saturation": saturation}
    if len(ids) > _MOST_IDS:
        return {**out, "omitted": len(ids)}
    rgb = _saturated(colors.colors_for(ids), saturation).tolist()
    out["ids"] = {str(i): "#" + bytes(c).hex() for i, c in zip(ids.tolist(), rgb, strict=True)}
    return out


def describe_masks(colors: Mapping[Any, Any]) -> dict[str, Any]:
    """Return how masks are coloured, by their names, as JSON holds it."""
    named = {str(name): "#" + bytes(color[:3]).hex() for name, color in colors.items()}
    return {"ids": named, "others": None, "saturation": 1.0}


def colors_of(picture: Any, ids: Any = None) -> dict[Any, RGB]:
    """Return the colours that the segments of a picture were drawn with.

    Reads nothing: the picture holds them in its attributes, also after it was computed or written to a file.

    Parameters
    ----------
    picture : DataArray
        As `overlay`, `outline` and `composite` return it.
    ids : iterable of int, optional
        The segments, such as `unique_ids` returns them. Default: those that have a colour of their own in the picture;
        a picture whose colours depend on the id alone has none, and needs them.

    Returns
    -------
    dict
        Id → (r, g, b), each 0–255, in the order of ``ids``; those that were not drawn are left out. For masks: name →
        (r, g, b). Where several layers draw a segment, the colour of the top one.

    Raises
    ------
    ColorError
        If the array does not hold its colours.
    OptionError
        If the picture needs ``ids``.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> picture = ix.overlay(ds.image, ds.segmentation, ids=[1, 2], colors={1: "red", 2: "blue"})
    >>> ix.colors_of(picture)
    {1: (255, 0, 0), 2: (0, 0, 255)}
    >>> seeded = ix.overlay(ds.image, ds.segmentation, colors=("neuroglancer", 7))
    >>> ix.colors_of(seeded, [5]) == ix.palette([5], ("neuroglancer", 7))
    True
    """
    layers = _layers_of(picture)
    if ids is None:
        return _listed(layers)
    wanted = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids]
    names = {name for layer in layers for name in layer["ids"]}
    if wanted and all(isinstance(item, str) and item in names and not item.isdecimal() for item in wanted):
        return {name: _color_in(layers, name) for name in wanted}  # type: ignore[misc]
    found = {int(i): _color_in(layers, str(int(i))) for i in as_ids(ids).tolist()}
    return {i: color for i, color in found.items() if color is not None}


def _layers_of(picture: Any) -> list[dict[str, Any]]:
    text = getattr(picture, "attrs", {}).get(DRAWN_COLORS)
    try:
        layers = json.loads(str(text))
        assert all(isinstance(layer["ids"], dict) and "others" in layer for layer in layers)
    except (TypeError, ValueError, KeyError, AssertionError):
        raise ColorError(
            f"this {type(picture).__name__} does not hold the colours that it was drawn with; give the array that "
            "overlay or outline returned (a PIL picture has no attributes), or a dict id → colour"
        ) from None
    return [dict(layer) for layer in reversed(layers)]


def _listed(layers: list[dict[str, Any]]) -> dict[Any, RGB]:
    omitted = sum(layer.get("omitted", 0) for layer in layers)
    names = [name for layer in layers for name in layer["ids"]]
    if omitted or not names:
        why = f"{omitted:,} ids are too many for its attributes" if omitted else "its colours depend on the ids alone"
        raise OptionError(
            f"the picture does not list the ids that it shows: {why}; give them as the second "
            "argument, such as imageryxr.unique_ids(segmentation)"
        )
    keys = {name: int(name) if name.isdecimal() else name for name in names}
    return {keys[name]: color for name in keys if (color := _color_in(layers, name)) is not None}


def _color_in(layers: list[dict[str, Any]], name: str) -> RGB | None:
    for layer in layers:
        if name in layer["ids"]:
            return parse_color(layer["ids"][name])[:3]
        if layer["others"] is not None and name.isdecimal():
            rgb = _saturated(_others(layer["others"]).colors_for([int(name)]), layer["saturation"])[0]
            return (int(rgb[0]), int(rgb[1]), int(rgb[2]))
    return None


def _saturated(rgb: Any, saturation: float) -> Any:
    return np.floor(255 + (rgb.astype(float) - 255) * saturation + 0.5).astype(np.uint8)


def _name_of_table(colors: Colors) -> str:
    if np.array_equal(colors.fallback, stable_table()):
        return "stable"
    return colors.fallback.tobytes().hex()


def _others(stated: Any) -> Colors:
    if isinstance(stated, list):
        return Colors(mode="neuroglancer", seed=int(stated[1]))
    if stated == "stable":
        return Colors(fallback=stable_table())
    return Colors(fallback=np.frombuffer(bytes.fromhex(stated), np.uint8).reshape(-1, 3))
