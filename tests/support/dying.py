"""A program that exports a stack into a bucket and kills itself after some slices."""

from __future__ import annotations

DYING = """
import os, signal, sys
from tests.support.slices import export
import obstore
put, count = obstore.put, 0

def dying(store, key, *args, **kwargs):
    global count
    count += key.endswith(".png")
    if count > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return put(store, key, *args, **kwargs)

obstore.put = dying
sys.modules["imageryxr.export.plan.slab_regions"].BRICK_VOXELS = 1
export(sys.argv[1])
"""
