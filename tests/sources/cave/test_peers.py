"""Pictures equal those of ImageryClient, and voxels those of CloudVolume, from the same deployment."""

from __future__ import annotations

import imageryclient as ic
import numpy as np
import pytest

import imageryxr as ix
from tests.support.cave import utc
from tests.support.cave_server import BEGIN, DATASTACK, MERGE, OFFSET, SPLIT, TOKEN


@pytest.fixture
def client(cave):
    from caveclient import CAVEclient

    return CAVEclient(DATASTACK, server_address=cave.url, auth_token=TOKEN, write_server_cache=False)


CENTER = (2 * OFFSET[0] + 150, 2 * OFFSET[1] + 140, OFFSET[2] + 12)
# Whole seconds, because cloud-volume rounds fractions of a second up.
TIMES = [int(BEGIN) + 1, int(MERGE) + 1, int(SPLIT) + 1]


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("size", [(160, 120, 4), (160, 120)])
def test_cutouts_equal_those_of_imageryclient(client, when, size):
    # Corners and sizes are even in units of the viewer, which are half a voxel: ImageryClient rounds odd values.
    image, labels = ic.ImageryClient(client=client).image_and_segmentation_cutout(
        CENTER, bbox_size=size, timestamp=utc(when)
    )
    tree = ix.open_datastack(client, timestamp=utc(when))
    box = tree.imagery.around(CENTER, size)
    ds = tree.imagery.align(bbox=box)
    depth = size[2] if len(size) == 3 else 1
    assert ds.segmentation.shape == (depth, 60, 80)
    np.testing.assert_array_equal(ds.image.values.T, image.reshape(80, 60, depth))
    np.testing.assert_array_equal(ds.segmentation.values.T.astype(np.int64), labels.reshape(80, 60, depth))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"alpha": 0.4}, {"alpha": 0.8, "outline": True, "width": 3, "merge_outline": False}]
)
def test_pictures_equal_those_of_imageryclient(client, options):
    there = ic.ImageryClient(client=client)
    image, segs = there.image_and_segmentation_cutout(
        CENTER, bbox_size=(160, 120), split_segmentations=True, timestamp=utc(TIMES[1])
    )
    colors = dict(zip(segs, ic.composite.discrete_colors(list(segs)), strict=True))
    expected = np.asarray(ic.composite_overlay(segs, colors=colors, imagery=image, **options)).astype(int)
    tree = ix.open_datastack(client, timestamp=utc(TIMES[1]))
    ds = tree.imagery.align(bbox=tree.imagery.around(CENTER, (160, 120)))
    ours = {int(k): tuple(int(255 * v) for v in c) for k, c in colors.items()}
    if "outline" in options:
        line = ix.Outline(options["width"], merge=options["merge_outline"], alpha=options["alpha"])
        got = ix.overlay(ds.image, ds.segmentation, colors=ours, alpha=0, outline=line).values[0]
    else:
        got = ix.overlay(ds.image, ds.segmentation, colors=ours, alpha=options["alpha"]).values[0]
    assert got.shape == expected.shape
    inside = (slice(4, -4), slice(4, -4))  # at the edge, ImageryClient's outlines ignore the voxels outside
    same = np.abs(got[inside].astype(int) - expected[inside]).max(axis=-1) <= 2
    # where lines of several cells meet, the two packages may draw different ones on top
    assert same.mean() == 1 if "outline" not in options else same.mean() > 0.98


def test_a_cutout_makes_no_more_requests_than_imageryclient(cave, client):
    there = ic.ImageryClient(client=client)
    cave.log.clear()
    there.image_and_segmentation_cutout(CENTER, bbox_size=(160, 120), timestamp=utc(TIMES[1]))
    theirs = len(cave.log)
    tree = ix.open_datastack(client, timestamp=utc(TIMES[1]))
    ds = tree.imagery.align(bbox=tree.imagery.around(CENTER, (160, 120)))
    cave.log.clear()
    ds.compute()
    assert len(cave.log) <= theirs


@pytest.mark.parametrize("when", TIMES)
def test_decoded_voxels_equal_those_of_cloudvolume(cave, when):
    from cloudvolume import CloudVolume

    volume = CloudVolume(cave.table, secrets=TOKEN, use_https=True, progress=False)
    start, stop = np.array(OFFSET) + 5, np.array(OFFSET) + np.array([45, 55, 15])
    theirs = np.asarray(volume.download(tuple(map(slice, start, stop)), agglomerate=True, timestamp=when))[..., 0]
    seg = ix.open_segmentation(
        cave.table, token=TOKEN, timestamp=utc(when), bbox=ix.BBox(start, stop, resolution=(10, 10, 10))
    )
    np.testing.assert_array_equal(seg.values.T, theirs)
