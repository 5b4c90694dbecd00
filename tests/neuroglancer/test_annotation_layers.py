"""Local and precomputed annotation layers of links: positions, colours, segments, and links that are written again."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.errors import LinkError, LinkWarning, OptionError
from imageryxr.neuroglancer import annotation_layers
from imageryxr.neuroglancer.fetch import load_state
from tests.conftest import no_compute
from tests.support.annotations import UNIT, random_annotations, write_levels

DIMENSIONS = {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}
POINTS = [
    {"type": "point", "point": [4600.5, 2560.5, 130.5], "id": "a1", "segments": [["7", "18446744073709551615"]]},
    {"type": "point", "point": [4610.25, 2570, 131], "id": "b2", "description": "a bouton", "segments": [["12"]]},
]
NOTES = {"type": "annotation", "name": "notes", "source": "local://annotations", "annotations": POINTS}
CELLS = {"type": "segmentation", "name": "cells", "source": "SEGMENTATION", "segments": ["12", "!7"]}


def open_layers(sample, *layers, camera=None, **options):
    layers = [{"type": "image", "name": "em", "source": sample.image}, *layers]
    state = {"dimensions": DIMENSIONS, "position": [4600.5, 2560.5, 130.5], "layers": layers, **(camera or {})}
    state = json.loads(json.dumps(state).replace("SEGMENTATION", sample.segmentation))
    return ix.open_neuroglancer(state, allow_local=True, **options)


def layers_of_link(tree) -> dict:
    """Return the layers of the link that is written from a tree, by name."""
    return {layer["name"]: layer for layer in load_state(ix.neuroglancer_link(tree, allow_local=True))["layers"]}


def test_local_points_lie_at_their_position_times_the_resolution(sample):
    notes = open_layers(sample, NOTES)["notes"].to_dataset()
    assert notes.attrs["annotation_type"] == "point"
    np.testing.assert_array_equal(notes.x, [4600.5 * 8, 4610.25 * 8])
    np.testing.assert_array_equal(notes.z, [130.5 * 40, 131 * 40])
    assert notes.link_id.values.tolist() == ["a1", "b2"]
    assert notes.description.values.tolist() == ["", "a bouton"]
    assert notes.segments.dtype == np.uint64
    assert notes.segments.values.tolist() == [[7, 2**64 - 1], [12, 0]]
    assert notes.attrs["color"] == "#ffff00"
    json.dumps(dict(notes.attrs))


def test_the_types_of_a_layer_are_children_and_polylines_are_lines(sample):
    more = [
        {"type": "line", "pointA": [1, 2, 3], "pointB": [4, 5, 6], "id": "l"},
        {"type": "axis_aligned_bounding_box", "pointA": [1, 2, 3], "pointB": [4, 5, 6], "id": "b"},
        {"type": "ellipsoid", "center": [1, 2, 3], "radii": [4, 5, 6], "id": "e"},
        {"type": "polyline", "points": [[0, 0, 0], [1, 0, 0], [1, 1, 0]], "id": "p"},
    ]
    tree = open_layers(sample, {**NOTES, "annotations": [*POINTS, *more]})
    assert set(tree["notes"].children) == {"point", "line", "box", "ellipsoid"}
    lines = tree["notes/line"].to_dataset()
    assert lines.x_end.values.tolist() == [32, 8, 8]
    assert lines.link_id.values.tolist() == ["l", "p", "p"]
    assert tree["notes/ellipsoid"].z_radius.values.tolist() == [240]
    assert layers_of_link(tree)["notes"]["annotations"] == [*POINTS, *more]


def test_coordinates_are_in_units_of_the_sources_dimensions_in_their_order(sample):
    dims = {"z": [1e-8, "m"], "y": [4e-9, "m"], "x": [4e-3, "um"]}
    source = {"url": "local://annotations", "transform": {"outputDimensions": dims}}
    notes = open_layers(sample, {**NOTES, "source": source})["notes"]
    assert [float(notes[a][0]) for a in "xyz"] == [130.5 * 4, 2560.5 * 4, 4600.5 * 10]


def test_properties_have_their_values_labels_and_colours(sample):
    properties = [
        {"id": "score", "type": "float32"},
        {"id": "kind", "type": "uint8", "enum_values": [0, 1], "enum_labels": ["axon", "soma"]},
        {"id": "tint", "type": "rgb", "default": "#102030"},
    ]
    points = [{**POINTS[0], "props": [0.5, 1, "#ff0000"]}, {**POINTS[1], "props": [0.25, 0]}]
    shader = "void main() {\n  setColor(prop_tint()); // as measured\n}"
    notes = open_layers(sample, {**NOTES, "annotations": points, "annotationProperties": properties, "shader": shader})[
        "notes"
    ]
    assert notes.score.values.tolist() == [0.5, 0.25]
    assert notes.kind.values.tolist() == ["soma", "axon"]
    assert notes.tint.values.tolist() == ["#ff0000", "#102030"]
    assert notes.attrs["color_column"] == "tint"


@pytest.mark.parametrize(
    ("more", "color"),
    [
        ({"annotationColor": "#00ff80"}, "#00ff80"),
        ({"annotationColor": "rgb(0, 255, 128)"}, "#00ff80"),
        ({"annotationColor": "red", "shader": "void main() { setColor(defaultColor()); }"}, "#ff0000"),
        ({"shader": "void main() { setColor(vec3(1.0, 0.5, 0)); }"}, "#ff8000"),
        ({"shader": "void main() { setColor(vec4(0, 0, 1, 0.5)); }"}, "#0000ff80"),
        ({"shader": '#uicontrol vec3 tint color(default="lime")\nvoid main() { setColor(tint); }'}, "#00ff00"),
        (
            {
                "shader": '#uicontrol vec3 tint color(default="lime")\nvoid main() { setColor(tint); }',
                "shaderControls": {"tint": "#123456"},
            },
            "#123456",
        ),
    ],
)
def test_constant_colours_are_those_of_the_viewer(sample, more, color):
    assert open_layers(sample, {**NOTES, **more})["notes"].attrs["color"] == color


def test_a_shader_that_computes_colours_warns(sample):
    shader = "void main() { setColor(colormapJet(prop_score())); }"
    with pytest.warns(LinkWarning, match="its shader computes colours"):
        assert open_layers(sample, {**NOTES, "shader": shader})["notes"].attrs["color"] == "#ffff00"


@pytest.mark.parametrize("call", ["setPointMarkerSize(20.0)", "setLineWidth(3.0)", "setEndpointMarkerSize(2.0)"])
def test_a_shader_that_sets_sizes_warns(sample, call):
    with pytest.warns(LinkWarning, match=r"sets the size of markers or lines; .*size="):
        open_layers(sample, {**NOTES, "shader": f"void main() {{ setColor(defaultColor()); {call}; }}"})


@pytest.mark.parametrize("linked", ["cells", {"segments": "cells"}])
@pytest.mark.parametrize("wanted", [True, ["segments"]])
def test_a_linked_annotation_layer_shows_only_annotations_of_visible_segments(sample, linked, wanted):
    layer = {**NOTES, "linkedSegmentationLayer": linked, "filterBySegmentation": wanted}
    tree = open_layers(sample, CELLS, layer)
    assert tree["notes"].link_id.values.tolist() == ["b2"]
    gone = {"segments": "gone"} if isinstance(linked, dict) else "gone"
    with pytest.warns(LinkWarning, match="all annotations are shown"):
        assert open_layers(sample, CELLS, {**layer, "linkedSegmentationLayer": gone})["notes"].sizes["annotation"] == 2


def test_precomputed_annotations_are_transformed_and_filtered_by_segment(sample, tmp_path):
    entries = random_annotations("line", 30)
    write_levels(tmp_path / "a", "line", entries)
    address = f"precomputed://file://{tmp_path}/a"
    layer = {"type": "annotation", "name": "lines", "source": address, "annotationColor": "#00ffff"}
    lines = open_layers(sample, layer)["lines"].to_dataset()
    whole = ix.open_annotations(address)
    assert lines.drop_attrs().identical(whole.drop_attrs())
    assert lines.attrs["color"] == "#00ffff"
    dims = {"x": [2 * UNIT[0], "nm"], "y": [UNIT[1], "nm"], "z": [UNIT[2], "nm"]}
    dims = {axis: [scale * 1e-9, "m"] for axis, (scale, _) in dims.items()}
    moved = {
        "url": address,
        "transform": {"outputDimensions": dims, "matrix": [[1, 0, 0, 10], [0, 1, 0, 0], [0, 0, 1, 0]]},
    }
    again = open_layers(sample, {**layer, "source": moved})["lines"]
    np.testing.assert_allclose(again.x, whole.x + 10 * 2 * UNIT[0])
    np.testing.assert_allclose(again.z_end, whole.z_end)
    cells = {**CELLS, "segments": ["3"]}
    filtered = {**layer, "linkedSegmentationLayer": {"post": "cells"}, "filterBySegmentation": ["post"]}
    some = open_layers(sample, cells, filtered)["lines"]
    assert set(some.id.values.tolist()) == {e["id"] for e in entries if 3 in e["post"]}


def test_a_link_may_not_read_annotations_of_this_machine_unless_allowed(tmp_path):
    write_levels(tmp_path / "a", "point", random_annotations("point", 3))
    layer = {"type": "annotation", "name": "points", "source": f"precomputed://file://{tmp_path}/a"}
    with pytest.warns(LinkWarning, match="on this machine"):
        assert not ix.open_neuroglancer({"layers": [layer]}).children


def test_layers_are_written_back_without_removed_annotations(sample):
    extra = {
        **NOTES,
        "annotationColor": "#00ff00",
        "shader": "void main() { setColor(defaultColor()); }",
        "tab": "annotations",
    }
    tree = open_layers(sample, extra)
    assert layers_of_link(tree)["notes"] == extra
    tree["notes"] = tree["notes"].to_dataset().isel(annotation=[1])
    assert layers_of_link(tree)["notes"] == {**extra, "annotations": POINTS[1:]}
    tree["mine"] = ix.as_annotations([[36804, 20484, 5220]]).assign_attrs(color="#ff00ff")
    mine = layers_of_link(tree)["mine"]
    assert mine["annotations"] == [{"type": "point", "id": "0", "point": [4600.5, 2560.5, 130.5]}]
    assert mine["annotationColor"] == "#ff00ff"
    again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    assert again["mine"].x.values.tolist() == [36804]


def test_only_the_layers_named_are_opened(sample):
    assert set(open_layers(sample, NOTES, layers=["notes", "em"]).children) == {"notes", "em"}
    assert set(open_layers(sample, NOTES, layers=["em"]).children) == {"em"}
    assert set(layers_of_link(open_layers(sample, NOTES, layers=["em"]))) == {"notes", "em"}
    with pytest.raises(LinkError, match="'notes' of the link: .*annotations"):
        open_layers(sample, {**NOTES, "annotations": [{"type": "blob"}]}, layers=["notes"])
    with pytest.raises(OptionError, match="'em', 'notes'"):
        open_layers(sample, NOTES, layers=["nots"])


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": []},
        {"annotations": 7},
        {"annotations": [{"type": "point", "point": [1, 2]}]},
        {"annotations": [{"type": "point", "point": [1, 2, "x"]}]},
        {"annotations": [{"type": "ellipsoid", "center": [1, 2, 3], "radii": [1, 1, -1]}]},
        {"annotations": [{**POINTS[0], "segments": [["x"]]}]},
        {"annotationColor": "no colour"},
        {"annotationProperties": [{"type": "rgb"}]},
        {"source": {"url": "local://annotations", "transform": {"outputDimensions": {"t": [1, "s"]}}}},
        {"source": {"url": "local://annotations", "transform": {"outputDimensions": DIMENSIONS, "matrix": [[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0]]}}},
        {"source": "brainmaps://somewhere"},
        {"source": []},
    ],
)  # fmt: skip
def test_an_invalid_layer_is_skipped_with_a_reason_and_written_back(sample, change):
    layer = {**NOTES, **change}
    with pytest.warns(LinkWarning, match="'notes' of the link is left out"):
        tree = open_layers(sample, layer)
    assert list(tree.children) == ["em"]
    assert layers_of_link(tree)["notes"] == layer


def test_colours_by_segment_properties_warn(sample):
    cells = {**CELLS, "segmentPropertyColors": {"property": "cell_type"}}
    with pytest.warns(LinkWarning, match="segmentPropertyColors"):
        tree = open_layers(sample, cells)
    assert layers_of_link(tree)["cells"]["segmentPropertyColors"] == {"property": "cell_type"}


ODD = [None, True, -1, 2**64, 1e308, float("nan"), "", "x" * 999, "\ud800", [], {}, [[]], [None], [1, 2, 3, 4], {"x": 1}, {"url": None}, "local://x", "precomputed://"]  # fmt: skip


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("key", ["source", "annotations", "annotationColor", "annotationProperties", "annotationRelationships", "shader", "shaderControls", "linkedSegmentationLayer", "filterBySegmentation"])  # fmt: skip
def test_a_layer_with_unusual_entries_opens_or_is_skipped(sample, key):
    shader = '#uicontrol vec3 tint color(default="lime")\nvoid main() { setColor(tint); }'
    for odd in ODD:
        layer = {**NOTES, "shader": shader, "filterBySegmentation": True, "linkedSegmentationLayer": "em", key: odd}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LinkWarning)
            assert "em" in open_layers(sample, layer).children


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("key", ["type", "point", "id", "segments", "props", "description"])
def test_a_layer_with_unusual_annotations_opens_or_is_skipped(sample, key):
    properties = [{"id": "x", "type": "float32"}, {"id": "a/b", "type": "rgb"}]
    for odd in ODD:
        layer = {
            **NOTES,
            "annotationProperties": properties,
            "annotations": [{**POINTS[0], "props": [1, "#fff"], key: odd}],
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LinkWarning)
            assert "em" in open_layers(sample, layer).children


def test_overlay_of_a_view_draws_the_annotations_of_visible_layers(sample):
    properties = [{"id": "tint", "type": "rgb"}]
    points = [
        {**POINTS[0], "props": ["#ff0000"]},
        {**POINTS[1], "point": [4610.5, 2570.5, 130.5], "props": ["#0000ff"]},
    ]
    shader = "void main() { setColor(prop_tint()); }"
    tinted = {**NOTES, "name": "tinted", "annotationProperties": properties, "annotations": points, "shader": shader}
    off = {**NOTES, "name": "off", "visible": False, "annotations": [{"point": [4590.5, 2550.5, 130.5]}]}
    tree = open_layers(sample, {**NOTES, "annotations": [{"point": [4580.5, 2550.5, 130.5]}]}, tinted, off)
    with no_compute():
        picture = tree.imagery.view(size=(64, 64)).imagery.overlay()
    plain = open_layers(sample).imagery.view(size=(64, 64)).imagery.overlay().values[0]
    drawn = picture.values[0]

    def pixel(x, y):
        return drawn[y - (2560 - 32), x - (4600 - 32)].tolist()

    plotted = tree.imagery.view(size=(64, 64)).imagery.plot().get_array()
    np.testing.assert_array_equal(np.asarray(plotted)[..., :3], drawn[..., :3])
    assert pixel(4600, 2560) == [255, 0, 0, 255]
    assert pixel(4610, 2570) == [0, 0, 255, 255]
    assert pixel(4580, 2550) == [255, 255, 0, 255]
    assert (drawn[2550 - 2528 - 4 : 2550 - 2528 + 5, 4590 - 4568 - 4 : 4590 - 4568 + 5] == plain[18:27, 18:27]).all()
    other = tree.imagery.view(size=(64, 64), layers=["em", "off"]).imagery.overlay().values[0]
    assert other[2550 - 2528, 4590 - 4568].tolist() == [255, 255, 0, 255]
    assert (other[32, 32] == plain[32, 32]).all()
    below = tree.imagery.view(size=(64, 64), center=(4600.5, 2560.5, 131.5)).imagery.overlay()
    assert "annotation_layers" not in tree.imagery.view(size=(64, 64), center=(4600.5, 2560.5, 131.5)).attrs
    assert (below.values[..., 3] == 255).all()


@pytest.mark.parametrize(
    "camera", [{"layout": "xz"}, {"crossSectionOrientation": [0.1, -0.3, 0.2, 0.927]}], ids=["xz", "turned"]
)
def test_overlay_of_a_plane_draws_the_annotations_in_the_plane(sample, camera):
    places = [[4600.5, 2560.5, 130.5], [4605.5, 2560.5, 131.5], [4700.5, 2560.5, 130.5], [4600.5, 2800.5, 130.5]]
    places += [[4600.5 + 7 * i, 2560.5 + 3 * j, 130.5 + j] for i in range(-3, 4) for j in range(-3, 4)]
    off = {**NOTES, "name": "off", "visible": False}
    tree = open_layers(sample, {**NOTES, "annotations": [{"point": place} for place in places]}, off, camera=camera)
    with no_compute():
        picture = tree.imagery.plane((60, 50)).imagery.overlay()
    plain = open_layers(sample, camera=camera).imagery.plane((60, 50)).imagery.overlay()
    truth = ix.annotate(plain, ix.as_annotations(places, resolution=(8, 8, 40)), color="yellow")
    np.testing.assert_array_equal(picture.values, truth.values)
    assert picture.values[0, 25, 30].tolist() == [255, 255, 0, 255]
    assert "annotation_layers" not in open_layers(sample, off, camera=camera).imagery.plane((60, 50)).attrs


def test_a_layer_of_many_cells_is_read_around_the_position_of_the_link(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_layers, "MOST_CELLS", 20)
    write_levels(tmp_path / "a", "point", random_annotations("point", 400))
    address = f"precomputed://file://{tmp_path}/a"
    dims = {axis: [scale * 1e-9, "m"] for axis, scale in zip("xyz", UNIT, strict=True)}
    shift = [9200, 5120, 130]  # a translation, in multiples of `UNIT`, that moves the annotations into the image
    matrix = [[2, 0, 0, shift[0]], [0, 2, 0, shift[1]], [0, 0, 2, shift[2]]]
    transform = {"outputDimensions": dims, "matrix": matrix}
    layer = {"type": "annotation", "name": "points", "source": {"url": address, "transform": transform}}
    whole = ix.open_annotations(address)
    center = [(s + 20) * unit / r for s, unit, r in zip(shift, UNIT, (8, 8, 40), strict=True)]
    with pytest.warns(LinkWarning, match=r"'points' of the link has 31 cells .*at most 20 are read.*open_annotations"):
        tree = open_layers(sample, layer, camera={"position": center})
    part = tree["points"].to_dataset()
    lo, hi = np.reshape(part.attrs["annotation_region"], (2, 3))
    moved = np.stack([whole[axis] * 2 + shift[i] * UNIT[i] for i, axis in enumerate("xyz")], axis=1)
    inside = ((moved >= lo) & (moved < hi)).all(axis=1)
    assert 0 < inside.sum() < 400
    assert set(part.id.values.tolist()) == set(whole.id.values[inside].tolist())
    assert (lo < np.multiply(center, (8, 8, 40))).all()
    assert (hi > np.multiply(center, (8, 8, 40))).all()
    with pytest.warns(LinkWarning, match="'points' of the link is left out: it has 31 cells"):
        assert "points" not in open_layers(sample, layer, camera={"position": None}).children


def test_a_view_beyond_the_annotations_that_were_read_warns(sample):
    tree = open_layers(sample, NOTES)
    box = [4500 * 8, 2450 * 8, 120 * 40, 4700 * 8, 2700 * 8, 140 * 40]
    tree["notes"].attrs["annotation_region"] = box
    tree.imagery.view(size=(64, 64))
    with pytest.warns(LinkWarning, match="beyond the part of the layer 'notes'"):
        tree.imagery.view(size=(200, 64))
    with pytest.warns(LinkWarning, match="beyond the part of the layer 'notes'"):
        tree.imagery.plane((200, 64))


# --- rules of the viewer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "camera"),
    [
        ({"type": "annotation", "annotations": [{"type": "point", "id": "a", "point": [4600.5, 2560.5, 130.5]}]}, {}),
        (
            {
                "type": "annotation",
                "voxelSize": [4, 4, 40],
                "annotations": [{"type": "point", "id": "a", "point": [9201, 5121, 130.5]}],
            },
            {},
        ),
        ({"type": "annotation", "points": [[4600.5, 2560.5, 130.5]]}, {}),
        ({"type": "pointAnnotation", "voxelSize": [8, 8, 40], "points": [[4600.5, 2560.5, 130.5]]}, {}),
        (
            {"type": "annotation", "points": [[9201, 5121, 130.5]]},
            {
                "dimensions": None,
                "position": None,
                "navigation": {
                    "pose": {"position": {"voxelSize": [4, 4, 40], "voxelCoordinates": [9201, 5121, 130.5]}}
                },
            },
        ),
        ({"type": "annotation", "points": [[4600.5, 2560.5, 130.5]]}, {"dimensions": None, "position": None}),
    ],
)
def test_annotations_of_older_viewers_need_no_source(sample, layer, camera):
    """Neuroglancer reads them as local annotations (layer/annotation/index.ts, getLegacyDataSourceSpecifications)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = open_layers(sample, {"name": "notes", **layer}, camera=camera)
        again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    for opened in (tree, again):
        notes = opened["notes"]
        assert (notes.x.item(), notes.y.item(), notes.z.item()) == (36804, 20484, 5220)


