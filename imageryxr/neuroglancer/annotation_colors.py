"""The colour of the annotations of a layer in a Neuroglancer link: a constant, or a property.

Shaders: https://github.com/google/neuroglancer/blob/master/src/annotation/rendering.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from imageryxr.core.colors.parse import hex_color, parse_color
from imageryxr.errors import ColorError, LinkError, format_value
from imageryxr.neuroglancer.shaders import strip_comments

DEFAULT = "#ffff00"
"""Colour of annotations in the viewer, if a layer states none."""

_CALL = re.compile(r"\bsetColor\s*\(([^;{}]{0,300})\)\s*;")
_PROPERTY = re.compile(r"prop_([A-Za-z]\w{0,255})\s*\(\s*\)")
_VECTOR = re.compile(r"vec([34])\s*\(([\d.,\s]{1,100})\)")
_CONTROL = re.compile(r"#uicontrol\s+vec3\s+(\w{1,100})\s+color\s*(?:\(\s*default\s*=\s*\"([^\"\n]{0,60})\"\s*\))?")


def annotation_color(
    spec: Mapping[str, Any], annotations: Sequence[xr.Dataset], where: str
) -> tuple[str, str | None, str]:
    """Return the colour of a layer, the property that colours each annotation, and what cannot be drawn.

    Raises
    ------
    LinkError
        If the layer's colour is invalid.
    """
    color = _read_color(spec.get("annotationColor", DEFAULT), f"{where}.annotationColor")
    shader = spec.get("shader")
    if not isinstance(shader, str) or not shader.strip():
        return color, None, ""
    code = strip_comments(shader)
    calls = [call.strip() for call in _CALL.findall(code)]
    if not calls:
        return color, None, ""
    if len(set(calls)) == 1:
        call = calls[0]
        if re.fullmatch(r"defaultColor\s*\(\s*\)", call):
            return color, None, ""
        found = _PROPERTY.fullmatch(call)
        if found and all(found[1] in part for part in annotations):
            return color, found[1], ""
        constant = _constant_color(call, code, spec.get("shaderControls"))
        if constant is not None:
            return constant, None, ""
    return color, None, "its shader computes colours, and its annotations are drawn in one colour"


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
                return _read_color(value or "white", "shaderControls")
            except LinkError:
                return None
    return None


def _read_color(value: Any, what: str) -> str:
    try:
        if isinstance(value, str):
            return hex_color(parse_color(value))
    except ColorError:
        pass
    raise LinkError(f"{what}={format_value(value)} is not a colour")
