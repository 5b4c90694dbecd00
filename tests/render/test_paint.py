"""Merged outlines of dense tissue are invisible; a warning recommends other options."""

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