def test_groups_of_annotations_are_omitted_and_their_members_are_kept(sample):
    group = {"type": "collection", "id": "g", "childAnnotationIds": ["a1"], "source": [1, 2, 3]}
    tree = open_layers(sample, {**NOTES, "annotations": [group, *POINTS]})
    assert tree["notes"].link_id.values.tolist() == ["a1", "b2"]
    with pytest.warns(LinkWarning, match="'notes' of the link is left out: it has no annotations with a position"):
        tree = open_layers(sample, {**NOTES, "annotations": [group]})
    assert layers_of_link(tree)["notes"]["annotations"] == [group]


LINE = {"type": "line", "id": "l", "pointA": [4600, 2560, 130.5], "pointB": [4610, 2570, 130.5]}


@pytest.mark.parametrize(
    ("annotations", "shader", "color", "reason"),
    [
        (POINTS, "setPointMarkerColor(vec3(1, 0, 0));", "#ff0000", None),
        (POINTS, "setColor(vec3(0, 1, 0)); setPointMarkerColor(vec3(1, 0, 0));", "#ff0000", None),
        (POINTS, "setLineColor(vec3(1, 0, 0)); setColor(defaultColor());", "#ffff00", None),
        ([LINE], "setLineColor(vec3(1, 0, 0));", "#ff0000", None),
        ([LINE], "setLineColor(vec3(1, 0, 0), vec3(0, 1, 0));", "#ffff00", "computes colours"),
        ([LINE], "setLineColor(vec3(1, 0, 0)); setPolyLineColor(vec3(0, 1, 0));", "#ffff00", "computes colours"),
        ([LINE, *POINTS], "setLineColor(vec3(1, 0, 0)); setPointMarkerColor(vec3(0, 1, 0));", "#ffff00", "computes"),
        (POINTS, "if (true) setColor(vec3(1, 0, 0));", "#ffff00", "by conditions"),
        (POINTS, "setColor(defaultColor()); if (false) discard;", "#ffff00", "by conditions"),
        (POINTS, "setPointMarkerSize(3.0);", "#ffff00", "sets no colour"),
    ],
)
def test_a_shader_colours_the_annotations_of_each_type(sample, annotations, shader, color, reason):
    layer = {**NOTES, "annotations": annotations, "shader": f"void main() {{ {shader} }}"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        node = open_layers(sample, layer)["notes"]
    for part in node.children.values() or [node]:
        assert part.attrs["color"] == color
    messages = [str(w.message) for w in caught if issubclass(w.category, LinkWarning)]
    assert len(messages) == (reason is not None)
    assert all("the layer 'notes'" in m and reason in m for m in messages)


@pytest.mark.parametrize(
    ("segments", "ignored", "shown"),
    [([], None, ["a1", "b2"]), (["!12"], None, ["a1", "b2"]), ([], False, []), (["12"], None, ["b2"])],
)
def test_a_filter_without_visible_segments_shows_all_annotations(sample, segments, ignored, shown):
    """By default the viewer ignores such a filter (annotation_layer_state.ts, displayUnfiltered)."""
    layer = {**NOTES, "linkedSegmentationLayer": "cells", "filterBySegmentation": True}
    layer |= {} if ignored is None else {"ignoreNullSegmentFilter": ignored}
    tree = open_layers(sample, {**CELLS, "segments": segments}, layer)
    assert tree["notes"].link_id.values.tolist() == shown
