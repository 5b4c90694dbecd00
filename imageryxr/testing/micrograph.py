"""Draw the image of the sample slab by slab, from the distances of voxels to the surfaces of cells.

A voxel belongs to the cell whose surface is nearest. Membranes, clefts, organelles and synapses are drawn from the same
distances, so that image and segmentation agree to a fraction of a voxel. Grids are (z, y, x). A tile has 16 x 64 x 64
image voxels, and 8 x 16 x 16 voxels of the distance grid. The bytes are the same on every machine: see
`imageryxr.testing.sample`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.testing.tissue import VOXEL, Chain, Floats, assign_ids, place_organelles, place_synapses, populate, stamp

TILE = (16, 64, 64)
_SEED = 20_240_611
_COARSE = np.array([80.0, 32.0, 32.0])
_CELL_TILE = (8, 16, 16)
_HALO = (1, 2, 2)
_NM = np.float32(1 / 16)  # distances are integers in units of 1/16 nm
_UNIT = dict.fromkeys(("cleft", "reticulum"), np.float32(1 / 2048))
_SLICES = 8  # the number of slices of a tile that are drawn at a time, so that arrays fit the processor's cache
_FAR = 380.0  # the largest distance in nm; larger ones are clipped


class Tissue:
    """All cells of a block; draws the image slab by slab."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.size = np.array(shape) * VOXEL
        rng = np.random.Generator(np.random.PCG64(_SEED))
        self.cells = [Chain("none", np.zeros((0, 3)), np.zeros(0)), *populate(self.size, rng)]
        self.nuclei, self.mitochondria = place_organelles(self.cells, rng)
        self.synapses = place_synapses(self.cells, self.size, rng)
        self.clouds = (
            np.array([s.point for s in self.synapses]).reshape(-1, 3),
            np.array([[2.1 * s.radius] for s in self.synapses]).reshape(-1, 1),
        )
        self.ids = assign_ids(self.cells, rng)
        kinds = [cell.kind for cell in self.cells]
        self.tint = rng.uniform(-9, 9, len(kinds)).astype(np.float32)
        self.tint += np.where(rng.random(len(kinds)) < 0.12, -16, 0).astype(np.float32)
        self.tint[[k in ("soma", "dendrite") for k in kinds]] = 4
        self.lumen = np.array([k == "lumen" for k in kinds])
        self.myelin = np.array([k == "myelin" for k in kinds])
        self.noise = _noise_bank(rng)
        self.vesicles = _vesicle_bank(rng)
        self.tiles = _tile_distances(self)

    def slab(self, z: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
        """Draw the layer of tiles that begins at `z`: the image, and cell numbers at half the resolution in y and x."""
        _, ny, nx = self.shape
        deep = min(TILE[0], self.shape[0] - z)
        across = [(y, x) for y in range(0, ny, TILE[1]) for x in range(0, nx, TILE[2])]
        high, wide = across[-1][0] + TILE[1], across[-1][1] + TILE[2]
        grey = np.empty((TILE[0], high, wide), np.uint8)
        cells = np.empty((TILE[0], high // 2, wide // 2), np.uint16)

        def draw(corner: tuple[int, int]) -> None:
            y, x = corner
            here = np.s_[:, y : y + TILE[1], x : x + TILE[2]]
            half = np.s_[:, y // 2 : (y + TILE[1]) // 2, x // 2 : (x + TILE[2]) // 2]
            grey[here], cells[half] = _draw_tile(self, (z, y, x), grain[here])

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            grain = np.stack([*pool.map(lambda k: _grain(z + k, high, wide), range(TILE[0]))])
            for _ in pool.map(draw, across):
                pass
        return grey[:deep, :ny, :nx], cells[:deep, : ny // 2, : nx // 2]


# ---------------------------------------------------------------------------------------------------------------------
# Distances


@dataclass
class _Tile:
    """Distances (int16 nm) to cells, mitochondria and nuclei on the tile's part of the coarse grid."""

    cells: list[int] = field(default_factory=list)
    fields: list[npt.NDArray[np.int16]] = field(default_factory=list)
    extra: dict[str, npt.NDArray[np.int16]] = field(default_factory=dict)


def _tile_distances(tissue: Tissue) -> dict[tuple[int, int, int], _Tile]:
    counts = [-(-n // t) for n, t in zip(tissue.shape, TILE, strict=True)]
    nz, ny, nx = (range(n) for n in counts)
    tiles = {at: _Tile() for at in itertools.product(nz, ny, nx)}
    grid = [n * t + 2 * h for n, t, h in zip(counts, _CELL_TILE, _HALO, strict=True)]
    origin = np.array(_HALO) * _COARSE
    for number, chain in enumerate(tissue.cells):
        if len(chain.points):
            for at, part in _cut_tiles([chain], grid, origin, counts, 320):
                tiles[at].cells.append(number)
                tiles[at].fields.append(part)
    for name, chains in (("mitochondrion", tissue.mitochondria), ("nucleus", tissue.nuclei)):
        if chains:
            for at, part in _cut_tiles(chains, grid, origin, counts, 40):
                tiles[at].extra[name] = part
    return tiles


def _cut_tiles(
    chains: list[Chain], grid: list[int], origin: Floats, counts: list[int], near: float
) -> Iterator[tuple[tuple[int, int, int], npt.NDArray[np.int16]]]:
    """Yield the distances to `chains` for each tile within a distance of `near`."""
    whole = np.full(grid, _FAR, np.float32)
    lo, hi = np.full(3, np.inf), np.full(3, -np.inf)
    for chain in chains:
        stamp(whole, chain.points + origin, chain.radii, chain.steep, _COARSE, 340.0)
        reach = chain.radii[:, None] + 340
        lo = np.minimum(lo, (chain.points - reach).min(axis=0))
        hi = np.maximum(hi, (chain.points + reach).max(axis=0))
    edge = np.array(TILE) * VOXEL
    first = np.maximum(np.floor(lo / edge) - 1, 0).astype(int)
    last = np.minimum(np.ceil(hi / edge) + 1, counts).astype(int)
    nz, ny, nx = (range(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    for at in itertools.product(nz, ny, nx):
        where = tuple(slice(i * t, (i + 1) * t + 2 * h) for i, t, h in zip(at, _CELL_TILE, _HALO, strict=True))
        part = whole[where]
        if part.min() < near:
            yield at, np.minimum(part, np.float32(_FAR)).astype(np.int16)


# ---------------------------------------------------------------------------------------------------------------------
# Noise


def _double(a: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """Double the number of samples, n to 2n - 4, by linear interpolation; repeated, the result is a smooth spline.

    The samples are float32, or int16 from -8,000 to 8,000.
    """
    ahead, is_float = (slice(None),) * axis, a.dtype.kind == "f"
    out = np.empty((*a.shape[:axis], 2 * (a.shape[axis] - 2), *a.shape[axis + 1 :]), a.dtype)
    middle = a[(*ahead, slice(1, -1))] * (np.float32(0.75) if is_float else np.int16(3))
    side = a * np.float32(0.25) if is_float else a
    np.add(middle, side[(*ahead, slice(None, -2))], out=out[(*ahead, slice(None, None, 2))])
    np.add(middle, side[(*ahead, slice(2, None))], out=out[(*ahead, slice(1, None, 2))])
    if not is_float:
        out >>= 2
    return out


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], doublings: tuple[int, ...]) -> Floats:
    """Return periodic smooth noise in about -1 … 1; `shape` must be divisible by 2**doublings."""
    small = [n >> k for n, k in zip(shape, doublings, strict=True)]
    out = rng.uniform(-1, 1, small).astype(np.float32)
    for axis, times in enumerate(doublings):
        for _ in range(times):
            pad = [(1, 1) if i == axis else (0, 0) for i in range(out.ndim)]
            out = _double(np.pad(out, pad, mode="wrap"), axis)
    return np.ascontiguousarray(out * np.float32(1.6))


_BANK = (32, 128, 128)


def _noise_bank(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return periodic noise on the coarse grid, with features of about 250 and 125 nm."""
    bank = _smooth(rng, _BANK, (2, 3, 3)) + np.float32(0.45) * _smooth(rng, _BANK, (1, 2, 2))
    return np.tile(bank, (2, 2, 2))


def _vesicle_bank(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return four periodic tiles, 256 wide, of vesicle profiles to add to the grey values: dark rings, pale centres."""
    bank = np.zeros((4, 256, 256), np.float32)
    pitch = 7
    yy, xx = np.mgrid[-7:8, -7:8]
    for layer in bank:
        for y, x in itertools.product(range(0, 256, pitch), repeat=2):
            dy, dx, size = rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(1.9, 2.7)
            r = np.sqrt((yy - dy) ** 2 + (xx - dx) ** 2)
            ring = np.clip(1 - np.abs(r - size) / 1.3, 0, 1) * -62 + np.clip(1 - r / 1.6, 0, 1) * 12
            rows, columns = (y + 4 + yy) % 256, (x + 4 + xx) % 256
            if rng.random() < 0.72:
                layer[rows, columns] = np.where(r < size + 1.3, ring, layer[rows, columns])
    return bank


def _grain(z: int, ny: int, nx: int) -> npt.NDArray[np.float32]:
    """Return the effects of stain and microscope on a slice: grain, uneven staining, section brightness, noise."""
    high, wide = -(-ny // 256) * 256, -(-nx // 256) * 256
    rng = np.random.Generator(np.random.PCG64([_SEED, z]))
    fine = _smooth(rng, (high, wide), (1, 1))
    grain: npt.NDArray[np.float32] = fine * np.float32(7) - _ramp(fine, 0.35, 0.9) * np.float32(24)
    for doublings, strength in ((2, 9), (3, 6), (8, 4)):
        grain += _smooth(rng, (high, wide), (doublings, doublings)) * np.float32(strength)
    grain += np.float32(rng.uniform(-3.5, 3.5))
    shot = rng.integers(0, 256, (2, high, wide), np.uint8)
    grain += (np.add(shot[0], shot[1], dtype=np.float32) - np.float32(255)) * np.float32(0.055)
    return grain[:ny, :nx]


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def _draw_tile(
    tissue: Tissue, corner: tuple[int, int, int], grain: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Draw the grey image and the cell numbers of one tile."""
    tile, fields = _tile_fields(tissue, corner)
    count = len(tile.cells)
    numbers = np.array(tile.cells, np.uint16)
    half = _double(_double(_double(fields, 3), 2), 1)
    nearest, depth = _nearest(half[:count, :, 2:-2, 2:-2], half[count, :, 2:-2, 2:-2])
    cells = numbers[nearest]
    cells[depth < 0] = 0
    grey = np.empty(TILE, np.uint8)
    for z in range(0, TILE[0], _SLICES):
        few = slice(z, z + _SLICES)
        full = _double(_double(half[:, few], 3)[..., 2:-2], 2)[:, :, 2:-2]
        nearest, depth = _nearest(full[:count], full[count])
        names = ("cleft", "reticulum", *tile.extra)
        aux = {name: row * _UNIT.get(name, _NM) for name, row in zip(names, full[count:], strict=True)}
        start = (corner[0] + z, corner[1], corner[2])
        grey[few] = _shade(tissue, start, numbers[nearest], depth, aux, grain[few])
    return grey, cells


def _tile_fields(tissue: Tissue, corner: tuple[int, int, int]) -> tuple[_Tile, npt.NDArray[np.int16]]:
    """Return distances relative to the nearest cell, cleft noise, reticulum noise and distances to organelles."""
    at = tuple(c // t for c, t in zip(corner, TILE, strict=True))
    tile = tissue.tiles[at[0], at[1], at[2]]
    cells = np.stack(tile.fields).astype(np.float32)
    start = [i * t for i, t in zip(at, _CELL_TILE, strict=True)]
    for row, number in zip(cells, tile.cells, strict=True):
        row += _noise(tissue, start, number) * np.float32(40)
    cells -= cells.min(axis=0)
    margin = 320 if tissue.myelin[tile.cells].any() else 120
    matter = np.flatnonzero(cells.min(axis=(1, 2, 3)) < margin)
    kept = _Tile([tile.cells[i] for i in matter], [], tile.extra)
    noise = [_noise(tissue, start, n) / _UNIT["cleft"] for n in (-1, -2)]
    near = [np.clip(part, -_FAR, _FAR) / _NM for part in (*cells[matter], *tile.extra.values())]
    rows = [*near[: len(matter)], *noise, *near[len(matter) :]]
    return kept, np.stack(rows).astype(np.int16)


def _noise(tissue: Tissue, start: list[int], number: int) -> npt.NDArray[np.float32]:
    """Return the noise that displaces the surface of a cell, on a tile of the coarse grid with its halo."""
    shift = (number * 11, number * 53, number * 37)
    where = []
    for first, more, n, t, h in zip(start, shift, _BANK, _CELL_TILE, _HALO, strict=True):
        begin = (first + more) % n
        where.append(slice(begin, begin + t + 2 * h))
    return tissue.noise[tuple(where)]


def _nearest(
    fields: npt.NDArray[np.int16], cleft: npt.NDArray[np.int16]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return the row of the nearest cell, and the depth of each voxel in it (nm; negative in a cleft)."""
    first = fields[0].copy()
    second = np.full_like(first, 16_000)
    nearest = np.zeros(first.shape, np.uint8)
    for row, distance in enumerate(fields[1:], 1):
        nearest[distance < first] = row
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    width = np.clip(cleft * (_UNIT["cleft"] * np.float32(34)) - np.float32(24), 0, 13)
    second -= first
    return nearest, second * (_NM / 2) - width


def _ramp(a: npt.NDArray[np.float32], bottom: float, top: float) -> npt.NDArray[np.float32]:
    """Return a smooth step from 0 at `bottom` to 1 at `top`."""
    t: npt.NDArray[np.float32] = np.clip((a - np.float32(bottom)) * np.float32(1 / (top - bottom)), 0, 1)
    return t * t * (np.float32(3) - 2 * t)


def _shade(
    tissue: Tissue,
    corner: tuple[int, int, int],
    owner: npt.NDArray[np.uint16],
    depth: npt.NDArray[np.float32],
    aux: dict[str, npt.NDArray[np.float32]],
    grain: npt.NDArray[np.float32],
) -> npt.NDArray[np.uint8]:
    grey: npt.NDArray[np.float32] = np.float32(172) + tissue.tint[owner]
    tubule = _ramp(np.abs(aux["reticulum"]), 0.09, 0.02) * _ramp(depth, 40, 60) * _ramp(aux["cleft"], -0.1, 0.2)
    grey -= tubule * np.float32(48)
    if "nucleus" in aux:
        _draw_nucleus(grey, aux["nucleus"], aux["reticulum"], aux["cleft"])
    if "mitochondrion" in aux:
        _draw_mitochondria(corner, grey, aux["mitochondrion"], depth, aux["reticulum"])
    sheath = tissue.myelin[owner]
    if sheath.any():
        lamella = np.abs(depth * np.float32(1 / 26) % 1 - np.float32(0.5))
        dark = _ramp(depth, 150, 135) * sheath
        grey += dark * (np.float32(38) + 50 * lamella - grey)
    _draw_synapses(tissue, corner, grey, owner, depth, aux.get("mitochondrion"))
    membrane = _ramp(np.abs(depth - np.float32(2)), 17, 4)
    grey += membrane * (np.float32(52) - grey) * (np.float32(0.9) + aux["reticulum"] * np.float32(0.1))
    blood = tissue.lumen[owner]
    if blood.any():
        grey += _ramp(depth, 12, 30) * blood * (np.float32(214) - grey)
    grey += grain
    grey8: npt.NDArray[np.uint8] = np.clip(grey + np.float32(0.5), 0, 255).astype(np.uint8)
    return grey8


def _draw_nucleus(grey: Floats, distance: Floats, clumps: Floats, more: Floats) -> None:
    inside = _ramp(distance, 6, -6)
    chromatin = np.float32(158) - 34 * _ramp(clumps + more * np.float32(0.6), 0.3, 0.75)
    chromatin -= 26 * _ramp(distance, -90, -30) * _ramp(more, -0.3, 0.3)
    grey += inside * (chromatin - grey)
    grey += _ramp(np.abs(distance), 22, 6) * (np.float32(74) - grey)


def _draw_mitochondria(
    corner: tuple[int, int, int], grey: Floats, distance: Floats, depth: Floats, noise: Floats
) -> None:
    close = distance < 40
    if not close.any():
        return
    rows, columns = np.flatnonzero(close.any(axis=(0, 2))), np.flatnonzero(close.any(axis=(0, 1)))
    box = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    part, noise = grey[box], noise[box]
    distance = np.maximum(distance[box] + noise * np.float32(14), np.float32(34) - depth[box])
    y = np.arange(rows[0], rows[-1] + 1).astype(np.float32)[:, None] + np.float32(corner[1])
    x = np.arange(columns[0], columns[-1] + 1).astype(np.float32) + np.float32(corner[2])
    phase = (y * np.float32(0.09) + x * np.float32(0.06)) + noise * np.float32(2.6)
    crista = _ramp(np.abs(phase % 1 - np.float32(0.5)), 0.1, 0.34)
    part += _ramp(distance, 4, -8) * (np.float32(84) + 46 * crista - part)
    part += _ramp(np.abs(distance), 17, 5) * (np.float32(62) - part)


def _draw_synapses(
    tissue: Tissue,
    corner: tuple[int, int, int],
    grey: Floats,
    owner: Floats,
    depth: Floats,
    mitochondria: Floats | None,
) -> None:
    """Draw vesicles on the presynaptic side and a density on the postsynaptic side of each synapse."""
    start = np.array(corner) * VOXEL
    spots, clouds = tissue.clouds
    first = np.maximum(np.floor((spots - clouds - start) / VOXEL), 0).astype(int)
    last = np.minimum(np.ceil((spots + clouds - start) / VOXEL), grey.shape).astype(int)
    for n in np.flatnonzero(np.all(first < last, axis=1)):
        synapse, cloud = tissue.synapses[n], float(clouds[n, 0])
        here = [range(a, b) for a, b in zip(first[n], last[n], strict=True)]
        box = tuple(slice(r.start, r.stop) for r in here)
        z, y, x = (
            np.square((np.array(r) + 0.5) * v + s - p).astype(np.float32)
            for r, v, s, p in zip(here, VOXEL, start, synapse.point, strict=True)
        )
        away = np.sqrt((z[:, None] + y)[:, :, None] + x)
        pre, post = owner[box] == synapse.pre, owner[box] == synapse.post
        near = _ramp(away, synapse.radius, synapse.radius * 0.8)
        part, deep = grey[box], depth[box]
        if pre.any():
            layers, rows, columns = (
                (np.array(r) + c) % n for r, c, n in zip(here, corner, tissue.vesicles.shape, strict=True)
            )
            cover = pre * _ramp(away, cloud, cloud * 0.75) * _ramp(deep, 22, 40)
            if mitochondria is not None:
                cover *= _ramp(mitochondria[box], 18, 32)
            part += cover * tissue.vesicles[np.ix_(layers, rows, columns)]
            part += pre * near * _ramp(deep, 26, 14) * (np.float32(70) - part)
        if post.any():
            part += post * near * _ramp(deep, 58, 34) * (np.float32(44) - part)
