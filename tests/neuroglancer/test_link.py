"""Neuroglancer links: opening, security, and writing."""

from __future__ import annotations

import copy
import json
import random
import re
import socket
import urllib.parse
import warnings
from contextlib import suppress
from importlib.metadata import metadata

import neuroglancer
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import imageryxr as ix
from imageryxr.core.display import SegmentDisplay
from imageryxr.neuroglancer.fetch import is_local_host, load_state
from imageryxr.neuroglancer.open_layers import check_source
from imageryxr.neuroglancer.state import LinkState, parse_state
from imageryxr.neuroglancer.state_json import url_safe_to_json
from imageryxr.sources.fetch.policy import Access
from tests.conftest import no_compute
from tests.support.links import NEW, OLD, on_sample, open_on_sample
from tests.support.viewer import viewer_rule

# A typical link: that to the MICrONS volume in the README of ImageryClient.
README = metadata("imageryclient")["Description"] or metadata("imageryclient").get_payload()
MICRONS = README[README.index("https://ngl.microns-explorer.org/#!") :].split(")")[0]


# --- reading a link ------------------------------------------------------------------------------------------------------


def test_open_a_typical_shared_link():
    state = parse_state(load_state(MICRONS))
    assert state.pose.resolution == (4, 4, 40)
    assert state.pose.position == (240640.5, 207872.5, 21360.5)
    assert state.pose.nm_per_pixel == pytest.approx(0.9700751861624107 * 4)
    assert [(layer.name, layer.kind, layer.source) for layer in state.layers] == [
        ("img65", "image", "precomputed://https://bossdb-open-data.s3.amazonaws.com/iarpa_microns/minnie/minnie65/em"),
        ("img35", "image", "precomputed://https://bossdb-open-data.s3.amazonaws.com/iarpa_microns/minnie/minnie35/em"),
        ("seg65", "segmentation", "precomputed://gs://iarpa_microns/minnie/minnie65/seg"),
        ("seg35", "segmentation", "precomputed://gs://iarpa_microns/minnie/minnie35/seg"),
    ]
    assert [layer.contrast for layer in state.layers[:2]] == [(86, 172), (112, 172)]
    look = state.layers[2].look
    assert (look.color_seed, look.selected_alpha, look.rest_alpha) == (1689220695, 0.41, 0.06)
    assert state.layers[3].look.selected_ids[0] == 864691137827278437


FORMS = {
    "link": lambda s: "https://neuroglancer-demo.appspot.com/#!" + urllib.parse.quote(json.dumps(s)),
    "link, unquoted": lambda s: "https://neuroglancer-demo.appspot.com/v/1/index.html#!" + json.dumps(s),
    "link with +": lambda s: "https://host/#!%2B" + urllib.parse.quote(json.dumps(s)),
    "as neuroglancer writes it": lambda s: neuroglancer.to_url(neuroglancer.ViewerState(s)),
    "url-safe": lambda s: "https://host/#!" + neuroglancer.url_state.json_to_url_safe(json.dumps(s)),
    "text": json.dumps,
    "mapping": lambda s: s,
    "viewer state": neuroglancer.ViewerState,
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_link_are_read(form):
    assert parse_state(load_state(FORMS[form](NEW))) == parse_state(NEW)


@pytest.mark.parametrize(
    "wrapped",
    ["[two cells]({})", "[]({})\n", "<{}>", " \u00a0{}\n", '"{}"', "'{}'", "“{}”", "`{}`", "[a (b) c]( <{}> )", "({})"],
)
@pytest.mark.parametrize("form", ["link", "link, unquoted", "url-safe"])
def test_wrapping_around_a_pasted_link_is_removed(wrapped, form, tmp_path):
    text = wrapped.replace("{}", FORMS[form](NEW))
    assert parse_state(load_state(text)) == parse_state(NEW)
    (tmp_path / "mail.txt").write_text(text)
    assert (
        parse_state(load_state(tmp_path / "mail.txt"))
        == parse_state(load_state(str(tmp_path / "mail.txt")))
        == parse_state(NEW)
    )


@pytest.mark.parametrize(
    "text", ["see {} , thanks", "{}.", "<{}|the link>", '<a href="{}">x</a>', "look ({}), please", "{}\n\nBest,\nA."]
)
def test_text_around_an_encoded_link_is_removed(text):
    assert parse_state(load_state(text.replace("{}", FORMS["link"](NEW)))) == parse_state(NEW)


def test_brackets_at_the_end_of_a_link_are_kept():
    state = {**NEW, "title": "(a)"}
    link = "https://host/#!" + json.dumps(state)
    assert load_state(link)["title"] == "(a)"
    assert load_state("(" + link + ")")["title"] == "(a)"
    with pytest.raises(ix.errors.LinkError):
        load_state("[](" * 3000 + link + ")" * 3000)


def test_a_bare_state_id_raises_an_error_with_its_url():
    with pytest.raises(
        ix.errors.LinkError,
        match=r"'5560000195854336' .*https://global\.daf-apis\.com/nglstate/api/v1/5560000195854336",
    ):
        ix.open_neuroglancer("5560000195854336")


def test_a_file_may_contain_a_link_or_a_state(tmp_path):
    for name, text in (("a.json", json.dumps(NEW)), ("b.txt", FORMS["link"](NEW) + "\n")):
        path = tmp_path / name
        path.write_text(text)
        assert parse_state(load_state(path)) == parse_state(load_state(str(path))) == parse_state(NEW)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", ["text", "link"])
def test_a_file_may_have_a_byte_order_mark(tmp_path, encoding, form):
    mark = "\ufeff" if encoding.endswith(("le", "be")) else ""
    path = tmp_path / "state.json"
    path.write_bytes((mark + FORMS[form]({**NEW, "title": "dos células"})).encode(encoding))
    assert load_state(path)["title"] == load_state(str(path))["title"] == "dos células"


def test_zero_width_characters_around_a_link_are_removed():
    for text in (FORMS["link"](NEW), json.dumps(NEW)):
        for around in ("\ufeff{}", "\u200b{}\u200b", " \u2060<\ufeff{}>\n\u200e"):
            if not (text[0] == "{" and "<" in around):
                assert parse_state(load_state(around.replace("{}", text))) == parse_state(NEW)


@pytest.mark.parametrize("number", [6480952892063744, np.int64(6480952892063744), np.uint64(6480952892063744)])
def test_a_number_is_treated_as_a_state_id(number):
    with pytest.raises(ix.errors.LinkError, match=r"https://global\.daf-apis\.com/nglstate/api/v1/6480952892063744"):
        ix.open_neuroglancer(number)


def test_arrays_and_series_in_a_state_are_converted(sample):
    ids = [213, 2**64 - 1]
    plain = open_on_sample({"layers": [cells(segments=[str(i) for i in ids])]}, sample)["cells/segmentation"].attrs
    series = pd.Series(ids, dtype="uint64", index=[7, 9])
    for value in (np.array(ids, np.uint64), series, pd.Index(ids, dtype="uint64"), tuple(ids), frozenset(ids)):
        state = {"layers": (cells(segments=value),)}
        state["layers"][0]["source"] = sample.segmentation
        tree = ix.open_neuroglancer(state, allow_local=True)
        assert sorted(tree["cells/segmentation"].attrs["selected_ids"]) == sorted(plain["selected_ids"])
        json.dumps(dict(tree.attrs))
        assert load_state(ix.neuroglancer_link(tree, allow_local=True))["layers"][0]["segments"]
    everything = {
        "dimensions": {a: (np.float64(8e-9), "m") for a in "xyz"},
        "position": np.array([4600.5, 2560.5, 130.5]),
        "crossSectionScale": np.float32(2),
        "layers": [
            {
                **cells(segments={213}, segmentColors=pd.Series({213: "red"}), equivalences=np.array([[1, 2]])),
                "source": {"url": sample.path / "segmentation", "transform": {"matrix": np.eye(3, 4)}},
                "notSelectedAlpha": np.float64(0.25),
                "visible": np.True_,
            }
        ],
    }
    tree = ix.open_neuroglancer(everything, allow_local=True)
    attrs = tree["cells/segmentation"].attrs
    assert (attrs["selected_ids"], attrs["colors"], attrs["rest_alpha"]) == ([213], '{"213": "#ff0000"}', 0.25)
    assert tree.attrs["position"] == [4600.5, 2560.5, 130.5]
    assert parse_state(load_state({"layers": [cells(segmentColors={213: "red"})]})).layers[0].look.colors


def cells(**entries):
    return {"type": "segmentation", "name": "cells", "source": "SEGMENTATION", **entries}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pd.Series([213, np.nan]), "213.0"),
        (np.array([1.5]), "1.5"),
        (object(), "object"),
        (b"213", "bytes"),
        ((i for i in [1]), "generator"),
        (np.array(["2020-01-01"], "datetime64[s]"), "datetime"),
        (np.array([-1]), "-1"),
    ],
)
def test_errors_name_values_that_json_does_not_support(value, message):
    with pytest.raises(ix.errors.LinkError, match=message):
        ix.open_neuroglancer({"layers": [cells(segments=value)]}, allow_local=True)


