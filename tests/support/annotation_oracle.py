"""A slow reference drawing of annotations, which samples every pixel at 8 × 8 points."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt

import imageryxr as ix
from tests.conftest import volume

FINE = 8
PAD = 4


def draw_by_sampling(
    picture,
    table,
    *,
    axis=0,
    marker="circle",
    size=8,
    unit="px",
    width=2.0,
    depth=None,
    fade=False,
    alpha=1.0,
    color=(255, 255, 0),
):
    """Return a picture with annotations of one colour, drawn in the order of the table."""
    grid = ix.grid_of(picture)
    out = picture.values.astype(float)
    order = [axis, *(a for a in range(3) if a != axis)]
    slices = np.moveaxis(out, axis, 0)
    spacing = np.array(grid.resolution[::-1])[order]
    offset = np.array(grid.voxel_offset[::-1])[order]
    basis = np.array(picture.attrs.get("plane_axes", np.eye(3).ravel())).reshape(3, 3)[::-1][order]
    for number in range(slices.shape[0]):
        rows, columns = slices.shape[1:3]
        row, column = np.mgrid[0 : rows * FINE, 0 : columns * FINE]
        row, column = (row + 0.5) / FINE, (column + 0.5) / FINE
        for k in range(table.sizes["annotation"]):
            one = table.isel(annotation=k)
            hit = _samples(one, number, row, column, spacing, offset, basis, marker, size, unit, width, depth)
            if hit is None:
                continue
            inside, distance = hit
            covered = inside.reshape(rows, FINE, columns, FINE).mean(axis=(1, 3)) * alpha
            if fade:
                covered = covered * max(0.0, 1 - distance / depth)
            covered = covered[..., np.newaxis]
            below = slices[number, :, :, 3:] / 255 * (1 - covered)
            total = covered + below
            with np.errstate(invalid="ignore"):
                mixed = (covered * np.array(color) + below * slices[number, :, :, :3]) / total
            slices[number, :, :, :3] = np.where(covered > 0, mixed, slices[number, :, :, :3])
            slices[number, :, :, 3:] = np.where(covered > 0, total * 255, slices[number, :, :, 3:])
    return out


def _samples(one, number, row, column, spacing, offset, basis, marker, size, unit, width, depth):
    """Return a mask of the sample points that a mark covers and its distance from the slice in nm, or None."""
    kind = one.attrs["annotation_type"]
    place = basis @ np.array([float(one[d]) for d in "xyz"]) / spacing - offset
    low, high = (
        (number, number + 1)
        if depth is None
        else (number + 0.5 - depth / spacing[0], number + 0.5 + depth / spacing[0])
    )
    if kind == "point":
        at = round(place[0], 6)
        if not (low <= at < high if depth is None else low - 1e-9 <= at <= high + 1e-9):
            return None
        x, y = column - place[2], row - place[1]
        half = np.array([size / 2, size / 2]) if unit == "px" else size / 2 / spacing[1:]
        return _marker(marker, x, y, half[1], half[0], width), abs(at - number - 0.5) * spacing[0]
    if kind == "line":
        end = basis @ np.array([float(one[f"{d}_end"]) for d in "xyz"]) / spacing - offset
        t = np.linspace(0, 1, 1501)[:, np.newaxis]
        points = np.round(place + t * (end - place), 9)
        deep = points[:, 0]
        if depth is None and deep.max() == low > deep.min():  # the line only touches the lower border of the slice
            return None
        points = points[(points[:, 0] >= low) & ((points[:, 0] < high) if depth is None else (points[:, 0] <= high))]
        if not len(points):
            return None
        from scipy.spatial import cKDTree

        nearest, _ = cKDTree(points[:, 1:]).query(np.stack([row.ravel(), column.ravel()], axis=1))
        return (nearest <= width / 2).reshape(row.shape), 0.0
    return _solid(one, kind, place, number, low, high, row, column, spacing, offset, basis, width, depth)


def _marker(marker, x, y, rx, ry, width):
    if marker == "circle":
        return (x / rx) ** 2 + (y / ry) ** 2 <= 1
    if marker == "ring":
        inner = (x / max(rx - width, 1e-9)) ** 2 + (y / max(ry - width, 1e-9)) ** 2
        return ((x / rx) ** 2 + (y / ry) ** 2 <= 1) & (inner >= 1)
    if marker == "square":
        return (abs(x) <= rx) & (abs(y) <= ry)
    if marker == "triangle":
        height = math.sqrt(3) * ry
        return (y <= height / 3) & (abs(x) <= rx * (y + 2 / 3 * height) / height)
    if marker == "cross":
        return ((abs(x) <= rx) & (abs(y) <= width / 2)) | ((abs(y) <= ry) & (abs(x) <= width / 2))
    ux, uy = np.array([rx, ry]) / math.hypot(rx, ry)
    length = math.hypot(rx, ry) * math.sqrt(0.5)
    arms = [(abs(x * ux + s * y * uy) <= length) & (abs(x * uy - s * y * ux) <= width / 2) for s in (1, -1)]
    return arms[0] | arms[1]


def _solid(one, kind, place, number, low, high, row, column, spacing, offset, basis, width, depth):
    names = ("x", "y", "z")
    if kind == "box":
        corners = np.array([[float(one[n]), float(one[f"{n}_end"])] for n in names])
        center, half = corners.mean(axis=1), np.ptp(corners, axis=1) / 2
        reach = abs(basis[0]) @ half
    else:
        center, half = np.array([float(one[n]) for n in names]), np.array([float(one[f"{n}_radius"]) for n in names])
        reach = math.sqrt((basis[0] ** 2) @ half**2)
    middle = (basis @ center / spacing - offset)[0]
    bottom, top = middle - reach / spacing[0], middle + reach / spacing[0]
    if top < low or bottom > high:
        return None
    lower, upper = round(bottom, 6), round(top, 6)
    if depth is None and (lower >= high or upper < low or upper == low > lower):
        return None
    at = np.clip(middle, low, high) if depth is not None or not bottom <= number + 0.5 <= top else number + 0.5
    at = np.clip(at, bottom, top)
    row, column = (
        np.pad(a, PAD * FINE, "reflect", reflect_type="odd") for a in (row, column)
    )  # samples beyond the frame, because outlines at its edge depend on them
    index = np.stack([np.full(row.shape, at), row, column], axis=-1)
    world = ((index + offset) * spacing) @ basis  # the axes are orthogonal
    scaled = (world - center) / half
    inside = (abs(scaled) <= 1).all(axis=-1) if kind == "box" else (scaled**2).sum(axis=-1) <= 1
    if not inside.any():
        return None
    away = np.where(inside, distance_transform_edt(inside), distance_transform_edt(~inside)) - 0.5
    cut = slice(PAD * FINE, -PAD * FINE)
    return (away <= width / 2 * FINE)[cut, cut], 0.0


def picture(shape=(3, 40, 48), resolution=(8, 8, 40), offset=(0, 0, 0), chunks=None, transparent=False):
    """Return a picture of random grey values, as a lazy array if ``chunks`` is given."""
    values = np.random.default_rng(1).integers(0, 255, shape, np.uint8)
    rgba = ix.to_rgba(volume(values, resolution, offset))
    if transparent:
        rgba = rgba.copy(data=np.where([True, True, True, False], rgba.values, values[..., np.newaxis]))
    return rgba if chunks is None else rgba.chunk(dict(zip("zyx", chunks, strict=True)))


def random_points(rgba, count=12, seed=3):
    """Return points (x, y, z) in nm within a picture."""
    grid = ix.grid_of(rgba)
    rng = np.random.default_rng(seed)
    low = np.array(grid.voxel_offset) * grid.resolution
    return low + rng.uniform(0, 1, (count, 3)) * np.array(grid.shape[::-1]) * grid.resolution


def assert_close_to_sampled(drawn, oracle):
    """Fail unless a drawing is close to the sampled one. Pixels that a mark covers in part may differ more."""
    difference = np.abs(drawn.values.astype(float) - oracle)
    assert difference.max() < 85  # corners of thin strokes differ most
    assert np.percentile(difference, 99.5) < 45
    assert (difference > 1).mean() < 0.25
