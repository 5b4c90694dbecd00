"""What the shader of an image layer says of its contrast, as far as grey values go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from imageryxr.sources.checks import as_list, as_mapping, as_number, as_share

_INVERTED = re.compile(r"1(\.0*)?-\w+\(\)")


def image_options(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what an image layer of a state says of how it is shown, as `LinkLayer` has it."""
    shader = spec.get("shader")
    shader = shader if isinstance(shader, str) else ""
    code = _without_comments(shader)
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


def _without_comments(shader: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", shader, flags=re.DOTALL)


def _shown(code: str) -> str:
    """Return the expression that a shader shows as a grey value, without blanks; "" if it shows no grey."""
    emitted = re.findall(r"emitGrayscale\s*\((.*?)\)\s*;", code, re.DOTALL)
    if not emitted:
        emitted = re.findall(r"emitRGB\s*\(\s*vec3\s*\(([^,]*)\)\s*\)\s*;", code)
    value = re.sub(r"\s", "", emitted[-1]) if emitted else ""
    if re.fullmatch(r"[A-Za-z_]\w*", value):  # a variable: what it was set to
        made = re.findall(rf"\bfloat\s+{value}\s*=([^;]*);", code)
        value = re.sub(r"\s", "", made[0]) if len(made) == 1 and len(emitted) == 1 else value
    return value


def _is_plain(code: str, shown: str, sliders: bool) -> bool:
    """Whether contrast limits tell all that a shader does to grey values."""
    if "colormap" in code or not shown:
        return False
    controls = re.findall(r"#\s*uicontrol\s+invlerp\s+(\w+)", code)
    if re.fullmatch(rf"(1(\.0*)?-)?({'|'.join([*map(re.escape, controls), 'normalized'])})\(\)", shown):
        return True
    if sliders:
        return "brightness" not in shown
    return shown in ("toNormalized(getDataValue())", "toNormalized(getDataValue(0))")


def _without_neutral(shown: str, code: str, controls: Mapping[str, Any]) -> str:
    """Return what a shader shows without the sliders ``brightness`` and ``contrast`` that stand at 0, as by default."""
    for name, rest in re.findall(r"#\s*uicontrol\s+float\s+(brightness|contrast)\b([^\n]*)", code):
        default = re.search(r"default\s*=\s*([-+.\deE]+)", rest)
        if as_number(controls.get(name, default.group(1) if default else 0), name) == 0:
            shown = shown.replace(f"+{name}", "").replace(f"*exp({name})", "")
    return shown


def _invlerp(shader: str, controls: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """Return the range of the invlerp control: as set, else as the shader says."""
    declared = dict(re.findall(r"#\s*uicontrol\s+invlerp\s+(\w+)[ \t]*(?:\(([^)]*)\))?", shader))
    for name in names_by_use(declared, controls, shader):
        setting = controls.get(name)
        if isinstance(setting, Mapping) and setting.get("range") is not None:
            return _limits(setting["range"], f"{where}.shaderControls.{name}.range")
        in_text = re.search(r"range\s*=\s*\[([^\]]*)\]", declared.get(name, ""))
        if in_text:
            return _limits(in_text.group(1).split(","), f"{where}.shader, range of {name}")
    return None


def names_by_use(declared: Mapping[str, Any], controls: Mapping[str, Any], code: str) -> list[str]:
    """Return the names of invlerp controls, those first whose value the shader takes."""
    body = re.sub(r"#\s*uicontrol[^\n]*", "", code)
    used = set(re.findall(r"\b(\w+)\s*\(\s*\)", body))
    names = {*declared, *(k for k, v in controls.items() if isinstance(v, Mapping))}
    return sorted(names, key=lambda name: (name in declared and name not in used, *_by_fame(name)))


def invlerp_of(shader: str) -> tuple[str, bool] | None:
    """Return the invlerp control that a shader shows, and whether white is its lower end; None if it has none."""
    code = _without_comments(shader)
    declared = dict.fromkeys(re.findall(r"#\s*uicontrol\s+invlerp\s+(\w+)", code))
    names = names_by_use(declared, {}, code)
    return (names[0], bool(_INVERTED.fullmatch(_shown(code)))) if names else None


def _by_fame(name: str) -> tuple[int, str]:
    return ({"normalized": 0, "contrast": 1}.get(name, 2), name)


def _limits(value: Any, what: str) -> tuple[float, float] | None:
    low, high = (as_number(v, what) for v in as_list(value, what, 2))
    return (low, high) if low != high else None


def _sliders(shader: str, controls: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """Return what the sliders ``black`` and ``white`` are set to, which CAVE's viewers have by default."""
    found = []
    for name, default in (("black", 0.0), ("white", 1.0)):
        declared = re.search(rf"#uicontrol\s+float\s+{name}\b[^\n]*?default\s*=\s*([-+.\deE]+)", shader)
        if name not in controls and f"float {name}" not in shader:
            return None
        found.append(as_number(controls.get(name, declared.group(1) if declared else default), f"{where}: {name}"))
    return (found[0], found[1]) if found[0] != found[1] else None
