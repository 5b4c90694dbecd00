"""Whole numbers of a column are shown without decimals, and missing values as empty texts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from imageryxr.core.annotation_values import column_texts, plain_values


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (np.array([1.0, np.nan, 3]), ["1", "", "3"]),
        ([1.0, None, 3.0], ["1", "", "3"]),
        (np.array([1.5, 2]), ["1.5", "2.0"]),
        (np.array([2**64 - 1], np.uint64), [str(2**64 - 1)]),
        (np.array([1e300, np.inf]), ["1e+300", "inf"]),
        (np.array(["a", None, ""], object), ["a", "", ""]),
        (np.array(["a", "b"]), ["a", "b"]),
        (pd.to_datetime(["2020-01-01", None]), ["2020-01-01T00:00:00", ""]),
        (pd.to_datetime(["2020-01-01T00:00:00.5"]), ["2020-01-01T00:00:00.500000"]),
        (np.array(["2020-01-01", "NaT"], "M8[ns]"), ["2020-01-01T00:00:00", ""]),
        (np.array(["2020-01-01T00:00:00.5"], "M8[ms]"), ["2020-01-01T00:00:00.500"]),
        (pd.array([True, None], "boolean"), ["True", ""]),
        (np.array([]), []),
    ],
)
def test_columns_become_texts_without_a_change_of_value(values, texts):
    assert column_texts(values) == texts


def test_plain_values_of_a_column_of_whole_numbers_are_ints():
    assert plain_values(np.array([2.0, np.nan])) == [2, None]
    assert isinstance(plain_values(np.array([2.0]))[0], int)
