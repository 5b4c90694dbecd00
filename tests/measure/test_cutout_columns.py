"""Columns of cutouts as ``ids``: each cutout has its own ids, and each column a colour."""

from __future__ import annotations

import dask
import numpy as np
import pandas as pd
import pytest

import imageryxr as ix
from imageryxr.errors import ColorError, ImageryWarning, OptionError
from tests.support.paired_cutouts import CENTERS, IDS, POST, PRE, boxes, lacks_ids


@lacks_ids
@pytest.mark.parametrize("kind", ["dask", "in memory"])
def test_each_cutout_shows_its_own_cells_in_the_colours_of_their_columns(kind):
    ds = boxes(kind)
    picture = ix.overlay(
        ds.image, ds.segmentation, ids=[ds.pre_id, ds.post_id], colors=["red", "cyan"], alpha=1, outline=False
    ).values
    for i in range(len(CENTERS)):
        labels = ds.segmentation.values[i]
        for id_, color in ((PRE[i], (255, 0, 0)), (POST[i], (0, 255, 255))):
            where = labels == id_
            if id_:
                assert (picture[i][where][:, :3] == color).all()
        rest = (labels != PRE[i]) & ((labels != POST[i]) | (POST[i] == 0))
        grey = picture[i][rest]
        assert (grey[:, 0] == ds.image.values[i][rest]).all()
        assert (grey[:, 1] == grey[:, 2]).all()


@lacks_ids
def test_a_dataset_of_cutouts_draws_the_cells_of_each():
    ds = boxes("in memory")
    options = {"ids": [ds.pre_id, ds.post_id], "colors": ["red", "cyan"]}
    overlaid = ix.overlay(ds.image, ds.segmentation, **options)
    assert ds.imagery.overlay(**options).identical(overlaid)
    assert ix.overlay(ds.image, [ds.segmentation], **options).identical(overlaid)
    assert ds.imagery.outline(**options).identical(ix.outline(ds.segmentation, **options))
    with pytest.raises(OptionError, match=r"overlay\(boxes.image, boxes.segmentation, ids="):
        ix.overlay(ds.image, [ds.segmentation, ds.segmentation], **options)


@lacks_ids
def test_the_cell_of_each_cutout_has_the_colour_of_its_id():
    ds = boxes("dask")
    picture = ix.overlay(None, ds.segmentation, ids=ds.pre_id, alpha=1).values
    for i, id_ in enumerate(PRE):
        expected = ix.overlay(None, ds.segmentation.isel(cutout=i).compute(), ids=[id_], alpha=1)
        np.testing.assert_array_equal(picture[i], expected.values)


def test_ids_that_some_cutouts_lack_cause_no_warning(recwarn):
    ds = boxes("dask")
    dask.compute(ix.overlay(ds.image, ds.segmentation, ids=[int(IDS[0]), 12345]))
    assert not [w for w in recwarn if "12345" in str(w.message)]


@lacks_ids
@pytest.mark.parametrize("kind", ["dask", "in memory"])
def test_the_colours_of_columns_are_recorded_by_their_names(kind):
    ds = boxes(kind)
    columns = [ds.pre_id, ds.post_id]
    picture = ix.overlay(ds.image, ds.segmentation, ids=columns, colors=["red", "cyan"])
    assert ix.colors_of(picture) == {"pre_id": (255, 0, 0), "post_id": (0, 255, 255)}
    lower = ix.composite(picture, ix.outline(ds.segmentation, ids=[ds.post_id], colors=["blue"]))
    assert ix.colors_of(lower)["post_id"] == (0, 0, 255)
    montage = ix.montage(picture, scale=8)
    expected = ix.legend(montage, {"pre_id": "red", "post_id": "cyan"})
    assert ix.legend(montage).tobytes() == expected.tobytes()


