"""Several layers and masks in one overlay, and display attributes of layers."""

from __future__ import annotations

import dask
import imageryclient
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.core.display import SegmentDisplay
from tests.conftest import no_compute, volume
from tests.support.viewer import viewer_rule
from tests.support.volumes import FINE, IDS, IMAGE, as_source

rng = np.random.default_rng(11)
OTHER = FINE.copy(data=np.roll(FINE.values, 7, axis=2))
SLICE = {"z": [1]}


def over(bottom, top):
    """Return RGBA over RGBA (not premultiplied), computed in floats, as the expected value."""
    a, b = top[..., 3:] / 255, bottom[..., 3:] / 255
    alpha = a + b * (1 - a)
    rgb = np.where(alpha > 0, (top[..., :3] * a + bottom[..., :3] * b * (1 - a)) / np.where(alpha > 0, alpha, 1), 0)
    return np.concatenate([rgb, alpha * 255], axis=-1)


def test_layers_are_drawn_in_their_order():
    first, second = {5: "red"}, {int(IDS[4]): (0, 0, 255)}
    both = ix.overlay(IMAGE, [ix.Layer(FINE, colors=first, alpha=0.5), ix.Layer(OTHER, colors=second, outline=2)])
    steps = ix.composite(
        ix.overlay(IMAGE, FINE, colors=first, alpha=0.5), ix.overlay(None, OTHER, colors=second, outline=2)
    )
    np.testing.assert_array_equal(both.values, steps.values)
    swapped = ix.overlay(IMAGE, [ix.Layer(OTHER, colors=second, outline=2), ix.Layer(FINE, colors=first, alpha=0.5)])
    assert (swapped.values != both.values).any()


@pytest.mark.parametrize(
    ("image", "layers", "message"),
    [
        (IMAGE, [FINE, FINE[:, :, 1:]], "the image and layer 1 do not lie"),
        (IMAGE, {"a": FINE == 5, "b": FINE[:, 1:] == 5}, "the image and mask 'b' do not lie"),
        (None, [FINE, FINE[:, :, 1:]], "layer 1 and the first one do not lie"),
        (None, {"a": FINE == 5, "b": FINE[:, 1:] == 5}, "mask 'b' and the first one do not lie"),
    ],
)
def test_a_layer_on_another_grid_is_named(image, layers, message):
    with pytest.raises(ix.errors.GridMismatchError, match=message):
        ix.overlay(image, layers)


def test_options_of_the_call_are_defaults_of_the_layers():
    layers = [FINE, ix.Layer(OTHER, alpha=0.9, outline=False)]
    both = ix.overlay(IMAGE, layers, alpha=0.3, outline=ix.Outline(2, side="in"))
    steps = ix.composite(
        ix.overlay(IMAGE, FINE, alpha=0.3, outline=ix.Outline(2, side="in")), ix.overlay(None, OTHER, alpha=0.9)
    )
    np.testing.assert_array_equal(both.values, steps.values)


def test_layers_are_lazy_and_read_once():
    with no_compute():
        picture = ix.overlay(as_source(IMAGE), [as_source(FINE), as_source(OTHER)], outline=2)
        masks = ix.overlay(as_source(IMAGE), {"a": as_source(FINE) == 5, "b": as_source(FINE) == IDS[4]}, overlap=False)
    (blocks,) = dask.optimize(picture.data)
    assert len(blocks.dask) == picture.data.npartitions
    np.testing.assert_array_equal(picture.values, ix.overlay(IMAGE, [FINE, OTHER], outline=2).values)
    plain = ix.overlay(IMAGE, {"a": FINE == 5, "b": IDS[4] == FINE}, overlap=False)
    np.testing.assert_array_equal(masks.values, plain.values)


