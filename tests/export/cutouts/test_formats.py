"""The options of pictures, pages and Zarr groups of cutouts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import imageryxr as ix
from imageryxr.errors import LayerError, OptionError, SourceError
from imageryxr.export.cutouts.page import _ranks
from tests.support.cutouts import boxes, pictures


def test_pictures_are_enlarged_voxel_by_voxel(tmp_path):
    drawn = pictures()
    ix.export(drawn, tmp_path / "{cutout}.png", scale=3)
    with Image.open(tmp_path / "2.png") as picture:
        found = np.asarray(picture)
    np.testing.assert_array_equal(found, drawn.values[2, 1].repeat(3, axis=0).repeat(3, axis=1))
    ix.export(drawn, tmp_path / "page.html", scale=2)
    assert "--width: 128px; --height: 96px" in (tmp_path / "page.html").read_text()


def test_pictures_may_be_jpeg(tmp_path):
    grey = ix.to_rgba(boxes().image)
    ix.export(grey, tmp_path / "{id}.jpg", quality=100)
    with Image.open(tmp_path / "7.jpg") as picture:
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
        assert np.abs(np.asarray(picture, int) - grey.values[0, 1, ..., :3]).max() <= 8
    ix.export(grey, tmp_path / "page.html", quality=60)
    assert 'data-kind="jpeg"' in (tmp_path / "page.html").read_text()
    assert ix.export(grey, tmp_path / "page.html", quality=60).regions == 0
    with pytest.raises(LayerError, match="transparent, which JPEG cannot store; export it as PNG"):
        ix.export(ix.overlay(None, boxes().segmentation), tmp_path / "none" / "{id}.jpg")
    with pytest.raises(LayerError, match="uint16, which JPEG cannot store"):
        ix.export(boxes().image.astype(np.uint16), tmp_path / "{cutout}.jpeg")


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("{id}.png", {"scale": 0}, "scale=0 must be"),
        (
            "{id}.png",
            {"quality": 50},
            "quality=… is not an option of cutouts as .png; its options: compress_level, scale",
        ),
        ("{id}.jpg", {"quality": 101}, "quality=101 must be"),
        ("page.html", {"compressor": "zstd"}, "its options: labels, quality, scale"),
        ("boxes.zarr", {"compressor": "zip"}, "compressor='zip' must be"),
        ("boxes.ome.zarr", {}, r"is the name of an OME-Zarr, .* give '.*boxes.zarr', a group"),
        ("{id}.png", {"workers": 0}, "workers=0 must be"),
    ],
)
def test_options_are_checked_before_anything_is_written(tmp_path, target, options, words):
    with pytest.raises(OptionError, match=words):
        ix.export(pictures(), tmp_path / target, **options)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(("compressor", "codecs"), [("gzip:3", ["gzip"]), (None, []), ("zstd", ["zstd"])])
def test_a_zarr_has_the_compressor_that_was_given(tmp_path, compressor, codecs):
    ds = boxes()
    ix.export(ds, tmp_path / "boxes.zarr", compressor=compressor)
    metadata = json.loads((tmp_path / "boxes.zarr" / "segmentation" / "zarr.json").read_text())
    assert [codec["name"] for codec in metadata["codecs"] if codec["name"] != "bytes"] == codecs
    with xr.open_zarr(tmp_path / "boxes.zarr") as found:
        np.testing.assert_array_equal(found.segmentation, ds.segmentation)


def test_a_group_of_cutouts_is_not_opened_as_an_image(tmp_path):
    ix.export(boxes().image, tmp_path / "boxes.zarr")
    with pytest.raises(
        SourceError, match=r"open a group that xarray wrote, such as cutouts, with xarray.open_zarr"
    ) as caught:
        ix.open_image(tmp_path / "boxes.zarr")
    assert "boxes.zarr/0" not in str(caught.value)


def test_missing_values_cannot_name_files(tmp_path):
    drawn = pictures()
    for values in (np.array(["a", None, *"cdef"], object), np.array(["a", "", *"cdef"]), [1.0, np.nan, 3, 4, 5, 6]):
        named = drawn.assign_coords(note=("cutout", values))
        with pytest.raises(OptionError, match="cannot be filled for row 1: its 'note' is missing; name the files by"):
            ix.export(named, tmp_path / "{note}_{cutout}.png")
    whole = drawn.assign_coords(note=("cutout", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    ix.export(whole, tmp_path / "{note:03d}.png")
    assert (tmp_path / "003.png").exists()


def test_a_page_names_the_colours_of_columns_and_makes_room_for_long_captions(tmp_path):
    ds = boxes()
    present = ds.segmentation.values[:, 1, 6, 8]
    ds = ds.assign_coords(pre_id=("cutout", present), far=("cutout", np.full(6, 2**64 - 1, np.uint64)))
    drawn = ix.overlay(ds.image, ds.segmentation, ids=["pre_id"], colors=["red"])
    ix.export(drawn, tmp_path / "page.html", labels="far")
    text = (tmp_path / "page.html").read_text()
    assert '<span class="color"><i style="background: rgb(255, 0, 0)"></i>pre_id</span>' in text
    assert "--caption: 20ch" in text
    ix.export(pictures(), tmp_path / "plain.html")
    assert 'class="color"' not in (tmp_path / "plain.html").read_text()


def test_missing_values_are_sorted_last():
    assert np.argsort(_ranks(np.array(["b", None, "a"], object))).tolist() == [2, 0, 1]
    assert np.argsort(_ranks(np.array([np.nan, 2, 1]))).tolist() == [2, 1, 0]
    assert np.argsort(_ranks(np.array([2**64 - 1, 2**64 - 2], np.uint64))).tolist() == [1, 0]
