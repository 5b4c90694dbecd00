"""Exports that tests run in other processes, and the comparison of their results."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr

import imageryxr as ix
from imageryxr.core.grid import Grid
from imageryxr.export.store.local import Folder
from imageryxr.graph.expr import LevelLeaf
from imageryxr.graph.labelled import lazy_array
from imageryxr.sources.base import Level
from tests.support.processes import forked_workers

TARGETS = {
    "omezarr": ("o.ome.zarr", {"chunks": (2, 16, 16), "levels": 2}),
    "sharded": ("s.ome.zarr", {"chunks": (2, 8, 8), "shards": (2, 16, 16), "levels": 2}),
    "zarr2": ("old.zarr", {"chunks": (2, 16, 16), "version": "0.4"}),
    "precomputed": ("precomputed://{folder}/pc", {"chunks": (4, 16, 16)}),
    "png": ("stack/z{z:03d}.png", {}),
    "tiffs": ("tiffs/y{y:03d}.tif", {"square": False}),
    "tiff": ("one.tif", {}),
    "ometiff": ("one.ome.tif", {}),
    "mp4": ("film.mp4", {"crf": 0}),  # lossless, because x264 does not always encode equal frames to equal bytes
    "webm": ("film.webm", {}),
}


@dataclass(frozen=True)
class Computed:
    """A source of any size whose voxels are computed from their position, optionally with slow reads."""

    shape: tuple[int, int, int] = (12, 48, 64)
    seconds: float = 0.0
    chunks: tuple[int, int, int] = (4, 16, 16)
    layer_type: str = "image"
    seed: int = 0
    fail_above: int = 10**9
    """Reading a box that starts at this z or a higher one fails."""

    name = "computed://ramp"
    attrs = {}  # noqa: RUF012

    @property
    def dtype(self):
        return np.dtype(np.uint8 if self.layer_type == "image" else np.uint64)

    @cached_property
    def levels(self):
        return (Level(0, Grid(self.shape, (8.0, 8.0, 40.0), (3, 5, 7)), self.chunks),)

    def check(self, mip):
        pass

    def read(self, mip, box):
        time.sleep(self.seconds)
        if box.start[0] >= self.fail_above:
            raise ix.errors.ChunkReadError(f"could not read {self.name}: z={box.start[0]} is on a broken disk")
        z, y, x = np.ogrid[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))]
        values = (z * 31 + y * 7 + x * 3 + (y // 5) * (x // 7) + self.seed) % 251
        if self.layer_type == "segmentation":
            values = (z // 4 + y // 9 + x // 11) % 5 * (2**60 + 1)
        values = np.broadcast_to(values, box.shape)
        inside = np.ones(box.shape, bool)
        for axis, n in enumerate(self.shape):
            index = np.arange(box.start[axis], box.stop[axis])
            inside &= ((index >= 0) & (index < n)).reshape([-1 if a == axis else 1 for a in range(3)])
        return np.where(inside, values, 0).astype(self.dtype)

    def __dask_tokenize__(self):
        return ("computed", self.shape, self.layer_type, self.seed)


def array_of(source):
    return lazy_array(LevelLeaf(source, 0), source.levels[0].grid, {"layer_type": source.layer_type}, source.layer_type)


def picture(seconds=0.0, seed=0, **kwargs):
    """Return an overlay, each read of which takes some seconds."""
    em = array_of(Computed(seconds=seconds, seed=seed, **kwargs))
    seg = array_of(Computed(layer_type="segmentation", **{k: v for k, v in kwargs.items() if k == "shape"}))
    drawn = ix.overlay(em, seg, alpha=0.4, outline=2)
    del drawn.attrs["outline_axis"]  # tests slice the overlay along all axes
    return drawn


def place(kind, folder):
    target, options = TARGETS[kind]
    return (target.replace("{folder}", str(folder)) if "://" in target else f"{folder}/{target}"), options


def run(kind, folder, *, seed=0, seconds=0.0, region=1 << 11, **kwargs):
    """Export in small regions, in this process."""
    sys.modules["imageryxr.export.plan.regions"].START_VOXELS = region
    target, options = place(kind, folder)
    if "chunks" in options and region > 1 << 12:
        options = {**options, "chunks": (4, 32, 32)}
    return ix.export(picture(seconds, seed), target, memory=None, **{"workers": 2, **options, **kwargs})


@contextmanager
def cluster_of(workers, **options):
    """Return a client of worker processes that can import the sources of the tests."""
    from distributed import Client, LocalCluster

    options = {"threads_per_worker": 1, "dashboard_address": None, **options}
    with forked_workers(), LocalCluster(n_workers=workers, **options) as cluster, Client(cluster) as client:
        yield client


@dataclass(frozen=True, eq=False)
class DecodedVideo:
    """The frames of a video. Two videos are equal if their frames differ by little more than compression changes."""

    frames: np.ndarray

    @classmethod
    def of(cls, data):
        import av

        with av.open(io.BytesIO(data)) as film:
            return cls(np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]))

    def __eq__(self, other):
        if not isinstance(other, DecodedVideo) or self.frames.shape != other.frames.shape:
            return False
        return np.abs(self.frames.astype(int) - other.frames).mean(axis=(1, 2, 3)).max() < 1

    __hash__ = None


def file_digest(name, data):
    """Return a value that is equal for files of equal content: a checksum, or the decoded frames of a video."""
    return DecodedVideo.of(data) if name.endswith((".mp4", ".webm")) else hashlib.sha256(data).hexdigest()


def digest(folder):
    """Return a digest of all files below a folder, without the bookkeeping."""
    sums = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and ".manifest" not in name:
            sums[name] = file_digest(name, path.read_bytes())
    return sums


# ---------------------------------------------------------------------------------------------------------
# killed exports: the process that runs these functions imports everything once and forks each export


def fork(act):
    """Run a function in a child process and return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        act()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def has_succeeded(pid):
    _, status = os.waitpid(pid, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def was_killed(pid):
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def kill_at_random(kind, folder, times, seed):
    """Kill exports at random times, some of them twice; fail unless each resumed result equals an undisturbed one."""
    rng = random.Random(seed)
    # The first run compiles the kernels. If `takes` included that time, most exports would end before they are killed.
    assert has_succeeded(fork(lambda: run(kind, f"{folder}/compiled", seconds=0.02, region=1 << 12)))
    began = time.monotonic()
    assert has_succeeded(fork(lambda: run(kind, f"{folder}/whole", seconds=0.02, region=1 << 12)))
    takes = time.monotonic() - began
    truth = digest(f"{folder}/whole")
    kills = 0
    for attempt in range(times):
        at = f"{folder}/{attempt}"
        for _ in range(1 + attempt % 2):
            pid = fork(lambda at=at: run(kind, at, seconds=0.02, region=1 << 12))
            time.sleep(rng.uniform(0, takes))
            os.kill(pid, signal.SIGKILL)
            kills += was_killed(pid)
        assert has_succeeded(fork(lambda at=at: run(kind, at, region=1 << 12)))
        assert digest(at) == truth, f"{kind} differs after it was killed and resumed (attempt {attempt})"
        shutil.rmtree(at)
    assert kills > times // 4, f"only {kills} of {times} exports were killed before they ended"


CALLS = ("rename", "replace", "unlink", "write", "fsync", "rmdir", "mkdir", "open")


def die_at_call(number):
    """Let this process kill itself at the call that follows `number` calls of functions that change a disk."""
    left = [number]

    def dying_call(name):
        original = getattr(os, name)

        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, dying_call(name))


