"""Special rules of Neuroglancer states: visible segments, display dimensions, and placement of layers.

The expected results follow from Neuroglancer's source: layer/segmentation/index.ts, navigation_state.ts,
coordinate_transform.ts, layer_groups_layout.ts.
"""

from __future__ import annotations

import itertools
import json
import warnings

import neuroglancer
import numpy as np
import pytest
import zarr
from scipy.spatial.transform import Rotation

import imageryxr as ix
from imageryxr.neuroglancer.fetch import load_state
from imageryxr.neuroglancer.state import parse_state

DIMS = {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}
PLACE = [4600.5, 2560.5, 130.5]


@pytest.fixture
def image(sample):
    return {"type": "image", "name": "em", "source": sample.image}


@pytest.fixture
def cells(sample):
    return {"type": "segmentation", "name": "cells", "source": sample.segmentation}


def test_a_link_without_layers_opens_as_an_empty_tree_with_a_warning():
    for state in ({}, {"layers": []}, {"position": PLACE, "dimensions": DIMS}, "https://site/#!{}"):
        with pytest.warns(ix.errors.LinkWarning, match="the link has no layers, so the tree is empty"):
            assert not ix.open_neuroglancer(state).children


def open_state(*layers, group=None, **state):
    """Open a state of some layers as a tree; warnings are errors."""
    whole = {"dimensions": DIMS, "position": PLACE, **state, "layers": list(layers)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ix.errors.LinkWarning)
        return ix.open_neuroglancer(whole, group=group, allow_local=True)


def state_of_link(tree):
    """Return the state of the link that is written from a tree; check that neuroglancer's Python package reads it."""
    state = load_state(ix.neuroglancer_link(tree, allow_local=True))
    again = neuroglancer.ViewerState(state)
    assert [layer.name for layer in again.layers] == [layer["name"] for layer in state["layers"]]
    return state


# --- which segments are visible ------------------------------------------------------------------------------------------


def drawn_and_all_ids(tree):
    """Return the ids that are coloured in a view of the only layer, and all ids in it."""
    ds = tree.imagery.view(size=(64, 48))
    alpha = ds.imagery.overlay().values[..., 3]
    ids = next(iter(ds.data_vars.values())).values
    return {int(i) for i in np.unique(ids[alpha > 0])}, {int(i) for i in np.unique(ids) if i}


def test_a_selection_of_only_the_background_draws_no_segment(cells):
    tree = open_state({**cells, "segments": ["0"]})
    assert drawn_and_all_ids(tree)[0] == set()
    assert state_of_link(tree)["layers"][0]["segments"] == ["0"]


def test_the_background_in_a_selection_changes_nothing(cells):
    _, there = drawn_and_all_ids(open_state(cells))
    one = min(there)
    assert drawn_and_all_ids(open_state({**cells, "segments": ["0", str(one)]}))[0] == {one}
    assert open_state({**cells, "segments": ["0", str(one)]})["cells/segmentation"].attrs["selected_ids"] == [one]


@pytest.mark.fast_forms(5)
@pytest.mark.parametrize(
    ("message", "rule"),
    [
        ({}, "all"),
        ({"segments": []}, "all"),
        ({"segments": ["!ONE"]}, "all"),
        ({"segments": ["!ONE", "ONE"]}, "one"),
        ({"segments": ["ONE"], "hiddenSegments": ["ONE"]}, "one"),
        ({"ignoreNullVisibleSet": False}, "none"),
        ({"segments": ["!ONE"], "ignoreNullVisibleSet": False}, "none"),
        ({"segments": ["0"], "ignoreNullVisibleSet": False}, "none"),
        ({"segments": ["ONE"], "notSelectedAlpha": 0.2}, "all"),
        ({"segments": ["0"], "notSelectedAlpha": 0.2}, "all"),
        ({"segments": ["ONE"], "selectedAlpha": 0}, "none"),
        ({"segments": ["TWO"], "equivalences": [["ONE", "TWO"]]}, "joined"),
        ({"segments": ["!TWO", "ONE"], "equivalences": [["ONE", "TWO"]]}, "joined"),
        ({"segments": ["TWO"], "equivalences": [["0", "TWO"]]}, "none"),
        ({"segments": ["ONE"], "segmentQuery": "/axon", "hoverHighlight": False, "objectAlpha": 0.2}, "one"),
    ],
)  # fmt: skip
def test_visible_segments_follow_the_rules_of_the_viewer(cells, message, rule):
    _, there = drawn_and_all_ids(open_state(cells))
    one, two = sorted(there)[:2]
    text = json.dumps(message).replace("ONE", str(one)).replace("TWO", str(two))
    tree = open_state({**cells, **json.loads(text)})
    found, has = drawn_and_all_ids(tree)
    wanted = {"all": has, "none": set(), "one": {one}, "joined": {one}}[rule]
    assert found == wanted
    again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    assert drawn_and_all_ids(again)[0] == wanted


