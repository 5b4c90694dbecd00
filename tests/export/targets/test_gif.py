"""Animated GIFs, read back with Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from PIL import Image, ImageSequence

import imageryxr as ix
from imageryxr.errors import OptionError


def stack(values):
    grid = ix.Grid(values.shape[:3], (8, 8, 40), (2, 3, 4))
    dims = ("z", "y", "x", "rgba")[: values.ndim]
    return xr.DataArray(values, coords=grid.coords(), dims=dims, attrs={"resolution": grid.resolution})


def frames(path):
    with Image.open(path) as film:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


@pytest.mark.parametrize("chunked", [True, False])
def test_grey_slices_are_frames_of_the_same_values(tmp_path, chunked):
    values = np.random.default_rng(1).integers(0, 256, (5, 21, 30), dtype=np.uint8)
    array = stack(values)
    report = ix.export(array.chunk(2) if chunked else array, tmp_path / "a.gif", fps=10)
    assert report.complete
    read = frames(tmp_path / "a.gif")
    assert len(read) == 5
    for frame, plane in zip(read, values, strict=True):
        np.testing.assert_array_equal(frame, np.repeat(plane[..., None], 3, axis=-1))
    with Image.open(tmp_path / "a.gif") as film:
        assert film.info["duration"] == 100
        assert film.info["loop"] == 0
    again = ix.export(array, tmp_path / "b.gif", fps=10)
    assert again.complete
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


@pytest.mark.parametrize("axis", ["z", "y"])
def test_a_few_colours_of_slices_are_kept_almost_exactly(tmp_path, axis):
    colors = np.array([[255, 0, 0, 255], [0, 200, 30, 255], [10, 20, 250, 255], [80, 80, 80, 0]], np.uint8)
    values = colors[np.random.default_rng(2).integers(0, 4, (4, 16, 20))]
    ix.export(stack(values), tmp_path / "a.gif", axis=axis)
    seen = (values[..., :3] * (values[..., 3:] > 0)).astype(int)
    read = np.stack(frames(tmp_path / "a.gif"))
    truth = np.moveaxis(seen, 0 if axis == "z" else 1, 0)
    assert abs(read.astype(int) - truth).max() <= 8


def test_an_invalid_rate_or_dtype_of_a_gif_is_an_error(tmp_path):
    with pytest.raises(OptionError, match=r"fps=0 must be"):
        ix.export(stack(np.zeros((2, 3, 4), np.uint8)), tmp_path / "a.gif", fps=0)
    with pytest.raises(OptionError, match="cannot be frames of a GIF"):
        ix.export(stack(np.zeros((2, 3, 4), np.uint16)), tmp_path / "a.gif")
