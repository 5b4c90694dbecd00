"""Exports of cutouts on a cluster."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import imageryxr as ix
from imageryxr.errors import MissingIdsWarning
from tests.support.cutouts import boxes
from tests.support.export_jobs import cluster_of


@pytest.mark.slow
def test_cutouts_without_their_ids_are_reported_by_the_workers_of_a_cluster(tmp_path):
    ds = boxes(4)
    own = ds.segmentation.values[:, 1, 6, 8].copy()
    own[[3, 17]] = 2**64 - 2
    ds = ds.assign_coords(own=("cutout", own))
    drawn = ix.overlay(ds.image, ds.segmentation, ids="own", colors="red")
    with pytest.warns(MissingIdsWarning, match="2 of 24 cutouts do not contain their own"):
        expected = drawn.values
    with cluster_of(2) as client:
        with pytest.warns(MissingIdsWarning) as caught:
            ix.export(drawn, tmp_path / "{cutout}.png", client=client, progress=False)
        found = [str(w.message) for w in caught if issubclass(w.category, MissingIdsWarning)]
        assert found == [
            f"2 of 24 cutouts do not contain their own, e.g. cutout 3: {2**64 - 2}; imageryxr.measure(segmentation) "
            "lists the ids in each cutout"
        ]
    with Image.open(tmp_path / "5.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected[5, 1])