def test_segment_settings_that_are_not_drawn_are_reported(cells):
    with pytest.warns(ix.errors.LinkWarning, match="hideSegmentZero"):
        ix.open_neuroglancer({"layers": [{**cells, "hideSegmentZero": False}]}, allow_local=True)
    layer = {**cells, "baseSegmentColoring": True, "equivalences": [["1", "2"]]}
    with pytest.warns(ix.errors.LinkWarning, match="baseSegmentColoring"):
        ix.open_neuroglancer({"layers": [layer]}, allow_local=True)
    open_state({**cells, "hideSegmentZero": False, "segments": ["5"], "baseSegmentColoring": True})


# --- layers that share a selection ---------------------------------------------------------------------------------------


def looks(*layers):
    source = "precomputed://gs://bucket/path"
    specs = [{"type": "segmentation", "name": name, "source": source, **spec} for name, spec in layers]
    return {layer.name: layer.look for layer in parse_state({"layers": specs}).layers}


@pytest.mark.parametrize(("stated", "seed"), [(5, 5), ("12", 12), (2**32 + 5, 5), (-1, 2**32 - 1), (5.7, 5)])
def test_a_color_seed_has_32_bits(cells, stated, seed):
    """In segment_color.ts, ``x >>> 0``."""
    tree = open_state({**cells, "colorSeed": stated})
    assert tree["cells/segmentation"].attrs["color_seed"] == seed


def test_a_lowest_image_of_opacity_0_warns(image, cells):
    """Where nothing covers it, the viewer shows its background (SliceViewRenderHelper in sliceview/frontend.ts)."""
    hidden = {**image, "opacity": 0}
    state = {"dimensions": DIMS, "position": PLACE}
    with pytest.warns(ix.errors.LinkWarning, match="hides the layer 'em' of the link .*opacity 0"):
        ix.open_neuroglancer({**state, "layers": [hidden, cells]}, allow_local=True)
    open_state(image, {**hidden, "name": "b"})
    open_state({**hidden, "visible": False}, {**image, "name": "b"})
    open_state(cells, hidden)


def test_a_linked_layer_adds_its_segments_to_those_of_its_root(cells):
    """google/neuroglancer#303."""
    found = looks(
        ("a", {"segments": ["1"], "segmentColors": {"1": "red"}}),
        ("b", {"linkedSegmentationGroup": "a", "segments": ["2"], "segmentColors": {"2": "blue"}, "colorSeed": 5}),
    )
    assert found["a"].selected_ids == found["b"].selected_ids == (1, 2)
    assert set(found["a"].colors) == set(found["b"].colors) == {1, 2}
    assert found["a"].color_seed == found["b"].color_seed == 5


def test_chains_of_links_lead_to_the_last_root():
    found = looks(
        ("a", {"segments": ["1"]}),
        ("b", {"linkedSegmentationGroup": "a", "segments": ["2"]}),
        ("c", {"linkedSegmentationGroup": "b", "segments": ["3"]}),
    )
    assert {look.selected_ids for look in found.values()} == {(1, 2, 3)}


def test_layers_are_linked_in_the_order_of_the_state():
    """Neuroglancer's `linkToLayer` uses the root that the other layer has when the link is made."""
    found = looks(
        ("c", {"linkedSegmentationGroup": "b", "segments": ["3"]}),
        ("b", {"linkedSegmentationGroup": "a", "segments": ["2"]}),
        ("a", {"segments": ["1"]}),
    )
    assert found["a"].selected_ids == found["b"].selected_ids == (2, 1)
    assert found["c"].selected_ids == (3,)


def test_circular_links_are_ignored():
    found = looks(
        ("a", {"linkedSegmentationGroup": "b", "segments": ["1"]}),
        ("b", {"linkedSegmentationGroup": "a", "segments": ["2"]}),
        ("c", {"linkedSegmentationGroup": "c", "segments": ["3"]}),
        ("d", {"linkedSegmentationGroup": "nowhere", "segments": ["4"]}),
    )
    assert [look.selected_ids for look in found.values()] == [(1, 2), (1, 2), (3,), (4,)]


def test_colours_and_selection_are_linked_independently():
    found = looks(
        ("a", {"segments": ["1"], "segmentColors": {"1": "red"}}),
        ("b", {"segments": ["2"], "segmentColors": {"1": "blue"}, "linkedSegmentationColorGroup": "a"}),
        ("c", {"segments": ["3"], "linkedSegmentationGroup": "a", "linkedSegmentationColorGroup": False}),
    )
    assert found["a"].selected_ids == found["c"].selected_ids == (1, 3)
    assert found["b"].selected_ids == (2,)
    assert found["a"].colors == found["b"].colors == {1: (0, 0, 255, 255)}
    assert found["c"].colors == {}


def test_the_equivalences_of_a_group_are_those_of_all_its_layers():
    found = looks(
        ("a", {"segments": ["2"], "equivalences": [["1", "2"]]}),
        ("b", {"linkedSegmentationGroup": "a", "segments": ["!2", "9"]}),
    )
    assert found["a"].selected_ids == found["b"].selected_ids == (1, 9)
    assert found["b"].hidden_ids == ()


