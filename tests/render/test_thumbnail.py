"""Thumbnails, contrast limits and plots read few voxels and have the right coordinates."""

from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.ops.multiscale import coarsest_level_for, levels_of
from imageryxr.sources.precomputed import source
from tests.conftest import no_compute, volume
from tests.support.volumes import FINE, IMAGE, as_source


@pytest.fixture
def reads(monkeypatch):
    """Record all reads of precomputed layers as (mip, voxels)."""
    requested = []
    original = source.PrecomputedSource.read
    monkeypatch.setattr(
        source.PrecomputedSource,
        "read",
        lambda self, mip, box: requested.append((mip, box.voxels)) or original(self, mip, box),
    )
    return requested


def both(sample):
    return ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*requested ids are not in the data:imageryxr.errors.MissingIdsWarning")
def test_levels_cover_the_box_of_the_array(sample):
    em, seg = both(sample)
    with no_compute():
        levels = levels_of(em)
        moved = levels_of(em.assign_coords(x=em.x + 100))
        chosen = levels_of(ix.select_ids(ix.crop(seg, ix.grid_of(seg).bbox), [5]))
    for mip, level in enumerate(levels):
        assert level.identical(ix.open_image(sample.image, mip=mip))
        np.testing.assert_allclose(moved[mip].x.values, level.x.values + 100)
    assert [level.attrs["mip"] for level in chosen] == [0, 1]
    part = chosen[1].isel(z=[9], y=slice(0, 30), x=slice(0, 30)).values
    truth = ix.open_segmentation(sample.segmentation, mip=1).isel(z=[9], y=slice(0, 30), x=slice(0, 30)).values
    np.testing.assert_array_equal(part, np.where(truth == 5, truth, 0))
    assert levels_of(IMAGE)[0] is IMAGE
    assert levels_of(ix.regrid(em, (5, 5, 40)))[0].sizes["x"] > 1024


@pytest.mark.parametrize(
    ("resolution", "mip"),
    [((8, 8, 40), 0), ((4, 4, 4), 0), ((16, 16, 40), 1), ((20, 31, 40), 1), ((32, 32, 80), 2), ((500, 500, 500), 2)],
)
def test_the_coarsest_sufficient_level_is_chosen(sample, resolution, mip):
    assert coarsest_level_for(ix.open_image(sample.image), resolution).attrs["mip"] == mip


def test_contrast_limits_are_percentiles_of_the_coarsest_level(sample, reads):
    em, seg = both(sample)
    low, high = ix.contrast_limits(em, (2, 95))
    assert {mip for mip, _ in reads} == {2}
    values = ix.open_image(sample.image, mip=2).values
    assert (low, high) == tuple(np.percentile(values[values != 0], (2, 95)))
    part = ix.crop(em, ix.BBox.around((4600, 2560, 130), (256, 256, 2), resolution=(8, 8, 40)))
    box = ix.grid_of(part).bbox
    inner = ix.open_image(sample.image, mip=2, bbox=box).values
    assert ix.contrast_limits(part) == tuple(np.percentile(inner[inner != 0], (1, 99)))
    with pytest.raises(ix.errors.LayerError, match="ids"):
        ix.contrast_limits(seg)
    for bad in ((99, 1), (1,), "ab", (-1, 50)):
        with pytest.raises(ix.errors.OptionError, match="percentiles"):
            ix.contrast_limits(em, bad)
    for wrong in (None, "em", np.ones((2, 3, 4)), ix.align(em, seg)):
        with pytest.raises(ix.errors.LayerError, match="give an xarray.DataArray|give one variable|open it first"):
            ix.contrast_limits(wrong)
    with pytest.raises(ix.errors.LayerError, match="0 everywhere"):
        ix.contrast_limits(IMAGE * 0)
    for dim in "zyx":
        for layer in (IMAGE, IMAGE.chunk(), ix.open_image(IMAGE)):
            one = IMAGE.isel({dim: 1}).values
            assert ix.contrast_limits(layer.isel({dim: 1})) == tuple(np.percentile(one[one != 0], (1, 99)))
    flat = volume(np.full((1, 4, 4), 7.0, np.float32), layer_type="image")
    assert ix.contrast_limits(flat) == (6.5, 7.5)


def test_a_thumbnail_reads_few_voxels(sample, reads):
    em, seg = both(sample)
    assert em.imagery.thumbnail().size == (256, 256)
    assert reads == [(2, 256 * 256)]
    reads.clear()
    picture = seg.imagery.thumbnail(64)
    assert picture.size == (64, 64)
    assert picture.mode == "RGBA"
    assert sum(v for _, v in reads) <= 256 * 256
    reads.clear()
    assert ix.align(em, seg).imagery.thumbnail(100).size == (100, 100)
    assert sum(v for _, v in reads) <= 1024 * 1024
    assert max(mip for mip, _ in reads) > 0


@pytest.mark.parametrize(
    "da",
    [
        IMAGE,
        FINE,
        FINE == 5,
        volume(np.random.default_rng(0).normal(size=(2, 40, 50)).astype("f4"), layer_type="image"),
        IMAGE.isel(z=1),
    ],
)
def test_every_kind_of_object_has_a_thumbnail(da):
    assert max(ix.thumbnail(da, 40).size) <= 40


def test_a_thumbnail_shows_the_middle():
    values = np.zeros((3, 64, 64), np.uint8)
    values[1, :32] = 200
    shown = np.asarray(ix.thumbnail(volume(values, layer_type="image"), 64).convert("L"))
    assert shown[:32].min() == 200
    assert shown[32:].max() == 0


