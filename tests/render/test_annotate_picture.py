"""Annotations are drawn on Pillow pictures at their position in nm, on every tile, in the resolution of the pixels."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.errors import LayerError, OptionError
from tests.conftest import volume
from tests.support.annotation_oracle import assert_close_to_sampled, draw_by_sampling, picture, random_points


def pixels(image):
    return np.asarray(image.convert("RGBA"))


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.filterwarnings("ignore:.*are drawn as squares:imageryxr.errors.ImageryWarning")
def test_a_picture_at_its_own_size_has_the_bits_of_the_annotated_array(axis):
    rgba = picture((3, 26, 28), (4.04, 8, 40), (-20, 7, -3)).isel({axis: [1]})
    table = ix.as_annotations(random_points(picture((3, 26, 28), (4.04, 8, 40), (-20, 7, -3)), 60))
    drawn = ix.annotate(rgba, table, size=6, depth=30)
    assert (drawn.values != rgba.values).any()
    for given in (rgba, rgba.isel({axis: 0})):
        image = ix.annotate(ix.to_pil(given), table, size=6, depth=30)
        np.testing.assert_array_equal(pixels(image), pixels(ix.to_pil(drawn)))


@pytest.mark.parametrize("marker", ["circle", "triangle"])
def test_marks_on_an_enlarged_picture_have_the_resolution_of_its_pixels(marker):
    rgba = picture((1, 14, 16), (8, 8, 40), (5, -3, 2))
    table = ix.as_annotations(random_points(rgba, 3))
    image = ix.annotate(ix.to_pil(rgba, scale=3), table, size=13, marker=marker)
    fine = volume(np.zeros((1, 42, 48), np.uint8), (8 / 3, 8 / 3, 40), (15, -9, 2))
    fine = ix.to_rgba(fine).copy(data=rgba.values.repeat(3, axis=1).repeat(3, axis=2))
    oracle = draw_by_sampling(fine, table, marker=marker, size=13)
    assert_close_to_sampled(fine.copy(data=pixels(image)[np.newaxis]), oracle)


@pytest.mark.parametrize("labels", [None, "slice"])
def test_each_tile_of_a_montage_has_the_annotations_of_its_slice(labels):
    stack = picture((3, 60, 64), (8, 8, 40), (0, 0, 5))
    table = ix.as_annotations([[100, 300, 220], [300, 400, 260], [300, 300, 300], [400, 300, 301]])
    plain = ix.montage(stack, columns=2, labels=labels, background="red")
    image = ix.annotate(plain, table, color="yellow")
    truth = ix.montage(ix.annotate(stack, table, color="yellow"), columns=2, labels=labels, background="red")
    assert image.mode == plain.mode
    np.testing.assert_array_equal(pixels(image), pixels(truth))
    assert (pixels(image) != pixels(plain)).any()


def test_tiles_of_planes_and_of_other_regions_are_annotated_by_their_own_position():
    em = volume(np.full((9, 48, 56), 90, np.uint8), (8, 8, 40), (0, 0, 0))
    table = ix.as_annotations([[200, 200, 180], [90, 90, 60]])
    cut = ix.to_rgba(ix.plane(em, (200, 200, 180), (24, 20), normal=(1, 1, 0.3)))
    part = ix.to_rgba(em).isel(z=[1], y=slice(4, 20), x=slice(3, 30))
    image = ix.annotate(ix.montage([cut, part]), table, color="red", size=6)
    truth = ix.montage([ix.annotate(p, table, color="red", size=6) for p in (cut, part)])
    np.testing.assert_array_equal(pixels(image), pixels(truth))
    assert all((pixels(image)[:, half] == [255, 0, 0, 255]).all(axis=-1).any() for half in (slice(24), slice(34, None)))


def test_scale_bars_and_legends_stay_on_top_and_the_picture_records_its_colours():
    rgba = picture((1, 80, 90), (8, 8, 40))
    places = [[x, y, 20] for x in range(8, 720, 24) for y in range(8, 640, 24)]
    table = ix.as_annotations({"p": places, "kind": ["a", "b"] * (len(places) // 2)}, position="p")
    plain = ix.legend(ix.scale_bar(rgba, scale=3), {"one": "blue"})
    image = ix.annotate(plain, table, color="kind", colors={"a": "red", "b": "lime"})
    changed = (pixels(image) != pixels(plain)).any(axis=-1)
    assert changed[:, :270].any()
    assert not changed[:, 270:].any()
    (view,) = plain.info["imageryxr"].views
    left, top, right, bottom = view.covered[0]
    assert not changed[top:bottom, left:right].any()
    assert changed[top:bottom, left - 20 : left].any()
    listed = ix.legend(image)
    assert [(pixels(listed) == color).all(axis=-1)[:, image.width :].any() for color in ([255, 0, 0, 255],)] == [True]


def test_colours_of_segments_are_those_of_the_picture(sample):
    ds = ix.align(ix.open_image(sample.image, mip=1), ix.open_segmentation(sample.segmentation, mip=1))
    rgba = ix.overlay(ds.image, ds.segmentation, colors="glasbey").isel(z=[0], y=slice(40, 80), x=slice(40, 80))
    box = ix.grid_of(rgba).bbox
    center = [(a + b) / 2 for a, b in zip(box.lo_nm, box.hi_nm, strict=True)]
    table = ix.as_annotations({"x": center[:1], "y": center[1:2], "z": center[2:], "pt_root_id": [1]})
    drawn = ix.annotate(rgba, table, color="pt_root_id")
    np.testing.assert_array_equal(
        pixels(ix.annotate(ix.to_pil(rgba), table, color="pt_root_id")), pixels(ix.to_pil(drawn))
    )


@pytest.mark.parametrize("scale", [1, 3])
def test_marks_on_a_montage_of_cutouts_equal_marks_on_the_volume(sample, scale):
    em = ix.open_image(sample.image)
    boxes = ix.cutouts(em, [[4600.5, 2560.5, 130.5], [4700.5, 2600.5, 130.5]], (32, 24), resolution=(8, 8, 40))
    table = ix.as_annotations([[4600.5, 2560.5, 130.5]], resolution=(8, 8, 40))
    rgba = ix.to_rgba(boxes)
    tiles = pixels(ix.montage(ix.annotate(rgba, table, color="red")))
    assert tiles[12, 16].tolist() == [255, 0, 0, 255]
    assert (tiles[:, 42:] == pixels(ix.montage(rgba))[:, 42:]).all()
    np.testing.assert_array_equal(pixels(ix.annotate(ix.montage(rgba), table, color="red")), tiles)
    one = rgba.isel(cutout=0)
    np.testing.assert_array_equal(ix.annotate(one, table, color="red"), ix.annotate(rgba, table, color="red")[0])
    around = ix.crop(ix.to_rgba(em), center=(4600.5, 2560.5, 130.5), size=(32, 24))
    expected = pixels(ix.annotate(ix.to_pil(around, scale=scale), table, color="red"))
    np.testing.assert_array_equal(pixels(ix.annotate(ix.to_pil(one, scale=scale), table, color="red")), expected)


def test_the_legend_of_a_montage_of_cutouts_has_the_colours_of_its_marks(sample):
    em = ix.open_image(sample.image)
    boxes = ix.cutouts(em, [[4600.5, 2560.5, 130.5], [4700.5, 2600.5, 130.5]], (64, 64), resolution=(8, 8, 40))
    places = {"x": [36804, 37604], "y": [20484, 20804], "z": [5220, 5220]}
    for column in ("kind", "score"):
        table = ix.as_annotations({**places, "kind": ["ribbon", "spine"], "score": [0.25, 0.5]})
        rgba = ix.annotate(ix.to_rgba(boxes), table, color=column)
        tile = ix.to_pil(rgba.isel(cutout=0))
        beside = pixels(ix.legend(ix.montage(rgba)))[:, 138:]
        np.testing.assert_array_equal(beside, pixels(ix.legend(tile))[:, 64:])


def test_a_picture_of_unknown_position_is_an_error_with_advice():
    rgba = picture((1, 60, 64))
    table = ix.as_annotations([[100, 100, 20]])
    image = ix.to_pil(rgba, scale=2)
    np.testing.assert_array_equal(
        pixels(ix.annotate(copy.copy(image), table)), pixels(ix.annotate(image.copy(), table))
    )
    for odd in (
        image.crop((0, 0, 30, 30)),
        image.resize((30, 30)),
        ix.inset(rgba, ix.BBox((80, 80, 0), (120, 120, 40))),
    ):
        with pytest.raises(LayerError, match=r"position of this Pillow picture.*annotate the array"):
            ix.annotate(odd, table)
    with pytest.raises(OptionError, match="axis='y' is only for arrays"):
        ix.annotate(image, table, axis="y")


def test_labels_grow_with_an_enlarged_picture_and_can_be_given_in_points():
    rgba = picture((1, 250, 300), (8, 8, 8))
    table = {"x": [1000], "y": [1000], "z": [4], "name": ["axon"]}
    large, small = (ix.to_pil(rgba, scale=scale) for scale in (4, 1))

    def draw(image, **options):
        return pixels(ix.annotate(image, table, labels="name", **options))

    np.testing.assert_array_equal(draw(large), draw(large, label_size=25))
    np.testing.assert_array_equal(draw(small), draw(small, label_size=12))
    pair = ix.montage([large, large], columns=1)
    np.testing.assert_array_equal(draw(pair), draw(pair, label_size=25))
    np.testing.assert_array_equal(draw(large, label_pt=12), draw(large, label_size=50))
    np.testing.assert_array_equal(draw(large, label_pt=7, width_mm=85), draw(large, label_size=35))
    array = ix.annotate(rgba, table, labels="name", label_pt=7, width_mm=25.4)
    np.testing.assert_array_equal(array, ix.annotate(rgba, table, labels="name", label_size=29))
    for image in (large, rgba):
        with pytest.raises(OptionError, match="cannot be combined"):
            ix.annotate(image, table, labels="name", label_size=12, label_pt=7)
