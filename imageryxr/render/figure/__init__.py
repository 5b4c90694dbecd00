"""Pictures: one slice as a Pillow image, several side by side, scale bars, legends and insets.

Everything here returns pixels, so everything here computes. Pillow loads inside the functions that need it.
"""

from __future__ import annotations

from imageryxr.render.figure.files import save_figure
from imageryxr.render.figure.insets import inset
from imageryxr.render.figure.legends import legend
from imageryxr.render.figure.montages import montage
from imageryxr.render.figure.scale_bars import Position, scale_bar
from imageryxr.render.figure.slice_image import picture_of, to_pil

__all__ = ["Position", "inset", "legend", "montage", "picture_of", "save_figure", "scale_bar", "to_pil"]
