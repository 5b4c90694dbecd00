"""Every public function of arrays is lazy, and gives equal values for numpy, dask and sources in any chunks."""

from __future__ import annotations

import pickle

import dask
import imageryclient
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imageryxr as ix
from tests.conftest import no_compute, volume
from tests.support.slow import slow_except
from tests.support.volumes import FINE, IDS, IMAGE, SEG, as_source

VERBS = {
    "overlay": lambda im, seg: ix.overlay(im, seg, alpha=0.4),
    "overlay out": lambda im, seg: ix.overlay(im, seg, outline=ix.Outline(3, merge=False, alpha=0.5)),
    "overlay in y": lambda im, seg: ix.overlay(im, seg, outline=ix.Outline(2, side="in"), axis="y"),
    "overlay ids": lambda im, seg: ix.overlay(im, seg, ids=IDS[3:], colors="tab10"),
    "overlay neuroglancer": lambda im, seg: ix.overlay(im, seg, colors="neuroglancer"),
    "overlay nm": lambda im, seg: ix.overlay(im, seg, outline=ix.Outline(30, unit="nm"), axis="x"),
    "outline": lambda im, seg: ix.outline(seg, width=4, merge=False, alpha=0.7),
    "outline merged": lambda im, seg: ix.outline(seg, width=4),
    "to_rgba": lambda im, seg: ix.to_rgba(im, contrast_limits=(40, 200)),
    "composite": lambda im, seg: ix.composite(ix.to_rgba(im), ix.outline(seg, width=2, alpha=0.5)),
    "select": lambda im, seg: ix.select_ids(seg, [2**64 - 1]),
    "masks": lambda im, seg: ix.split_masks(seg, IDS[1:]),
    "linear": lambda im, seg: ix.regrid(im, (4.04, 4.04, 40)),
    "mean": lambda im, seg: ix.regrid(im, (16, 24, 80), method="mean"),
    "nearest": lambda im, seg: ix.regrid(seg, (5, 7, 40)),
    "mode": lambda im, seg: ix.regrid(seg, (16, 24, 80), method="mode"),
    "crop": lambda im, seg: ix.crop(seg, ix.BBox((5, -8, 1), (33, 60, 4), resolution=(8, 8, 40))),
    "chain": lambda im, seg: ix.outline(ix.regrid(ix.select_ids(seg, IDS[2:]), (4, 4, 40)), width=3, side="in"),
}


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize(
    "name", slow_except(VERBS, "overlay", "outline", "composite", "masks", "linear", "mean", "nearest", "mode", "chain")
)
@settings(max_examples=12)
@given(chunks=st.tuples(st.integers(1, 3), st.integers(5, 41), st.integers(7, 53)))
def test_a_verb_gives_equal_values_for_any_chunks_and_any_kind_of_array(name, chunks):
    verb = VERBS[name]
    truth = verb(IMAGE, FINE)
    assert isinstance(truth.data, np.ndarray)
    sizes = dict(zip("zyx", chunks, strict=True))
    with no_compute():
        foreign = verb(IMAGE.chunk(sizes), FINE.chunk(dict(zip("zyx", (2, 11, 13), strict=True))))
        opened = verb(as_source(IMAGE), as_source(FINE))
        cut = verb(as_source(IMAGE).imagery.crop(ix.grid_of(IMAGE).bbox), as_source(FINE))
    for other in (foreign, opened, cut):
        assert other.chunks is not None
        assert other.dims == truth.dims
        assert other.dtype == truth.dtype
        np.testing.assert_array_equal(other.values, truth.values)
        for dim in "zyx":
            assert other[dim].values.tolist() == truth[dim].values.tolist()


@pytest.mark.fast_forms(8)
@pytest.mark.parametrize("name", [n for n in VERBS if n not in ("crop", "linear", "mean", "nearest", "mode", "chain")])
@pytest.mark.filterwarnings("ignore:.*requested ids are not in the data:imageryxr.errors.MissingIdsWarning")
@pytest.mark.parametrize("open_", [as_source, lambda da: as_source(da).chunk({"z": 1, "y": 9, "x": 17})])
def test_a_verb_of_a_crop_is_a_crop_of_the_verb(name, open_):
    box = ix.BBox((20, 3, 3), (41, 20, 4), resolution=(8, 8, 40))
    image, seg = as_source(IMAGE), as_source(FINE)
    whole = ix.crop(VERBS[name](open_(IMAGE), open_(FINE)), box)
    part = VERBS[name](ix.crop(image, box), ix.crop(seg, box))
    np.testing.assert_array_equal(part.values, whole.values)


