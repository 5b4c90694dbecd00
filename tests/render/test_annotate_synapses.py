"""Synapses of the sample's tissue, drawn over its image: each mark lies on the cleft that the image shows."""

from __future__ import annotations

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.testing.micrograph import _SEED
from imageryxr.testing.sample import _OFFSET
from imageryxr.testing.tissue import VOXEL, Chain, assign_ids, place_organelles, place_synapses, populate


@pytest.mark.slow
def test_a_synapse_lies_on_its_cleft_between_the_cells_that_it_joins(sample):
    rng = np.random.Generator(np.random.PCG64(_SEED))
    size = np.array(sample.shape) * VOXEL
    cells = [Chain("none", np.zeros((0, 3)), np.zeros(0)), *populate(size, rng)]
    place_organelles(cells, rng)
    synapses = place_synapses(cells, size, rng)
    ids = assign_ids(cells, rng)
    corner = np.array(_OFFSET) * VOXEL[::-1]
    table = ix.as_annotations([s.point[::-1] + corner for s in synapses])
    table["pre_id"] = ("annotation", ids[[s.pre for s in synapses]])
    table["post_id"] = ("annotation", ids[[s.post for s in synapses]])
    ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    box = ix.grid_of(ds).bbox
    whole = np.flatnonzero(
        [all(a + 400 < p < b - 400 for a, b, p in zip(box.lo_nm, box.hi_nm, places, strict=True)) for places in
         np.stack([table.x, table.y, table.z], axis=1)]
    )  # fmt: skip
    assert len(whole) > 20
    for one in (table.isel(annotation=[i]) for i in whole[:12]):
        place = [float(one[axis][0]) for axis in "xyz"]
        part = ix.crop(ds, ix.BBox.around(place, (64, 64, 1), resolution=(1, 1, 1), size_resolution=(8, 8, 40)))
        plain = ix.to_rgba(part.image)
        changed = (ix.annotate(plain, one, size=1, marker="square").values != plain.values).any(axis=-1)[0]
        mark = np.argwhere(changed).mean(axis=0)  # the mark covers up to 2 × 2 pixels
        rows, columns = np.mgrid[:64, :64]
        away = np.hypot(rows - mark[0], columns - mark[1]) * 8
        cut = part.segmentation.values[0]
        for column in ("pre_id", "post_id"):
            assert away[cut == one[column].values[0]].min() < 64
        # Within the density that the tissue draws at the cleft, the image is darker than around it.
        grey = part.image.values[0].astype(float)
        assert grey[away < 40].mean() < grey[(away > 150) & (away < 250)].mean()