def test_rest_alpha_draws_segments_that_are_not_requested():
    picture = ix.overlay(None, FINE, ids=[5], colors={5: "red", int(IDS[4]): "blue"}, alpha=1.0, rest_alpha=0.2)
    values, labels = picture.values, FINE.values
    assert values[labels == 5].tolist() == [[255, 0, 0, 255]] * int((labels == 5).sum())
    assert set(map(tuple, values[labels == IDS[4]].tolist())) == {(0, 0, 255, 51)}
    others = (labels != 5) & (labels != IDS[4])
    np.testing.assert_array_equal(values[others], ix.overlay(None, FINE, alpha=0.2).values[others])
    everyone = ix.overlay(None, FINE, ids=[5], alpha=0.8, rest_alpha=0.4).values
    truth = ix.overlay(None, FINE, alpha=0.4).values
    np.testing.assert_array_equal(everyone[labels != 5], truth[labels != 5])
    assert set(everyone[labels == 5][:, 3].tolist()) == {204}


def test_outside_the_volume_is_opaque_with_an_image_and_transparent_without():
    grid = ix.grid_of(IMAGE)
    lo = (grid.voxel_offset[0] - 3, *grid.voxel_offset[1:])
    box = ix.BBox(lo, (lo[0] + 6, lo[1] + 4, lo[2] + 1), resolution=grid.resolution)
    image, labels = ix.crop(IMAGE, box), ix.crop(FINE, box)
    for picture in (ix.to_rgba(image), ix.overlay(image, labels)):
        assert (picture.values[:, :, :3] == (0, 0, 0, 255)).all()
    assert not ix.overlay(None, labels).values[:, :, :3].any()
    assert (ix.to_rgba(image, contrast_limits=(200, 50)).values[:, :, :3] == 255).all()


@pytest.mark.parametrize("look", [False, True])
def test_segments_without_a_colour_in_the_dict_have_the_colour_of_their_id(look):
    seg = FINE.assign_attrs(SegmentDisplay(selected_ids=(7,), rest_alpha=0.5).to_attrs()) if look else FINE
    labels = FINE.values
    colors = {5: "#ff000080", int(IDS[4]): "blue"}
    faint = ix.overlay(None, FINE, alpha=0.2).values
    others = ~np.isin(labels, list(colors))
    for ids in (None, [5], list(colors)):
        drawn = ix.overlay(None, seg, ids=ids, colors=colors, alpha=1.0, rest_alpha=0.2).values
        np.testing.assert_array_equal(drawn[others], faint[others])
        assert set(map(tuple, drawn[labels == 5].tolist())) == {(255, 0, 0, 128)}  # half of the alpha of the layer
        assert set(map(tuple, drawn[labels == IDS[4]].tolist())) == {(0, 0, 255, 51 if ids == [5] else 255)}
        plain = ix.overlay(None, seg, ids=ids, colors=colors, alpha=1.0).values
        assert plain[others].max() == 0
    assert not drawn[labels == 0].any()


def test_a_dict_sets_the_alpha_of_single_ids():
    picture = ix.overlay(None, FINE, alpha={5: 0.9, int(IDS[-1]): 0.0}).values
    labels = FINE.values
    assert set(picture[labels == 5][:, 3].tolist()) == {230}
    assert set(picture[labels == IDS[-1]][:, 3].tolist()) == {0}
    assert set(picture[labels == IDS[4]][:, 3].tolist()) == {51}
    with pytest.raises(ix.errors.OptionError, match=r"alpha\[5\]=2"):
        ix.overlay(None, FINE, alpha={5: 2})


def test_outlines_are_drawn_around_requested_ids_only():
    lines = ix.overlay(None, FINE, ids=[5], alpha=0, rest_alpha=0.1, outline=2).values
    alone = ix.outline(FINE, ids=[5], width=2).values
    np.testing.assert_array_equal(lines[alone[..., 3] > 0], alone[alone[..., 3] > 0])


# --- masks -------------------------------------------------------------------------------------------------------------


