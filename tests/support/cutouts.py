"""Cutouts of sources that count their reads."""

from __future__ import annotations

import numpy as np
import xarray as xr

import imageryxr as ix
from tests.support import counted_source

CENTERS = np.array([(60, 90, 320), (300, 200, 500), (62, 91, 330), (410, 320, 610), (60, 90, 320), (200, 100, 400)])
IDS = np.array([7, 2**64 - 1, 3, 2**63, 12, 5], np.uint64)
SIZE = (16, 12, 3)


def boxes(times=1):
    """Return cutouts of counted sources; each centre is repeated ``times`` times."""
    ds = xr.Dataset(
        {"image": counted_source.open_counted(layer_type="image"), "segmentation": counted_source.open_counted()}
    )
    x, y, z = np.tile(CENTERS, (times, 1)).T
    columns = {"x": x, "y": y, "z": z, "id": np.tile(IDS, times), "kind": list("abcabc") * times}
    return ix.cutouts(ds, columns, SIZE)


def pictures(times=1):
    """Return overlays of the cutouts of `boxes`."""
    ds = boxes(times)
    return ix.overlay(ds.image, ds.segmentation, alpha=0.5)
