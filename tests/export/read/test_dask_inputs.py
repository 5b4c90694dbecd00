"""Exports of the user's own dask arrays: each block is computed once, within the planned memory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import warnings
from collections import Counter

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.graph.expr import DaskLeaf
from imageryxr.graph.labelled import box_reader
from tests.conftest import no_compute
from tests.support.export_jobs import Computed, array_of, cluster_of, picture

CALLS: Counter[tuple[int, ...]] = Counter()
LOCK = threading.Lock()
REGIONS = sys.modules["imageryxr.export.plan.regions"]


def count_call(block, block_info=None):
    if block_info:
        with LOCK:
            CALLS[tuple(block_info[0]["chunk-location"])] += 1
    return block + block.dtype.type(7)


def users_array(shape=(24, 60, 50), chunks=(8, 20, 25), dtype="uint8", function=count_call, name="mine", kind="image"):
    """Return a labelled dask array whose function counts its calls per block, and the expected values."""
    values = (np.arange(np.prod(shape)).reshape(shape) % 241).astype(dtype)
    blocks = da.from_array(values, chunks=chunks).map_blocks(function, dtype=dtype, name=f"{name}-{shape}-{chunks}")
    return labelled_array(blocks, kind), values + values.dtype.type(7)


def labelled_array(blocks, kind="image"):
    grid = ix.Grid(blocks.shape, (8, 8, 8), (1, 2, 3))
    return xr.DataArray(blocks, dims=("z", "y", "x"), coords=grid.coords(), attrs={"layer_type": kind})


def read_result(target, path):
    if "zarr" in target:
        return zarr.open_array(f"{path}/0")[:]
    if target.endswith("png"):
        from PIL import Image

        return np.stack([np.asarray(Image.open(p)) for p in sorted(path.parent.glob("*.png"))])
    import tifffile

    return tifffile.imread(path)


# ---------------------------------------------------------------------------------------------------------
# regions follow blocks


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("target", ["s/z{z:03d}.png", "o.tif", "o.zarr"])
@pytest.mark.parametrize("chunks", [(8, 20, 25), (7, 60, 13), ((5, 11, 8), (20, 40), (50,)), (24, 60, 50)])
def test_each_block_is_computed_once(tmp_path, monkeypatch, target, chunks):
    monkeypatch.setattr(REGIONS, "START_VOXELS", 1 << 10)
    array, expected = users_array(chunks=chunks)
    options = {"chunks": (4, 20, 25)} if "zarr" in target else {}
    CALLS.clear()
    with no_compute():
        plan = ix.plan_export(array, tmp_path / target, workers=1, **options)
    assert not CALLS
    ix.export(array, tmp_path / target, workers=1, **options)
    np.testing.assert_array_equal(read_result(target, tmp_path / target), expected)
    blocks = np.prod(array.data.numblocks)
    assert len(CALLS) == blocks
    (planned,) = plan.computes
    assert (planned.chunks, planned.requests) == (blocks, CALLS.total())
    assert CALLS.total() <= 1.15 * blocks
    noun = "block" if blocks == 1 else "blocks"
    assert f"compute: {blocks:,} {noun} of 'mine', each {CALLS.total() / blocks:.2f} times" in repr(plan)
    assert plan.to_dict()["computes"] == [
        {"array": "mine", "blocks": blocks, "computed": CALLS.total(), "bytes": array.nbytes}
    ]
    assert (plan.reads, plan.requests, plan.bytes_to_read) == ((), 0, 0)


def test_blocks_that_are_computed_many_times_warn(tmp_path):
    array = labelled_array(
        da.zeros((64, 4096, 4096), chunks=(32, 512, 512), dtype="uint8").map_blocks(lambda b: b, name="thick")
    )
    plan = ix.plan_export(array, tmp_path / "z{z}.png", memory="600 MB", workers=2)
    (reads,) = plan.computes
    assert reads.requests > 2 * reads.chunks
    plan.validate()
    with pytest.warns(ix.ImageryWarning, match=r"'thick' is computed [\d.]+ times.*array\.chunk\(z=\d+, y=-1, x=-1\)"):
        plan.warn_of_rereads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ix.plan_export(array, tmp_path / "z{z}.png", memory="8 GB", workers=2).warn_of_rereads()


def test_an_overlay_of_own_arrays_computes_each_block_once(tmp_path, monkeypatch):
    """Outlines need voxels of neighbouring blocks, so regions are drawn from the whole expression, not block by block."""
    monkeypatch.setattr(REGIONS, "START_VOXELS", 1 << 10)
    em, _ = users_array()
    seg, _ = users_array(dtype="uint64", name="ids", kind="segmentation")
    drawn = ix.overlay(em, seg // np.uint64(9), outline=3)
    expected = drawn.compute().values
    CALLS.clear()
    report = ix.export(drawn, "memory://", workers=1, memory="1 GB")
    np.testing.assert_array_equal(report.result.values, expected)
    assert max(CALLS.values()) <= 2 * report.regions  # each block is computed once per region, for each of two arrays
    CALLS.clear()
    plan = ix.plan_export(drawn, tmp_path / "z{z}.png")
    ix.export(drawn, tmp_path / "z{z}.png")
    assert {r.requests for r in plan.computes} == {sum(CALLS.values()) // 2}
    assert all(r.requests <= 1.15 * r.chunks for r in plan.computes)


def test_regions_grow_until_each_block_is_computed_once():
    """The first region is short here, so one doubling of the others gains nothing, and the second one does."""
    seg, _ = users_array((10, 30, 36), (4, 11, 20), "uint64", name="ids", kind="segmentation")
    drawn = ix.overlay(None, seg, outline=ix.Outline(1))
    x, y, z = ix.grid_of(seg).voxel_offset
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the box")
        box = ix.BBox((x - 1, y + 15, z - 1), (x + 20, y + 32, z + 5), resolution=(8, 8, 8))
        plan = ix.plan_export(ix.crop(drawn, box), "memory://")
    assert [r.requests for r in plan.computes] == [r.chunks for r in plan.computes]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("client", ["threads", "processes"])
def test_shared_tasks_of_blocks_give_the_same_voxels(client):
    """The array has tasks that join neighbouring blocks, and blocks that two branches use."""
    array, expected = users_array(function=_plus_seven)
    smooth = array.rolling(z=3, min_periods=1, center=True).max().astype("uint8") // 2 + array // 3
    report = ix.export(smooth, "memory://", client=client, workers=2)
    np.testing.assert_array_equal(report.result.values, smooth.compute().values)
    assert expected.shape == smooth.shape


def _plus_seven(block):
    return block + block.dtype.type(7)


# ---------------------------------------------------------------------------------------------------------
# parts of expressions


MOVED = {
    "isel": (lambda a: a.isel(z=slice(2, 9), x=slice(5, None)), (slice(2, 9), slice(None), slice(5, None))),
    "chunk": (lambda a: a.chunk(z=5, y=7), ()),
    "chunk, isel": (lambda a: a.chunk(z=5, x=9).isel(y=slice(3, 41)), (slice(None), slice(3, 41))),
    "isel, chunk": (lambda a: a.isel(z=slice(3, 11)).chunk(z=2).isel(z=slice(1, 7)), (slice(4, 10),)),
    "sel": (lambda a: a.sel(x=slice(100, 300)), None),
    "all": (lambda a: a.isel(z=slice(None)), ()),
}
OTHER = {
    "stride": (lambda a: a.isel(x=slice(None, None, 2)), (slice(None), slice(None), slice(None, None, 2))),
    "turned": (lambda a: a.transpose("x", "rgba", "z", "y"), None),
    "computed": (lambda a: 255 - a, None),
    "two together": (lambda a: xr.concat([a.isel(z=slice(0, 4)), a.isel(z=slice(4, None))], "z"), ()),
}


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("how", MOVED)
@pytest.mark.parametrize("make", ["picture", "own"])
def test_a_cropped_expression_equals_the_expression_of_a_crop(tmp_path, how, make):
    drawn = _draw(make)
    move, where = MOVED[how]
    part = move(drawn)
    read = box_reader(part)
    assert not isinstance(read.volume.expr, DaskLeaf)
    expected = part.compute().values
    if where is not None:
        np.testing.assert_array_equal(expected, drawn.compute().values[where])
    np.testing.assert_array_equal(ix.export(part, "memory://", workers=2).result.values, expected)
    for box in (read.volume.grid.box, _inner(read.volume.grid.box)):
        np.testing.assert_array_equal(read(box), expected[box.slices()])
    plan = ix.plan_export(part, tmp_path / "o.zarr")
    planned = plan.reads if make == "picture" else plan.computes
    assert {r.source for r in planned} == ({"computed://ramp"} if make == "picture" else {"mine", "ids"})


def _draw(make):
    if make == "picture":
        return picture()
    em, _ = users_array(shape=(12, 48, 64), chunks=(4, 20, 64), function=_plus_seven)
    seg, _ = users_array(
        shape=(12, 48, 64), chunks=(4, 20, 64), dtype="uint64", function=_cells, name="ids", kind="segmentation"
    )
    return ix.overlay(em, seg, outline=2)


def _cells(block):
    # Cells of 8 voxels with background between them, so that outlines are drawn.
    return np.where(block % 16 < 8, 0, block // 16).astype(block.dtype)


def _inner(box):
    from imageryxr.core.bbox import IndexBox

    return IndexBox(tuple(n // 3 for n in box.shape), tuple(n - n // 4 for n in box.shape))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["isel", "chunk", "half"]),
        st.sampled_from(["z", "y", "x"]),
        st.integers(0, 40),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(steps=STEPS, make=st.sampled_from(["picture", "own"]))
def test_exported_voxels_equal_those_that_dask_computes(steps, make):
    part = _draw(make)
    for what, dim, a, n in steps:
        if what == "half":
            part = part // 2
        elif what == "chunk":
            part = part.chunk({dim: n})
        else:
            first = a % part.sizes[dim]
            part = part.isel({dim: slice(first, first + n)})
    expected = part.compute().values
    read = box_reader(part)
    for box in (read.volume.grid.box, _inner(read.volume.grid.box)):
        np.testing.assert_array_equal(read(box), expected[box.slices()])
    if all(what != "half" for what, *_ in steps):
        assert not isinstance(read.volume.expr, DaskLeaf)


@pytest.mark.parametrize("how", OTHER)
def test_sources_of_other_dask_arrays_are_reported(tmp_path, how):
    drawn = picture()
    move, where = OTHER[how]
    part = move(drawn)
    expected = part.compute().values
    if where is not None:
        np.testing.assert_array_equal(expected, drawn.compute().values[where])
    plan = ix.plan_export(part, tmp_path / "o.zarr")
    assert {r.source for r in plan.reads} == {"computed://ramp"}
    assert all(r.bytes >= 12 * 48 * 64 for r in plan.reads)
    assert "read:" in repr(plan)
    got = ix.export(part, "memory://", workers=2).result.transpose(*part.dims)
    np.testing.assert_array_equal(got.values, expected)


def test_resampling_a_crop_to_square_pixels_equals_cropping_square_pixels():
    """Linear resampling at the border of a part uses voxels beyond it."""
    from imageryxr.ops.square_pixels import square_reader

    em = array_of(Computed((6, 20, 30))).chunk({"z": 3, "y": 10, "x": 10})
    part = em.isel(x=slice(7, 21), z=slice(1, 5))
    held = part.copy(data=da.from_array(part.compute().values, chunks=5))
    one, two = (ix.export(a, "memory://", square=None).result.values for a in (part, held))
    np.testing.assert_array_equal(one, two)
    one, whole = (square_reader(box_reader(a), "x", "image") for a in (part, em))
    np.testing.assert_array_equal(one(one.volume.grid.box), whole(whole.volume.grid.box)[5:25, :, 7:21])


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("chunks", [{"z": 1}, {"z": 3, "y": 30, "x": 50}, {"z": 2, "x": 7}])
@pytest.mark.parametrize("target", ["z{z:03d}.png", "o.zarr"])
def test_rechunked_arrays_are_read_in_their_original_blocks(tmp_path, monkeypatch, chunks, target):
    """A rechunked array is computed in its original blocks, and regions follow those."""
    monkeypatch.setattr(REGIONS, "START_VOXELS", 1 << 10)
    array, expected = users_array()
    thin = array.chunk(chunks)
    assert thin.data.chunks != array.data.chunks
    CALLS.clear()
    options = {"chunks": (4, 20, 25)} if "zarr" in target else {}
    plan = ix.plan_export(thin, tmp_path / target, workers=1, **options)
    ix.export(thin, tmp_path / target, workers=1, **options)
    np.testing.assert_array_equal(read_result(target, tmp_path / target), expected)
    (reads,) = plan.computes
    assert reads.source == "mine"
    assert (reads.chunks, reads.requests, CALLS.total()) == (18, 18, 18)


@pytest.mark.slow
def test_arrays_rechunked_by_a_shuffle_are_exported(cluster):
    """With an open Client, dask may rechunk by a shuffle between its workers, which a single region cannot run."""
    import dask

    drawn = picture()
    expected = drawn.compute().values
    with dask.config.set({"array.rechunk.method": "p2p"}):
        part = drawn.chunk(z=5, y=7).isel(z=slice(1, 9)).chunk(z=2)
        half = (drawn // 2).chunk(z=5)
    assert any("P2P" in type(layer).__name__ for layer in part.data.dask.layers.values())
    assert not box_reader(part).volume.dask_inputs
    for client in (cluster, None, "processes"):
        found = ix.export(part, "memory://", client=client, workers=2).result.values
        np.testing.assert_array_equal(found, expected[1:9])
        found = ix.export(half, "memory://", client=client, workers=2).result.values
        np.testing.assert_array_equal(found, expected // 2)


def test_a_rechunked_array_continues_the_same_export(tmp_path):
    ix.export(picture(), tmp_path / "o.zarr")
    assert ix.export(picture().chunk(z=5), tmp_path / "o.zarr").regions == 0
    with pytest.raises(ix.errors.TargetExistsError, match=r"another export \(box: "):
        ix.export(picture(seed=3).isel(z=slice(0, 5)), tmp_path / "o.zarr")


# ---------------------------------------------------------------------------------------------------------
# blocks persisted on a cluster

PERSISTED = {
    "picture": lambda p: p.persist(),
    "isel": lambda p: p.persist().isel(z=slice(1, 6), y=slice(3, 40)),
    "chunk": lambda p: p.persist().chunk(z=5, y=7),
    "half": lambda p: p.persist() // 2,
    "twice": lambda p: p.persist() // 2 + p.isel(z=slice(None, None, -1)).persist().data,
}


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("how", PERSISTED)
def test_persisted_arrays_are_exported(tmp_path, cluster, how, monkeypatch):
    monkeypatch.setattr(REGIONS, "START_VOXELS", 1 << 11)
    array = PERSISTED[how](picture().chunk(z=3))
    expected = array.compute().values
    for client in (cluster, None, "processes", cluster.scheduler.address):
        folder = tmp_path / str(client).replace("/", "_")[:20]
        report = ix.export(array, folder / "o.zarr", client=client, chunks=(3, 16, 16), workers=2)
        assert report.complete
        found = np.moveaxis(zarr.open_array(folder / "o.zarr" / "0")[:], 0, -1)
        np.testing.assert_array_equal(found, expected)
    assert cluster.scheduler_info()["workers"]


@pytest.mark.slow
def test_lost_blocks_of_a_cluster_are_an_error_at_the_start(tmp_path):
    with cluster_of(1) as client:
        array = picture().persist()
        client.cancel(array.data)
        plan = ix.plan_export(array, tmp_path / "o.zarr")
        with pytest.raises(ix.errors.OptionError, match=r"no longer on their cluster: persist\(\) it again"):
            plan.validate()
        array = picture(seed=1).persist()
    with pytest.raises(ix.errors.OptionError, match="no longer on their cluster"):
        ix.plan_export(array, tmp_path / "o.zarr").validate()
    assert not list(tmp_path.iterdir())


def test_persisted_blocks_are_not_computed_again(tmp_path):
    plan = ix.plan_export(users_array(function=_plus_seven)[0].persist(), tmp_path / "o.zarr")
    assert plan.computes == ()
    assert "compute:" not in repr(plan)


@pytest.mark.slow
def test_arrays_in_memory_are_not_copied(tmp_path):
    """A region uses a part of a block of one gigabyte."""
    values = np.broadcast_to(np.uint8(3), (1024, 1024, 1024))
    array = labelled_array(da.from_array(values, chunks=-1))
    for target in ("o.zarr", "z{z}.png"):
        plan = ix.plan_export(array, tmp_path / target, memory="600 MB", workers=2)
        plan.validate()
        assert plan.peak_memory < 600e6
    made = labelled_array(da.zeros((1024, 1024, 1024), chunks=-1, dtype="uint8").map_blocks(lambda b: b, name="one"))
    with pytest.raises(ix.errors.OptionError, match=r"needs .* GB of memory and has 600 MB"):
        ix.plan_export(made, tmp_path / "o.zarr", memory="600 MB", workers=2).validate()


# ---------------------------------------------------------------------------------------------------------
# memory

MEASURE = """
import json, os, re, sys, numpy as np, dask.array as da, xarray as xr, imageryxr as ix
import imageryxr.export
shape = (32, 1024, 1024)
def blocks(dtype, name):
    zeros = da.zeros(shape, dtype=dtype, chunks=(16, 512, 512))
    data = zeros.map_blocks(lambda b: b + b.dtype.type(7), dtype=dtype, name=name)
    return xr.DataArray(data, dims=("z", "y", "x"), coords=ix.Grid(shape, (10, 10, 10), (0, 0, 0)).coords())
