"""Exports of a user's dask arrays equal compute(): chains of functions, blocks of a wrong shape, and byte orders."""

from __future__ import annotations

import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import imageryxr as ix
from imageryxr.graph.expr import DaskLeaf
from imageryxr.graph.labelled import as_dask, box_reader
from tests.conftest import volume
from tests.support.export_jobs import Computed, array_of, cluster_of
from tests.support.slow import slow_except, slow_unless

RESOLUTION = (8, 8, 40)
SHAPE = (10, 30, 36)


def users_array(values, chunks=(4, 11, 20), **attrs):
    """Return values as a labelled array on a dask array that imageryxr did not build."""
    blocks = da.from_array(values, chunks=chunks).map_blocks(lambda b: b, name=f"mine-{values.dtype}-{chunks}")
    return volume(values, RESOLUTION, **attrs).copy(data=blocks)


def export_values(array, **kwargs):
    return ix.export(array, "memory://", progress=False, **kwargs).result.transpose(*array.dims).values


def box(lo, hi):
    return ix.BBox(lo, hi, resolution=RESOLUTION)


# ---------------------------------------------------------------------------------------------------------
# chains of verbs

BASES = ["own image", "own ids", "sources", "ids of sources"]


def base(kind):
    values = np.random.default_rng(3).integers(1, 250, SHAPE).astype(np.uint8)
    ids = (np.indices(SHAPE)[1] // 7 * 8 + np.indices(SHAPE)[2] // 5 + 1).astype(np.uint64) * np.uint64(2**59 + 1)
    if kind == "own image":
        return users_array(values)
    if kind == "own ids":
        return users_array(ids, layer_type="segmentation")
    layer_type = "segmentation" if "ids" in kind else "image"
    return as_dask(array_of(Computed(SHAPE, chunks=(4, 11, 20), layer_type=layer_type)))


def inner(array, start, size):
    """Return a box that overlaps an array and may extend beyond it."""
    grid = ix.grid_of(array)
    low = [o + (s % (n + 1)) - 1 for o, s, n in zip(grid.voxel_offset, start, grid.shape[::-1], strict=True)]
    high = [max(a + n, o + 1) for a, n, o in zip(low, size, grid.voxel_offset, strict=True)]
    low = [min(a, o + n - 1) for a, o, n in zip(low, grid.voxel_offset, grid.shape[::-1], strict=True)]
    return ix.BBox(low, high, resolution=grid.resolution)


def step(array, what, dim, start, size):
    if what == "crop":
        return ix.crop(array, inner(array, start, size))
    if what == "regrid" and "rgba" not in array.dims:
        # downsampling an array of very few voxels is an error of regrid
        factor = (0.5, 0.75, 2)[start[0] % (3 if min(array.sizes["y"], array.sizes["x"]) > 3 else 2)]
        x, y, z = ix.grid_of(array).resolution
        return ix.regrid(array, (x * factor, y * factor, z)) if array.size < 200_000 else array
    if what == "chunk":
        return array.chunk({dim: size[0]})
    if what == "isel":
        first = start[0] % array.sizes[dim]
        return array.isel({dim: slice(first, first + size[0])})
    if what == "overlay" and array.dtype == np.uint64:
        outline = ix.Outline(1 + start[0] % 4, side=("in", "out")[start[1] % 2])
        return ix.overlay(None, array, outline=outline)
    return array


CHAIN = st.lists(
    st.tuples(
        st.sampled_from(["crop", "crop", "regrid", "chunk", "isel", "overlay"]),
        st.sampled_from("zyx"),
        st.tuples(*[st.integers(0, 40)] * 3),
        st.tuples(*[st.integers(2, 25)] * 3),
    ),
    min_size=2,
    max_size=6,
)


# boxes that extend beyond a crop warn
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the box")
@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(BASES), chain=CHAIN)
@example(kind="own ids", chain=[("overlay", "z", (0, 0, 0), (2, 2, 2)), ("crop", "z", (0, 16, 0), (21, 17, 6))])
def test_exports_of_chained_verbs_equal_compute(kind, chain):
    array = base(kind)
    for what in chain:
        array = step(array, *what)
    np.testing.assert_array_equal(export_values(array), array.compute().values)


INSIDE, WIDER = box((8, 8, 2), (30, 24, 8)), box((2, 0, 0), (30, 24, 8))
CHAINS = {
    "crop, regrid": lambda a: ix.regrid(ix.crop(a, INSIDE), (5, 5, 40)),
    "crop, wider crop": lambda a: ix.crop(ix.crop(a, INSIDE), WIDER),
    "crop, chunk, regrid": lambda a: ix.regrid(ix.crop(a, INSIDE).chunk(z=4), (5, 5, 40)),
    "crop, chunk, wider crop": lambda a: ix.crop(ix.crop(a, INSIDE).chunk(z=4), WIDER),
    "crop, whole, regrid": lambda a: ix.regrid(ix.crop(a, INSIDE).isel(x=slice(None)), (5, 5, 40)),
}


