"""Find the grey values that the shader of an image layer shows as black and white.

The shader is evaluated for many data values, so that contrast limits are reported only if they reproduce what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from imageryxr.neuroglancer.shader_controls import DEFAULT_SHADER, ShaderControls, read_controls, type_range
from imageryxr.neuroglancer.shader_evaluator import Evaluator
from imageryxr.neuroglancer.shader_functions import UnsupportedShaderError
from imageryxr.neuroglancer.shader_syntax import parse_shader

_TOLERANCE = 1 / 510  # half a grey level of a picture
_STEEP = 1 / 3
_ROUNDS = 6

Limits = tuple[float, float]
Curve = dict[float, float]


def find_grey_limits(
    code: str, settings: Mapping[str, Any], dtype: np.dtype[Any], expected: Limits | None = None
) -> Limits | None:
    """Return the limits between which a shader shows data as grey values from black to white.

    `code` is the shader without comments, `settings` are its controls in the state. `expected` is returned if it
    describes what the shader shows. The result is None if no limits do, or if the shader is not supported.
    """
    if not code.strip() and "normalized" not in settings and expected is None:
        return type_range(dtype)
    try:
        controls = read_controls(code if code.strip() else DEFAULT_SHADER, settings, dtype)
        shader = _make_evaluator(controls, dtype)
        curve = _sample(shader, controls, dtype)
    except UnsupportedShaderError:
        return None
    if curve is None or len(shader.channels) != 1:
        return None
    for limits in _candidates(expected, controls, curve):
        if limits[0] != limits[1] and _matches(curve, limits):
            return limits
    return None


def find_channels(code: str, settings: Mapping[str, Any]) -> set[tuple[int, ...]]:
    """Return the channels that a shader without comments reads; empty if the shader is not supported."""
    dtype = np.dtype("uint8")
    try:
        shader = _make_evaluator(read_controls(code, settings, dtype), dtype)
        for raw in (0, 128, 255):
            shader.run(raw)
    except UnsupportedShaderError:
        return set()
    return shader.channels


def _make_evaluator(controls: ShaderControls, dtype: np.dtype[Any]) -> Evaluator:
    top = None if dtype.kind == "f" else float(np.iinfo(dtype).max)
    return Evaluator(parse_shader(controls.code), controls.variables, controls.invlerps, top)


def _sample(shader: Evaluator, controls: ShaderControls, dtype: np.dtype[Any]) -> Curve | None:
    """Return the grey value, from 0 to 1, of many data values; None if a value is transparent or in colour."""
    is_float = dtype.kind == "f"
    convert: Callable[[float], float] = float if is_float else round
    low, high = type_range(dtype)
    if is_float:
        ends = [low, high, *(v for c in controls.invlerps.values() for v in (c.low, c.high))]
        low, high = 2 * min(ends) - max(ends), 2 * max(ends) - min(ends)
    wanted = list(np.linspace(low, high, 257))
    for control in controls.invlerps.values():
        wanted += [v for v in np.linspace(control.low, control.high, 17) if low <= v <= high]
    curve: Curve = {}
    for _ in range(_ROUNDS):
        for raw in {convert(v) for v in wanted} - curve.keys():
            color = shader.run(raw)
            if color is None or color[3] < 1 or max(color[:3]) - min(color[:3]) > _TOLERANCE:
                return None
            curve[raw] = color[0]
        # Sample the steep parts more densely, because a narrow range may lie between two samples.
        steep = [(a, b) for a, b in pairwise(sorted(curve)) if abs(curve[a] - curve[b]) > _STEEP]
        wanted = [v for a, b in steep for v in np.linspace(a, b, 17)]
    return curve


def _candidates(expected: Limits | None, controls: ShaderControls, curve: Curve) -> Iterator[Limits]:
    if expected is not None:
        yield expected
    for control in controls.invlerps.values():
        yield control.low, control.high
        yield control.high, control.low
    inner = [raw for raw in sorted(curve) if 1e-6 < curve[raw] < 1 - 1e-6]
    if len(inner) > 1 and curve[inner[0]] != curve[inner[-1]]:
        slope = (curve[inner[-1]] - curve[inner[0]]) / (inner[-1] - inner[0])
        low = inner[0] - curve[inner[0]] / slope
        yield float(f"{low:.9g}"), float(f"{low + 1 / slope:.9g}")


def _matches(curve: Curve, limits: Limits) -> bool:
    low, high = limits
    return all(abs(min(1.0, max(0.0, (raw - low) / (high - low))) - grey) <= _TOLERANCE for raw, grey in curve.items())
