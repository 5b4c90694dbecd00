"""Pillow images for figures: single slices, montages, scale bars, legends and insets.

All functions here compute. Pillow is imported only inside functions, so that ``import imageryxr`` stays fast.
"""

from __future__ import annotations

from imageryxr.render.figure.insets import inset
from imageryxr.render.figure.legends import legend
from imageryxr.render.figure.montages import montage
from imageryxr.render.figure.picture import array_to_pil, to_pil
from imageryxr.render.figure.save import save_figure
from imageryxr.render.figure.scale_bars import Position, scale_bar

__all__ = ["Position", "array_to_pil", "inset", "legend", "montage", "save_figure", "scale_bar", "to_pil"]