def test_neuroglancers_python_package_reads_the_same_state():
    state = parse_state(NEW)
    peer = neuroglancer.ViewerState(NEW)
    cells = peer.layers["cells"].layer
    assert dict(cells.starred_segments.items()) == {
        **dict.fromkeys(state.layers[1].look.selected_ids, True), **dict.fromkeys(state.layers[1].look.hidden_ids, False),
    }  # fmt: skip
    assert list(peer.position) == list(state.pose.position)
    assert cells.not_selected_alpha == state.layers[1].look.rest_alpha
    assert (cells.saturation, cells.color_seed) == (0.8, 77)


def test_units_and_the_order_of_dimensions_are_read():
    dims = {"z": [0.04, "µm"], "t": [1, "s"], "y": [8e-6, "mm"], "x": [8, "nm"], "c^": [1, ""]}
    state = parse_state({"dimensions": dims, "position": [130.5, 3, 2560.5, 4600.5, 0], "layers": []})
    assert state.pose.resolution == (8, 8, 40)
    assert state.pose.position == (4600.5, 2560.5, 130.5)


def test_the_older_form_of_a_state_is_read(sample):
    tree = open_on_sample(OLD, sample)
    assert json.loads(tree.attrs["dimensions"]) == {"x": [8.0, "nm"], "y": [8.0, "nm"], "z": [40.0, "nm"]}
    assert tree.attrs["position"] == [4600.5, 2560.5, 130.5]
    assert tree.attrs["nm_per_pixel"] == 16
    assert tree["em/image"].attrs["contrast_limits"] == (51, 204)
    seg = tree["cells/segmentation"]
    assert (seg.attrs["selected_ids"], seg.attrs["hidden_ids"], seg.attrs["selected_alpha"]) == ([5], [6], 0.3)
    nm = {"navigation": {"pose": {"position": {"voxelSize": [8, 8, 40], "spatialCoordinates": [800, 80, 4000]}}}}
    assert parse_state(nm).pose.position == (100, 10, 100)
    assert parse_state(
        {"navigation": {"voxelSize": [1, 2, 3], "pose": {"position": {"voxelCoordinates": [1, 1, 1]}}}}
    ).pose.resolution == (1, 2, 3)


def test_the_tree_has_a_child_per_layer_and_the_camera_as_attrs(sample):
    with (
        pytest.warns(ix.errors.LinkWarning, match="'notes' of the link is left out: layers of type 'mesh'"),
        no_compute(),
    ):
        tree = open_on_sample(NEW, sample)
    assert list(tree.children) == ["em", "cells"]
    assert json.loads(tree.attrs["unsupported_layers"])[0]["name"] == "notes"
    image, seg = tree["em/image"], tree["cells/segmentation"]
    assert image.attrs["contrast_limits"] == (60, 200)
    assert image.attrs["opacity"] == 0.7
    assert seg.attrs["selected_ids"] == [2**64 - 1, 12]
    assert seg.attrs["hidden_ids"] == [7]
    assert json.loads(seg.attrs["colors"]) == {"12": "#ff8000", "99": "#ff0000"}
    json.dumps(dict(tree.attrs))
    json.dumps(dict(seg.attrs))
    assert image.shape == ix.open_image(sample.image).shape


def test_only_the_layers_named_are_opened(sample):
    assert list(open_on_sample(NEW, sample, layers=["cells"]).children) == ["cells"]
    with pytest.raises(ix.errors.OptionError, match="'celles'"):
        open_on_sample(NEW, sample, layers=["celles"])