def test_a_selection_comes_from_a_root_that_cannot_be_opened(cells):
    _, there = drawn_and_all_ids(open_state(cells))
    one = min(there)
    root = {"type": "segmentation", "name": "root", "source": "dvid://https://server/uuid/seg", "segments": [str(one)]}
    linked = {**cells, "linkedSegmentationGroup": "root"}
    with pytest.warns(ix.errors.LinkWarning, match="'root' of the link is left out"):
        tree = ix.open_neuroglancer({"dimensions": DIMS, "position": PLACE, "layers": [root, linked]}, allow_local=True)
    assert tree["cells/segmentation"].attrs["selected_ids"] == [one]
    assert drawn_and_all_ids(tree)[0] == {one}
    state = state_of_link(tree)
    assert state["layers"][0] == root
    assert state["layers"][1]["linkedSegmentationGroup"] == "root"


def test_links_of_layers_are_written_back_while_they_are_correct(cells):
    a, b = {**cells, "segments": ["5"]}, {**cells, "name": "b", "linkedSegmentationGroup": "cells", "segments": ["7"]}
    tree = open_state(a, b)
    assert state_of_link(tree)["layers"][1]["linkedSegmentationGroup"] == "cells"
    tree["b/segmentation"].attrs["selected_ids"] = [7]
    state = state_of_link(tree)
    assert "linkedSegmentationGroup" not in state["layers"][1]
    assert [layer.look.selected_ids for layer in parse_state(state).layers] == [(5, 7), (7,)]
    ds = tree.imagery.view(size=(8, 8))
    assert "linkedSegmentationGroup" not in load_state(ix.neuroglancer_link(ds[["b"]], allow_local=True))["layers"][0]


# --- which dimensions are on the screen ----------------------------------------------------------------------------------


FLAT = (["y", "x"], ["z"], ["nowhere", "z", "x"])


def plane_axes(tree):
    return np.reshape(tree.imagery.plane((16, 12)).em.attrs["plane_axes"], (3, 3))