def discs(count, seed):
    """Return masks (1, 40, 52) of discs that overlap."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :52]
    return [
        ((y - rng.integers(40)) ** 2 + (x - rng.integers(52)) ** 2 < rng.integers(4, 16) ** 2)[None]
        for _ in range(count)
    ]


@pytest.mark.slow
@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 4),
    overlap=st.booleans(),
    outline=st.one_of(st.none(), st.tuples(st.integers(1, 4), st.sampled_from(["in", "out"]), st.booleans())),
    alpha=st.sampled_from([0.2, 0.5, 1.0]),
)
def test_masks_agree_with_imageryclient(seed, count, overlap, outline, alpha):
    masks = discs(count, seed)
    colors = [tuple(c) for c in np.random.default_rng(seed).random((count, 3))]
    image = IMAGE.isel(SLICE)
    width, side, merge = outline or (1, "out", True)
    theirs = imageryclient.composite_overlay(
        [m[0].T for m in masks], colors, alpha=alpha, imagery=image.values[0].T, overlap=overlap, outline=outline is not None,
        width=width, side=side, merge_outline=merge,
    )  # fmt: skip
    if outline is None:
        ours = ix.overlay(image, masks, colors=colors, alpha=alpha, overlap=overlap)
    else:
        style = ix.Outline(width, side, merge, alpha)
        ours = ix.overlay(image, masks, colors=colors, alpha=0, outline=style, overlap=overlap)
    a, b = np.asarray(ix.to_pil(ours)).astype(int), np.asarray(theirs).astype(int)
    margin = width if outline else 0
    inner = (slice(margin, 40 - margin), slice(margin, 52 - margin))
    assert np.abs(a[inner] - b[inner]).max(initial=0) <= 2 + count


def test_the_order_of_a_dict_of_masks_is_kept():
    a, b = discs(2, 5)
    image = IMAGE.isel(SLICE)
    picture = ix.overlay(image, {"b": b, "a": a}, colors={"a": "red", "b": "blue"}, alpha=1).values
    assert (picture[a & b][:, :3] == [255, 0, 0]).all()
    first = ix.overlay(image, {"b": b, "a": a}, colors={"a": "red", "b": "blue"}, alpha=1, overlap=False).values
    assert (first[a & b][:, :3] == [0, 0, 255]).all()


def test_split_masks_are_drawn_as_the_segments_are():
    masks = ix.split_masks(as_source(FINE), IDS[1:])
    drawn = ix.overlay(IMAGE, masks, alpha=0.4)
    np.testing.assert_array_equal(drawn.values, ix.overlay(IMAGE, FINE, alpha=0.4).values)


@pytest.mark.parametrize(
    ("masks", "options", "error", "message"),
    [
        ({}, {}, ix.errors.OptionError, "no masks"),
        ([], {}, ix.errors.OptionError, "empty list"),
        ({"a": np.zeros((3, 4), bool)}, {}, ix.errors.GridMismatchError, r"shape \(3, 4\)"),
        ({"a": np.zeros((52, 40, 3), bool)}, {}, ix.errors.GridMismatchError, r"give mask\.T"),
        ({"a": IMAGE.astype(float)}, {}, ix.errors.LayerError, "float64"),
        ({"a": "red"}, {}, ix.errors.LayerError, "mask .* is a str; give a bool DataArray"),
        ({"a": IMAGE > 3}, {"colors": {"b": "red"}}, ix.errors.ColorError, "mask 'a'"),
        ([IMAGE > 3], {"colors": ["red", "blue"]}, ix.errors.ColorError, "2 colours for 1 masks"),
        ({"a": IMAGE > 3}, {"ids": ["c"]}, ix.errors.OptionError, "'c'"),
    ],
)
def test_invalid_masks_raise(masks, options, error, message):
    with pytest.raises(error, match=message):
        ix.overlay(IMAGE, masks, **options)


def test_masks_without_coordinates_need_an_image():
    with pytest.raises(ix.errors.LayerError, match="no image that has them"):
        ix.overlay(None, {"a": np.zeros((3, 40, 52), bool)})


# --- display attributes --------------------------------------------------------------------------------------------------------------


ids = st.sampled_from([int(i) for i in IDS[1:]])
looks = st.builds(
    SegmentDisplay,
    selected_ids=st.lists(ids, max_size=3, unique=True).map(tuple),
    colors=st.dictionaries(ids, st.tuples(*[st.integers(0, 255)] * 3, st.sampled_from([255, 255, 100])), max_size=2),
    color_seed=st.integers(0, 2**32 - 1),
    default_color=st.one_of(st.none(), st.just((9, 90, 200, 255))),
    selected_alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    rest_alpha=st.sampled_from([0.0, 0.06, 0.4]),
    saturation=st.sampled_from([1.0, 0.5, 0.0]),
    all_if_none_selected=st.booleans(),
)


@settings(max_examples=40)
@given(looks)
def test_a_layer_is_drawn_as_in_the_viewer(look):
    part = FINE.isel(z=[1], y=slice(0, 12), x=slice(0, 14))
    seg = part.assign_attrs(look.to_attrs())
    drawn = ix.overlay(None, seg).values
    truth = viewer_rule(part.values, look)
    np.testing.assert_array_equal(drawn[..., 3], truth[..., 3])
    painted = truth[..., 3] > 0  # transparent pixels have no colour to compare
    np.testing.assert_array_equal(drawn[painted], truth[painted])
    assert SegmentDisplay.from_attrs(seg.attrs) == look


def test_options_override_display_attrs():
    seg = FINE.assign_attrs(
        SegmentDisplay(selected_ids=(5,), colors={5: (9, 9, 9, 255)}, selected_alpha=0.7).to_attrs()
    )
    assert set(ix.overlay(None, seg).values[FINE.values == 5][:, 3]) == {179}
    np.testing.assert_array_equal(
        ix.overlay(None, seg, colors={5: "red"}).values, ix.overlay(None, FINE, colors={5: "red"}, alpha=0.7).values
    )
    np.testing.assert_array_equal(
        ix.overlay(None, seg, ids=[int(IDS[4])], colors="tab10", alpha=1).values,
        ix.overlay(None, FINE, ids=[int(IDS[4])], colors="tab10", alpha=1).values,
    )
    assert set(ix.overlay(None, seg, alpha=0.2, rest_alpha=0.1).values[FINE.values == IDS[4]][:, 3]) == {26}


def test_display_attrs_survive_verbs_and_are_serialisable(tmp_path):
    import json

    look = SegmentDisplay(selected_ids=(5, 2**64 - 1), colors={2**64 - 1: (1, 2, 3, 255)}, color_seed=7)
    seg = as_source(SEG16).assign_attrs(look.to_attrs())
    json.dumps(seg.attrs)
    box = ix.BBox((20, 3, 3), (41, 20, 4), resolution=(8, 8, 40))
    moved = ix.regrid(ix.crop(ix.select_ids(seg, [5, 2**64 - 1]), box), (4, 4, 40))
    assert SegmentDisplay.from_attrs(moved.attrs) == look


SEG16 = volume(IDS[rng.integers(0, 6, (3, 20, 26))], (16, 16, 40), (5, -3, 2), layer_type="segmentation")


def test_invalid_display_attrs_raise():
    for name, value in [("selected_ids", [1.5]), ("color_seed", -1), ("selected_alpha", 2), ("colors", {"x": "red"})]:
        with pytest.raises(ix.errors.OptionError, match=name):
            ix.overlay(None, FINE.assign_attrs({name: value}))
    with pytest.raises(ix.errors.ColorError):
        ix.overlay(None, FINE.assign_attrs(default_color="rde"))


def test_a_dataset_is_drawn_in_the_order_of_its_layers():
    second = IMAGE.copy(data=255 - IMAGE.values).assign_attrs(opacity=0.4)
    off = OTHER.assign_attrs(visible=False)
    layers = {"off": off, "more": second, "cells": FINE, "em": IMAGE}
    ds = xr.Dataset(layers, attrs={"layer_order": ["em", "cells", "more", "off"]})
    drawn = ix.composite(ix.to_rgba(IMAGE), ix.overlay(None, FINE, alpha=0.3)).values.astype(float)
    top = ix.to_rgba(second).values.astype(float)
    top[..., 3] = 102
    assert np.abs(ds.imagery.overlay(alpha=0.3).values - over(drawn, top)).max() <= 1
    two = xr.Dataset({"mito": OTHER, "em": IMAGE, "cells": FINE}, attrs={"layer_order": ["em", "cells", "mito"]})
    np.testing.assert_array_equal(two.imagery.overlay().values, ix.overlay(IMAGE, [FINE, OTHER]).values)