def test_layer_names_that_a_tree_cannot_have_are_changed(sample):
    layers = [{"type": "image", "name": name, "source": "IMAGE"} for name in ("a/b", "..", "a/b", "")]
    tree = open_on_sample({"layers": layers}, sample)
    assert len(tree.children) == 4
    assert list(tree.imagery.view(size=(4, 4)).data_vars) == ["a/b", "..", "a/b′", "layer 3"]


def segmentation_spec(link):
    state = neuroglancer.parse_url(link).to_json()
    return next(layer for layer in state["layers"] if layer["type"] == "segmentation")


def test_a_link_shows_chosen_segments_in_the_colours_of_their_figure(sample):
    ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    ids = [*ix.unique_ids(ds.segmentation)[:2].tolist(), 2**64 - 1]
    for colors in (None, "tab10", {i: (i % 256, 7, 9) for i in ids}, ("neuroglancer", 7)):
        picture = ix.overlay(ds.image, ds.segmentation, ids=ids, colors=colors)
        link = ix.neuroglancer_link(ds, ids=ids, colors=colors, allow_local=True)
        assert [int(i) for i in segmentation_spec(link)["segments"]] == ids
        opened = ix.open_neuroglancer(link, allow_local=True)["segmentation/segmentation"]
        assert opened.attrs["selected_ids"] == ids
        drawn = ix.overlay(None, opened)
        assert ix.colors_of(drawn, ids) == ix.colors_of(picture, ids)
    again = ix.neuroglancer_link(ds, colors=ix.colors_of(picture, ids), allow_local=True)
    assert segmentation_spec(again)["segmentColors"] == {
        str(i): "#" + bytes(rgb).hex() for i, rgb in ix.colors_of(picture, ids).items()
    }


def test_chosen_segments_replace_those_of_the_layer(sample):
    """The colours that the layer gives to segments stay, and a chosen segment is not listed as hidden."""
    link = {"layers": [{**cells(segments=["5", "!7"], segmentColors={"7": "#ff0000"}), "name": "cells"}]}
    tree = ix.open_neuroglancer(on_sample(link, sample), allow_local=True)
    spec = segmentation_spec(ix.neuroglancer_link(tree, ids=[7, 9], allow_local=True))
    assert spec["segments"] == ["7", "9"]
    assert spec["segmentColors"] == {"7": "#ff0000"}
    spec = segmentation_spec(ix.neuroglancer_link(tree, colors={9: "blue"}, allow_local=True))
    assert spec["segments"] == ["9", "!7"]
    assert spec["segmentColors"] == {"7": "#ff0000", "9": "#0000ff"}


def test_segments_that_a_link_cannot_show_raise(sample):
    em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
    with pytest.raises(ix.errors.OptionError, match="colors='tab10' needs the ids of segments"):
        ix.neuroglancer_link(seg, colors="tab10", allow_local=True)
    with pytest.raises(ix.errors.LayerError, match="no layer is a segmentation"):
        ix.neuroglancer_link(em, ids=[5], allow_local=True)
    with pytest.raises(ix.errors.ColorError, match="no colour for 1 of the 2 ids: 7"):
        ix.neuroglancer_link(seg, ids=[5, 7], colors={5: "red"}, allow_local=True)


# --- the view --------------------------------------------------------------------------------------------------------------


def test_the_view_is_the_aligned_box_around_the_position(sample):
    with pytest.warns(ix.errors.LinkWarning):
        tree = open_on_sample(NEW, sample)
    with no_compute():
        ds = tree.imagery.view(size=(200, 100, 3))
    assert list(ds.data_vars) == ["em", "cells"]
    box = ix.BBox.around((4600.5, 2560.5, 130.5), (200, 100, 3), resolution=(8, 8, 40))
    truth = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=box)
    np.testing.assert_array_equal(ds.em.values, truth.image.values)
    np.testing.assert_array_equal(ds.cells.values, truth.segmentation.values)
    assert ix.grid_of(ds.cells) == ix.grid_of(truth.image)


def test_the_overlay_of_a_view_looks_like_the_viewer(sample):
    with pytest.warns(ix.errors.LinkWarning):
        tree = open_on_sample(NEW, sample)
    ds = tree.imagery.view(size=(24, 20))
    ids = np.unique(ds.cells.values)
    chosen = [int(i) for i in ids if i][:2]
    ds["cells"] = ds.cells.assign_attrs(selected_ids=chosen, colors={str(chosen[0]): "#ff8000"})
    drawn = ds.imagery.overlay().values.astype(int)
    top = viewer_rule(ds.cells.values, SegmentDisplay.from_attrs(ds.cells.attrs)).astype(float)
    grey = np.clip((ds.em.values.astype(float) - 60) / 140 * 255, 0, 255)[..., None]
    alpha = top[..., 3:] / 255
    assert np.abs(drawn[..., :3] - (top[..., :3] * alpha + grey * (1 - alpha))).max() <= 1.01
    assert (drawn[..., 3] == 255).all()


def test_a_coarse_view_reads_a_coarse_level(sample):
    coarse = {
        **NEW,
        "dimensions": {"x": [3.2e-8, "m"], "y": [3.2e-8, "m"], "z": [4e-8, "m"]},
        "position": [1150, 640, 130],
    }
    with pytest.warns(ix.errors.LinkWarning):
        tree = open_on_sample(coarse, sample)
    ds = tree.imagery.view(size=(64, 64))
    assert ds.em.attrs["mip"] == 2
    assert ds.cells.attrs["mip"] == 1
    box = ix.grid_of(ds).bbox
    np.testing.assert_array_equal(ds.em.values, ix.open_image(sample.image, mip=2, bbox=box).values)
    np.testing.assert_array_equal(ds.cells.values, ix.open_segmentation(sample.segmentation, mip=1, bbox=box).values)
    finer = tree.imagery.view(size=(64, 64), resolution=(16, 16, 40))
    assert finer.em.attrs["mip"] == 1
    assert ix.grid_of(finer).resolution == (16, 16, 40)


def test_layers_outside_the_view_are_omitted(sample):
    far = {
        "url": "SEGMENTATION",
        "transform": {"outputDimensions": NEW["dimensions"], "matrix": [[1, 0, 0, 1e6], [0, 1, 0, 0], [0, 0, 1, 0]]},
    }
    state = {**NEW, "layers": [*NEW["layers"][:1], {"type": "segmentation", "name": "far", "source": far}]}
    tree = open_on_sample(state, sample)
    with pytest.warns(ix.errors.LinkWarning, match="'far' does not overlap the view"):
        ds = tree.imagery.view(size=(8, 8))
    assert list(ds.data_vars) == ["em"]
    with pytest.raises(ix.errors.OutOfVolumeError):
        tree.imagery.view(size=(8, 8), center=(0, 0, 0))


