"""Boxes of voxel indexes, compared with sets of indexes."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from imageryxr.core.bbox import IndexBox

INDEX, SIZE = st.integers(-9, 9), st.tuples(*[st.integers(1, 5)] * 3)
BOXES = st.builds(
    lambda start, shape: IndexBox(start, tuple(a + n for a, n in zip(start, shape, strict=True))),
    st.tuples(INDEX, INDEX, INDEX),
    SIZE,
)


def voxels(box):
    return set(product(*map(range, *box)))


@settings(max_examples=50, deadline=None)
@given(BOXES, SIZE)
def test_cells_are_the_boxes_of_a_grid_that_share_voxels_with_a_box(box, size):
    cells = list(box.cells(size))
    assert all(cell.shape == size and not any(a % s for a, s in zip(cell.start, size, strict=True)) for cell in cells)
    assert all(voxels(cell) & voxels(box) for cell in cells)
    assert set.union(*map(voxels, cells)) == voxels(box.round_out(size)) >= voxels(box)
    assert cells == sorted(cells)


@settings(max_examples=50, deadline=None)
@given(BOXES, st.integers(0, 2), INDEX, st.integers(1, 5))
def test_with_axis_replaces_the_range_of_one_axis(box, axis, low, size):
    found = box.with_axis(axis, low, low + size)
    kept = [range(a, b) for a, b in zip(*box, strict=True)]
    kept[axis] = range(low, low + size)
    assert voxels(found) == set(product(*kept))
