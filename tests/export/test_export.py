"""Exports, read with other libraries; a result is complete or does not exist."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05 import Image as OmeImage
from PIL import Image

import imageryxr as ix
from tests.conftest import volume
from tests.support.volumes import FINE, IMAGE, as_source


def files_in(folder):
    """Return the files below a folder with their content, without manifests and journals."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "manifest" not in str(p)}


def names_in(folder):
    return sorted(n for n in os.listdir(folder) if "manifest" not in n and n != ".imageryxr")


@pytest.fixture
def picture():
    return ix.overlay(as_source(IMAGE), as_source(FINE), alpha=0.4, outline=2)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_a_png_stack_has_the_slices_along_any_axis(tmp_path, picture, axis):
    report = ix.export(picture.drop_attrs(), tmp_path / f"{axis}{{{axis}:03d}}.png", square=False)
    n = picture.sizes[axis]
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == n
    assert names_in(tmp_path) == [f.name for f in files]
    assert report.bytes_written == sum(f.stat().st_size for f in files)
    whole = picture.values
    for i, file in enumerate(files):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), np.take(whole, i, axis="zyx".index(axis)))


@pytest.mark.parametrize("axis", ["y", "x"])
def test_a_stack_along_another_axis_than_its_outlines_warns(tmp_path, picture, axis):
    with pytest.warns(ix.ImageryWarning, match=f"draw them with axis='{axis}'"):
        ix.plan_export(picture, tmp_path / f"{{{axis}}}.png", square=False)
    ix.plan_export(
        ix.overlay(as_source(IMAGE), as_source(FINE), outline=2, axis=axis), tmp_path / f"{{{axis}}}.png", square=False
    )


def test_png_files_are_named_by_nm_and_have_grey_values(tmp_path):
    deep = volume(np.arange(24, dtype=np.uint16).reshape(2, 3, 4) * 2000, (8, 8, 40), (0, 0, 5))
    ix.export(deep, tmp_path / "{z_nm:.0f}.png")
    assert names_in(tmp_path) == ["220.png", "260.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "260.png")), deep.values[1])


@pytest.mark.parametrize("make", ["rgba", "grey", "ids", "foreign"])
def test_omezarr_survives_a_round_trip(tmp_path, picture, make):
    array = {"rgba": picture, "grey": as_source(IMAGE), "ids": as_source(FINE), "foreign": FINE.chunk(z=1, y=13)}[make]
    ix.export(array, tmp_path / "out.ome.zarr", chunks=(2, 16, 16))
    group = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")
    OmeImage.from_zarr(group)
    stored = group["0"][:]
    truth = np.moveaxis(array.values, -1, 0) if make == "rgba" else array.values
    np.testing.assert_array_equal(stored, truth)
    assert len(list(group.array_keys())) > 1
    kind = ix.open_segmentation if make in ("ids", "foreign") else ix.open_image
    back = kind(tmp_path / "out.ome.zarr", **({"channel": 1} if make == "rgba" else {}))
    for dim in "zyx":
        assert back[dim].values == pytest.approx(array[dim].values)
    if make == "ids":
        assert set(np.unique(group["1"][:])) <= set(np.unique(stored))


def test_a_pyramid_keeps_its_lower_corner(tmp_path):
    ramp = volume(np.tile(np.arange(33, dtype=np.float32), (2, 5, 1)), (8, 8, 40), (3, 0, 0))
    ix.export(ramp, tmp_path / "r.zarr", levels=3)
    tree = ix.open_multiscale(tmp_path / "r.zarr")
    for child in tree.children.values():
        level = child["image"]
        corner = level.x.values[0] - level.attrs["resolution"][0] / 2
        assert corner == pytest.approx(24)
        inner = level.isel(x=slice(0, -1))
        assert inner.values[0, 0] == pytest.approx((inner.x.values - 24) / 8 - 0.5)


def test_an_existing_target_is_replaced_only_with_overwrite(tmp_path, picture):
    for target in (tmp_path / "s" / "z{z}.png", tmp_path / "o.ome.zarr"):
        ix.export(picture, target)
        other = ix.to_rgba(IMAGE)
        with pytest.raises(ix.errors.TargetExistsError, match="overwrite=True"):
            ix.export(other, target)
        ix.export(other, target, overwrite=True)
    assert names_in(tmp_path) == ["o.ome.zarr", "s"]


@pytest.mark.parametrize("name", ["z{z}.png", "o.ome.zarr"])
def test_the_previous_result_survives_a_failed_export(tmp_path, picture, name, monkeypatch):
    before = ix.to_rgba(IMAGE)
    ix.export(before, tmp_path / name)
    files = files_in(tmp_path)
    from imageryxr.sources import memory

    calls = []

    def raise_error(self, mip, box):
        calls.append(box)
        raise ix.errors.ChunkReadError("the disk of the source is gone")

    monkeypatch.setattr(memory.MemorySource, "read", raise_error)
    with pytest.raises(ix.errors.ChunkReadError):
        ix.export(picture, tmp_path / name, overwrite=True)
    assert calls
    assert files_in(tmp_path) == files


def test_a_full_disk_is_an_error_and_leaves_no_files(tmp_path, picture, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ix.errors.TargetError, match="disk is full"):
        ix.export(picture, tmp_path / "s" / "z{z}.png")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_plan_writes_nothing(tmp_path, picture):
    plan = ix.plan_export(picture, tmp_path / "z{z:04d}.png")
    assert plan.bytes_to_write == picture.nbytes
    assert sum(r.voxels for r in plan.regions) == picture.size // 4
    assert "regions" in repr(plan)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["z{z}.png", "o.ome.zarr"])
def test_a_failed_rename_is_undone(tmp_path, picture, name, monkeypatch):
    ix.export(ix.to_rgba(IMAGE), tmp_path / name)
    before = files_in(tmp_path)
    rename, left = os.rename, [3 if name.endswith("png") else 1]

    def raise_error(source, target):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.EIO, "input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", raise_error)
    with pytest.raises(ix.errors.TargetError, match="untouched"):
        ix.export(picture, tmp_path / name, overwrite=True)
    assert files_in(tmp_path) == before


def test_other_files_that_match_the_pattern_are_reported(tmp_path, picture):
    for name in ("zebra.png", "z007.png"):
        (tmp_path / name).write_bytes(b"somebody's")
    with pytest.warns(
        ix.ImageryWarning, match=r"1 file beside the 3 of this stack matches its pattern .*z007\.png; remove it"
    ):
        ix.export(picture, tmp_path / "z{z:03d}.png")
    # no slice of the longer stack, which was replaced, is left
    with pytest.warns(
        ix.ImageryWarning, match=r"1 file beside the 2 of this stack matches its pattern .*z007\.png; remove it"
    ):
        ix.export(picture.isel(z=slice(0, 2)), tmp_path / "z{z:03d}.png", overwrite=True)
    assert names_in(tmp_path) == ["z000.png", "z001.png", "z007.png", "zebra.png"]


@pytest.mark.parametrize("progress", [False, True])
def test_repeated_exports_do_not_accumulate_threads(tmp_path, progress):
    """Otherwise a process that makes many small exports would run out of threads."""
    counts = []
    for number in range(4):
        ix.export(as_source(IMAGE), tmp_path / f"{number}.zarr", levels=1, progress=progress)
        counts.append(threading.active_count())
    assert counts[1:] == counts[1:2] * 3