def test_hidden_layers_are_not_drawn(sample):
    layers = [NEW["layers"][0], {**NEW["layers"][1], "visible": False}]
    tree = open_on_sample({**NEW, "layers": layers}, sample)
    assert list(tree.imagery.view(size=(8, 8)).data_vars) == ["em"]
    assert list(tree.imagery.view(size=(8, 8), layers=["cells"]).data_vars) == ["cells"]
    assert tree.imagery.view(size=(8, 8), layers="cells").imagery.overlay().shape == (1, 8, 8, 4)


def test_a_transform_moves_and_scales_a_layer(sample):
    dims = NEW["dimensions"]
    moved = {
        "outputDimensions": dims,
        "inputDimensions": {"x": [1.6e-8, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
        "matrix": [[1, 0, 0, 100], [0, 1, 0, -50], [0, 0, 2, 4]],
    }
    state = {**NEW, "layers": [{"type": "image", "name": "em", "source": [{"url": "IMAGE", "transform": moved}]}]}
    tree = open_on_sample(state, sample)
    em, plain = tree["em/image"], ix.open_image(sample.image)
    grid, own = ix.grid_of(em), ix.grid_of(plain)
    assert grid.resolution == (16, 8, 80)
    # A point at x nm in the source is at 2 x + 100 · 8 nm in the view.
    assert em.x.values[0] == 2 * plain.x.values[0] + 800
    assert em.y.values[5] == plain.y.values[5] - 400
    assert em.z.values[7] == 2 * plain.z.values[7] + 160
    part = tree.imagery.view(
        size=(16, 8, 2),
        center=((em.x.values[40] + 8) / 8, em.y.values[30] / 8, em.z.values[9] / 40),
        resolution=(16, 8, 80),
    )
    at = np.searchsorted(em.x.values, part.em.x.values[0])
    row = np.searchsorted(em.y.values, part.em.y.values[0])
    np.testing.assert_array_equal(part.em.values, plain.values[8:10, row : row + 8, at : at + 16])
    coarse = tree.imagery.view(
        size=(8, 8), center=(em.x.values[40] / 8, em.y.values[40] / 8, em.z.values[9] / 40), resolution=(64, 32, 80)
    )
    assert coarse.em.attrs["mip"] == 2
    assert own.shape == grid.shape


def test_transforms_that_cannot_be_drawn_warn(sample):
    turned = {"outputDimensions": NEW["dimensions"], "matrix": [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]}
    state = {
        **NEW,
        "layers": [
            NEW["layers"][0],
            {"type": "image", "name": "turned", "source": {"url": "IMAGE", "transform": turned}},
        ],
    }
    with pytest.warns(ix.errors.LinkWarning, match="'turned' of the link is left out: its transform rotates"):
        assert list(open_on_sample(state, sample).children) == ["em"]
    older = {
        "layers": {
            "em": {
                "type": "image",
                "source": "IMAGE",
                "transform": [[1, 0, 0, 80], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
            }
        }
    }
    tree = open_on_sample(older, sample)
    assert tree["em/image"].x.values[0] == ix.open_image(sample.image).x.values[0] + 80
    again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    assert again["em/image"].x.equals(tree["em/image"].x)


def test_equivalent_ids_become_one(sample):
    seg = ix.open_segmentation(sample.segmentation)
    ids = [int(i) for i in ix.unique_ids(seg.isel(z=[0]))][:5]
    state = {
        "layers": [
            {
                "type": "segmentation",
                "name": "s",
                "source": "SEGMENTATION",
                "equivalences": [[str(ids[3]), str(ids[1])], [ids[1], ids[4]]],
            }
        ]
    }
    joined = open_on_sample(state, sample)["s/segmentation"].isel(z=[0]).values
    truth = seg.isel(z=[0]).values.copy()
    truth[np.isin(truth, [ids[3], ids[4]])] = ids[1]
    np.testing.assert_array_equal(joined, truth)


@pytest.mark.parametrize("chosen", [1, 3])
def test_equivalences_are_written_back(sample, chosen):
    seg = ix.open_segmentation(sample.segmentation)
    middle = seg.isel(z=[30], y=slice(100, 200), x=slice(100, 200))
    ids = [int(i) for i in ix.unique_ids(middle)][:5]
    layer = {"type": "segmentation", "name": "s", "source": "SEGMENTATION", "segments": [str(ids[chosen])]}
    layer["equivalences"] = [[str(ids[3]), str(ids[1])]]
    tree = open_on_sample({"layers": [layer]}, sample)
    where = [float(middle[d].mean()) for d in "xyz"]
    point = [nm / r for nm, r in zip(where, seg.resolution, strict=True)]
    ds = tree.imagery.view(size=(100, 100), center=point)
    shown = ds.imagery.overlay().values[..., 3] > 0
    np.testing.assert_array_equal(shown, np.isin(middle.values, [ids[1], ids[3]]))
    cut = ds.s.imagery.crop(ix.grid_of(ds).bbox).sel(z=slice(None))
    for back in (tree, ds, cut):
        again = ix.open_neuroglancer(ix.neuroglancer_link(back, allow_local=True), allow_local=True)
        view = again.imagery.view(size=(100, 100), center=point)
        np.testing.assert_array_equal(view.imagery.overlay().values[..., 3] > 0, shown)


@pytest.mark.parametrize(
    ("head", "value", "controls", "limits"),
    [
        ("#uicontrol invlerp c(\n  range=[20, 200]\n)", "c()", {}, (20, 200)),
        ("# uicontrol invlerp c(range=[20, 200])", "c()", {}, (20, 200)),
        ("#uicontrol invlerp a(range=[1, 2])\n#uicontrol invlerp b", "b()", {"b": {"range": [20, 200]}}, (20, 200)),
        ("#uicontrol invlerp c(range=[20, 200])\n// #uicontrol invlerp c(range=[1, 2])", "c()", {}, (20, 200)),
        ("#uicontrol invlerp c", "1.0 - c()", {"c": {"range": [20, 200]}}, (200, 20)),
    ],
)
def test_the_range_of_a_shader_is_read_and_written_back(sample, head, value, controls, limits):
    layer = {"type": "image", "name": "em", "source": "IMAGE", "shaderControls": controls}
    layer["shader"] = f"{head}\nvoid main() {{ emitGrayscale({value}); }}"
    tree = open_on_sample({"layers": [layer]}, sample)
    assert tree["em/image"].attrs["contrast_limits"] == limits
    again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    assert again["em/image"].attrs["contrast_limits"] == limits


def test_custom_shaders_warn(sample):
    slider = "#uicontrol float gamma slider(min=0, max=4)\n"
    for value in ("pow(toNormalized(getDataValue()), gamma)", "pow(toNormalized(getDataValue()), 0.5)"):
        shader = f"{slider}void main() {{ emitGrayscale({value}); }}"
        layer = {"type": "image", "name": "em", "source": "IMAGE", "shader": shader}
        layer["shaderControls"] = {"gamma": 0.1}
        with pytest.warns(ix.errors.LinkWarning, match="has a custom shader"):
            open_on_sample({"layers": [layer]}, sample)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"url": "IMAGE", "subsources": {"bounds": True}, "enableDefaultSubsources": False}, "has the voxels disabled"),
        ({"url": "IMAGE", "subsources": {"default": False}}, "has the voxels disabled"),
        (
            {"url": "IMAGE", "transform": {"outputDimensions": {a: [8e-9, "m"] for a in "abz"}}},
            "no axis of the data to",
        ),
        (["IMAGE", "IMAGE"], "has 2 volumes; only the first one is opened"),
    ],
)
def test_parts_of_a_source_that_are_not_drawn_are_reported(sample, source, message):
    layers = [{"type": "image", "name": "em", "source": source}, {"type": "image", "name": "b", "source": "IMAGE"}]
    with pytest.warns(ix.errors.LinkWarning, match=f"'em' .*{message}"):
        tree = open_on_sample({"layers": layers}, sample)
    assert ("em" in tree.children) == isinstance(source, list)


