"""Precomputed layers that every reader can open, and layers with ``gzip=True``."""

from __future__ import annotations

import numpy as np
import pytest
import tensorstore

import imageryxr as ix
from tests.conftest import volume
from tests.support.export_jobs import picture
from tests.support.volumes import FINE, IMAGE

ARRAYS = {"rgba": picture(), "grey": IMAGE, "ids": FINE, "flags": FINE > 3}
CASES = [("rgba", "raw"), ("grey", "raw"), ("grey", "png"), ("grey", "jpeg"), ("flags", "raw")]
CASES += [("ids", "raw"), ("ids", "compressed_segmentation")]


def by_cloudvolume(path, mip=0):
    from cloudvolume import CloudVolume

    return np.asarray(CloudVolume(f"file://{path}", mip=mip, fill_missing=False, progress=False)[:])


def by_tensorstore(path, mip=0):
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{path}/", "scale_index": mip}
    return tensorstore.open(spec).result().read().result()


@pytest.mark.parametrize(("name", "encoding"), CASES)
def test_cloudvolume_and_tensorstore_see_the_same_voxels(tmp_path, name, encoding):
    array = ARRAYS[name]
    ix.export(array, f"precomputed://{tmp_path}/pc", encoding=encoding, chunks=(4, 16, 16), levels=2)
    assert not list(tmp_path.rglob("*.gz"))
    for mip in (0, 1):
        np.testing.assert_array_equal(by_tensorstore(tmp_path / "pc", mip), by_cloudvolume(tmp_path / "pc", mip))
    found = by_tensorstore(tmp_path / "pc").transpose(2, 1, 0, 3)
    found = found if name == "rgba" else found[..., 0]
    if encoding == "jpeg":
        assert np.abs(found.astype(int) - array.values).mean() < 20
    else:
        np.testing.assert_array_equal(found, array.values)


def test_colours_are_written_as_png(tmp_path):
    target = f"precomputed://{tmp_path}/pc"
    with pytest.warns(
        ix.ImageryWarning, match="CloudVolume reads PNG chunks with their channels mixed up.*encoding='raw'"
    ):
        ix.export(ARRAYS["rgba"], target, encoding="png", chunks=(4, 16, 16), levels=2)
    ix.export(ARRAYS["rgba"], f"precomputed://{tmp_path}/raw", chunks=(4, 16, 16), levels=2)
    for mip in (0, 1):
        truth = by_tensorstore(tmp_path / "raw", mip)
        np.testing.assert_array_equal(by_tensorstore(tmp_path / "pc", mip), truth)
        for channel in range(4):
            ours = ix.open_image(target, mip=mip, channel=channel)
            np.testing.assert_array_equal(ours.values, truth[..., channel].T)
            np.testing.assert_array_equal(ours[3:4, 5:6, 7:8].values, truth[7:8, 5:6, 3:4, channel].T)
    wide = ARRAYS["grey"].astype(np.uint16)
    with pytest.raises(ix.errors.OptionError, match="encoding='png' must be 'raw' for uint16"):
        ix.export(wide, f"precomputed://{tmp_path}/x", encoding="png")


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
def test_colours_that_tensorstore_wrote_are_read(tmp_path, encoding):
    x = np.linspace(0, 255, 32 * 24 * 6).reshape(32, 24, 6, 1)
    values = np.concatenate([x, 255 - x, 0 * x + 40], axis=-1).astype(np.uint8)
    metadata = {"type": "image", "data_type": "uint8", "num_channels": 3}
    scale = {"size": [32, 24, 6], "resolution": [8, 8, 40], "chunk_size": [16, 16, 4], "encoding": encoding}
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"file://{tmp_path}/",
        "multiscale_metadata": metadata,
        "scale_metadata": {**scale, **({"jpeg_quality": 95} if encoding == "jpeg" else {})},
    }
    store = tensorstore.open(spec, create=True).result()
    store.write(values).result()
    truth = store.read().result()
    for channel in range(3):
        ours = ix.open_image(f"precomputed://{tmp_path}", channel=channel).values
        assert np.abs(ours.astype(int) - truth[..., channel].T).max() <= (3 if encoding == "jpeg" else 0)
        assert np.abs(ours.astype(int) - values[..., channel].T).max() <= (20 if encoding == "jpeg" else 0)


@pytest.mark.parametrize(("name", "encoding"), [("rgba", "raw"), ("ids", "compressed_segmentation")])
def test_gzip_keeps_the_voxels_and_is_smaller(tmp_path, name, encoding):
    array = ARRAYS[name]
    for gzip in (False, True):
        ix.export(array, f"precomputed://{tmp_path}/{gzip}", encoding=encoding, gzip=gzip, chunks=(4, 16, 16), levels=2)
    sizes = [sum(f.stat().st_size for f in (tmp_path / str(g)).rglob("*")) for g in (False, True)]
    assert sizes[1] < sizes[0]
    assert all(f.suffix == ".gz" for f in (tmp_path / "True").rglob("*-*"))
    for mip in (0, 1):
        plain, packed = (by_cloudvolume(tmp_path / str(g), mip) for g in (False, True))
        np.testing.assert_array_equal(packed, plain)
    if name == "ids":
        np.testing.assert_array_equal(ix.open_segmentation(f"precomputed://{tmp_path}/True").values, array.values)


def test_voxels_that_start_like_a_gzip_header_are_kept(tmp_path):
    array = volume(np.tile(np.array([0x1F, 0x8B, 8, 0], np.uint8), (4, 8, 4)), (8, 8, 40), layer_type="image")
    ix.export(array, f"precomputed://{tmp_path}/pc", chunks=(4, 8, 8), levels=2)
    np.testing.assert_array_equal(by_cloudvolume(tmp_path / "pc")[..., 0].T, array.values)
    assert by_cloudvolume(tmp_path / "pc", 1).shape[:3] == (8, 4, 4)


def test_gzip_changes_the_identity_of_a_call_only_for_uncompressed_encodings(tmp_path):
    ix.export(IMAGE, f"precomputed://{tmp_path}/pc", gzip=True)
    with pytest.raises(ix.errors.TargetExistsError, match="gzip: True there, False here"):
        ix.export(IMAGE, f"precomputed://{tmp_path}/pc")
    for encoding in ("png", "jpeg"):
        plan = ix.plan_export(IMAGE, f"precomputed://{tmp_path}/{encoding}", encoding=encoding)
        assert "gzip" not in plan.target.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gzip": True, "encoding": "jpeg"}, "gzip=True is for the encodings raw and compressed_segmentation; 'jpeg'"),
        ({"gzip": "yes"}, "gzip='yes' must be True .* or False"),
        ({"quality": 80}, "quality=80 is an option of JPEG, but encoding='raw' is lossless.*encoding='jpeg'"),
        ({"quality": 80, "encoding": "png"}, "encoding='png' is lossless"),
        ({"quality": 0, "encoding": "jpeg"}, "from 1 to 100"),
        ({"quality": True, "encoding": "jpeg"}, "from 1 to 100"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, options, message):
    with pytest.raises(ix.errors.OptionError, match=message):
        ix.plan_export(IMAGE, f"precomputed://{tmp_path}/pc", **options)