def measure(target, dtype, drawn, memory):
    array = blocks(dtype, "mine")
    if drawn:
        array = ix.overlay(array, blocks("uint64", "ids"), outline=2)
    plan = ix.plan_export(array, target, workers=2, memory=memory)
    ix.export(array, target, workers=2, memory=memory)
    # VmHWM, because ru_maxrss of getrusage also counts the memory of the parent before exec
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
    print(json.dumps([plan.peak_memory, peak]), flush=True)
for number, case in enumerate(json.loads(sys.argv[2])):
    pid = os.fork()  # so that each begins with the memory of the imported modules
    if not pid:
        measure(f"{sys.argv[1]}/{number}/{case[0]}", *case[1:])
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.slow
def test_peak_memory_stays_below_the_plan(tmp_path):
    cases = [
        ("z{z:04d}.png", "uint8", False, None),
        ("o.tif", "uint64", False, "700 MB"),
        ("o.tif", "uint64", False, None),
        ("o.mp4", "uint8", False, None),
        ("z{z:04d}.png", "uint8", True, "650 MB"),
        ("o.ome.zarr", "uint8", True, None),
    ]
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for case, line in zip(cases, done.stdout.splitlines(), strict=True):
        planned, peak = json.loads(line)
        assert peak <= planned < 4 * peak, case
