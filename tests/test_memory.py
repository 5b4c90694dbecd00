"""What a stack takes in memory while it is computed: blocks in flight, however long it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from imageryxr.lazy import block_bytes

CODE = """
import resource, sys
import dask, numpy as np
import imageryxr as ix

class Made:
    name, attrs = "made://here", {}

    def __init__(self, layer_type, dtype, slices):
        self.layer_type, self.dtype = layer_type, np.dtype(dtype)
        self.levels = (ix.Level(0, ix.Grid((slices, 1024, 1024), (8, 8, 40), (0, 0, 0)), (16, 512, 512)),)

    def check(self, mip):
        pass

    def read(self, mip, box):
        out = np.empty(box.shape, self.dtype)
        out[:] = (np.arange(out.shape[2]) // 40 + 1).astype(self.dtype)
        return out

    def __dask_tokenize__(self):
        return (self.layer_type, str(self.dtype), self.levels)

    __hash__ = object.__hash__

def peak(slices, threads):
    image, labels = Made("image", "uint8", slices), Made("segmentation", "uint64", slices)
    ds = ix.align(ix.open_image(image), ix.open_segmentation(labels))
    picture = ix.overlay(ds.image, ds.segmentation, outline=ix.Outline(3, side="in", merge=False))
    blocks = [dask.delayed(np.size)(b) for b in picture.data.to_delayed().ravel()]
    with dask.config.set(scheduler="threads", num_workers=threads):
        dask.compute(*blocks)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

threads = int(sys.argv[2])
peak(1, 1)  # what is compiled and imported the first time
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, peak(int(sys.argv[1]), threads))
"""


def grown(slices, threads):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(slices), str(threads)], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    return after - before


@pytest.mark.slow
def test_a_stack_takes_what_the_blocks_in_flight_take():
    short, long = grown(64, 2), grown(512, 2)
    # The formula of `block_bytes`: ids, image and picture of a block with its halo, and scratch of a slice or so.
    bound = 2 * block_bytes((16, 512, 512), halo=(0, 3, 3), ids=8, image=1)
    assert long <= 1.25 * bound
    assert long <= 1.2 * short + 20e6


def test_the_formula():
    assert block_bytes((16, 512, 512), ids=8, image=1) == 16 * 512 * 512 * 13 + 16 * 512 * 512
    wide = block_bytes((1, 100, 100), halo=(0, 10, 10), ids=4, image=0)
    assert wide == 120 * 120 * 4 + 100 * 100 * 4 + 16 * 120 * 120
