"""Read the contrast and the channel of an image layer from the text of its shader.

`shader_limits` evaluates a shader. What is read here also applies to shaders that cannot be evaluated.

A shader is untrusted text. Every search here takes linear time: no pattern may scan the whole text for a missing
closing bracket once per opening bracket.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from imageryxr.core.validate import to_whole
from imageryxr.neuroglancer.shader_limits import find_channels
from imageryxr.neuroglancer.validate import as_list, as_mapping, as_number, as_share, closing_quote

_INVERTED = re.compile(r"1(\.0*)?-\w+\(\)")
_COMMENT_OR_STRING = re.compile(r"//[^\n]*|/\*|['\"]")
_INVLERP = re.compile(r"#\s*uicontrol\s+invlerp\s+(\w+)[ \t]*(\(?)")
_FLOAT = re.compile(r"#\s*uicontrol\s+float\s+(\w+)([^\n#]*)")
_DEFAULT = re.compile(r"default\s*=\s*([-+.\deE]+)")
_RANGE = re.compile(r"range\s*=\s*\[")
_CHANNEL = re.compile(r"\bchannel[ \t]{0,8}=[ \t]{0,8}\[?[ \t]{0,8}(\d{1,6})")
_READ = re.compile(r"\bgetDataValue[ \t]{0,8}\([ \t]{0,8}(\d{1,6})[ \t]{0,8}\)")


def image_options(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the display options of an image layer of a state, as fields of `LinkLayer`."""
    shader = spec.get("shader")
    shader = shader if isinstance(shader, str) else ""
    code = strip_comments(shader)
    controls = as_mapping(spec.get("shaderControls"), f"{where}.shaderControls")
    limits = _invlerp_limits(code, controls, where)
    normalized = False
    if limits is None:
        limits = _slider_limits(code, controls, where)
        normalized = limits is not None
    if limits is not None and not normalized and _INVERTED.fullmatch(_grey_expression(code)):
        limits = limits[1], limits[0]
    opacity = as_share(spec.get("opacity", 0.5), f"{where}.opacity")
    return {
        "contrast": limits,
        "normalized": normalized,
        "opacity": opacity,
        "shader": shader,
        "controls": dict(controls),
        "additive": spec.get("blend") == "additive",
    }


def displayed_channel(spec: Mapping[str, Any]) -> int:
    """Return the channel that an image layer of a state shows; by default the first one.

    The channel is taken from the settings of the shader's invlerp control, from the control's declaration, or from the
    argument of ``getDataValue``.
    """
    shader, controls = spec.get("shader"), spec.get("shaderControls")
    code = strip_comments(shader) if isinstance(shader, str) else ""
    settings = controls if isinstance(controls, Mapping) else {}
    channels = find_channels(code, settings) if code.strip() else set()
    if len(channels) == 1:
        return min(channels)[0]
    declared = declared_controls(code)
    # The viewer's default shader has the control "normalized".
    names = rank_controls(declared, {}, code) if code.strip() else ["normalized"]
    if not names:
        read = _READ.search(code)
        return int(read[1]) if read else 0
    setting = settings.get(names[0])
    chosen = setting.get("channel") if isinstance(setting, Mapping) else None
    chosen = chosen[0] if isinstance(chosen, list) and chosen else chosen
    number = to_whole(chosen)
    if number is not None and number >= 0:
        return number
    found = _CHANNEL.search(declared.get(names[0], ""))
    return int(found[1]) if found else 0


def strip_comments(shader: str) -> str:
    """Return a shader without comments; as in the viewer, comments in strings and unclosed comments are kept."""
    out, unclosed, start = [], set(), 0
    position = 0
    while found := _COMMENT_OR_STRING.search(shader, position):
        mark, position = found.group(), found.end()
        if mark.startswith("//"):
            end = position
        elif mark in unclosed:
            continue
        elif mark == "/*":
            end = shader.find("*/", position) + 2
        else:
            end = closing_quote(shader, position, mark) + 1
        if end < position:
            unclosed.add(mark)
            continue
        if mark[0] == "/":
            out.append(shader[start : found.start()])
            start = end
        position = end
    return "".join([*out, shader[start:]])


def _grey_expression(code: str) -> str:
    """Return the expression that a shader shows as a grey value, without whitespace; "" if it shows no grey."""
    emitted = list(_grey_arguments(code)) or list(_color_arguments(code))
    value = re.sub(r"\s", "", emitted[-1]) if emitted else ""
    if re.fullmatch(r"[A-Za-z_]\w*", value):  # a variable is replaced by its definition
        definitions = list(_definitions(code, value))
        value = re.sub(r"\s", "", definitions[0]) if len(definitions) == 1 and len(emitted) == 1 else value
    return value


