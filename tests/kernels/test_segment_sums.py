"""Tests of the sums of grey values of huge segments against Python's integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imageryxr.kernels.segment_sums import _exact_sums

_counts = st.lists(st.integers(1, 2**29), min_size=1, max_size=4)


def _as_int64(number):
    return (number + 2**63) % 2**64 - 2**63


@given(counts=_counts, values=st.lists(st.integers(-(2**15), 2**16 - 1), min_size=4, max_size=4))
def test_the_deviation_of_a_huge_segment_is_exact_although_its_sums_exceed_int64(counts, values):
    pairs = list(zip(counts, values, strict=False))
    voxels, total = sum(counts), sum(n * v for n, v in pairs)
    squares = sum(n * v * v for n, v in pairs)
    found = np.array([[_as_int64(total), _as_int64(squares), 0, 0]], np.int64)
    grey = _exact_sums(np.array([voxels], np.int64), found, np.dtype(np.uint16))
    expected = Fraction(squares) - Fraction(total * total, voxels)
    np.testing.assert_allclose(grey.deviation[0], float(expected), rtol=1e-14, atol=0)
    np.testing.assert_allclose(grey.reference[0] + grey.total[0] / voxels, float(Fraction(total, voxels)), rtol=1e-14)
