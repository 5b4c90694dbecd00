"""Colours of annotations by columns of times, of ids that became floats, and of empty tables."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import imageryxr as ix
from imageryxr.errors import LayerError
from tests.support.annotation_oracle import picture

TIMES = pd.to_datetime(["2020-01-01T00:00", None, "2021-01-01T12:30"])


def points(**columns):
    return ix.as_annotations({"x": [1, 2, 3], "y": [1, 2, 3], "z": [1, 2, 3], **columns})


def names(drawn):
    return list(json.loads(drawn.attrs["drawn_colors"])[0]["ids"])


def test_times_are_named_as_times_in_the_legend():
    table = points(made=TIMES, age=pd.to_timedelta(["1s", None, "3s"]))
    expected = ["2020-01-01T00:00:00", "2021-01-01T12:30:00"]
    assert names(ix.annotate(picture(), table, color="made")) == expected
    colors = {"2020-01-01": "red", TIMES[2]: "blue"}
    assert names(ix.annotate(picture(), table, color="made", colors=colors)) == expected
    assert names(ix.annotate(picture(), table, color="age")) == ["1 seconds", "3 seconds"]


def test_ids_that_where_has_made_floats_keep_their_colours_or_raise():
    table = points(pre_id=[5, 6, 7])
    chosen = table.where(table.x > 1, drop=True)
    assert chosen.pre_id.dtype == np.float64
    drawn = ix.annotate(picture(), chosen, color="pre_id")
    exact = ix.annotate(picture(), table.isel(annotation=[1, 2]), color="pre_id")
    np.testing.assert_array_equal(drawn, exact)
    assert drawn.attrs["annotation_ids"] == exact.attrs["annotation_ids"]
    large = points(pre_id=[5, 2**64 - 1, 7])
    with pytest.raises(LayerError, match="have lost digits; .* select rows of a Dataset with isel"):
        ix.annotate(picture(), large.where(large.x > 1, drop=True), color="pre_id")


@pytest.mark.parametrize("marker", ["circle", "ring", "cross"])
def test_a_table_without_rows_may_have_a_column_of_sizes(marker):
    table = points(made=TIMES, diameter=[4.0, 5.0, 6.0], kind=["a", "b", "a"])
    options = {"marker": marker, "size": "diameter", "labels": "kind"}
    for color in ("made", "diameter", "kind"):
        empty = ix.annotate(picture(), table.isel(annotation=[]), color=color, **options)
        np.testing.assert_array_equal(empty, picture())


def test_strokes_of_a_column_of_sizes_do_not_depend_on_the_number_of_rows():
    table = ix.as_annotations({"x": [90, 1e6], "y": [90, 1e6], "z": [9, 9], "diameter": [20.0, 20.0]})
    both, one = (ix.annotate(picture(), t, size="diameter", marker="ring") for t in (table, table.isel(annotation=[0])))
    np.testing.assert_array_equal(one, both)
