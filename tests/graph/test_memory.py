"""Computing a stack takes the memory of the blocks in progress, however many slices the stack has."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

CODE = """
import os, resource, sys
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
    seg = ds.segmentation
    picture = ix.overlay(ds.image, seg, outline=ix.Outline(3, side="in", merge=False))
    if kind == "layers":
        picture = ix.composite(picture, ix.outline(seg, width=3), ix.overlay(None, ix.select_ids(seg, [1, 2])))
    if kind == "shrunk":
        picture = ix.regrid(ix.open_segmentation(labels), (32, 32, 80), method="mode")
    blocks = [dask.delayed(np.size)(b) for b in picture.data.to_delayed().ravel()]
    with dask.config.set(scheduler="threads", num_workers=threads):
        dask.compute(*blocks)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

kind = sys.argv[1]
before = peak(2, 1)  # compiles and imports
for slices in sys.argv[2:]:
    if not os.fork():
        print(max(0, peak(int(slices), 2) - before), flush=True)
        os._exit(0)
    os.wait()
"""


def memory_growth(kind, short, long):
    """Return the increases of peak memory by a short and by a long stack, each in a fork of the same process."""
    command = [sys.executable, "-c", CODE, kind, str(short), str(long)]
    return map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def block_bytes(shape, *, halo, ids, image, layers=1):
    """Return the memory that one thread needs to draw one block.

    The ids of a block are read with their halo; the image and the picture have the size of the block; drawing outlines
    needs about 16 bytes per pixel of a slice. There is one picture per layer, and one of their composite.
    """
    z, y, x = (n + 2 * h for n, h in zip(shape, halo, strict=True))
    pictures = layers if layers == 1 else layers + 1
    return z * y * x * ids + math.prod(shape) * (image + 4 * pictures) + 16 * y * x


BLOCK = (16, 512, 512)
BYTES = {
    "overlay": block_bytes(BLOCK, halo=(0, 3, 3), ids=8, image=1),
    "layers": block_bytes(BLOCK, halo=(0, 3, 3), ids=8 + 8, image=1, layers=3),
    # The voxels that are read, and the downsampled result.
    "shrunk": 8 * math.prod(BLOCK) + 8 * math.prod(BLOCK) // 32,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BYTES)
def test_memory_of_a_stack_is_that_of_the_blocks_in_flight(kind):
    short, long = memory_growth(kind, 32, 128)
    bound = 2 * BYTES[kind]
    assert long <= 1.25 * bound
    assert long <= 1.2 * short + 20e6