def kill_at_every_call(kind, folder, step):
    """Kill an export that replaces another one at each call that changes the disk; check the files."""
    assert has_succeeded(fork(lambda: run(kind, f"{folder}/old", seed=1, region=1 << 14)))
    assert has_succeeded(fork(lambda: run(kind, f"{folder}/new", region=1 << 14)))
    old, new = digest(f"{folder}/old"), digest(f"{folder}/new")
    assert old != new
    number, mixed = 0, 0
    while True:
        at = f"{folder}/{number}"
        assert has_succeeded(fork(lambda at=at: run(kind, at, seed=1, region=1 << 14)))

        def export_and_die(at=at, number=number):
            die_at_call(number)
            run(kind, at, overwrite=True, workers=1, region=1 << 14)

        if not was_killed(fork(export_and_die)):
            assert number > 20
            assert digest(at) == new
            print(f"{number} calls; after {mixed} of the kills, files of both results were there")
            return
        found = digest(at)
        if found not in (old, new):
            # a kill between two renames leaves files of both results, but never any other file
            assert all(found[name] in (old.get(name), new.get(name)) for name in found), (
                f"a file is neither old nor new after a kill at call {number}"
            )
            mixed += 1
        assert has_succeeded(fork(lambda at=at, again=found != new: run(kind, at, overwrite=again, region=1 << 14)))
        assert digest(at) == new, f"{kind} differs after a kill at call {number}"
        number += step


def level_memory(folder, cases):
    """Print for each case the peak memory of deriving a level, the planned memory, and the bytes of its voxels."""
    for number, (options, ids) in enumerate(cases):
        assert has_succeeded(fork(lambda at=f"{folder}/{number}", o=options, i=ids: _measure_level(at, o, i)))


def _measure_level(folder, options, ids):
    sys.modules["imageryxr.export.targets.pyramid"].PART_VOXELS = 1 << 16
    layer = np.random.default_rng(2).integers(0, 255, (64, 512, 512), np.uint8).astype(np.uint64 if ids else np.uint8)
    grid = Grid(layer.shape, (8, 8, 8), (0, 0, 0))
    attrs = {"resolution": grid.resolution, "layer_type": "segmentation" if ids else "image"}
    array = xr.DataArray(layer, dims=("z", "y", "x"), coords=grid.coords(), attrs=attrs)
    ix.export(array, f"{folder}/o.zarr", levels=2, **options)
    target = ix.plan_export(array, f"{folder}/p.zarr", levels=2, **options).target
    box, place = target.later[0].largest(), Folder(f"{folder}/o.zarr", "")
    target.derive(1, box, place)
    tracemalloc.start()
    target.derive(1, box, place)
    _, peak = tracemalloc.get_traced_memory()
    print(json.dumps([peak, target.derived_bytes(1, box), box.voxels * layer.itemsize]), flush=True)
