"""A generated connectomics volume: something real enough to try every verb on, without a network.

The tissue is a made-up block of neuropil. Each cell is a chain of balls that finds its way through the room which
the cells before it left; a voxel belongs to the cell whose surface is nearest. Membranes, clefts, organelles and
synapses are drawn from the same distances, so image and segmentation agree to a fraction of a voxel.

Bytes are the same on every machine: the random numbers are PCG64 with a fixed seed, and the arithmetic is
elementwise ``+ - * / sqrt`` (exactly rounded everywhere), without BLAS, fused or transcendental functions.

Inside this module points are (z, y, x) in nanometres from the image's corner, and grids are (z, y, x).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.errors import OptionError, TargetError, TargetExistsError

__all__ = ["Sample", "sample"]

Floats = Any  # numpy's stubs lose the dtype in most arithmetic
Slices = tuple[slice, slice, slice]

# What is written. The offset is that of the finest image level, (x, y, z) in its voxels.
_VERSION = 1
_MARKER = "imageryxr-sample.json"
_SHAPE = (64, 1024, 1024)
_OFFSET = (4096, 2048, 100)
_RESOLUTION = (8, 8, 40)
_IMAGE_CHUNK = (128, 128, 16)
_LABEL_CHUNK = (64, 64, 16)
_FIRST_ID = 864_691_135_000_000_000

# How it is made, nm in (z, y, x). A tile is 16 x 64 x 64 image voxels, and 8 x 16 x 16 of the distance grid.
_SEED = 20_240_611
_VOXEL = np.array([40.0, 8.0, 8.0])
_COARSE = np.array([80.0, 32.0, 32.0])
_TILE = (16, 64, 64)
_CELL_TILE = (8, 16, 16)
_HALO = (1, 2, 2)
_NM = np.float32(1 / 16)  # distances are drawn in whole sixteenths of a nanometre
_UNIT = dict.fromkeys(("cleft", "reticulum"), np.float32(1 / 2048))
_FEW = 8  # slices of a tile that are drawn at a time: small arrays stay in the processor's cache
_FAR = 380.0  # distances are cut off here
_ROOM = np.array([80.0, 64.0, 64.0])  # grid on which cells look for room
_MARGIN = 320.0  # tissue goes on this far outside the block


@dataclass(frozen=True)
class Sample:
    """Where a generated sample volume lies.

    Parameters
    ----------
    path : Path
        The folder, absolute.
    shape : tuple of int
        Voxels (z, y, x) of the image's finest level.
    """

    path: Path
    shape: tuple[int, int, int] = _SHAPE

    @property
    def image(self) -> str:
        """Cloudpath of the image layer."""
        return f"precomputed://file://{self.path.as_posix()}/image"

    @property
    def segmentation(self) -> str:
        """Cloudpath of the segmentation layer."""
        return f"precomputed://file://{self.path.as_posix()}/segmentation"

    def __repr__(self) -> str:
        z, y, x = self.shape
        return (
            f"Sample({x} x {y} x {z} voxels of 8 x 8 x 40 nm, generated)\n"
            f"  image:        {self.image}\n"
            f"  segmentation: {self.segmentation}"
        )


def sample(path: str | os.PathLike[str], *, shape: tuple[int, int, int] = _SHAPE, progress: bool = False) -> Sample:
    """Write a generated block of brain tissue, and return where it is.

    The same call writes the same voxels on every machine, without a network. Nothing is written when `path`
    already holds this sample. All is written into a temporary folder beside `path`, which is then renamed.

    Parameters
    ----------
    path : str or path-like
        The folder to write; it must not exist, be empty, or hold a sample.
    shape : tuple of int, default (64, 1024, 1024)
        Voxels (z, y, x) of the image's finest level: multiples of 4 in y and x, 64 at least; z from 4. Another
        shape is another tissue, not a crop of this one.
    progress : bool, default False
        Show a bar.

    Returns
    -------
    Sample
        Its ``image`` and ``segmentation`` are cloudpaths, for `open_image`, `open_segmentation` or any other
        reader of Neuroglancer precomputed volumes.

    Raises
    ------
    OptionError
        If `shape` is not three integers in these bounds.
    TargetExistsError
        If `path` is a file, holds other things, or a sample of another shape.
    TargetError
        If `path` cannot be written.

    Notes
    -----
    ``image`` is uint8, raw, with voxels (x, y, z) of 8 x 8 x 40, 16 x 16 x 40 and 32 x 32 x 40 nm, each level the
    mean of the one before; its finest level begins at voxel (4096, 2048, 100). ``segmentation`` is uint64,
    compressed_segmentation, at 16 x 16 x 40 and 32 x 32 x 40 nm (by mode). It lies in the same space in nm, but
    begins a little later on each axis and ends a little sooner (when the block is 128 wide, 32 deep or more).
    Ids look like CAVE's root ids, beyond what a float64 holds; some pairs differ by one. Background is 0: clefts
    between cells, and the lumen of a blood vessel. The whole takes 88 MB of image and some MB of segmentation;
    objects are stored without gzip, so that any reader and any static file server can serve them.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     block = sample(f"{folder}/block", shape=(4, 64, 64))
    ...     sorted(entry.name for entry in block.path.iterdir())
    ['image', 'imageryxr-sample.json', 'segmentation']
    >>> block.image
    'precomputed://file:///.../block/image'
    """
    target = Sample(Path(path).expanduser().resolve(), _checked_shape(shape))
    if _is_complete(target):
        return target
    try:
        target.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.path.name}.", dir=target.path.parent) as scratch:
            written = Sample(Path(scratch) / "sample", target.shape)
            _write(written, progress=progress)
            _move(written, target, Path(scratch) / "stale")
    except TargetError:
        raise
    except OSError as error:
        raise TargetError(f"the sample cannot be written to {target.path}: {error}") from error
    return target


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def _checked_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    try:
        z, y, x = (int(n) for n in shape)
        whole = (z, y, x) == tuple(shape)
    except (TypeError, ValueError):
        whole = False
    if not whole or z < 4 or min(y, x) < 64 or y % 4 or x % 4:
        raise OptionError(
            f"shape={shape!r}: give (z, y, x) in voxels, z at least 4, y and x at least 64 and multiples of 4, "
            "such as shape=(16, 128, 128)"
        )
    return z, y, x


def _marker(shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"imageryxr_sample": _VERSION, "shape": list(shape)}


def _is_complete(target: Sample) -> bool:
    """Tell whether the sample is there; refuse a folder that is no place for it."""
    path, parts = target.path, {"image", "segmentation", _MARKER}
    if not path.exists():
        return False
    if not path.is_dir():
        raise TargetExistsError(f"{path} is a file; give the sample a folder of its own")
    found = {entry.name for entry in path.iterdir()}
    if not found:
        return False
    try:
        marker = json.loads((path / _MARKER).read_text())
        version, shape = marker["imageryxr_sample"], tuple(marker["shape"])
    except (OSError, ValueError, KeyError, TypeError):
        raise TargetExistsError(
            f"{path} holds other things ({', '.join(sorted(found)[:3])}{', …' * (len(found) > 3)}); "
            "give the sample a folder of its own"
        ) from None
    whole = all((path / layer / "info").is_file() for layer in ("image", "segmentation"))
    if whole and shape == target.shape and version == _VERSION:
        return True
    if whole and shape != target.shape:
        raise TargetExistsError(
            f"{path} holds a sample of shape {shape}, not {target.shape}; delete it or choose another folder"
        )
    if found - parts:
        raise TargetExistsError(
            f"{path} holds an outdated or incomplete sample, and other things "
            f"({', '.join(sorted(found - parts)[:3])}); move those away or choose another folder"
        )
    return False


def _move(written: Sample, target: Sample, stale: Path) -> None:
    """Put the finished folder in its place, and what was there (nothing, or a stale sample) out of the way."""
    if target.path.exists():
        if _is_complete(target):  # another process was quicker
            return
        os.rename(target.path, stale)
    os.rename(written.path, target.path)


# ---------------------------------------------------------------------------------------------------------------------
# The layers


def _write(target: Sample, *, progress: bool) -> None:
    from tqdm import tqdm

    shape = target.shape
    tissue = _Tissue(shape)
    image = [_volume(target.image, "image", mip, shape) for mip in range(3)]
    label = [_volume(target.segmentation, "segmentation", mip, shape) for mip in range(2)]
    (first_z, last_z), (first_y, last_y), (first_x, last_x) = _label_window(shape)
    kept = []
    deep = range(0, shape[0], _TILE[0])
    for z in tqdm(deep, desc="sample", unit="slab", disable=not progress):
        grey, cells = tissue.slab(z)
        kept.append(cells)
        for mip, volume in enumerate(image):
            grey = grey if mip == 0 else _mean2(grey)
            _put(volume, grey, z)
    inner = np.concatenate(kept)[first_z:last_z, first_y:last_y, first_x:last_x]
    for z in range(0, inner.shape[0], _LABEL_CHUNK[2]):
        ids = tissue.ids[inner[z : z + _LABEL_CHUNK[2]]]
        _put(label[0], ids, z)
        _put(label[1], _mode2(ids), z)
    (target.path / _MARKER).write_text(json.dumps(_marker(shape)) + "\n")


def _label_window(shape: tuple[int, int, int]) -> tuple[tuple[int, int], ...]:
    """First and last voxel (z, y, x) of the segmentation on the whole grid at 16 x 16 x 40 nm."""
    z, y, x = shape
    return tuple((a, n - a) for n, a in ((z, z // 32), (y // 2, y // 128 * 2), (x // 2, x // 128 * 2)))


def _scales(kind: str, shape: tuple[int, int, int]) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Resolution, offset and size (x, y, z) of each level."""
    if kind == "image":
        first, size, zoom, mips = list(_OFFSET), [shape[2], shape[1], shape[0]], 1, 3
    else:
        window = _label_window(shape)[::-1]
        half = (_OFFSET[0] // 2, _OFFSET[1] // 2, _OFFSET[2])
        first = [o + a for o, (a, _) in zip(half, window, strict=True)]
        size, zoom, mips = [b - a for a, b in window], 2, 2
    for mip in range(mips):
        by = (2**mip, 2**mip, 1)
        resolution = [_RESOLUTION[0] * zoom * by[0], _RESOLUTION[1] * zoom * by[1], _RESOLUTION[2]]
        yield (
            resolution,
            [o // f for o, f in zip(first, by, strict=True)],
            [-(-n // f) for n, f in zip(size, by, strict=True)],
        )


def _volume(cloudpath: str, kind: str, mip: int, shape: tuple[int, int, int]) -> Any:
    """Open one level for writing; level 0 writes the info file."""
    from cloudvolume import CloudVolume

    if mip > 0:
        return CloudVolume(cloudpath, mip=mip, progress=False, compress=False)
    is_image = kind == "image"
    info: dict[str, Any] = {
        "@type": "neuroglancer_multiscale_volume",
        "type": kind,
        "data_type": "uint8" if is_image else "uint64",
        "num_channels": 1,
        "scales": [],
    }
    for resolution, offset, size in _scales(kind, shape):
        scale: dict[str, Any] = {
            "key": "_".join(str(r) for r in resolution),
            "resolution": resolution,
            "voxel_offset": offset,
            "size": size,
            "chunk_sizes": [list(_IMAGE_CHUNK if is_image else _LABEL_CHUNK)],
            "encoding": "raw" if is_image else "compressed_segmentation",
        }
        if not is_image:
            scale["compressed_segmentation_block_size"] = [8, 8, 8]
        info["scales"].append(scale)
    volume = CloudVolume(cloudpath, info=info, mip=0, progress=False, compress=False)
    volume.commit_info()
    volume.provenance.description = f"Generated by imageryxr.sample, version {_VERSION}: no real tissue."
    volume.commit_provenance()
    return volume


def _put(volume: Any, block: npt.NDArray[Any], z: int) -> None:
    """Write whole (z, y, x) slices, the first of them `z` slices into the volume."""
    x0, y0, z0 = (int(v) for v in volume.voxel_offset)
    nz, ny, nx = block.shape
    volume[x0 : x0 + nx, y0 : y0 + ny, z0 + z : z0 + z + nz] = block.T[..., np.newaxis]


def _quarters(block: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Take apart the four voxels of each 2 x 2, an odd edge repeated."""
    block = np.pad(block, ((0, 0), (0, block.shape[1] % 2), (0, block.shape[2] % 2)), mode="edge")
    return block[:, ::2, ::2], block[:, ::2, 1::2], block[:, 1::2, ::2], block[:, 1::2, 1::2]


def _mean2(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    a, b, c, d = (q.astype(np.uint16) for q in _quarters(grey))
    return ((a + b + c + d + 2) >> 2).astype(np.uint8)


def _mode2(ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Most frequent id of each 2 x 2; of a draw, the pair (or voxel) that comes last."""
    a, b, c, d = _quarters(ids)
    return np.where((a == b) | (a == c), a, np.where(b == c, b, d))


# ---------------------------------------------------------------------------------------------------------------------
# The tissue: cells as chains of balls


@dataclass(frozen=True)
class _Chain:
    """Balls along a path: a cell or an organelle. `steep` > 1 makes it push its neighbours back (see the vessel)."""

    kind: str
    points: Floats
    radii: Floats
    steep: float = 1.0


@dataclass(frozen=True)
class _Synapse:
    """A place on the border of cells `pre` and `post` (their numbers)."""

    pre: int
    post: int
    point: Floats
    radius: float


class _Room:
    """How far it is from any place to the nearest cell, on a grid of `_ROOM` nm; negative inside cells."""

    def __init__(self, size: Floats) -> None:
        self.size = size
        self.clear = np.full([math.ceil(n) for n in (size + 2 * _MARGIN) / _ROOM], 600.0, np.float32)

    def add(self, chain: _Chain) -> None:
        _stamp(self.clear, chain.points + _MARGIN, chain.radii, 1.0, _ROOM, 280.0)

    def at(self, points: Floats) -> Floats:
        index = np.floor((points + _MARGIN) / _ROOM).astype(np.intp)
        index = np.clip(index, 0, np.array(self.clear.shape) - 1)
        return self.clear[index[..., 0], index[..., 1], index[..., 2]]

    def holds(self, point: Floats) -> bool:
        return bool(np.all(point > -_MARGIN) and np.all(point < self.size + _MARGIN))

    def widest(self) -> tuple[float, Floats]:
        inner = self.clear[4:-4, 5:-5, 5:-5]
        index = np.unravel_index(int(np.argmax(inner)), inner.shape)
        return float(inner[index]), (np.array(index) + 0.5) * _ROOM


def _stamp(
    grid: npt.NDArray[np.float32], points: Floats, radii: Floats, steep: float, pitch: Floats, reach: float
) -> None:
    """Lower `grid` to the distance from the surface of each ball, as far as `reach` from it."""
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


def _direction(rng: np.random.Generator) -> Floats:
    """Draw a direction, all alike."""
    while True:
        vector = rng.uniform(-1, 1, 3)
        if 0.1 < _length(vector) < 1:
            return _unit(vector)


def _refined(points: Floats, radii: Floats) -> tuple[Floats, Floats]:
    """Put balls between the balls, until they look like a tube."""
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
class _Habit:
    """How a neurite grows."""

    radius: float
    thinnest: float
    bulge: float = 0.0
    period: float = 1.0
    step: float = 110.0
    steer: float = 0.45
    reach: float = 14_000.0

    def target(self, run: float) -> float:
        return self.radius + self.bulge * max(0.0, 1.0 - abs(run / self.period % 1.0 - 0.5) * 4.5)


def _grow(start: Floats, heading: Floats, habit: _Habit, room: _Room, rng: np.random.Generator) -> _Chain:
    """Let a neurite find its way through the room, both ways from `start`."""
    arms = []
    for sign, offset in ((1.0, 0.0), (-1.0, habit.period * 0.37)):
        point, ahead, run = start, heading * sign, 0.0
        points, radii = [start], [min(max(float(room.at(start)), habit.thinnest), habit.target(offset))]
        while run < habit.reach / 2:
            ways = _unit(ahead + habit.steer * rng.uniform(-1, 1, (9, 3)))
            spots = point + habit.step * ways
            clear = np.minimum(room.at(spots), habit.target(run + offset) + 60)
            along = ways[:, 0] * ahead[0] + ways[:, 1] * ahead[1] + ways[:, 2] * ahead[2]
            best = int(np.argmax(clear + 70 * along))
            if clear[best] < -0.6 * habit.thinnest:
                break
            run += habit.step
            point, ahead = spots[best], ways[best]
            points.append(point)
            radii.append(min(max(float(clear[best]), habit.thinnest), habit.target(run + offset)))
            if not room.holds(point):
                break
        arms.append((np.array(points), np.array(radii)))
    (p, r), (q, s) = arms
    return _Chain("axon", *_refined(np.concatenate([q[:0:-1], p]), np.concatenate([s[:0:-1], r])))


class _Tissue:
    """All cells of a block, and the means to draw it slab by slab."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.size = np.array(shape) * _VOXEL
        rng = np.random.Generator(np.random.PCG64(_SEED))
        self.cells = [_Chain("none", np.zeros((0, 3)), np.zeros(0)), *_populate(self.size, rng)]
        self.nuclei, self.mitochondria = _organelles(self.cells, rng)
        self.synapses = _synapses(self.cells, self.size, rng)
        self.clouds = (
            np.array([s.point for s in self.synapses]).reshape(-1, 3),
            np.array([[2.1 * s.radius] for s in self.synapses]).reshape(-1, 1),
        )
        self.ids = _ids(self.cells, rng)
        kinds = [cell.kind for cell in self.cells]
        self.tint = rng.uniform(-9, 9, len(kinds)).astype(np.float32)
        self.tint += np.where(rng.random(len(kinds)) < 0.12, -16, 0).astype(np.float32)
        self.tint[[k in ("soma", "dendrite") for k in kinds]] = 4
        self.lumen = np.array([k == "lumen" for k in kinds])
        self.myelin = np.array([k == "myelin" for k in kinds])
        self.noise = _noise_bank(rng)
        self.vesicles = _vesicle_bank(rng)
        self.tiles = _distances(self)

    def slab(self, z: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
        """Grey image, and cell numbers at half its resolution in y and x, of the tile layer that begins at `z`."""
        _, ny, nx = self.shape
        deep = min(_TILE[0], self.shape[0] - z)
        across = [(y, x) for y in range(0, ny, _TILE[1]) for x in range(0, nx, _TILE[2])]
        high, wide = across[-1][0] + _TILE[1], across[-1][1] + _TILE[2]
        grey = np.empty((_TILE[0], high, wide), np.uint8)
        cells = np.empty((_TILE[0], high // 2, wide // 2), np.uint16)

        def draw(corner: tuple[int, int]) -> None:
            y, x = corner
            here = np.s_[:, y : y + _TILE[1], x : x + _TILE[2]]
            half = np.s_[:, y // 2 : (y + _TILE[1]) // 2, x // 2 : (x + _TILE[2]) // 2]
            grey[here], cells[half] = _draw(self, (z, y, x), grain[here])

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            grain = np.stack([*pool.map(lambda k: _grain(z + k, high, wide), range(_TILE[0]))])
            for _ in pool.map(draw, across):
                pass
        return grey[:deep, :ny, :nx], cells[:deep, : ny // 2, : nx // 2]


def _populate(size: Floats, rng: np.random.Generator) -> list[_Chain]:
    """Fill the block: what is large first, then neurites until no room is left."""
    room = _Room(size)
    cells = _landmarks(size, rng) if min(size[1:]) > 5000 else []
    for cell in cells:
        room.add(cell)
    area = float(size[1] * size[2]) / 8192**2
    large = [_Habit(r, 0.75 * r, 0.0, 1.0, 200.0, 0.25) for r in rng.uniform(260, 620, round(9 * area))]
    myelinated = [_Habit(r, 0.95 * r, 0.0, 1.0, 200.0, 0.15) for r in rng.uniform(420, 560, round(2 * area))]
    kinds = ["myelin"] * len(myelinated) + ["dendrite"] * len(large)
    for kind, habit in zip(kinds, [*myelinated, *large], strict=True):
        start = _seed(room, rng, 60)
        chain = _grow(start, _direction(rng), habit, room, rng)
        chain = _Chain(kind, chain.points, chain.radii)
        room.add(chain)
        cells.append(_with_spines(chain, room, rng) if kind == "dendrite" else chain)
    while True:
        widest, spot = room.widest()
        if widest < 245:
            return cells
        start = _seed(room, rng, 20)
        start = start if room.at(start) > 200 else spot
        habit = _Habit(60 + 140 * rng.random() ** 2, 60, rng.uniform(0, 280), rng.uniform(1100, 2600))
        chain = _grow(start, _direction(rng), habit, room, rng)
        room.add(chain)
        cells.append(chain)


def _seed(room: _Room, rng: np.random.Generator, tries: int) -> Floats:
    spots = rng.random((tries, 3)) * room.size
    return spots[int(np.argmax(room.at(spots)))]


def _landmarks(size: Floats, rng: np.random.Generator) -> list[_Chain]:
    """Place a cell body in one corner; a capillary and the cell around it in another."""
    body = np.array([0.45, 0.13, 0.86]) * size
    lobes = np.array([[0, 0, 0], [200, 500, -350], [-200, -300, 700], [100, 900, 500], [-300, 100, -900]])
    soma = _Chain("soma", body + lobes, np.array([1900.0, 1500, 1700, 1350, 1050]))
    process = _refined(
        body + np.array([[0, 900, -900], [100, 1900, -2000], [250, 2700, -3300], [500, 3500, -4600]]),
        np.array([1000.0, 640, 470, 400]),
    )
    soma = _Chain("soma", np.concatenate([soma.points, process[0]]), np.concatenate([soma.radii, process[1]]))
    run = np.arange(-600.0, size[0] + 700, 100)
    axis = np.stack([run, 0.83 * size[1] + 0.22 * run, 0.13 * size[2] - 0.1 * run], axis=1)
    wall = _Chain("endothelium", axis, np.full(len(run), 980.0))
    return [soma, wall, _Chain("lumen", axis, np.full(len(run), 860.0), 3.0)]


def _with_spines(dendrite: _Chain, room: _Room, rng: np.random.Generator) -> _Chain:
    points, radii = [dendrite.points], [dendrite.radii]
    for _ in range(6):
        root = int(rng.integers(len(dendrite.points)))
        neck = _unit(_direction(rng) * np.array([0.4, 1, 1])) * (dendrite.radii[root] - 30)
        out = _unit(neck)
        spine = dendrite.points[root] + neck + out * np.array([[0], [180], [360], [460]])
        if room.at(spine[-1]) < 60:
            continue
        fine = _refined(spine, np.array([70.0, 55, 110, rng.uniform(150, 240)]))
        room.add(_Chain("spine", *fine))
        points.append(fine[0])
        radii.append(fine[1])
    return _Chain("dendrite", np.concatenate(points), np.concatenate(radii))


def _organelles(cells: list[_Chain], rng: np.random.Generator) -> tuple[list[_Chain], list[_Chain]]:
    nuclei: list[_Chain] = []
    mitochondria: list[_Chain] = []
    for cell in cells:
        if cell.kind == "soma":
            nuclei.append(_Chain("nucleus", cell.points[:5], cell.radii[:5] - 520))
        often = {"axon": 2, "dendrite": 10, "myelin": 3, "endothelium": 2, "soma": 160}.get(cell.kind, 0)
        for _ in range(often):
            at = int(rng.integers(len(cell.points)))
            mitochondrion = _mitochondrion(cell, at, rng)
            if mitochondrion is not None and not any(_touch(mitochondrion, n) for n in nuclei):
                mitochondria.append(mitochondrion)
    return nuclei, mitochondria


def _touch(a: _Chain, b: _Chain) -> bool:
    return bool(np.any(_length(a.points[:, None] - b.points) < a.radii[:, None] + b.radii + 60))


def _mitochondrion(cell: _Chain, at: int, rng: np.random.Generator) -> _Chain | None:
    """Lay a worm along its neurite, off its axis; in a cell body, anywhere outside the nucleus."""
    radius = rng.uniform(95, 165)
    side, turn, length = _direction(rng), _direction(rng), rng.uniform(250, 1300)
    if cell.kind == "soma" and at < 60:
        middle = cell.points[at % 5] + side * (cell.radii[at % 5] - rng.uniform(180, 420))
        ends = np.stack([middle - turn * length / 3, middle, middle + (turn + 0.4 * side) * length / 3])
        return _Chain("mitochondrion", *_refined(ends, np.full(3, radius)))
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
    return _Chain("mitochondrion", *_refined(path, np.full(len(path), radius)))


def _synapses(cells: list[_Chain], size: Floats, rng: np.random.Generator) -> list[_Synapse]:
    """Put synapses where a swelling of an axon touches another cell."""
    points = np.concatenate([c.points for c in cells])
    radii = np.concatenate([c.radii for c in cells])
    owner = np.repeat(np.arange(len(cells)), [len(c.points) for c in cells])
    can = np.array([c.kind in ("axon", "dendrite", "soma") for c in cells])
    axon = np.array([c.kind == "axon" for c in cells])
    inside = np.all((points > 0) & (points < size), axis=1)
    boutons = np.flatnonzero(axon[owner] & (radii > 125) & inside)
    found: list[_Synapse] = []
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
        found.append(_Synapse(int(owner[i]), int(owner[j]), spot, float(rng.uniform(130, 230))))
    return found


def _ids(cells: list[_Chain], rng: np.random.Generator) -> npt.NDArray[np.uint64]:
    """Ids by cell number, like CAVE's root ids; some pairs differ by one."""
    low = rng.permutation(np.unique(rng.integers(10**8 // 3, 10**9 // 3, 2 * len(cells) + 8)))[: len(cells)] * 3
    low[2::64] = low[1::64][: len(low[2::64])] + 1
    ids = low.astype(np.uint64) + np.uint64(_FIRST_ID)
    ids[[c.kind in ("none", "lumen") for c in cells]] = 0
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# Distances, by tile


@dataclass
class _Tile:
    """Distance (int16 nm) to each cell, to mitochondria and to nuclei on the tile's part of the coarse grid."""

    cells: list[int] = field(default_factory=list)
    fields: list[npt.NDArray[np.int16]] = field(default_factory=list)
    extra: dict[str, npt.NDArray[np.int16]] = field(default_factory=dict)


def _distances(tissue: _Tissue) -> dict[tuple[int, int, int], _Tile]:
    counts = [-(-n // t) for n, t in zip(tissue.shape, _TILE, strict=True)]
    nz, ny, nx = (range(n) for n in counts)
    tiles = {at: _Tile() for at in itertools.product(nz, ny, nx)}
    grid = [n * t + 2 * h for n, t, h in zip(counts, _CELL_TILE, _HALO, strict=True)]
    origin = np.array(_HALO) * _COARSE
    for number, chain in enumerate(tissue.cells):
        if len(chain.points):
            for at, part in _cut([chain], grid, origin, counts, 320):
                tiles[at].cells.append(number)
                tiles[at].fields.append(part)
    for name, chains in (("mitochondrion", tissue.mitochondria), ("nucleus", tissue.nuclei)):
        if chains:
            for at, part in _cut(chains, grid, origin, counts, 40):
                tiles[at].extra[name] = part
    return tiles


def _cut(
    chains: list[_Chain], grid: list[int], origin: Floats, counts: list[int], near: float
) -> Iterator[tuple[tuple[int, int, int], npt.NDArray[np.int16]]]:
    """Yield the distance to `chains` for each tile that it comes near to."""
    whole = np.full(grid, _FAR, np.float32)
    lo, hi = np.full(3, np.inf), np.full(3, -np.inf)
    for chain in chains:
        _stamp(whole, chain.points + origin, chain.radii, chain.steep, _COARSE, 340.0)
        reach = chain.radii[:, None] + 340
        lo = np.minimum(lo, (chain.points - reach).min(axis=0))
        hi = np.maximum(hi, (chain.points + reach).max(axis=0))
    edge = np.array(_TILE) * _VOXEL
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


def _double(a: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """Twice the samples by linear interpolation, n to 2n - 4: repeated, a smooth (quadratic) spline."""
    ahead = (slice(None),) * axis
    out = np.empty((*a.shape[:axis], 2 * (a.shape[axis] - 2), *a.shape[axis + 1 :]), np.float32)
    middle, quarter = a[(*ahead, slice(1, -1))] * np.float32(0.75), a * np.float32(0.25)
    np.add(middle, quarter[(*ahead, slice(None, -2))], out=out[(*ahead, slice(None, None, 2))])
    np.add(middle, quarter[(*ahead, slice(2, None))], out=out[(*ahead, slice(1, None, 2))])
    return out


def _double16(a: npt.NDArray[np.int16], axis: int) -> npt.NDArray[np.int16]:
    """As `_double`, for numbers within 8,000 of 0."""
    ahead = (slice(None),) * axis
    out = np.empty((*a.shape[:axis], 2 * (a.shape[axis] - 2), *a.shape[axis + 1 :]), np.int16)
    middle = a[(*ahead, slice(1, -1))] * np.int16(3)
    np.add(middle, a[(*ahead, slice(None, -2))], out=out[(*ahead, slice(None, None, 2))])
    np.add(middle, a[(*ahead, slice(2, None))], out=out[(*ahead, slice(1, None, 2))])
    out >>= 2
    return out


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], doublings: tuple[int, ...]) -> Floats:
    """Periodic smooth noise in about -1 … 1; `shape` must divide by 2**doublings."""
    small = [n >> k for n, k in zip(shape, doublings, strict=True)]
    out = rng.uniform(-1, 1, small).astype(np.float32)
    for axis, times in enumerate(doublings):
        for _ in range(times):
            pad = [(1, 1) if i == axis else (0, 0) for i in range(out.ndim)]
            out = _double(np.pad(out, pad, mode="wrap"), axis)
    return np.ascontiguousarray(out * np.float32(1.6))


_BANK = (32, 128, 128)


def _noise_bank(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Noise on the coarse grid: features of some 250 nm, and of half that; periodic."""
    bank = _smooth(rng, _BANK, (2, 3, 3)) + np.float32(0.45) * _smooth(rng, _BANK, (1, 2, 2))
    return np.tile(bank, (2, 2, 2))


def _vesicle_bank(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Four tiles (periodic, 256 wide) of vesicle profiles, as grey to add: a dark ring about a pale middle."""
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
    """Draw what a slice gets from stain and microscope: grain, uneven staining, section brightness, noise."""
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


def _draw(
    tissue: _Tissue, corner: tuple[int, int, int], grain: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Grey image and cell numbers of one tile."""
    tile, fields = _fields(tissue, corner)
    count = len(tile.cells)
    numbers = np.array(tile.cells, np.uint16)
    half = _double16(_double16(_double16(fields, 3), 2), 1)
    nearest, depth = _nearest(half[:count, :, 2:-2, 2:-2], half[count, :, 2:-2, 2:-2])
    cells = numbers[nearest]
    cells[depth < 0] = 0
    grey = np.empty(_TILE, np.uint8)
    for z in range(0, _TILE[0], _FEW):
        few = slice(z, z + _FEW)
        full = _double16(_double16(half[:, few], 3)[..., 2:-2], 2)[:, :, 2:-2]
        nearest, depth = _nearest(full[:count], full[count])
        names = ("cleft", "reticulum", *tile.extra)
        aux = {name: row * _UNIT.get(name, _NM) for name, row in zip(names, full[count:], strict=True)}
        start = (corner[0] + z, corner[1], corner[2])
        grey[few] = _shade(tissue, start, numbers[nearest], depth, aux, grain[few])
    return grey, cells


def _fields(tissue: _Tissue, corner: tuple[int, int, int]) -> tuple[_Tile, npt.NDArray[np.int16]]:
    """How much further than the nearest the cells of a tile are; cleft noise, reticulum noise, organelles."""
    at = tuple(c // t for c, t in zip(corner, _TILE, strict=True))
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


def _noise(tissue: _Tissue, start: list[int], number: int) -> npt.NDArray[np.float32]:
    """Cut out the noise that belongs to a cell, on a tile of the coarse grid with its halo."""
    shift = (number * 11, number * 53, number * 37)
    where = []
    for first, more, n, t, h in zip(start, shift, _BANK, _CELL_TILE, _HALO, strict=True):
        begin = (first + more) % n
        where.append(slice(begin, begin + t + 2 * h))
    return tissue.noise[tuple(where)]


def _nearest(
    fields: npt.NDArray[np.int16], cleft: npt.NDArray[np.int16]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Find the row of the nearest cell, and how deep in it a voxel lies (nm; negative in a cleft)."""
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
    """Make a smooth step from 0 where `a` is `bottom` to 1 where it is `top`."""
    t: npt.NDArray[np.float32] = np.clip((a - np.float32(bottom)) * np.float32(1 / (top - bottom)), 0, 1)
    return t * t * (np.float32(3) - 2 * t)


def _shade(
    tissue: _Tissue,
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
    tissue: _Tissue,
    corner: tuple[int, int, int],
    grey: Floats,
    owner: Floats,
    depth: Floats,
    mitochondria: Floats | None,
) -> None:
    """Vesicles on one side, a density on the other."""
    start = np.array(corner) * _VOXEL
    spots, clouds = tissue.clouds
    first = np.maximum(np.floor((spots - clouds - start) / _VOXEL), 0).astype(int)
    last = np.minimum(np.ceil((spots + clouds - start) / _VOXEL), grey.shape).astype(int)
    for n in np.flatnonzero(np.all(first < last, axis=1)):
        synapse, cloud = tissue.synapses[n], float(clouds[n, 0])
        here = [range(a, b) for a, b in zip(first[n], last[n], strict=True)]
        box = tuple(slice(r.start, r.stop) for r in here)
        z, y, x = (
            np.square((np.array(r) + 0.5) * v + s - p).astype(np.float32)
            for r, v, s, p in zip(here, _VOXEL, start, synapse.point, strict=True)
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
