"""Unsupported types and too little memory or disk space are errors of a plan; many files cause a warning."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import namedtuple

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

import imageryxr as ix
from imageryxr.export.run.workers import PROCESS_BYTES
from tests.support.export_jobs import Computed, array_of

DTYPES = [
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
    "complex64", "complex128", "datetime64[ns]", "timedelta64[ns]", "U3", "S2", "object", "longdouble",
]  # fmt: skip
TARGETS = {
    "omezarr": ("o.ome.zarr", {"chunks": (4, 8, 8), "levels": 2}),
    "sharded": ("o.ome.zarr", {"chunks": (4, 4, 4), "shards": (4, 8, 8), "levels": 2}),
    "zarr2": ("o.zarr", {"version": "0.4", "levels": 2}),
    "precomputed": ("precomputed://{}/pc", {"chunks": (8, 8, 8), "levels": 2}),
    "png": ("z{{z:02d}}.png", {}),
    "tiffs": ("z{{z:02d}}.tif", {}),
    "tiff": ("o.tif", {}),
    "bigtiff": ("o.tif", {"bigtiff": True}),
    "ometiff": ("o.ome.tif", {}),
    "mp4": ("o.mp4", {}),
    "webm": ("o.webm", {}),
    "memory": ("memory://", {}),
}
SHAPE = (6, 16, 18)


def values_of(dtype):
    numbers = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    if dtype in ("U3", "S2", "object"):
        return (numbers % 90).astype("U2").astype(dtype)
    kind = np.dtype(dtype).kind
    if kind == "b":
        return numbers % 3 == 1
    if kind in "ui":
        info = np.iinfo(dtype)
        return (numbers * 7919 % 250).astype(dtype) + np.dtype(dtype).type(info.max - 250 if info.max > 255 else 0)
    return (numbers % 250).astype(dtype)


def labelled_array(values, kind):
    grid = ix.Grid(SHAPE, (8, 8, 8), (0, 0, 0))
    if kind.startswith("rgb"):
        coords = {**grid.coords(), "rgba": list(kind)}
        return xr.DataArray(np.stack([values] * len(kind), axis=-1), dims=("z", "y", "x", "rgba"), coords=coords)
    return xr.DataArray(values, dims=("z", "y", "x"), coords=grid.coords(), attrs={"layer_type": kind})


def read_back(name, folder, report):
    if name == "memory":
        return report.result.values
    if name in ("omezarr", "sharded", "zarr2"):
        return channels_last(zarr.open_array(f"{report.target}/0")[:])
    if name == "precomputed":
        from cloudvolume import CloudVolume

        found = np.asarray(CloudVolume(report.target.removeprefix("precomputed://"), progress=False)[:])
        return channels_last(found.T[0] if found.shape[-1] == 1 else found.T)
    if name in ("mp4", "webm"):
        import av

        with av.open(report.target) as film:
            return np.stack([frame.to_ndarray(format="gray") for frame in film.decode(video=0)])
    if name == "png":
        from PIL import Image

        return np.stack([np.asarray(Image.open(folder / f"z{i:02d}.png")) for i in range(SHAPE[0])])
    import tifffile

    if name == "tiffs":
        return np.stack([tifffile.imread(folder / f"z{i:02d}.tif") for i in range(SHAPE[0])])
    return tifffile.imread(report.target)


def channels_last(values):
    return values if values.ndim == 3 else np.moveaxis(values, 0, -1)


def refusal(array, place, options):
    try:
        ix.plan_export(array, place, **options).validate()
    except ix.ImageryError as error:
        return error
    return None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "segmentation", "rgba", "rgb"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TARGETS)
def test_every_dtype_is_kept_or_refused_at_once(tmp_path, name, dtype, kind):
    values = values_of(dtype)
    array = labelled_array(values, kind)
    target, options = TARGETS[name]
    place = target.format(tmp_path) if "://" in target else tmp_path / target.format()
    refused = refusal(array, place, options)
    if refused is not None:
        assert isinstance(refused, ix.errors.OptionError | ix.errors.LayerError)
        assert str(values.dtype) in str(refused)
        assert os.listdir(tmp_path) == []
        with pytest.raises(type(refused)):
            ix.export(array, place, **options)
        assert dtype != "uint8" or (kind == "rgb" and name in ("png", "mp4", "webm"))
        return
    report = ix.export(array, place, **options)
    found = read_back(name, tmp_path, report)
    expected = array.values
    if values.dtype == bool and name != "memory":
        expected = expected.astype(np.uint8) * (
            255 if name in ("png", "tiffs", "tiff", "bigtiff", "ometiff", "mp4", "webm") else 1
        )
    if name in ("mp4", "webm"):
        assert found.shape == SHAPE
        assert kind == "rgba" or np.abs(found.astype(int) - expected).mean() < 12
        return
    assert found.dtype == expected.dtype or found.dtype.newbyteorder("=") == expected.dtype
    np.testing.assert_array_equal(found, expected)


# ---------------------------------------------------------------------------------------------------------
# memory and disks

Usage = namedtuple("Usage", "total used free")


def virtual(shape, dtype="uint8"):
    grid = ix.Grid(shape, (10, 10, 10), (0, 0, 0))
    data = da.zeros(shape, dtype=dtype, chunks=(64, 512, 512))
    return xr.DataArray(data, dims=("z", "y", "x"), coords=grid.coords())


def test_an_array_that_does_not_fit_into_memory_is_refused():
    small = virtual((64, 512, 512))
    for array in (virtual((6400, 20_000, 20_000)), array_of(Computed((200_000, 50_000, 50_000)))):
        for more in ({}, {"memory": "4 GB"}, {"client": "processes"}, {"memory": "900 TB"}):
            with pytest.raises(ix.errors.OptionError, match=r"needs .*TB of memory; .*GB are available.*\.ome\.zarr"):
                ix.plan_export(array, "memory://", **more).validate()
    with pytest.raises(ix.errors.OptionError, match=r"needs 5\.1 GB of memory; 2\.0 GB are available"):
        ix.plan_export(virtual((80, 8000, 8000)), "memory://", memory="2 GB").validate()
    plan = ix.plan_export(small, "memory://", memory="1 GB", workers=1)
    plan.validate()
    assert plan.peak_memory > PROCESS_BYTES + small.nbytes


RAW = {
    "tif": ("z{z}.tif", {"compression": None}, 1),
    "one tif": ("o.tif", {"compression": None, "bigtiff": True}, 2),
    "zarr": ("o.zarr", {"compressor": None, "levels": 1}, 1),
    "pyramid": ("o.zarr", {"compressor": None, "levels": 2}, 1.125),
}


@pytest.mark.parametrize("case", RAW)
def test_uncompressed_data_must_fit_on_the_disk(tmp_path, monkeypatch, case):
    target, options, times = RAW[case]
    array = virtual((64, 512, 512))
    takes = int(array.nbytes * times)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, takes - 1))
    with pytest.raises(ix.errors.TargetError, match=r"it needs .* MB; .* MB are free in"):
        ix.plan_export(array, tmp_path / target, **options).validate()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, takes))
    ix.plan_export(array, tmp_path / target, **options).validate()


@pytest.mark.parametrize("target", ["z{z}.png", "o.zarr", "o.tif", "precomputed://{}/pc"])
def test_compressed_data_may_be_larger_than_the_disk(tmp_path, monkeypatch, target):
    array = virtual((64, 512, 512))
    place = target.format(tmp_path) if "//" in target else tmp_path / target
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, array.nbytes // 40))
    with pytest.warns(ix.ImageryWarning, match=r"needs .* before compression; 419 kB are free .* ratio of 4\d; choose"):
        ix.plan_export(array, place).validate()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, array.nbytes // 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ix.plan_export(array, place).validate()


# ---------------------------------------------------------------------------------------------------------
# petavoxels


def test_the_pyramid_of_a_petavoxel_has_fewer_tasks_than_the_volume(tmp_path):
    array = array_of(Computed((10_000, 320_000, 320_000), chunks=(64, 512, 512)))
    plan = ix.plan_export(array, tmp_path / "o.ome.zarr", memory="16 GB", workers=2)
    assert plan.tasks - len(plan.regions) < len(plan.regions)
    assert plan.peak_memory <= 16e9
    for stage, regions in enumerate(plan.target.later, 1):
        box = regions.largest()
        for step, stored, n in zip(box.shape, plan.target.object_shape(stage), regions.shape, strict=True):
            assert step % stored == 0 or step == n
    little = ix.plan_export(array, tmp_path / "o.ome.zarr", memory="600 MB", workers=2)
    assert little.peak_memory <= 600e6
    assert little.tasks > plan.tasks


def test_many_files_warn(tmp_path):
    array = array_of(Computed((10_000, 100_000, 100_000), chunks=(64, 512, 512)))
    plan = ix.plan_export(array, tmp_path / "o.ome.zarr", memory="16 GB")
    assert plan.files_to_write > 1e7
    advice = r"files are slow on a disk or a bucket: .* shards=\(128, 2048, 2048\)"
    with pytest.warns(ix.ImageryWarning, match=advice):
        plan.warn_of_rereads()
    assert "advice:" in repr(plan)
    shards = ix.plan_export(array, tmp_path / "o.ome.zarr", memory="32 GB", shards=(128, 2048, 2048))
    assert shards.files_to_write < plan.files_to_write / 200
    assert "advice:" not in repr(shards)
    text = repr(ix.plan_export(array, tmp_path / "o.zarr", version="0.4"))
    assert "larger chunks=" in text
    assert "shards=(" not in text


@pytest.mark.slow
def test_a_continued_export_keeps_the_regions_of_its_coarser_levels(tmp_path):
    """A continued export may have another memory limit, but its regions must stay the same."""
    source = Computed((8, 512, 512), fail_above=4)
    with pytest.raises(ix.errors.ChunkReadError):
        ix.export(array_of(source), tmp_path / "o.zarr", chunks=(2, 32, 32), workers=1, retries=0, memory="410 MB")
    plan = ix.plan_export(array_of(source), tmp_path / "o.zarr", chunks=(2, 32, 32), workers=1, memory="8 GB")
    assert plan.done > 0
    fresh = ix.plan_export(array_of(source), tmp_path / "other.zarr", chunks=(2, 32, 32), workers=1, memory="410 MB")
    assert plan.target.later == fresh.target.later
    ix.export(array_of(Computed((8, 512, 512))), tmp_path / "o.zarr", chunks=(2, 32, 32), workers=1, memory="8 GB",
              overwrite=True)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# NaN


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_downsampling_ignores_nan(tmp_path, dtype):
    rng = np.random.default_rng(3)
    values = rng.integers(0, 64, (8, 20, 30)).astype(dtype)
    values[rng.random(values.shape) < 0.4] = np.nan
    values[:2, :4, :6] = np.nan
    grid = ix.Grid(values.shape, (8, 8, 8), (0, 0, 0))
    array = xr.DataArray(values, dims=("z", "y", "x"), coords=grid.coords(), attrs={"layer_type": "image"})
    ix.export(array, tmp_path / "o.zarr", levels=2)
    found = zarr.open_array(tmp_path / "o.zarr" / "1")[:]
    blocks = values.astype(np.float64).reshape(4, 2, 10, 2, 15, 2).transpose(0, 2, 4, 1, 3, 5).reshape(4, 10, 15, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.nanmean(blocks, axis=-1)
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.isnan(found), np.isnan(blocks).all(axis=-1))
    np.testing.assert_allclose(found, expected.astype(dtype), rtol=1e-3 if dtype == "float16" else 1e-6)


# ---------------------------------------------------------------------------------------------------------
# resume=False, and channels


@pytest.mark.parametrize("target", ["o.zarr", "z{z}.png", "o.tif"])
def test_resume_false_starts_again(tmp_path, target):
    array = array_of(Computed())
    first = ix.export(array, tmp_path / target)
    files = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file() and "manifest" not in p.name}
    assert ix.export(array, tmp_path / target).regions == 0
    for path in list(files)[:1]:
        path.write_bytes(bytes(len(files[path])))  # damaged, but as large as recorded
    again = ix.export(array, tmp_path / target, resume=False)
    assert (again.regions, again.skipped) == (first.regions, 0)
    assert {p: p.read_bytes() for p in files} == files


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rgba", "rgb"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int16", "float32"])
@pytest.mark.parametrize("name", ["omezarr", "precomputed"])
def test_coarser_levels_of_channels_are_their_means(tmp_path, name, dtype, kind):
    values = values_of(dtype)
    target, options = TARGETS[name]
    place = target.format(tmp_path) if "://" in target else tmp_path / target.format()
    report = ix.export(labelled_array(values, kind), place, **options)
    if name == "omezarr":
        found = zarr.open_array(f"{report.target}/1")[:]
        omero = zarr.open_group(report.target).attrs["ome"].get("omero")
        assert omero is None or len(omero["channels"]) == len(kind)
    else:
        from cloudvolume import CloudVolume

        found = np.asarray(CloudVolume(report.target.removeprefix("precomputed://"), mip=1, progress=False)[:]).T
    blocks = values.astype(np.float64).reshape(3, 2, 8, 2, 9, 2).mean(axis=(1, 3, 5))
    expected = blocks if dtype == "float32" else np.floor(blocks + 0.5)
    assert found.shape == (len(kind), 3, 8, 9)
    for channel in found:
        np.testing.assert_allclose(channel, expected.astype(dtype), rtol=1e-6 if dtype == "float32" else 0)