def test_columns_of_the_table_raise_an_error_that_names_columns_of_the_cutouts():
    ds = boxes("in memory")
    table = pd.DataFrame({"pre_id": PRE, "post_id": POST})
    with pytest.raises(OptionError, match=r"Series 'pre_id', 'post_id'; .* ids=\[boxes.pre_id, boxes.post_id\]"):
        ix.overlay(ds.image, ds.segmentation, ids=[table.pre_id, table.post_id], colors=["red", "cyan"])
    with pytest.raises(OptionError, match=r"ids=boxes.post_id, or ids=list"):
        ix.measure(ds.segmentation, ids=table.post_id)
    with pytest.raises(OptionError, match=r"the pandas Series 'pre_id'; .* ids=\[boxes.pre_id\]"):
        ix.outline(ds.segmentation.isel(cutout=0), ids=[table.pre_id])
    assert ix.measure(ds.segmentation, ids=pd.Series(PRE, name="cells")).sizes["segment"]


@pytest.mark.fast_forms(3)
@lacks_ids
@pytest.mark.parametrize(
    "colors", [["red", "cyan"], {"pre_id": "red", "post_id": "cyan"}, {"post_id": "cyan", "pre_id": "red"}]
)
@pytest.mark.parametrize("ids", [["pre_id", "post_id"], ("pre_id", "post_id")])
def test_columns_and_their_colours_can_be_given_by_name(ids, colors):
    ds = boxes("in memory")
    expected = ix.overlay(ds.image, ds.segmentation, ids=[ds.pre_id, ds.post_id], colors=["red", "cyan"])
    assert ix.overlay(ds.image, ds.segmentation, ids=ids, colors=colors).identical(expected)
    assert ix.measure(ds.segmentation, ids="post_id").identical(ix.measure(ds.segmentation, ids=ds.post_id))


@lacks_ids
def test_a_single_colour_applies_to_all_columns():
    ds = boxes("in memory")
    for ids, count in ((ds.pre_id, 1), ([ds.pre_id, ds.post_id], 2)):
        expected = ix.overlay(ds.image, ds.segmentation, ids=ids, colors=["red"] * count)
        assert ix.overlay(ds.image, ds.segmentation, ids=ids, colors="red").identical(expected)


@lacks_ids
def test_colours_that_fit_neither_columns_nor_ids_raise():
    ds = boxes("in memory")
    with pytest.raises(ColorError, match=r"keys \['pre_id'\] for the columns of ids 'pre_id', 'post_id'; give"):
        ix.overlay(ds.image, ds.segmentation, ids=[ds.pre_id, ds.post_id], colors={"pre_id": "red"})
    with pytest.raises(ColorError, match=f"no colour for .* of the 4 ids.*{PRE[1]}"):
        ix.overlay(ds.image, ds.segmentation, ids=ds.pre_id, colors={int(PRE[0]): "red"})
    with pytest.raises(ColorError, match="no palette 'glasbei'"):
        ix.overlay(ds.image, ds.segmentation, ids=ds.pre_id, colors="glasbei")
    palette = ix.palette(np.unique(PRE), "stable")
    drawn = ix.overlay(ds.image, ds.segmentation, ids=ds.pre_id, colors=palette)
    np.testing.assert_array_equal(drawn, ix.overlay(ds.image, ds.segmentation, ids=ds.pre_id))


@lacks_ids
def test_values_of_a_column_raise_and_other_arrays_of_its_length_warn(recwarn):
    ds = boxes("in memory")
    two = np.stack([PRE, POST], axis=1)
    for ids in (PRE, [PRE, POST], two):
        with pytest.raises(OptionError, match=r"value for each cutout; .* ids=.*boxes.pre_id.*, or ids=list"):
            ix.overlay(ds.image, ds.segmentation, ids=ids)
    assert not recwarn
    shared = ix.measure(ds.segmentation, ids=PRE.tolist())
    with pytest.warns(ImageryWarning, match=r"an array of 5 ids, as many as there are cutouts, .* ids='own'"):
        assert ix.measure(ds.segmentation, ids=PRE[::-1]).identical(shared)
    ds = ds.assign_coords(own=("cutout", PRE[::-1]))
    assert ix.measure(ds.segmentation, ids="own").sizes["segment"] < shared.sizes["segment"]
    with pytest.raises(OptionError, match="a Layer has ids of each cutout"):
        ix.overlay(ds.image, [ix.Layer(ds.segmentation, ids=ds.pre_id)])
