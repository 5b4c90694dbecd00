"""Boxes that are copied from chunks equal slices of the whole array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageryxr.kernels.gather import chunk_table, gather


def edges_of(size: int, start: int, stop: int) -> list[int]:
    """Return the edges of the chunks that a box overlaps along an axis."""
    return list(range(start // size * size, stop + size, size))[: -(-stop // size) - start // size + 1]


def cut_into_chunks(whole: np.ndarray, edges, arrange) -> list[np.ndarray]:
    """Return the chunks of an array, ordered as in C, each in one of several memory layouts."""
    found = []
    for at in np.ndindex(*(len(along) - 1 for along in edges)):
        chunk = whole[(..., *(slice(along[i], along[i + 1]) for along, i in zip(edges, at, strict=True)))]
        layouts = (np.ascontiguousarray, np.asfortranarray, lambda c: c.copy()[..., ::-1].copy()[..., ::-1])
        found.append(layouts[arrange % 3 if arrange else len(found) % 3](chunk))
    return found


@given(st.data())
def test_parts_of_chunks_assemble_any_box(data):
    ndim = data.draw(st.integers(1, 5))
    lead = data.draw(st.tuples(*[st.integers(1, 3)] * (ndim - 3)))  # axes before z, y and x, such as time and channel
    sizes = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    shape = data.draw(st.tuples(*[st.integers(1, 9) if axis < ndim else st.just(1) for axis in range(3)]))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    dtype = data.draw(st.sampled_from(["u1", "i2", "f4", "u8", "c16", ">i4"]))
    edges = [edges_of(*axis) for axis in zip(sizes, start, stop, strict=True)]
    padded = [max(n, along[-1]) for n, along in zip(shape, edges, strict=True)]
    whole = np.arange(np.prod([*lead, *padded])).astype(dtype).reshape(*lead, *padded)
    pick = tuple(data.draw(st.integers(0, n - 1)) for n in lead)
    order = data.draw(st.permutations(range(3)))
    chunks = [c[pick].transpose(order) for c in cut_into_chunks(whole, edges, data.draw(st.integers(0, 3)))]
    numbers = np.arange(len(chunks)).reshape([len(along) - 1 for along in edges]).transpose(order)
    edges, start, stop = ([v[axis] for axis in order] for v in (edges, start, stop))
    if data.draw(st.booleans()):  # chunks of which only the first voxels are needed
        edges[0][-1] = stop[0]
    table = chunk_table([chunks[n] for n in numbers.ravel()], edges)
    found = gather(table, tuple(start), tuple(stop))
    np.testing.assert_array_equal(found, whole[pick].transpose(order)[tuple(map(slice, start, stop))])
    assert found.dtype == whole.dtype
    assert found.flags.c_contiguous


def test_chunks_without_memory_of_their_own_are_copied():
    chunks = [np.broadcast_to(np.uint16(7), (2, 3, 4)), np.full((2, 3, 4), 8, "u2")]
    found = gather(chunk_table(chunks, [[0, 2], [0, 3], [0, 4, 8]]), (1, 0, 1), (2, 2, 7))
    np.testing.assert_array_equal(found, [[[7, 7, 7, 8, 8, 8]] * 2])


@pytest.mark.parametrize(
    "box",
    [
        ((0, 0, 0), (2, 2, 3)), ((0, -1, 0), (2, 1, 2)), ((-1, 0, 0), (2, 2, 2)), ((0, 0, 2), (2, 2, 2)),
        ((0, 0, 1), (2, 2, 0)), ((0, 0), (2, 2)), ((0, 0, 0), (3, 2, 2)), ((0, 0, 0), (0, 2, 2)),
        ((0, 2, 0), (2, 3, 2)), ((0, 0, -2), (2, 2, -1)),
    ],
)  # fmt: skip
def test_boxes_without_voxels_or_outside_of_the_chunks_are_errors(box):
    table = chunk_table([np.zeros((2, 2, 2), "u1")], [[0, 2]] * 3)
    with pytest.raises(ValueError, match=r"extends beyond|zip"):
        gather(table, *box)


@pytest.mark.parametrize("edges", [[[0, 2, 3], [0, 2], [0, 2]], [[0, 3], [0, 2], [0, 2]], [[0, 2], [2, 2], [0, 2]], [[0, 2], [0, 2]]])  # fmt: skip
def test_chunks_that_do_not_fill_the_space_between_edges_are_errors(edges):
    with pytest.raises(ValueError, match=r"cover the space|unpack"):
        chunk_table([np.zeros((2, 2, 2), "u1")], edges)


def test_chunks_of_several_dtypes_raise():
    chunks = [np.zeros((2, 2, 2), "u1"), np.zeros((2, 2, 2), "u2")]
    with pytest.raises(ValueError, match="same dtype"):
        chunk_table(chunks, [[0, 2, 4], [0, 2], [0, 2]])
