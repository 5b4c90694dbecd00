"""Opened layers have the voxels and positions of CloudVolume; failed reads are errors, not background."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from cloudvolume import CloudVolume
from dask.base import tokenize

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.sources.resolve import resolve_source
from tests.support.layers import write_layer

LEVELS = [((50, 41, 19), (4, 4, 40), (5, -7, 3)), ((25, 21, 19), (8, 8, 40), (2, -4, 3))]


@pytest.fixture
def layer(tmp_path):
    return tmp_path / "em", write_layer(tmp_path / "em", "image", LEVELS)


@pytest.mark.parametrize("mip", [0, 1])
@pytest.mark.parametrize(
    ("lo", "hi"), [((6, -3, 4), (17, 3, 9)), ((5, -4, 3), (6, -3, 4)), ((20, 2, 10), (26, 16, 20))]
)
def test_sel_bbox_and_crop_equal_cloudvolume(layer, mip, lo, hi):
    path, _ = layer
    volume = CloudVolume(f"file://{path}", mip=mip, progress=False)
    truth = np.asarray(volume[tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))])[..., 0].T
    opened = ix.open_image(path, mip=mip)
    r = opened.attrs["resolution"]
    spans = {d: slice(a * s, b * s) for d, a, b, s in zip("xyz", lo, hi, r, strict=True)}
    box = ix.BBox(lo, hi, resolution=r)
    for part in (opened.sel(spans), ix.open_image(path, mip=mip, bbox=box), ix.crop(opened, box)):
        np.testing.assert_array_equal(part.values, truth)
        assert part.x.values[0] == (lo[0] + 0.5) * r[0]
        assert part.values.flags["C_CONTIGUOUS"]


def test_levels_half_a_voxel_apart_keep_their_offsets(layer):
    tree = ix.open_multiscale(layer[0])
    assert tree["0/image"].x.values[0] - 2 == 20
    assert tree["1/image"].x.values[0] - 4 == 16
    assert ix.open_image(layer[0], mip=(8, 8, 40)).identical(ix.open_image(layer[0], mip=1))


def test_a_fractional_resolution_is_exact(tmp_path):
    (voxels,) = write_layer(tmp_path / "em", "image", [((30, 20, 4), (4.04, 4.04, 40), (1000001, 7, 0))])
    em = ix.open_image(tmp_path / "em")
    np.testing.assert_array_equal(em.values, voxels)
    box = ix.BBox((1000003, 9, 1), (1000010, 12, 3), resolution=(4.04, 4.04, 40))
    np.testing.assert_array_equal(ix.crop(em, box).values, voxels[1:3, 2:5, 2:9])


def test_a_box_partly_outside_is_background_there(layer):
    path, (voxels, _) = layer
    part = ix.open_image(path, bbox=ix.BBox((0, -10, 0), (10, 0, 5), resolution=(4, 4, 40)))
    truth = np.zeros((5, 10, 10), np.uint8)
    truth[3:, 3:, 5:] = voxels[:2, :7, :5]
    np.testing.assert_array_equal(part.values, truth)


@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_large_ids_are_read_as_they_were_written(tmp_path, encoding):
    ids = np.random.default_rng(0).choice(np.array([0, 2**53 + 1, 2**64 - 1], np.uint64), (32, 24, 16))
    levels = [((32, 24, 16), (8, 8, 40), (3, 0, -9))]
    write_layer(tmp_path / "seg", "segmentation", levels, "uint64", encoding, data=[ids])
    seg = ix.open_segmentation(tmp_path / "seg", ids=[2**64 - 1])
    np.testing.assert_array_equal(seg.values, np.where(ids.T == 2**64 - 1, ids.T, 0))


def chunk_files(path, mip_key="4_4_40"):
    return sorted((path / mip_key).iterdir())


def test_a_missing_chunk_raises_by_default(layer):
    path, (voxels, _) = layer
    gone = chunk_files(path)[0]
    gone.unlink()
    with pytest.raises(ix.errors.MissingChunkError, match=r"em, mip 0 .*missing='fill'") as caught:
        ix.open_image(path).load()
    assert isinstance(caught.value, FileNotFoundError)
    filled = ix.open_image(path, missing="fill").values
    with pytest.warns(ix.errors.MissingChunkWarning, match="1 missing chunk is"):
        warned = ix.open_image(path, missing="warn").values
    np.testing.assert_array_equal(filled, warned)
    assert (filled != voxels).sum() == 16 * 16 * 8
    assert (filled[filled != voxels] == 0).all()


def test_a_truncated_chunk_is_an_error_and_not_filled(layer):
    path, _ = layer
    bad = chunk_files(path)[3]
    bad.write_bytes(bad.read_bytes()[:20])
    for missing in ("raise", "fill"):
        with pytest.raises(ix.errors.ChunkReadError, match="could not read precomputed://.*em, mip 0"):
            ix.open_image(path, missing=missing).load()


def test_an_empty_chunk_file_is_an_error_and_not_filled(layer):
    path, _ = layer
    bad = chunk_files(path)[3]
    bad.unlink()
    bad.with_suffix("").write_bytes(b"")
    with pytest.raises(ix.errors.ChunkReadError):
        ix.open_image(path, missing="fill").load()


def test_placeholder_levels_are_skipped_and_raise_if_requested(layer):
    import json

    path, (_, coarse) = layer
    info = json.loads((path / "info").read_text())
    info["scales"][0]["key"] = "placeholder"
    (path / "info").write_text(json.dumps(info))
    assert ix.open_image(path).attrs["mip"] == 1
    np.testing.assert_array_equal(ix.open_image(path).values, coarse)
    with pytest.raises(ix.errors.MipError, match=r"mip=0 .* placeholder .* mip 1 \(8 × 8 × 40 nm\)"):
        ix.open_image(path, mip=0)
    assert list(ix.open_multiscale(path).children) == ["1"]


@pytest.mark.slow
def test_the_pickle_of_a_source_is_small(layer):
    path, (voxels, _) = layer
    source = resolve_source(path, "image")
    assert isinstance(source, ix.Source)
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert tokenize(again) == tokenize(source)
    assert tokenize(resolve_source(path, "image", missing="fill")) != tokenize(source)
    assert len(pickle.dumps(source)) < 20_000
    boxes = [IndexBox((z, y, x), (z + 9, y + 13, x + 17)) for z in (-3, 2, 9) for y in (-2, 11, 30) for x in (0, 21)]
    padded = np.pad(voxels, 30)
    with ThreadPoolExecutor(8) as pool:
        for box, values in zip(boxes, pool.map(lambda b: source.read(0, b), boxes), strict=True):
            np.testing.assert_array_equal(values, padded[box.shift((30, 30, 30)).slices()])
    assert source.read(0, IndexBox((900, 0, 0), (901, 2, 3))).tolist() == np.zeros((1, 2, 3)).tolist()
    code = (
        "import pickle, sys, imageryxr; s = pickle.load(sys.stdin.buffer); print(s.read(0, s.levels[0].grid.box).sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=True)
    assert int(done.stdout) == voxels.sum()


def test_opening_reads_no_chunk(layer):
    path, _ = layer
    for chunk in chunk_files(path):
        chunk.unlink()
    em = ix.open_image(path, chunks="auto")
    with pytest.warns(ix.ImageryWarning, match="is declared an image"):
        seg = ix.open_segmentation(path)
    picture = ix.overlay(ix.open_image(path), seg, outline=3)
    assert (em.shape, picture.shape) == ((19, 41, 50), (19, 41, 50, 4))


def test_open_dataset_equals_open_image(layer):
    ds = xr.open_dataset(str(layer[0]), engine="imageryxr", mip=1)
    np.testing.assert_array_equal(ds.image.values, layer[1][1])
    assert "imageryxr" in xr.backends.list_engines()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["zyx", "tczyx", "yx"])
@pytest.mark.parametrize("unit", ["nanometer", "micrometer"])
def test_a_handwritten_omezarr_opens(tmp_path, version, axes, unit):
    import zarr

    rng = np.random.default_rng(0)
    shape = dict(zip("tczyx", (2, 3, 5, 17, 19), strict=True))
    voxels = rng.integers(1, 2**16, [shape[a] for a in axes], dtype=np.uint16)
    factor = 1000 if unit == "micrometer" else 1
    sizes = {"z": 40 / factor, "y": 8 / factor, "x": 4.04 / factor}
    starts = {"z": 100 / factor, "y": 4 / factor, "x": 2.02 / factor}
    multiscale = {
        "axes": [{"name": a, "type": {"t": "time", "c": "channel"}.get(a, "space"), **({"unit": unit} if a in "zyx" else {})} for a in axes],
        "datasets": [
            {
                "path": "s0",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [sizes.get(a, 1) for a in axes]},
                    {"type": "translation", "translation": [starts.get(a, 0) for a in axes]},
                ],
            }
        ],
    }  # fmt: skip
    attributes = (
        {"multiscales": [multiscale]} if version == 2 else {"ome": {"version": "0.5", "multiscales": [multiscale]}}
    )
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version, attributes=attributes)
    group.create_array("s0", data=voxels, chunks=tuple(min(8, n) for n in voxels.shape))
    picks = {"channel": 2, "time": 1} if "c" in axes else {}
    em = ix.open_image(tmp_path / "a.zarr", **picks)
    truth = voxels[1, 2] if "c" in axes else voxels.reshape(-1, 17, 19)
    np.testing.assert_array_equal(em.values, truth)
    assert em.x.values[:2] == pytest.approx([2.02, 6.06])
    if "z" in axes:
        assert em.z.values[:2] == pytest.approx([100, 140])
    corner = ix.open_image(f"zarr://{tmp_path}/a.zarr", assume="corner", **picks)
    assert corner.y.values[0] == pytest.approx(8)
    if picks:
        with pytest.raises(ix.errors.SourceError, match="channel=0 to channel=2"):
            ix.open_image(tmp_path / "a.zarr")


def test_the_option_missing_applies_to_missing_zarr_chunks(tmp_path):
    em = ix.Grid((4, 32, 32), (8, 8, 40), (0, 0, 0))
    da = xr.DataArray(np.full(em.shape, 9, np.uint8), dims=("z", "y", "x"), coords=em.coords())
    ix.export(da, tmp_path / "a.ome.zarr", chunks=(4, 16, 16))
    chunks = [p for p in Path(tmp_path, "a.ome.zarr", "0").rglob("*") if p.is_file() and p.name != "zarr.json"]
    assert len(chunks) == 4
    chunks[0].unlink()
    with pytest.raises(ix.errors.MissingChunkError, match="missing='fill'"):
        ix.open_image(tmp_path / "a.ome.zarr", missing="raise").load()
    for missing in ("fill", None):
        assert (ix.open_image(tmp_path / "a.ome.zarr", missing=missing).values == 0).sum() == 4 * 16 * 16


def test_a_folder_of_volumes_raises_with_the_addresses_that_open(sample):
    with pytest.raises(
        ix.errors.SourceNotFoundError, match=r"its folders image and segmentation are volumes: give .*/image"
    ):
        ix.open_image(sample.path)
    with pytest.raises(
        ix.errors.SourceError, match=r"\(Sample\) is not an address; give one of its layers, e\.g\. sample\.image"
    ):
        ix.open_image(sample)
    with pytest.raises(ix.errors.LinkError, match=r"address of a layer, not a link.*open_image"):
        ix.open_neuroglancer(sample.image)


@pytest.mark.parametrize("missing", ["8_8_40", "level"])
def test_a_folder_within_a_volume_raises_with_the_address_of_the_volume(sample, missing):
    with pytest.raises(ix.errors.SourceNotFoundError, match=r"the folder above it is a volume: give \S+/image$"):
        ix.open_image(f"{sample.image.removeprefix('precomputed://')}/{missing}")
