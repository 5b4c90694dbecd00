"""An export never writes onto its own sources, however their paths are written."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from dask import delayed

import imageryxr as ix
from imageryxr.errors import TargetExistsError
from imageryxr.export.commit.source_overlap import bucket_path
from tests.conftest import volume

RNG = np.random.default_rng(4)
GREY = RNG.integers(1, 255, (8, 32, 32), dtype=np.uint8)
IDS = RNG.integers(1, 5, (8, 32, 32), dtype=np.uint64)


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file below a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def written_volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a volume in each format, and a segmentation."""
    folder = tmp_path_factory.mktemp("written")
    small = {"chunks": (4, 16, 16), "levels": 2}
    ix.export(volume(GREY), f"precomputed://file://{folder}/em", **small)
    ix.export(volume(IDS, layer_type="segmentation"), f"precomputed://file://{folder}/seg", **small)
    ix.export(volume(GREY), f"{folder}/em.ome.zarr", **small)
    for path in folder.glob("*.manifest*"):
        path.unlink()
    return folder


@pytest.fixture
def data(written_volumes: Path, tmp_path: Path) -> Path:
    """Return a copy of the volumes."""
    return Path(shutil.copytree(written_volumes, tmp_path / "data"))


def check_refused(array: xr.DataArray, target: str | os.PathLike[str], folder: Path, **options: object) -> str:
    """Check that exports with and without `overwrite` fail and change no file; return the message."""
    before = contents(folder)
    for overwrite in (True, False):
        with pytest.raises(TargetExistsError, match="a source of the exported array") as error:
            ix.export(array, target, overwrite=overwrite, **options)
        with pytest.raises(TargetExistsError, match="a source of the exported array"):
            ix.plan_export(array, target, overwrite=overwrite, **options)
    assert contents(folder) == before
    return str(error.value)


SPELLINGS = {
    "precomputed": "precomputed://{data}/em",
    "file": "precomputed://file://{data}/em",
    "slash": "precomputed://file://{data}/em/",
    "slashes": "precomputed://file://{data}//em//",
    "dots": "precomputed://file://{data}/other/../em",
    "dot": "precomputed://{data}/./em/.",
    "long name": "neuroglancer-precomputed://{data}/em",
    "contains": "precomputed://{data}",
    "inside": "precomputed://{data}/em/new",
    "of its levels": "precomputed://{data}/em/8_8_40",
    "one file": "{data}/em/out.tif",
    "video": "{data}/em/new/out.mp4",
    "pictures": "{data}/em/stack/z{{z:04d}}.png",
    "pictures beside its info": "{data}/em/z{{z:04d}}.tif",
    "zarr": "{data}/em/labels/out.ome.zarr",
}


