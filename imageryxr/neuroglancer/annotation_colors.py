"""The colour of the annotations of a layer, from its settings and its shader.

Functions of shaders: https://github.com/google/neuroglancer/blob/master/src/annotation/rendering.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from imageryxr.core.colors.parse import hex_color, parse_color
from imageryxr.errors import LinkError
from imageryxr.neuroglancer.linked_segments import read_color
from imageryxr.neuroglancer.shaders import strip_comments

DEFAULT_COLOR = "#ffff00"
"""Colour of annotations in the viewer, if a layer states none."""

_SETTERS = {
    "point": ("setPointMarkerColor",),
    "line": ("setLineColor", "setPolyLineColor"),
    "box": ("setBoundingBoxBorderColor",),
    "ellipsoid": ("setEllipsoidFillColor",),
}
_SET_COLOR = re.compile(
    r"\b(setColor|" + "|".join(n for ns in _SETTERS.values() for n in ns) + r")\s*\(([^;{}]{0,300})\)\s*;"
)
_SET_SIZE = re.compile(r"\bset(?:\w*MarkerSize|\w*LineWidth)\s*\(")
_CONDITION = re.compile(r"\b(?:if|for|while|switch|discard)\b|\?")
_PROPERTY = re.compile(r"prop_([A-Za-z]\w{0,255})\s*\(\s*\)")
_VECTOR = re.compile(r"vec([34])\s*\(([\d.,\s]{1,100})\)")
_CONTROL = re.compile(r"#uicontrol\s+vec3\s+(\w{1,100})\s+color\s*(?:\(\s*default\s*=\s*\"([^\"\n]{0,60})\"\s*\))?")


def annotation_color(
    spec: Mapping[str, Any], annotations: Sequence[xr.Dataset], where: str
) -> tuple[str, str | None, str]:
    """Return the colour of a layer, the property that colours each annotation, and what cannot be drawn.

    Raises `LinkError` if the layer's colour is invalid.
    """
    color = hex_color(read_color(spec.get("annotationColor", DEFAULT_COLOR), f"{where}.annotationColor"))
    shader = spec.get("shader")
    code = strip_comments(shader) if isinstance(shader, str) else ""
    if not code.strip():
        return color, None, ""
    if _CONDITION.search(code):
        return color, None, "its shader colours or hides annotations by conditions, but here all have one colour"
    calls = _set_colors(code, [str(part.attrs["annotation_type"]) for part in annotations])
    if None in calls:
        return color, None, "its shader sets no colour, so the viewer shows only outlines; here they have one colour"
    if len(calls) == 1:
        call = str(min(map(str, calls)))
        if re.fullmatch(r"defaultColor\s*\(\s*\)", call):
            return color, None, ""
        found = _PROPERTY.fullmatch(call)
        if found and all(found[1] in part for part in annotations):
            return color, found[1], ""
        constant = _constant_color(call, code, spec.get("shaderControls"))
        if constant is not None:
            return constant, None, ""
    return color, None, "its shader computes colours, but here its annotations are drawn in one colour"


def size_problem(spec: Mapping[str, Any]) -> str:
    """Return a message if the shader of a layer sets the size of markers or lines, otherwise an empty string."""
    shader = spec.get("shader")
    if isinstance(shader, str) and _SET_SIZE.search(strip_comments(shader)):
        return "its shader sets the size of markers or lines; set it with imageryxr.annotate(…, size=…)"
    return ""


def _set_colors(code: str, kinds: Sequence[str]) -> set[str | None]:
    """Return the expressions that set the colours of annotations of these types; None for a type without any."""
    calls = [(name, text.strip()) for name, text in _SET_COLOR.findall(code)]
    found: set[str | None] = set()
    for kind in kinds:
        # A line may be part of a polyline, which has its own setter.
        for setter in _SETTERS[kind]:
            names = ("setColor", "setLineColor", setter) if kind == "line" else ("setColor", setter)
            own = [text for name, text in calls if name in names]
            found.add(own[-1] if own else None)
    return found


def _constant_color(call: str, code: str, controls: Any) -> str | None:
    vector = _VECTOR.fullmatch(call)
    if vector is not None:
        try:
            numbers = [float(part) for part in vector[2].split(",")]
        except ValueError:
            return None
        numbers = numbers * 3 if len(numbers) == 1 and vector[1] == "3" else numbers
        if len(numbers) != int(vector[1]):
            return None
        return hex_color(parse_color(tuple(round(255 * min(max(n, 0.0), 1.0)) for n in numbers)))
    for name, default in _CONTROL.findall(code):
        if name == call:
            value = controls.get(name, default) if isinstance(controls, Mapping) else default
            try:
                return hex_color(read_color(value or "white", "shaderControls"))
            except LinkError:
                return None
    return None
