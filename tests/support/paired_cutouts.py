"""Cutouts of counted sources around synapses, with the ids of the cells in the columns ``pre_id`` and ``post_id``."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from tests.support import counted_source

CENTERS = np.array([(60, 90, 320), (300, 200, 500), (62, 91, 330), (410, 320, 610), (60, 90, 320)])
IDS = np.unique(counted_source.VALUES)[1:]
PRE = IDS[[0, 1, 2, 3, 0]]
POST = np.array([IDS[1], 0, IDS[0], IDS[4], IDS[1]], np.uint64)
SIZE = (16, 12, 3)

# Overlays of single cutouts, with which tests compare, warn about requested ids that do not occur in the cutout.
lacks_ids = pytest.mark.filterwarnings("ignore::imageryxr.errors.MissingIdsWarning")


def boxes(kind):
    """Return cutouts with the columns ``pre_id`` and ``post_id``: lazy if ``kind`` is "dask", otherwise in memory."""
    ds = xr.Dataset(
        {"image": counted_source.open_counted(layer_type="image"), "segmentation": counted_source.open_counted()}
    )
    table = {"x": CENTERS[:, 0], "y": CENTERS[:, 1], "z": CENTERS[:, 2], "pre_id": PRE, "post_id": POST}
    found = ix.cutouts(ds, table, SIZE)
    return found if kind == "dask" else found.compute()
