"""What the shader of an image layer says of its contrast, as far as grey values go.

A shader is untrusted text. Every search here passes over it once: no pattern may run to a closing bracket that is not
there, once for each opening one.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from imageryxr.neuroglancer.validate import as_list, as_mapping, as_number, as_share, closing_quote

_INVERTED = re.compile(r"1(\.0*)?-\w+\(\)")
_COMMENT_OR_STRING = re.compile(r"//[^\n]*|/\*|['\"]")
_INVLERP = re.compile(r"#\s*uicontrol\s+invlerp\s+(\w+)[ \t]*(\(?)")
_FLOAT = re.compile(r"#\s*uicontrol\s+float\s+(\w+)([^\n#]*)")
_DEFAULT = re.compile(r"default\s*=\s*([-+.\deE]+)")
_RANGE = re.compile(r"range\s*=\s*\[")


def image_options(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what an image layer of a state says of how it is shown, as `LinkLayer` has it."""
    shader = spec.get("shader")
    shader = shader if isinstance(shader, str) else ""
    code = without_comments(shader)
    controls = as_mapping(spec.get("shaderControls"), f"{where}.shaderControls")
    limits = _invlerp(code, controls, where)
    normalized = False
    if limits is None:
        limits = _sliders(code, controls, where)
        normalized = limits is not None
    shown = _shown(code)
    if limits is not None and not normalized and _INVERTED.fullmatch(shown):
        limits = limits[1], limits[0]
    opacity = as_share(spec.get("opacity", 0.5), f"{where}.opacity")
    return {
        "contrast": limits,
        "normalized": normalized,
        "opacity": opacity,
        "shader": shader,
        "plain_shader": not code.strip() or _is_plain(code, _without_neutral(shown, code, controls), normalized),
        "additive": spec.get("blend") == "additive",
    }


def without_comments(shader: str) -> str:
    """Return a shader without comments; as in the viewer, those inside of strings and those that never end stay."""
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


def _shown(code: str) -> str:
    """Return the expression that a shader shows as a grey value, without blanks; "" if it shows no grey."""
    emitted = list(_grey_arguments(code)) or list(_color_arguments(code))
    value = re.sub(r"\s", "", emitted[-1]) if emitted else ""
    if re.fullmatch(r"[A-Za-z_]\w*", value):  # a variable: what it was set to
        made = list(_definitions(code, value))
        value = re.sub(r"\s", "", made[0]) if len(made) == 1 and len(emitted) == 1 else value
    return value


def _grey_arguments(code: str) -> Iterator[str]:
    """Yield what stands in the calls of ``emitGrayscale``."""
    ends = [(m.start(), m.end()) for m in re.finditer(r"\)\s*;", code)]
    position = 0
    for call in re.finditer(r"emitGrayscale\s*\(", code):
        at = bisect.bisect_left(ends, (call.end(), 0))
        if at < len(ends) and call.start() >= position:
            yield code[call.end() : ends[at][0]]
            position = ends[at][1]


def _color_arguments(code: str) -> Iterator[str]:
    """Yield the one argument of each ``emitRGB(vec3(…))`` that has one."""
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


def _is_plain(code: str, shown: str, sliders: bool) -> bool:
    """Whether contrast limits tell all that a shader does to grey values."""
    if "colormap" in code or not shown:
        return False
    called = re.fullmatch(r"(?:1(?:\.0*)?-)?(\w+)\(\)", shown)
    if called and called[1] in {"normalized", *declared_controls(code)}:
        return True
    if sliders:
        return "brightness" not in shown
    return shown in ("toNormalized(getDataValue())", "toNormalized(getDataValue(0))")


def _without_neutral(shown: str, code: str, controls: Mapping[str, Any]) -> str:
    """Return what a shader shows without the sliders ``brightness`` and ``contrast`` that stand at 0, as by default."""
    sliders = _float_sliders(code)
    for name in ("brightness", "contrast"):
        if name not in sliders:
            continue
        default = _DEFAULT.search(sliders[name])
        if as_number(controls.get(name, default.group(1) if default else 0), name) == 0:
            shown = shown.replace(f"+{name}", "").replace(f"*exp({name})", "")
    return shown


def _float_sliders(code: str) -> dict[str, str]:
    """Return the sliders of a shader: name to the rest of the line."""
    out: dict[str, str] = {}
    for found in _FLOAT.finditer(code):
        out.setdefault(found.group(1), found.group(2))
    return out


def declared_controls(code: str) -> dict[str, str]:
    """Return the invlerp controls of a shader: name to what stands in brackets."""
    out: dict[str, str] = {}
    position = 0
    while found := _INVLERP.search(code, position):
        position = found.end()
        end = code.find(")", position) if found.group(2) else -1
        if found.group(2) and end < 0:  # nor is any further bracket closed
            out |= dict.fromkeys((m.group(1) for m in _INVLERP.finditer(code, found.start())), "")
            break
        out[found.group(1)] = code[position:end] if found.group(2) else ""
        position = max(position, end)
    return out


def _invlerp(shader: str, controls: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """Return the range of the invlerp control: as set, else as the shader says."""
    declared = declared_controls(shader)
    for name in names_by_use(declared, controls, shader):
        setting = controls.get(name)
        if isinstance(setting, Mapping) and setting.get("range") is not None:
            return _limits(setting["range"], f"{where}.shaderControls.{name}.range")
        text = declared.get(name, "")
        found = _RANGE.search(text)
        end = text.find("]", found.end()) if found else -1
        if found and end >= 0:
            return _limits(text[found.end() : end].split(","), f"{where}.shader, range of {name}")
    return None


def names_by_use(declared: Mapping[str, Any], controls: Mapping[str, Any], code: str) -> list[str]:
    """Return the names of invlerp controls, those first whose value the shader takes."""
    body = re.sub(r"#\s*uicontrol[^\n]*", "", code)
    used = set(re.findall(r"\b(\w+)\s*\(\s*\)", body))
    names = {*declared, *(k for k, v in controls.items() if isinstance(v, Mapping))}
    return sorted(names, key=lambda name: (name in declared and name not in used, *_by_fame(name)))


def invlerp_of(shader: str) -> tuple[str, bool] | None:
    """Return the invlerp control that a shader shows, and whether white is its lower end; None if it has none."""
    code = without_comments(shader)
    names = names_by_use(declared_controls(code), {}, code)
    return (names[0], bool(_INVERTED.fullmatch(_shown(code)))) if names else None


def _by_fame(name: str) -> tuple[int, str]:
    return ({"normalized": 0, "contrast": 1}.get(name, 2), name)


def _limits(value: Any, what: str) -> tuple[float, float] | None:
    low, high = (as_number(v, what) for v in as_list(value, what, 2))
    return (low, high) if low != high else None


def _sliders(shader: str, controls: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """Return what the sliders ``black`` and ``white`` are set to, which CAVE's viewers have by default."""
    found = []
    sliders = _float_sliders(shader)
    for name, default in (("black", 0.0), ("white", 1.0)):
        if name not in controls and f"float {name}" not in shader:
            return None
        declared = _DEFAULT.search(sliders.get(name, ""))
        found.append(as_number(controls.get(name, declared.group(1) if declared else default), f"{where}: {name}"))
    return (found[0], found[1]) if found[0] != found[1] else None
