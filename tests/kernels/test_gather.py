"""Boxes that are copied from chunks, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageryxr.kernels.gather import chunk_table, gather


def split(size: int, start: int, stop: int) -> tuple[range, np.ndarray]:
    """Return the chunks along an axis that a box overlaps, and their parts in it."""
    numbers = range(start // size, -(-stop // size))
    parts = [(max(start, i * size), min(stop, (i + 1) * size), i * size) for i in numbers]
    return numbers, np.array([(low - first, high - first, low - start) for low, high, first in parts])


def cut(whole: np.ndarray, sizes, numbers, arrange) -> list[np.ndarray]:
    """Return chunks in C order, in several layouts of memory."""
    found = []
    for at in np.ndindex(*map(len, numbers)):
        first = [numbers[axis][i] * size for axis, (i, size) in enumerate(zip(at, sizes, strict=True))]
        chunk = whole[tuple(slice(a, a + size) for a, size in zip(first, sizes, strict=True))]
        layouts = (np.ascontiguousarray, np.asfortranarray, lambda c: c.copy()[..., ::-1].copy()[..., ::-1])
        found.append(layouts[arrange % 3 if arrange else len(found) % 3](chunk))
    return found


@given(st.data())
def test_parts_of_chunks_assemble_any_box(data):
    ndim = data.draw(st.integers(1, 5))
    sizes = data.draw(st.tuples(*[st.integers(1, 9)] * ndim))
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * ndim))
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
    for axis in range(ndim - 3):  # as the channel and the time of an image
        stop[axis] = start[axis] + 1
    dtype = data.draw(st.sampled_from(["u1", "i2", "f4", "u8", "c16", ">i4"]))
    whole = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    order = data.draw(st.permutations(range(ndim)))
    whole, sizes, start, stop = whole.transpose(order), *([v[a] for a in order] for v in (sizes, start, stop))
    numbers, axes = zip(*map(split, sizes, start, stop), strict=True)
    chunks = cut(whole, sizes, numbers, data.draw(st.integers(0, 3)))
    out = np.empty(np.subtract(stop, start), dtype)
    gather(chunk_table(chunks, list(map(len, numbers))), axes, out)
    np.testing.assert_array_equal(out, whole[tuple(map(slice, start, stop))])


def test_chunks_without_memory_of_their_own_are_copied():
    chunks = [np.broadcast_to(np.uint16(7), (2, 3, 4)), np.full((2, 3, 4), 8, "u2")]
    out = np.zeros((1, 2, 6), "u2")
    gather(chunk_table(chunks, [1, 1, 2]), [np.array([[1, 2, 0]]), np.array([[0, 2, 0]]), np.array([[1, 4, 0], [0, 3, 3]])], out)  # fmt: skip
    np.testing.assert_array_equal(out, [[[7, 7, 7, 8, 8, 8]] * 2])


INSIDE = [[0, 2, 0]]


@pytest.mark.parametrize(
    "axes",
    [
        (INSIDE, INSIDE, [[0, 3, 0]]), (INSIDE, [[-1, 1, 0]], INSIDE), ([[0, 2, 1]], INSIDE, INSIDE),
        (INSIDE, INSIDE, [[0, 2, -1]]), (INSIDE, INSIDE, [[0, 2, 0], [0, 1, 0]]), (INSIDE, INSIDE), (INSIDE, INSIDE, [[1, 0, 0]]),
        (INSIDE, INSIDE, [[0, 1, 0]]), (INSIDE, INSIDE, [[1, 2, 1]]), (INSIDE, INSIDE, [[2, 2, 0]]),
    ],
)  # fmt: skip
def test_parts_outside_of_a_chunk_or_of_the_box_are_errors(axes):
    table, out = chunk_table([np.zeros((2, 2, 2), "u1")], [1, 1, 1]), np.zeros((2, 2, 2), "u1")
    with pytest.raises(ValueError, match=r"cover|zip"):
        gather(table, [np.array(spans) for spans in axes], out)


def test_a_box_without_voxels_is_an_error_and_nothing_is_written():
    table = chunk_table([np.full((1, 1, 4, 2, 2), 7, "u1")], [1] * 5)
    memory = np.zeros(16, "u1")
    axes = [np.array([span]) for span in ([0, 1, 0], [0, 1, 0], [3, 3, 0], [0, 2, 0], [0, 2, 0])]
    with pytest.raises(ValueError, match="cover the box"):
        gather(table, axes, np.ndarray((1, 1, 0, 2, 2), "u1", memory))
    assert not memory.any()


def test_chunks_or_boxes_of_other_types_are_errors():
    chunks, axes = [np.zeros((2, 2, 2), "u1"), np.zeros((2, 2, 2), "u2")], [np.array(INSIDE)] * 3
    with pytest.raises(ValueError, match="several types"):
        chunk_table(chunks, [2, 1, 1])
    table = chunk_table(chunks[:1], [1, 1, 1])
    for out in (np.zeros((2, 2, 2), "u2"), np.zeros((2, 2, 2), "u1", order="F"), np.zeros((2, 2, 4), "u1")[..., ::2]):
        with pytest.raises(ValueError, match="cannot be copied"):
            gather(table, axes, out)
    with pytest.raises(ValueError, match="longer than 1"):
        gather(chunk_table([np.zeros((2,) * 4, "u1")], [1] * 4), [np.array(INSIDE)] * 4, np.zeros((2,) * 4, "u1"))
