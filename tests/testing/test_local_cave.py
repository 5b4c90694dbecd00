"""The local CAVE datastack is read with the same functions as a real one."""

from __future__ import annotations

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.testing.local_cave import TOKEN, LocalCave

BEFORE, EDIT, AFTER = "2023-11-15T00:00:00Z", "2023-11-16T00:00:00Z", "2023-11-17T00:00:00Z"


@pytest.fixture
def volume(sample):
    em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
    return ix.align(em, seg, bbox=ix.BBox.around((4600, 2560, 130), (96, 80, 12), resolution=(8, 8, 40)))


@pytest.fixture
def cave(volume):
    with LocalCave(volume) as cave:
        yield cave


def roots_of(cave, timestamp):
    tree = ix.open_datastack(cave.datastack, timestamp=timestamp, server_address=cave.address, token=TOKEN)
    return tree["segmentation/segmentation"].values


def test_the_image_equals_that_of_the_volume(cave, volume):
    tree = ix.open_datastack(cave.datastack, server_address=cave.address, token=TOKEN)
    np.testing.assert_array_equal(tree["image/image"].values, volume.image.values)
    assert ix.grid_of(tree["image/image"]) == ix.grid_of(volume.image)


def test_each_cell_is_one_root_of_several_supervoxels(cave, volume):
    roots, cells = roots_of(cave, BEFORE), volume.segmentation.values
    pairs = np.unique(np.stack([roots.ravel(), cells.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(cells)) == len(np.unique(roots))
    np.testing.assert_array_equal(roots == 0, cells == 0)
    supervoxels = ix.unique_ids(ix.open_segmentation(cave.table, agglomerate=False, token=TOKEN))
    assert len(supervoxels) > len(np.unique(roots))


def test_a_merge_changes_only_later_timestamps(cave):
    before = roots_of(cave, BEFORE)
    a, b = np.unique(before[before > 0])[:2].tolist()
    merged = cave.merge(a, b, EDIT)
    np.testing.assert_array_equal(roots_of(cave, BEFORE), before)
    np.testing.assert_array_equal(roots_of(cave, AFTER), np.where(np.isin(before, [a, b]), np.uint64(merged), before))
    with pytest.raises(ix.errors.StaleRootError, match=str(merged)):
        ix.open_segmentation(cave.table, ids=[a], timestamp=AFTER, token=TOKEN)
    with pytest.raises(ValueError, match="two current roots"):
        cave.merge(a, b, AFTER)


def test_an_unknown_token_is_rejected(cave):
    with pytest.raises(ix.errors.AuthError):
        ix.open_datastack(cave.datastack, server_address=cave.address, token="f" * 32)
