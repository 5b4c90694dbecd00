"""Printed sizes and sizes in nm: text in points, pixels in nm, scale bars beside insets."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import xarray as xr
from PIL import Image, ImageDraw

import imageryxr as ix
from imageryxr.core.grid import Grid
from imageryxr.errors import ImageryWarning, OptionError
from imageryxr.render.figure.picture import geometry_of, overlap_area
from imageryxr.render.figure.save import saved_size

RNG = np.random.default_rng(7)
CORNERS = ("top right", "top left", "bottom right", "bottom left")


def gray(shape=(1, 240, 320), resolution=(8, 8, 40)):
    grid = Grid(shape, resolution, (0, 0, 0))
    values = RNG.integers(60, 200, shape, dtype=np.uint8)
    return xr.DataArray(values, coords=grid.coords(), dims=("z", "y", "x"), attrs={"resolution": resolution})


PART = ix.BBox((140, 100, 0), (170, 125, 1), resolution=(8, 8, 40))


def test_a_picture_records_the_size_of_its_pixels():
    em = gray()
    assert ix.to_pil(em).info["nm_per_pixel"] == 8
    assert ix.to_pil(em, scale=4).info["nm_per_pixel"] == 2
    assert ix.montage([em, em], scale=2).info["nm_per_pixel"] == 4
    assert ix.inset(em, PART, scale=2).info["nm_per_pixel"] == 4
    assert ix.legend(ix.to_pil(em), {1: "red"}).info["nm_per_pixel"] == 8
    assert "nm_per_pixel" not in ix.to_pil(em.drop_vars(["z", "y", "x"])).info
    assert "nm_per_pixel" not in ix.montage([em, ix.to_pil(em, scale=2)]).info


@pytest.mark.parametrize("scale", [1, 3])
def test_a_bar_on_a_picture_equals_a_bar_on_its_array(scale):
    em = gray()
    assert ix.scale_bar(ix.to_pil(em, scale=scale)).tobytes() == ix.scale_bar(em, scale=scale).tobytes()


@pytest.mark.parametrize(
    "changed",
    [
        lambda p: p.resize((640, 480)),
        lambda p: p.resize((160, 120)),
        lambda p: p.crop((0, 0, 100, 100)),
        lambda p: p.crop((0, 0, 160, 120)).resize(p.size),
        lambda p: p.resize(p.size, box=(0, 0, 160, 120)),
        lambda p: p.reduce(2),
        lambda p: p.transpose(Image.Transpose.ROTATE_90),
    ],
)
def test_a_cropped_or_resized_picture_has_no_known_pixel_size(changed, tmp_path):
    picture = changed(ix.to_pil(gray()))
    assert picture.info["nm_per_pixel"] == 8  # Pillow keeps `info` in cropped and resized pictures
    with pytest.raises(OptionError, match="drawn with 8 nm per pixel and may have been resized"):
        ix.scale_bar(picture)
    assert ix.scale_bar(picture, nm_per_pixel=4).info["nm_per_pixel"] == 4
    with Image.open(ix.save_figure(picture, tmp_path / "a.png")) as back:
        assert "nm_per_pixel" not in back.info


def test_a_thumbnail_made_in_place_has_no_known_pixel_size():
    picture = ix.to_pil(gray())
    picture.thumbnail((100, 100))
    with pytest.raises(OptionError, match="may have been resized"):
        ix.scale_bar(picture)


@pytest.mark.parametrize(
    "same",
    [
        lambda p: p,
        lambda p: p.copy(),
        lambda p: p.convert("RGB"),
        copy.deepcopy,
        lambda p: pickle.loads(pickle.dumps(p)),
    ],
)
def test_a_copy_of_a_picture_keeps_its_pixel_size(same):
    picture = ix.to_pil(gray())
    ImageDraw.Draw(picture).line((0, 0, 50, 50), fill=255)
    assert ix.scale_bar(same(picture)).info["nm_per_pixel"] == 8


def test_pixels_that_are_not_square_warn():
    side = gray((40, 1, 320))
    with pytest.warns(ImageryWarning, match="8 × 40 nm but are drawn as squares"):
        ix.scale_bar(ix.to_pil(side))


@pytest.mark.parametrize("position", CORNERS)
@pytest.mark.parametrize("scale", [1, 3])
def test_a_scale_bar_takes_a_corner_without_an_inset(position, scale):
    picture = ix.inset(gray(), PART, zoom=3, position=position, scale=scale)
    frames = geometry_of(picture).taken
    bar = geometry_of(ix.scale_bar(picture)).taken[-1]
    assert [overlap_area(bar, frame) for frame in frames] == [0, 0]
    # also a second bar, and the bar that the inset draws itself
    drawn = geometry_of(ix.inset(gray(), PART, zoom=3, position=position, scale=scale, scale_bar=True)).taken
    assert overlap_area(drawn[1], drawn[2]) == 0
    with pytest.warns(ImageryWarning, match=f"in the {position} corner covers an inset.*give position="):
        ix.scale_bar(picture, position=position)


def test_the_scale_bar_of_an_inset_uses_the_pixels_of_the_inset():
    plain = np.asarray(ix.inset(gray(), PART, zoom=4, scale=2, position="top right").convert("L"))
    em = gray()
    em[:] = 120
    drawn = np.asarray(ix.inset(em, PART, zoom=4, scale=2, position="top right", scale_bar=True).convert("L"))
    assert drawn.shape == plain.shape
    # 30 voxels of 8 nm are 240 nm across the inset, so that its bar is 50 nm: 50 px of 1 nm
    inside = drawn[:200, -240:]
    runs = [max(map(len, "".join("x" if v == 0 else " " for v in row).split()), default=0) for row in inside]
    assert max(runs) == 50


@pytest.mark.parametrize("zoom", [4, 8, 14])
def test_text_of_an_inset_is_as_high_as_that_of_the_picture_unless_it_would_fill_the_inset(zoom):
    em = gray((1, 480, 640))
    outside = geometry_of(ix.scale_bar(em)).text.height
    drawn = ix.inset(em, PART, zoom=zoom, scale_bar=True)
    box = geometry_of(drawn).taken[1]
    tenth = (min(box[2] - box[0], box[3] - box[1]) - 4) // 10
    assert geometry_of(drawn).text.height == max(12, min(outside, tenth))


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("width_mm", [85, 180])
@pytest.mark.parametrize("points", [6, 7.5, 10])
def test_text_has_its_points_at_the_printed_width(width_mm, points):
    em = gray((1, 480, 640))
    given = {"label_pt": points, "width_mm": width_mm}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for picture in (
            ix.scale_bar(em, scale=2, **given),
            ix.legend(ix.to_pil(em, scale=2), {864691135163307862: "red", 5: "blue"}, **given),
            ix.montage([em, em], labels=["a", "b"], scale=2, **given),
            ix.inset(em, PART, zoom=4, scale=2, scale_bar=True, **given),
        ):
            printed = geometry_of(picture).text.height * 72 * width_mm / 25.4 / picture.width
            assert abs(printed - points) < 0.3 * points / 6


def test_points_without_a_printed_width_count_at_300_dpi():
    assert geometry_of(ix.scale_bar(gray(), label_pt=6)).text.height == 25
    with pytest.raises(OptionError, match="give one of them"):
        ix.scale_bar(gray(), label_pt=6, label_size=12)
    with pytest.raises(OptionError, match="give label_pt=7"):
        ix.legend(ix.to_pil(gray()), {1: "red"}, width_mm=85)
    with pytest.raises(OptionError, match="label_pt=-1 must be a number of points above 0"):
        ix.montage([gray()], labels=["a"], label_pt=-1)


def test_text_too_small_in_print_warns(tmp_path):
    picture = ix.legend(ix.to_pil(gray((1, 600, 800))), {864691135163307862: "red"}, label_size=12)
    with pytest.warns(
        ImageryWarning, match=r"legend drew is 2\.\d pt high at the printed width of 85 mm.*label_pt=7, width_mm=85"
    ):
        ix.save_figure(picture, tmp_path / "a.png", width_mm=85)
    with pytest.warns(ImageryWarning, match="pt high"):
        ix.save_figure(picture, tmp_path / "b.png", dpi=300)
    good = ix.legend(ix.to_pil(gray((1, 600, 800))), {864691135163307862: "red"}, label_pt=7, width_mm=85)
    ix.save_figure(good, tmp_path / "c.png", width_mm=85)
    ix.save_figure(good, tmp_path / "d.png", width_mm=85, dpi=600)
    ix.save_figure(picture, tmp_path / "e.png")  # no printed size is given


def test_the_warning_of_small_text_names_the_call_that_drew_it_and_its_argument(tmp_path):
    em = gray((1, 600, 800))
    axon = {"x": [1000], "y": [1000], "z": [20], "kind": ["axon"]}
    marked = ix.annotate(ix.to_pil(em), axon, labels="kind", label_size=12)
    cases = {
        r"scale_bar drew.*with label_pt=7, width_mm=85": ix.scale_bar(
            ix.legend(ix.to_pil(em), {1: "red"}), label_size=11
        ),
        r"montage drew.*with label_pt=7, width_mm=85": ix.montage([ix.scale_bar(em)], labels=["a"], label_size=10),
        r"inset drew.*with label_pt=7, width_mm=85": ix.inset(em, PART, scale_bar=True, label_size=10),
        r"annotate drew.*with label_pt=7, width_mm=85": marked,
    }
    for message, picture in cases.items():
        with pytest.warns(ImageryWarning, match=message):
            ix.save_figure(picture, tmp_path / "a.png", width_mm=85, overwrite=True)
    larger = ix.annotate(ix.to_pil(em), axon, labels="kind", label_pt=7, width_mm=85)
    ix.save_figure(larger, tmp_path / "b.png", width_mm=85)


@pytest.mark.fast_forms(8)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "1", "P"])
@pytest.mark.parametrize("pixels", [251, 502, 1004, 2000])
def test_width_and_dpi_can_be_combined(mode, pixels, tmp_path):
    values = RNG.integers(0, 256, (100, pixels), dtype=np.uint8)
    picture = (
        Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values).convert(mode)
    )
    path = ix.save_figure(picture, tmp_path / "a.png", width_mm=85, dpi=300, nm_per_pixel=4)
    with Image.open(path) as back:
        assert back.width == 1004  # 85 mm / 25.4 · 300
        assert back.size == saved_size(picture, 300, 85)
        assert round(back.info["dpi"][0]) == 300
        assert float(back.info["nm_per_pixel"]) == pytest.approx(4 * pixels / 1004, rel=1e-5)
        if mode in ("L", "I;16") and pixels < 1004:
            whole = np.asarray(back).astype(float).mean() / np.asarray(picture).astype(float).mean()
            assert whole == pytest.approx(1, abs=0.02)
        if mode == "L" and pixels == 251:
            np.testing.assert_array_equal(np.asarray(back)[::4, ::4], values)
