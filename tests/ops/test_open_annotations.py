from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from neuroglancer.read_precomputed_annotations import AnnotationReader

import imageryxr as ix
from imageryxr import open_annotations
from imageryxr.errors import (
    AuthError,
    ChunkReadError,
    LayerError,
    MissingIdsWarning,
    NoVolumeError,
    OptionError,
    SourceError,
    SourceNotFoundError,
)
from tests.conftest import volume
from tests.support.annotations import LARGE, SPECS, UNIT, bounds_of, random_annotations, write_levels, writer_of
from tests.support.shards import spec
from tests.support.source_suite import serving

KINDS = ["point", "line", "box", "ellipsoid"]
HASTY = ix.Connection(timeout=10, retries=1, backoff=0.001)
IDENTITY = spec(preshift=0)
HASHED = spec("murmurhash3_x86_128", minishards=1, bits=2)


def meets(kind: str, entry: dict, lo, hi) -> bool:
    """Return whether an annotation and a box, both in multiples of `UNIT`, have a common point; lines are sampled."""
    place, second = entry["place"], entry["second"]
    if kind == "line":
        t = np.linspace(0, 1, 40_001)[:, None]
        at = place + t * (second - place)
        return bool(((at >= lo) & (at < hi)).all(axis=1).any())
    if kind == "ellipsoid":
        near = np.clip(place, lo, hi)
        return bool((((near - place) / second) ** 2).sum() <= 1)
    low, high = bounds_of(kind, entry)
    return bool(((high >= lo) & (low < hi)).all())


def check_values(kind: str, found, entries: list[dict]) -> None:
    """Compare positions, properties and ids with the written ones."""
    by_id = {e["id"]: e for e in entries}
    assert found.id.dtype == np.uint64
    expected = [by_id[i] for i in found.id.values.tolist()]
    if not expected:
        return
    xyz = np.stack([found.x, found.y, found.z], axis=1)
    np.testing.assert_allclose(xyz, [e["place"] * UNIT for e in expected], rtol=1e-12)
    names = {"line": "{}_end", "box": "{}_end", "ellipsoid": "{}_radius"}.get(kind)
    if names:
        second = np.stack([found[names.format(axis)] for axis in "xyz"], axis=1)
        np.testing.assert_allclose(second, [e["second"] * UNIT for e in expected], rtol=1e-12)
    for s in SPECS:
        values = [e[s["id"]] for e in expected]
        if s["type"] in ("rgb", "rgba"):
            values = ["#" + "".join(f"{v:02x}" for v in value) for value in values]
        elif s["id"] == "kind":
            labels = dict(zip(s["enum_values"], s["enum_labels"], strict=True))
            values = [labels.get(v, str(v)) for v in values]
        else:
            assert found[s["id"]].dtype == s["type"]
        assert found[s["id"]].values.tolist() == values


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    """Return a folder with annotations of each type, unsharded and sharded, and the written annotations by type."""
    folder, entries = tmp_path_factory.mktemp("annotations"), {}
    for kind in KINDS:
        entries[kind] = random_annotations(kind)
        write_levels(folder / kind, kind, entries[kind])
        write_levels(folder / f"{kind}_sharded", kind, entries[kind], HASHED if kind == "line" else IDENTITY)
    return folder, entries