@pytest.mark.filterwarnings("ignore:the box")
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", ["own image", "sources"])
def test_verbs_on_a_crop_read_nothing_beyond_it(kind, chain):
    offset = (3, 5, 7) if kind == "sources" else (0, 0, 0)  # the index of the array's first voxel
    array = base(kind)
    moved = array.assign_coords(ix.Grid(SHAPE, RESOLUTION, (0, 0, 0)).coords()) if any(offset) else array
    made = CHAINS[chain](moved)
    np.testing.assert_array_equal(export_values(made), made.compute().values)


@pytest.mark.parametrize(("kind", "cut"), [("own image", False), ("own image", True), ("sources", True)])
def test_square_pixels_of_a_crop_equal_a_crop_of_the_square_pixels(tmp_path, kind, cut):
    """As in `regrid`, resampling at the border of a crop uses voxels beyond it, also after dask has sliced the array."""
    whole = base(kind)
    first = ix.grid_of(whole).voxel_offset
    low, high = [a + 6 for a in first], [a + n for a, n in zip(first, (30, 24, 10), strict=True)]
    part = ix.crop(whole, ix.BBox(low, high, resolution=RESOLUTION))
    part = part.chunk(z=1) if cut else part
    pictures = []
    for name, array in (("whole", whole), ("part", part)):
        ix.export(array, tmp_path / name / "x{x:03d}.tif", square=True)
        pictures.append(_stack(tmp_path / name, "tif"))
    times = round(RESOLUTION[2] / RESOLUTION[1])
    np.testing.assert_array_equal(pictures[1], pictures[0][6:30, 6 * times : 10 * times, 6:24])


def _stack(folder, suffix):
    read = tifffile.imread if suffix == "tif" else lambda p: np.asarray(Image.open(p))
    return np.stack([read(p) for p in sorted(Path(folder).glob(f"*.{suffix}"))])


@pytest.mark.parametrize("kind", ["own ids", "ids of sources"])
def test_pictures_of_verbs_are_read_with_their_halo(tmp_path, kind):
    """The outlines in a crop use voxels beyond it, as in `compute`, and the plan lists the sources."""
    drawn = ix.overlay(None, base(kind), outline=4)
    part = ix.crop(drawn, inner(drawn, (9, 9, 3), (16, 14, 5)))
    for array in (drawn, part, part.chunk(z=2)):
        np.testing.assert_array_equal(export_values(array), array.compute().values)
        assert not isinstance(box_reader(array).volume.expr, DaskLeaf)
        plan = ix.plan_export(array, tmp_path / "o.zarr")
        planned = plan.computes if kind == "own ids" else plan.reads
        assert {r.source for r in planned} == {"mine" if kind == "own ids" else "computed://ramp"}
        assert bool(plan.computes) == (kind == "own ids")
    # the same crop in other blocks continues the same export
    ix.export(part, tmp_path / "o.zarr")
    assert ix.export(part.chunk(z=2), tmp_path / "o.zarr").regions == 0


# ---------------------------------------------------------------------------------------------------------
# blocks of another shape or dtype

VALUES = np.random.default_rng(0).integers(1, 255, (12, 24, 32)).astype(np.uint8)


def _none(block):
    block.copy()


def _empty(block, block_info=None):
    return block[:0] if block_info[0]["chunk-location"][0] == 1 else block


def _thin(block):
    return block[:1]


def _thick(block):
    return np.concatenate([block, block])


def _real(block):
    return block * np.float32(300.7)


def _wide(block):
    return block.astype(np.uint64)


def _list(block):
    return block.tolist()


def _scalar(block):
    return block.dtype.type(3)


WRONG = {
    _none: r"is None, .* shape \(4, 24, 32\) and dtype uint8: .*`return`",
    _empty: r"block \(1, 0, 0\) .*z=4:8, y=0:24, x=0:32, is of shape \(0, 24, 32\).*chunks=",
    _thin: r"is of shape \(1, 24, 32\) and dtype uint8, .* shape \(4, 24, 32\).*chunks=",
    _thick: r"is of shape \(8, 24, 32\) and dtype uint8, .* shape \(4, 24, 32\).*chunks=",
    _real: r"dtype float32, .* dtype uint8: .*\.astype\('uint8'\).*dtype=.*meta=.*'float32'",
    _wide: r"dtype uint64, .* dtype uint8: .*\.astype\('uint8'\)",
    _list: r"is a list, .*`return` and a numpy array",
    _scalar: r"is of shape \(\) and dtype uint8",
}


