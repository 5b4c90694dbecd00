"""Arrays that xarray or dask sliced, chunked or transposed are read through their original expression."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.graph.expr import DaskLeaf, LevelLeaf
from imageryxr.graph.labelled import lazy_array, volume_of
from tests.conftest import no_compute
from tests.support.counted_source import GRID, READS, SHAPE, VALUES, VOXELS, CountedZeros, array_in_memory, open_counted
from tests.support.slow import slow_except


@pytest.fixture(autouse=True)
def reset_reads():
    READS.clear()
    VOXELS[0] = 0


def box_of(start, stop):
    """Return the box of indexes (z, y, x) of the volume."""
    o = GRID.voxel_offset[::-1]
    lo, hi = ([a + b for a, b in zip(corner, o, strict=True)][::-1] for corner in (start, stop))
    return ix.BBox(lo, hi, resolution=GRID.resolution)


SOURCES = {
    "opened": lambda c: open_counted(),
    "opened in blocks": lambda c: open_counted(c),
    "chunked by xarray": lambda c: open_counted().chunk(c),
    "rechunked": lambda c: open_counted({"z": 5, "y": 20, "x": 17}).chunk(c),
    "rechunked twice": lambda c: open_counted().chunk(x=7).chunk(c).chunk(z=3),
    "persisted": lambda c: open_counted(c).persist(scheduler="sync"),
    "own blocks": lambda c: array_in_memory().chunk(c),
    "own function": lambda c: (
        array_in_memory().chunk(c).copy(data=array_in_memory().chunk(c).data.map_blocks(np.copy, dtype="u8"))
    ),
    "numpy": lambda c: array_in_memory(),
}
BLOCKS = st.fixed_dictionaries({"z": st.integers(2, 12), "y": st.integers(9, 44), "x": st.integers(9, 52)})
SIDES = st.sampled_from([(side, merge) for side in ("in", "out") for merge in (True, False)])
BOXES = st.tuples(*[st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in SHAPE]).map(
    lambda spans: tuple(zip(*[(a, min(a + n, s)) for (a, n), s in zip(spans, SHAPE, strict=True)], strict=True))
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(list(SOURCES)), chunks=BLOCKS, side=SIDES, width=st.integers(1, 5), box=BOXES)
def test_a_crop_of_an_outline_is_the_outline_of_a_crop(kind, chunks, side, width, box):
    style = {"width": width, "side": side[0], "merge": side[1]}
    expected = ix.outline(array_in_memory(), **style).values[tuple(slice(a, b) for a, b in zip(*box, strict=True))]
    array = SOURCES[kind](chunks)
    with no_compute():
        drawn = ix.outline(array, **style)
        shown = ix.crop(drawn, box_of(*box))
    np.testing.assert_array_equal(shown.values, expected)
    if kind != "numpy":  # An array in memory has no data beyond its border.
        np.testing.assert_array_equal(ix.outline(ix.crop(array, box_of(*box)), **style).values, expected)
    np.testing.assert_array_equal(drawn.values, ix.outline(array_in_memory(), **style).values)


VERBS = {
    "outline": lambda a: ix.outline(a, width=3, side="out", merge=False),
    "overlay": lambda a: ix.overlay(None, a, outline=ix.Outline(2, merge=False)),
    "mode": lambda a: ix.regrid(a, (24, 24, 80), method="mode"),
    "nearest": lambda a: ix.regrid(a, (5, 5, 40)),
    "two layers": lambda a: ix.overlay(None, [a, ix.select_ids(a, [2**60 + 1])], outline=ix.Outline(3, merge=False)),
}
IMAGE_VERBS = {
    "mean": lambda a: ix.regrid(a, (24, 24, 80), method="mean"),
    "linear": lambda a: ix.regrid(a, (5, 5, 30), method="linear"),
    "plane": lambda a: ix.plane(a, (30, 27, 12), normal=(1, 2, 3), size=(20, 20), resolution=GRID.resolution),
    "thumbnail": lambda a: ix.thumbnail(a, 20),
}


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("verb", [*VERBS, *IMAGE_VERBS])
@pytest.mark.parametrize(
    "kind",
    slow_except(["opened in blocks", "chunked by xarray", "rechunked", "persisted", "own function"], "rechunked"),
)
def test_verbs_on_blocks_equal_verbs_on_numpy(verb, kind):
    layer_type = "image" if verb in IMAGE_VERBS else "segmentation"
    function = {**VERBS, **IMAGE_VERBS}[verb]
    chunks = {"z": 3, "y": 11, "x": 9}
    made = {
        "opened in blocks": lambda: open_counted(chunks, layer_type),
        "chunked by xarray": lambda: open_counted(None, layer_type).chunk(chunks),
        "rechunked": lambda: open_counted({"z": 5, "y": 20, "x": 17}, layer_type).chunk(chunks),
        "persisted": lambda: open_counted(chunks, layer_type).persist(scheduler="sync"),
        "own function": lambda: array_in_memory(layer_type).copy(
            data=array_in_memory(layer_type)
            .chunk(chunks)
            .data.map_blocks(np.copy, dtype=array_in_memory(layer_type).dtype)
        ),
    }[kind]()
    np.testing.assert_array_equal(np.asarray(function(made)), np.asarray(function(array_in_memory(layer_type))))


# ---------------------------------------------------------------------------------------------------------
# indexing by xarray

MOVES = {
    "isel": lambda a: a.isel(x=slice(7, 41), y=slice(3, None)),
    "sel": lambda a: a.sel(x=slice(100, 300)),
    "one section": lambda a: a.isel(z=slice(5, 6)),
    "one section of a list": lambda a: a.isel(z=[5]),
    "a list": lambda a: a.isel(z=[3, 4, 5, 6]),
    "a list from the end": lambda a: a.isel(z=[-3, -2, -1]),
    "a mask": lambda a: a.isel(x=(np.arange(52) > 8) & (np.arange(52) < 33)),
    "where dropped by coordinate": lambda a: a.sel(z=a.z[2:9]),
    "stride": lambda a: a.isel(y=slice(2, None, 3), x=slice(1, 50, 2)),
    "strides of strides": lambda a: a.isel(x=slice(1, None, 2)).isel(x=slice(2, None, 3)),
    "a list in steps": lambda a: a.isel(y=[1, 6, 11, 16, 21]),
    "reversed twice": lambda a: a.isel(z=slice(None, None, -1), x=slice(None, None, -1)).sortby(["z", "x"]),
    "turned": lambda a: a.transpose("x", "z", "y"),
    "turned and cut": lambda a: a.transpose("x", "z", "y").isel(z=slice(2, 9), x=slice(3, None)),
    "dropped": lambda a: a.isel(z=4),
    "dropped and turned": lambda a: a.isel(z=4).transpose("x", "y"),
    "squeezed": lambda a: a.isel(z=slice(4, 5)).squeeze(),
    "renamed": lambda a: a.rename("cells"),
    "in a Dataset": lambda a: a.to_dataset(name="cells").isel(x=slice(5, 30)).cells,
    "copied": lambda a: a.copy().isel(y=slice(9, 40)),
    "chunked": lambda a: a.chunk(z=3, x=10),
    "chunked and cut": lambda a: a.chunk(z=3, x=10).isel(x=slice(4, 38)).chunk(y=5),
    "assigned coordinates": lambda a: a.assign_coords(section=("z", np.arange(a.sizes["z"]))).isel(z=slice(1, 4)),
}
CHUNKED_MOVES = {
    **MOVES,
    "put back": lambda a: a.isel(z=4).expand_dims("z"),
    "put back in its place": lambda a: a.isel(z=4).expand_dims("z").transpose("y", "x", "z"),
}
MADE = {
    "opened": open_counted,
    "opened in blocks": lambda: open_counted({"z": 5, "y": 20, "x": 17}),
    "chunked by xarray": lambda: open_counted().chunk(z=5, y=20, x=17),
    "chunked as one": lambda: open_counted().chunk({}),
}


@pytest.mark.fast_forms(8)
@pytest.mark.parametrize("how", CHUNKED_MOVES)
@pytest.mark.parametrize("make", slow_except(MADE, "opened in blocks"))
def test_arrays_that_xarray_indexed_are_read_from_the_source(make, how):
    if make == "opened" and how not in MOVES:
        pytest.skip("xarray loads what it adds a dim to")
    with no_compute():
        moved = CHUNKED_MOVES[how](MADE[make]())
        volume = volume_of(moved)
    assert not READS
    assert not volume.dask_inputs
    assert not volume.in_memory
    expected = CHUNKED_MOVES[how](array_in_memory())
    # A dropped dim counts as one voxel.
    dropped = [d for d in "zyx" if d not in expected.dims]
    full = expected.expand_dims(dropped).transpose("z", "y", "x").values
    from imageryxr.graph.evaluate import evaluate

    np.testing.assert_array_equal(evaluate(volume.expr, volume.grid.box), full)
    np.testing.assert_array_equal(moved.values, expected.values)
    drawn = ix.overlay(None, moved, colors="glasbey")
    np.testing.assert_array_equal(drawn.values, ix.overlay(None, expected, colors="glasbey").values)


OTHER = {
    "where": lambda a: a.where(a > 0, np.uint64(3)),
    "astype": lambda a: a.astype("int64"),
    "arithmetic": lambda a: a // np.uint64(3),
    "concat": lambda a: xr.concat([a.isel(z=slice(0, 4)), a.isel(z=slice(4, None))], "z"),
    "loaded": lambda a: a.isel(x=slice(3, 20)).load(),
    "reduced": lambda a: a.coarsen(x=2).max(),
    "shifted": lambda a: a.shift(x=3, fill_value=0),
    "padded": lambda a: a.pad(x=2, constant_values=0).assign_coords(x=np.arange(56) * 8.0),
}


@pytest.mark.fast_forms(5)
@pytest.mark.parametrize("how", OTHER)
@pytest.mark.parametrize("make", ["opened in blocks", "chunked by xarray"])
def test_halos_of_computed_arrays_come_from_neighbouring_blocks(make, how):
    moved, expected = OTHER[how](MADE[make]()), OTHER[how](array_in_memory())
    style = {"width": 3, "side": "out", "merge": False}
    if expected.dtype != np.uint64:
        moved, expected = (a.copy(data=abs(a.data)) for a in (moved, expected))
    np.testing.assert_array_equal(ix.outline(moved, **style).values, ix.outline(expected, **style).values)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "stride", "chunk", "turn", "list", "reverse"]),
        st.sampled_from("zyx"),
        st.integers(0, 30),
        st.integers(1, 9),
    ),
    max_size=5,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(make=st.sampled_from(list(MADE)), steps=STEPS)
def test_any_chain_of_moves_gives_the_voxels_of_numpy(make, steps):
    arrays = [MADE[make](), array_in_memory()]
    turned = 0
    for what, dim, a, n in steps:
        size = arrays[0].sizes[dim]
        if what == "cut":
            arrays = [x.isel({dim: slice(a % size, a % size + 3 * n)}) for x in arrays]
        elif what == "stride":
            arrays = [x.isel({dim: slice(a % size, None, n)}) for x in arrays]
        elif what == "list":
            arrays = [x.isel({dim: list(range(a % size, size, n))}) for x in arrays]
        elif what == "reverse":
            arrays = [x.isel({dim: slice(None, None, -1)}) for x in arrays]
            turned += 1
        elif what == "turn":
            arrays = [x.transpose(dim, ...) for x in arrays]
        else:
            arrays[0] = arrays[0].chunk({dim: n})
    got, correct = (x.sortby(list("zyx")) for x in arrays)
    np.testing.assert_array_equal(got.values, correct.values)
    attrs = {"layer_type": "segmentation", "resolution": ix.grid_of(array_in_memory()).resolution}
    if min(correct.shape) > 1:
        got, correct = got.assign_attrs(attrs), correct.assign_attrs(attrs)
        volume = volume_of(got)
        assert not volume.dask_inputs
        drawn, expected = (ix.overlay(None, x, colors="glasbey") for x in (got, correct))
        np.testing.assert_array_equal(drawn.values, expected.values)


# ---------------------------------------------------------------------------------------------------------
# voxels that are read


@pytest.mark.parametrize("make", MADE)
def test_a_small_crop_reads_only_itself_and_its_halo(make):
    array = MADE[make]()
    drawn = ix.outline(ix.crop(array, box_of((2, 5, 6), (4, 15, 16))), width=2)
    with no_compute():
        ix.outline(ix.crop(array.isel(x=slice(1, None)), box_of((2, 5, 6), (4, 15, 16))), width=2)
    drawn.compute(scheduler="sync")
    assert VOXELS[0] == 2 * 14 * 14


@pytest.mark.parametrize("make", [*MADE, "rechunked"])
def test_a_volume_in_blocks_of_its_chunks_reads_each_chunk_once(make):
    own = {"z": 4, "y": 16, "x": 16}
    array = {
        "opened": open_counted,
        "opened in blocks": lambda: open_counted(own),
        "chunked by xarray": lambda: open_counted().chunk(own),
        "chunked as one": lambda: open_counted().chunk({}),
        "rechunked": lambda: open_counted(own).chunk(z=1, y=-1),
    }[make]()
    ix.select_ids(array, [2**60 + 1]).compute(scheduler="sync")
    assert set(READS.values()) == {1}
    assert len(READS) == 3 * 3 * 4


def test_a_verb_keeps_the_chunks_that_the_caller_chose():
    array = open_counted({"z": 4, "y": 16, "x": 16}).chunk(z=1, y=-1)
    drawn = ix.overlay(None, array, outline=1)
    assert drawn.chunks[:3] == array.chunks
    again = ix.crop(drawn, box_of((1, 2, 3), (5, 20, 30)))
    np.testing.assert_array_equal(again.values, ix.overlay(None, array_in_memory(), outline=1).values[1:5, 2:20, 3:30])


def test_a_verb_on_a_million_blocks_materializes_no_tasks():
    """Verbs on a chunked array of a million blocks add no materialized layers."""
    many = ix.Grid((1 << 14, 1 << 14, 1 << 14), (8, 8, 40), (0, 0, 0))
    array = lazy_array(LevelLeaf(CountedZeros(many), 0), many, {"layer_type": "image"}, "image")
    chunked = array.chunk(z=128, y=128, x=256)
    with no_compute():
        drawn = ix.to_rgba(chunked)
    assert np.prod(drawn.data.numblocks) == 1 << 20
    from dask.highlevelgraph import MaterializedLayer

    assert not any(isinstance(layer, MaterializedLayer) for layer in drawn.data.dask.layers.values())


def test_the_engine_makes_blocks_of_whole_chunks(sample):
    opened_by_xarray = xr.open_dataset(sample.image, engine="imageryxr", chunks={}).image
    assert opened_by_xarray.chunks == ix.open_image(sample.image, chunks="auto").chunks


def test_a_rechunked_dask_input_keeps_the_callers_blocks():
    """Without the rechunking, every task that needs a piece of a block would receive the whole block."""
    own = array_in_memory().chunk(z=1).copy(data=array_in_memory().chunk(z=1).data.map_blocks(np.copy, dtype="u8"))
    volume = volume_of(own.chunk(z=12, y=11, x=13))
    assert isinstance(volume.expr, DaskLeaf)
    assert volume.splits[0] == (12,)


def test_a_slice_of_a_dask_input_ends_at_its_border(monkeypatch):
    z = da.from_array(VALUES, chunks=(4, 44, 52)).map_blocks(np.copy, dtype="u8")
    array = array_in_memory().copy(data=z).isel(x=slice(0, 20))
    part = ix.outline(array, width=3, side="out", merge=False)
    expected = ix.outline(array_in_memory().isel(x=slice(0, 20)), width=3, side="out", merge=False)
    np.testing.assert_array_equal(part.values, expected.values)
