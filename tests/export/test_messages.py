"""Messages of exports name the parameters, sources and targets as the caller gave them."""

from __future__ import annotations

import os

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import imageryxr as ix
from tests.support.command_line import run


@pytest.fixture
def opened(sample):
    """Return the image and the segmentation of a small box, aligned, as a user opens them."""
    box = ix.BBox.around((4600, 2560, 130), (64, 48, 8), resolution=(8, 8, 40))
    return ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=box)


def test_the_refusal_of_another_call_names_its_sources(tmp_path, sample, opened):
    picture = ix.overlay(opened.image, opened.segmentation)
    ix.export(picture, tmp_path / "o.ome.zarr")
    with pytest.raises(ix.errors.TargetExistsError) as caught:
        ix.export(picture.copy(data=picture.data + np.uint8(0)), tmp_path / "o.ome.zarr")
    message = str(caught.value)
    assert "in memory" not in message
    names = [f"{sample.image}, mip 0", f"{sample.segmentation}, mip 0"]
    assert f"{' and '.join(names)} there" in message
    assert f"a dask array of {' and '.join(names)} here" in message
    assert message.count("[") == message.count("]")
    # the same sources with another box
    for part in (slice(0, 4), slice(None, None, 2)):
        with pytest.raises(ix.errors.TargetExistsError, match=r"\(box: ") as caught:
            ix.export(picture.isel(z=part), tmp_path / "o.ome.zarr")
        assert sample.image not in str(caught.value)


def test_the_refusal_of_another_call_names_a_users_dask_array(tmp_path, opened):
    ix.export(opened.image, tmp_path / "o.ome.zarr")
    foreign = xr.zeros_like(opened.image.load()).copy(data=da.zeros(opened.image.shape, dtype=np.uint8, chunks=16))
    with pytest.raises(ix.errors.TargetExistsError, match="a dask array here"):
        ix.export(foreign, tmp_path / "o.ome.zarr")


def test_a_message_lists_some_of_many_sources_and_counts_the_others():
    from imageryxr.export.commit.conflicts import describe_difference

    names = [f"precomputed://https://example.org/a-long-name-of-a-layer-{i}, mip 0" for i in range(6)]
    message = describe_difference({"sources": names}, {"sources": names[:1]})
    assert message == f"sources: {names[0]}, {names[1]}, {names[2]} and 3 more there, {names[0]} here"


@pytest.mark.parametrize(("target", "zarr"), [("o.ome.zarr", False), ("{z}.png", True), ("o.tif", True)])
def test_advice_on_memory_fits_the_target(tmp_path, opened, target, zarr):
    plan = ix.plan_export(opened.image, tmp_path / target, memory="1 MB", workers=2)
    with pytest.raises(ix.errors.OptionError) as caught:
        plan.validate()
    assert ("export to .ome.zarr" in str(caught.value)) == zarr
    assert "more memory" in str(caught.value)


