"""Segmentations for the tests of `measure`, and slow reference measurements of small arrays."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import strategies as st

from tests.conftest import volume

IDS = np.array([0, 1, 7, 2**32 + 5, 2**53 + 1, 2**63, 2**64 - 2, 2**64 - 1], np.uint64)
RESOLUTION, OFFSET = (4.04, 8, 40), (-7, 3, -2)


@st.composite
def label_arrays(draw, dtype=np.uint64):
    """Draw labels (z, y, x) of few ids, some near the limit of uint64, in blobs with random noise."""
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 11)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    coarse = rng.integers(0, len(IDS), [-(-n // 3) for n in shape])
    labels = np.kron(coarse, np.ones((3, 3, 3), int))[: shape[0], : shape[1], : shape[2]]
    noisy = rng.random(shape) < draw(st.sampled_from([0, 0.2, 1]))
    return IDS[np.where(noisy, rng.integers(0, len(IDS), shape), labels)].astype(dtype)


chunkings = st.none() | st.fixed_dictionaries({d: st.integers(1, 11) for d in "zyx"})


def as_segmentation(labels, chunks=None, resolution=RESOLUTION, offset=OFFSET):
    """Return labels as a labelled array in memory, or of dask blocks if ``chunks`` is given."""
    seg = volume(labels, resolution, offset, layer_type="segmentation")
    return seg if chunks is None else seg.chunk(chunks)


def corners_nm(indexes, resolution=RESOLUTION, offset=OFFSET):
    """Convert indexes (z, y, x) to positions (x, y, z) in nm."""
    return [(o + i) * r for o, i, r in zip(offset, indexes[::-1], resolution, strict=True)]


def count_faces(labels):
    """Return the shared faces of each pair of ids as (axis, z, y, x), with the centre of the face in voxels."""
    found = defaultdict(list)
    for axis in range(3):
        for low in np.ndindex(*(n - (a == axis) for a, n in enumerate(labels.shape))):
            high = tuple(i + (a == axis) for a, i in enumerate(low))
            one, other = sorted((int(labels[low]), int(labels[high])))
            if 0 < one < other:
                found[one, other].append((axis, *(i + (1 if a == axis else 0.5) for a, i in enumerate(low))))
    return dict(sorted(found.items()))
