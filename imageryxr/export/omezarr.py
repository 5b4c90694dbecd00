"""OME-Zarr 0.5 as an export target: Zarr v3, a pyramid, units.

The format: https://ngff.openmicroscopy.org/0.5/. The translation of a level is the centre of its first voxel.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from imageryxr.errors import OptionError, TargetExistsError
from imageryxr.export.targets import disk_errors, move_into_place
from imageryxr.expr import Array, ArrayLeaf, Expr, Resampled, evaluate
from imageryxr.grid import Axis, AxisMap, Grid, Index3, IndexBox, tidy

CHUNK: Index3 = (16, 256, 256)


@dataclass
class OmeZarrTarget:
    """A local OME-Zarr image, written level by level."""

    path: Path
    grids: list[Grid]
    """Where each level lies, finest first."""
    channels: int
    """4 for RGBA, 0 for arrays without such an axis."""
    dtype: np.dtype[Any]
    layer_type: str
    chunk: Index3
    attrs: Mapping[str, Any]
    _work: Path = field(default_factory=Path)
    _arrays: list[Any] = field(default_factory=list)

    @classmethod
    def plan(
        cls,
        path: str,
        grid: Grid,
        channels: int,
        dtype: np.dtype[Any],
        attrs: Mapping[str, Any],
        *,
        chunks: Index3 = CHUNK,
        levels: int | None = None,
        layer_type: str = "image",
    ) -> OmeZarrTarget:
        """Return the target; ``levels=None`` halves until the largest side is one chunk."""
        if dtype.kind not in "uif" and dtype != np.bool_:
            raise OptionError(f"values of dtype {dtype} cannot be stored as OME-Zarr")
        if len(chunks) != 3 or min(chunks) < 1:
            raise OptionError(f"chunks={chunks!r} is not three positive counts of voxels (z, y, x)")
        chunk = tuple(min(int(c), n) for c, n in zip(chunks, grid.shape, strict=True))
        grids = pyramid(grid, levels, max(chunk))
        kept = np.dtype(np.uint8) if dtype == np.bool_ else dtype
        return cls(Path(path).absolute(), grids, channels, kept, layer_type, chunk, dict(attrs))  # type: ignore[arg-type]

    @property
    def place(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def granule(self) -> Index3:
        """A stored chunk."""
        return self.chunk

    def refuse(self, overwrite: bool) -> None:
        """Raise if the path exists and may not be replaced."""
        if self.path.exists() and not overwrite:
            raise TargetExistsError(
                f"{self.path} exists; give overwrite=True to replace it when the export is complete, or another target"
            )

    def begin(self) -> None:
        """Make the arrays of all levels, in a folder beside the final one."""
        import zarr

        self._work = self.path.with_name(f".{self.path.name}-{uuid.uuid4().hex[:12]}")
        with disk_errors(self.place):
            self._work.parent.mkdir(parents=True, exist_ok=True)
            group = zarr.open_group(self._work, mode="w", zarr_format=3, attributes={"ome": self._metadata()})
            lead, names = ((self.channels,), ("c", "z", "y", "x")) if self.channels else ((), ("z", "y", "x"))
            self._arrays = [
                group.create_array(
                    str(level),
                    shape=(*lead, *grid.shape),
                    chunks=(*lead, *(min(c, n) for c, n in zip(self.chunk, grid.shape, strict=True))),
                    dtype=self.dtype,
                    dimension_names=names,
                    fill_value=0,
                    # An absent chunk could be black or lost; every chunk is written, so that absence is a fault.
                    config={"write_empty_chunks": True},
                )
                for level, grid in enumerate(self.grids)
            ]

    def write(self, box: IndexBox, values: Array) -> int:
        """Write a region of the finest level; bytes are counted at the end, as compressed."""
        self._store(0, box, values)
        return 0

    def _store(self, level: int, box: IndexBox, values: Array) -> None:
        with disk_errors(self.place):
            if self.channels:
                self._arrays[level][(slice(None), *box.slices())] = np.moveaxis(values, -1, 0)
            else:
                self._arrays[level][box.slices()] = values.astype(self.dtype, copy=False)

    def finish(self) -> int:
        """Make each coarser level from the one below, then move everything to its place."""
        for level in range(1, len(self.grids)):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(partial(self._shrink, level), self._bricks(level)))
        written = sum(f.stat().st_size for f in self._work.rglob("*") if f.is_file())
        with disk_errors(self.place):
            move_into_place([(self._work, self.path)], self._work.with_name(self._work.name + "-aside"))
        return written

    def abandon(self) -> None:
        """Remove the unfinished folder."""
        shutil.rmtree(self._work, ignore_errors=True)

    def _bricks(self, level: int) -> list[IndexBox]:
        shape = self.grids[level].shape
        steps = [range(0, n, 4 * c) for n, c in zip(shape, self.chunk, strict=True)]
        sizes = [4 * c for c in self.chunk]
        return [
            IndexBox(start, tuple(min(a + s, n) for a, s, n in zip(start, sizes, shape, strict=True)))  # type: ignore[arg-type]
            for start in product(*steps)
        ]

    def _shrink(self, level: int, box: IndexBox) -> None:
        maps = tuple(
            AxisMap.between(Axis(t.size, t.resolution, 0), Axis(s.size, s.resolution, 0))
            for t, s in zip(self.grids[level].axes, self.grids[level - 1].axes, strict=True)
        )
        below = IndexBox.of_shape(self.grids[level - 1].shape)
        reach = [m.reach(a, b, "mean") for m, a, b in zip(maps, box.start, box.stop, strict=True)]
        need = IndexBox(tuple(a for a, _ in reach), tuple(b for _, b in reach)).clip(below)  # type: ignore[arg-type]
        source = self._arrays[level - 1]
        if self.channels:
            stored = np.moveaxis(source[(slice(None), *need.slices())], 0, -1)
            self._store(level, box, shrink_rgba(stored, need, maps, box))
            return
        method = "mode" if self.layer_type == "segmentation" else "mean"
        self._store(level, box, _shrunk(source[need.slices()], need, maps, box, method))

    def _metadata(self) -> dict[str, Any]:
        axes: list[dict[str, str]] = [{"name": d, "type": "space", "unit": "nanometer"} for d in ("z", "y", "x")]
        lead = [1.0] if self.channels else []
        if self.channels:
            axes.insert(0, {"name": "c", "type": "channel"})
        datasets = [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*lead, *(a.resolution for a in grid.axes)]},
                    {
                        "type": "translation",
                        "translation": [*(0.0 for _ in lead), *(float(a.centers()[0]) for a in grid.axes)],
                    },
                ],
            }
            for level, grid in enumerate(self.grids)
        ]
        name = self.path.name.removesuffix(".zarr").removesuffix(".ome")
        ome: dict[str, Any] = {
            "version": "0.5",
            "multiscales": [{"name": name, "axes": axes, "datasets": datasets}],
        }
        if self.layer_type == "segmentation":
            ome["image-label"] = {"version": "0.5"}
        else:
            ome["omero"] = {"channels": self._channels()}
        return ome

    def _channels(self) -> list[dict[str, Any]]:
        low, high = self.attrs.get("contrast_limits", _range_of(self.dtype))
        window = {"start": tidy(low), "end": tidy(high), "min": tidy(low), "max": tidy(high)}
        colors = {"gray": "FFFFFF"}
        if self.channels:
            colors = {"red": "FF0000", "green": "00FF00", "blue": "0000FF", "alpha": "FFFFFF"}
        return [{"label": n, "color": c, "active": n != "alpha", "window": window} for n, c in colors.items()]


def _range_of(dtype: np.dtype[Any]) -> tuple[float, float]:
    if dtype.kind == "f":
        return (0.0, 1.0)
    info = np.iinfo(dtype)
    return (float(info.min), float(info.max))


def pyramid(grid: Grid, levels: int | None, largest: int) -> list[Grid]:
    """Return the grids of a pyramid: each level halves the axes with the smallest voxels, so voxels grow isotropic.

    The lower corner stays in its place; odd sizes round up.
    """
    grids = [grid]
    while levels is None or len(grids) < levels:
        last = grids[-1]
        finest = min(last.resolution)
        halve = [a.resolution < 2 * finest and a.size > 1 for a in last.axes]
        if not any(halve) or (levels is None and max(last.shape) <= largest):
            break
        axes = [
            Axis(-(-a.size // 2), a.resolution * 2, tidy(a.offset / 2)) if h else a
            for a, h in zip(last.axes, halve, strict=True)
        ]
        grids.append(Grid.from_axes(axes))
    return grids


def _shrunk(values: Array, held: IndexBox, maps: tuple[AxisMap, ...], box: IndexBox, method: str) -> Array:
    leaf: Expr = ArrayLeaf(np.ascontiguousarray(values))
    moved = tuple(AxisMap(m.a, m.b - o * m.c, m.c) for m, o in zip(maps, held.start, strict=True))
    return evaluate(Resampled(leaf, moved, method), box)  # type: ignore[arg-type]


def shrink_rgba(values: Array, held: IndexBox, maps: tuple[AxisMap, ...], box: IndexBox) -> Array:
    """Return averaged colours, each voxel weighted by its alpha: what is transparent has no colour to give."""
    alpha = values[..., 3].astype(np.float32)
    means = [_shrunk(values[..., i] * alpha, held, maps, box, "mean") for i in range(3)]
    weight = _shrunk(alpha, held, maps, box, "mean")
    safe = np.where(weight > 0, weight, 1)
    planes = [np.floor(m / safe + 0.5) for m in means] + [np.floor(weight + 0.5)]
    out: Array = np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
    return out
