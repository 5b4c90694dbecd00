"""What the shader of an image layer says of its contrast, as far as grey values go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from imageryxr.sources.checks import as_list, as_mapping, as_number, as_share


def image_options(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what an image layer of a state says of how it is shown, as `LinkLayer` has it."""
    shader = spec.get("shader")
    shader = shader if isinstance(shader, str) else ""
    controls = as_mapping(spec.get("shaderControls"), f"{where}.shaderControls")
    limits = _invlerp(shader, controls, where)
    normalized = False
    if limits is None:
        limits = _sliders(shader, controls, where)
        normalized = limits is not None
    plain = not shader.strip() or bool(re.search(r"emitGrayscale|emitRGB\s*\(\s*vec3\s*\(\s*[^,]*\)\s*\)", shader))
    plain = plain and not _other_sliders(shader, controls)
    opacity = as_share(spec.get("opacity", 0.5), f"{where}.opacity")
    return {
        "contrast": limits,
        "normalized": normalized,
        "opacity": opacity,
        "shader": shader,
        "plain_shader": plain and "colormap" not in shader,
        "additive": spec.get("blend") == "additive",
    }


def _invlerp(shader: str, controls: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """Return the range of the invlerp control: as set, else as the shader says."""
    declared = dict(re.findall(r"#uicontrol\s+invlerp\s+(\w+)[ \t]*(?:\(([^)\n]*)\))?", shader))
    names = sorted({*declared, *(k for k, v in controls.items() if isinstance(v, Mapping))}, key=_by_fame)
    for name in names:
        setting = controls.get(name)
        if isinstance(setting, Mapping) and setting.get("range") is not None:
            return _limits(setting["range"], f"{where}.shaderControls.{name}.range")
        in_text = re.search(r"range\s*=\s*\[([^\]]*)\]", declared.get(name, ""))
        if in_text:
            return _limits(in_text.group(1).split(","), f"{where}.shader, range of {name}")
    return None


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


def _other_sliders(shader: str, controls: Mapping[str, Any]) -> list[str]:
    """Return the sliders that change the grey values, such as ``brightness``, which is not drawn here."""
    declared = re.findall(r"#uicontrol\s+float\s+(\w+)([^\n]*)", shader)
    values = {name: re.search(r"default\s*=\s*([-+.\deE]+)", rest) for name, rest in declared}
    neutral = (0, 0.0, "0", "0.0", "0.")
    return [
        name
        for name, default in values.items()
        if name not in ("black", "white")
        and controls.get(name, default.group(1) if default else 0) not in neutral
        and len(re.findall(rf"\b{name}\b", shader)) > 1
    ]
