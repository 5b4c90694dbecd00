"""Masks as files, against NumPy and ImageryClient."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import imageryxr as ix
from imageryxr.errors import LayerError, OptionError, TargetError, TargetExistsError

IDS = [864691135163307862, 2**64 - 1]


def segmentation(shape=(3, 5, 7)):
    grid = ix.Grid(shape, (8, 8, 40), (2, 3, 100))
    values = np.random.default_rng(3).choice(np.array([0, *IDS], "uint64"), shape)
    return xr.DataArray(values, coords=grid.coords(), dims=("z", "y", "x"), attrs={"resolution": grid.resolution})


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("kind", ["array", "dict", "list", "method"])
def test_each_slice_of_each_mask_is_a_file(tmp_path, kind, chunked):
    seg = segmentation()
    masks = ix.split_masks(seg.chunk(2) if chunked else seg, IDS)
    path = tmp_path / "out" / "{z}_{id}.png"
    if kind == "method":
        files = masks.imagery.save_masks(path)
    elif kind == "array":
        files = ix.save_masks(masks, str(path))
    elif kind == "dict":
        files = ix.save_masks(dict(zip(masks.segment.values, masks, strict=True)), path)
    else:
        files = ix.save_masks(list(masks), path)
    assert [f.name for f in files] == [f"{z}_{i}.png" for z in range(3) for i in IDS]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == sorted(f.name for f in files)
    for file in files:
        z, i = file.stem.split("_")
        np.testing.assert_array_equal(np.asarray(Image.open(file)), (seg.values[int(z)] == np.uint64(i)) * 255)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_slices_run_along_the_axis_that_the_path_names(tmp_path, axis):
    seg = segmentation()
    files = ix.save_masks(ix.split_masks(seg, IDS[:1]), tmp_path / f"{{{axis}_index:04d}}_{{{axis}_nm:.0f}}.tif")
    offset, step = {"z": (100, 40), "y": (3, 8), "x": (2, 8)}[axis]
    assert files[1].name == f"{offset + 1:04d}_{(offset + 1.5) * step:.0f}.tif"
    truth = seg.isel({axis: 1}).values == np.uint64(IDS[0])
    np.testing.assert_array_equal(np.asarray(Image.open(files[1])), truth * 255)


def test_colours_leave_the_rest_transparent_as_imageryclient_does(tmp_path):
    client = pytest.importorskip("imageryclient.utils")
    masks = ix.split_masks(segmentation(), IDS).isel(z=[0])
    files = ix.save_masks(masks, tmp_path / "{id}.png", colors={IDS[0]: "red"})
    for file, mask, color in zip(files, masks, [(255, 0, 0), None], strict=True):
        theirs = np.asarray(client._binary_mask_to_transparent_pil(mask.values[0].T, color=color))
        ours = np.asarray(Image.open(file))
        np.testing.assert_array_equal(ours[..., 3], theirs[..., 3])
        shown = mask.values[0]
        np.testing.assert_array_equal(ours[shown], theirs[shown])
    named = ix.save_masks(masks, tmp_path / "p" / "{id}.png", colors="husl")
    pixel = np.asarray(Image.open(named[0]))[masks.values[0, 0]][0]
    assert tuple(pixel[:3]) == ix.palette(IDS, "husl")[IDS[0]]


def test_keys_of_colours_may_be_the_digits_of_ids(tmp_path):
    one = segmentation().isel(z=0) == IDS[0]
    (file,) = ix.save_masks({IDS[0]: one}, tmp_path / "{id}.png", colors={str(IDS[0]): "red"})
    assert np.asarray(Image.open(file))[one.values][0].tolist() == [255, 0, 0, 255]


def test_the_path_of_one_mask_of_one_slice_needs_no_fields(tmp_path):
    one = segmentation().isel(z=0) == IDS[0]
    (file,) = ix.save_masks(one, tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), one.values * 255)
    names = ix.save_masks({"axon": one, "soma": one}, tmp_path / "{id}.png")
    assert [f.name for f in names] == ["axon.png", "soma.png"]


def test_existing_files_are_replaced_only_with_overwrite(tmp_path):
    masks = ix.split_masks(segmentation(), IDS)
    (tmp_path / f"1_{IDS[1]}.png").write_text("mine")
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        ix.save_masks(masks, tmp_path / "{z}_{id}.png")
    assert len(list(tmp_path.iterdir())) == 1  # nothing was written
    assert len(ix.save_masks(masks, tmp_path / "{z}_{id}.png", overwrite=True)) == 6


def test_invalid_file_names_raise_before_anything_is_read(tmp_path):
    import dask.array as da

    def fail(block):
        raise AssertionError("computed")

    seg = segmentation()
    lazy = seg.copy(data=da.from_array(seg.values).map_blocks(fail, dtype="uint64", meta=seg.values[:0]))
    masks = ix.split_masks(lazy, IDS)
    for path in (
        "{z}.png",
        "{id}.png",
        "{z}_{segment}.png",
        "{z}_{y}_{id}.png",
        "{z}_{id}.jpg",
        "{z",
        "{z:q}_{id}.png",
    ):
        with pytest.raises(OptionError):
            ix.save_masks(masks, tmp_path / path)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (lambda: segmentation(), LayerError, r"split_masks\(segmentation, ids\)"),
        (lambda: "masks", LayerError, "a str is not a collection of masks"),
        (list, OptionError, "at least one"),
        (lambda: {"../a": segmentation() == 1}, OptionError, "cannot be part of a file name"),
        (lambda: [np.zeros((3, 3), bool)], LayerError, "a ndarray; give a DataArray"),
        (lambda: segmentation().astype("float32"), LayerError, "dtype float32"),
        (lambda: [segmentation() == 1, segmentation((2, 5, 7)) == 1], OptionError, "masks of equal size"),
    ],
)
def test_an_array_that_is_not_a_mask_is_an_imagery_error(masks, error, message, tmp_path):
    with pytest.raises(error, match=message):
        ix.save_masks(masks(), tmp_path / "{z}_{id}.png")


def test_a_folder_that_cannot_be_created_is_an_imagery_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError):
        ix.save_masks(ix.split_masks(segmentation(), IDS), tmp_path / "file" / "{z}_{id}.png")


def test_each_storage_chunk_is_read_once(tmp_path):
    import dask.array as da

    seg, reads = segmentation((8, 5, 7)), []

    def count(block):
        reads.append(block.shape)
        return block

    lazy = seg.copy(data=da.from_array(seg.values, chunks=(4, 5, 7)).map_blocks(count, meta=seg.values[:0, :0, :0]))
    ix.save_masks(ix.split_masks(lazy, IDS), tmp_path / "{z}_{id}.png")
    assert len(reads) == 2
