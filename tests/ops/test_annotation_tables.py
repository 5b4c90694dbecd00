"""Tables become Datasets of annotations: positions in nm, properties and ids unchanged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.core.annotations import make_annotations
from imageryxr.errors import BoxError, ImageryWarning, LayerError, OptionError

BIG = 2**64 - 3
PLACES = np.array([[10.5, 20, 3], [0, -4, 7.25]])
TRIPLES = PLACES.tolist()


def position_columns(prefix="", ends=("x", "y", "z")):
    return {f"{prefix}{axis}": PLACES[:, i] for i, axis in enumerate(ends)}


TABLES = {
    "array": (PLACES, {}),
    "list of rows": (TRIPLES, {}),
    "dict": (position_columns(), {}),
    "frame": (pd.DataFrame(position_columns()), {}),
    "other names": (pd.DataFrame(position_columns(ends="abc")), {"position": ("a", "b", "c")}),
    "triples": (pd.DataFrame({"pre_pt_position": TRIPLES}), {"position": "pre_pt_position"}),
    "arrays": (pd.DataFrame({"pre_pt_position": list(PLACES)}), {"position": "pre_pt_position"}),
    "split": (pd.DataFrame(position_columns("pre_pt_position_")), {"position": "pre_pt_position"}),
    "only triples": (pd.DataFrame({"pt_position": TRIPLES}), {}),
    "only split": (pd.DataFrame(position_columns("pt_")), {}),
    "records": (np.array([tuple(row) for row in TRIPLES], dtype=[(axis, "f8") for axis in "xyz"]), {}),
    "nullable": (pd.DataFrame(position_columns()).convert_dtypes(), {}),
}


@pytest.mark.parametrize("name", TABLES)
def test_positions_times_resolution_are_nanometres(name):
    table, options = TABLES[name]
    points = ix.as_annotations(table, resolution=(4.04, 4.04, 40), **options)
    for i, dim in enumerate("xyz"):
        np.testing.assert_array_equal(points[dim], PLACES[:, i] * (4.04, 4.04, 40)[i])
        assert points[dim].dtype == np.float64
        assert points[dim].attrs["units"] == "nm"
    assert set(points.data_vars) == {"x", "y", "z"}
    assert points.attrs["annotation_type"] == "point"
    assert points.id.values.tolist() == [0, 1]


@pytest.mark.parametrize(
    "ids",
    [
        np.array([BIG, 5], np.uint64),
        [BIG, 5],
        pd.array([BIG, 5], dtype="UInt64"),
        pd.Series([str(BIG), "5"]),
        pd.Series([str(BIG), "5"], dtype="string"),
        np.array([BIG, 5], object),
        pd.Categorical([str(BIG), "5"]),
    ],
)
def test_ids_are_exact_uint64_however_the_table_stores_them(ids):
    points = ix.as_annotations(pd.DataFrame({**position_columns(), "id": ids, "pt_root_id": ids, "segment": ids}))
    for name in ("id", "pt_root_id", "segment"):
        assert points[name].dtype == np.uint64
        assert points[name].values.tolist() == [BIG, 5]
    assert "id" in points.coords


@pytest.mark.parametrize(
    "ids", [pd.array([BIG, None], dtype="UInt64"), [BIG, None], [str(BIG), None], np.array([BIG, np.nan], object)]
)
def test_a_missing_id_is_0_and_the_others_stay_exact(ids):
    points = ix.as_annotations({**position_columns(), "pt_root_id": ids})
    assert points.pt_root_id.dtype == np.uint64
    assert points.pt_root_id.values.tolist() == [BIG, 0]


def test_ids_that_are_floats_are_read_if_exact_and_raise_if_digits_are_lost():
    assert ix.as_annotations({**position_columns(), "pt_root_id": [7.0, np.nan]}).pt_root_id.values.tolist() == [7, 0]
    with pytest.raises(LayerError, match="'UInt64'"):
        ix.as_annotations({**position_columns(), "pt_root_id": [864691135617152361.0, np.nan]})


def test_properties_keep_their_values_and_missing_values_stay_missing():
    frame = pd.DataFrame(
        {
            **position_columns(),
            "kind": ["soma", None],
            "note": pd.Series([None, "ü"], dtype="string"),
            "count": pd.array([3, None], dtype="Int64"),
            "size": np.array([3, -4]),
            "score": [0.5, np.nan],
            "valid": [True, False],
            "maybe": pd.array([True, None], dtype="boolean"),
            "created": pd.to_datetime(["2024-05-01T10:00:00+02:00", None], utc=True),
            "group": pd.Categorical(["b", "a"]),
            "post_pt_position": TRIPLES,
            "tags": [["a", "b"], None],
            7: [1, 2],
        }
    )
    points = ix.as_annotations(frame)
    assert points.kind.values.tolist() == ["soma", None]
    assert points.note.values.tolist() == [None, "ü"]
    np.testing.assert_array_equal(points["count"], [3, np.nan])
    assert points["size"].values.tolist() == [3, -4]
    assert points["size"].dtype.kind == "i"
    np.testing.assert_array_equal(points.score, [0.5, np.nan])
    assert points.valid.dtype == bool
    np.testing.assert_array_equal(points.maybe, [1, np.nan])
    assert points.created.values[0] == np.datetime64("2024-05-01T08:00:00")
    assert np.isnat(points.created.values[1])
    assert points.group.values.tolist() == ["b", "a"]
    assert points.post_pt_position.dims == ("annotation", "axis")
    np.testing.assert_array_equal(points.post_pt_position, PLACES)
    assert points.tags.values.tolist() == ['["a", "b"]', None]
    assert points["7"].values.tolist() == [1, 2]


def test_a_column_whose_name_is_taken_is_renamed():
    points = ix.as_annotations({"pt_position": TRIPLES, "x": [1, 2]}, position="pt_position")
    assert points.x_column.values.tolist() == [1, 2]
    assert points.x.values.tolist() == PLACES[:, 0].tolist()


def test_ends_make_lines_or_boxes_and_radii_ellipsoids():
    table = {**position_columns(), **position_columns("end_"), "radius": [2, 3]}
    lines = ix.as_annotations(table, end="end", resolution=(4, 4, 40))
    assert lines.attrs["annotation_type"] == "line"
    np.testing.assert_array_equal(lines.z_end, PLACES[:, 2] * 40)
    boxes = ix.as_annotations(PLACES, end=PLACES + 1, annotation_type="box")
    assert boxes.attrs["annotation_type"] == "box"
    np.testing.assert_array_equal(boxes.x_end, PLACES[:, 0] + 1)
    spheres = ix.as_annotations(table, radius="radius", resolution=(4, 4, 40))
    assert spheres.attrs["annotation_type"] == "ellipsoid"
    np.testing.assert_array_equal(spheres.z_radius, [80, 120])
    np.testing.assert_array_equal(spheres.x_radius, [8, 12])
    np.testing.assert_array_equal(ix.as_annotations(PLACES, radius=5).y_radius, [5, 5])


@pytest.mark.parametrize(
    "table", [np.empty((0, 3)), [], {axis: [] for axis in "xyz"}, pd.DataFrame(columns=[*"xyz", "id", "n"])]
)
def test_an_empty_table_has_no_annotations(table):
    points = ix.as_annotations(table)
    assert points.sizes["annotation"] == 0
    assert points.x.dtype == np.float64


ERRORS = {
    "missing position": ({**position_columns(), "x": [1, np.nan]}, {}, BoxError, "row 1"),
    "missing triple": ({"pt_position": [[1, 2, 3], None]}, {}, BoxError, "dropna"),
    "unknown column": (pd.DataFrame({"pre_pt_position": TRIPLES}), {"position": "pre_pt_postion"}, OptionError, "did you mean 'pre_pt_position'"),
    "unknown columns": (pd.DataFrame(position_columns("soma_")), {"position": ("soma_x", "soma_y", "soma_zz")}, OptionError, "did you mean 'soma_z'"),
    "several positions": (pd.DataFrame({"pre_pt_position": TRIPLES, "post_pt_position": TRIPLES}), {}, OptionError, "position='pre_pt_position' or 'post_pt_position'"),
    "lengths": ({"x": [1, 2], "y": [1, 2], "z": [1]}, {}, OptionError, "'z' has 1"),
    "property's length": ({**position_columns(), "n": [1]}, {}, OptionError, "'n' has 1 values"),
    "negative radius": ({**position_columns(), "r": [1, -1]}, {"radius": "r"}, BoxError, "negative"),
    "strings": ({"x": ["a", "b"], "y": [1, 2], "z": [1, 2]}, {}, BoxError, "'x'"),
    "two columns": (np.zeros((4, 2)), {}, BoxError, "(n, 3)"),
    "no triples": ({"p": [1, 2]}, {"position": "p"}, BoxError, "does not hold triples"),
    "both": (position_columns(), {"end": ("x", "y", "z"), "radius": 1}, OptionError, "either|both"),
    "box without end": (position_columns(), {"annotation_type": "box"}, OptionError, "need ends"),
    "unknown type": (position_columns(), {"annotation_type": "cube"}, OptionError, "'ellipsoid'"),
    "single values": ({"x": 1, "y": 2, "z": 3}, {}, OptionError, "'x' is the single value 1; give a list"),
    "rows of different lengths": ([[1, 2, 3], [1, 2]], {}, BoxError, "[1, 2], which is not (x, y, z)"),
    "ends of different lengths": (PLACES, {"end": [[1, 2, 3], [1, 2]]}, BoxError, "[1, 2], which is not (x, y, z)"),
    "no columns": ({}, {}, OptionError, "the table has no columns"),
    "no columns of a frame": (pd.DataFrame(), {}, OptionError, "the table has no columns"),
    "one number as resolution": (position_columns(), {"resolution": 4}, BoxError, "(4, 4, 4)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_value_and_the_remedy(name):
    import re

    table, options, error, words = ERRORS[name]
    with pytest.raises(error, match=words if "|" in words else re.escape(words)):
        ix.as_annotations(table, **options)


def test_the_resolution_that_caveclient_records_is_compared():
    frame = pd.DataFrame(position_columns())
    frame.attrs["dataframe_resolution"] = [4, 4, 40]
    with pytest.warns(ImageryWarning, match=r"resolution=\(4, 4, 40\)"):
        ix.as_annotations(frame)
    ix.as_annotations(frame, resolution=(4, 4, 40))


def test_annotations_survive_netcdf(tmp_path):
    frame = pd.DataFrame(
        {
            **position_columns(),
            "id": [BIG, 1],
            "kind": ["a", None],
            "score": [1.5, np.nan],
            "post_pt_position": TRIPLES,
            "ok": [True, False],
        }
    )
    points = ix.as_annotations(frame, radius=4)
    points.to_netcdf(tmp_path / "points.nc", engine="h5netcdf")
    back = xr.load_dataset(tmp_path / "points.nc", engine="h5netcdf")
    assert back.id.values.tolist() == [BIG, 1]
    assert back.attrs == points.attrs
    assert back.kind.values.tolist()[0] == "a"
    xr.testing.assert_equal(back.drop_vars("kind"), points.drop_vars("kind"))
    assert ix.as_annotations(back) is back


def test_the_constructor_records_where_annotations_come_from():
    points = make_annotations("point", PLACES, attrs={"source": "precomputed://x", "timestamp": None})
    assert points.attrs == {"annotation_type": "point", "source": "precomputed://x"}


IMPOSSIBLE = {
    "negative": [-1, 2],
    "too large": [2**64, 2],
    "digits too large": [str(2**64), "2"],
    "negative digits": ["-1", "2"],
    "fraction": [1.5, 2],
    "float that is negative": [-1.0, 2],
    "nullable": pd.array([-1, None], dtype="Int64"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_numbers_that_cannot_be_ids_raise_in_columns_of_ids(name):
    with pytest.raises(LayerError, match="'root_id' is a column of ids"):
        ix.as_annotations({**position_columns(), "root_id": IMPOSSIBLE[name]})
    ix.as_annotations({**position_columns(), "size": IMPOSSIBLE[name]})


@pytest.mark.parametrize("missing", ["", " ", None, np.nan])
def test_an_empty_text_is_a_missing_id(missing):
    points = ix.as_annotations({**position_columns(), "root_id": [str(2**64 - 1), missing]})
    assert points.root_id.dtype == np.uint64
    assert points.root_id.values.tolist() == [2**64 - 1, 0]


def test_a_column_of_ids_keeps_text_that_is_not_digits():
    assert ix.as_annotations({**position_columns(), "object_id": ["a1", "7"]}).object_id.values.tolist() == ["a1", "7"]


@pytest.mark.parametrize("ids", [[None, 3], ["", "3"], [np.nan, 3.0], pd.array([None, 3], dtype="UInt64")])
def test_an_annotation_without_an_id_raises(ids):
    with pytest.raises(OptionError, match="row 0"):
        ix.as_annotations({**position_columns(), "id": ids})


def test_repeated_ids_of_annotations_warn():
    with pytest.warns(ImageryWarning, match="such as 3"):
        points = ix.as_annotations({**position_columns(), "id": [3, 3]})
    assert points.id.values.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("point", {"end": PLACES}), ("ellipsoid", {"end": PLACES}), ("line", {"radius": 3}), ("point", {"radius": 3})],
)
def test_ends_and_radii_that_a_type_does_not_have_raise(kind, options):
    with pytest.raises(OptionError, match="have no"):
        ix.as_annotations(PLACES, annotation_type=kind, **options)


@pytest.mark.parametrize("form", ["[{} {} {}]", "[ {}  {}   {} ]", "({}, {}, {})", "[{},{},{}]"])
def test_triples_that_are_text_in_a_csv_file_are_positions(tmp_path, form):
    frame = pd.DataFrame({"pre_pt_position": [form.format(*row) for row in TRIPLES], "post": ["[1 2 3]", None]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    for table in (pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "a.csv", dtype_backend="numpy_nullable")):
        points = ix.as_annotations(table, position="pre_pt_position", resolution=(4, 4, 40))
        np.testing.assert_array_equal(np.stack([points[d] for d in "xyz"], axis=1), PLACES * (4, 4, 40))
        assert points.post.values[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("text", ["[1 2]", "[1 2 3 4]", "[a b c]", "1 2", "1;2;3", "[[1 2 3]]"])
def test_other_text_is_not_read_as_triples(text):
    with pytest.raises(BoxError, match="does not hold triples"):
        ix.as_annotations({"p": [text, "[1 2 3]"]}, position="p")


def labels_of_two_segments():
    """Return a segmentation in which the segments 7 and `BIG` touch."""
    ids = np.zeros((3, 4, 5), np.uint64)
    ids[1], ids[2] = 7, BIG
    coords = {dim: (dim, (np.arange(n) + 0.5) * 8, {"units": "nm"}) for dim, n in zip("zyx", ids.shape, strict=True)}
    return xr.DataArray(ids, coords, ("z", "y", "x"))


def test_measurements_are_tables_of_annotations():
    labels = labels_of_two_segments()
    cells = ix.measure(labels, labels.astype("u1"), percentiles=[5, 50, 95])
    points = ix.as_annotations(cells, position="centroid")
    assert points.segment.values.tolist() == [7, BIG]
    np.testing.assert_array_equal(points.z, [12, 20])
    assert points.bbox_min.dims == ("annotation", "axis")
    np.testing.assert_array_equal(points.percentiles_50, cells.percentiles.sel(percentile=50))
    boxes = ix.as_annotations(cells, position="bbox_min", end="bbox_max", annotation_type="box")
    np.testing.assert_array_equal(boxes.x_end, [40, 40])
    touching = ix.as_annotations(ix.contacts(labels), position="centroid")
    assert touching.segment_b.values.tolist() == [BIG]
    assert ix.as_annotations(ix.contacts(labels * 0), position="centroid").sizes["annotation"] == 0


def test_positions_of_a_dataset_have_the_unit_that_it_states():
    stated = {axis: ("place", PLACES[:, i], {"units": "um"}) for i, axis in enumerate("xyz")}
    points = ix.as_annotations(xr.Dataset({**stated, "name": ("place", ["a", "b"])}))
    np.testing.assert_array_equal(np.stack([points.x, points.y, points.z], axis=1), PLACES * 1000)
    assert points.name.values.tolist() == ["a", "b"]
    with pytest.raises(OptionError, match=r"the table states the unit of its positions.* omit resolution"):
        ix.as_annotations(xr.Dataset(stated), resolution=(8, 8, 40))


def test_arguments_for_annotations_are_not_ignored():
    points = ix.as_annotations({**position_columns(), "id": [BIG, 3]})
    with pytest.raises(OptionError, match="the positions of annotations are in nm; omit resolution"):
        ix.as_annotations(points, resolution=(8, 8, 40))
    spheres = ix.as_annotations(points, radius=50)
    assert spheres.attrs["annotation_type"] == "ellipsoid"
    assert spheres.id.values.tolist() == [BIG, 3]
    assert ix.as_annotations(points) is points


@pytest.mark.parametrize("name", ["root_ids", "numbers"])
@pytest.mark.parametrize("kind", [list, np.array])
@pytest.mark.parametrize("width", [2, 3])
def test_lists_of_ids_keep_their_digits(name, kind, width):
    rows = [[2**63 + 1, 5, BIG][:width], [1, 2, BIG - 1][:width]]
    values = kind(rows) if kind is list else np.array(rows, np.uint64)
    found = ix.as_annotations({**position_columns(), name: values})
    assert found[name].values.tolist() == [str(row) for row in rows]


def test_levels_of_an_index_with_one_name_are_all_kept():
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["kind", "kind"])
    found = ix.as_annotations(pd.DataFrame(position_columns(), index=index))
    assert found.kind.values.tolist() == ["a", "b"]
    assert found.kind_index.values.tolist() == [1, 2]


def test_columns_of_two_levels_can_be_positions():
    table = pd.DataFrame(PLACES, columns=pd.MultiIndex.from_product([["pt"], ["x", "y", "z"]]))
    found = ix.as_annotations(table, position=[("pt", axis) for axis in "xyz"])
    np.testing.assert_array_equal(found.y, PLACES[:, 1])


def test_durations_stay_durations():
    found = ix.as_annotations(pd.DataFrame({**position_columns(), "age": pd.to_timedelta(["1s", None])}))
    assert found.age.dtype.kind == "m"
    assert np.isnat(found.age.values).tolist() == [False, True]


@pytest.mark.parametrize("columns", [["id", "pt_position", "pt_root_id"], ["pt_x", "pt_y", "pt_z", "pt_root_id"]])
def test_a_table_without_rows_needs_no_other_arguments_than_one_with_rows(columns):
    table = pd.DataFrame({name: [] for name in columns})
    assert ix.as_annotations(table).sizes == {"annotation": 0}
    assert ix.sample_points(labels_of_two_segments(), table).shape == (0,)
    with pytest.raises(BoxError, match="centers has no rows"):
        ix.cutouts(labels_of_two_segments(), table, (2, 2, 2))


def test_tables_of_annotations_have_a_row_for_each_annotation():
    ends = PLACES + 1
    lines = ix.as_annotations({**position_columns(), "id": [BIG, 3], "pre_pt_position": TRIPLES}, end=ends)
    table = lines.assign(post=(("annotation", "post_segment"), np.array([[BIG, 0], [1, 2]], np.uint64)))
    table = table.imagery.to_dataframe()
    assert table["id"].tolist() == [BIG, 3]
    assert table["post_0"].tolist() == [BIG, 1]
    np.testing.assert_array_equal(table[["x", "y_end"]], np.stack([PLACES[:, 0], ends[:, 1]], axis=1))
    np.testing.assert_array_equal(table["pre_pt_position_y"], PLACES[:, 1])


@pytest.mark.parametrize("value", [5, "a", None])
def test_a_value_that_is_no_table_is_named(value):
    with pytest.raises(ix.ImageryError, match=rf"are {value!r}; give a table or an array of numbers \(n, 3\)"):
        ix.as_annotations(value)