def test_timestamps_in_seconds_or_milliseconds_are_read():
    def when(value):
        layer = {"type": "segmentation", "name": "s", "source": "graphene://https://h.org/table/t", "timestamp": value}
        return parse_state({"layers": [layer]}).layers[0].timestamp

    assert when(1_700_000_000) == when("1700000000") == when(1_700_000_000_000) == when("1700000000000") == 1.7e9
    assert when(1_700_000_000_123) == 1_700_000_000.123


def test_contrast_limits_are_read_from_shaders(sample):
    def limits(**layer):
        tree = open_on_sample({"layers": [{"type": "image", "name": "em", "source": "IMAGE", **layer}]}, sample)
        return tree["em/image"].attrs.get("contrast_limits")

    assert limits() is None
    assert limits(shaderControls={"normalized": {"range": [200, 20]}}) == (200, 20)
    assert limits(shader="#uicontrol invlerp contrast(range=[5, 50])\nvoid main(){emitGrayscale(contrast());}") == (
        5,
        50,
    )
    assert limits(
        shader="#uicontrol invlerp a\n#uicontrol invlerp normalized\nvoid main(){emitGrayscale(a());}",
        shaderControls={"a": {"range": [1, 2]}, "normalized": {"range": [3, 4]}},
    ) == (1, 2)  # the limits of the control that the shader uses
    with pytest.warns(ix.errors.LinkWarning, match="has a custom shader"):
        limits(shader="void main() { emitRGB(colormapJet(toNormalized(getDataValue()))); }")


BRIGHTER = """#uicontrol float brightness slider(min=-1, max=1, default=0.0)
void main() { emitGrayscale(toNormalized(getDataValue()) + brightness); }"""


def test_a_slider_of_brightness_is_drawn(sample):
    def limits(**changes):
        layer = {"type": "image", "name": "em", "source": "IMAGE", "shader": BRIGHTER, **changes}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return open_on_sample({"layers": [layer]}, sample)["em/image"].attrs.get("contrast_limits")

    assert limits() is None  # the default of the slider, 0, changes no pixel
    assert limits(shaderControls={"brightness": 0.2}) == (-51, 204)
    assert limits(shader=BRIGHTER.replace("0.0", "-0.4")) == (102, 357)


def test_a_rotated_cross_section_warns(sample):
    """A view does not rotate, so it would show other tissue than the link."""
    tree = open_on_sample({**NEW, "layers": NEW["layers"][:1]}, sample)
    tree.imagery.view(size=(8, 8))
    for turn in ([0, 0, 0, -2], [1e-9, 0, 0, 1]):
        tree.attrs["orientation"] = turn
        tree.imagery.view(size=(8, 8))
    tree.attrs["orientation"] = [0.5, 0, 0, 0.9]
    with pytest.warns(ix.errors.LinkWarning, match=r"rotated.*imagery\.plane"):
        tree.imagery.view(size=(8, 8))


@pytest.mark.parametrize("layout", ["xz", "yz-3d", {"type": "yz", "orthographicProjection": True}])
@pytest.mark.parametrize("turned", [None, [0.1, 0.2, 0.3, 0.9]])
def test_a_layout_of_another_plane_is_cut_along_that_plane(sample, layout, turned):
    state = {**NEW, "layers": NEW["layers"][:1], "layout": layout, "crossSectionScale": 1}
    if turned:
        state["crossSectionOrientation"] = turned
    tree = open_on_sample(state, sample)
    with pytest.warns(ix.errors.LinkWarning, match=r"imagery\.plane\(\(width, height\)\)"):
        tree.imagery.view(size=(8, 8))
    cut = tree.imagery.plane((40, 30)).em
    panel = {"xz": [0.5**0.5, 0, 0, 0.5**0.5]}.get(str(layout), [0, 0.5**0.5, 0, 0.5**0.5])
    truth = (Rotation.from_quat(turned or [0, 0, 0, 1]) * Rotation.from_quat(panel)).as_matrix().T
    np.testing.assert_allclose(np.reshape(cut.attrs["plane_axes"], (3, 3)), truth, atol=1e-12)
    if layout == "xz" and not turned:
        em = tree["em/image"]
        plain = ix.plane(em, NEW["position"], (40, 30), normal="y", resolution=(8, 8, 40))
        np.testing.assert_array_equal(cut.values[0], plain.values[0])


# --- writing a link ----------------------------------------------------------------------------------------------------------


def comparable_parts(state: LinkState):
    """Return the layers and the camera of a parsed link as values that can be compared."""
    layers = {
        (x.name, x.kind, x.source, x.transform, x.visible, x.look, x.contrast, x.opacity)
        for x in map(_hashable, state.layers)
    }
    return state.pose.resolution, state.pose.position, state.pose.nm_per_pixel, state.pose.orientation, layers


