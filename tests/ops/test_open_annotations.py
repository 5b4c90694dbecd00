from __future__ import annotations

import json

import numpy as np
import pytest
from neuroglancer.read_precomputed_annotations import AnnotationReader

import imageryxr as ix
from imageryxr import open_annotations
from imageryxr.errors import (
    LayerError,
    MissingIdsWarning,
    NoVolumeError,
    OptionError,
    SourceError,
    SourceNotFoundError,
)
from tests.conftest import volume
from tests.support.annotations import LARGE, SPECS, UNIT, meets, random_annotations, write_levels
from tests.support.shards import spec
from tests.support.source_suite import serving

KINDS = ["point", "line", "box", "ellipsoid"]

HASTY = ix.Connection(timeout=10, retries=1, backoff=0.001)

IDENTITY = spec(preshift=0)

HASHED = spec("murmurhash3_x86_128", minishards=1, bits=2)


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


def test_ids_without_annotations_warn(layers):
    folder, _ = layers
    with pytest.warns(MissingIdsWarning, match="no annotation with the id 123"):
        found = open_annotations(folder / "point", ids=[123, 2])
    assert found.id.values.tolist() == [2]


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
