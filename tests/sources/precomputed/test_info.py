"""The parts of stored chunks that a box needs: they cover the box, and only the needed slices are decoded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.sources.base import Level
from imageryxr.sources.precomputed.info import level_spans, stored_chunks

sizes = st.tuples(*[st.integers(1, 9)] * 3)


@given(sizes, sizes, st.tuples(*[st.tuples(st.integers(0, 8), st.integers(1, 9))] * 3), st.integers(1, 12) | st.none())
def test_the_parts_of_stored_chunks_cover_a_box_exactly_once(shape, chunk, spans, depth):
    start = tuple(min(a, n - 1) for (a, _), n in zip(spans, shape, strict=True))
    stop = tuple(min(a + b, n) for a, (_, b), n in zip(start, spans, shape, strict=True))
    level = Level(mip=0, grid=Grid(shape, (8, 8, 40), (3, -5, 7)), chunks=chunk, encoding="raw")
    whole, out = np.arange(np.prod(shape)).reshape(shape), np.full(np.subtract(stop, start), -1)
    for part in stored_chunks(level, level_spans(level, IndexBox(start, stop), depth or 0)):
        stored = whole[part.box.slices()]
        assert stored.shape == part.shape
        (z0, y0, x0), (z1, y1, x1) = part.box
        assert part.name == f"{x0 + 3}-{x1 + 3}_{y0 - 5}-{y1 - 5}_{z0 + 7}-{z1 + 7}"
        first, last = part.slices
        assert first % (depth or chunk[0]) == 0
        assert last % (depth or chunk[0]) == 0 or last == part.shape[0]
        assert part.taken[0].start < (depth or chunk[0])  # blocks that the box does not touch are not decoded
        assert last - first - part.taken[0].stop < (depth or chunk[0])
        assert (out[part.place] == -1).all()
        out[part.place] = stored[first:last][part.taken]
    np.testing.assert_array_equal(out, whole[IndexBox(start, stop).slices()])