def test_errors_in_a_job_file_name_its_keys(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text("tarjet = 'o.zarr'\n")
    done = run("export", "--config", job)
    assert done.returncode == 2
    assert ", json," in done.stderr
    assert "as-json" not in done.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_an_unwritable_folder_is_named_as_given(opened):
    with pytest.raises(ix.errors.TargetError) as caught:
        ix.save_figure(Image.new("L", (600, 600)), "/proc/x.png")
    message = str(caught.value)
    assert message.startswith("/proc/x.png cannot be written")
    assert ".x-" not in message
    assert "choose another" in message
    with pytest.raises(ix.errors.TargetError, match=r"no file can be created in the folder /proc .*choose another"):
        ix.export(opened.image, "/proc/foo/o.ome.zarr")


@pytest.mark.parametrize("target", ["o.ome.zarr", "memory://"])
def test_square_for_a_volume_is_an_error(tmp_path, opened, target):
    place = target if "://" in target else tmp_path / target
    with pytest.raises(ix.errors.OptionError, match="square=True is for slices.*volume"):
        ix.plan_export(opened.image, place, square=True)


def test_pixels_that_are_not_square_warn_once(tmp_path, opened):
    with pytest.warns(ix.ImageryWarning, match=r"across y are 8 × 40 nm.*square=True") as caught:
        ix.plan_export(opened.image, tmp_path / "{y}.png")
    assert len(caught) == 1
    for square in (True, False):  # an explicit `square` does not warn
        ix.plan_export(opened.image, tmp_path / "{y}.png", square=square)
    ix.plan_export(opened.image, tmp_path / "{z}.png")


def test_plan_and_report_contain_equal_counts(tmp_path, opened):
    call = (opened.image, tmp_path / "o.ome.zarr")
    options = {"chunks": (4, 32, 32), "levels": 2}
    plan = ix.plan_export(*call, **options)
    report = ix.export(*call, **options)
    assert (report.regions, report.tasks) == (len(plan.regions), plan.tasks)
    assert plan.tasks > len(plan.regions)
    assert f"{plan.tasks} tasks ({len(plan.regions)} region" in repr(report)
    again = ix.export(*call, **options)
    assert (again.regions, again.tasks, again.skipped) == (0, 0, plan.tasks)
    assert f"{plan.tasks} tasks were done before" in repr(again)


def test_a_plan_uses_the_terms_of_its_target(tmp_path, opened):
    message = repr(ix.plan_export(opened.image, tmp_path / "o.tif", axis="y", square=False, workers=1))
    assert "axis=y" in message
    assert "regions of up to" in message
    assert message.endswith("included; 1 thread")
    assert "400 MB for the process itself included" in message
    plan = ix.plan_export(opened.image, tmp_path / "o.ome.zarr", chunks=(1, 8, 8), memory="1 MB")
    assert "1 region of 64 × 48 × 8 voxels" in repr(ix.plan_export(opened.image, tmp_path / "o.ome.zarr"))
    with pytest.raises(ix.errors.OptionError, match="400 MB of that are the process itself"):
        plan.validate()
    ix.export(opened.image, tmp_path / "o.tif", axis="y")
    with pytest.raises(ix.errors.TargetExistsError, match="axis: y there, z here"):
        ix.export(opened.image, tmp_path / "o.tif")


def test_a_dataset_as_input_is_an_error_with_advice(tmp_path, opened):
    with pytest.raises(ix.errors.LayerError, match=r"not a Dataset; give one variable, or draw it first"):
        opened.imagery.export(tmp_path / "o.zarr")
    with pytest.raises(AttributeError, match=r"needs an array.*ds\['image'\]\.imagery\.to_pil"):
        opened.imagery.to_pil()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        opened.imagery.nothing()


def test_failed_exports_to_memory_do_not_claim_to_be_resumable():
    from tests.support.export_jobs import Computed, array_of

    report = ix.export(array_of(Computed(fail_above=0)), "memory://", on_error="collect", retries=0)
    assert report.failed
    assert report.result is None
    assert repr(report).endswith("No partial result is kept for an array in memory.")


def test_a_picture_file_without_a_field_is_refused_with_the_function_for_one_slice(tmp_path, opened, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = opened.image.isel(z=[0])
    with pytest.raises(ix.errors.OptionError, match="for one slice write save_figure") as caught:
        ix.export(array, "x.png")
    advice = str(caught.value).partition("for one slice write ")[2]
    assert eval(advice, {"save_figure": ix.save_figure, "array": array}).exists()
    with pytest.raises(ix.errors.OptionError) as caught:
        ix.export(array, "s3://bucket/x.png")  # save_figure writes local files only
    assert "save_figure" not in str(caught.value)
    place = ["--center", "4600,2560,130", "--size", "32,24", "--resolution", "8,8,40"]
    done = run("export", "y.png", "--image", opened.image.attrs["source"], *place)
    assert "for one slice write imageryxr figure y.png" in done.stderr