def test_outlines_of_a_crop_use_data_beyond_it_after_resampling_and_selection():
    box = ix.BBox((20, 3, 3), (41, 20, 4), resolution=(8, 8, 40))
    coarse = as_source(SEG)
    whole = ix.crop(ix.outline(ix.select_ids(ix.regrid(coarse, IMAGE), IDS[1:4]), width=5), box)
    part = ix.outline(ix.select_ids(ix.align(IMAGE, coarse, bbox=box).segmentation, IDS[1:4]), width=5)
    np.testing.assert_array_equal(part.values, whole.values)


def test_only_equal_calls_have_equal_names():
    image, seg = as_source(IMAGE), as_source(FINE)
    options = [
        {},
        {"alpha": 0.5},
        {"outline": 2},
        {"outline": 3},
        {"outline": ix.Outline(3, side="in")},
        {"outline": ix.Outline(3, merge=False)},
        {"outline": ix.Outline(3, alpha=0.5)},
        {"outline": ix.Outline(17, unit="nm")},
        {"outline": 3, "axis": "y"},
        {"colors": "tab10"},
        {"colors": "neuroglancer"},
        {"colors": ("neuroglancer", 7)},
        {"ids": [1]},
        {"ids": [5]},
        {"contrast_limits": (10, 90)},
    ]
    lazy = [ix.overlay(image, seg, **o) for o in options]
    assert len({a.data.name for a in lazy}) == len(options)
    assert [ix.overlay(image, seg, **o).data.name for o in options] == [a.data.name for a in lazy]
    together = dask.compute(*[a.data for a in lazy])
    for picture, o in zip(together, options, strict=True):
        np.testing.assert_array_equal(picture, ix.overlay(IMAGE, FINE, **o).values)


def test_ids_are_exact_through_every_verb():
    big = IDS[[5, 4, 3]].reshape(1, 1, 3)
    seg = volume(big, (8, 8, 40), layer_type="segmentation")
    for origin in (seg, seg.chunk(x=1), as_source(seg)):
        assert ix.unique_ids(origin).tolist() == sorted(big.ravel().tolist())
        assert ix.unique_ids(origin).dtype == np.uint64
        assert ix.regrid(origin, (4, 4, 40)).values[0, 0].tolist() == np.repeat(big.ravel(), 2).tolist()
        assert ix.regrid(origin, (24, 8, 40), method="mode").values.ravel().tolist() == [2**53 + 1]
        assert ix.split_masks(origin, [2**64 - 1]).segment.values.tolist() == [2**64 - 1]
        assert ix.select_ids(origin, ["18446744073709551615"]).values.ravel().tolist() == [2**64 - 1, 0, 0]


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_one_voxel_boxes_keep_three_dims(axis):
    size = [6, 6, 2]
    size["xyz".index(axis)] = 1
    box = ix.BBox.around((20, 5, 3), size, resolution=(8, 8, 40))
    ds = ix.align(as_source(IMAGE), as_source(SEG), bbox=box)
    assert ds.image.shape == tuple(reversed(size))
    assert ix.overlay(ds.image, ds.segmentation, outline=2).shape == (*reversed(size), 4)


def test_dims_that_the_caller_dropped_stay_dropped():
    picture = ix.overlay(IMAGE.isel(z=1), FINE.isel(z=1), alpha=0.4, outline=2)
    assert picture.dims == ("y", "x", "rgba")
    np.testing.assert_array_equal(picture.values, ix.overlay(IMAGE, FINE, alpha=0.4, outline=2).values[1])


def test_verbs_keep_the_attrs_of_the_image():
    image = as_source(IMAGE).assign_attrs(source="precomputed://somewhere", timestamp="then")
    out = ix.crop(ix.overlay(image, as_source(FINE)), ix.BBox((20, 3, 3), (41, 20, 4), resolution=(8, 8, 40)))
    assert out.attrs["source"] == "precomputed://somewhere"
    assert out.attrs["timestamp"] == "then"
    assert out.attrs["resolution"] == (8.0, 8.0, 40.0)
    assert out.x.attrs["units"] == "nm"


# --- against peers and oracles -----------------------------------------------------------------------------