def _grey_arguments(code: str) -> Iterator[str]:
    """Yield the arguments of the calls of ``emitGrayscale``."""
    ends = [(m.start(), m.end()) for m in re.finditer(r"\)\s*;", code)]
    position = 0
    for call in re.finditer(r"emitGrayscale\s*\(", code):
        at = bisect.bisect_left(ends, (call.end(), 0))
        if at < len(ends) and call.start() >= position:
            yield code[call.end() : ends[at][0]]
            position = ends[at][1]


def _color_arguments(code: str) -> Iterator[str]:
    """Yield the argument of each ``emitRGB(vec3(…))`` with a single argument."""
    ends = [m.start() for m in re.finditer(r"\)\s*\)\s*;", code)]
    commas = [m.start() for m in re.finditer(",", code)]
    position = 0
    for call in re.finditer(r"emitRGB\s*\(\s*vec3\s*\(", code):
        next_comma = bisect.bisect_left(commas, call.end())
        limit = commas[next_comma] if next_comma < len(commas) else len(code)
        last = bisect.bisect_left(ends, limit) - 1
        if last >= 0 and ends[last] >= call.end() and call.start() >= position:
            yield code[call.end() : ends[last]]
            position = ends[last]


def _definitions(code: str, name: str) -> Iterator[str]:
    position = 0
    for found in re.finditer(rf"\bfloat\s+{name}\s*=", code):
        end = code.find(";", found.end())
        if end < 0:
            return
        if found.start() >= position:
            yield code[found.end() : end]
            position = end + 1


def _float_sliders(code: str) -> dict[str, str]:
    """Return the float sliders of a shader: name → rest of the line."""
    out: dict[str, str] = {}
    for found in _FLOAT.finditer(code):
        out.setdefault(found.group(1), found.group(2))
    return out


def declared_controls(code: str) -> dict[str, str]:
    """Return the invlerp controls of a shader: name → text in brackets."""
    out: dict[str, str] = {}
    position = 0
    while found := _INVLERP.search(code, position):
        position = found.end()
        end = code.find(")", position) if found.group(2) else -1
        if found.group(2) and end < 0:  # no later bracket is closed either, so the search ends here
            out |= dict.fromkeys((m.group(1) for m in _INVLERP.finditer(code, found.start())), "")
            break
        out[found.group(1)] = code[position:end] if found.group(2) else ""
        position = max(position, end)
    return out


def _invlerp_limits(shader: str, controls: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """Return the range of the invlerp control from its settings, or from its declaration in the shader."""
    # The viewer's default shader has the control "normalized"; settings of other controls have no effect.
    declared = declared_controls(shader) if shader.strip() else {"normalized": ""}
    for name in rank_controls(declared, {}, shader):
        setting = controls.get(name)
        if isinstance(setting, Mapping) and setting.get("range") is not None:
            return _read_range(setting["range"], f"{where}.shaderControls.{name}.range")
        text = declared.get(name, "")
        found = _RANGE.search(text)
        end = text.find("]", found.end()) if found else -1
        if found and end >= 0:
            return _read_range(text[found.end() : end].split(","), f"{where}.shader, range of {name}")
    return None


def rank_controls(declared: Mapping[str, Any], controls: Mapping[str, Any], code: str) -> list[str]:
    """Return the names of invlerp controls; those that the shader uses come first."""
    body = re.sub(r"#\s*uicontrol[^\n]*", "", code)
    used = set(re.findall(r"\b(\w+)\s*\(\s*\)", body))
    names = {*declared, *(k for k, v in controls.items() if isinstance(v, Mapping))}
    return sorted(names, key=lambda name: (name in declared and name not in used, *_name_priority(name)))


def displayed_invlerp(shader: str) -> tuple[str, bool] | None:
    """Return the name of the invlerp control that a shader shows, and whether it is inverted; None without one."""
    code = strip_comments(shader)
    names = rank_controls(declared_controls(code), {}, code)
    return (names[0], bool(_INVERTED.fullmatch(_grey_expression(code)))) if names else None


def _name_priority(name: str) -> tuple[int, str]:
    return ({"normalized": 0, "contrast": 1}.get(name, 2), name)


def _read_range(value: Any, what: str) -> tuple[float, float] | None:
    low, high = (as_number(v, what) for v in as_list(value, what, 2))
    return (low, high) if low != high else None


def _slider_limits(shader: str, controls: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """Return the values of the sliders ``black`` and ``white``, which CAVE's viewers have by default."""
    found = []
    sliders = _float_sliders(shader)
    for name, default in (("black", 0.0), ("white", 1.0)):
        if f"float {name}" not in shader:
            return None
        declared = _DEFAULT.search(sliders.get(name, ""))
        found.append(as_number(controls.get(name, declared.group(1) if declared else default), f"{where}: {name}"))
    return (found[0], found[1]) if found[0] != found[1] else None
