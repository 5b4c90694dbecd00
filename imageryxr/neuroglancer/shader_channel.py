"""The image channel that a shader shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from imageryxr.core.validate import to_whole
from imageryxr.neuroglancer.shaders import declared_controls, rank_controls, strip_comments

_CHANNEL = re.compile(r"\bchannel[ \t]{0,8}=[ \t]{0,8}\[?[ \t]{0,8}(\d{1,6})")
_READ = re.compile(r"\bgetDataValue[ \t]{0,8}\([ \t]{0,8}(\d{1,6})[ \t]{0,8}\)")


def displayed_channel(spec: Mapping[str, Any]) -> int:
    """Return the channel that an image layer of a state shows; by default the first one.

    The channel is taken from the settings of the shader's invlerp control, from the control's declaration, or from the
    argument of ``getDataValue``.
    """
    shader, controls = spec.get("shader"), spec.get("shaderControls")
    code = strip_comments(shader) if isinstance(shader, str) else ""
    settings = controls if isinstance(controls, Mapping) else {}
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
