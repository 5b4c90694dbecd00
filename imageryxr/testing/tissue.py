"""Grow the tissue of the sample: cells as chains of balls, their organelles and synapses.

Each cell is a chain of balls that grows through the space that previous cells left free. Points are (z, y, x) in
nanometres from the corner of the image. The bytes are the same on every machine: see `imageryxr.testing.sample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = Any  # numpy's stubs lose the dtype in most arithmetic

VOXEL = np.array([40.0, 8.0, 8.0])
_FIRST_ID = 864_691_135_000_000_000
_PITCH = np.array([80.0, 64.0, 64.0])  # voxel size of the grid of free space
_MARGIN = 320.0  # tissue extends this far beyond the block


@dataclass(frozen=True)
class Chain:
    """Balls along a path: a cell or an organelle. With `steep` > 1 it displaces its neighbours, like the capillary."""

    kind: str
    points: Floats
    radii: Floats
    steep: float = 1.0


@dataclass(frozen=True)
class Synapse:
    """A synapse between the cells with the numbers `pre` and `post`, at a point on their border."""

    pre: int
    post: int
    point: Floats
    radius: float


class _FreeSpace:
    """Distances to the nearest cell on a grid of `_PITCH` nm; negative inside cells."""

    def __init__(self, size: Floats) -> None:
        self.size = size
        self.clear = np.full([math.ceil(n) for n in (size + 2 * _MARGIN) / _PITCH], 600.0, np.float32)

    def add(self, chain: Chain) -> None:
        stamp(self.clear, chain.points + _MARGIN, chain.radii, 1.0, _PITCH, 280.0)

    def clearance(self, points: Floats) -> Floats:
        index = np.floor((points + _MARGIN) / _PITCH).astype(np.intp)
        index = np.clip(index, 0, np.array(self.clear.shape) - 1)
        return self.clear[index[..., 0], index[..., 1], index[..., 2]]

    def contains(self, point: Floats) -> bool:
        return bool(np.all(point > -_MARGIN) and np.all(point < self.size + _MARGIN))

    def widest(self) -> tuple[float, Floats]:
        inner = self.clear[4:-4, 5:-5, 5:-5]
        index = np.unravel_index(int(np.argmax(inner)), inner.shape)
        return float(inner[index]), (np.array(index) + 0.5) * _PITCH


def stamp(
    grid: npt.NDArray[np.float32], points: Floats, radii: Floats, steep: float, pitch: Floats, reach: float
) -> None:
    """Reduce `grid` to the distance from the surface of each ball, up to a distance of `reach`."""
    around = radii[:, None] + reach
    first = np.maximum(np.floor((points - around) / pitch), 0).astype(int)
    last = np.minimum(np.ceil((points + around) / pitch), grid.shape).astype(int)
    axes = [(np.arange(n) + 0.5) * p for n, p in zip(grid.shape, pitch, strict=True)]
    for n in np.flatnonzero(np.all(first < last, axis=1)):
        where = tuple(slice(a, b) for a, b in zip(first[n].tolist(), last[n].tolist(), strict=True))
        z, y, x = (
            np.square((axis[cut] - c) * steep).astype(np.float32)
            for axis, cut, c in zip(axes, where, points[n], strict=True)
        )
        distance = np.sqrt((z[:, None] + y)[:, :, None] + x)
        distance -= np.float32(radii[n] * steep - (steep - 1) * 45)
        view = grid[where]
        np.minimum(view, distance, out=view)


def _length(vectors: Floats) -> Floats:
    squares = np.square(vectors)
    return np.sqrt(squares[..., 0] + squares[..., 1] + squares[..., 2])


def _unit(vectors: Floats) -> Floats:
    return vectors / (_length(vectors) + 1e-9)[..., None]


def _random_direction(rng: np.random.Generator) -> Floats:
    """Return a uniformly distributed random direction."""
    while True:
        vector = rng.uniform(-1, 1, 3)
        if 0.1 < _length(vector) < 1:
            return _unit(vector)


def _refine(points: Floats, radii: Floats) -> tuple[Floats, Floats]:
    """Insert balls between the balls until they form a tube."""
    if len(points) < 2:
        return points, radii
    many, thick = [points[:1]], [radii[:1]]
    for a, b, r, s in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
        n = math.ceil(float(_length(b - a)) / max(55.0, 0.9 * min(r, s)))
        t = np.arange(1, n + 1) / n
        many.append(a + (b - a) * t[:, None])
        thick.append(r + (s - r) * t)
    return np.concatenate(many), np.concatenate(thick)


@dataclass(frozen=True)
class _GrowthRule:
    """Parameters of the growth of a neurite."""

    radius: float
    thinnest: float
    bulge: float = 0.0
    period: float = 1.0
    step: float = 110.0
    steer: float = 0.45
    reach: float = 14_000.0

    def target(self, run: float) -> float:
        return self.radius + self.bulge * max(0.0, 1.0 - abs(run / self.period % 1.0 - 0.5) * 4.5)


def _grow(start: Floats, heading: Floats, rule: _GrowthRule, space: _FreeSpace, rng: np.random.Generator) -> Chain:
    """Grow a neurite through the free space in both directions from `start`."""
    arms = []
    for sign, offset in ((1.0, 0.0), (-1.0, rule.period * 0.37)):
        point, ahead, run = start, heading * sign, 0.0
        points, radii = [start], [min(max(float(space.clearance(start)), rule.thinnest), rule.target(offset))]
        while run < rule.reach / 2:
            ways = _unit(ahead + rule.steer * rng.uniform(-1, 1, (9, 3)))
            spots = point + rule.step * ways
            clear = np.minimum(space.clearance(spots), rule.target(run + offset) + 60)
            along = ways[:, 0] * ahead[0] + ways[:, 1] * ahead[1] + ways[:, 2] * ahead[2]
            best = int(np.argmax(clear + 70 * along))
            if clear[best] < -0.6 * rule.thinnest:
                break
            run += rule.step
            point, ahead = spots[best], ways[best]
            points.append(point)
            radii.append(min(max(float(clear[best]), rule.thinnest), rule.target(run + offset)))
            if not space.contains(point):
                break
        arms.append((np.array(points), np.array(radii)))
    (p, r), (q, s) = arms
    return Chain("axon", *_refine(np.concatenate([q[:0:-1], p]), np.concatenate([s[:0:-1], r])))


def populate(size: Floats, rng: np.random.Generator) -> list[Chain]:
    """Fill the block with large cells first, then with neurites until no space is left."""
    space = _FreeSpace(size)
    cells = _landmarks(size) if min(size[1:]) > 5000 else []
    for cell in cells:
        space.add(cell)
    area = float(size[1] * size[2]) / 8192**2
    large = [_GrowthRule(r, 0.75 * r, 0.0, 1.0, 200.0, 0.25) for r in rng.uniform(260, 620, round(9 * area))]
    myelinated = [_GrowthRule(r, 0.95 * r, 0.0, 1.0, 200.0, 0.15) for r in rng.uniform(420, 560, round(2 * area))]
    kinds = ["myelin"] * len(myelinated) + ["dendrite"] * len(large)
    for kind, rule in zip(kinds, [*myelinated, *large], strict=True):
        start = _find_seed(space, rng, 60)
        chain = _grow(start, _random_direction(rng), rule, space, rng)
        chain = Chain(kind, chain.points, chain.radii)
        space.add(chain)
        cells.append(_add_spines(chain, space, rng) if kind == "dendrite" else chain)
    while True:
        widest, spot = space.widest()
        if widest < 245:
            return cells
        start = _find_seed(space, rng, 20)
        start = start if space.clearance(start) > 200 else spot
        rule = _GrowthRule(60 + 140 * rng.random() ** 2, 60, rng.uniform(0, 280), rng.uniform(1100, 2600))
        chain = _grow(start, _random_direction(rng), rule, space, rng)
        space.add(chain)
        cells.append(chain)


def _find_seed(space: _FreeSpace, rng: np.random.Generator, tries: int) -> Floats:
    spots = rng.random((tries, 3)) * space.size
    return spots[int(np.argmax(space.clearance(spots)))]


def _landmarks(size: Floats) -> list[Chain]:
    """Return a cell body in one corner, and a capillary with the cell around it in another corner."""
    body = np.array([0.45, 0.13, 0.86]) * size
    lobes = np.array([[0, 0, 0], [200, 500, -350], [-200, -300, 700], [100, 900, 500], [-300, 100, -900]])
    soma = Chain("soma", body + lobes, np.array([1900.0, 1500, 1700, 1350, 1050]))
    process = _refine(
        body + np.array([[0, 900, -900], [100, 1900, -2000], [250, 2700, -3300], [500, 3500, -4600]]),
        np.array([1000.0, 640, 470, 400]),
    )
    soma = Chain("soma", np.concatenate([soma.points, process[0]]), np.concatenate([soma.radii, process[1]]))
    run = np.arange(-600.0, size[0] + 700, 100)
    axis = np.stack([run, 0.83 * size[1] + 0.22 * run, 0.13 * size[2] - 0.1 * run], axis=1)
    wall = Chain("endothelium", axis, np.full(len(run), 980.0))
    return [soma, wall, Chain("lumen", axis, np.full(len(run), 860.0), 3.0)]


def _add_spines(dendrite: Chain, space: _FreeSpace, rng: np.random.Generator) -> Chain:
    points, radii = [dendrite.points], [dendrite.radii]
    for _ in range(6):
        root = int(rng.integers(len(dendrite.points)))
        neck = _unit(_random_direction(rng) * np.array([0.4, 1, 1])) * (dendrite.radii[root] - 30)
        out = _unit(neck)
        spine = dendrite.points[root] + neck + out * np.array([[0], [180], [360], [460]])
        if space.clearance(spine[-1]) < 60:
            continue
        fine = _refine(spine, np.array([70.0, 55, 110, rng.uniform(150, 240)]))
        space.add(Chain("spine", *fine))
        points.append(fine[0])
        radii.append(fine[1])
    return Chain("dendrite", np.concatenate(points), np.concatenate(radii))


def place_organelles(cells: list[Chain], rng: np.random.Generator) -> tuple[list[Chain], list[Chain]]:
    """Return the nuclei and the mitochondria of some cells."""
    nuclei: list[Chain] = []
    mitochondria: list[Chain] = []
    for cell in cells:
        if cell.kind == "soma":
            nuclei.append(Chain("nucleus", cell.points[:5], cell.radii[:5] - 520))
        often = {"axon": 2, "dendrite": 10, "myelin": 3, "endothelium": 2, "soma": 160}.get(cell.kind, 0)
        for _ in range(often):
            at = int(rng.integers(len(cell.points)))
            mitochondrion = _mitochondrion(cell, at, rng)
            if mitochondrion is not None and not any(_is_touching(mitochondrion, n) for n in nuclei):
                mitochondria.append(mitochondrion)
    return nuclei, mitochondria


def _is_touching(a: Chain, b: Chain) -> bool:
    return bool(np.any(_length(a.points[:, None] - b.points) < a.radii[:, None] + b.radii + 60))


def _mitochondrion(cell: Chain, at: int, rng: np.random.Generator) -> Chain | None:
    """Return a mitochondrion along its neurite, off the axis, or anywhere outside the nucleus in a cell body."""
    radius = rng.uniform(95, 165)
    side, turn, length = _random_direction(rng), _random_direction(rng), rng.uniform(250, 1300)
    if cell.kind == "soma" and at < 60:
        middle = cell.points[at % 5] + side * (cell.radii[at % 5] - rng.uniform(180, 420))
        ends = np.stack([middle - turn * length / 3, middle, middle + (turn + 0.4 * side) * length / 3])
        return Chain("mitochondrion", *_refine(ends, np.full(3, radius)))
    thick = cell.radii[at] - (200 if cell.kind == "myelin" else 0)
    radius = min(radius, 0.62 * float(thick))
    if radius < 75:
        return None
    last = at
    while last + 1 < len(cell.points) and _length(cell.points[last + 1] - cell.points[at]) < length:
        if cell.radii[last + 1] < radius + 30 or _length(cell.points[last + 1] - cell.points[last]) > 400:
            break
        last += 1
    path = cell.points[at : last + 1] + side * max(0.0, float(thick) - radius - 60) * 0.7
    return Chain("mitochondrion", *_refine(path, np.full(len(path), radius)))


def place_synapses(cells: list[Chain], size: Floats, rng: np.random.Generator) -> list[Synapse]:
    """Place synapses at swellings of axons that touch another cell."""
    points = np.concatenate([c.points for c in cells])
    radii = np.concatenate([c.radii for c in cells])
    owner = np.repeat(np.arange(len(cells)), [len(c.points) for c in cells])
    can = np.array([c.kind in ("axon", "dendrite", "soma") for c in cells])
    axon = np.array([c.kind == "axon" for c in cells])
    inside = np.all((points > 0) & (points < size), axis=1)
    boutons = np.flatnonzero(axon[owner] & (radii > 125) & inside)
    found: list[Synapse] = []
    for i in rng.permutation(boutons)[:600]:
        if any(_length(points[i] - s.point) < 800 for s in found):
            continue
        gaps = _length(points - points[i]) - radii - radii[i]
        gaps[~can[owner] | (owner == owner[i])] = 1e9
        j = int(np.argmin(gaps))
        if gaps[j] > 120:
            continue
        towards = _unit(points[j] - points[i])
        spot = points[i] + towards * (radii[i] + gaps[j] / 2)
        if np.min(_length(points - spot) - radii) < gaps[j] / 2 - 25 or abs(towards[0]) > 0.85:
            continue
        found.append(Synapse(int(owner[i]), int(owner[j]), spot, float(rng.uniform(130, 230))))
    return found


def assign_ids(cells: list[Chain], rng: np.random.Generator) -> npt.NDArray[np.uint64]:
    """Return an id for each cell number that resembles a CAVE root id; some pairs differ by one."""
    low = rng.permutation(np.unique(rng.integers(10**8 // 3, 10**9 // 3, 2 * len(cells) + 8)))[: len(cells)] * 3
    low[2::64] = low[1::64][: len(low[2::64])] + 1
    ids = low.astype(np.uint64) + np.uint64(_FIRST_ID)
    ids[[c.kind in ("none", "lumen") for c in cells]] = 0
    return ids
