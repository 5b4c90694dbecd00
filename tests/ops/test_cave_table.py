"""CAVE tables at the instant of a tree, compared with pandas and with caveclient, on a local CAVE deployment."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.errors import (
    ForbiddenError,
    ImageryWarning,
    InvalidTokenError,
    LayerError,
    OptionError,
    ServerError,
    SourceError,
    SourceNotFoundError,
    StaleRootError,
    TimestampError,
)
from imageryxr.sources.cave import table_rows
from tests.support.cave import HASTY, utc
from tests.support.cave_server import DATASTACK, FORBIDDEN, MERGE, SPLIT, TOKEN, VERSIONS
from tests.support.cave_tables import RESOLUTION

UNIT = np.array(RESOLUTION)


def open_tree(cave, **options) -> xr.DataTree:
    options = {"server_address": cave.url, "token": TOKEN, "connection": HASTY, **options}
    return ix.open_datastack(DATASTACK, **options)


def expected_rows(cave, name: str, when: float):
    """Return the rows of a table at a timestamp, by ascending id."""
    return cave.tables.at(cave, name, when).sort_values("id").reset_index(drop=True)


def places(frame, column: str) -> np.ndarray:
    return frame[[f"{column}_position_{axis}" for axis in "xyz"]].to_numpy() * UNIT


def check_rows(found: xr.Dataset, frame, column: str) -> None:
    """Compare a Dataset of annotations with the rows of a table."""
    found = found.sortby("id")
    assert found.id.dtype == np.uint64
    assert found.id.values.tolist() == frame["id"].tolist()
    np.testing.assert_allclose(np.stack([found.x, found.y, found.z], axis=1), places(frame, column), rtol=1e-12)
    for name in [c for c in frame if c.endswith(("root_id", "supervoxel_id"))]:
        assert found[name].dtype == np.uint64
        assert found[name].values.tolist() == frame[name].tolist()


def test_a_table_has_the_rows_positions_and_roots_of_the_trees_version(cave):
    for version, when in VERSIONS.items():
        found = open_tree(cave, version=version).imagery.table("synapses", position="ctr_pt")
        frame = expected_rows(cave, "synapses", when)
        check_rows(found, frame, "ctr_pt")
        np.testing.assert_allclose(found.sortby("id").pre_pt_position, places(frame, "pre_pt"))
        assert found.pre_pt_position.attrs["units"] == "nm"
        assert found.sortby("id")["size"].values.tolist() == frame["size"].tolist()
        assert found.created.dtype.kind == "M"
        assert found.attrs["version"] == version
        assert found.attrs["timestamp"] == utc(when).isoformat()
        assert found.attrs["annotation_type"] == "point"
    assert TOKEN not in str(found.attrs)


def test_a_table_between_two_versions_has_the_rows_of_its_timestamp(cave):
    for when in (SPLIT, VERSIONS[9] + 3600):
        found = open_tree(cave, timestamp=utc(when)).imagery.table("synapses", position="pre_pt_position")
        check_rows(found, expected_rows(cave, "synapses", when), "pre_pt")
        assert found.attrs["timestamp"] == utc(when).isoformat()
    queries = [line for line in cave.log if str(line).endswith("/query")]
    assert all(f"/{DATASTACK}/query" in line.path for line in queries)
    assert all(utc(SPLIT).isoformat() in line.body.decode() for line in queries[: len(queries) // 2])


def test_a_table_at_the_timestamp_of_a_version_is_read_from_that_version(cave):
    open_tree(cave, timestamp=utc(VERSIONS[7])).imagery.table("cells")
    assert cave.count("version/7/table/cells/query") == 2


def test_a_table_equals_that_of_caveclient(cave):
    from caveclient import CAVEclient

    client = CAVEclient(DATASTACK, server_address=cave.url, auth_token=TOKEN, write_server_cache=False, version=9)
    theirs = client.materialize.query_table("synapses").sort_values("id")
    found = open_tree(cave, version=9).imagery.table("synapses", position="ctr_pt").sortby("id")
    assert found.id.values.tolist() == theirs["id"].tolist()
    assert found.pre_pt_root_id.values.tolist() == theirs["pre_pt_root_id"].tolist()
    np.testing.assert_allclose(
        np.stack([found.x, found.y, found.z], axis=1),
        np.stack(theirs["ctr_pt_position"]) * client.materialize.get_table_metadata("synapses")["voxel_resolution"],
    )
    joined = client.materialize.query_table("cell_notes").sort_values("id")
    ours = open_tree(cave, version=9).imagery.table("cell_notes").sortby("id")
    assert ours.id_ref.values.tolist() == joined["id_ref"].tolist()
    np.testing.assert_allclose(np.stack([ours.x, ours.y, ours.z], axis=1), np.stack(joined["pt_position"]) * UNIT)
    view = client.materialize.query_view("synapse_view")
    assert len(view) == open_tree(cave, version=9).imagery.table("synapse_view", position="ctr_pt").sizes["annotation"]


def test_a_box_is_filtered_by_the_server_and_then_exactly(cave):
    tree, frame = open_tree(cave, version=9), expected_rows(cave, "synapses", VERSIONS[9])
    at = places(frame, "post_pt")
    corner = at[np.argsort(at[:, 0])[150]]  # one row lies on the border of the box
    for lo, hi in ((corner, corner + np.array((700.5, 900.25, 1e4))), (corner - np.array((1200, 1e4, 1e4)), corner)):
        box = ix.BBox(lo.tolist(), hi.tolist())
        found = tree.imagery.table("synapses", position="post_pt", bbox=box)
        inside = ((at >= lo) & (at < hi)).all(axis=1)
        assert 0 < inside.sum() < 300
        check_rows(found, frame[inside].reset_index(drop=True), "post_pt")
        assert b"filter_spatial_dict" in cave.log[-1].body
    assert corner.tolist() not in np.stack([found.x, found.y, found.z], axis=1).tolist()


def test_root_ids_select_rows_by_each_column_of_roots(cave):
    frame = expected_rows(cave, "synapses", VERSIONS[9])
    roots = [int(frame.pre_pt_root_id.mode()[0]), int(frame.post_pt_root_id.mode()[0])]
    found = open_tree(cave, version=9).imagery.table("synapses", position="ctr_pt", ids=roots)
    chosen = frame.pre_pt_root_id.isin(roots) | frame.post_pt_root_id.isin(roots)
    assert (frame.pre_pt_root_id.isin(roots) & frame.post_pt_root_id.isin(roots)).any()
    check_rows(found, frame[chosen].reset_index(drop=True), "ctr_pt")


def test_a_root_of_another_time_raises_instead_of_selecting_no_rows(cave):
    with pytest.raises(StaleRootError, match=str(cave.graph.merged)):
        open_tree(cave, version=9).imagery.table("synapses", position="ctr_pt", ids=[cave.graph.merged])
    found = open_tree(cave, version=7).imagery.table("synapses", position="ctr_pt", ids=[cave.graph.merged])
    assert found.sizes["annotation"] > 0


def test_rows_of_a_reference_table_are_merged(cave):
    for options in ({"version": 9}, {"timestamp": utc(VERSIONS[9] + 5)}):
        found = open_tree(cave, **options).imagery.table("cell_notes").sortby("id")
        notes, cells = expected_rows(cave, "cell_notes", VERSIONS[9]), expected_rows(cave, "cells", VERSIONS[9])
        merged = notes.merge(cells, left_on="target_id", right_on="id", suffixes=("", "_ref"))
        assert found.id.values.tolist() == merged["id"].tolist()
        assert found.id_ref.values.tolist() == merged["id_ref"].tolist()
        assert found.cell_type.values.tolist() == [t if isinstance(t, str) else None for t in merged.cell_type]
        np.testing.assert_allclose(np.stack([found.x, found.y, found.z], axis=1), places(merged, "pt"))
        root = int(merged.pt_root_id.iloc[0])
        chosen = open_tree(cave, **options).imagery.table("cell_notes", ids=[root])
        assert set(chosen.id.values.tolist()) == set(merged[merged.pt_root_id == root]["id"])
        box = ix.BBox(places(merged, "pt")[3].tolist(), (places(merged, "pt")[3] + 1).tolist())
        assert merged["id"][3] in open_tree(cave, **options).imagery.table("cell_notes", bbox=box).id.values


def test_views_are_read_like_tables(cave):
    found = open_tree(cave, version=9).imagery.table("synapse_view", position="ctr_pt", limit=50)
    assert found.sizes["annotation"] == 50
    assert found.attrs["source"].endswith("/version/9/views/synapse_view")


@pytest.mark.slow
@pytest.mark.parametrize("page", [23, 100])
def test_many_rows_are_read_in_pages_and_each_row_exactly_once(cave, monkeypatch, page):
    monkeypatch.setattr(table_rows, "PAGE", page)
    tree, frame = open_tree(cave, version=9), expected_rows(cave, "synapses", VERSIONS[9])
    check_rows(tree.imagery.table("synapses", position="ctr_pt"), frame, "ctr_pt")
    roots = frame.pre_pt_root_id.value_counts().index[:3].tolist()
    chosen = frame.pre_pt_root_id.isin(roots) | frame.post_pt_root_id.isin(roots)
    found = tree.imagery.table("synapses", position="ctr_pt", ids=roots)
    check_rows(found, frame[chosen].reset_index(drop=True), "ctr_pt")
    for limit in (1, 5, 120, 299, 1000):
        ids = tree.imagery.table("synapses", position="ctr_pt", limit=limit).id.values.tolist()
        assert len(set(ids)) == len(ids) == min(limit, 300)


def test_a_large_view_without_ids_is_an_error_with_advice(cave, monkeypatch):
    monkeypatch.setattr(table_rows, "PAGE", 100)
    tree = open_tree(cave, version=9)
    with pytest.raises(OptionError, match="smaller bbox"):
        tree.imagery.table("no_id_view", position="ctr_pt")
    assert tree.imagery.table("no_id_view", position="ctr_pt", limit=60).sizes["annotation"] == 60


def test_the_position_must_be_named_if_there_are_several(cave):
    tree = open_tree(cave, version=9)
    with pytest.raises(OptionError, match="'pre_pt_position' or 'post_pt_position' or 'ctr_pt_position'"):
        tree.imagery.table("synapses")
    with pytest.raises(OptionError, match="did you mean 'pre_pt_position'"):
        tree.imagery.table("synapses", position="pre_pt_positio")
    assert "bb_start_position" in tree.imagery.table(
        "cells"
    )  # the other position is a corner of a bounding box, so no choice is necessary
    with pytest.raises(SourceError, match="'plain' has no position column"):
        tree.imagery.table("plain")


def test_rows_without_a_position_are_omitted_with_a_warning(cave):
    frame = cave.tables.frames["cells"]
    for axis in "xyz":
        frame[f"pt_position_{axis}"] = frame[f"pt_position_{axis}"].astype("Int64")
        frame.loc[[2, 5], f"pt_position_{axis}"] = None
    with pytest.warns(ImageryWarning, match="2 of 40 rows of 'cells' have no pt_position"):
        found = open_tree(cave, version=9).imagery.table("cells")
    assert set(range(10, 401, 10)) - set(found.id.values.tolist()) == {30, 60}


def test_invalid_tables_and_trees_are_errors_with_advice(cave):
    tree = open_tree(cave, version=9)
    with pytest.raises(SourceNotFoundError, match=r"did you mean 'synapses'.*there are cell_notes"):
        tree.imagery.table("synapse")
    cave.tables.frames["cells"] = cave.tables.frames["cells"].drop(columns=["pt_root_id", "pt_supervoxel_id"])
    with pytest.raises(SourceError, match="no column of root ids"):
        tree.imagery.table("cells", ids=[cave.graph.split_into[0]])
    with pytest.raises(OptionError, match=r"imagery\.around"):
        tree.imagery.table("synapses", bbox=(1, 2))
    with pytest.raises(OptionError, match="limit=0"):
        tree.imagery.table("synapses", limit=0)
    with pytest.raises(LayerError, match="open_datastack"):
        xr.DataTree().imagery.table("synapses")


def test_a_table_is_never_read_at_another_instant(cave):
    tree = open_tree(cave, version=9)
    del cave.versions[9]
    with pytest.raises(SourceNotFoundError, match="version 9 .* expired: there are 7"):
        tree.imagery.table("synapses", position="ctr_pt")
    cave.versions[9] = VERSIONS[9] + 1
    with pytest.raises(TimestampError, match="open the datastack again"):
        tree.imagery.table("synapses", position="ctr_pt")
    early = open_tree(cave, timestamp=utc(MERGE - 1))
    with pytest.raises(TimestampError, match="before its first valid version"):
        early.imagery.table("synapses", position="ctr_pt")
    between = open_tree(cave, timestamp=utc(SPLIT))
    with pytest.raises(TimestampError, match="is a view"):
        between.imagery.table("synapse_view", position="ctr_pt")
    cave.parent_version = 3
    with pytest.raises(TimestampError, match="at its versions only"):
        between.imagery.table("synapses", position="ctr_pt")


def test_lost_pages_and_throttling_are_retried(cave, monkeypatch):
    monkeypatch.setattr(table_rows, "PAGE", 100)
    tree, frame = open_tree(cave, version=9), expected_rows(cave, "synapses", VERSIONS[9])
    for kind, options in (
        ("drop", {}),
        ("truncate", {}),
        ("short", {}),
        ("status", {"status": 429}),
        ("status", {"status": 503}),
    ):
        cave.fault("synapses/query", kind, times=2, **options)
        check_rows(tree.imagery.table("synapses", position="ctr_pt"), frame, "ctr_pt")


@pytest.mark.parametrize("place", ["synapses/query", "synapses/metadata", "/tables", "/metadata"])
@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [("status", 403, ForbiddenError), ("status", 401, InvalidTokenError), ("status", 500, ServerError), ("login", 0, InvalidTokenError), ("page", 0, InvalidTokenError), ("garbage", 0, ServerError), ("drop", 0, ServerError)],
)  # fmt: skip
def test_errors_of_the_service_do_not_contain_the_token(cave, place, kind, status, error):
    tree = open_tree(cave, version=9)
    cave.fault(place, kind, status=status)
    with pytest.raises(error) as caught:
        tree.imagery.table("synapses", position="ctr_pt")
    assert TOKEN not in str(caught.value)


def test_a_token_without_permission_is_an_error(cave):
    tree = open_tree(cave, version=9)
    with pytest.raises(ForbiddenError, match="no permission"):
        tree.imagery.table("synapses", position="ctr_pt", token=FORBIDDEN, connection=HASTY)