@pytest.mark.parametrize(
    ("state", "screen"),
    [
        ({"dimensions": {k: DIMS[k] for k in "zyx"}, "position": PLACE[::-1]}, "zyx"),
        ({"displayDimensions": ["x", "z", "y"]}, "xzy"),
        ({"displayDimensions": ["y", "x"]}, "yxz"),
        ({"displayDimensions": ["z"]}, "zxy"),
        ({"displayDimensions": ["nowhere"]}, "xyz"),
        ({"displayDimensions": ["nowhere", "z", "x"]}, "zxy"),
        ({"dimensions": {"t": [1, "s"], **DIMS}, "position": [3, *PLACE]}, "xyz"),  # no layer has t
        ({"dimensions": {**DIMS, "t": [1, "s"]}, "position": [*PLACE, 3]}, "xyz"),
        ({"dimensions": {"c^": [1, ""], **DIMS}, "position": [0, *PLACE]}, "xyz"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["xy", "xz", "yz-3d"])
@pytest.mark.parametrize("turned", [None, [0.1, 0.2, 0.3, 0.9]])
def test_layouts_name_the_display_dimensions(image, state, screen, layout, turned):
    """google/neuroglancer#252: "x" is the first display dimension; by default these are the first three of all."""
    if state.get("displayDimensions", DIMS) in FLAT and (turned or layout != "xy"):
        pytest.skip("a screen of two dimensions has one section")
    state = {**state, "layout": layout, **({"crossSectionOrientation": turned} if turned else {})}
    tree = open_state(image, **state)
    panel = {"xy": [0, 0, 0, 1], "xz": [0.5**0.5, 0, 0, 0.5**0.5], "yz-3d": [0, 0.5**0.5, 0, 0.5**0.5]}[layout]
    rows = (Rotation.from_quat(turned or [0, 0, 0, 1]) * Rotation.from_quat(panel)).as_matrix().T
    truth = np.zeros((3, 3))
    for i, name in enumerate(screen):
        truth[:, "xyz".index(name)] = rows[:, i]
    np.testing.assert_allclose(plane_axes(tree), truth, atol=1e-12)
    for obj in (tree, tree.imagery.view(size=(8, 8)) if np.allclose(truth, np.eye(3)) else tree):
        written = state_of_link(obj) if obj is tree else load_state(ix.neuroglancer_link(obj, allow_local=True))
        assert written.get("displayDimensions") == state.get("displayDimensions")
        assert list(written["dimensions"]) == list(state.get("dimensions", DIMS))
        np.testing.assert_allclose(written["position"], state.get("position", PLACE))


def test_a_view_reports_other_display_dimensions(image):
    tree = open_state(image, displayDimensions=["x", "z", "y"])
    with pytest.warns(ix.errors.LinkWarning, match=r"x, z, y.*imagery\.plane"):
        ds = tree.imagery.view(size=(16, 12))
    assert load_state(ix.neuroglancer_link(ds, allow_local=True))["displayDimensions"] == ["x", "z", "y"]
    cut = tree.imagery.plane((16, 12)).em
    plain = ix.plane(tree["em/image"], PLACE, (16, 12), normal="y", nm_per_pixel=8, resolution=(8, 8, 40))
    np.testing.assert_array_equal(cut.values, plain.values)
    link = load_state(ix.neuroglancer_link(tree.imagery.plane((16, 12)), allow_local=True))
    assert "displayDimensions" not in link  # the quaternion of the plane refers to x, y and z


def test_display_dimensions_that_are_not_drawn_are_reported_and_written_back(image):
    for members, message in (
        ({"dimensions": {"t": [1, "s"], **DIMS}, "displayDimensions": ["t", "x", "y"]}, "dimensions t, x, y"),
        ({"relativeDisplayScales": {"z": 3}}, "stretches the display: z 3 times"),
        ({"displayDimensions": ["x", "y"], "layout": "xz"}, "only x and y"),
    ):
        state = {"dimensions": DIMS, "position": PLACE, "layers": [image], **members}
        if "t" in state["dimensions"]:
            moved = {"outputDimensions": {**DIMS, "t": [1, "s"]}, "sourceRank": 3}
            state["position"] = [0, *PLACE]
            state["layers"] = [{**image, "source": {"url": image["source"], "transform": moved}}]
        with pytest.warns(ix.errors.LinkWarning, match=message):
            tree = ix.open_neuroglancer(state, allow_local=True)
        written = state_of_link(tree)
        assert {k: written[k] for k in (*members, "position")} == {**members, "position": state["position"]}


def test_the_zoom_counts_the_smallest_displayed_side(image):
    dims = {"x": [8e-9, "m"], "y": [1.6e-8, "m"], "z": [4e-8, "m"]}
    assert parse_state({"dimensions": dims, "crossSectionScale": 2, "layers": []}).pose.nm_per_pixel == 16
    screen = {"displayDimensions": ["z", "y"], "relativeDisplayScales": {"y": 2}}
    assert parse_state({"dimensions": dims, "crossSectionScale": 2, **screen, "layers": []}).pose.nm_per_pixel == 64


def test_the_error_about_hidden_layers_states_how_to_draw_them(image, cells):
    state = {"dimensions": DIMS, "position": PLACE, "layers": [image, {**cells, "visible": False}]}
    off = ix.open_neuroglancer(state, layers=["cells"], allow_local=True).imagery.view(size=(6, 4))
    with pytest.raises(ix.errors.LayerError, match=r"switched off.*set ds\['cells'\]\.attrs\['visible'\] = True"):
        off.imagery.overlay()
    off["cells"].attrs["visible"] = True
    assert off.imagery.overlay().shape == (1, 4, 6, 4)


# --- layer groups --------------------------------------------------------------------------------------------------------


def unlinked_value(value):
    return {"link": "unlinked", "value": value}


def test_a_layer_group_has_its_own_position(image, cells):
    own = {
        "type": "viewer",
        "layers": ["cells"],
        "layout": "xz",
        "position": unlinked_value([4500.5, 2500.5, 120.5]),
        "crossSectionScale": {"link": "relative", "value": 3},
        "crossSectionOrientation": unlinked_value([0, 0, 0.6, 0.8]),
        "displayDimensions": unlinked_value(["x", "z", "y"]),
    }
    whole = {"type": "viewer", "layers": ["cells", "em"], "position": {"link": "linked", "value": [1, 2, 3]}, "flex": 2}
    layout = {
        "type": "row",
        "children": [whole, {"type": "column", "children": [own, {"type": "viewer", "layers": []}]}],
    }
    state = {"dimensions": DIMS, "position": PLACE, "crossSectionScale": 2, "layers": [image, cells], "layout": layout}
    with pytest.warns(
        ix.errors.LinkWarning, match=r"2 groups of layers side by side; this is group 0 \('cells', 'em'\); give"
    ):
        first = ix.open_neuroglancer(state, allow_local=True)
    assert list(first.children) == ["cells", "em"]  # in the order of the group
    assert (first.attrs["position"], first.attrs["nm_per_pixel"], first.attrs["layout"]) == (PLACE, 16, "xy")
    second = open_state(image, cells, layout=layout, crossSectionScale=2, group=1)
    assert second.attrs["position"] == [4500.5, 2500.5, 120.5]
    assert (second.attrs["nm_per_pixel"], second.attrs["layout"]) == (24, "xz")
    assert second.attrs["display_dimensions"] == ["x", "z", "y"]
    np.testing.assert_allclose(second.attrs["orientation"], [0, 0, 0.6, 0.8])
    assert list(second.imagery.plane((8, 6)).data_vars) == ["cells"]
    for tree in (first, second):
        written = state_of_link(tree)
        kept = {"type": "column", "children": [own]}
        assert written["layout"] == {"type": "row", "children": [whole, kept]}
        assert (written["position"], written["crossSectionScale"]) == (PLACE, 2)
        assert all("visible" not in layer for layer in written["layers"])
        assert [layer["name"] for layer in written["layers"]] == ["em", "cells"]
    for number in (2, -1, True, "cells"):
        with pytest.raises(ix.errors.OptionError, match="layer groups are 0 to 1"):
            ix.open_neuroglancer(state, group=number, allow_local=True)


@pytest.mark.fast_forms(1)
@pytest.mark.parametrize("layout", ["xz", {"type": "xz", "orthographicProjection": True}, None])
def test_a_single_viewer_has_no_groups(image, layout):
    state = {} if layout is None else {"layout": layout}
    tree = open_state(image, **state)
    assert state_of_link(tree)["layout"] == (layout or "xy")
    assert open_state(image, **state, group=0).identical(tree)  # the single viewer counts as group 0
    with pytest.raises(ix.errors.OptionError, match="no layer groups: omit group"):
        open_state(image, **state, group=1)


def test_a_group_uses_the_settings_of_the_link_unless_it_has_its_own(image):
    viewer = {"type": "viewer", "layers": ["em"], "layout": {"type": "yz", "crossSections": {}}, "position": {}}
    tree = open_state(image, layout=viewer, crossSectionOrientation=[0, 0, 1, 0])
    assert (tree.attrs["position"], tree.attrs["layout"], tree.attrs["orientation"]) == (PLACE, "yz", [0, 0, 1, 0])
    assert state_of_link(tree)["layout"] == viewer
    older = {
        **viewer,
        "position": unlinked_value({"voxelCoordinates": [1, 2, 3]}),
        "crossSectionZoom": unlinked_value(40),
    }
    tree = open_state(image, layout=older)
    assert (tree.attrs["position"], tree.attrs["nm_per_pixel"]) == ([1, 2, 3], 40)


def test_changes_of_a_tree_are_written_to_its_group(image, cells):
    viewer = {"type": "viewer", "layers": ["em"], "layout": "xy", "position": unlinked_value([1.5, 2.5, 3.5])}
    other = {"type": "viewer", "layers": ["cells"], "layout": "3d"}
    layout = {"type": "row", "children": [viewer, other]}
    with pytest.warns(ix.errors.LinkWarning, match="2 groups"):
        tree = ix.open_neuroglancer(
            {"dimensions": DIMS, "position": PLACE, "layers": [image, cells], "layout": layout}, allow_local=True
        )
    tree.attrs |= {"position": [7.5, 8.5, 9.5], "layout": "yz", "nm_per_pixel": 32.0, "orientation": [0, 0, 1, 0]}
    written = state_of_link(tree)
    changed = {"layout": "yz", "position": unlinked_value([7.5, 8.5, 9.5]), "crossSectionScale": unlinked_value(4)}
    changed["crossSectionOrientation"] = unlinked_value([0, 0, 1, 0])
    assert written["layout"]["children"] == [{**viewer, **changed}, other]
    assert written["position"] == PLACE
    tree.attrs["layout"] = "sideways"
    with pytest.raises(ix.errors.LinkError, match="sideways"):
        ix.neuroglancer_link(tree, allow_local=True)


def test_a_view_of_a_group_is_a_link_to_a_single_viewer(image, cells):
    viewer = {"type": "viewer", "layers": ["em"], "position": unlinked_value(PLACE)}
    layout = {"type": "column", "children": [viewer, {"type": "viewer", "layers": ["cells"]}]}
    tree = open_state(image, cells, position=[1, 2, 3], layout=layout, group=0, showSlices=False)
    written = load_state(ix.neuroglancer_link(tree.imagery.view(size=(16, 12)), allow_local=True))
    assert (written["layout"], written["position"], written["showSlices"]) == ("xy", PLACE, False)
    assert [layer["name"] for layer in written["layers"]] == ["em"]
    assert neuroglancer.ViewerState(written).layout.type == "xy"


# --- transforms ----------------------------------------------------------------------------------------------------------


def check_left_out(layer, reason):
    with pytest.warns(ix.errors.LinkWarning, match=f"'em' of the link is left out: {reason}"):
        tree = ix.open_neuroglancer({"dimensions": DIMS, "position": PLACE, "layers": [layer]}, allow_local=True)
    assert json.loads(tree.attrs["unsupported_layers"])[0]["name"] == "em"


OLDER = [
    ({"translation": [80, -16, 40]}, (1, 1, 1), (80, -16, 40)),
    ({"scale": [2, 1, 0.5]}, (2, 1, 0.5), (0, 0, 0)),
    ({"scale": [2, 1, 1], "translation": [8, 0, 0], "rotation": [0, 0, 0, 1]}, (2, 1, 1), (8, 0, 0)),
    ({}, (1, 1, 1), (0, 0, 0)),
    ([2, 0, 0, 80, 0, 1, 0, 16, 0, 0, 1, 40, 0, 0, 0, 1], (2, 1, 1), (80, 16, 40)),
    ([[2, 0, 0, 80], [0, 1, 0, 16], [0, 0, 1, 40], [0, 0, 0, 1]], (2, 1, 1), (80, 16, 40)),
    ([[2, 0, 0, 80], [0, 1, 0, 16], [0, 0, 1, 40]], (2, 1, 1), (80, 16, 40)),
]  # fmt: skip


@pytest.mark.parametrize(("transform", "scale", "shift"), OLDER)
def test_older_transforms_move_and_scale_in_nm(image, transform, scale, shift):
    plain = ix.open_image(image["source"])
    tree = open_state({**image, "transform": transform})
    em = tree["em/image"]
    for axis, factor, add in zip("xyz", scale, shift, strict=True):
        np.testing.assert_allclose(em[axis].values, plain[axis].values * factor + add)
    again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    assert ix.grid_of(again["em/image"]) == ix.grid_of(em)


def test_older_transforms_are_ignored_if_the_source_is_an_object(image):
    layer = {**image, "source": {"url": image["source"]}, "transform": {"translation": [80, 0, 0]}}
    assert ix.grid_of(open_state(layer)["em/image"]) == ix.grid_of(ix.open_image(image["source"]))
    with pytest.warns(ix.errors.LinkWarning, match="no outputDimensions"):
        ix.open_neuroglancer(
            {"layers": [{**image, "source": {"url": image["source"], "transform": {"scale": [2, 2, 2]}}}]},
            allow_local=True,
        )


def test_rotated_and_mirrored_layers_are_skipped(image):
    check_left_out({**image, "transform": {"rotation": [0, 0, 0.6, 0.8]}}, "its transform rotates")
    check_left_out({**image, "transform": {"scale": [-1, 1, 1]}}, "its transform rotates")
    check_left_out({**image, "transform": [1, 0.1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]}, "its transform rotates")
    turned = {"outputDimensions": DIMS, "matrix": [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]}
    check_left_out({**image, "source": {"url": image["source"], "transform": turned}}, "its transform rotates")
    renamed = {"outputDimensions": {"x": DIMS["x"], "y": DIMS["y"], "depth": DIMS["z"]}}
    check_left_out(
        {**image, "source": {"url": image["source"], "transform": renamed}},
        "its transform maps no axis of the data to",
    )
    with pytest.raises(ix.errors.LinkError, match="rotation"):
        open_state({**image, "transform": {"rotation": [0, 0, 0, 0]}})
    with pytest.raises(ix.errors.LinkError, match="sourceRank"):
        open_state(
            {**image, "source": {"url": image["source"], "transform": {"outputDimensions": DIMS, "sourceRank": 4}}}
        )


def test_exchanged_axes_of_a_layer_are_drawn_as_in_the_viewer(image):
    """The matrix of the transform moves the stored axis y along x, with a factor and a translation."""
    rows = [[0, 2, 0, 10], [0, 0, 1, 0], [0.5, 0, 0, -3]]
    there = {"outputDimensions": DIMS, "matrix": rows}
    tree = open_state({**image, "source": {"url": image["source"], "transform": there}})
    em, stored = tree["em/image"], ix.open_image(image["source"])
    (rx, ry, rz), shape = ix.grid_of(stored).resolution, stored.shape
    assert em.shape == (shape[2], shape[0], shape[1])
    assert ix.grid_of(em).resolution == (2 * ry, rz, rx / 2)
    np.testing.assert_allclose(em.x.values, 2 * stored.y.values + 10 * DIMS["x"][0] * 1e9)
    np.testing.assert_allclose(em.z.values, stored.x.values / 2 - 3 * DIMS["z"][0] * 1e9)
    part = em.isel(z=slice(100, 103), y=slice(5, 9), x=slice(200, 230))
    expected = stored.isel(x=slice(100, 103), z=slice(5, 9), y=slice(200, 230)).transpose("x", "z", "y")
    np.testing.assert_array_equal(part.values, expected.values)
    again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    assert again["em/image"].identical(em)
    picked = em.isel(z=[3, 1], y=2, x=[0, 4])
    np.testing.assert_array_equal(picked.values, stored.isel(x=[3, 1], z=2, y=[0, 4]).transpose("x", "y").values)


def test_a_layer_with_exchanged_axes_cannot_be_exported_onto_itself(image):
    there = {"outputDimensions": {k: DIMS[k] for k in "zyx"}}
    em = open_state({**image, "source": {"url": image["source"], "transform": there}})["em/image"]
    part = em.isel(z=slice(0, 2), y=slice(0, 8), x=slice(0, 8))
    with pytest.raises(ix.ImageryError, match="source|reads"):
        ix.export(part, image["source"], overwrite=True)


def test_input_dimensions_name_the_axes_of_a_source(image):
    order = {k: DIMS[k] for k in "zyx"}
    moved = {"inputDimensions": order, "outputDimensions": order, "matrix": [[2, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 5]]}
    em = open_state({**image, "source": {"url": image["source"], "transform": moved}})["em/image"]
    plain = ix.open_image(image["source"])
    np.testing.assert_allclose(em.z.values, 2 * plain.z.values + 40)
    np.testing.assert_allclose(em.x.values, plain.x.values + 40)


def ome(path, data, axes, scale):
    """Write an OME-Zarr 0.4."""
    types = {"t": "time", "c": "channel"}
    group = zarr.open_group(path, mode="w", zarr_format=2)
    named = [{"name": a, "type": types.get(a, "space"), **({"unit": "nanometer"} if a in "xyz" else {})} for a in axes]
    steps = [{"type": "scale", "scale": list(scale)}]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": named, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    ]
    group.create_array("0", data=data, chunks=data.shape, chunk_key_encoding={"name": "v2", "separator": "/"})
    return f"zarr://file://{path}"


def test_output_dimensions_name_the_axes_of_a_zarr_by_position(tmp_path):
    url = ome(str(tmp_path / "a.zarr"), np.arange(8 * 16 * 32, dtype="uint16").reshape(8, 16, 32), "zyx", (40, 8, 8))
    layer = {"type": "image", "name": "em"}
    stored = ix.open_image(url)
    for names in itertools.permutations("xyz"):  # the stored axes z, y, x are shown along these
        there = {"outputDimensions": {name: DIMS[name] for name in names}}
        em = open_state({**layer, "source": {"url": url, "transform": there}})["em/image"]
        expected = stored.rename(dict(zip("zyx", names, strict=True))).transpose("z", "y", "x")
        np.testing.assert_array_equal(em.values, expected.values)
        for axis in "xyz":
            np.testing.assert_array_equal(em[axis].values, expected[axis].values)
    em = open_state({**layer, "source": url, "transform": {"translation": [8, 0, 0]}})["em/image"]
    assert em.shape == (32, 16, 8)
    np.testing.assert_array_equal(em.x.values, stored.z.values + 8)
    order = {k: DIMS[k] for k in "zyx"}
    moved = {"outputDimensions": order, "matrix": [[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 5]]}
    em = open_state({**layer, "source": {"url": url, "transform": moved}})["em/image"]
    assert em.shape == (8, 16, 32)
    assert (em.z.values[0], em.x.values[0]) == (20 + 80 - 20, 4 + 40 - 4)
    named = {
        "inputDimensions": {"x": DIMS["x"], "z": DIMS["z"], "y": DIMS["y"]},
        "outputDimensions": {"x": DIMS["x"], "z": DIMS["z"], "y": DIMS["y"]},
    }
    assert open_state({**layer, "source": {"url": url, "transform": named}})["em/image"].shape == (8, 16, 32)


# --- channels and times --------------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path):
    """Return the address of an OME-Zarr with 5 times and 3 channels, each voxel 10 t + c."""
    t, c = np.arange(5)[:, None], np.arange(3)[None, :]
    data = np.broadcast_to((10 * t + c)[..., None, None, None], (5, 3, 2, 8, 8)).astype("uint8")
    return ome(str(tmp_path / "film.zarr"), np.ascontiguousarray(data), "tczyx", (1, 1, 40, 8, 8))


# An index of a Zarr is the centre of a voxel on these axes: index 3 reaches from 2.5 to 3.5.
FILM = {"dimensions": {**DIMS, "t": [1, "s"]}, "position": [4.5, 4.5, 1, 3], "displayDimensions": ["x", "y", "z"]}


@pytest.mark.parametrize(
    ("layer", "state", "value"),
    [
        ({}, {}, 31),  # the middle channel, as in the viewer
        ({"localPosition": [1.5]}, {}, 32),
        ({"localDimensions": {"c'": [1, ""]}, "localPosition": [0]}, {}, 30),
        ({}, {"position": [4.5, 4.5, 1, 0.49]}, 1),
        ({}, {"dimensions": {**DIMS, "t": [2, "s"]}, "position": [4.5, 4.5, 1, 2]}, 41),
        ({}, {"dimensions": {**DIMS, "t": [500, "ms"]}, "position": [4.5, 4.5, 1, 2]}, 11),
        ({"localPosition": [2]}, {"dimensions": DIMS, "position": [4.5, 4.5, 1]}, 22),
    ],
)  # fmt: skip
def test_the_channel_and_the_time_of_a_link_are_opened(film, layer, state, value):
    tree = open_state({"type": "image", "name": "em", "source": film, **layer}, **{**FILM, **state})
    assert np.unique(tree["em/image"].values).tolist() == [value]
    again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    assert np.unique(again["em/image"].values).tolist() == [value]


@pytest.mark.parametrize(
    ("control", "shader", "value"),
    [
        (None, "", 30),
        ([2], "", 32),
        (None, "#uicontrol invlerp normalized(channel=[1])\nvoid main() { emitGrayscale(normalized()); }", 31),
        ([0], "#uicontrol invlerp normalized(channel=[1])\nvoid main() { emitGrayscale(normalized()); }", 30),
        (None, "void main() { emitGrayscale(toNormalized(getDataValue(0))); }", 30),
    ],
)  # fmt: skip
def test_the_channel_that_a_shader_shows_is_opened(film, control, shader, value):
    names = {"t": [1, "s"], "c^": [1, ""], **{k: DIMS[k] for k in "zyx"}}
    layer = {"type": "image", "name": "em", "source": {"url": film, "transform": {"outputDimensions": names}}}
    layer |= {"shader": shader} if shader else {}
    layer |= {"shaderControls": {"normalized": {"channel": control}}} if control else {}
    tree = open_state(layer, **FILM)
    assert np.unique(tree["em/image"].values).tolist() == [value]
    written = state_of_link(tree)["layers"][0]
    assert written.get("shaderControls") == layer.get("shaderControls")


def test_times_are_in_the_units_of_the_source(tmp_path):
    """Half seconds in the file, seconds in the link, and a first frame at 10 s."""
    values = np.arange(6, dtype="uint8")[:, None, None, None]
    url = ome(
        str(tmp_path / "a.zarr"), np.ascontiguousarray(np.broadcast_to(values, (6, 2, 8, 8))), "tzyx", (500, 40, 8, 8)
    )
    meta = json.loads((tmp_path / "a.zarr" / ".zattrs").read_text())
    meta["multiscales"][0]["axes"][0]["unit"] = "millisecond"
    steps = meta["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    steps.append({"type": "translation", "translation": [10000, 0, 0, 0]})
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps(meta))
    layer = {"type": "image", "name": "em", "source": url}
    tree = open_state(layer, **{**FILM, "position": [4.5, 4.5, 1, 11.6]})
    assert np.unique(tree["em/image"].values).tolist() == [3]
    moved = {"outputDimensions": {"t": [1, "s"], **{k: DIMS[k] for k in "zyx"}}, "matrix": np.eye(4, 5).tolist()}
    moved["matrix"][0][4] = -10
    tree = open_state({**layer, "source": {"url": url, "transform": moved}}, **{**FILM, "position": [4.5, 4.5, 1, 1]})
    assert np.unique(tree["em/image"].values).tolist() == [2]


def test_a_layer_whose_channel_or_time_is_outside_the_data_is_skipped(film):
    layer = {"type": "image", "name": "em", "source": film, "localPosition": [3]}
    with pytest.warns(ix.errors.LinkWarning, match="index 3 of the dimension c', but the source has 0 to 2"):
        ix.open_neuroglancer({**FILM, "layers": [layer]}, allow_local=True)


# --- what is not drawn ---------------------------------------------------------------------------------------------------


def test_unknown_entries_are_written_back_unchanged(image, cells):
    shader = "#uicontrol invlerp normalized(range=[10, 240])\n#uicontrol vec3 tint color\nvoid main() { emitRGB(tint * normalized()); }"
    em = {
        **image,
        "shader": shader,
        "shaderControls": {"tint": "#ff0000", "normalized": {"range": [5, 200], "window": [0, 255]}},
        "blend": "default",
        "volumeRendering": "on",
        "opacity": 1.0,
    }
    seg = {
        **cells,
        "objectAlpha": 0.3,
        "segmentQuery": "a",
        "skeletonRendering": {"mode2d": "lines"},
        "tab": "segments",
        "archived": True,
        "segments": ["5"],
        "hideSegmentZero": False,
    }
    more = {
        "showSlices": False,
        "crossSectionDepth": -3.0,
        "gpuMemoryLimit": 10**9,
        "selectedLayer": {"layer": "em", "visible": True},
        "projectionOrientation": [0, 0, 1, 0],
        "relativeDisplayScales": {"x": 1},
        "velocity": {},
    }
    state = {"dimensions": DIMS, "position": PLACE, "layers": [em, seg], **more}
    with pytest.warns(ix.errors.LinkWarning, match="has a custom shader"):
        tree = ix.open_neuroglancer(state, allow_local=True)
    for obj in (tree, tree.imagery.view(size=(8, 8))):
        written = load_state(ix.neuroglancer_link(obj, allow_local=True))
        assert {k: written.get(k) for k in more} == more
        assert {k: written["layers"][0].get(k) for k in em} == em
    found = state_of_link(tree)["layers"][1]
    assert {k: found.get(k) for k in seg} == seg
    tree["em/image"].attrs["contrast_limits"] = (20, 30)
    controls = state_of_link(tree)["layers"][0]["shaderControls"]
    assert controls == {"tint": "#ff0000", "normalized": {"range": [20, 30], "window": [0, 255]}}


def test_a_custom_shader_of_16_bit_data_is_written_back(tmp_path):
    url = ome(str(tmp_path / "a.zarr"), np.zeros((2, 8, 8), "uint16"), "zyx", (40, 8, 8))
    layer = {"type": "image", "name": "em", "source": url, "shader": "void main() { emitRGB(vec3(0, 1, 0)); }"}
    with pytest.warns(ix.errors.LinkWarning, match="has a custom shader"):
        tree = ix.open_neuroglancer({"layers": [layer]}, allow_local=True)
    assert state_of_link(tree)["layers"][0]["shader"] == layer["shader"]


def test_an_older_state_is_written_back_as_a_newer_one(image):
    older = {
        "layers": {"em": {"type": "image", "source": image["source"]}},
        "navigation": {
            "pose": {"position": {"voxelSize": [8, 8, 40], "voxelCoordinates": PLACE}, "orientation": [0, 0, 1, 0]},
            "zoomFactor": 16,
        },
        "perspectiveOrientation": [0, 0, 0.6, 0.8],
        "perspectiveZoom": 100,
        "showSlices": False,
    }
    written = state_of_link(ix.open_neuroglancer(older, allow_local=True))
    assert written["dimensions"] == DIMS
    assert (written["position"], written["crossSectionScale"]) == (PLACE, 2)
    assert written["crossSectionOrientation"] == [0, 0, 1, 0]
    assert "navigation" not in written
    assert (written["perspectiveOrientation"], written["showSlices"]) == ([0, 0, 0.6, 0.8], False)


def test_a_position_in_a_group_counts_along_all_dimensions(film):
    layer = {"type": "image", "name": "em", "source": film, "localPosition": [0]}
    viewer = {"type": "viewer", "layers": ["em"], "position": unlinked_value([2.5, 3.5, 1.5, 4])}
    tree = open_state(layer, **FILM, layout=viewer)
    assert np.unique(tree["em/image"].values).tolist() == [40]
    assert state_of_link(tree)["layout"] == viewer
    tree.attrs |= {"position": [3.5, 4.5, 0.5], "display_dimensions": ["x", "z", "y"]}
    changed = {"position": unlinked_value([3.5, 4.5, 0.5, 4]), "displayDimensions": unlinked_value(["x", "z", "y"])}
    written = state_of_link(tree)
    assert written["layout"] == {**viewer, **changed}
    assert written["position"] == FILM["position"]