def _hashable(layer):
    from dataclasses import replace

    look = layer.look
    fixed = (
        look.selected_ids,
        look.hidden_ids,
        tuple(sorted(look.colors.items())),
        look.color_seed,
        look.default_color,
        look.selected_alpha,
        look.rest_alpha,
        look.saturation,
        look.all_if_none_selected,
    )
    return replace(layer, look=fixed)


@pytest.mark.parametrize("turned", [None, [0.1, 0.2, 0.3, 0.9]])
@pytest.mark.filterwarnings("ignore:.*is left out:imageryxr.errors.LinkWarning")
@pytest.mark.filterwarnings("ignore:.*rotated cross section.*:imageryxr.errors.LinkWarning")
def test_a_link_that_is_opened_and_written_again_has_equal_layers_and_camera(sample, turned):
    state = on_sample({**NEW, **({"crossSectionOrientation": turned} if turned else {})}, sample)
    tree = ix.open_neuroglancer(state, allow_local=True)
    for obj in (tree, tree.imagery.view(size=(101, 64, 2)), tree.imagery.view(size=(64, 64))):
        link = ix.neuroglancer_link(obj, site="https://spelunker.cave-explorer.org", allow_local=True)
        assert link.startswith("https://spelunker.cave-explorer.org/#!%7B")
        assert comparable_parts(parse_state(load_state(link))) == comparable_parts(parse_state(state))
        assert neuroglancer.parse_url(link).layers["cells"].layer.visible_segments == {2**64 - 1, 12}
    names = [layer["name"] for layer in load_state(ix.neuroglancer_link(tree, allow_local=True))["layers"]]
    assert names == ["em", "cells", "notes"]
    assert list(ix.open_neuroglancer(link, allow_local=True).children) == ["em", "cells"]


@pytest.mark.filterwarnings("ignore:.*requested ids are not in the data:imageryxr.errors.MissingIdsWarning")
def test_arrays_that_were_not_opened_from_a_link_can_be_linked(sample):
    em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
    box = ix.BBox.around((4600, 2560, 130), (64, 64), resolution=(8, 8, 40))
    ds = ix.align(em, ix.select_ids(seg, [5, 2**64 - 1]), bbox=box)
    state = parse_state(load_state(ds.imagery.neuroglancer_link(allow_local=True)))
    assert state.pose.position == (4600.5, 2560.5, 130.5)
    assert state.pose.resolution == (8, 8, 40)
    assert state.layers[1].look.selected_ids == (5, 2**64 - 1)
    with pytest.raises(ix.errors.LinkError, match="on this machine"):
        ix.neuroglancer_link(ds)
    with pytest.raises(ix.errors.LinkError, match="in memory"):
        ix.neuroglancer_link(ds.compute().assign(image=ds.image.assign_attrs(source="an array")))


# --- untrusted and invalid links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc", "precomputed://file:///etc", "zarr:///etc/passwd", "/etc", "data/em", "precomputed://../x", "mem://x",
        "precomputed://http://localhost:8000/x", "zarr://http://127.0.0.1/x", "precomputed://http://[::1]:80/x",
        "precomputed://http://169.254.169.254/latest", "http://10.0.0.7/x", "precomputed://https://0x7f000001/x",
        "precomputed://http://2130706433/x", "graphene://http://localhost/segmentation/table/t", "precomputed://https://intranet/x",
        "http://user@127.0.0.1/x|precomputed:", "precomputed://http://127.1/x", "precomputed://http://x.localhost/y",
    ],
)  # fmt: skip
def test_a_link_may_not_access_this_machine(source):
    for kind in ("image", "segmentation"):
        with pytest.raises(ix.errors.LinkError, match="allow_local=True"):
            ix.open_neuroglancer({"layers": [{"type": kind, "name": "x", "source": source}]})


@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "storage.googleapis.com", "2001:4860:4860::8888"])
def test_public_hosts_are_not_local(host):
    assert not is_local_host(host)


@pytest.mark.parametrize(
    "source",
    [
        "graphene://https://evil.example.com/segmentation/table/t",
        "precomputed://middleauth+https://daf-apis.com.evil.org/x",
    ],
)
def test_tokens_are_not_sent_to_untrusted_hosts(source):
    (layer,) = parse_state({"layers": [{"type": "segmentation", "name": "s", "source": source}]}).layers
    with pytest.raises(ix.errors.AuthError, match="trusted_hosts"):
        check_source(layer, Access.of_link(False, ()))
    check_source(layer, Access.of_link(False, ["evil.example.com", "daf-apis.com.evil.org"]))
    (cave,) = parse_state(
        {
            "layers": [
                {
                    "type": "segmentation",
                    "name": "s",
                    "source": "graphene://middleauth+https://minnie.microns-daf.com/segmentation/table/t",
                }
            ]
        }
    ).layers
    check_source(cave, Access.of_link(False, ()))


def test_errors_contain_no_passwords():
    secret = "precomputed://https://me:hunter2@example.com/a"
    for link in (
        {"layers": [{"type": "image", "name": "x", "source": {"url": [secret]}}]},
        f"https://me:hunter2@host/{secret}",
    ):
        with pytest.raises(ix.errors.LinkError) as caught:
            ix.open_neuroglancer(link)
        assert "hunter2" not in str(caught.value)


DEEP = '{"layers":' + "[" * 100_000 + "]" * 100_000 + "}"
BROKEN = {
    "nothing": "",
    "a site": "https://neuroglancer-demo.appspot.com/",
    "an empty fragment": "https://neuroglancer-demo.appspot.com/#!",
    "cut": MICRONS[:900],
    "deep": DEEP,
    "deep mapping": None,
    "a list": "[1, 2]",
    "a number": 7,
    "no JSON": "#!{{{",
    "a huge int": '{"position": [' + "9" * 5000 + "]}",
    "NaN": '{"position": [NaN, 1, 2], "dimensions": {"x": [1, "m"], "y": [1, "m"], "z": [1, "m"]}}',
    "no file": "somewhere.json",
    "a state that leads on": "https://host/#!ftp://elsewhere/state",
    "a circle": None,
    "a bad port": "https://host:port/#!https://host:port/x",
    "a bad address": "https://[1::/state",
}