def array_of_function(function, dtype=np.uint8, parts=None):
    parts = da.from_array(VALUES, chunks=(4, 24, 32)) if parts is None else parts
    blocks = parts.map_blocks(function, dtype=dtype, meta=np.empty((0, 0, 0), dtype), chunks=parts.chunks)
    return volume(VALUES, RESOLUTION).copy(data=blocks)


@pytest.mark.parametrize("function", WRONG)
@pytest.mark.parametrize("target", ["o.ome.zarr", "z{z:03d}.tif", "memory://"])
def test_a_block_of_another_shape_or_dtype_is_named(tmp_path, function, target):
    place = target if "//" in target else tmp_path / target
    with pytest.raises(ix.errors.LayerError, match=WRONG[function]) as caught:
        ix.export(array_of_function(function), place, progress=False)
    assert caught.match(rf"^block \(\d, 0, 0\) of the dask array '{function.__name__.strip('_')}', at z=")
    assert any("try 1" in note for note in caught.value.__notes__ if "in task" in note)  # the region was not retried


@pytest.mark.parametrize("function", [_none, _thin, _thick, _real])
def test_a_crop_of_a_wrong_block_is_an_error(function):
    with pytest.raises(ix.errors.LayerError, match=r"block \(\d, 0, 0\)"):
        export_values(ix.crop(array_of_function(function), box((3, 0, 4), (9, 24, 5))))


@pytest.mark.parametrize("function", [_none, _thin, _real])
def test_wrong_blocks_below_a_verb_are_errors(function):
    """If dask operations follow a verb, dask runs the verb's tasks; wrong blocks must be refused there as well."""
    finer = ix.regrid(array_of_function(function), (4, 4, 40), method="nearest")
    for act in (export_values, lambda a: export_values(a // 2), lambda a: a.compute()):
        with pytest.raises(ix.errors.LayerError, match=f"of the dask array '{function.__name__.strip('_')}', at z="):
            act(finer)


@pytest.mark.parametrize(("given", "message"), [("u1", "u2"), ("u1", "f4"), ("f4", "f8"), ("?", "u1"), (">u2", "<u2")])
def test_safe_dtype_conversions_of_blocks_are_allowed(given, message):
    array = array_of_function(lambda b: (b % 2 if given == "?" else b).astype(given), np.dtype(message))
    found = export_values(array)
    assert found.dtype == message
    np.testing.assert_array_equal(found, VALUES % 2 if given == "?" else VALUES)


class TruncatedArray:
    """An array-like object that returns too few values beyond an index, as a truncated file does."""

    shape, dtype, ndim = VALUES.shape, VALUES.dtype, 3

    def __init__(self, end, repeated=False):
        self.end, self.repeated = end, repeated

    def __getitem__(self, index):
        return VALUES[: self.end][index][:1] if self.repeated else VALUES[: self.end][index]


@pytest.mark.parametrize(
    ("source", "message"),
    [(TruncatedArray(8), r"lacks 3,072 of "), (TruncatedArray(7), r"\(3, 24, 32\).*\(4, 24, 32\)")],
)
def test_values_that_a_source_leaves_out_are_an_error(source, message):
    array = volume(VALUES, RESOLUTION).copy(data=da.from_array(source, chunks=(4, 24, 32), name="file"))
    with pytest.raises(ix.errors.LayerError, match=f"the dask array 'file', .*{message}"):
        export_values(array, workers=1)  # with two concurrent regions, the second may fail first


def _raise_connection_reset(block):
    raise ConnectionResetError("reset by my database")


def _late(block):
    raise TimeoutError


@pytest.mark.parametrize(
    ("function", "text"),
    [(_raise_connection_reset, "ConnectionResetError: reset by my database"), (_late, "TimeoutError")],
)
def test_a_connection_error_of_a_function_is_not_reported_as_a_worker_that_died(function, text, monkeypatch):
    monkeypatch.setattr(sys.modules["imageryxr.export.run.scheduler"], "RETRY_DELAYS", (0.01,))
    array = array_of_function(function)
    with pytest.raises(ix.errors.TargetError, match=rf"failed once, the last time with {text}\. ") as caught:
        export_values(array, retries=0)
    assert "died" not in str(caught.value)
    assert "memory" not in str(caught.value)
    with pytest.raises(ix.errors.TargetError, match="failed 3 times"):
        export_values(array, retries=2)


@pytest.mark.slow
@pytest.mark.parametrize("function", [_none, _thin, _real])
@pytest.mark.parametrize("client", ["cluster", None, "processes"])
def test_wrong_persisted_blocks_of_a_cluster_are_errors(cluster, function, client):
    array = array_of_function(function).persist()
    with pytest.raises(
        ix.errors.LayerError, match=f"of the dask array '{function.__name__.strip('_')}', at z=.* dtype uint8: "
    ):
        export_values(array, client=cluster if client == "cluster" else client, workers=1)


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(1) as client:
        yield client


# ---------------------------------------------------------------------------------------------------------
# empty blocks


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize(
    "sizes", slow_except([(5, 0, 7), (0, 5, 7), (5, 7, 0), (0, 0, 12), (4, 0, 0, 4, 4)], (5, 0, 7))
)
@pytest.mark.parametrize(
    "act",
    [
        lambda a: a,
        lambda a: a.chunk(z=3, y=5),
        lambda a: a.isel(z=slice(3, 9)),
        lambda a: ix.regrid(a, (4, 4, 40)),
        lambda a: ix.crop(a, box((2, 2, 2), (9, 9, 12))).chunk(z=3),
    ],
)
def test_empty_blocks_are_skipped(tmp_path, sizes, act):
    parts = da.from_array(VALUES, chunks=(sizes, (0, 24), 10))
    array = act(array_of_function(lambda b: b, parts=parts))
    expected = array.compute().values
    np.testing.assert_array_equal(export_values(array), expected)
    ix.export(array, tmp_path / "o.ome.zarr", chunks=(4, 8, 8))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "o.ome.zarr" / "0")[:], expected)


