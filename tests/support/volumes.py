"""An image and segmentations in memory that the tests of many functions share."""

from __future__ import annotations

import numpy as np

import imageryxr as ix
from imageryxr.graph.expr import LevelLeaf
from imageryxr.graph.labelled import lazy_array
from imageryxr.sources.memory import memory_source
from tests.conftest import volume

IDS = np.array([0, 1, 5, 2**53 + 1, 2**63 + 7, 2**64 - 1], np.uint64)


rng = np.random.default_rng(3)


IMAGE = volume(rng.integers(0, 255, (3, 40, 52), dtype=np.uint8), (8, 8, 40), (11, -5, 2), layer_type="image")


BLOBS = np.kron(rng.integers(0, 6, (3, 4, 6)), np.ones((1, 5, 5), int))[:, :20, :26]


SEG = volume(IDS[BLOBS], (16, 16, 40), (5, -3, 2), layer_type="segmentation")


FINE = ix.regrid(SEG, IMAGE)


def as_source(da):
    """Return a lazy array whose source is an array in memory."""
    source = memory_source(da, da.attrs["layer_type"])
    return lazy_array(LevelLeaf(source, 0), source.grid, da.attrs, da.attrs["layer_type"])
