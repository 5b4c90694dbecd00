"""Outlines in one colour; merged outlines of dense tissue are invisible, and a warning recommends other options."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.errors import ImageryWarning


def cells(gap):
    grid = ix.Grid((1, 256, 256), (8, 8, 40), (0, 0, 0))
    rows, columns = np.indices((256, 256))
    ids = (1 + rows // 16 * 16 + columns // 16).astype("uint64")
    if gap:
        ids[(rows % 16 == 0) | (columns % 16 == 0)] = 0
    return xr.DataArray(ids[None], coords=grid.coords(), dims=("z", "y", "x"), attrs={"resolution": grid.resolution})


@pytest.mark.parametrize("chunk", [256, 128])
def test_merged_outlines_of_dense_tissue_warn_once_with_advice(chunk):
    picture = ix.overlay(None, cells(gap=False).chunk(y=chunk), alpha=0, outline=2)
    with pytest.warns(ImageryWarning, match=r"side='in', merge=False") as caught:
        drawn = picture.values
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.compute()  # the warning is not repeated
    assert not drawn[..., 3].any()  # merged outlines are invisible where cells fill the picture
    assert len([w for w in caught if "touch each other" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = ix.overlay(None, cells(gap=False), alpha=0, outline=ix.Outline(2, side="in", merge=False)).values
    assert named[..., 3].any()


@pytest.mark.parametrize(
    "options",
    [
        {"outline": 2, "ids": [1, 20]},
        {"outline": ix.Outline(2, merge=False)},
        {"outline": ix.Outline(2, side="in")},
        {},
    ],
)
def test_other_outlines_do_not_warn(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ix.overlay(None, cells(gap=False), alpha=0.2, **options).load()
        ix.overlay(None, cells(gap=True), alpha=0, outline=2).load()


COLORS = {
    "palette": None,
    "neuroglancer": ("neuroglancer", 3),
    "dict": {i: (i % 256, 0, 99, 128 if i % 2 else 255) for i in range(1, 200)},
}


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("ids", [None, [1, 20, 21, 37, 2**64 - 1]])
@pytest.mark.parametrize("colors", COLORS)
@pytest.mark.filterwarnings("ignore::imageryxr.errors.MissingIdsWarning")
def test_outlines_in_one_color_lie_where_those_in_many_colors_lie(colors, ids, side):
    seg = cells(gap=True).chunk(y=100)
    seg = seg.where(seg != 37, np.uint64(2**64 - 1)).astype("uint64")
    shown = COLORS[colors] if ids is None or colors != "dict" else {**COLORS["dict"], 2**64 - 1: "blue"}
    options = {"ids": ids, "colors": shown, "alpha": 0.4}
    image = (seg % np.uint64(251)).astype(np.uint8)
    style = {"width": 2, "side": side, "merge": False}
    lines = ix.outline(seg, ids=ids, colors=shown, **style).values[..., 3:]
    fill = ix.overlay(image, seg, **options).values
    drawn = ix.overlay(image, seg, outline=ix.Outline(**style, color=(9, 200, 1)), **options).values
    over = lines / 255
    expected = fill[..., :3] * (1 - over) + np.array([9, 200, 1]) * over
    assert (lines > 0).any()
    np.testing.assert_allclose(drawn[..., :3], expected, atol=1)
    alone = ix.outline(seg, ids=ids, colors=shown, color="#09c801", **style).values
    np.testing.assert_array_equal(alone[..., 3:], lines)
    assert {tuple(c) for c in alone[lines[..., 0] > 0][:, :3].tolist()} == {(9, 200, 1)}


def test_the_alpha_of_the_color_multiplies_that_of_the_outline():
    seg = cells(gap=True)
    drawn = ix.outline(seg, width=2, side="in", alpha=0.5, color=(255, 0, 0, 102)).values
    assert set(np.unique(drawn[..., 3])) == {0, 51}
    masks = {"a": seg == 1, "b": seg == 20}
    style = ix.Outline(2, side="in", color="yellow")
    lined = ix.overlay(None, masks, colors={"a": "red", "b": "blue"}, alpha=0, outline=style).values
    assert {tuple(c) for c in lined[lined[..., 3] > 0].tolist()} == {(255, 255, 0, 255)}


@pytest.mark.parametrize("color", ["nonesuch", 5, (1, 2), object()])
def test_an_outline_in_no_color_raises(color):
    with pytest.raises(ix.errors.ColorError, match="colour"):
        ix.Outline(2, color=color)