def test_reprs_of_arrays_compute_nothing(sample, reads):
    em, seg = both(sample)
    tree = ix.open_neuroglancer({"layers": [{"type": "image", "name": "em", "source": sample.image}]}, allow_local=True)
    for obj in (em, seg, ix.align(em, seg), tree):
        assert repr(obj)
        assert obj._repr_html_()
    assert "em: image, uint8, 1,024 × 1,024 × 64 voxels of 8 × 8 × 40 nm" in repr(tree.imagery)
    assert reads == []
    page = tree.imagery._repr_html_()
    assert "data:image/png;base64," in page
    assert sum(v for _, v in reads) <= 512 * 512
    assert "without images" in repr(xr.DataTree().imagery)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("unit", ["µm", "nm"])
def test_a_plot_has_physical_coordinates(axis, unit):
    fig, ax = plt.subplots()
    drawn = IMAGE.isel({axis: [1]}).imagery.plot(ax, unit=unit)
    rows, columns = (d for d in "zyx" if d != axis)
    factor = 1e-3 if unit == "µm" else 1
    left, right, bottom, top = drawn.get_extent()
    step = {"x": 8, "y": 8, "z": 40}
    for low, high, dim in ((left, right, columns), (top, bottom, rows)):
        assert low == pytest.approx((float(IMAGE[dim][0]) - step[dim] / 2) * factor)
        assert high == pytest.approx((float(IMAGE[dim][-1]) + step[dim] / 2) * factor)
    # What is drawn at a voxel's coordinates lies on that voxel.
    values = drawn.get_array()
    assert values.shape[:2] == (IMAGE.sizes[rows], IMAGE.sizes[columns])
    assert ax.get_xlabel() == f"{columns} ({unit})"
    plt.close(fig)


@pytest.mark.slow
def test_every_kind_of_array_can_be_plotted(tmp_path):
    slice_ = {"z": [1]}
    ds = xr.Dataset({"image": IMAGE, "segmentation": FINE}).isel(slice_)
    fig, axes = plt.subplots(1, 5)
    for ax, obj in zip(
        axes,
        (IMAGE.isel(slice_), FINE.isel(slice_), (FINE == 5).isel(slice_), ix.overlay(IMAGE, FINE).isel(slice_), ds),
        strict=True,
    ):
        drawn = obj.imagery.plot(ax, scale_bar=True)
        assert np.asarray(drawn.get_array()).dtype == np.uint8
        ax.plot([float(IMAGE.x[5]) / 1000], [float(IMAGE.y[5]) / 1000], "o")
    np.testing.assert_array_equal(axes[3].images[0].get_array(), ix.overlay(IMAGE, FINE).values[1])
    np.testing.assert_array_equal(axes[4].images[0].get_array(), ix.overlay(IMAGE, FINE).values[1])
    fig.savefig(tmp_path / "a.svg")
    fig.savefig(tmp_path / "a.pdf")
    assert "<image" in (tmp_path / "a.svg").read_text()
    plt.close(fig)
    with pytest.raises(ix.errors.OptionError, match="3 slices"):
        IMAGE.imagery.plot()
    with pytest.raises(ix.errors.OptionError, match="unit"):
        IMAGE.isel(slice_).imagery.plot(unit="mm")
    plt.close("all")


def test_the_scale_bar_of_a_plot_has_the_length_in_its_label():
    fig, ax = plt.subplots()
    as_source(IMAGE).isel(z=[1]).imagery.plot(ax, scale_bar=True)
    (bar,) = ax.patches
    assert ax.texts[0].get_text() == "100 nm"
    assert bar.get_width() == pytest.approx(0.1)
    left, right, bottom, top = ax.images[0].get_extent()
    assert left < bar.get_x() < bar.get_x() + bar.get_width() < right
    assert top < bar.get_y() < bottom
    plt.close(fig)


@pytest.mark.slow
def test_importing_the_package_does_not_load_matplotlib():
    code = "import imageryxr, sys; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_thumbnail_of_a_volume_without_coarse_levels_reads_few_voxels(tmp_path, reads):
    from cloudvolume import CloudVolume

    layers = []
    for kind, dtype in (("image", "uint8"), ("segmentation", "uint64")):
        info = CloudVolume.create_new_info(
            1, kind, dtype, "raw", [4, 4, 40], [0, 0, 0], [200_000, 180_000, 5000], chunk_size=[128, 128, 16]
        )
        CloudVolume(f"file://{tmp_path}/{kind}", info=info).commit_info()
        layers.append({"type": kind, "name": kind, "source": f"file://{tmp_path}/{kind}"})
    em = ix.open_image(tmp_path / "image", missing="fill")
    assert em.imagery.thumbnail(100).size == (100, 100)
    assert sum(v for _, v in reads) <= 400 * 400
    reads.clear()
    with pytest.raises(ix.errors.LayerError, match="0 everywhere"):
        ix.contrast_limits(em)
    assert sum(v for _, v in reads) <= 1 << 24
    reads.clear()
    tree = xr.DataTree.from_dict(
        {"/em": em.to_dataset(), "/cells": ix.open_segmentation(tmp_path / "segmentation", missing="fill").to_dataset()}
    )
    assert max(tree.imagery.thumbnail(100).size) == 100
    assert sum(v for _, v in reads) <= 2 * 401 * 401
