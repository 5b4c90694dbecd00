"""Tokens, pickles and dask graphs of lazy arrays are small and read nothing; ids are collected block by block."""

from __future__ import annotations

import pickle

import dask
import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st

import imageryxr as ix
from tests.conftest import no_compute
from tests.support.counted_source import READS, VALUES, VOXELS, array_in_memory, open_counted


@pytest.fixture(autouse=True)
def reset_reads():
    READS.clear()
    VOXELS[0] = 0


MOVES = {
    "as it is": lambda a: a,
    "cut": lambda a: a.isel(x=slice(3, 20)),
    "turned": lambda a: a.transpose("x", "y", "z"),
    "list": lambda a: a.isel(z=[3, 7]),
    "points": lambda a: a.isel(z=xr.DataArray([1, 2], dims="p"), y=xr.DataArray([3, 4], dims="p")),
    "Dataset": lambda a: a.to_dataset(),
    "dropped": lambda a: a.isel(z=3),
}


@pytest.mark.parametrize("how", MOVES)
def test_a_token_reads_nothing_and_depends_on_the_content(how):
    with no_compute():
        one, two = tokenize(MOVES[how](open_counted())), tokenize(MOVES[how](open_counted()))
        other = tokenize(MOVES[how](open_counted(None, "image")))
        part = tokenize(MOVES[how](open_counted()).isel(y=slice(0, 1)) if how != "points" else open_counted())
    assert one == two
    assert len({one, other, part}) == 3
    assert not READS


def test_tokens_of_arrays_in_memory_depend_on_their_values():
    assert tokenize(xr.Variable("x", [1, 2])) == tokenize(xr.Variable("x", [1, 2]))
    assert tokenize(xr.Variable("x", [1, 2])) != tokenize(xr.Variable("x", [1, 3]))
    changed = open_counted().load()
    before = tokenize(changed)
    changed[0, 0, 0] = 99
    assert tokenize(changed) != before


def test_a_pickle_contains_the_expression_and_no_voxels():
    array = open_counted().isel(x=slice(3, 20))
    packed = pickle.dumps(array)
    assert not READS
    assert len(packed) < 60_000
    np.testing.assert_array_equal(pickle.loads(packed).values, VALUES[:, :, 3:20])
    assert tokenize(pickle.loads(packed)) == tokenize(array)


@pytest.mark.slow
def test_a_cluster_receives_the_expression_and_reads_only_the_selection(sample):
    from distributed import Client

    from imageryxr.sources.precomputed.source import PrecomputedSource

    em = ix.open_image(sample.image)
    calls = []
    read = PrecomputedSource.read
    one_thread = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with Client(**one_thread) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrecomputedSource, "read", lambda self, mip, box: calls.append(box) or read(self, mip, box))
        future = client.submit(lambda a: int(a.isel(z=0, y=slice(0, 9), x=slice(0, 9)).values.sum()), em)
        got = future.result()
    assert got == int(em.isel(z=0, y=slice(0, 9), x=slice(0, 9)).values.sum())
    assert [box.voxels for box in calls] == [81]


# ---------------------------------------------------------------------------------------------------------
# ids


def numpy_ids(values):
    found, counts = np.unique(values, return_counts=True)
    return found[found > 0], counts[found > 0]


@settings(max_examples=25, deadline=None)
@given(
    chunks=st.fixed_dictionaries({"z": st.integers(2, 12), "y": st.integers(9, 44), "x": st.integers(9, 52)}),
    kind=st.sampled_from(["opened", "xarray", "rechunked", "own", "numpy", "lazy"]),
    dtype=st.sampled_from(["uint64", ">u8", "uint32", "int64", "uint8"]),
)
def test_ids_and_their_counts_equal_numpy(chunks, kind, dtype):
    if kind in ("own", "numpy"):
        array = (array_in_memory() % np.uint64(97)).astype(dtype).assign_attrs(array_in_memory().attrs)
        array = array.chunk(chunks) if kind == "own" else array
    else:
        array = {
            "opened": lambda: open_counted(chunks),
            "xarray": lambda: open_counted().chunk(chunks),
            "rechunked": lambda: open_counted({"z": 5, "y": 20, "x": 17}).chunk(chunks),
            "lazy": open_counted,
        }[kind]()
    expected, voxels = numpy_ids(array.values)
    ids, counts = ix.unique_ids(array, counts=True)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(counts, voxels)
    assert ids.dtype == array.dtype.newbyteorder("=")
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(ix.unique_ids(array), expected)


def test_each_chunk_is_read_once_for_all_ids():
    ix.unique_ids(open_counted({"z": 4, "y": 16, "x": 16}).chunk(z=1, y=-1), counts=True)
    assert set(READS.values()) == {1}


def test_unique_ids_of_an_empty_segmentation_is_empty():
    empty = array_in_memory() * np.uint64(0)
    for array in (empty, empty.chunk(z=5)):
        array = array.assign_attrs(array_in_memory().attrs)
        ids, counts = ix.unique_ids(array, counts=True)
        assert ids.tolist() == counts.tolist() == []
        assert ix.unique_ids(array).dtype == np.uint64


def test_the_graph_grows_with_the_number_of_blocks():
    """The graph has at most three tasks per block."""
    sizes = {}

    def scheduler(graph, keys, **options):
        from dask._expr import Expr

        sizes[blocks] = len((graph.optimize() if isinstance(graph, Expr) else graph).__dask_graph__()
                            if isinstance(graph, Expr) else graph)  # fmt: skip
        return [np.zeros(1, "u8")]

    for blocks in (512, 4096):
        n = round(blocks ** (1 / 3))
        grid = ix.Grid((n * 4,) * 3, (8, 8, 40), (0, 0, 0))
        from imageryxr.graph.expr import LevelLeaf
        from imageryxr.graph.labelled import lazy_array
        from tests.support.counted_source import CountedZeros

        seg = lazy_array(LevelLeaf(CountedZeros(grid, "segmentation"), 0), grid, {}, "seg", (4, 4, 4))
        with dask.config.set(scheduler=scheduler):
            ix.unique_ids(seg)
    assert sizes[4096] < 3 * 4096
    assert sizes[4096] < 8.5 * sizes[512]