def masks_of(labels):
    """Return the masks that ImageryClient takes: (x, y) arrays by id."""
    return {int(i): (labels == i).T.astype(int) for i in np.unique(labels) if i}


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_fill_agrees_with_imageryclient(alpha):
    labels, grey = FINE.values[1], IMAGE.values[1]
    colors = {i: tuple(np.random.default_rng(i % 97).random(3)) for i in masks_of(labels)}
    theirs = imageryclient.composite_overlay(masks_of(labels), colors, alpha=alpha, imagery=grey.T)
    ours = ix.to_pil(ix.overlay(IMAGE.isel(z=[1]), FINE.isel(z=[1]), colors=colors, alpha=alpha))
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max() <= 2


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("width", [1, 3, 6])
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_outlines_agree_with_imageryclient(side, merge, width, alpha):
    labels = FINE.values[1]
    colors = {i: tuple(np.random.default_rng(i % 97).random(3)) for i in masks_of(labels)}
    theirs = imageryclient.composite_overlay(
        masks_of(labels), colors, alpha=alpha, outline=True, width=width, side=side, merge_outline=merge
    )
    ours = ix.outline(FINE.isel(z=[1]), width=width, side=side, merge=merge, colors=colors, alpha=alpha)
    a, b = np.asarray(ix.to_pil(ours)).astype(int), np.asarray(theirs).astype(int)
    inner = (slice(width, -width), slice(width, -width))
    np.testing.assert_array_equal(a[inner][..., 3] > 0, b[inner][..., 3] > 0)
    drawn = a[inner][..., 3] > 0
    assert np.abs(a[inner] - b[inner])[drawn].max(initial=0) <= 3


@given(
    st.tuples(st.sampled_from([2, 4, 4.04, 8, 12, 20]), st.sampled_from([4, 8, 10]), st.sampled_from([20, 40, 80])),
    st.integers(-4, 4),
)
def test_nearest_agrees_with_a_slow_loop(resolution, offset):
    grid = ix.Grid((4, 9, 11), resolution, (offset, offset, 1))
    out = ix.regrid(SEG, grid)
    own = ix.grid_of(SEG)
    picks = [
        np.floor(t.centers() / s.resolution - s.offset + 1e-9).astype(int)
        for t, s in zip(grid.axes, own.axes, strict=True)
    ]
    for z, y, x in np.ndindex(grid.shape):
        i = (picks[0][z], picks[1][y], picks[2][x])
        inside = all(0 <= a < n for a, n in zip(i, SEG.shape, strict=True))
        assert out.values[z, y, x] == (SEG.values[i] if inside else 0)