@pytest.mark.parametrize("case", BROKEN)
def test_text_that_is_not_a_link_is_an_error(no_network, case):
    link = BROKEN[case]
    if case == "deep mapping":
        link = {}
        for _ in range(5000):
            link = {"layers": link}
    if case == "a circle":
        link = {"layers": []}
        link["layers"] += [link, link, link["layers"]]
    with pytest.raises(ix.errors.LinkError):
        ix.open_neuroglancer(link)


ENTRIES = {
    "segments": ([{"type": "segmentation", "segments": ["1.5"]}], "segments"),
    "a float segment": ([{"type": "segmentation", "segments": [1.0]}], "not a whole number.*a float cannot represent"),
    "too large": ([{"type": "segmentation", "segments": [str(2**64)]}], "18446744073709551616"),
    "colour": ([{"type": "segmentation", "segmentColors": {"1": "rde"}}], "rde"),
    "range": ([{"type": "image", "shaderControls": {"normalized": {"range": [1]}}}], "list of 2"),
    "opacity": ([{"type": "image", "opacity": "much"}], "opacity"),
    "a layer": ([3], r"layers\[0\]"),
    "layers": ("em", "not a list of layers"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_an_invalid_entry_is_named(case):
    layers, message = ENTRIES[case]
    if isinstance(layers, list) and isinstance(layers[0], dict):
        layers = [{"name": "x", "source": "precomputed://gs://b/x", **layers[0]}]
    with pytest.raises(ix.errors.LinkError, match=message):
        ix.open_neuroglancer({"layers": layers})


def is_parsed_or_refused(link):
    """Return whether a link is parsed or raises an `ImageryError`; other errors propagate."""
    try:
        state = parse_state(load_state(link))
        for layer in state.layers:
            with suppress(ix.errors.LayerError):  # unsupported transforms raise this error
                placement, _ = layer.transform.apply("xyz")
                placement.place(ix.Grid((4, 4, 4), (8, 8, 40), (1, 2, 3)), (8, 8, 40))
            check_source(layer, Access.of_link(False, ()))
        return isinstance(state, LinkState)
    except ix.ImageryError:
        return True


ODD = [
    None,
    True,
    -1,
    0,
    1e308,
    2**64,
    "",
    "!",
    "x" * 300,
    [],
    {},
    [[]],
    {"x": 1},
    "0x12",
    [1, 2, 3, 4],
    "\ud800",
    "٣",
    1.5,
    "NaN",
    {"url": None},
    float("nan"),
    [None],
    10**5000,
    -(10**5000),
]


def mutate(state, rng):
    """Return a state in which some entries are replaced by unusual values."""
    state = copy.deepcopy(state)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        node = state
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.75:
                node = node[key]
                continue
            change = rng.random()
            if change < 0.6:
                node[key] = copy.deepcopy(rng.choice(ODD))
            elif change < 0.75:
                del node[key]
            elif isinstance(node, dict):
                node[
                    rng.choice(["type", "source", "transform", "segments", "dimensions", "navigation", "position"])
                ] = copy.deepcopy(node[key])
            break
    return state


@pytest.fixture
def no_network(monkeypatch):
    """Let name resolution fail, as without a network, so that no test loads a state from a URL."""

    def refuse(*args, **kwargs):
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.slow
def test_ten_thousand_mutated_links_are_parsed_or_raise_an_imagery_error(no_network):
    rng = random.Random(6)
    states = [NEW, OLD, load_state(MICRONS), {**NEW, "crossSectionOrientation": [0, 0, 0.7, 0.7]}]
    states[2]["layers"][0]["source"]["transform"] = {
        "outputDimensions": NEW["dimensions"],
        "inputDimensions": NEW["dimensions"],
        "matrix": [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3]],
    }
    for _ in range(7000):
        assert is_parsed_or_refused(mutate(rng.choice(states), rng))
    texts = [json.dumps(s) for s in states] + [FORMS[f](NEW) for f in ("link", "url-safe")]
    for _ in range(3000):
        text = list(rng.choice(texts))
        for _ in range(rng.choice([1, 2, 10])):
            place = rng.randrange(len(text))
            text[place : place + rng.choice([0, 1, 30])] = rng.choice(
                ["", "}", "{", "[", '"', "'", "\\", ",", "%", "#!", "9" * 400, "\x00", "_", "e"]
            )
        assert is_parsed_or_refused("{" + "".join(text)[1:] if text[0] == "{" else "".join(text))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "z", "url", "range", "matrix", "position", "pose"]) | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
keys = st.sampled_from(
    ["dimensions", "position", "navigation", "layers", "crossSectionScale", "crossSectionOrientation", "title"]
)
layer_keys = st.sampled_from(
    [
        "name",
        "type",
        "source",
        "segments",
        "segmentColors",
        "colorSeed",
        "shader",
        "shaderControls",
        "opacity",
        "transform",
        "equivalences",
        "timestamp",
        "visible",
        "selectedAlpha",
    ]
)


@pytest.mark.slow
@settings(max_examples=600)
@given(
    st.dictionaries(keys, json_values),
    st.lists(
        st.dictionaries(layer_keys, json_values | st.sampled_from(["image", "segmentation", "precomputed://gs://a/b"])),
        max_size=3,
    ),
)
def test_any_json_is_parsed_or_raises_an_imagery_error(state, layers):
    assert is_parsed_or_refused({**state, "layers": layers} if layers else state)


@settings(max_examples=300)
@given(st.text(max_size=60))
def test_any_text_as_a_link_is_parsed_or_raises_an_imagery_error(no_network, text):
    assert is_parsed_or_refused(text)
    assert is_parsed_or_refused("{" + text)
    assert is_parsed_or_refused("https://x/#!" + text)


@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.lists(st.integers(), max_size=3)))
def test_neuroglancers_url_safe_json_is_read(state):
    assert json.loads(url_safe_to_json(neuroglancer.url_state.json_to_url_safe(json.dumps(state)))) == state


def test_passwords_in_a_link_do_not_appear_in_messages(sample):
    url = {"url": "precomputed://https://me:hunter2@example.com/mesh"}
    notes = {"type": "annotation", "name": "notes", "source": "https://me:hunter2@example.com/notes"}
    layers = [{"type": "image", "name": "em", "source": [{"url": "IMAGE"}, url]}, notes]
    with pytest.warns(ix.errors.LinkWarning):
        tree = open_on_sample({"layers": layers}, sample)
    shown = json.dumps(dict(tree.attrs)) + json.dumps(dict(tree["em/image"].attrs))
    shown += ix.neuroglancer_link(tree, allow_local=True, site="https://spelunker.cave-explorer.org/#!")
    assert "hunter2" not in shown
    assert "spelunker.cave-explorer.org/#!%7B" in shown


