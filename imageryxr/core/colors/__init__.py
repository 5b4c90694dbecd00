"""Parse colours, assign colours to segments, and save and load palettes.

Nothing here reads volumes. Matplotlib, colorcet and hsluv are imported inside the functions that use them.
"""

from __future__ import annotations

from imageryxr.core.colors.ids import UInt8Array, UInt64Array
from imageryxr.core.colors.mapping import Colors, ColorSpec, resolve_colors
from imageryxr.core.colors.palette_files import load_palette, save_palette
from imageryxr.core.colors.palettes import palette, stable_table
from imageryxr.core.colors.parse import RGB, RGBA, parse_color

__all__ = [
    "RGB",
    "RGBA",
    "ColorSpec",
    "Colors",
    "UInt8Array",
    "UInt64Array",
    "load_palette",
    "palette",
    "parse_color",
    "resolve_colors",
    "save_palette",
    "stable_table",
]
