"""Convert between sRGB and CIELAB, in which distances approximate perceived colour differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def lab_to_rgb(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert CIELAB (D65) to sRGB; colours outside the gamut of sRGB get values outside 0–1."""
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + lab[:, 1] / 500, fy, fy - lab[:, 2] / 200], axis=1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.95047, 1.0, 1.08883]
    linear = xyz @ np.array(
        [
            [3.2404542, -0.9692660, 0.0556434],
            [-1.5371385, 1.8760108, -0.2040259],
            [-0.4985314, 0.0415560, 1.0572252],
        ]
    )
    curved: npt.NDArray[np.float64] = 1.055 * np.clip(linear, 0, None) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curved)


def rgb_to_lab(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Convert sRGB (0 to 255, shape (n, 3)) to CIELAB (D65)."""
    curved = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(curved <= 0.04045, curved / 12.92, ((curved + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [
            [0.4124564, 0.2126729, 0.0193339],
            [0.3575761, 0.7151522, 0.1191920],
            [0.1804375, 0.0721750, 0.9503041],
        ]
    )
    t = xyz / [0.95047, 1.0, 1.08883]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
