from __future__ import annotations

import json
import struct

import numpy as np
import pytest

import imageryxr as ix
from imageryxr import open_annotations
from imageryxr.errors import (
    AuthError,
    ChunkReadError,
    MissingIdsWarning,
    SourceError,
)
from tests.support.annotations import UNIT, meets, random_annotations, write_levels, writer_of
from tests.support.shards import spec
from tests.support.source_suite import serving

KINDS = ["point", "line", "box", "ellipsoid"]

HASTY = ix.Connection(timeout=10, retries=1, backoff=0.001)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_whose_bounds_are_those_of_centres_is_read_in_boxes(tmp_path, kind):
    entries = random_annotations(kind)
    writer_of(kind, entries).write(tmp_path / "a")
    lo, hi = np.array([-30, -30, -30]), np.array([10, 20, 30])
    found = open_annotations(tmp_path / "a", bbox=ix.BBox(lo.tolist(), hi.tolist(), resolution=UNIT))
    assert set(found.id.values.tolist()) == {e["id"] for e in entries if meets(kind, e, lo, hi)}


def test_uint32_properties_are_exact(tmp_path):
    specs = [{"id": "size", "type": "uint32"}]
    entries = [{**e, "size": 2**32 - 1 - n} for n, e in enumerate(random_annotations("point", 5))]
    writer_of("point", entries, specs).write(tmp_path / "a")
    found = open_annotations(tmp_path / "a")
    assert found["size"].dtype == np.uint32
    assert dict(zip(found.id.values.tolist(), found["size"].values.tolist(), strict=True)) == {
        e["id"]: e["size"] for e in entries
    }


def test_dimensions_in_another_order_and_unit_are_placed_correctly(tmp_path):
    entries = random_annotations("line", 40)
    write_levels(tmp_path / "a", "line", entries)
    info = json.loads((tmp_path / "a/info").read_text())
    info["dimensions"] = {"z": [4.04e-3, "um"], "x": [8e-9, "m"], "y": [4e-5, "mm"]}
    (tmp_path / "a/info").write_text(json.dumps(info))
    found = open_annotations(tmp_path / "a")
    first = next(e for e in entries if e["id"] == found.id.values[0])
    assert [found.z[0], found.x[0], found.y[0]] == pytest.approx(first["place"] * UNIT)
    box = ix.BBox((-400, -400, -50), (0, 800, 10))  # x, y, z in nm
    inside = open_annotations(tmp_path / "a", bbox=box).id.values.tolist()
    lo, hi = np.array([-50, -400, -400]) / UNIT, np.array([10, 0, 800]) / UNIT
    assert sorted(inside) == sorted(e["id"] for e in entries if meets("line", e, lo, hi))


def test_only_the_cells_that_a_box_meets_are_requested(tmp_path):
    write_levels(tmp_path / "a", "point", random_annotations("point", 200))
    with serving(tmp_path) as server:
        box = ix.BBox((1, -10, 3), (20, 10, 4), resolution=UNIT)
        open_annotations(f"precomputed://{server.url}/a", bbox=box, connection=HASTY)
        cells = sorted(path.removeprefix("/a/") for path in server.requested if "spatial" in path)
        # The bounds are -52 to 52: x is in cell 1 of 2 and in 2 of 4, y in cell 1 of 3, z in cell 1 of 2.
        assert cells == ["spatial0/0_0_0", "spatial1/1_1_0", "spatial2/2_1_1"]


def test_keys_may_lead_to_sibling_folders(tmp_path):
    write_levels(tmp_path / "deep/a", "point", random_annotations("point", 9))
    (tmp_path / "deep/a/by_id").rename(tmp_path / "deep/ids")
    info = json.loads((tmp_path / "deep/a/info").read_text())
    info["by_id"]["key"] = "../ids"
    (tmp_path / "deep/a/info").write_text(json.dumps(info))
    assert open_annotations(tmp_path / "deep/a", ids=[2]).id.values.tolist() == [2]
    with serving(tmp_path) as server:
        assert open_annotations(f"{server.url}/deep/a", ids=[2], connection=HASTY).id.values.tolist() == [2]
        info["by_id"]["key"] = "../../../ids"
        (tmp_path / "deep/a/info").write_text(json.dumps(info))
        with pytest.raises(SourceError, match="outside its server"):
            open_annotations(f"{server.url}/deep/a", ids=[2], connection=HASTY)


