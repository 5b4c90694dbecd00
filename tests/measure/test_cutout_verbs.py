"""A function of an array of cutouts equals the function of each cutout."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.errors import GridMismatchError, LayerError, OptionError
from tests.conftest import volume
from tests.support import counted_source
from tests.support.paired_cutouts import CENTERS, IDS, PRE, SIZE, boxes, lacks_ids
from tests.support.volumes import as_source


def one_by_one(found, verb, *arrays):
    """Check that each cutout of a result equals the verb of that cutout in memory.

    Fill values outside of the volume are not segments, so only the part of a segmentation inside is drawn.
    """
    held = [a.compute().drop_vars([n for n, c in a.coords.items() if n not in "zyx"]) for a in arrays]
    whole = counted_source.array_in_memory()
    inside = ix.cutouts(whole.copy(data=np.ones_like(whole.values)), CENTERS, SIZE).values
    assert found.dims[:4] == ("cutout", "z", "y", "x")
    values = found.values
    for i in range(len(CENTERS)):
        part = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(inside[i]))
        expected = draw_part(verb, [a.isel(cutout=i) for a in held], part)
        np.testing.assert_array_equal(values[i], expected.values)
        assert found.dtype == expected.dtype
        assert found.attrs == expected.attrs
        xr.testing.assert_equal(found.coords["x"].variable, expected.coords["x"].variable)


def draw_part(verb, arrays, part):
    """Return the result of a function for segmentations of which only a part exists."""
    result = verb(*arrays)
    if result.shape[:3] != arrays[0].shape:
        return result
    without = [a.copy(data=np.zeros_like(a.values)) if a.name == "segmentation" else a for a in arrays]
    values = np.array(verb(*without).values)
    values[part] = verb(*(a[part] for a in arrays)).values
    return result.copy(data=values)


@pytest.mark.parametrize("kind", ["dask", "in memory"])
@pytest.mark.parametrize("axis", ["z", "y"])
def test_an_overlay_of_cutouts_equals_overlays_of_each(kind, axis):
    ds = boxes(kind)

    def draw(image, segmentation):
        return ix.overlay(image, segmentation, alpha=0.4, outline=2, axis=axis)

    found = draw(ds.image, ds.segmentation)
    one_by_one(found, draw, ds.image, ds.segmentation)
    assert found.pre_id.values.tolist() == PRE.tolist()
    assert found.rgba.values.tolist() == list("rgba")


@pytest.mark.fast_forms(3)
@lacks_ids
@pytest.mark.parametrize("kind", ["dask", "in memory"])
@pytest.mark.parametrize(
    "verb",
    [
        lambda s: ix.outline(s, width=2, side="in", merge=False),
        lambda s: ix.outline(s, width=12, unit="nm", ids=IDS[:2].tolist()),
        lambda s: ix.overlay(None, [ix.Layer(s, alpha=0.1), ix.Layer(s, ids=IDS[:1].tolist(), outline=1)]),
        lambda s: ix.regrid(s, (16, 16, 40)),
    ],
)
def test_verbs_of_a_segmentation_equal_verbs_of_each_cutout(kind, verb):
    segmentation = boxes(kind).segmentation
    one_by_one(verb(segmentation), verb, segmentation)


@pytest.mark.parametrize("kind", ["dask", "in memory"])
def test_pictures_of_images_and_composites_equal_those_of_each_cutout(kind):
    ds = boxes(kind)

    def grey(image):
        return ix.to_rgba(image, contrast_limits=(20, 220))

    def both(image, segmentation):
        return ix.composite(grey(image), ix.outline(segmentation, width=1))

    one_by_one(grey(ds.image), grey, ds.image)
    one_by_one(both(ds.image, ds.segmentation), both, ds.image, ds.segmentation)
    np.testing.assert_array_equal(ds.imagery.overlay(alpha=0.3), ix.overlay(ds.image, ds.segmentation, alpha=0.3))


@lacks_ids
def test_an_overlay_of_cutouts_reads_each_chunk_once_and_has_a_deterministic_dask_name():
    ds = boxes("dask")
    picture = ix.overlay(ds.image, ds.segmentation, ids=ds.pre_id)
    counted_source.READS.clear()
    pickle.loads(pickle.dumps(picture)).compute(scheduler="threads")
    assert set(counted_source.READS.values()) <= {1, 2}  # the image and the segmentation have equal chunk numbers
    names = [
        ix.overlay(boxes("dask").image, boxes("dask").segmentation, ids=boxes("dask").pre_id).data.name for _ in "ab"
    ]
    assert names[0] == names[1]


def test_wrong_arguments_are_errors():
    ds = boxes("in memory")
    with pytest.raises(GridMismatchError, match="have 5 and 3 cutouts"):
        ix.overlay(ds.image, ds.segmentation[:3])
    with pytest.raises(OptionError, match="has 5 values for 3 cutouts"):
        ix.outline(ds.segmentation[:3], ids=ds.pre_id)
    with pytest.raises(OptionError, match="1 colours for 2 columns"):
        ix.overlay(ds.image, ds.segmentation, ids=[ds.pre_id, ds.post_id], colors=["red"])
    with pytest.raises(OptionError, match="rest_alpha cannot be combined"):
        ix.overlay(ds.image, ds.segmentation, ids=ds.pre_id, rest_alpha=0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda ds: ix.to_rgba(ds.image),
        lambda ds: ix.overlay(ds.image, ds.segmentation),
        lambda ds: ix.overlay(ds.image, ds.segmentation, ids=ds.pre_id),
        lambda ds: ix.select_ids(ds.segmentation, ds.pre_id),
        lambda ds: ix.measure(ds.segmentation, ids=ds.pre_id),
        lambda ds: ix.align(ds.image, ds.segmentation),
        lambda ds: ix.annotate(ds.image.expand_dims(rgba=list("rgba"), axis=-1), [(1, 2, 3)]),
    ],
)
@pytest.mark.parametrize("kind", ["dask", "in memory"])
def test_an_empty_selection_of_cutouts_is_an_error(kind, call):
    with pytest.raises(LayerError, match="has no cutouts; select at least one"):
        call(boxes(kind).isel(cutout=[]))


LAYERS = {
    "image": volume(
        np.random.default_rng(2).integers(0, 255, (9, 60, 64), dtype=np.uint8),
        (8, 8, 40),
        (4, 2, 1),
        layer_type="image",
    ),
    "segmentation": volume(
        np.random.default_rng(3).integers(1, 9, (9, 30, 32)).astype(np.uint64) * np.uint64(2**60),
        (16, 16, 40),
        (2, 0.5, 1),
        layer_type="segmentation",
    ),
}


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize("kind", ["lazy", "in memory"])
@pytest.mark.parametrize("to", ["finest", "coarsest", "image"])
def test_aligned_cutouts_equal_crops_of_the_aligned_volume(kind, to):
    image, seg = (as_source(a) if kind == "lazy" else a for a in LAYERS.values())
    centers = np.random.default_rng(5).uniform((200, 200, 160), (400, 350, 300), (9, 3))
    size = (30, 26, 3) if to == "coarsest" else (12, 10, 3)  # covers the cutouts of the segmentation
    ds = ix.align(ix.cutouts(image, centers, size), ix.cutouts(seg, centers, (12, 10, 3)), to=to)
    whole = ix.align(*LAYERS.values(), to=to)
    for i in range(9):
        offsets = {d: ds[d].values for d in "zyx"}
        middle = {}
        for axis, d in enumerate("xyz"):
            own = whole[d].values
            size = own[1] - own[0]
            cells = np.floor((centers[i, axis] - own[0]) / size + 0.5)
            middle[d] = own[0] + cells * size
        places = {d: middle[d] + offsets[d] for d in "zyx"}
        if to == "coarsest":
            # Offset 0 along y is the centre of the 16 nm voxel that contains the point, moved by the phase in voxels.
            shift = ds.segmentation.attrs.get("cutout_phase", [0, 0, 0])
            places["y"] = (np.floor(centers[i, 1] / 16) + 0.5 + shift[1]) * 16 + offsets["y"]
        for name in ("image", "segmentation"):
            expected = whole[name].sel(places, method="nearest").values
            inner = (slice(None), slice(2, -2), slice(2, -2))
            np.testing.assert_array_equal(ds[name].values[i][inner], expected[inner])


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("kind", ["lazy", "in memory"])
@pytest.mark.parametrize("to", [(16, 16, 40), (20, 20, 50), (8, 8, 40)])
def test_cutouts_aligned_at_a_resolution_equal_crops_of_the_volume_at_it(kind, to):
    image, seg = (as_source(a) if kind == "lazy" else a for a in LAYERS.values())
    centers = np.random.default_rng(5).uniform((200, 200, 160), (400, 350, 300), (9, 3))
    ds = ix.align(ix.cutouts(image, centers, (40, 36, 5)), ix.cutouts(seg, centers, (24, 20, 5)), to=to)
    assert ix.grid_of(ds.image.isel(cutout=0, drop=True)).resolution == to
    expected = ix.cutouts(ix.align(*LAYERS.values(), to=to), centers, ds.image.shape[:0:-1])
    inner = (slice(None), slice(1, -1), slice(4, -4), slice(4, -4))
    for name in ("image", "segmentation"):
        np.testing.assert_array_equal(ds[name].values[inner], expected[name].values[inner])
    xr.testing.assert_equal(ds.x.variable, expected.x.variable)
    assert ix.measure(ds.segmentation, ds.image).sizes["segment"]


def test_aligning_cutouts_around_different_centres_is_an_error():
    one, other = (ix.cutouts(LAYERS["image"], c, (4, 4)) for c in ([(300, 300, 200)], [(310, 300, 200)]))
    with pytest.raises(GridMismatchError, match="around different centres"):
        ix.align(one, other)
    for to in ("fine", ix.grid_of(LAYERS["image"]), (8, 8), (8, 8, 0)):
        with pytest.raises(OptionError, match=r"cannot be used for cutouts; give .* or a resolution \(x, y, z\)"):
            ix.align(one, one, to=to)


def two_arrays(ds, other):
    """Return calls of each verb of two arrays, of which one comes from other cutouts."""
    grey = ix.to_rgba(ds.image)
    return {
        "overlay": lambda: ix.overlay(ds.image, other.segmentation),
        "layers": lambda: ix.overlay(None, [ix.Layer(ds.segmentation), ix.Layer(other.segmentation)]),
        "composite": lambda: ix.composite(grey, ix.outline(other.segmentation)),
        "measure": lambda: ix.measure(ds.segmentation, other.image),
        "align": lambda: ix.align(ds.image, other.segmentation),
        "one cutout": lambda: ix.overlay(ds.image.isel(cutout=0), other.segmentation.isel(cutout=0)),
        "composite of one": lambda: ix.composite(
            grey.isel(cutout=0), ix.outline(other.segmentation.isel(cutout=0), width=1)
        ),
        "measure one": lambda: ix.measure(ds.segmentation.isel(cutout=0), other.image.isel(cutout=0)),
        "overlaps": lambda: ix.overlaps(ds.segmentation.isel(cutout=0), other.segmentation.isel(cutout=0)),
        "align one": lambda: ix.align(ds.image.isel(cutout=0), other.segmentation.isel(cutout=0)),
        "ids": lambda: ix.overlay(ds.image, ds.segmentation, ids=other.pre_id),
        "outline": lambda: ix.outline(ds.segmentation, ids=[ds.post_id, other.pre_id]),
        "measure ids": lambda: ix.measure(ds.segmentation, ids=other.pre_id),
    }


@pytest.mark.fast_forms(8)
@lacks_ids
@pytest.mark.parametrize("kind", ["dask", "in memory"])
@pytest.mark.parametrize("call", two_arrays(boxes("in memory"), boxes("in memory")))
def test_cutouts_of_different_places_cannot_be_combined(kind, call):
    ds = boxes(kind)
    with pytest.raises(GridMismatchError, match="around different centres: cutout 0 around .* and .* nm; cut both"):
        two_arrays(ds, ds.isel(cutout=[1, 0, 2, 3, 4]))[call]()
    two_arrays(ds, boxes(kind).isel(cutout=[0, 1, 2, 3, 4]))[call]()


def test_cutouts_around_other_points_of_the_same_voxels_can_be_combined():
    ds = boxes("in memory")
    source = counted_source.open_counted()
    sides = np.array(counted_source.GRID.resolution)
    near = ix.cutouts(source, (CENTERS // sides + 0.3) * sides, SIZE)
    np.testing.assert_array_equal(ix.overlay(ds.image, near), ix.overlay(ds.image, ds.segmentation))
    moved = source.assign_coords(x=source.x + 4)
    with pytest.raises(GridMismatchError, match="a part of a voxel apart"):
        ix.overlay(ds.image, ix.cutouts(moved, CENTERS, SIZE))
    lost = ds.image.drop_attrs()
    assert ix.overlay(lost, ds.segmentation).sizes["cutout"] == 5


def test_aligned_cutouts_of_shifted_layers_are_measured_and_drawn_together():
    centers = [(300, 250, 200)]
    ds = ix.align(*(ix.cutouts(array, centers, (12, 10, 1)) for array in LAYERS.values()))
    ix.overlay(ds.image, ds.segmentation)
    whole = ix.align(*LAYERS.values())
    found = ix.measure(ds.segmentation, ds.image)
    lo, hi = found.bbox_min.min("segment").values, found.bbox_max.max("segment").values
    part = ix.crop(whole, ix.BBox(lo, hi, resolution=(1, 1, 1)))
    expected = ix.measure(part.segmentation, part.image)
    np.testing.assert_array_equal(found.segment, expected.segment)
    np.testing.assert_allclose(found.centroid, expected.centroid)
    np.testing.assert_allclose(found["mean"], expected["mean"])


@pytest.mark.parametrize("kind", ["dask", "in memory"])
def test_annotations_are_drawn_at_their_positions_in_each_cutout(kind):
    whole = ix.to_rgba(counted_source.array_in_memory("image"))
    points = ix.as_annotations(CENTERS + np.array([8, -16, 0]))
    found = ix.annotate(ix.to_rgba(boxes(kind).image), points, color="red", size=4)
    drawn = ix.annotate(whole, points, color="red", size=4)
    assert (drawn != whole).any()
    expected = ix.cutouts(drawn, CENTERS, SIZE)
    # Marks near the border of the volume are not drawn outside of it.
    inside = ix.cutouts(xr.ones_like(counted_source.array_in_memory("image")), CENTERS, SIZE).values == 1
    np.testing.assert_array_equal(found.values[inside], expected.values[inside])
    assert found.dims == expected.dims


@lacks_ids
@pytest.mark.parametrize("kind", ["in memory", "lazy"])
def test_one_cutout_is_drawn_as_in_the_stack(kind):
    edge = ix.cutouts(counted_source.open_counted(), [(30.0, 60.0, 320.0), (300, 200, 500)], (16, 12, 3))
    edge = edge if kind == "lazy" else edge.compute()
    grey = (edge % 200).astype(np.uint8).assign_attrs(edge.attrs | {"layer_type": "image"})
    options = {"outline": 2, "alpha": 0.3}
    many = ix.overlay(grey, edge, **options)
    for number in range(2):
        one = ix.overlay(grey.isel(cutout=number), edge.isel(cutout=number), **options)
        xr.testing.assert_equal(one.compute(), many.isel(cutout=number).compute())
        lines = ix.outline(edge.isel(cutout=number), merge=False)
        xr.testing.assert_equal(lines.compute(), ix.outline(edge, merge=False).isel(cutout=number).compute())
