"""Read the controls of a shader and their settings.

The rules are those of Neuroglancer's ``webgl/shader_ui_controls.ts``: an invalid setting is ignored, and settings of
controls that the shader does not declare have no effect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imageryxr.core.validate import to_number, to_whole
from imageryxr.errors import LinkError
from imageryxr.neuroglancer.linked_segments import read_color
from imageryxr.neuroglancer.shader_evaluator import Channel, Invlerp
from imageryxr.neuroglancer.shader_functions import UnsupportedShaderError, Value
from imageryxr.neuroglancer.shader_syntax import MAX_CODE

DEFAULT_SHADER = "#uicontrol invlerp normalized\nvoid main() {\n  emitGrayscale(normalized());\n}\n"
"""The viewer's shader of layers that have none."""

_DIRECTIVE = re.compile(
    r"^[ \t]*#[ \t]*uicontrol[ \t]+([A-Za-z_]\w*)[ \t]+([a-z]\w*)(?:[ \t]+([A-Za-z]+))?[ \t]*"
    r"(?:\(((?:[^()\"]|\"[^\"\n]*\"){0,2000})\))?[^\n]*$",
    re.MULTILINE,
)
_PARAMETER = re.compile(r"([A-Za-z_]\w*)[ \t]*=[ \t]*(\"[^\"]*\"|\[[^\[\]]*\]|\{[^{}]*\}|[^,\s\[\]{}\"]+)")


@dataclass
class ShaderControls:
    """The controls of a shader with their settings."""

    code: str
    """The shader without the directives of its controls."""
    variables: dict[str, Value] = field(default_factory=dict)
    invlerps: dict[str, Invlerp] = field(default_factory=dict)


def read_controls(code: str, settings: Mapping[str, Any], dtype: np.dtype[Any]) -> ShaderControls:
    """Return the controls of a shader without comments, for data of a type.

    Raises `UnsupportedShaderError` if a directive is not supported.
    """
    if len(code) > MAX_CODE:
        raise UnsupportedShaderError("the code is too long")
    found = ShaderControls(_DIRECTIVE.sub("", code))
    if "#" in found.code:
        raise UnsupportedShaderError("preprocessor directives")
    for kind, name, control, text in _DIRECTIVE.findall(code):
        parameters, setting = _read_parameters(text), settings.get(name)
        match control or kind:
            case "invlerp":
                found.invlerps[name] = _read_invlerp(parameters, setting, dtype)
            case "slider":
                found.variables[name] = _read_slider(kind, parameters, setting)
            case "checkbox":
                found.variables[name] = setting if isinstance(setting, bool) else parameters.get("default") is True
            case "color":
                found.variables[name] = _read_rgb(setting, parameters.get("default", "white"))
            case "select":
                found.variables[name] = _read_choice(parameters, setting)
            case "transferFunction":
                pass  # calling it is not supported
            case other:
                raise UnsupportedShaderError(other)
    return found


def type_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the range that the viewer shows by default: all values of an integer type, or 0 to 1."""
    if dtype.kind == "f":
        return 0.0, 1.0
    info = np.iinfo(dtype)
    return float(info.min), float(info.max)


def _read_parameters(text: str) -> dict[str, Any]:
    found = {}
    for name, value in _PARAMETER.findall(text):
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            raise UnsupportedShaderError(f"{name}={value}") from None
    return found


def _read_invlerp(parameters: Mapping[str, Any], setting: Any, dtype: np.dtype[Any]) -> Invlerp:
    stated = setting if isinstance(setting, Mapping) else {}
    own, channel = _read_range(parameters.get("range"), dtype), _read_channel(parameters.get("channel"))
    low, high = _read_range(stated.get("range"), dtype) or own or type_range(dtype)
    channel = _read_channel(stated.get("channel")) or channel or (0,)
    return Invlerp(low, high, channel, parameters.get("clamp") is not False)


def _read_range(value: Any, dtype: np.dtype[Any]) -> tuple[float, float] | None:
    numbers = [to_number(v, text=True) for v in value] if isinstance(value, list) else []
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        return None
    low, high = type_range(dtype)
    # The viewer ignores integers that the type does not have. It truncates fractions, which changes less than a level.
    is_valid = dtype.kind == "f" or all(low <= int(n) <= high for n in numbers if n is not None)
    return (float(numbers[0]), float(numbers[1])) if is_valid else None


def _read_channel(value: Any) -> Channel | None:
    numbers = [to_whole(v) for v in (value if isinstance(value, list) else [value])]
    found = tuple(n for n in numbers if n is not None and n >= 0)
    return found if found and len(found) == len(numbers) else None


def _read_slider(kind: str, parameters: Mapping[str, Any], setting: Any) -> float:
    low, high = to_number(parameters.get("min")), to_number(parameters.get("max"))
    if low is None or high is None:
        raise UnsupportedShaderError("a slider without min and max")
    default = to_number(parameters.get("default"))
    default = ((low + high) / 2 if kind == "float" else low) if default is None else default
    number = to_number(setting, text=True)
    value = default if number is None or not low <= number <= high else number
    return float(value) if kind == "float" else int(value)


def _read_rgb(*texts: Any) -> tuple[float, ...]:
    for text in texts:
        try:
            return tuple(v / 255 for v in read_color(text, "")[:3])
        except LinkError:
            continue
    raise UnsupportedShaderError("an unknown colour")


def _read_choice(parameters: Mapping[str, Any], setting: Any) -> Value:
    options = parameters.get("options")
    options = list(options.values()) if isinstance(options, Mapping) else options
    if not isinstance(options, list) or not options:
        raise UnsupportedShaderError("a select control without options")
    for value in (setting, parameters.get("default")):
        if value is not None and value in options:
            return value  # type: ignore[no-any-return]
    return options[0]  # type: ignore[no-any-return]