@pytest.mark.fast_forms(10)
@pytest.mark.parametrize("target", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("mip", [0, 1])
def test_a_source_is_refused_as_a_target_however_its_path_is_written(data, target, mip):
    em = ix.open_image(f"precomputed://file://{data}/em", mip=mip)
    check_refused(em, target.format(data=data), data)


def test_relative_paths_home_folders_and_path_objects_are_recognised_as_a_source(data, monkeypatch):
    em = ix.open_image(f"precomputed://file://{data}/em")
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("HOME", str(data))
    for target in ("precomputed://data/em", "precomputed://~/em", "precomputed://./data/../data/em"):
        check_refused(em, target, data)
    zarred = ix.open_image(f"{data}/em.ome.zarr")
    for target in (
        "~/em.ome.zarr",
        Path("data/em.ome.zarr"),
        "file://" + str(data / "em.ome.zarr"),
        "zarr://~/em.ome.zarr/",
    ):
        check_refused(zarred, target, data)


def test_symbolic_links_in_sources_and_in_targets_are_followed(data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "em-link").symlink_to(data / "em")
    direct = ix.open_image(f"precomputed://file://{data}/em")
    linked = ix.open_image(f"precomputed://file://{tmp_path}/link/em")
    check_refused(direct, f"precomputed://{tmp_path}/link/em", data)
    check_refused(direct, f"precomputed://{tmp_path}/em-link", data)
    check_refused(direct, f"{tmp_path}/em-link/z{{z}}.png", data)
    check_refused(linked, f"precomputed://{data}/em", data)
    check_refused(linked, f"precomputed://{tmp_path}/em-link/inside", data)


def test_two_names_of_one_folder_are_one_place(data, monkeypatch):
    """On case-insensitive disks and bind mounts, two names have the same device and inode numbers."""
    real = os.stat

    def stat(path, *args, **options):
        return real(str(path).replace(f"{data}/EM", f"{data}/em"), *args, **options)

    em = ix.open_image(f"precomputed://file://{data}/em")
    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(TargetExistsError, match="a source"):
        ix.export(em, f"precomputed://{data}/EM", overwrite=True)
    with pytest.raises(TargetExistsError, match="a source"):
        ix.export(em, f"precomputed://{data}/EM/inside", overwrite=True)


def test_every_layer_of_a_picture_is_a_source(data):
    em = ix.open_image(f"precomputed://file://{data}/em")
    seg = ix.open_segmentation(f"precomputed://file://{data}/seg")
    picture = ix.overlay(em, seg, outline=1).isel(z=slice(0, 4))
    for name in ("em", "seg"):
        assert name in check_refused(picture, f"precomputed://{data}/{name}", data)


def test_groups_of_a_zarr_overlap_with_it(data):
    ix.export(volume(IDS, layer_type="segmentation"), f"{data}/parts/labels/cells.ome.zarr", levels=1)
    cells = ix.open_segmentation(f"{data}/parts/labels/cells.ome.zarr")
    check_refused(cells, f"precomputed://{data}/parts/labels", data)
    check_refused(cells, f"{data}/parts/labels/cells.ome.zarr/labels/more.zarr", data)
    beside = ix.export(cells, f"{data}/parts/labels/cells2.ome.zarr", levels=1)
    assert not beside.failed


def test_targets_next_to_a_source_are_written(data):
    em = ix.open_image(f"precomputed://file://{data}/em")
    before = contents(data / "em")
    for target in ("precomputed://{}/em2", "{}/z{{z:02d}}.png", "{}/out.tif", "{}/em.zarr", "{}/stack/em/z{{z}}.png"):
        for _ in range(2):
            ix.export(em, target.format(data), overwrite=True)
    assert contents(data / "em") == before


def test_a_stack_whose_pattern_leads_into_a_source_is_refused(data):
    (data / "0").mkdir()
    (data / "em").rename(data / "0" / "em")
    em = ix.open_image(f"precomputed://file://{data}/0/em")
    check_refused(em, f"{data}/{{z}}/em/a.png", data)
    assert ix.export(em, f"{data}/{{z}}/a.png").regions


def labelled_array(values: object) -> xr.DataArray:
    coords = ix.Grid(GREY.shape, (8, 8, 40), (0, 0, 0)).coords()
    return xr.DataArray(values, dims=("z", "y", "x"), coords=coords)


def test_dask_arrays_from_files_are_sources(data):
    zarr.save_array(str(data / "own.zarr"), GREY)
    raw = np.memmap(data / "own.tif", GREY.dtype, "w+", shape=GREY.shape)
    raw[:] = GREY
    raw.flush()
    target = str(data / "own.zarr")
    check_refused(labelled_array(da.from_zarr(target)), target, data)
    check_refused(labelled_array(da.from_array(zarr.open_array(target, mode="r"), chunks=16)) + 1, target, data)
    check_refused(labelled_array(raw), str(data / "own.tif"), data)
    check_refused(labelled_array(np.asarray(raw)), str(data / "own.tif"), data)


def test_files_opened_by_xarray_are_sources(data):
    labelled_array(GREY).to_dataset(name="em").to_zarr(data / "x.zarr")
    for chunks in ({}, {"z": 2}, None):
        opened = xr.open_zarr(data / "x.zarr", chunks=chunks).em
        for array in (opened, opened.isel(z=slice(1, 4)), opened.chunk({"z": 1}).isel(x=slice(2, 9)) + np.uint8(1)):
            check_refused(array, str(data / "x.zarr"), data)
    ours = xr.open_dataset(f"precomputed://file://{data}/em", engine="imageryxr", chunks={})
    check_refused(next(iter(ours.data_vars.values())), f"precomputed://{data}/em", data)


def test_files_that_tasks_read_are_sources(data):
    import tifffile

    stack = data / "stack"
    stack.mkdir()
    for z, plane in enumerate(GREY):
        tifffile.imwrite(stack / f"z{z}.tif", plane)
    names = sorted(stack.glob("*.tif"))
    planes = [da.from_delayed(delayed(tifffile.imread)(str(n)), (32, 32), np.uint8) for n in names]
    check_refused(labelled_array(da.stack(planes)), f"{stack}/z{{z}}.tif", data)
    blocks = da.map_blocks(
        lambda block_info=None: tifffile.imread(names[block_info[None]["chunk-location"][0]])[None],
        chunks=((1,) * 8, (32,), (32,)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8),
    )  # fmt: skip
    check_refused(labelled_array(blocks), f"{stack}/z{{z}}.tif", data)


def test_hard_links_are_the_same_file(data):
    raw = np.memmap(data / "own.bin", GREY.dtype, "w+", shape=GREY.shape)
    raw[:] = GREY
    raw.flush()
    os.link(data / "own.bin", data / "z3.png")
    (data / "out.tif").symlink_to(data / "own.bin")
    check_refused(labelled_array(raw), f"{data}/z{{z}}.png", data)
    check_refused(labelled_array(raw), f"{data}/out.tif", data)
    (data / "y3.png").symlink_to(data / "own.bin")
    check_refused(labelled_array(raw), f"{data}/y{{y}}.png", data, square=False)


def test_arrays_in_memory_have_no_source(data):
    em = ix.open_image(f"precomputed://file://{data}/em", mip=1).load()
    assert ix.plan_export(em, f"precomputed://{data}/em", overwrite=True).sources == ()


def test_a_plan_lists_its_sources(data):
    em = ix.open_image(f"precomputed://file://{data}/em")
    seg = ix.open_segmentation(f"precomputed://file://{data}/seg")
    plan = ix.plan_export(ix.overlay(em, seg), f"{data}/z{{z}}.png")
    assert sorted(plan.sources) == [f"file://{data}/em", f"file://{data}/seg"]


def test_the_command_line_refuses_to_export_onto_a_source(data):
    from typer.testing import CliRunner

    from imageryxr.cli.main import app

    before = contents(data)
    done = CliRunner().invoke(
        app, ["export", f"precomputed://file://{data}/em", f"precomputed://{data}/em", "--overwrite"]
    )
    assert done.exit_code
    assert contents(data) == before


SAME = {
    "gs://bucket/a/b": [
        "gs://bucket//a/b/", "gs://bucket/a//b", "gs://bucket/a/./b", "https://storage.googleapis.com/bucket/a/b",
        "https://bucket.storage.googleapis.com/a/b/", "https://storage.cloud.google.com/bucket/a/b",
        "https://STORAGE.googleapis.com:443/bucket/a%2Fb",
    ],
    "s3://bucket/a/b": [
        "s3://bucket//a//b/", "https://s3.amazonaws.com/bucket/a/b", "https://bucket.s3.amazonaws.com/a/b",
        "https://bucket.s3.us-east-1.amazonaws.com/a/b", "https://s3-us-west-2.amazonaws.com/bucket/a/b",
        "https://bucket.s3.dualstack.eu-west-1.amazonaws.com/c/../a/b",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("url", "spelling"), [(u, s) for u, all_ in SAME.items() for s in all_])
def test_a_bucket_has_one_path_whatever_its_address(url, spelling, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert bucket_path(spelling) == bucket_path(url)


def test_an_endpoint_has_one_path_whatever_its_address(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    here = bucket_path("s3://bucket/a/b")
    for url in (
        "http://127.0.0.1:9000/bucket/a/b",
        "s3://http://localhost:9000/bucket/a//b/",
        "http://[::1]:9000/bucket/a/b",
    ):
        assert bucket_path(url) == here
    assert bucket_path("https://bucket.s3.amazonaws.com/a/b") != here
    assert bucket_path("http://127.0.0.1:9001/bucket/a/b") is None


@pytest.mark.slow
def test_a_bucket_is_not_written_onto_itself(bucket):
    ix.export(volume(GREY), bucket.url("em.zarr"), chunks=(4, 16, 16), levels=2)
    before = bucket.contents()
    em = ix.open_image(f"zarr://{bucket.url('em.zarr')}", mip=1)
    for target in ("em.zarr", "/em.zarr/", "./em.zarr", "em.zarr/in.zarr", "em.zarr/z{z}.png", "em.zarr/out.tif"):
        with pytest.raises(TargetExistsError, match="a source"):
            ix.export(em, bucket.url(target), overwrite=True)
    with pytest.raises(TargetExistsError, match="a source"):
        ix.export(em, f"precomputed://{bucket.url('em.zarr')}", overwrite=True)
    assert bucket.contents() == before