def test_cells_that_are_not_stored_are_empty(tmp_path):
    write_levels(tmp_path / "a", "point", random_annotations("point", 3))
    box = ix.BBox((-52, -52, -52), (-51.9, -51.9, -51.9), resolution=UNIT)
    found = open_annotations(tmp_path / "a", bbox=box)
    assert found.sizes["annotation"] == 0
    assert found["count"].dtype == np.uint16


@pytest.mark.parametrize("keep", [0, 4, 8, 30, -1])
@pytest.mark.parametrize("form", ["", "_sharded"])
def test_a_truncated_file_is_an_error(tmp_path, keep, form):
    write_levels(tmp_path / "a", "line", random_annotations("line", 20), spec(data="raw") if form else None)
    ids = open_annotations(tmp_path / "a").id.values.tolist()
    for folder, selection in (("spatial0", {}), ("by_id", {"ids": ids}), ("rel_post", {"segments": range(1, 6)})):
        for path in (tmp_path / "a" / folder).iterdir():
            path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ChunkReadError, match=folder):
            open_annotations(tmp_path / "a", **selection)


def test_a_count_beyond_the_file_is_an_error(tmp_path):
    write_levels(tmp_path / "a", "point", random_annotations("point", 9))
    path = tmp_path / "a/spatial0/0_0_0"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    with pytest.raises(ChunkReadError, match="0_0_0"):
        open_annotations(tmp_path / "a")


@pytest.mark.parametrize("status", [401, 403, 500, 0])
def test_faults_of_a_server_are_errors_and_not_empty_cells(tmp_path, status):
    write_levels(tmp_path / "a", "point", random_annotations("point", 9))
    with serving(tmp_path) as server:
        server.faults["spatial1"] = status
        with pytest.raises(AuthError if status in (401, 403) else ChunkReadError):
            open_annotations(f"precomputed://{server.url}/a", connection=HASTY)


def test_transient_faults_are_retried(tmp_path):
    write_levels(tmp_path / "a", "point", random_annotations("point", 9))
    with serving(tmp_path) as server:
        server.faults["spatial0"] = [503]
        assert open_annotations(f"precomputed://{server.url}/a", connection=HASTY).sizes["annotation"] == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotation_type": "polyline"}, "POLYLINE"),
        ({"annotation_type": None}, "annotation_type"),
        ({"dimensions": {"x": [1, "nm"], "y": [1, "nm"]}}, "x, y and z"),
        ({"dimensions": {"x": [1, "s"], "y": [1, "nm"], "z": [1, "nm"]}}, "dimensions.x"),
        ({"dimensions": {"x": [0, "nm"], "y": [1, "nm"], "z": [1, "nm"]}}, "positive"),
        ({"lower_bound": [1, 2]}, "lower_bound"),
        ({"properties": [{"id": "a", "type": "uint64"}]}, "properties"),
        ({"properties": [{"id": "a", "type": "int8"}] * 2}, "same id"),
        ({"properties": [{"id": "a", "type": "int8", "enum_values": [1]}]}, "enum_labels"),
        ({"spatial": [{"key": "s", "grid_shape": [0, 1, 1], "chunk_size": [1, 1, 1]}]}, "grid_shape"),
        ({"spatial": [{"key": "s", "grid_shape": [1, 1, 1], "chunk_size": [1, -1, 1]}]}, "chunk_size"),
        ({"by_id": {"key": "/etc"}}, "its key is '/etc'; it must be the relative path of a folder"),
        ({"by_id": {"key": "a", "sharding": {"@type": "other"}}}, "sharding"),
    ],
)
def test_an_invalid_info_is_an_error_that_names_the_member(tmp_path, change, message):
    write_levels(tmp_path / "a", "point", random_annotations("point", 3))
    info = json.loads((tmp_path / "a/info").read_text()) | change
    (tmp_path / "a/info").write_text(json.dumps(info))
    with pytest.raises(SourceError, match=message):
        open_annotations(tmp_path / "a")


@pytest.mark.parametrize("place", [None, (1, np.nan, 2)])
def test_a_layer_without_finite_positions_is_empty(tmp_path, place):
    entries = [{**random_annotations("point", 1)[0], "place": place}] if place else []
    with np.errstate(invalid="ignore"):
        writer_of("point", entries).write(tmp_path)
    address = f"precomputed://file://{tmp_path}"
    with pytest.warns(
        ix.errors.ImageryWarning if place else MissingIdsWarning, match="1 of 1 annot|related to the seg"
    ):
        found = open_annotations(address, segments=entries[0]["pre"] if place else [5])
    assert found.sizes["annotation"] == 0
    assert found.pre.dtype == np.uint64
