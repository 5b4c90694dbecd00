"""Pictures compared with Pillow, NumPy and ImageryClient."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

import imageryxr as ix
from imageryxr.core.bbox import BBox
from imageryxr.core.grid import Grid
from imageryxr.errors import (
    ColorError,
    ImageryError,
    ImageryWarning,
    LayerError,
    OptionError,
    OutOfVolumeError,
    TargetError,
    TargetExistsError,
)
from imageryxr.render.figure import array_to_pil, inset, legend, montage, save_figure, scale_bar, to_pil

RNG = np.random.default_rng(5)


def array(values, resolution=(8, 8, 40), **attrs):
    values = np.asarray(values)
    dims = ("z", "y", "x", "rgba")[: values.ndim]
    coords = Grid(values.shape[:3], resolution, (2, 3, 4)).coords()
    return xr.DataArray(values, dims=dims, coords=coords, attrs={"resolution": resolution, **attrs})


@pytest.fixture
def gray():
    return array(RNG.integers(0, 256, (3, 5, 7), dtype=np.uint8))


@pytest.fixture
def rgba():
    return array(RNG.integers(0, 256, (3, 5, 7, 4), dtype=np.uint8))


def lazy(values):
    """Return an array that fails when it is computed."""

    def fail(block):
        raise AssertionError("computed")

    return values.copy(data=da.from_array(values.values).map_blocks(fail, dtype=values.dtype, meta=values.values[:0]))


def pixels(picture):
    return np.asarray(picture)


# --- to_pil -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.filterwarnings("ignore:.*are drawn as squares:imageryxr.errors.ImageryWarning")
def test_a_slice_of_any_axis_keeps_its_orientation(gray, rgba, axis, keep, chunked):
    for volume, mode in ((gray, "L"), (rgba, "RGBA")):
        picture = to_pil((volume.chunk(2) if chunked else volume).isel({axis: [1] if keep else 1}))
        assert picture.mode == mode
        np.testing.assert_array_equal(pixels(picture), volume.isel({axis: 1}).values)


def test_dims_in_another_order_give_the_same_picture(rgba):
    plane = rgba.isel(z=[0])
    expected = pixels(to_pil(plane))
    np.testing.assert_array_equal(pixels(to_pil(plane.transpose("rgba", "x", "z", "y"))), expected)
    np.testing.assert_array_equal(pixels(to_pil(plane.T)), expected)


def test_masks_are_black_and_white(gray):
    mask = (gray > 100).assign_attrs(layer_type="segmentation").isel(z=[0])
    picture = to_pil(mask)
    assert picture.mode == "L"
    np.testing.assert_array_equal(pixels(picture), np.where(mask[0], 255, 0))


@pytest.mark.filterwarnings("ignore:the pixels are", "ignore:the text")
@pytest.mark.parametrize("make", [to_pil, scale_bar, ix.plot, lambda picture: montage([picture, picture])])
def test_a_picture_across_another_axis_than_its_outlines_warns(gray, make):
    ids = gray.astype(np.uint64)
    drawn, right = (ix.overlay(None, ids, outline=1, axis=axis).isel(y=[2]) for axis in "zy")
    message = "drawn in slices across z, but the picture is a slice across y, where they look broken: draw .* axis='y'"
    with pytest.warns(ImageryWarning, match=message):
        make(drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the pixels are|the text")
        make(right)


@pytest.mark.filterwarnings("ignore:.*are drawn as squares:imageryxr.errors.ImageryWarning")
def test_the_first_of_several_thin_axes_is_dropped(gray):
    assert to_pil(gray[:1, :1, :]).size == (7, 1)
    assert to_pil(gray[:1, :, :1]).size == (1, 5)
    assert to_pil(gray[:, :1, :1]).size == (1, 3)
    assert to_pil(gray[:1, :1, :1]).size == (1, 1)


def test_a_reversed_selection_is_drawn_reversed(gray):
    np.testing.assert_array_equal(pixels(to_pil(gray[0, ::-1])), gray.values[0, ::-1])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda g: g, OptionError, r"3 slices \(z: 3, y: 5, x: 7\).*isel\(z=0\).*montage.*export"),
        (lambda g: g[:0], OptionError, "empty"),
        (lambda g: g[0, 0], LayerError, r"two of the dims"),
        (lambda g: g.expand_dims(segment=[5, 6]), LayerError, r"isel\(segment=0\)"),
        (lambda g: g.astype("uint64"), LayerError, "overlay"),
        (lambda g: g.assign_attrs(layer_type="segmentation"), LayerError, "overlay"),
        (lambda g: g.astype("uint16"), LayerError, "uint16.*contrast_limits"),
        (lambda g: g.astype("float32"), LayerError, "float32.*contrast_limits"),
        (lambda g: g[0].expand_dims(rgba=3, axis=-1), LayerError, "4 channels"),
        (lambda g: g[0].expand_dims(rgba=4, axis=-1).astype(float), LayerError, "float64"),
        (lambda g: np.zeros((5, 7), np.uint8), LayerError, "ndarray"),
        (lambda g: g.to_dataset(name="image"), LayerError, "Dataset"),
        (lambda g: None, LayerError, "NoneType"),
    ],
)
def test_invalid_pictures_raise_before_anything_computes(gray, make, error, message):
    with pytest.raises(error, match=message):
        to_pil(make(lazy(gray)))


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint8, "L"), (np.uint16, "I;16"), (np.bool_, "L")])
def test_planes_survive_png(tmp_path, dtype, mode):
    plane = RNG.integers(0, 2 if dtype == np.bool_ else np.iinfo(dtype).max, (6, 9)).astype(dtype)
    picture = array_to_pil(plane)
    assert picture.mode == mode
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        pixels(Image.open(tmp_path / "a.png")), plane * 255 if mode == "L" and dtype == np.bool_ else plane
    )


@pytest.mark.parametrize(
    "plane", [np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros(4, np.uint8), np.zeros((2, 2, 4), np.uint16)]
)
def test_arrays_that_are_not_pictures_raise(plane):
    with pytest.raises(LayerError, match="are not a picture"):
        array_to_pil(plane)


# --- montage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "columns"), [("horizontal", None), ("vertical", 1)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_row_and_a_column_are_those_of_imageryclient(direction, columns, mode):
    stack_images = pytest.importorskip("imageryclient").stack_images
    tiles = [Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode) for _ in range(4)]
    ours, theirs = montage(tiles, columns=columns), stack_images(tiles, direction=direction)
    assert ours.mode == theirs.mode == "RGB"
    np.testing.assert_array_equal(pixels(ours), pixels(theirs))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=7),
    columns=st.integers(1, 8) | st.none(),
    spacing=st.integers(0, 3),
)
def test_every_tile_is_centred_in_its_cell(sizes, columns, spacing):
    tiles = [Image.fromarray(RNG.integers(0, 256, (h, w, 4), dtype=np.uint8)) for w, h in sizes]
    got = pixels(montage(tiles, columns=columns, spacing=spacing, background=None))
    across = min(columns or len(tiles), len(tiles))
    cells = [(i // across, i % across) for i in range(len(tiles))]
    widths = [max(w for (w, _), cell in zip(sizes, cells, strict=True) if cell[1] == c) for c in range(across)]
    heights = [
        max(h for (_, h), cell in zip(sizes, cells, strict=True) if cell[0] == r) for r in range(cells[-1][0] + 1)
    ]
    expected = np.zeros(
        (sum(heights) + spacing * (len(heights) - 1), sum(widths) + spacing * (across - 1), 4), np.uint8
    )
    for (w, h), (r, c), tile in zip(sizes, cells, tiles, strict=True):
        top = sum(heights[:r]) + spacing * r + (heights[r] - h) // 2
        left = sum(widths[:c]) + spacing * c + (widths[c] - w) // 2
        expected[top : top + h, left : left + w] = pixels(tile)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.filterwarnings("ignore:.*are drawn as squares:imageryxr.errors.ImageryWarning")
def test_a_stack_gives_a_tile_per_slice(rgba):
    expected = pixels(montage([to_pil(rgba.isel(y=i)) for i in range(5)], background=None))
    for stack in (rgba, rgba.chunk(2), rgba.chunk(y=1)):
        np.testing.assert_array_equal(pixels(montage(stack, dim="y", background=None)), expected)
    np.testing.assert_array_equal(pixels(montage(rgba[1], background=None)), rgba.values[1])
    np.testing.assert_array_equal(pixels(montage(rgba[1:2], background=None)), rgba.values[1])


def test_masks_of_one_slice_become_tiles(gray):
    masks = xr.concat([gray[:1] > 80, gray[:1] > 160], "segment").assign_coords(segment=np.array([5, 2**63], np.uint64))
    got = montage(masks, dim="segment", spacing=0)
    np.testing.assert_array_equal(
        pixels(got.convert("L")), np.hstack([255 * (gray.values[0] > limit) for limit in (80, 160)])
    )
    with pytest.warns(ImageryWarning, match="is omitted"):
        assert montage(masks, dim="segment", labels=True).size == montage(masks, dim="segment").size


def test_a_thin_stack_is_sliced_along_the_axis_named(gray):
    np.testing.assert_array_equal(pixels(montage(gray[:, :1], background=None))[..., 0].shape, (1, 3 * 7 + 20))


def test_each_chunk_is_computed_once():
    reads = []

    def count(block, block_info=None):
        reads.append(block_info[0]["chunk-location"])
        return block

    source = da.from_array(np.zeros((8, 4, 4), np.uint8), chunks=(4, 4, 2)).map_blocks(
        count, dtype=np.uint8, meta=np.zeros(0, np.uint8)
    )
    with dask.config.set(scheduler="synchronous"):
        montage(xr.DataArray(source, dims=("z", "y", "x")))
    assert sorted(reads) == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]


def test_transparent_tiles_show_the_background():
    half = Image.new("RGBA", (2, 2), (200, 0, 0, 128))
    assert montage([half], background=None).getpixel((0, 0)) == (200, 0, 0, 128)
    assert (
        montage([half]).getpixel((0, 0))
        == Image.alpha_composite(Image.new("RGBA", (2, 2), "white"), half).getpixel((0, 0))[:3]
    )
    both = montage([half, half], background="#0000ff80", spacing=1)
    assert both.mode == "RGBA"
    assert both.getpixel((2, 0)) == (0, 0, 255, 128)


def test_a_montage_of_many_slices_is_a_square_by_default():
    stack = xr.DataArray(np.zeros((250, 4, 4), np.uint8), dims=("z", "y", "x"))
    assert montage(stack, spacing=0).size == (64, 64)
    assert montage(stack[:30], spacing=0).size == (120, 4)
    assert montage(stack, columns=250, spacing=0).size == (1000, 4)


def test_a_montage_accepts_pictures_and_arrays(gray):
    assert montage([to_pil(gray[0]), gray[1], gray[[2]]], spacing=0).size == (21, 5)
    assert montage((tile for tile in [gray[0]]), columns=9).size == (7, 5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda g: montage([]), OptionError, "no pictures"),
        (lambda g: montage(g[:0]), OptionError, "no pictures"),
        (lambda g: montage(Image.new("L", (2, 2))), OptionError, r"\[a, b\]"),
        (lambda g: montage(g.to_dataset(name="a")), OptionError, "Dataset"),
        (lambda g: montage([np.zeros((2, 2), np.uint8)]), LayerError, "ndarray"),
        (lambda g: montage(g, label_size=0), OptionError, "label_size=0"),
        (lambda g: montage(g, labels=["a"]), OptionError, "1 labels for 3 tiles"),
        (lambda g: montage(g, dim="w"), OptionError, "dim='w'"),
        (lambda g: montage(g, columns=0), OptionError, "columns=0"),
        (lambda g: montage(g, columns=True), OptionError, "columns=True"),
        (lambda g: montage(g, spacing=-1), OptionError, "spacing=-1"),
        (lambda g: montage(g, spacing=1.5), OptionError, "spacing=1.5"),
        (lambda g: montage(g, background="wite"), ColorError, "white"),
        (lambda g: montage(g.expand_dims(t=2)), LayerError, r"isel\(t=0\)"),
        (lambda g: montage(g.astype("uint64")), LayerError, "overlay"),
        (lambda g: montage([g]), OptionError, "3 slices"),
    ],
)
def test_montage_raises_before_it_computes_anything(gray, make, error, message):
    with pytest.raises(error, match=message):
        make(lazy(gray))


@pytest.mark.parametrize(("labels", "message"), [(["a"], "1 labels for 3 tiles"), ("abc", "'abc'"), (5, "5")])
def test_invalid_labels_raise(gray, labels, message):
    with pytest.raises(OptionError, match=message):
        montage(gray, labels=labels)


@pytest.mark.parametrize(("tone", "ink"), [(0, 255), (60, 255), (255, 0), (180, 0)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_labels_are_legible_and_stay_in_their_corner(tone, ink, mode):
    tile = Image.new("L", (200, 160), tone).convert(mode)
    plain, labelled = pixels(montage([tile])).astype(int), pixels(montage([tile], labels=["z = 4,020 nm"])).astype(int)
    changed = np.argwhere((plain != labelled).any(axis=-1))
    assert len(changed) > 50
    assert changed[:, 0].max() < 20
    assert changed[:, 1].max() < 120
    assert changed.min() >= 2
    assert (labelled[..., 0] == ink).sum() > 20


def test_labels_on_transparent_pixels_have_clean_edges():
    picture = montage([Image.new("RGBA", (200, 160))], labels=["abc"], background=None)
    values = pixels(picture)
    assert values[..., 3].max() == 255
    # Faint edge pixels have the colour of the rim, without a trace of the colour of transparent pixels.
    faint = values[(values[..., 3] > 0) & (values[..., 3] < 100)]
    assert len(faint) > 0
    assert (faint[:, :3] > 200).all()


def test_a_long_label_is_fitted_into_its_tile():
    tile = Image.new("L", (120, 60))
    values = pixels(montage([tile, tile], labels=["a label that is too long", ""], label_size=20, spacing=0))[..., 0]
    assert values[:, :120].max() == 255
    assert values[:, 117:].max() == 0


def text_of(monkeypatch, *args, **kwargs):
    written = []
    monkeypatch.setattr(
        "imageryxr.render.figure.montages._label_tile", lambda tile, text, *rest: written.append(text) or tile
    )
    montage(*args, labels=True, **kwargs)
    return written


@pytest.mark.filterwarnings("ignore:.*are drawn as squares:imageryxr.errors.ImageryWarning")
def test_labels_show_the_coordinate_of_a_slice(gray, monkeypatch):
    assert text_of(monkeypatch, gray) == ["z = 180 nm", "z = 220 nm", "z = 260 nm"]
    assert text_of(monkeypatch, [gray[0], gray[[2]], gray[:, 1]]) == ["z = 180 nm", "z = 260 nm", "y = 36 nm"]
    far = gray.assign_coords(z=("z", [4020.0, 4020.5, 1e9], {"units": "nm"}))
    assert text_of(monkeypatch, far) == ["z = 4,020 nm", "z = 4,020.5 nm", "z = 1,000,000,000 nm"]
    assert text_of(monkeypatch, gray.drop_vars("z")) == ["z 0", "z 1", "z 2"]
    assert text_of(monkeypatch, [to_pil(gray[0])] * 2) == ["0", "1"]
    masks = (gray[:1] > 9).expand_dims(segment=np.array([864691135617152361], np.uint64))
    assert text_of(monkeypatch, masks, dim="segment") == ["segment 864691135617152361"]


# --- scale bar --------------------------------------------------------------------------------------------


def bar_of(before, after):
    """Return left, top, width and height of the bar without its text, in pixels."""
    left, top, right, bottom = ImageChops.difference(before.convert("RGB"), after.convert("RGB")).convert("L").getbbox()
    return left, top, right - left, bottom - top


@given(width=st.integers(40, 900), step=st.floats(0.01, 1e4))
def test_a_scale_bar_has_the_length_in_its_label(width, step):
    picture = Image.new("L", (width, 50))
    after = scale_bar(picture, nm_per_pixel=step, label=False)
    _, _, across, _ = bar_of(picture, after)
    lengths = [m * 10.0**e for e in range(-3, 8) for m in (1, 2, 5)]
    longest = max(length for length in lengths if length <= width * step / 4 * (1 + 1e-9))
    assert across == max(1, round(longest / step))
    assert picture.getbbox() is None


@pytest.mark.parametrize("position", ["bottom right", "bottom left", "top right", "top left", None])
@pytest.mark.parametrize("spacing", [0, 7])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_scale_bar_on_a_montage_lies_within_one_tile(position, spacing, count):
    values = np.zeros((count, 50, 64), np.uint8)
    stack = xr.DataArray(values, Grid(values.shape, (8, 8, 40), (0, 0, 0)).coords(), ("z", "y", "x"))
    arranged = ix.montage(stack, columns=3, spacing=spacing, background="black")
    after = scale_bar(arranged, position=position, color="white", label=False)
    left, top, across, down = bar_of(arranged, after)
    assert across == 12  # 100 nm, at most a quarter of a tile
    for start, size, side in ((left, across, 64), (top, down, 50)):
        assert start // (side + spacing) == (start + size - 1) // (side + spacing)
        assert (start + size - 1) % (side + spacing) < side
    with pytest.raises(OptionError, match="tile of the montage is 64 wide" if count > 1 else "the picture is 64 wide"):
        scale_bar(arranged, length=512)


@pytest.mark.parametrize("position", ["bottom right", "bottom left", "top right", "top left"])
@pytest.mark.parametrize("label", [True, False])
def test_a_scale_bar_is_in_its_corner(position, label):
    picture = Image.new("RGB", (400, 300), "white")
    left, top, across, down = bar_of(picture, scale_bar(picture, nm_per_pixel=4, position=position, label=label))
    margin = 10
    assert (top + down == 300 - margin) if position.startswith("bottom") else (top == margin)
    assert abs((left - margin) if position.endswith("left") else (left + across - 400 + margin)) <= 2
    assert (down > 10) is label


@pytest.mark.parametrize(("tone", "ink"), [(0, 255), (60, 255), (150, 0), (255, 0)])
def test_the_colour_of_a_scale_bar_has_contrast(tone, ink):
    picture = Image.new("L", (400, 300), tone)
    after = scale_bar(picture, nm_per_pixel=4, label=False)
    assert after.mode == "L"
    assert set(pixels(after).ravel().tolist()) == {tone, ink}


def test_a_scale_bar_keeps_the_mode_of_grey_and_rgba_pictures():
    picture = Image.new("L", (400, 300))
    assert scale_bar(picture, nm_per_pixel=4, color="gray").mode == "L"
    assert scale_bar(picture, nm_per_pixel=4, color="yellow").mode == "RGB"
    clear = scale_bar(Image.new("RGBA", (400, 300)), nm_per_pixel=4, color="#ff0000", label=False)
    assert sorted(color for _, color in clear.getcolors()) == [(0, 0, 0, 0), (255, 0, 0, 255)]


def test_the_resolution_is_that_of_the_columns(gray):
    wide = array(np.zeros((4, 60, 100), np.uint8), (8, 16, 40))
    square = wide[0, :, ::2]
    for plane, step in ((wide[:1], 8), (wide[0], 8), (wide[:, :1], 8), (wide[:, :, 0], 16), (square, 16)):
        for draw in (to_pil, lambda p: montage([p]), lambda p: scale_bar(p.chunk(), label=False, length=160)):
            expected_warning = (
                nullcontext() if plane is square else pytest.warns(ix.ImageryWarning, match="are drawn as squares")
            )
            with expected_warning:
                after = draw(plane)
        assert bar_of(array_to_pil(np.squeeze(plane.values)), after)[2] == 160 / step


def test_names_in_a_series_are_refused_with_the_call_that_converts_them():
    names = xr.DataArray(["axon"], dims="id", coords={"id": [5]}).to_series()
    with pytest.raises(OptionError, match=r"a dict id → text; write names.to_dict\(\)"):
        legend(Image.new("L", (300, 200)), {5: "red"}, names=names)
    legend(Image.new("L", (300, 200)), {5: "red"}, names=names.to_dict())


def test_the_advice_on_pixels_that_are_not_square_makes_them_square(gray):
    side = array(np.zeros((4, 60, 100), np.uint8), (8, 16, 40))[:, :1]
    with pytest.warns(ImageryWarning, match="8 × 40 nm") as caught:
        to_pil(side)
    advice = str(caught[0].message).partition(" or ")[2]
    assert advice == "regrid(array, (8, 16, 8))"
    assert to_pil(ix.regrid(side, (8, 16, 8))).size == (100, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nm_per_pixel="),
        ({"nm_per_pixel": 0}, "nm_per_pixel=0"),
        ({"nm_per_pixel": float("inf")}, "inf"),
        ({"nm_per_pixel": True}, "True"),
        ({"nm_per_pixel": 4, "length": -5}, "length=-5"),
        ({"nm_per_pixel": 4, "length": 2000}, r"2 µm needs 500 pixels .* 400 wide; give length=200"),
        ({"nm_per_pixel": 4, "position": "bottom"}, "'bottom'"),
        ({"nm_per_pixel": 4, "color": "rde"}, "red"),
    ],
)
def test_invalid_scale_bars_raise(options, message):
    with pytest.raises(ImageryError, match=message):
        scale_bar(Image.new("L", (400, 300)), **options)


def test_a_scale_bar_of_an_array_without_a_grid_requires_a_pixel_size():
    plane = xr.DataArray(np.zeros((300, 400), np.uint8), dims=("y", "x"))
    with pytest.raises(OptionError, match="nm_per_pixel="):
        scale_bar(plane)
    assert scale_bar(plane, nm_per_pixel=4).size == (400, 300)


@pytest.mark.parametrize(
    ("length", "text"), [(0.5, "0.5 nm"), (500, "500 nm"), (1000, "1 µm"), (2500, "2.5 µm"), (5e6, "5 mm")]
)
def test_lengths_are_written_in_a_fitting_unit(length, text, monkeypatch):
    written = []
    monkeypatch.setattr(
        "imageryxr.render.figure.scale_bars.draw_text", lambda picture, at, text, *rest: written.append(text)
    )
    scale_bar(Image.new("L", (400, 300)), nm_per_pixel=length / 80, length=length)
    assert written == [text]


def test_text_on_tiny_pictures_is_omitted():
    for size in ((12, 9), (9, 40), (60, 6)):
        picture = Image.new("L", size)
        with pytest.warns(ImageryWarning, match="'.* nm' is omitted"):
            assert scale_bar(picture, nm_per_pixel=8).size == size
        with pytest.warns(ImageryWarning, match="'a long label' is omitted"):
            assert montage([picture], labels=["a long label"]).size == size


# --- at any size, in print, in the tissue -------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_scale_bar_has_the_right_length_at_any_scale(gray, scale):
    wide = gray.isel(z=0).pad(x=(0, 200), y=(0, 100), constant_values=90).drop_vars(["x", "y"])
    wide = xr.DataArray(
        wide.values[None], dims=("z", "y", "x"), coords=Grid((1, *wide.shape), (8, 8, 40), (0, 0, 0)).coords()
    )
    wide = wide.assign_attrs(resolution=(8.0, 8.0, 40.0))
    before, after = to_pil(wide, scale=scale), scale_bar(wide, scale=scale, label=False)
    assert after.size == before.size == (wide.sizes["x"] * scale, wide.sizes["y"] * scale)
    changed = np.asarray(ImageChops.difference(after.convert("RGB"), before.convert("RGB"))).any(axis=2)
    width = np.flatnonzero(changed.any(axis=0))
    length = (width[-1] - width[0] + 1) * 8 / scale
    assert (
        length in (100, 200, 500, 1000)
        or abs(length - min((100, 200, 500), key=lambda v: abs(v - length))) <= 4 / scale
    )


def test_to_pil_repeats_voxels(rgba):
    once, thrice = pixels(to_pil(rgba[1])), pixels(to_pil(rgba[1], scale=3))
    np.testing.assert_array_equal(thrice[1::3, 2::3], once)
    with pytest.raises(OptionError, match="scale=0"):
        to_pil(rgba[1], scale=0)


def test_text_is_never_illegibly_small(monkeypatch):
    sizes = []
    from imageryxr.render.figure import scale_bars

    original = scale_bars.draw_text
    monkeypatch.setattr(
        scale_bars,
        "draw_text",
        lambda picture, at, text, size, color: sizes.append(size) or original(picture, at, text, size, color),
    )
    for width in (90, 150, 400, 2000):
        scale_bar(Image.new("L", (width, width)), nm_per_pixel=8)
    assert min(sizes) >= 9
    assert sizes[-1] >= 80


def test_a_picture_that_its_format_cannot_store_is_an_error_that_names_a_format(tmp_path):
    transparent = Image.fromarray(np.zeros((200, 200, 4), np.uint8))
    with pytest.raises(
        OptionError, match=r"a\.jpg' cannot be written: a JPEG cannot store transparent pixels; end it in"
    ):
        save_figure(transparent, tmp_path / "a.jpg")
    with pytest.raises(OptionError, match=r"cannot be written: cannot write mode I;16 as JPEG; end it in \.png"):
        save_figure(Image.fromarray(np.zeros((200, 200), np.uint16)), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_figure_below_a_file_in_place_of_a_folder_is_a_target_error(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file/a.png", f"{'a' * 300}.png"):
        with pytest.raises(TargetError, match="cannot be written"):
            save_figure(Image.new("L", (200, 200)), tmp_path / name)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_files_contain_their_printed_size_and_pixel_size(tmp_path, kind):
    import tifffile

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 1004, 4), np.uint8))
    path = save_figure(picture, tmp_path / "deep" / f"a.{kind}", width_mm=85, nm_per_pixel=8)
    with Image.open(path) as back:
        assert back.info["dpi"][0] == pytest.approx(300, abs=0.5)
        np.testing.assert_array_equal(np.asarray(back), np.asarray(picture))
        if kind == "png":
            assert back.info["nm_per_pixel"] == "8"
    if kind == "tif":
        with tifffile.TiffFile(path) as tif:
            page = tif.pages[0]
            assert page.tags["ResolutionUnit"].value == 2
            assert page.tags["ImageDescription"].value == '{"nm_per_pixel": 8.0}'
    with pytest.raises(TargetExistsError):
        save_figure(picture, path)
    assert save_figure(picture, path, dpi=600, overwrite=True) == path
    with Image.open(path) as back:
        assert back.info["dpi"][0] == pytest.approx(600, abs=0.5)


def test_coarse_pictures_warn_and_invalid_sizes_raise(tmp_path):
    small = Image.new("L", (200, 100))
    with pytest.warns(ImageryWarning, match=r"60 pixels per inch .* scale=6"):
        save_figure(small, tmp_path / "a.png", width_mm=85)
    for options, message in (
        ({"dpi": 3, "width_mm": 0}, "width_mm=0"),
        ({"dpi": 0}, "dpi=0"),
        ({"width_mm": "wide"}, "mm"),
    ):
        with pytest.raises(OptionError, match=message):
            save_figure(small, tmp_path / "b.png", **options)
    with pytest.raises(OptionError, match=r"\.png, \.tif, \.jpg or \.pdf"):
        save_figure(small, tmp_path / "b.svg")


# --- legends and insets --------------------------------------------------------------------------------------


def test_a_legend_lists_colours_in_order():
    picture = Image.new("L", (100, 200), 40)
    out = np.asarray(legend(picture, {5: "red", 2**64 - 1: (0, 0, 255)}, title="cells"))
    assert out.shape[0] == 200
    np.testing.assert_array_equal(out[:, :100], 40)
    rows = {c: np.flatnonzero((out[:, 100:] == c).all(axis=2).any(axis=1)) for c in ((255, 0, 0), (0, 0, 255))}
    assert rows[255, 0, 0].max() < rows[0, 0, 255].min()
    assert (out[:, -1] == 255).all()
    wide = legend(picture, {1: "red"}, names={1: "a rather long name of a cell"})
    assert wide.width > out.shape[1] * 0.9
    dark = np.asarray(legend(picture, {1: "red"}, background="black"))
    assert dark[:, 100:].max(axis=(0, 1)).min() > 200


def test_a_legend_without_room_for_thousands_of_ids_suggests_the_largest():
    picture = Image.new("L", (50, 120))
    with pytest.warns(ImageryWarning, match=r"room for 3 of 2,000 ids; give .* the largest: imageryxr\.measure"):
        legend(picture, dict.fromkeys(range(1, 2001), "red"))
    seg = xr.DataArray(
        np.repeat([1, 2, 2, 3, 3, 3], 4).reshape(1, 4, 6).astype(np.uint64),
        Grid((1, 4, 6), (8, 8, 40), (0, 0, 0)).coords(),
        ("z", "y", "x"),
    )
    largest = ix.measure(seg).sortby("voxels", ascending=False).segment[:2]
    assert largest.values.tolist() == [3, 2]
    assert legend(picture, ix.palette(largest)).width > 50


def test_a_legend_states_the_number_of_omitted_entries(monkeypatch):
    from PIL import ImageDraw

    written = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, text, **kw: written.append(text) or original(self, at, text, **kw)
    )
    legend(Image.new("L", (50, 120)), dict.fromkeys(range(1, 101), "red"))
    assert written == ["1", "2", "3", "and 97 more"]
    with pytest.raises(OptionError, match="too low for a legend line"):
        legend(Image.new("L", (50, 20)), {1: "red"})
    with pytest.raises(OptionError, match="colors is empty"):
        legend(Image.new("L", (50, 200)), {})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, path: legend(p, "husl"), r"colors='husl' .*; give a dict id → colour.*palette"),
        (lambda p, path: legend(p, [(255, 0, 0)]), "or a dict id → colour"),
        (lambda p, path: legend("a.png", {5: "red"}), "a str is not a picture"),
        (lambda p, path: save_figure(p, path, width_mm="85mm"), "width_mm='85mm' must be a number of mm above 0"),
        (lambda p, path: save_figure(np.zeros((9, 9), "uint8"), path), r"a ndarray is not a picture.*fromarray"),
    ],
)
def test_invalid_arguments_of_figures_are_imagery_errors(wrong, message, tmp_path):
    with pytest.raises((OptionError, ColorError), match=message):
        wrong(Image.new("L", (100, 80)), tmp_path / "a.png")


@pytest.mark.parametrize("position", ["top right", "top left", "bottom right", "bottom left"])
def test_an_inset_shows_the_magnified_part(position):
    values = np.random.default_rng(1).integers(0, 200, (1, 90, 120)).astype(np.uint8)
    da = array(values)
    grid = Grid(values.shape, (8, 8, 40), (0, 0, 0))
    da = xr.DataArray(values, dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": grid.resolution})
    out = np.asarray(
        inset(
            da, BBox((50, 40, 0), (60, 48, 1), resolution=(8, 8, 40)), zoom=3, position=position, color="red"
        ).convert("RGB")
    )
    x = 4 if position.endswith("left") else 120 - 30 - 4
    y = 4 if position.startswith("top") else 90 - 24 - 4
    np.testing.assert_array_equal(out[y : y + 24, x : x + 30, 0], values[0, 40:48, 50:60].repeat(3, 0).repeat(3, 1))
    assert (out[38:40, 50:60] == (255, 0, 0)).all()
    assert (out[y - 2 : y, x : x + 30] == (255, 0, 0)).all()
    np.testing.assert_array_equal(out[40:48, 50:60, 0], values[0, 40:48, 50:60])


def _noise(rows=90, columns=120):
    grid = Grid((1, rows, columns), (8, 8, 40), (0, 0, 0))
    values = np.random.default_rng(1).integers(0, 200, grid.shape).astype(np.uint8)
    return xr.DataArray(values, dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": grid.resolution})


def test_an_inset_does_not_cover_the_part_that_it_magnifies():
    da = _noise()
    for x in range(0, 110, 9):
        for y in range(0, 80, 7):
            box = BBox((x, y, 0), (x + 10, y + 8, 1), resolution=(8, 8, 40))
            out = np.asarray(inset(da, box, zoom=3, color="red"))  # warnings are errors in tests
            np.testing.assert_array_equal(out[y : y + 8, x : x + 10, 0], da.values[0, y : y + 8, x : x + 10])
    box = BBox((100, 5, 0), (110, 13, 1), resolution=(8, 8, 40))
    with pytest.warns(ix.ImageryWarning, match="covers 80 pixels of the part.*position='top left' or position='bottom"):
        inset(da, box, zoom=3, position="top right")
    with pytest.warns(ix.ImageryWarning, match="no corner is free"):
        inset(da, BBox((20, 41, 0), (60, 66, 1), resolution=(8, 8, 40)), zoom=2)


def test_scale_bars_of_a_montage_do_not_cover_the_insets_of_its_tiles():
    da = _noise()
    box = BBox((10, 10, 0), (22, 20, 1), resolution=(8, 8, 40))
    one = inset(da, box, position="bottom right", zoom=2)
    whole = montage([one, one], spacing=4)
    marked = np.asarray(scale_bar(whole))
    assert (marked[:, one.width + 4 :][-40:, -40:] == np.asarray(whole)[:, one.width + 4 :][-40:, -40:]).all()
    assert (marked != np.asarray(whole)).any()
    with pytest.raises(OptionError, match=r"draw insets first.*montage\(\[inset"):
        inset(whole, box)


def test_an_inset_may_show_more_detail():
    coarse = Grid((1, 60, 60), (16, 16, 40), (0, 0, 0))
    fine = Grid((1, 120, 120), (8, 8, 40), (0, 0, 0))
    a = xr.DataArray(
        np.zeros(coarse.shape, np.uint8),
        dims=("z", "y", "x"),
        coords=coarse.coords(),
        attrs={"resolution": coarse.resolution},
    )
    b = xr.DataArray(
        np.full(fine.shape, 99, np.uint8),
        dims=("z", "y", "x"),
        coords=fine.coords(),
        attrs={"resolution": fine.resolution},
    )
    box = BBox((10, 30, 0), (20, 40, 1), resolution=(16, 16, 40))
    assert np.asarray(inset(a, box, detail=b).convert("L"))[20, 40] == 99
    for bad, error, message in (
        (BBox((0, 0, 0), (99, 9, 1), resolution=(16, 16, 40)), OutOfVolumeError, "extends beyond the picture"),
        (BBox((0, 0, 0), (30, 30, 1), resolution=(16, 16, 40)), OptionError, "does not fit"),
    ):
        with pytest.raises(error, match=message):
            inset(a, bad)
    with pytest.raises(OptionError, match="position"):
        inset(a, box, position="middle")


def test_a_montage_has_rows_and_slice_numbers(gray, monkeypatch):
    assert montage(gray, rows=2, spacing=0).size == montage(gray, columns=2, spacing=0).size
    with pytest.raises(OptionError, match="one of them"):
        montage(gray, rows=2, columns=2)
    written = []
    monkeypatch.setattr(
        "imageryxr.render.figure.montages._label_tile", lambda tile, text, *rest: written.append(text) or tile
    )
    montage(gray, labels="slice")
    assert written == ["z 4", "z 5", "z 6"]


def test_a_scale_bar_over_dark_and_light_pixels_is_visible_along_its_whole_length():
    picture = Image.new("L", (400, 300), 200)
    picture.paste(0, (330, 0, 400, 300))
    after = np.asarray(scale_bar(picture, nm_per_pixel=4, length=400, label=False))
    before = np.asarray(picture)
    columns = np.flatnonzero((after != before).any(axis=0))
    assert len(columns) == 100
    # Each column of the bar contains a visible step in tone.
    for column in columns:
        part = after[280:292, column].astype(int)
        assert part.max() - part.min() > 100


def test_legends_and_files_accept_arrays(tmp_path):
    """A slice is converted to a picture, and its pixel size is kept."""
    grid = ix.Grid((1, 30, 40), (4.04, 4.04, 40), (5, 6, 7))
    values = np.random.default_rng(0).integers(0, 256, (*grid.shape, 4), dtype="uint8")
    coords = {**grid.coords(), "rgba": list("rgba")}
    array = xr.DataArray(values, coords=coords, dims=("z", "y", "x", "rgba"))
    with Image.open(ix.save_figure(array.drop_vars(["z", "y", "x"]), tmp_path / "unknown.png")) as back:
        assert "nm_per_pixel" not in back.info
    array.attrs["resolution"] = grid.resolution
    path = ix.save_figure(array, tmp_path / "a.png")
    with Image.open(path) as back:
        np.testing.assert_array_equal(np.asarray(back), values[0])
        assert float(back.info["nm_per_pixel"]) == 4.04
    with Image.open(array.imagery.save_figure(tmp_path / "b.png", nm_per_pixel=8)) as back:
        assert float(back.info["nm_per_pixel"]) == 8
    colors = {5: "red"}
    assert (
        array.imagery.legend(colors, label_size=10).tobytes()
        == ix.legend(ix.to_pil(array), colors, label_size=10).tobytes()
    )


@pytest.mark.parametrize("width", [1, 3, 4])
def test_a_picture_without_room_for_a_bar_has_room_after_the_advised_enlargement(width):
    grid = Grid((1, 40, width), (8, 8, 40), (0, 0, 0))
    picture = ix.to_rgba(xr.DataArray(np.zeros(grid.shape, np.uint8), grid.coords(), ("z", "y", "x")))
    with pytest.raises(OptionError, match=f"the picture is {width} pixels wide, too small for a bar.*scale=") as caught:
        ix.scale_bar(picture, label=False)
    scale = int(str(caught.value).rpartition("scale=")[2])
    assert ix.scale_bar(picture, label=False, scale=scale).width >= 64