@pytest.mark.parametrize("kind", KINDS)
def test_all_annotations_of_each_type_have_the_written_values(layers, kind):
    folder, entries = layers
    found = open_annotations(folder / kind)
    assert found.attrs["annotation_type"] == kind
    assert found.attrs["source"] == f"precomputed://file://{folder / kind}"
    assert sorted(found.id.values.tolist()) == sorted(e["id"] for e in entries[kind])
    check_values(kind, found, entries[kind])


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["", "_sharded"])
def test_a_box_returns_exactly_the_annotations_that_meet_it(layers, kind, form):
    folder, entries = layers
    for lo, hi in [((-20, -30.5, -52), (13, 0, 0)), ((0, 0, 0), (26, 17.25, 52)), ((40, 40, 40), (60, 60, 60))]:
        found = open_annotations(folder / f"{kind}{form}", bbox=ix.BBox(lo, hi, resolution=UNIT))
        expected = [e["id"] for e in entries[kind] if meets(kind, e, np.array(lo), np.array(hi))]
        assert sorted(found.id.values.tolist()) == sorted(expected)
        check_values(kind, found, entries[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_neighbouring_boxes_together_contain_each_point_once_and_every_annotation(layers, kind):
    folder, entries = layers
    found = []
    for x in (-60, -10.25, 0, 26, 70):
        start, stop = {-60: (-60, -10.25), -10.25: (-10.25, 0), 0: (0, 26), 26: (26, 70), 70: (70, 71)}[x]
        box = ix.BBox((start, -70, -70), (stop, 70, 70), resolution=UNIT)
        found += open_annotations(folder / kind, bbox=box).id.values.tolist()
    assert set(found) == {e["id"] for e in entries[kind]}
    if kind == "point":
        assert len(found) == len(entries[kind])


@pytest.mark.parametrize("form", ["", "_sharded"])
def test_ids_return_their_annotations_in_order_with_all_related_segments(layers, form):
    folder, entries = layers
    for kind in KINDS:
        wanted = [entries[kind][n] for n in (7, 2, 31)]
        found = open_annotations(folder / f"{kind}{form}", ids=[e["id"] for e in wanted])
        assert found.id.values.tolist() == [e["id"] for e in wanted]
        check_values(kind, found, entries[kind])
        assert found.pre.dtype == found.post.dtype == np.uint64
        assert found.pre.values.tolist() == [(e["pre"] or [0])[0] for e in wanted]
        posts = [sorted(row[row > 0].tolist()) for row in found.post.values.reshape(3, -1)]
        assert posts == [e["post"] for e in wanted]


@pytest.mark.parametrize("form", ["", "_sharded"])
def test_segments_return_the_annotations_related_by_any_relationship(layers, form):
    folder, entries = layers
    for kind in KINDS:
        found = open_annotations(folder / f"{kind}{form}", segments=[LARGE - 7, 3])
        expected = [e for e in entries[kind] if LARGE - 7 in e["pre"] or 3 in e["post"]]
        assert sorted(found.id.values.tolist()) == sorted(e["id"] for e in expected)
        check_values(kind, found, entries[kind])
        by_id = {e["id"]: e for e in entries[kind]}
        for i, number in enumerate(found.id.values.tolist()):
            assert found.post.values[i] == (3 if 3 in by_id[number]["post"] else 0)


def test_several_selections_return_their_intersection(layers):
    folder, entries = layers
    box = ix.BBox((-60, -60, -60), (0, 60, 60), resolution=UNIT)
    found = open_annotations(folder / "point", segments=[2], bbox=box)
    expected = {e["id"] for e in entries["point"] if 2 in e["post"] and e["place"][0] < 0}
    assert set(found.id.values.tolist()) == expected
    ids = [e["id"] for e in entries["point"]]
    assert set(open_annotations(folder / "point", ids=ids, segments=[2], bbox=box).id.values.tolist()) == expected


@pytest.mark.parametrize("sharding", [None, IDENTITY, HASHED])
def test_neuroglancers_own_reader_returns_the_same_annotations(tmp_path, sharding):
    entries = random_annotations("point", 30)
    write_levels(tmp_path / "a", "point", entries, sharding)
    reader, found = AnnotationReader(f"file://{tmp_path}/a"), open_annotations(tmp_path / "a")
    theirs = {int(a.id): a for a in reader.get_within_spatial_bounds()}
    assert sorted(theirs) == found.id.values.tolist()
    for i, number in enumerate(found.id.values.tolist()):
        assert np.allclose(theirs[number].point * UNIT, [found.x[i], found.y[i], found.z[i]])
    chosen = open_annotations(tmp_path / "a", segments=[4])
    assert {int(a.id) for a in reader.relationships["post"][4]} == set(chosen.id.values.tolist())


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


@pytest.mark.fast_forms(1)
@pytest.mark.parametrize("form", ["", "_sharded"])
def test_a_web_server_and_a_local_folder_give_equal_results(layers, form):
    folder, _ = layers
    with serving(folder) as server:
        for kind in KINDS:
            for selection in ({}, {"ids": [4, 2]}, {"segments": [1, LARGE - 7]}):
                local = open_annotations(folder / f"{kind}{form}", **selection)
                web = open_annotations(f"precomputed://{server.url}/{kind}{form}", connection=HASTY, **selection)
                assert web.drop_attrs().identical(local.drop_attrs())


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


def test_ids_without_annotations_warn(layers):
    folder, _ = layers
    with pytest.warns(MissingIdsWarning, match="no annotation with the id 123"):
        found = open_annotations(folder / "point", ids=[123, 2])
    assert found.id.values.tolist() == [2]


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


def test_invalid_arguments_of_open_annotations_are_errors_with_advice(tmp_path, sample, layers):
    folder, _ = layers
    with pytest.raises(NoVolumeError, match="holds no annotations"):
        open_annotations(sample.image)
    with pytest.raises(SourceNotFoundError, match="check the address"):
        open_annotations(tmp_path / "nothing")
    with pytest.raises(SourceError, match="write precomputed://"):
        open_annotations(f"zarr://{tmp_path}")
    with pytest.raises(OptionError, match=r"ix\.BBox"):
        open_annotations(folder / "point", bbox=((0, 0, 0), (1, 1, 1)))
    (tmp_path / "b").mkdir()
    info = json.loads((folder / "point/info").read_text())
    info["spatial"][2] |= {"grid_shape": [1000, 1000, 10], "chunk_size": [0.104, 0.104, 10.4]}
    (tmp_path / "b/info").write_text(json.dumps(info | {"relationships": [], "by_id": None}))
    with pytest.raises(OptionError, match="give a smaller bbox"):
        open_annotations(tmp_path / "b")
    with pytest.raises(SourceError, match="no relationship"):
        open_annotations(tmp_path / "b", segments=[1])
    with pytest.raises(SourceError, match="no index of ids"):
        open_annotations(tmp_path / "b", ids=[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["", "_sharded"])
def test_a_selection_without_annotations_is_an_empty_dataset(layers, kind, form):
    folder, entries = layers
    place = folder / f"{kind}{form}"
    with pytest.warns(MissingIdsWarning, match="related to the segment 12345"):
        assert open_annotations(place, segments=[12345]).sizes["annotation"] == 0
    with pytest.warns(MissingIdsWarning, match="12345"):
        partly = open_annotations(place, segments=[12345, LARGE - 7])
    assert partly.sizes["annotation"] == sum(bool(e["pre"]) for e in entries[kind])
    with pytest.warns(MissingIdsWarning, match="id 12345"):
        assert open_annotations(place, ids=[12345]).sizes["annotation"] == 0
    for options in ({"ids": []}, {"segments": []}, {"ids": np.empty(0, np.uint64)}):
        found = open_annotations(place, **options)
        assert found.sizes["annotation"] == 0
        assert {"pre", "post", "score", "kind", "color"} <= set(found.data_vars)
        assert found.attrs["annotation_type"] == kind


def test_ids_may_be_a_single_id_or_strings_of_digits(layers):
    folder, entries = layers
    number = entries["point"][3]["id"]
    expected = open_annotations(folder / "point", ids=[number])
    for ids in (number, str(number), [str(number)], np.uint64(number), np.array([str(number)]), np.array(number)):
        assert open_annotations(folder / "point", ids=ids).identical(expected)
    related = open_annotations(folder / "point", segments=[LARGE - 7])
    for segments in (LARGE - 7, str(LARGE - 7), [str(LARGE - 7)]):
        assert open_annotations(folder / "point", segments=segments).identical(related)
    for ids in ("abc", 1.5, [1.5], [-1], -1, [True]):
        with pytest.raises((OptionError, LayerError)):
            open_annotations(folder / "point", ids=ids)


def test_related_segments_have_the_colours_of_segments(layers):
    folder, _ = layers
    table = open_annotations(folder / "point", segments=[LARGE - 7])
    rgba = ix.to_rgba(volume(np.zeros((1, 9, 9), np.uint8), (8, 8, 40)))
    table = table.isel(annotation=[0]).assign(
        {d: ("annotation", [v]) for d, v in zip("xyz", (36, 36, 20), strict=True)}
    )
    drawn = ix.annotate(rgba, table, color="pre")
    assert tuple(drawn.values[0, 4, 4, :3].tolist()) == ix.palette([LARGE - 7], None)[LARGE - 7]


def test_the_categories_of_an_enum_are_all_its_labels(layers):
    found = open_annotations(layers[0] / "point", segments=[LARGE - 7])
    assert json.loads(found.kind.attrs["categories"]) == ["axon", "dendrite", "soma"]


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
