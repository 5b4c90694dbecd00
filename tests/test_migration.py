"""Run each row of the documentation's table for users of ImageryClient with both packages, on the same volumes."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib.metadata import metadata
from pathlib import Path

import imageryclient as ic
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import imageryxr as ix
from tests.support import cave_server

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from_imageryclient.md").read_text()
ROWS = {
    what: (theirs, ours)
    for what, theirs, ours in re.findall(r"^\| ([^|]+?) \| `(.+?)` \| `(.+?)` \|$", PAGE, re.MULTILINE)
}
WITH_CAVE = {what: ROWS.pop(what) for what in list(ROWS) if what.startswith("CAVE: ")}
BOUNDS = [[4400, 2300, 120], [4656, 2492, 121]]
DEEP = [[4400, 2300, 120], [4528, 2396, 124]]


@pytest.fixture(scope="module")
def results(sample, tmp_path_factory):
    """Run the rows of the table in order, and return the variables after each row."""
    work = tmp_path_factory.mktemp("migration")
    (work / "ic" / "out").mkdir(parents=True)
    labels = ix.open_segmentation(sample.segmentation, bbox=ix.BBox(*DEEP, resolution=(8, 8, 40))).values
    found, counts = np.unique(labels[labels > 0], return_counts=True)
    common = {
        "img_src": sample.image, "seg_src": sample.segmentation, "bounds": BOUNDS, "deep": DEEP, "ctr": [4528, 2396, 120],
        "half": [[2200, 1150, 120], [2328, 1246, 121]], "ids": sorted(int(i) for i in found[np.argsort(-counts)][:3]),
        "ic": ic, "ix": ix, "np": np, "Image": Image,
    }  # fmt: skip
    theirs, ours = dict(common), dict(common)
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for what, (left, right) in ROWS.items():
            for side, code, names in (("ic", left, theirs), ("ix", right, ours)):
                (work / side).mkdir(exist_ok=True)
                patch.chdir(work / side)
                exec(code, names)
            made[what] = (dict(theirs), dict(ours))
    return made, work


def test_the_table_has_every_call_in_the_readme_of_imageryclient():
    theirs = metadata("imageryclient")["Description"] or metadata("imageryclient").get_payload()
    blocks = "".join(re.findall(r"```python\n(.*?)```", theirs, re.DOTALL))
    calls = set(re.findall(r"(?:ic|img_client)\.(\w+)\(", blocks)) | {
        "image_bbox_size_from_dimensions",
        "segmentation_bbox_size_from_dimensions",
    }
    calls |= {"save_imagery", "save_segmentation_masks", "save_image_and_segmentation_masks"}
    left = " ".join(theirs for theirs, _ in ROWS.values())
    assert {c for c in calls if f".{c}(" not in left} == set()
    options = set(
        re.findall(r"\b(\w+)=", " ".join(re.findall(r"(?:ic|img_client)\.\w+\((.*?)\)\n", blocks, re.DOTALL)))
    ) - {"client", "resolution"}
    options |= {
        "resolution",
        "overlap",
        "direction",
        "spacing",
        "dim",
        "mip",
        "scale_to_bounds",
        "split_segmentations",
        "root_ids",
    }
    assert {o for o in options if f"{o}=" not in left} == set()
    assert len(ROWS) >= 35


def as_imageryclient(array):
    """Return an array in the layout of ImageryClient: (x, y, z), without axes of one voxel."""
    return np.squeeze(array.values.T)


def assert_same(made, name, rows):
    for row in rows:
        theirs, ours = (side[name] for side in made[row])
        assert isinstance(ours, xr.DataArray)
        np.testing.assert_array_equal(np.asarray(theirs), as_imageryclient(ours), err_msg=row)


def test_images_have_the_same_voxels(results):
    made, _ = results
    assert tuple(made["resolution"][0]["res"]) == made["resolution"][1]["res"]
    assert_same(
        made,
        "image",
        [
            "image by bounds",
            "image by centre",
            "bounds in other units",
            "a mip",
            "a number of pixels of a mip",
            "image and segmentation, aligned",
            "a stack",
        ],
    )
    assert made["a mip"][1]["image"].shape == (1, 48, 64)
    assert made["a number of pixels of a mip"][1]["image"].shape == (1, 40, 50)
    around = made["bounds from a centre"]
    np.testing.assert_array_equal(around[0]["around"], [around[1]["around"].lo, around[1]["around"].hi])


def test_sizes_cover_the_same_extent(results):
    made, _ = results
    for row in ("the size of these pixels as a box", "the same for the segmentation"):
        theirs, ours = (side["size"] for side in made[row])
        assert tuple(np.array(theirs) * (8, 8, 40)) == ours


def test_ids_and_masks_have_the_same_voxels(results):
    made, _ = results
    assert_same(made, "labels", ["segmentation", "some root ids"])
    for row in ("one mask per id", "at the segmentation's size", "a stack"):
        theirs, ours = (side["masks"] for side in made[row])
        assert set(map(int, theirs)) == set(ours.segment.values.tolist()) or row == "at the segmentation's size"
        for i, mask in theirs.items():
            np.testing.assert_array_equal(
                mask.astype(bool), as_imageryclient(ours.sel(segment=np.uint64(i))), err_msg=row
            )


PICTURES = {
    "the image as a picture": (0, 0), "one mask as a picture": (0, 0), "overlay": (2, 0), "without an image": (2, 0), "palette and alpha": (2, 0), "hue, lightness": (2, 0),
    "colours by id": (2, 0), "the first mask wins": (2, 0), "outlines": (3, 15), "one outline per segment, inside": (3, 3),
    "side by side": (2, 0), "one below the other": (2, 0),
}  # fmt: skip


@pytest.mark.parametrize("row", PICTURES)
def test_pictures_have_the_same_pixels(results, row):
    # ImageryClient truncates alphas to 255ths, imageryxr rounds them. Outlines at the edge of the picture differ.
    tolerance, edge = PICTURES[row]
    theirs, ours = (side["picture"] for side in results[0][row])
    a, b = (np.asarray(p.convert("RGBA")).astype(int) for p in (theirs, ours))
    assert a.shape == b.shape
    inner = (slice(edge, a.shape[0] - edge), slice(edge, a.shape[1] - edge))
    visible = (a[..., 3] > 0) | (b[..., 3] > 0)
    np.testing.assert_array_equal(a[inner][..., 3] > 0, b[inner][..., 3] > 0)
    assert np.abs(a - b)[inner][visible[inner]].max(initial=0) <= tolerance
    assert visible.any()


@pytest.mark.fast_forms(1)
@pytest.mark.parametrize(
    ("row", "name", "axis"),
    [("overlays of a stack", "overlays", "z"), ("sliced along y", "along_y", "y"), ("sliced along x", "along_x", "x")],
)
@pytest.mark.filterwarnings("ignore:.*are drawn as squares:imageryxr.errors.ImageryWarning")
def test_stacks_have_the_same_slices(results, row, name, axis):
    theirs, ours = (side[name] for side in results[0][row])
    assert len(theirs) == ours.sizes[axis]
    for i, picture in enumerate(theirs):
        a, b = np.asarray(picture).astype(int), np.asarray(ix.to_pil(ours.isel({axis: [i]}))).astype(int)
        edge = 2 if axis == "y" else 0
        inner = (slice(edge, a.shape[0] - edge), slice(edge, a.shape[1] - edge))
        assert np.abs(a - b)[inner].max(initial=0) <= 3


def test_files_have_the_same_pixels(results):
    _, work = results
    files = sorted(p.name for p in (work / "ic" / "out").glob("*.png"))
    assert files == sorted(p.name for p in (work / "ix" / "out").glob("*.png"))
    assert len(files) == 4 * (1 + 3 + 1 + 3)
    for name in files:
        with Image.open(work / "ic" / "out" / name) as theirs, Image.open(work / "ix" / "out" / name) as ours:
            a, b = (np.asarray(p.convert("RGBA")) for p in (theirs, ours))
        visible = a[..., 3] > 0
        np.testing.assert_array_equal(visible, b[..., 3] > 0)
        np.testing.assert_array_equal(a[visible], b[visible])


@pytest.mark.parametrize("when", [int(cave_server.BEGIN) + 1, int(cave_server.MERGE) + 1, int(cave_server.SPLIT) + 1])
def test_a_datastack_gives_the_same_pixels(cave, when):
    from caveclient import CAVEclient

    x, y, z = cave_server.OFFSET
    common = {
        "client": CAVEclient(
            cave_server.DATASTACK, server_address=cave.url, auth_token=cave_server.TOKEN, write_server_cache=False
        ),
        "ctr": (2 * x + 150, 2 * y + 140, z + 12), "size": (160, 120), "when": datetime.fromtimestamp(when, UTC),
        "ic": ic, "ix": ix,
    }  # fmt: skip
    theirs, ours = dict(common), dict(common)
    made = {}
    for what, (left, right) in WITH_CAVE.items():
        exec(left, theirs)
        exec(right, ours)
        made[what] = (dict(theirs), dict(ours))
    assert len(made) == 6
    assert tuple(theirs["res"]) == ours["res"] == cave_server.VIEWER
    assert_same(made, "image", ["CAVE: image", "CAVE: both, one mask per id"])
    labels, mine = (side["labels"] for side in made["CAVE: segmentation at an instant"])
    np.testing.assert_array_equal(np.asarray(labels).astype(np.uint64), as_imageryclient(mine))
    masks, mine = theirs["masks"], ours["masks"]
    assert sorted(map(int, masks)) == mine.segment.values.tolist()
    assert len(masks) > 2
    for i, mask in masks.items():
        np.testing.assert_array_equal(mask.astype(bool), as_imageryclient(mine.sel(segment=np.uint64(i))))
    a, b = (np.asarray(side["picture"].convert("RGBA")).astype(int) for side in (theirs, ours))
    assert a.shape == b.shape == (60, 80, 4)
    assert np.abs(a - b).max() <= 2


# --- errors of ImageryClient ---------------------------------------------------------------------------------


def test_imageryclient_changes_ids_when_it_resizes_and_imageryxr_does_not(results):
    theirs, ours = (side["labels"] for side in results[0]["image and segmentation, aligned"])
    stored = set(results[0]["segmentation"][1]["labels"].values.ravel().tolist())
    assert set(ours.values.ravel().tolist()) == stored
    changed = set(np.unique(theirs).tolist()) - stored
    assert len(changed) > 10
    assert not changed & stored


def test_imageryclient_shifts_voxels_when_it_resizes_and_imageryxr_does_not(results, sample):
    theirs, ours = (side["masks"] for side in results[0]["aligned masks"])
    for i, mask in theirs.items():  # ImageryClient is right for a factor of two
        np.testing.assert_array_equal(mask.astype(bool), as_imageryclient(ours.sel(segment=np.uint64(i))))
    names = results[0]["open"]
    _, theirs = names[0]["client"].image_and_segmentation_cutout(
        BOUNDS, segmentation_mip=1, split_segmentations=True, root_ids=names[0]["ids"]
    )
    seg = ix.open_segmentation(sample.segmentation, mip=1, bbox=ix.BBox(*BOUNDS, resolution=(8, 8, 40)))
    ours = ix.align(names[1]["em"], seg, bbox=ix.BBox(*BOUNDS, resolution=(8, 8, 40))).segmentation
    moved = 0
    for i, mask in theirs.items():
        truth = (np.squeeze(seg.values.T) == np.uint64(i)).repeat(4, axis=0).repeat(4, axis=1)
        np.testing.assert_array_equal(as_imageryclient(ours) == np.uint64(i), truth)
        moved += int((mask.astype(bool) != truth).sum())
    assert moved > 50
    small = results[0]["a mip"][0]["image"]
    theirs, ours = (side["image"] for side in results[0]["a mip, enlarged"])
    truth = small.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(as_imageryclient(ours), truth)
    assert (np.asarray(theirs) != truth).mean() > 0.05


def test_colours_depend_on_the_rank_in_imageryclient_and_on_the_id_in_imageryxr(results):
    theirs = ic.composite_overlay(dict(list(results[0]["one mask per id"][0]["masks"].items())), alpha=1)
    fewer = dict(list(results[0]["one mask per id"][0]["masks"].items())[1:])
    again = ic.composite_overlay(fewer, alpha=1)
    i, mask = next(iter(fewer.items()))
    place = tuple(np.argwhere(mask)[0][::-1])
    assert np.asarray(theirs)[place].tolist() != np.asarray(again)[place].tolist()
    ours = results[0]["one mask per id"][1]["masks"]
    whole, part = (
        ix.overlay(None, ours, alpha=1),
        ix.overlay(None, ours.sel(segment=[np.uint64(k) for k in fewer]), alpha=1),
    )
    np.testing.assert_array_equal(whole.values[0][place], part.values[0][place])
    assert int(i) > 0