def test_links_above_the_size_limit_raise(tmp_path):
    many = {"layers": [{"type": "image", "source": "precomputed://gs://b/x"}] * 501}
    with pytest.raises(ix.errors.LinkError, match="501 layers"):
        ix.open_neuroglancer(many)
    text = json.dumps({"title": "x" * 4_000_000, "layers": []})
    (tmp_path / "huge.json").write_text(text)
    for link in (text, "https://site/#!" + text, tmp_path / "huge.json", json.loads(text)):
        with pytest.raises(
            ix.errors.LinkError, match=r"than the limit of 4,000,000 .* give max_state_size='\d+ MB'"
        ) as caught:
            ix.open_neuroglancer(link)
        more = re.search(r"max_state_size='(.*)'", str(caught.value)).group(1)
        with pytest.warns(ix.errors.LinkWarning, match="the link has no layers"):
            assert ix.open_neuroglancer(link, max_state_size=more).attrs["title"] == "x" * 4_000_000
    for size in ("much", 0, -1, True, None, [1], "0 MB", float("nan"), "1e999 MB"):
        with pytest.raises(ix.errors.OptionError, match="max_state_size="):
            ix.open_neuroglancer({"layers": []}, max_state_size=size)
    with pytest.raises(ix.errors.LinkError, match="larger than the limit of 100 "):
        ix.open_neuroglancer({"layers": [], "title": "x" * 90}, max_state_size=100)


def test_a_hundred_thousand_selected_segments_can_be_read(sample):
    ids = [str(i) for i in range(1, 100_001)]
    state = {"layers": [{"type": "segmentation", "name": "s", "source": "SEGMENTATION", "segments": ids}]}
    tree = open_on_sample(state, sample)
    assert len(tree["s/segmentation"].attrs["selected_ids"]) == 100_000
    assert tree.imagery.view(size=(16, 16)).imagery.overlay().values.max() == 0  # none of the segments lies in the view


def test_a_tree_without_a_link_has_a_view(sample):
    import xarray as xr

    nodes = {
        "/image": ix.open_image(sample.image).to_dataset(),
        "/segmentation": ix.open_segmentation(sample.segmentation).to_dataset(),
    }
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"viewer_resolution": (16, 16, 40)}), **nodes})
    ds = tree.imagery.view(size=(64, 32), center=(2300, 1280, 130))
    assert list(ds.data_vars) == ["image", "segmentation"]
    assert ix.grid_of(ds).resolution == (16, 16, 40)
    levels = xr.DataTree.from_dict(
        {"/em": None, **{f"/em/{k}": v.to_dataset() for k, v in ix.open_multiscale(sample.image).children.items()}}
    )
    assert list(levels.imagery.view(size=(64, 32)).data_vars) == ["em"]
    with pytest.raises(ix.errors.LayerError, match="no images"):
        xr.DataTree().imagery.view(size=(4, 4))


def test_linked_layers_share_a_selection():
    first = {
        "type": "segmentation",
        "name": "a",
        "source": "precomputed://gs://b/a",
        "segments": ["5", "!6"],
        "colorSeed": 9,
        "segmentColors": {"5": "red"},
        "selectedAlpha": 0.9,
    }
    both = {
        "type": "segmentation",
        "name": "b",
        "source": "precomputed://gs://b/b",
        "linkedSegmentationGroup": "a",
        "segments": ["7"],
    }
    own = {**both, "name": "c", "linkedSegmentationColorGroup": False, "colorSeed": 3}
    a, b, c = (layer.look for layer in parse_state({"layers": [first, both, own]}).layers)
    assert (
        (b.selected_ids, b.hidden_ids)
        == (c.selected_ids, c.hidden_ids)
        == (a.selected_ids, a.hidden_ids)
        == ((5, 7), (6,))
    )
    assert (b.color_seed, b.colors) == (9, a.colors)
    assert (c.color_seed, c.colors) == (3, {})
    assert (a.selected_alpha, b.selected_alpha) == (0.9, 0.5)


def test_additive_blending_warns(sample):
    with pytest.warns(ix.errors.LinkWarning, match="the viewer blends the layer 'em' of the link additively"):
        open_on_sample({"layers": [{"type": "image", "name": "em", "source": "IMAGE", "blend": "additive"}]}, sample)


def test_half_of_a_surrogate_pair_can_be_written_to_a_link(sample):
    tree = open_on_sample(
        {"title": "\udfff", "layers": [{"type": "image", "name": "\ud800é", "source": "IMAGE"}]}, sample
    )
    again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    assert list(again.children) == ["?é"]


@pytest.mark.parametrize(
    "turn",
    [
        {"normal": "z"}, {"normal": "y"}, {"normal": "x"}, {"normal": (1, 1, 0.2)}, {"normal": (-1, 0.3, 2), "up": (0, 0, 1)},
        *({"orientation": q} for q in ([0.5, 0.5, 0.5, 0.5], [0.1, -0.2, 0.3, 0.9], [0, 0, 1, 0], [0.6, 0.8, 0, 0])),
    ],
)  # fmt: skip
def test_a_link_of_a_plane_shows_that_plane(sample, turn):
    em = ix.open_image(sample.image)
    place = (4600.5, 2560.5, 130.5)
    cut = ix.plane(em, place, (64, 48), nm_per_pixel=8, resolution=(8, 8, 40), **turn)
    tree = ix.open_neuroglancer(ix.neuroglancer_link(cut, allow_local=True), allow_local=True)
    there = [
        p * u[0] for p, u in zip(tree.attrs["position"], json.loads(tree.attrs["dimensions"]).values(), strict=True)
    ]
    np.testing.assert_allclose(there, np.multiply(place, (8, 8, 40)), atol=1e-6)
    back = tree.imagery.plane((64, 48))["image"]
    assert ix.grid_of(back).resolution == (8, 8, 8)
    differs = np.abs(back.values.astype(int) - cut.values.astype(int)) > 1  # the quaternion has rounding errors
    assert differs.mean() < 0.01
    if "orientation" in turn:
        given = np.array(turn["orientation"]) / np.linalg.norm(turn["orientation"])
        assert abs(np.dot(tree.attrs["orientation"], given)) == pytest.approx(1)