# ---------------------------------------------------------------------------------------------------------
# byte orders

TARGETS = {
    "one.tif": {},
    "plain.tif": {"compression": None},
    "one.ome.tif": {},
    "plain.ome.tif": {"compression": None},
    "z{z:03d}.tif": {},
    "z{z:03d}.png": {},
    "o.ome.zarr": {"levels": 2, "chunks": (4, 8, 8)},
    "s.ome.zarr": {"chunks": (4, 8, 8), "shards": (8, 16, 16)},
    "four.zarr": {"version": "0.4", "compressor": "gzip"},
    "precomputed://": {"chunks": (4, 8, 8)},
    "memory://": {},
}


def _export_and_read(target, folder, array, options):
    if target == "memory://":
        return ix.export(array, target, **options).result.values
    if target == "precomputed://":
        ix.export(array, f"precomputed://{folder}/pc", **options)
        return ix.open_image(f"precomputed://file://{folder}/pc").values
    ix.export(array, folder / target, **options)
    if "{" in target:
        return _stack(folder, target[-3:])
    return zarr.open_array(folder / target / "0")[:] if target.endswith("zarr") else tifffile.imread(folder / target)


# Each dtype with each target; numpy and dask arrays alternate.
BYTE_ORDERS = [
    (kind, target, dtype)
    for i, target in enumerate(TARGETS)
    for j, dtype in enumerate(["u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
    for kind in [["numpy", "dask"][(i + j) % 2]]
]


@pytest.mark.fast_forms(6)
@pytest.mark.parametrize(
    ("kind", "target", "dtype"),
    slow_unless(lambda kind, target, dtype: dtype in ("u2", "f4"), BYTE_ORDERS),
)
def test_byte_orders_do_not_change_the_files(tmp_path, target, dtype, kind):
    """Arrays of either byte order give the same files, or both are refused."""
    values = (VALUES.astype("i8") * 100 - 3).astype(dtype)
    swapped = np.dtype(dtype).newbyteorder("S")
    found = []
    for number, data in enumerate((values, values.astype(swapped))):
        array = volume(data, RESOLUTION)
        if kind == "dask":
            array = array.copy(data=da.from_array(data, chunks=(4, 24, 32)).map_blocks(lambda b: b))
        (tmp_path / str(number)).mkdir()
        try:
            found.append(_export_and_read(target, tmp_path / str(number), array, TARGETS[target]))
        except ix.ImageryError as error:
            found.append(str(error).replace(f"/{number}/", "/"))
    native, other = found
    if isinstance(native, str):
        assert native == other
        assert "png" in target or "precomputed" in target or "ome.tif" in target
        return
    np.testing.assert_array_equal(native, values)
    np.testing.assert_array_equal(other, values)


def test_square_pixels_of_another_byte_order_are_exported(tmp_path):
    data = VALUES.astype(">u2") * 7
    for name, array in (("one", volume(data, RESOLUTION)), ("two", volume(data.astype("u2"), RESOLUTION))):
        ix.export(array, tmp_path / name / "x{x:03d}.png", square=True)
    np.testing.assert_array_equal(_stack(tmp_path / "one", "png"), _stack(tmp_path / "two", "png"))