def test_linear_agrees_with_scipy_inside():
    from scipy.ndimage import map_coordinates

    target = ix.Grid((2, 30, 40), (5, 6, 40), (30, 0, 3))
    own = ix.grid_of(IMAGE)
    out = ix.regrid(IMAGE, target).values
    places = [t.centers() / s.resolution - s.offset - 0.5 for t, s in zip(target.axes, own.axes, strict=True)]
    truth = map_coordinates(IMAGE.values.astype(float), np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
    assert np.abs(out - truth).max() <= 0.5 + 1e-6


# --- graphs --------------------------------------------------------------------------------------------------


def test_a_petavoxel_volume_opens_and_has_a_small_graph(tmp_path):
    from cloudvolume import CloudVolume

    paths = {}
    for kind, dtype, chunk in (("image", "uint8", [128, 128, 16]), ("segmentation", "uint64", [256, 256, 32])):
        paths[kind] = f"file://{tmp_path}/{kind}"
        info = CloudVolume.create_new_info(1, kind, dtype, "raw", [4, 4, 40], [17, 33, 5], [240_000, 220_000, 28_000], chunk_size=chunk)  # fmt: skip
        CloudVolume(paths[kind], info=info).commit_info()
    image, seg = ix.open_image(paths["image"]), ix.open_segmentation(paths["segmentation"])
    box = ix.BBox.around((120_000, 110_000, 14_000), (2048, 2048, 64), resolution=(4, 4, 40))
    ds = ix.align(image, seg, bbox=box)
    picture = ix.overlay(ds.image, ds.segmentation, outline=4)
    (blocks,) = dask.optimize(picture.data)
    assert len(blocks.dask) == picture.data.npartitions
    assert len(picture.data.dask.layers) == 3  # the picture, and one layer of shared reads per source
    assert len(pickle.dumps(picture.data.dask)) < 20_000
    whole = ix.to_rgba(image)
    assert whole.shape == (28_000, 220_000, 240_000, 4)
    assert len(pickle.dumps(whole.data.dask)) < 20_000


def test_a_halo_is_part_of_one_larger_read(monkeypatch):
    image, seg = as_source(IMAGE), as_source(FINE)
    read = {"image": 0, "segmentation": 0}
    from imageryxr.sources import memory

    original = memory.MemorySource.read

    def read_and_count(self, mip, box):
        read[self.layer_type] += box.voxels
        return original(self, mip, box)

    monkeypatch.setattr(memory.MemorySource, "read", read_and_count)
    picture = ix.composite(ix.overlay(image, seg, outline=3), ix.outline(seg, width=2, side="in"))
    picture.compute()
    assert read == {"image": IMAGE.size, "segmentation": FINE.size}


BIG_ENDIAN = {
    "nearest": lambda seg: ix.regrid(seg, (4, 4, 40)),
    "mode": lambda seg: ix.regrid(seg, (16, 16, 40)),
    "linear": lambda seg: ix.regrid(seg.astype(">f4").assign_attrs(layer_type="image"), (4, 4, 40)),
    "mean": lambda seg: ix.regrid(seg.astype(">u2").assign_attrs(layer_type="image"), (16, 16, 40)),
    "select": lambda seg: ix.select_ids(seg, IDS[1:]),
    "crop": lambda seg: ix.crop(seg, ix.BBox((5, -8, 1), (33, 60, 4), resolution=(8, 8, 40))),
    "plane": lambda seg: ix.plane(seg, (280, 140, 120), (5, 6), normal=(0, 1, 1)),
}


@pytest.mark.parametrize("name", BIG_ENDIAN)
def test_verbs_of_big_endian_arrays_declare_the_dtype_that_they_compute(name):
    verb, big = BIG_ENDIAN[name], FINE.copy(data=FINE.values.astype(">u8"))
    held, lazy = verb(big), verb(big.chunk(x=7))
    assert held.dtype.str == lazy.dtype.str == lazy.compute().dtype.str
    np.testing.assert_array_equal(held.values, verb(FINE).values)


def test_unique_ids_are_in_native_byte_order():
    assert ix.unique_ids(FINE.astype(">u8")).dtype.str == np.dtype("u8").str


def test_missing_ids_are_listed():
    for origin in (FINE, as_source(FINE)):
        with pytest.warns(ix.errors.MissingIdsWarning, match="2 of the 3 requested ids are not in the data: 77, 78"):
            ix.select_ids(origin, [5, 77, 78]).load()
        with pytest.warns(ix.errors.MissingIdsWarning, match="not in the data: 77"):
            ix.overlay(None, origin, ids=[5, 77]).load()


def test_accessor_methods_equal_the_functions():
    assert ix.overlay.__doc__ == type(FINE.imagery).overlay.__doc__
    ds = ix.align(as_source(IMAGE), as_source(SEG))
    assert ds.imagery.overlay(alpha=0.3).identical(ix.overlay(ds.image, ds.segmentation, alpha=0.3))
    assert FINE.imagery.outline(width=2).identical(ix.outline(FINE, width=2))
    assert ds.imagery.outline(width=2).identical(ix.outline(ds.segmentation, width=2))
    assert ds.imagery.split_masks([1]).identical(ix.split_masks(ds.segmentation, [1]))
    np.testing.assert_array_equal(ds.imagery.unique_ids(), ix.unique_ids(ds.segmentation))
    assert IMAGE.imagery.align(FINE).identical(ix.align(IMAGE, FINE))
    picture = ds.imagery.overlay().isel(z=[0])
    bar = {"label": False, "scale": 4}
    assert picture.imagery.scale_bar(**bar).tobytes() == ix.scale_bar(picture, **bar).tobytes()


def test_every_verb_of_an_array_is_a_method():
    begin = ("open_", "load_", "save_palette")
    others = {"errors", "grid_of", "sample", "palette", "as_annotations", "progress"}
    verbs = {n for n in ix.__all__ if n.islower() and not n.startswith(begin)} - others
    methods = type(FINE.imagery)
    assert {n for n in verbs if getattr(getattr(methods, n, None), "__wrapped__", None) is not getattr(ix, n)} == set()
    picture = ix.to_rgba(IMAGE).isel(z=[0])
    assert picture.imagery.scale_bar(scale=40).size == ix.scale_bar(picture, scale=40).size
