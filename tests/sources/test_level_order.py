"""Layers whose metadata list levels from coarse to fine: the finest level is still the default."""

from __future__ import annotations

import json

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.ops.multiscale import levels_of
from imageryxr.ops.tree import layers_of
from tests.support.omezarr import axes_of, level, write_ome

FINE = np.random.default_rng(1).integers(1, 255, (4, 16, 16), dtype="uint8")
COARSE = FINE[:, ::2, ::2]


def write_precomputed(folder):
    scales = []
    for values, size in ((COARSE, 16), (FINE, 8)):
        z, y, x = values.shape
        scales.append({"key": str(size), "size": [x, y, z], "resolution": [size, size, 40], "chunk_sizes": [[x, y, z]],
                       "encoding": "raw", "voxel_offset": [0, 0, 0]})  # fmt: skip
        (folder / str(size)).mkdir(parents=True)
        (folder / str(size) / f"0-{x}_0-{y}_0-{z}").write_bytes(values.tobytes())
    (folder / "info").write_text(
        json.dumps({"type": "image", "data_type": "uint8", "num_channels": 1, "scales": scales})
    )


def write_omezarr(folder):
    datasets = [level("coarse", (40, 16, 16)), level("fine", (40, 8, 8))]
    write_ome(folder, [COARSE, FINE], {"axes": axes_of("zyx"), "datasets": datasets})


@pytest.fixture(params=[write_precomputed, write_omezarr])
def layer(request, tmp_path):
    request.param(tmp_path / "layer")
    return tmp_path / "layer"


def test_the_finest_level_opens_by_default_and_mip_is_the_index_in_the_list(layer):
    np.testing.assert_array_equal(ix.open_image(layer).values, FINE)
    assert ix.open_image(layer).attrs["mip"] == 1
    np.testing.assert_array_equal(ix.open_image(layer, mip=0).values, COARSE)


def test_levels_of_a_layer_are_ordered_from_fine_to_coarse(layer):
    for mip in (0, 1):
        sizes = [level.attrs["resolution"][0] for level in levels_of(ix.open_image(layer, mip=mip))]
        assert sizes == [8, 16]


def test_the_finest_level_of_a_tree_is_displayed(layer):
    (array,) = layers_of(ix.open_multiscale(layer)).values()
    np.testing.assert_array_equal(array.values, FINE)
