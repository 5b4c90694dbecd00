"""Compute the directions of a picture's columns, rows and depth from quaternions and display dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.validate import to_numbers
from imageryxr.errors import OptionError, param

Floats = npt.NDArray[np.float64]

#: Quaternions of Neuroglancer's panels: a quarter turn about x, so that z points down; about y, so that z points left.
PANEL_TURNS = {"xz": (0.5**0.5, 0.0, 0.0, 0.5**0.5), "yz": (0.0, 0.5**0.5, 0.0, 0.5**0.5)}


def axes_of_quaternion(orientation: Any) -> Floats:
    """Return the vectors (rows of a 3 × 3 array) into which a quaternion (x, y, z, w) rotates x, y and z."""
    values = np.array(to_numbers(orientation), np.float64)
    length = float(np.linalg.norm(values))
    if len(values) != 4 or not 1e-6 < length < math.inf:
        raise OptionError(param("orientation", orientation), " is not a quaternion (x, y, z, w), such as (0, 0, 0, 1)")
    v, w = values[:3] / length, values[3] / length
    # Rodrigues' formula for x, y and z.
    turned: Floats = (w * w - v @ v) * np.eye(3) + 2 * np.outer(v, v) + 2 * w * np.cross(v, np.eye(3))
    # Rounding errors leave the components of quarter turns slightly off 0 and 1.
    return np.where(np.abs(turned - np.rint(turned)) < 1e-12, np.rint(turned), turned)


def quaternion_of_axes(axes: Floats) -> list[float]:
    """Return the quaternion (x, y, z, w) that rotates x, y and z into the rows of ``axes``.

    For a mirrored frame, such as that of slices along y, the depth axis is reversed: the quaternion shows the same
    picture from the other side.
    """
    m = axes.T * ([1, 1, -1] if np.linalg.det(axes) < 0 else [1, 1, 1])
    # The matrix is 4 q qᵀ (Shepperd 1978), so its row with the largest diagonal element is q up to a factor.
    (a, b, c), (d, e, f), (g, h, i) = m
    products = np.array(
        [
            [1 + a - e - i, b + d, c + g, h - f],
            [b + d, 1 - a + e - i, f + h, c - g],
            [c + g, f + h, 1 - a - e + i, d - b],
            [h - f, c - g, d - b, 1 + a + e + i],
        ]
    )
    row = products[np.argmax(np.diagonal(products))]
    q = row / np.linalg.norm(row) * (-1 if row[3] < 0 else 1)
    return [float(f"{v:.12g}") + 0.0 for v in q]


def screen_axes(orientation: Sequence[float], panel: str = "xy", display: Sequence[str] = "xyz") -> Floats:
    """Return the directions (x, y, z) of the columns, rows and depth of a cross section in Neuroglancer.

    `orientation` is ``crossSectionOrientation``, a quaternion (x, y, z, w) in display dimensions; `panel` the layout of
    the viewer, such as "xz-3d"; `display` the three display dimensions.
    """
    turned = axes_of_quaternion(orientation)
    quarter = PANEL_TURNS.get(panel.removesuffix("-3d"))
    if quarter is not None:
        turned = axes_of_quaternion(quarter) @ turned
    screen: Floats = np.array([[float(axis == name) for axis in "xyz"] for name in display])
    axes: Floats = turned @ screen
    return axes


def screen_dimensions(display: Sequence[str]) -> tuple[str, ...] | None:
    """Complete the display dimensions to three of x, y and z; return None if they include another, such as time."""
    if set(display) - set("xyz") or len(set(display)) < len(display):
        return None
    return (*display, *(axis for axis in "xyz" if axis not in display))
