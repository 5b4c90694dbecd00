"""Centres of cutouts are read from tables, arrays and annotations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import imageryxr as ix
from imageryxr.errors import BoxError, OptionError
from tests.conftest import volume
from tests.support.volumes import IDS

LABELS = IDS[np.random.default_rng(11).integers(0, 6, (7, 20, 23))]
VOLUME = volume(LABELS, (8, 8, 40), (-9, 4, -3), layer_type="segmentation")


def test_columns_of_the_table_become_coordinates_with_exact_ids():
    table = pd.DataFrame({"x": [0, 8], "y": [60, 70], "z": [0, 9], "pre_id": IDS[-2:], "kind": ["a", "b"]})
    found = ix.cutouts(VOLUME, table, (4, 4, 1))
    assert found.pre_id.values.tolist() == IDS[-2:].tolist()
    assert found.pre_id.dtype == np.uint64
    assert found.kind.dims == ("cutout",)
    assert found.isel(cutout=1).kind.item() == "b"
    triples = {"pt_position": [[0, 60, 0], [8, 70, 9]], "id": [5, 2**64 - 1]}
    again = ix.cutouts(VOLUME, triples, (4, 4, 1))
    np.testing.assert_array_equal(again, found)
    assert again.id.values.tolist() == [5, 2**64 - 1]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (pd.Index(["a", "b"], name="synapse"), {"synapse": ["a", "b"]}),
        (pd.Index([7, 3]), {"index": [7, 3]}),
        (pd.Index(np.array([3, 2**64 - 1], np.uint64), name="pre_id"), {"pre_id": [3, 2**64 - 1]}),
        (
            pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["cell", None]),
            {"cell": ["a", "a"], "level_1": [1, 2]},
        ),
        (pd.RangeIndex(2), {}),
        (pd.Index([4, 5], name="kind"), {"kind": ["u", "v"], "kind_index": [4, 5]}),
    ],
)
def test_the_index_of_a_table_is_a_column(index, expected):
    table = pd.DataFrame({"x": [0, 8], "y": [60, 70], "z": [0, 9]}, index=index)
    if index.name == "kind":
        table["kind"] = ["u", "v"]
    found = ix.cutouts(VOLUME, table, (4, 4, 1))
    points = ix.as_annotations(table)
    columns = {*found.coords} - {"cutout", "z", "y", "x", "center_x", "center_y", "center_z"}
    assert columns == {*expected}
    for name, values in expected.items():
        assert found[name].values.tolist() == points[name].values.tolist() == values


@pytest.mark.parametrize("text", ["{}, {}, {}", "{} {} {}", "{},{},{}", " ({}, {}, {}) "])
def test_positions_that_are_text_are_read(text):
    expected = ix.cutouts(VOLUME, [(9.5, 60, 0), (8, 70, 9)], (4, 4, 1))
    texts = [text.format(9.5, 60, 0), text.format(8, 70, 9)]
    for centers in ({"pt_position": texts}, pd.DataFrame({"pt_position": texts}), texts):
        np.testing.assert_array_equal(ix.cutouts(VOLUME, centers, (4, 4, 1)), expected)
    np.testing.assert_array_equal(ix.cutouts(VOLUME, texts[0], (4, 4, 1)), expected[:1])


def test_text_in_other_columns_is_not_read_as_positions():
    table = {"x": [0], "y": [60], "z": [0], "size": ["1,234,567"], "note": ["1 2 3"]}
    found = ix.cutouts(VOLUME, table, (4, 4, 1))
    assert (found["size"].item(), found.note.item()) == ("1,234,567", "1 2 3")


def test_annotations_are_centres_and_boxes_lie_around_their_middles():
    points = ix.as_annotations({"x": [0, 8], "y": [60, 70], "z": [0, 9]})
    np.testing.assert_array_equal(
        ix.cutouts(VOLUME, points, (4, 4, 1)), ix.cutouts(VOLUME, [[0, 60, 0], [8, 70, 9]], (4, 4, 1))
    )
    boxes = ix.as_annotations(np.array([[0, 60, 0]]), end=np.array([[16, 80, 20]]), annotation_type="box")
    np.testing.assert_array_equal(ix.cutouts(VOLUME, boxes, (4, 4, 1)), ix.cutouts(VOLUME, (8, 70, 10), (4, 4, 1)))
    with pytest.raises(OptionError, match="omit resolution"):
        ix.cutouts(VOLUME, points, (4, 4, 1), resolution=(8, 8, 40))


@pytest.mark.parametrize("count", [2, 3])
def test_several_related_segments_of_an_annotation_become_numbered_columns(count):
    points = ix.as_annotations({"x": [0, 8], "y": [60, 70], "z": [0, 9]})
    post = IDS[np.arange(1, 1 + 2 * count) % 6].reshape(2, count)
    points["post"] = (("annotation", "post"), post)
    found = ix.cutouts(VOLUME, points, (4, 4, 1))
    np.testing.assert_array_equal(found, ix.cutouts(VOLUME, [[0, 60, 0], [8, 70, 9]], (4, 4, 1)))
    for i in range(count):
        assert found[f"post_{i}"].values.tolist() == post[:, i].tolist()
    assert "post_x" not in found.coords


def test_the_advice_in_the_error_about_several_position_columns_works():
    table = {"id": [4], "pre_pt_position": [[9, 23, 1]], "post_pt_position": [[8, 22, 1]]}
    with pytest.raises(OptionError, match=r"2 columns of positions, 'pre_pt_position', 'post_pt_position'") as caught:
        ix.cutouts(VOLUME, table, (4, 4, 1), resolution=(8, 8, 40))
    assert "ix.as_annotations(table, position='pre_pt_position', resolution=(8, 8, 40))" in str(caught.value)
    points = ix.as_annotations(table, position="pre_pt_position", resolution=(8, 8, 40))
    expected = ix.cutouts(VOLUME, [(9, 23, 1)], (4, 4, 1), resolution=(8, 8, 40))
    np.testing.assert_array_equal(ix.cutouts(VOLUME, points, (4, 4, 1)).values, expected.values)


def test_a_structured_array_is_read_as_a_table():
    table = np.array([((9, 23, 1), 7)], [("pt_position", float, 3), ("pre_id", np.uint64)])
    found = ix.cutouts(VOLUME, table, (4, 4, 1), resolution=(8, 8, 40))
    np.testing.assert_array_equal(found.values, ix.cutouts(VOLUME, [(9, 23, 1)], (4, 4, 1), resolution=(8, 8, 40)))
    assert found.pre_id.values.tolist() == [7]
    two = np.zeros(2, [("pre_pt_position", float, 3), ("post_pt_position", float, 3)])
    with pytest.raises(OptionError, match=r"2 columns of positions.*position='pre_pt_position'"):
        ix.cutouts(VOLUME, two, (4, 4, 1))


@pytest.mark.parametrize(
    ("centers", "message"),
    [
        ([[1, 2, 3], [1, 2]], r"row 1 is \[1, 2\]; give \(x, y, z\)"),
        ({"x": 1, "y": 2, "z": 3}, "is the single value 1"),
        ([[np.nan, 1, 2]], "not finite"),
        (5, "positions are 5; give a table or an array of numbers"),
    ],
)
def test_centres_that_are_not_points_are_errors(centers, message):
    with pytest.raises((BoxError, OptionError), match=message):
        ix.cutouts(VOLUME, centers, (4, 4, 1))


def test_a_table_without_rows_is_an_error():
    with pytest.raises(BoxError, match="has no rows"):
        ix.cutouts(VOLUME, np.empty((0, 3)), (4, 4, 1))


def test_a_column_with_the_name_of_a_dim_is_an_error():
    table = {"x": [0], "y": [60], "z": [0], "center": [3]}
    with pytest.raises(OptionError, match="rename the column"):
        ix.cutouts(VOLUME, table, (4, 4, 1))


def test_annotations_without_a_position_are_refused():
    points = ix.as_annotations({"x": [1, 2], "y": [1, 2], "z": [1, 2]})
    with pytest.raises(BoxError, match=r"1 of 2 centers are missing .* row 0; .*dropna\('annotation', subset="):
        ix.cutouts(VOLUME, points.where(points.x > 1), (2, 2, 2))
