"""Boxes and exports that are implausibly large are refused before anything of their size is allocated."""

from __future__ import annotations

import json

import pytest

import imageryxr as ix
from tests.support.export_jobs import Computed, array_of
from tests.support.processes import run_python

FAR = [(10**6, 10**6, 10**4), (10**8, 10**8, 10**7), (10**12, 10**12, 10**11)]
LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 * 10**9,) * 2); "


@pytest.fixture(autouse=True)
def _limited_memory():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (6 * 10**9, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("high", FAR)
def test_a_box_far_beyond_its_volume_is_refused(sample, high):
    box = ix.BBox((0, 0, 0), high, resolution=(8, 8, 40))
    size = " × ".join(f"{n:,}" for n in high)
    em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
    for way in (
        lambda: ix.open_image(sample.image, bbox=box),
        lambda: ix.crop(em, box),
        lambda: ix.crop(em.chunk(), box),
        lambda: ix.align(em, seg, bbox=box),
    ):
        with pytest.raises(ix.errors.BoxError, match=f"would be {size} voxels.* has 1,024 × 1,024 × 64"):
            way()


def test_a_very_long_row_of_voxels_is_refused(sample):
    with pytest.raises(ix.errors.BoxError, match="500,000,000 × 1 × 1 voxels"):
        ix.open_image(sample.image, bbox=ix.BBox((4096, 2100, 110), (500_004_096, 2101, 111), resolution=(8, 8, 40)))


def test_boxes_that_extend_beyond_a_volume_and_large_volumes_work(sample, tmp_path):
    out = ix.BBox((0, 0, 0), (50_000, 50_000, 2_000), resolution=(8, 8, 40))
    assert ix.open_image(sample.image, bbox=out).shape == (2_000, 50_000, 50_000)
    dot = array_of(Computed((1, 1, 1)))
    assert ix.crop(dot, ix.BBox((0, 0, 0), (3_000, 3_000, 9), resolution=(8, 8, 40))).shape == (9, 3_000, 3_000)
    petavoxel = array_of(Computed((100_000, 100_000, 100_000)))
    shards = {"chunks": (32, 128, 128), "shards": (64, 512, 512)}
    assert ix.plan_export(petavoxel, tmp_path / "o.ome.zarr", memory="40 GB", workers=2, **shards).tasks > 10**7


@pytest.mark.parametrize("target", ["o.ome.zarr", "precomputed://{}/pc"])
def test_too_many_regions_are_refused(tmp_path, target):
    array = array_of(Computed((10_000, 1_000_000, 1_000_000)))
    place = target.format(tmp_path) if "//" in target else tmp_path / target
    with pytest.raises(
        ix.errors.OptionError,
        match=r"1,000,000 × 1,000,000 × 10,000 voxels and needs [0-9,]+ tasks.*: give .*a smaller box",
    ):
        ix.plan_export(array, place, workers=2, memory="4 GB")


@pytest.mark.slow
def test_a_job_file_with_too_many_zeros_is_refused(tmp_path, sample):
    job = tmp_path / "job.toml"
    job.write_text(
        f"target = '{tmp_path}/o.ome.zarr'\nimage = '{sample.image}'\nbbox = [[0, 0, 0], [1e11, 1e11, 1e10]]\n"
    )
    code = LIMITED + f"sys.argv = ['imageryxr', 'export', '--config', {str(job)!r}, '--json']; "
    code += "from imageryxr.cli.main import main; main()"
    done = run_python("-c", code, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "check the zeros" in json.loads(done.stdout)["message"]
