"""Exports of slices wider than memory is: each chunk is read once, and what was read waits on a local disk."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import dask
import numpy as np
import pytest

import imageryxr as ix
from tests.conftest import volume
from tests.export_jobs import Computed, array_of, digest

ROOT = Path(__file__).parents[1]
LOCK = threading.Lock()

# the least that a worker can have: its region gets 16 MB
LITTLE = "410 MB"
PLENTY = "8 GB"


class Counting(Computed):
    """A source that counts the chunks that are fetched of it."""

    fetched = Counter()  # noqa: RUF012

    def read(self, mip, box):
        inside = box.clip(self.levels[0].grid.box)
        ranges = [range(a // c, -(-b // c)) for a, b, c in zip(inside.start, inside.stop, self.chunks, strict=True)]
        with LOCK:
            self.fetched.update((self.layer_type, index) for index in product(*ranges))
        return super().read(mip, box)


def rereads():
    """Return how many times each chunk was fetched, of the source of which that is most."""
    counts = {kind: [n for (k, _), n in Counting.fetched.items() if k == kind] for kind in ("image", "segmentation")}
    return max(sum(n) / len(n) for n in counts.values() if n)


def drawn(shape=(40, 448, 512), chunks=(16, 64, 64), seg_chunks=None, outline=2, like=None):
    em = array_of(Counting(shape, chunks=chunks))
    seg = array_of(Counting(shape, chunks=seg_chunks or chunks, layer_type="segmentation"))
    if like is not None:
        em, seg = ix.regrid(em, like), ix.regrid(seg, like)
    made = ix.overlay(em, seg, outline=outline)
    made.attrs.pop("outline_axis", None)  # tests slice it along all axes
    return made


def planes(target, folder, axis):
    """Return the slices that independent readers find."""
    import tifffile
    from PIL import Image

    if "{" not in target:
        found = tifffile.imread(folder / target)
    else:
        read = tifffile.imread if target.endswith(".tif") else lambda path: np.asarray(Image.open(path))
        found = np.stack([read(path) for path in sorted((folder).glob("*" + Path(target).suffix))])
    return np.moveaxis(found, 0, axis)


CASES = {
    "an overlay": (lambda: drawn(), 1.0),
    "no outline": (lambda: drawn(outline=None), 1.0),
    "chunks of two depths": (lambda: drawn(seg_chunks=(4, 32, 128)), 1.0),
    "an offset": (lambda: drawn((48, 512, 512)).imagery.crop(ix.BBox((10, 12, 12), (500, 500, 50), resolution=(8, 8, 40))), 1.0),
    "half as fine": (lambda: drawn((40, 512, 640), like=(16, 16, 80)), 1.0),
    "finer": (lambda: drawn((33, 192, 192), like=(8 / 3, 8 / 3, 40 / 3), chunks=(11, 64, 64), outline=None), 1.15),
}  # fmt: skip
ALONG = {"z{z:03d}.png": 0, "y{y:03d}.tif": 1, "x{x:03d}.png": 2, "one.tif": 0, "one.ome.tif": 0}


@pytest.mark.parametrize("target", ALONG)
@pytest.mark.parametrize("case", CASES)
def test_every_voxel_and_each_chunk_once(tmp_path, case, target):
    make, most = CASES[case]
    array = make()
    if case == "finer" and target != "z{z:03d}.png":
        array = array.imagery.crop(ix.BBox((40, 60, 240), (1540, 1560, 1400), resolution=(1, 1, 1)))
    options = {"memory": LITTLE, "workers": 2, "square": False} if "{" in target else {"memory": LITTLE, "workers": 2}
    plan = ix.plan_export(array, tmp_path / "a" / target, **options)
    assert plan.scratch is not None
    assert all(reads.rereads <= 1.15 for reads in plan.reads), plan
    Counting.fetched.clear()
    ix.export(array, tmp_path / "a" / target, **options)
    assert rereads() <= most
    assert plan.requests == Counting.fetched.total()
    np.testing.assert_array_equal(planes(target, tmp_path / "a", ALONG[target]), array.compute().values)


def test_the_same_film(tmp_path):
    import av

    array = drawn()
    ix.export(array, tmp_path / "a" / "o.mp4", memory=PLENTY, scratch=False)
    Counting.fetched.clear()
    plan = ix.plan_export(array, tmp_path / "b" / "o.mp4", memory=LITTLE)
    ix.export(array, tmp_path / "b" / "o.mp4", memory=LITTLE)
    assert plan.scratch is not None
    assert rereads() == 1
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    with av.open(str(tmp_path / "b" / "o.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 40
    assert np.abs(frames[7].astype(int) - array.isel(z=7).values[..., :3]).mean() < 8
