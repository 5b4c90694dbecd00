"""Every format, read with another library: each voxel has its value and its position."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.v04 import Image as Image04
from ome_zarr_models.v05 import Image as Image05
from PIL import Image

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.errors import OptionError
from imageryxr.export.store.local import Folder
from imageryxr.export.targets import registry
from imageryxr.export.targets.format_options import CutoutPictureOptions, FormatOptions, PageOptions
from tests.conftest import volume
from tests.support.export_jobs import Computed, array_of, digest, picture
from tests.support.slow import slow_except
from tests.support.volumes import FINE, IMAGE

rng = np.random.default_rng(5)
GREY16 = volume(rng.integers(0, 65535, (5, 21, 34), dtype=np.uint16), (8, 8, 40), (7, 11, -3), layer_type="image")
FLOATS = volume(rng.random((5, 21, 34), dtype=np.float32), (8, 8, 40), (7, 11, -3), layer_type="image")
MASK = volume(rng.random((5, 21, 34)) > 0.5, (8, 8, 40), (7, 11, -3), layer_type="image")
ARRAYS = {"rgba": picture(), "grey": IMAGE, "deep": GREY16, "float": FLOATS, "ids": FINE, "mask": MASK}


def values_of(name):
    values = ARRAYS[name].values
    return values.astype(np.uint8) if values.dtype == bool else values


# ---------------------------------------------------------------------------------------------------------
# OME-Zarr


@pytest.mark.fast_forms(7)
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (2, 16, 16)},
        {"chunks": (2, 8, 8), "shards": (4, 16, 24), "compressor": "lz4"},
        {"chunks": (2, 16, 16), "version": "0.4", "compressor": "gzip:2"},
        {"chunks": (3, 16, 16), "compressor": None, "levels": 1},
    ],
    ids=["v3", "shards", "v2", "plain"],
)
def test_omezarr_is_read_back_by_zarr(tmp_path, name, options):
    array = ARRAYS[name]
    report = ix.export(array, tmp_path / "o.ome.zarr", **options)
    group = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")
    model = Image04 if options.get("version") == "0.4" else Image05
    meta = model.from_zarr(group).attributes
    multiscale = (meta if options.get("version") == "0.4" else meta.ome).multiscales[0]
    stored = group["0"][:]
    np.testing.assert_array_equal(np.moveaxis(stored, 0, -1) if name == "rgba" else stored, values_of(name))
    assert [a.unit for a in multiscale.axes if a.type == "space"] == ["nanometer"] * 3
    scale, translation = multiscale.datasets[0].coordinateTransformations
    grid = ix.grid_of(array)
    assert tuple(scale.scale[-3:]) == grid.resolution[::-1]
    assert tuple(translation.translation[-3:]) == tuple(float(array[d][0]) for d in "zyx")
    assert len(multiscale.datasets) == len(list(group.array_keys()))
    assert (len(multiscale.datasets) == 1) == (options.get("levels") == 1)
    here = sum(
        f.stat().st_size
        for f in (tmp_path / "o.ome.zarr").rglob("*")
        if f.is_file() and "zarr.json" not in f.name and not f.name.startswith(".z")
    )
    assert report.bytes_written == here


@pytest.mark.parametrize("compressor", slow_except(["zstd", "zstd:7", "gzip:3", None, "lz4"], "zstd"))
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_chunk_has_the_bytes_that_zarr_gives_it(tmp_path, version, compressor):
    big = ARRAYS["deep"].copy(data=ARRAYS["deep"].values.astype(">u2"))
    for array in [*ARRAYS.values(), big]:
        target = tmp_path / "o.ome.zarr"
        plan = ix.plan_export(array, target, chunks=(2, 16, 16), version=version, compressor=compressor)
        values = np.asarray(array.values)
        stored = plan.target.array(0)
        for key, data in stored.encode(IndexBox.of_shape(plan.shape), values):
            z, y, x = map(int, key.split("/")[-3:])
            box = IndexBox((2 * z, 16 * y, 16 * x), (2 * z + 2, 16 * y + 16, 16 * x + 16)).clip(ix.grid_of(array).box)
            theirs = stored._encode_with_zarr(key, box, values[box.slices()])
            if compressor == "gzip:3":  # the header contains the time and the writer
                data, theirs = gzip.decompress(data), gzip.decompress(theirs)
            assert data == theirs


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("compressor", ["zstd", "gzip:3", None, "lz4"])
@pytest.mark.parametrize("options", [{}, {"shards": (4, 32, 16)}, {"version": "0.4"}])
def test_a_pyramid_is_computed_from_the_written_voxels(tmp_path, options, compressor):
    rng = np.random.default_rng(0)
    for name, array in ARRAYS.items():
        plan = ix.plan_export(array, tmp_path / "o.ome.zarr", chunks=(2, 16, 16), compressor=compressor, **options)
        stored, values = plan.target.array(0), np.asarray(array.values)
        objects = dict(stored.encode(IndexBox.of_shape(plan.shape), values))
        for _ in range(5):
            ends = [sorted(map(int, rng.choice(n + 1, 2, replace=False))) for n in plan.shape]
            box = IndexBox(tuple(a for a, _ in ends), tuple(b for _, b in ends))
            found = stored.decode(box, {key: objects[key] for key in stored.keys(box)}, "here")
            assert found.dtype == (np.uint8 if name == "mask" else values.dtype)
            np.testing.assert_array_equal(found, values[box.slices()])


@pytest.mark.fast_forms(5)
@pytest.mark.parametrize("compressor", ["zstd", "gzip:3", None, "lz4", "shards of lz4"])
@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: bytes(len(data)), lambda data: b""])
def test_a_pyramid_names_a_damaged_object(tmp_path, monkeypatch, compressor, damage):
    if compressor is None and len(damage(b"12345")) == 5:
        pytest.skip("uncompressed zeros are valid voxels")
    kw = {"compressor": compressor}
    if compressor == "shards of lz4":
        kw = {"compressor": "lz4", "shards": (4, 32, 32)}
    get = Folder.get

    def get_damaged(self, key):
        data = get(self, key)
        return damage(data) if key.endswith("0/0/0") else data

    monkeypatch.setattr(Folder, "get", get_damaged)
    target = tmp_path / "o.ome.zarr"
    with pytest.raises(ix.errors.TargetError, match=r"0/c/0/0/0 is damaged \(.*: remove it and run the same"):
        ix.export(FINE, target, chunks=(2, 16, 16), levels=2, **kw)
    monkeypatch.undo()
    ix.export(FINE, target, chunks=(2, 16, 16), levels=2, **kw)
    np.testing.assert_array_equal(zarr.open_group(target, mode="r")["0"][:], FINE.values)


@pytest.mark.parametrize("options", [{}, {"shards": (4, 32, 16)}, {"version": "0.4"}])
def test_gzip_files_contain_no_time(tmp_path, monkeypatch, options):
    made = []
    for moment in (1e9, 2e9):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        plan = ix.plan_export(ARRAYS["rgba"], tmp_path / "o.ome.zarr", chunks=(2, 16, 16), compressor="gzip", **options)
        values = np.asarray(ARRAYS["rgba"].values)
        made.append(dict(plan.target.encode(0, IndexBox.of_shape(plan.shape), values)))
    assert made[0] == made[1]


def test_shards_of_omezarr_reduce_the_number_of_files(tmp_path):
    array = array_of(Computed((16, 64, 64)))
    ix.export(array, tmp_path / "a.zarr", chunks=(4, 16, 16), levels=1)
    ix.export(array, tmp_path / "b.zarr", chunks=(4, 16, 16), shards=(8, 32, 32), levels=1)
    count = [len([f for f in (tmp_path / n / "0").rglob("*") if f.is_file()]) - 1 for n in ("a.zarr", "b.zarr")]
    assert count == [64, 8]


@pytest.mark.parametrize("target", ["o.ome.zarr", "precomputed://{}/pc"])
@pytest.mark.parametrize("name", slow_except(["grey", "ids", "rgba", "deep"], "ids"))
def test_a_level_computed_in_parts_equals_one_computed_at_once(tmp_path, name, target, monkeypatch):
    options = {"chunks": (2, 4, 8)} if "//" in target else {"chunks": (1, 4, 8), "shards": (2, 8, 16)}
    array = ARRAYS[name].isel(z=slice(0, 5), y=slice(0, 21), x=slice(0, 31))
    whole, parts = (
        f"{tmp_path}/{n}/{target}" if "//" not in target else target.format(f"{tmp_path}/{n}") for n in "ab"
    )
    report = ix.export(array, whole, levels=3, **options)
    monkeypatch.setattr(sys.modules["imageryxr.export.targets.pyramid"], "PART_VOXELS", 40)
    again = ix.export(array, parts, levels=3, **options)
    assert again.tasks >= report.tasks
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


@pytest.mark.slow
def test_a_level_takes_the_memory_that_was_planned(tmp_path):
    """A coarse voxel derives from up to eight finer ones; the finer voxels of a whole shard are never in memory."""
    layouts = [{"chunks": (16, 32, 32), "shards": (32, 512, 512)}, {"chunks": (32, 256, 256)}]
    cases = [(options, ids) for options in layouts for ids in (False, True)]
    # in a new process, because memory of threads of other tests would be counted
    code = f"from tests.support.export_jobs import level_memory; level_memory({str(tmp_path)!r}, {cases!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for (options, ids), line in zip(cases, done.stdout.splitlines(), strict=True):
        peak, planned, size = json.loads(line)
        assert peak < planned < (6 if "shards" in options else 30) * size, (options, ids)


def test_a_plan_counts_the_memory_of_levels(tmp_path):
    array = array_of(Computed((512, 512, 512)))
    small, large = (ix.plan_export(array, tmp_path / "o.zarr", levels=n, chunks=(256, 256, 256)) for n in (1, 2))
    assert large.peak_memory > 1.2 * small.peak_memory


@pytest.mark.parametrize("name", ["grey", "ids", "rgba", "deep"])
def test_each_level_is_the_downsampled_finer_one(tmp_path, name):
    # with odd sizes, the last voxel is computed from the available half
    array = ARRAYS[name].isel(z=slice(0, 3), y=slice(0, 19), x=slice(0, 23))
    ix.export(array, tmp_path / "o.zarr", chunks=(2, 8, 8), levels=2)
    group = zarr.open_group(tmp_path / "o.zarr", mode="r")
    fine, coarse = group["0"][:], group["1"][:]
    if name == "rgba":
        fine, coarse = np.moveaxis(fine, 0, -1), np.moveaxis(coarse, 0, -1)
    assert coarse.shape[:3] == (3, 10, 12)
    for (z, y, x), value in np.ndenumerate(coarse[..., 0] if name == "rgba" else coarse):
        block = fine[z, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        if name == "ids":
            ids, counts = np.unique(block, return_counts=True)
            assert value in ids[counts == counts.max()]
        elif name == "rgba":
            alpha = block[..., 3].astype(float)
            mean = (block[..., 0] * alpha).sum() / max(alpha.sum(), 1)
            assert abs(value - mean) <= 0.5 + 1e-6
        else:
            assert abs(float(value) - block.astype(float).mean()) <= 0.5


def test_omezarr_contains_the_display_range(tmp_path):
    ix.export(GREY16.assign_attrs(contrast_limits=(100, 4000)), tmp_path / "o.zarr")
    ome = json.loads((tmp_path / "o.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["omero"]["channels"][0]["window"] == {"start": 100, "end": 4000, "min": 100, "max": 4000}
    ix.export(FINE, tmp_path / "s.zarr")
    ome = json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    assert "image-label" in ome


# ---------------------------------------------------------------------------------------------------------
# precomputed


@pytest.mark.parametrize("name", ["rgba", "grey", "deep", "float", "ids"])
def test_precomputed_is_read_back_by_cloudvolume(tmp_path, name):
    from cloudvolume import CloudVolume

    array = ARRAYS[name]
    ix.export(array, f"precomputed://{tmp_path}/pc", chunks=(4, 16, 16))
    vol = CloudVolume(f"file://{tmp_path}/pc", mip=0, fill_missing=False, progress=False)
    voxels = np.asarray(vol[:]).transpose(2, 1, 0, 3)
    np.testing.assert_array_equal(voxels if name == "rgba" else voxels[..., 0], array.values)
    grid = ix.grid_of(array)
    assert tuple(vol.resolution) == grid.resolution
    assert tuple(vol.voxel_offset) == grid.voxel_offset
    assert vol.layer_type == ("segmentation" if name == "ids" else "image")
    assert vol.num_channels == (4 if name == "rgba" else 1)
    opened = ix.open_multiscale(f"precomputed://{tmp_path}/pc") if name != "rgba" else None
    if opened is not None:
        # every level covers the array and starts at the same corner
        for child in opened.children.values():
            level = ix.grid_of(child)
            for axis, whole in zip(level.axes, grid.axes, strict=True):
                assert axis.edges()[0] <= whole.edges()[0]
                assert axis.edges()[1] >= whole.edges()[1]
                assert whole.edges()[0] - axis.edges()[0] < axis.resolution


def test_levels_of_precomputed_have_the_right_positions(tmp_path):
    ramp = volume(np.tile(np.arange(40, dtype=np.float32), (4, 12, 1)), (8, 8, 40), (3, 4, 0), layer_type="image")
    ix.export(ramp, f"precomputed://{tmp_path}/pc", levels=3, chunks=(4, 8, 8))
    tree = ix.open_multiscale(f"precomputed://{tmp_path}/pc")
    assert len(tree.children) == 3
    for child in tree.children.values():
        inner = child["image"].isel(x=slice(1, -1), z=0, y=0)
        np.testing.assert_allclose(inner.values, (inner.x.values - 24) / 8 - 0.5)


def test_precomputed_encodings_are_read_back_by_cloudvolume(tmp_path):
    from cloudvolume import CloudVolume

    grey = array_of(Computed((4, 32, 32)))
    for encoding, tolerance in (("png", 0), ("jpeg", 255), ("raw", 0)):
        ix.export(grey, f"precomputed://{tmp_path}/{encoding}", encoding=encoding, chunks=(4, 16, 16), levels=2)
        vol = CloudVolume(f"file://{tmp_path}/{encoding}", mip=0, progress=False)
        found = np.asarray(vol[:])[..., 0].T
        assert np.abs(found.astype(int) - grey.values).max() <= tolerance
        assert CloudVolume(f"file://{tmp_path}/{encoding}", mip=1, progress=False)[:].shape[:3] == (17, 17, 4)
    with pytest.raises(
        ix.errors.OptionError, match="'compressed_segmentation' must be 'raw', 'jpeg' or 'png' for uint8"
    ):
        ix.export(grey, f"precomputed://{tmp_path}/x", encoding="compressed_segmentation")


def test_half_voxel_offsets_are_refused_by_precomputed(tmp_path):
    half = volume(np.ones((2, 4, 4), np.uint8), (8, 8, 40), (0.5, 0, 0), layer_type="image")
    with pytest.raises(ix.errors.OptionError, match=r"begins at voxel \(0\.5, 0, 0\).*regrid"):
        ix.export(half, f"precomputed://{tmp_path}/pc")


# ---------------------------------------------------------------------------------------------------------
# pictures


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("axis", ["z", "x"])
def test_a_tiff_stack_has_the_values_of_the_slices(tmp_path, name, axis):
    array = ARRAYS[name]
    ix.export(array, tmp_path / f"{axis}{{{axis}:03d}}.tif", square=False)
    files = sorted(tmp_path.glob("*.tif"))
    assert len(files) == array.sizes[axis]
    whole = values_of(name) * (255 if name == "mask" else 1)
    for i, file in enumerate(files):
        np.testing.assert_array_equal(tifffile.imread(file), np.take(whole, i, axis="zyx".index(axis)))
    with tifffile.TiffFile(files[0]) as tif:
        if name in ("rgba", "grey", "deep", "float"):
            assert tif.imagej_metadata["unit"] == "nm"
            assert tif.imagej_metadata["spacing"] == {"z": 40, "x": 8}[axis]
            width, height = (t[0] / t[1] for t in (tif.pages[0].tags[n].value for n in ("XResolution", "YResolution")))
            assert (1 / width, 1 / height) == pytest.approx({"z": (8, 8), "x": (8, 40)}[axis])


@pytest.mark.fast_forms(10)
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "options", [{}, {"compression": None, "bigtiff": True}, {"axis": "y"}], ids=["zlib", "big", "y"]
)
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
def test_a_tiff_file_has_the_values_of_the_slices(tmp_path, name, options, suffix):
    array, path = ARRAYS[name], tmp_path / f"one{suffix}"
    if suffix == ".ome.tif" and name == "ids":
        with pytest.raises(ix.errors.OptionError, match="ids of dtype uint64 cannot be stored as OME-TIFF"):
            ix.export(array, path, **options)
        return
    report = ix.export(array, path, **options)
    assert report.bytes_written == path.stat().st_size
    axis = "zyx".index(options.get("axis", "z"))
    truth = np.moveaxis(values_of(name) * (255 if name == "mask" else 1), axis, 0)
    with tifffile.TiffFile(path) as tif:
        np.testing.assert_array_equal(tif.asarray(), truth)
        assert tif.is_bigtiff == options.get("bigtiff", False)
        if suffix == ".ome.tif":
            assert tif.is_ome
            pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
            depth, height, width = (float(pixels.get(f"PhysicalSize{a}")) for a in "ZYX")
            assert {pixels.get(f"PhysicalSize{a}Unit") for a in "XYZ"} == {"nm"}
        elif tif.is_imagej:
            tags = [tif.pages[0].tags[n].value for n in ("XResolution", "YResolution")]
            width, height = (b / a for a, b in tags)
            depth = tif.imagej_metadata["spacing"]
            assert tif.imagej_metadata["unit"] == "nm"
            assert tif.imagej_metadata.get("slices", 1) == truth.shape[0]
        else:
            return
    assert (depth, height, width) == pytest.approx({0: (40, 8, 8), 1: (8, 40, 8)}[axis], rel=1e-4)
    assert report.complete


def test_bigtiff_contains_the_pixel_size(tmp_path):
    # not an ImageJ TIFF, in which no reader would understand nm per pixel without a unit
    ix.export(IMAGE, tmp_path / "o.tif", bigtiff=True)
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        tags = file.pages[0].tags
        assert not file.is_imagej
        assert tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
        count, per = tags["XResolution"].value
        assert 1e7 / (count / per) == pytest.approx(ix.grid_of(IMAGE).resolution[0])


def test_png_contains_the_pixel_size(tmp_path):
    ix.export(IMAGE, tmp_path / "z{z}.png")
    dpi = Image.open(tmp_path / "z0.png").info["dpi"]
    assert 0.0254 / dpi[0] * 1e9 == pytest.approx(8, rel=1e-6)


def test_slices_can_be_named_by_their_position_in_nm(tmp_path):
    ix.export(GREY16, tmp_path / "slices_{z_nm:06.0f}nm" / "em.tif")
    centers = sorted(float(z) for z in GREY16.z)
    assert {p.parent.name for p in tmp_path.rglob("em.tif")} == {f"slices_{c:06.0f}nm" for c in centers}


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("name", ["grey", "ids", "rgba"])
def test_slices_are_resampled_to_square_pixels(tmp_path, axis, name):
    array = ARRAYS[name]
    report = ix.export(array, tmp_path / f"{{{axis}:03d}}.tif", square=True)
    files = sorted(tmp_path.glob("*.tif"))
    assert len(files) == array.sizes[axis]
    assert report.complete
    found = np.stack([tifffile.imread(f) for f in files], axis="zyx".index(axis))
    assert found.shape[0] == 5 * array.sizes["z"]
    if name == "rgba":
        solid = array.isel(rgba=3).values.min() == 255
        truths = [
            ix.regrid(array.isel(rgba=i, drop=True).load().assign_attrs(layer_type="image"), (8, 8, 8)).values
            for i in range(3)
        ]
        assert solid
        assert np.abs(found[..., :3].astype(int) - np.stack(truths, axis=-1)).max() <= 1
    else:
        np.testing.assert_array_equal(found, ix.regrid(array, (8, 8, 8)).values)


def test_square_does_not_change_square_pixels(tmp_path):
    ix.export(GREY16, tmp_path / "{z}.tif", square=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "2.tif"), GREY16.values[2])


# ---------------------------------------------------------------------------------------------------------
# video, memory


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_video_has_the_frames_of_the_slices(tmp_path, suffix):
    import av

    # smooth, because codecs do not preserve noise
    ramp = np.add.outer(np.arange(7) * 20, np.add.outer(np.arange(33) * 2, np.arange(65))).astype(np.uint8)
    report = ix.export(volume(ramp, layer_type="image"), tmp_path / f"film.{suffix}", fps=7, crf=4)
    assert report.bytes_written == (tmp_path / f"film.{suffix}").stat().st_size
    with av.open(tmp_path / f"film.{suffix}") as film:
        stream = film.streams.video[0]
        assert float(stream.average_rate) == 7
        frames = [f.to_ndarray(format="rgb24") for f in film.decode(video=0)]
        rgb = (stream.width, stream.height)
    assert rgb == (66, 34)
    assert len(frames) == 7
    for frame, plane in zip(frames, ramp, strict=True):
        error = np.abs(frame[:33, :65].astype(float) - plane[..., np.newaxis])
        assert error.mean() < 3


def test_a_video_is_encoded_once(tmp_path, monkeypatch):
    import av

    opened, real = [], av.open
    monkeypatch.setattr(av, "open", lambda path, *args, **kwargs: opened.append(path) or real(path, *args, **kwargs))
    ramp = np.add.outer(np.arange(3) * 20, np.zeros((32, 48))).astype(np.uint8)
    ix.export(volume(ramp, layer_type="image"), tmp_path / "film.mp4")
    assert len(opened) == 1


def test_videos_of_equal_slices_have_equal_frames(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        # lossless, because x264 does not always encode equal frames to equal bytes
        ix.export(picture(seed=seed), tmp_path / name / "film.mp4", crf=0)
    first, same, other = (digest(tmp_path / name) for name in "abc")
    assert first == same != other


def test_a_video_keeps_colours(tmp_path):
    import av

    colors = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [200, 200, 30]], np.uint8)
    solid = np.repeat(np.repeat(colors[:, np.newaxis, np.newaxis], 32, axis=1), 48, axis=2)
    rgba = ix.to_rgba(volume(np.zeros((4, 32, 48), np.uint8), layer_type="image"))
    ix.export(
        rgba.copy(data=np.concatenate([solid, np.full((4, 32, 48, 1), 255, np.uint8)], axis=-1)),
        tmp_path / "film.mp4",
        crf=4,
    )
    with av.open(tmp_path / "film.mp4") as film:
        for frame, color in zip(film.decode(video=0), colors, strict=True):
            # BT.709 of the limited range, https://www.itu.int/rec/R-REC-BT.709
            luma, blue, red = np.split(frame.to_ndarray(format="yuv420p").reshape(-1), [32 * 48, 32 * 48 * 5 // 4])
            y, b, r = (luma.mean() - 16) / 219, (blue.mean() - 128) / 224, (red.mean() - 128) / 224
            shown = np.array([y + 1.5748 * r, y - 0.1873 * b - 0.4681 * r, y + 1.8556 * b]) * 255
            assert np.abs(shown - color).max() < 8


def test_transparent_pixels_of_a_video_are_black(tmp_path):
    import av

    clear = ix.outline(array_of(Computed((2, 32, 32), layer_type="segmentation")), width=2) * 0
    clear = clear.astype(np.uint8).assign_attrs(resolution=(8, 8, 40))
    ix.export(clear + np.array([200, 200, 200, 0], np.uint8), tmp_path / "film.mp4")
    with av.open(tmp_path / "film.mp4") as film:
        assert all(f.to_ndarray(format="rgb24").max() < 8 for f in film.decode(video=0))


def test_masks_are_black_and_white_in_slices_and_counted_in_volumes(tmp_path):
    import av

    mask = volume(np.indices((2, 32, 48)).sum(0) // 16 % 2 > 0, (8, 8, 40), layer_type="image")
    for target in ("film.mp4", "z{z}.png", "o.tif", "o.ome.zarr"):
        ix.export(mask, tmp_path / target)
    ix.export(mask, f"precomputed://{tmp_path}/pc")
    with av.open(tmp_path / "film.mp4") as film:
        frame = next(film.decode(video=0)).to_ndarray(format="rgb24")[..., 0]
    assert np.abs(frame - mask.values[0] * 255.0).mean() < 8
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "z1.png")), mask.values[1] * np.uint8(255))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o.tif"), mask.values * np.uint8(255))
    np.testing.assert_array_equal(ix.open_image(tmp_path / "o.ome.zarr").values, mask.values.astype(np.uint8))
    np.testing.assert_array_equal(ix.open_image(tmp_path / "pc").values, mask.values.astype(np.uint8))
    assert ix.export(mask, "memory://").result.dtype == bool


@pytest.mark.parametrize("target", ["{z}.png", "{z}.tif", "o.tif", "o.mp4", "o.ome.zarr", "memory://"])
@pytest.mark.parametrize("order", [[2, 1, 0, 3], [1, 2, 3], [3]])
def test_channels_in_another_order_are_not_written_as_rgb(tmp_path, target, order):
    array = ARRAYS["rgba"].compute().isel(rgba=order)
    with pytest.raises(
        ix.errors.LayerError, match=rf"order r, g, b, a, but this array has {', '.join('rgba'[i] for i in order)}:"
    ):
        ix.plan_export(array, target if "//" in target else tmp_path / target)


@pytest.mark.parametrize(
    ("target", "change"),
    [
        ("{z}.png", lambda a: a.isel(rgba=slice(0, 3))),
        ("{z}.png", lambda a: a.astype(np.uint16)),
        ("o.mp4", lambda a: a.isel(rgba=slice(0, 3))),
        ("{z}.tif", lambda a: a.drop_vars("rgba").isel(rgba=slice(0, 2))),
        ("o.tif", lambda a: a.isel(rgba=[0])),
    ],
    ids=["PNG of RGB", "PNG of 16 bits", "film of RGB", "TIFF of two", "TIFF of one"],
)
def test_unsupported_channels_are_refused_with_the_supported_ones(tmp_path, target, change):
    with pytest.raises(ix.errors.OptionError, match="RGBA"):
        ix.plan_export(change(ARRAYS["rgba"].compute()), tmp_path / target)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_target_in_memory_returns_the_array(name):
    report = ix.export(ARRAYS[name], "memory://")
    assert isinstance(report.result.data, np.ndarray)
    np.testing.assert_array_equal(report.result.values, ARRAYS[name].values)
    for dim in "zyx":
        assert report.result[dim].values.tolist() == ARRAYS[name][dim].values.tolist()
    assert report.bytes_written == ARRAYS[name].nbytes


CASES = {
    "version": ({"version": "0.6"}, "o.zarr", "'0.5'"),
    "shards": ({"shards": (10, 256, 256)}, "o.zarr", "multiples of chunks"),
    "old shards": ({"shards": (16, 256, 256), "version": "0.4"}, "o.zarr", "version='0.5'"),
    "compressor": ({"compressor": "snappy"}, "o.zarr", "'zstd', 'lz4', 'gzip'"),
    "compressor level": ({"compressor": "zstd:99"}, "o.zarr", "'zstd:5'"),
    "levels": ({"levels": 0}, "o.zarr", "from 1"),
    "option of another": ({"fps": 3}, "o.zarr", "chunks, shards"),
    "png level": ({"compress_level": 11}, "{z}.png", "0 .* to 9"),
    "tiff": ({"compression": "lzw"}, "{z}.tif", "'zlib'"),
    "axis": ({"axis": "c"}, "o.tif", "'z', 'y' or 'x'"),
    "fps of words": ({"fps": "fast"}, "o.mp4", "above 0"),
    "chunks": ({"chunks": (16.5, 64, 64)}, "o.zarr", "three positive counts"),
    "fps": ({"fps": 0}, "o.mp4", "above 0"),
    "crf": ({"crf": 99}, "o.mp4", "0 .* to 51"),
    "on_error": ({"on_error": "ignore"}, "o.zarr", "'raise' .* 'collect'"),
    "retries": ({"retries": -1}, "o.zarr", "retries=-1 must be a whole number of at least 0"),
    "workers": ({"workers": 0}, "o.zarr", "whole number from 1"),
    "memory": ({"memory": "lots"}, "o.zarr", "'4 GB'"),
    "client": ({"client": "host:8786"}, "o.zarr", "tcp://host:8786"),
    "square": ({"axis": "q", "square": True}, "o.tif", "'z', 'y' or 'x'"),
}


@pytest.mark.parametrize("case", CASES)
def test_invalid_options_are_errors_before_anything_is_written(tmp_path, case):
    options, target, words = CASES[case]
    with pytest.raises(ix.errors.OptionError, match=words):
        ix.export(IMAGE, tmp_path / target, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_video_of_16_bit_values_is_refused(tmp_path):
    with pytest.raises(ix.errors.OptionError, match=r"uint16 cannot be frames.*to_rgba"):
        ix.export(GREY16, tmp_path / "film.mp4")


def test_float_types_that_ome_tiff_lacks_are_refused(tmp_path):
    half = FLOATS.astype(np.float16)
    with pytest.raises(ix.errors.OptionError, match=r"float16.*astype\('float32'\)"):
        ix.plan_export(half, tmp_path / "o.ome.tif")
    ix.export(half, tmp_path / "o.tif")
    assert (tifffile.imread(tmp_path / "o.tif") == half.values).all()


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int8"])
def test_contrast_limits_are_absent_if_the_array_has_none(tmp_path, dtype):
    em = volume(np.arange(64).reshape(1, 8, 8).repeat(2, 0).astype(dtype), layer_type="image")
    ix.export(em, tmp_path / "a.ome.zarr", progress=False)
    back = ix.open_image(tmp_path / "a.ome.zarr")
    assert "contrast_limits" not in back.attrs
    with pytest.raises(ix.errors.LayerError, match="contrast_limits="):
        ix.to_rgba(back)


def test_a_target_that_appears_during_the_export_is_not_replaced(tmp_path, monkeypatch):
    em = volume(np.arange(64, dtype=np.uint8).reshape(1, 8, 8).repeat(3, 0), layer_type="image")
    target = tmp_path / "a.ome.zarr"
    monkeypatch.setenv(
        "IMAGERYXR_TEST_MEDDLED", str(target)
    )  # a path in the function's closure would count as one of its sources

    def meddle(block):
        if block.size:
            other_target = Path(os.environ["IMAGERYXR_TEST_MEDDLED"])
            other_target.mkdir(exist_ok=True)
            (other_target / "zarr.json").write_text("theirs")
        return block

    slow = em.copy(data=em.chunk().data.map_blocks(meddle, meta=np.empty((0, 0, 0), np.uint8), name="meddled"))
    with pytest.raises(ix.errors.TargetExistsError, match="appeared during this export"):
        ix.export(slow, target, progress=False)
    assert (target / "zarr.json").read_text() == "theirs"
    ix.export(slow, target, progress=False, overwrite=True)
    np.testing.assert_array_equal(ix.open_image(target).values, em.values)


@pytest.mark.parametrize("target", [3, None, b"x.zarr"])
def test_a_target_that_is_not_a_path_is_an_error(target):
    with pytest.raises(ix.errors.OptionError, match="is not a path or URL"):
        ix.export(IMAGE, target)


def test_a_tilde_in_a_pattern_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    ix.export(IMAGE.isel(z=[0]), "~/stack/z{z}.tif")
    assert (tmp_path / "stack" / "z0.tif").exists()


@pytest.mark.parametrize("target", ["o.tif", "stack/z{z}.png"])
def test_overwrite_keeps_a_folder_with_the_name_of_a_file(tmp_path, target):
    folder = tmp_path / target.format(z=0)
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ix.errors.TargetExistsError, match="is a folder, but the export writes a file of this name"):
        ix.export(IMAGE, tmp_path / target, overwrite=True)
    with pytest.raises(ix.errors.TargetExistsError):
        ix.export(IMAGE, tmp_path / target)
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_overwrite_keeps_a_folder_with_other_files(tmp_path):
    target = tmp_path / "thesis.zarr"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    em = volume(np.zeros((2, 8, 8), np.uint8), layer_type="image")
    with pytest.raises(ix.errors.TargetExistsError, match=r"thesis\.txt"):
        ix.export(em, target, overwrite=True, progress=False)
    assert (target / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(("written", "meant"), [("compresor", "compressor"), ("resum", "resume"), ("level", "levels")])
def test_the_error_for_an_unknown_option_names_the_nearest(tmp_path, written, meant):
    em = volume(np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(
        OptionError, match=rf"^{written}=… is not an option of a \.zarr target \(did you mean '{meant}'"
    ):
        ix.export(em, tmp_path / "o.zarr", **{written: 1})


def test_type_checkers_see_the_options_that_the_formats_take():
    keywords = set(inspect.signature(ix.export).parameters) - {"da", "target", "options"}
    assert keywords == set(registry.EXPORT_KEYWORDS)
    factories = [*registry.PATTERNS.values(), *registry.PATHS.values(), registry.precomputed]
    taken = {name for factory in factories for name in registry._keyword_names(factory)}
    of_cutouts = set(PageOptions.__annotations__) | set(CutoutPictureOptions.__annotations__)
    assert taken | of_cutouts == set(FormatOptions.__annotations__)


def test_the_advice_for_ids_that_are_floats_keeps_missing_ids_as_background(tmp_path):
    seg = FINE.where(FINE.isin(np.unique(FINE)[-2:])).assign_attrs(layer_type="segmentation")
    with pytest.raises(OptionError, match=r"give array\.fillna\(0\)\.astype\('uint64'\)"):
        ix.plan_export(seg, tmp_path / "ids.zarr")
