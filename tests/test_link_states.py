"""States that Neuroglancer draws by rules of its own: what is selected, which dimensions are on the screen, where layers lie.

The oracle is Neuroglancer's source: layer/segmentation/index.ts, navigation_state.ts, coordinate_transform.ts,
layer_groups_layout.ts.
"""

from __future__ import annotations

import json
import warnings

import neuroglancer
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import imageryxr as ix
from imageryxr.sources.links import state_of
from imageryxr.sources.neuroglancer import parse_state

DIMS = {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}
PLACE = [4600.5, 2560.5, 130.5]


@pytest.fixture
def image(sample):
    return {"type": "image", "name": "em", "source": sample.image}


@pytest.fixture
def cells(sample):
    return {"type": "segmentation", "name": "cells", "source": sample.segmentation}


def opened(*layers, **state):
    """Return the tree of a state; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ix.LinkWarning)
        return ix.open_neuroglancer(
            {"dimensions": DIMS, "position": PLACE, **state, "layers": list(layers)}, allow_local=True
        )


def back(tree):
    """Return the state of a tree's link, which Neuroglancer's own Python package reads as well."""
    state = state_of(ix.neuroglancer_link(tree, allow_local=True))
    again = neuroglancer.ViewerState(state)
    assert [layer.name for layer in again.layers] == [layer["name"] for layer in state["layers"]]
    return state


# --- which segments are visible ------------------------------------------------------------------------------------------


def drawn(tree):
    """Return which ids have a colour in a view of the only layer, and which are there."""
    ds = tree.imagery.view(size=(64, 48))
    alpha = ds.imagery.overlay().values[..., 3]
    ids = next(iter(ds.data_vars.values())).values
    return {int(i) for i in np.unique(ids[alpha > 0])}, {int(i) for i in np.unique(ids) if i}


def test_only_the_background_selected_draws_no_segment(cells):
    tree = opened({**cells, "segments": ["0"]})
    assert drawn(tree)[0] == set()
    assert back(tree)["layers"][0]["segments"] == ["0"]


def test_background_beside_a_selection_changes_nothing(cells):
    _, there = drawn(opened(cells))
    one = min(there)
    assert drawn(opened({**cells, "segments": ["0", str(one)]}))[0] == {one}
    assert opened({**cells, "segments": ["0", str(one)]})["cells/segmentation"].attrs["selected_ids"] == [one]


@pytest.mark.parametrize(
    ("said", "rule"),
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
def test_the_viewer_decides_which_segments_are_visible(cells, said, rule):
    _, there = drawn(opened(cells))
    one, two = sorted(there)[:2]
    text = json.dumps(said).replace("ONE", str(one)).replace("TWO", str(two))
    tree = opened({**cells, **json.loads(text)})
    found, has = drawn(tree)
    wanted = {"all": has, "none": set(), "one": {one}, "joined": {one}}[rule]
    assert found == wanted
    again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    assert drawn(again)[0] == wanted


def test_what_of_segments_is_not_drawn_is_reported(cells):
    with pytest.warns(ix.LinkWarning, match="hideSegmentZero"):
        ix.open_neuroglancer({"layers": [{**cells, "hideSegmentZero": False}]}, allow_local=True)
    layer = {**cells, "baseSegmentColoring": True, "equivalences": [["1", "2"]]}
    with pytest.warns(ix.LinkWarning, match="baseSegmentColoring"):
        ix.open_neuroglancer({"layers": [layer]}, allow_local=True)
    opened({**cells, "hideSegmentZero": False, "segments": ["5"], "baseSegmentColoring": True})


# --- layers that share a selection ---------------------------------------------------------------------------------------


def looks(*layers):
    source = "precomputed://gs://bucket/path"
    specs = [{"type": "segmentation", "name": name, "source": source, **spec} for name, spec in layers]
    return {layer.name: layer.look for layer in parse_state({"layers": specs}).layers}


def test_a_linked_layer_adds_to_its_root(cells):
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


def test_links_are_made_in_the_order_of_the_layers():
    """`linkToLayer` takes the root that the other layer has at that moment."""
    found = looks(
        ("c", {"linkedSegmentationGroup": "b", "segments": ["3"]}),
        ("b", {"linkedSegmentationGroup": "a", "segments": ["2"]}),
        ("a", {"segments": ["1"]}),
    )
    assert found["a"].selected_ids == found["b"].selected_ids == (2, 1)
    assert found["c"].selected_ids == (3,)


def test_links_in_a_circle_end():
    found = looks(
        ("a", {"linkedSegmentationGroup": "b", "segments": ["1"]}),
        ("b", {"linkedSegmentationGroup": "a", "segments": ["2"]}),
        ("c", {"linkedSegmentationGroup": "c", "segments": ["3"]}),
        ("d", {"linkedSegmentationGroup": "nowhere", "segments": ["4"]}),
    )
    assert [look.selected_ids for look in found.values()] == [(1, 2), (1, 2), (3,), (4,)]


def test_colours_are_linked_apart_from_the_selection():
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
    _, there = drawn(opened(cells))
    one = min(there)
    root = {"type": "segmentation", "name": "root", "source": "dvid://https://server/uuid/seg", "segments": [str(one)]}
    linked = {**cells, "linkedSegmentationGroup": "root"}
    with pytest.warns(ix.LinkWarning, match="'root' of the link is left out"):
        tree = ix.open_neuroglancer({"dimensions": DIMS, "position": PLACE, "layers": [root, linked]}, allow_local=True)
    assert tree["cells/segmentation"].attrs["selected_ids"] == [one]
    assert drawn(tree)[0] == {one}
    state = back(tree)
    assert state["layers"][0] == root
    assert state["layers"][1]["linkedSegmentationGroup"] == "root"


def test_links_of_layers_come_back_as_long_as_they_are_true(cells):
    a, b = {**cells, "segments": ["5"]}, {**cells, "name": "b", "linkedSegmentationGroup": "cells", "segments": ["7"]}
    tree = opened(a, b)
    assert back(tree)["layers"][1]["linkedSegmentationGroup"] == "cells"
    tree["b/segmentation"].attrs["selected_ids"] = [7]
    state = back(tree)
    assert "linkedSegmentationGroup" not in state["layers"][1]
    assert [layer.look.selected_ids for layer in parse_state(state).layers] == [(5, 7), (7,)]
    ds = tree.imagery.view(size=(8, 8))
    assert "linkedSegmentationGroup" not in state_of(ix.neuroglancer_link(ds[["b"]], allow_local=True))["layers"][0]


# --- which dimensions are on the screen ----------------------------------------------------------------------------------


FLAT = (["y", "x"], ["z"], ["nowhere", "z", "x"])


def plane_axes(tree):
    return np.array(tree.imagery.plane((16, 12)).em.attrs["plane_axes"])


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
    tree = opened(image, **state)
    panel = {"xy": [0, 0, 0, 1], "xz": [0.5**0.5, 0, 0, 0.5**0.5], "yz-3d": [0, 0.5**0.5, 0, 0.5**0.5]}[layout]
    rows = (Rotation.from_quat(turned or [0, 0, 0, 1]) * Rotation.from_quat(panel)).as_matrix().T
    truth = np.zeros((3, 3))
    for i, name in enumerate(screen):
        truth[:, "xyz".index(name)] = rows[:, i]
    np.testing.assert_allclose(plane_axes(tree), truth, atol=1e-12)
    for obj in (tree, tree.imagery.view(size=(8, 8)) if np.allclose(truth, np.eye(3)) else tree):
        written = back(obj) if obj is tree else state_of(ix.neuroglancer_link(obj, allow_local=True))
        assert written.get("displayDimensions") == state.get("displayDimensions")
        assert list(written["dimensions"]) == list(state.get("dimensions", DIMS))
        np.testing.assert_allclose(written["position"], state.get("position", PLACE))


def test_a_view_reports_other_display_dimensions(image):
    tree = opened(image, displayDimensions=["x", "z", "y"])
    with pytest.warns(ix.LinkWarning, match=r"x, z, y.*imagery\.plane"):
        ds = tree.imagery.view(size=(16, 12))
    assert state_of(ix.neuroglancer_link(ds, allow_local=True))["displayDimensions"] == ["x", "z", "y"]
    cut = tree.imagery.plane((16, 12)).em
    plain = ix.plane(tree["em/image"], PLACE, (16, 12), normal="y", nm_per_pixel=8, resolution=(8, 8, 40))
    np.testing.assert_array_equal(cut.values, plain.values)
    link = state_of(ix.neuroglancer_link(tree.imagery.plane((16, 12)), allow_local=True))
    assert "displayDimensions" not in link  # its quaternion counts in x, y and z


def test_screens_that_no_picture_shows_are_reported_and_come_back(image):
    for said, message in (
        ({"dimensions": {"t": [1, "s"], **DIMS}, "displayDimensions": ["t", "x", "y"]}, "dimensions t, x, y"),
        ({"relativeDisplayScales": {"z": 3}}, "stretched along z 3 times"),
        ({"displayDimensions": ["x", "y"], "layout": "xz"}, "only x and y"),
    ):
        state = {"dimensions": DIMS, "position": PLACE, "layers": [image], **said}
        if "t" in state["dimensions"]:
            moved = {"outputDimensions": {**DIMS, "t": [1, "s"]}, "sourceRank": 3}
            state["position"] = [0, *PLACE]
            state["layers"] = [{**image, "source": {"url": image["source"], "transform": moved}}]
        with pytest.warns(ix.LinkWarning, match=message):
            tree = ix.open_neuroglancer(state, allow_local=True)
        written = back(tree)
        assert {k: written[k] for k in (*said, "position")} == {**said, "position": state["position"]}


def test_the_zoom_counts_the_smallest_displayed_side(image):
    dims = {"x": [8e-9, "m"], "y": [1.6e-8, "m"], "z": [4e-8, "m"]}
    assert parse_state({"dimensions": dims, "crossSectionScale": 2, "layers": []}).nm_per_pixel == 16
    screen = {"displayDimensions": ["z", "y"], "relativeDisplayScales": {"y": 2}}
    assert parse_state({"dimensions": dims, "crossSectionScale": 2, **screen, "layers": []}).nm_per_pixel == 64
