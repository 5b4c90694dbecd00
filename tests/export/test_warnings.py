"""Errors and warnings about likely mistakes before an export starts, and progress bars."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.export.plan.regions import tiles
from tests.support.command_line import run
from tests.support.export_jobs import Computed, array_of, picture
from tests.support.slow import slow_except

A = array_of(Computed((12, 48, 64)))
GRID = ix.Grid((4, 8, 8), (10, 10, 40), (0, 0, 0))


def volume(values, **kwargs):
    return xr.DataArray(values, dims=("z", "y", "x"), coords=GRID.coords(), **kwargs)


@pytest.mark.parametrize("layer_type", ["image", "segmentation"])
def test_dtypes_that_precomputed_readers_lack_are_refused(tmp_path, layer_type):
    array = volume(np.zeros((4, 8, 8), np.int64), attrs={"layer_type": layer_type})
    with pytest.raises(
        ix.errors.OptionError, match=r"int64 cannot be .*float32: give array.astype\('uint64'\) if no value is"
    ):
        ix.export(array, f"precomputed://{tmp_path}/pc")
    assert ix.export(array.astype("uint64"), f"precomputed://{tmp_path}/pc").complete


def test_a_folder_that_no_export_wrote_is_not_replaced(tmp_path):
    (tmp_path / "o.zarr").mkdir()
    (tmp_path / "o.zarr" / "precious.txt").write_text("")
    for overwrite in (False, True):
        with pytest.raises(
            ix.errors.TargetExistsError, match="contains precious.txt and no volume; it is not replaced, even with over"
        ):
            ix.export(A, tmp_path / "o.zarr", overwrite=overwrite)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 8, 8), np.uint8), r"not a ndarray; add coordinates: xarray.DataArray\(values, dims="),
        ("o.zarr", r"not a str; the array comes first, then the target: export\(array, target\)"),
        (xr.Dataset(), "not a Dataset; give one variable, or draw it first"),
        (None, "not a NoneType; give one as open_image"),
        (
            xr.DataArray(np.zeros((4, 8, 8), np.uint8), dims=("a", "b", "c")),
            r"^the array has dims .*only the names differ, use .rename\(\{'a': 'z', 'b': 'y', 'c': 'x'\}\)",
        ),
        (
            xr.DataArray(np.zeros((2, 4, 8, 8), np.uint8), dims=("t", "z", "y", "x"), coords=GRID.coords(), name="em"),
            r"^the array 'em' has dims .*select along 't' first, e.g. .isel\(t=0\)",
        ),
    ],
)
def test_values_that_are_not_a_volume_are_errors(tmp_path, given, message):
    with pytest.raises(ix.errors.LayerError, match=message):
        ix.export(given, tmp_path / "o.zarr")


@pytest.mark.parametrize("name", ["overwrite", "resume"])
def test_a_boolean_option_with_another_value_is_an_error(tmp_path, name):
    with pytest.raises(ix.errors.OptionError, match=f"{name}='no' must be True or False"):
        ix.export(A, tmp_path / "o.zarr", **{name: "no"})


def test_advice_about_file_names_uses_the_fields_of_the_pattern(tmp_path):
    with pytest.raises(ix.errors.OptionError, match=r"write e.g. '\{z_nm:.0f\}.png'"):
        ix.export(A, tmp_path / "{z_nm:d}.png")
    with pytest.raises(
        ix.errors.OptionError, match=r"the field in its name determines the axis, such as 'y\{y:04d\}.png'"
    ):
        ix.export(A, tmp_path / "{z}.png", axis="y")


def test_a_plan_states_the_order_of_axes_of_each_shape(tmp_path):
    plan = ix.plan_export(A, tmp_path / "o.ome.zarr", chunks=(4, 32, 32), shards=(16, 64, 64))
    assert "chunks=[4, 32, 32] (z, y, x), shards=[16, 64, 64] (z, y, x)" in repr(plan)
    assert "64 × 48 × 12 (x, y, z)" in repr(plan)
    assert plan.to_dict()["region"] == plan.to_dict()["shape"] == [12, 48, 64]


def test_a_report_is_complete_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 11)
    report = ix.export(picture(fail_above=7), tmp_path / "<b>.zarr", chunks=(2, 16, 16), on_error="collect", retries=0)
    html = report._repr_html_()
    assert "&lt;b&gt;.zarr" in html
    assert "NOT COMPLETE" in html


def test_pixels_that_are_not_square_warn_in_formats_without_a_voxel_size(tmp_path):
    grid = ix.Grid((100, 3, 300), (10, 10, 40), (0, 0, 0))
    attrs = {"resolution": grid.resolution}
    whole = xr.DataArray(np.zeros(grid.shape, np.uint8), dims=("z", "y", "x"), coords=grid.coords(), attrs=attrs)
    side = whole.isel(y=[1])
    message = "the pixels are 10 × 40 nm but are drawn as squares: .* lengths are correct only along x; .*regrid"
    with pytest.warns(ix.ImageryWarning, match=message):
        ix.scale_bar(side)
    with pytest.warns(ix.ImageryWarning, match=message):
        ix.save_figure(side, tmp_path / "a.png", dpi=300)
    ix.save_figure(volume(np.zeros((4, 8, 8), np.uint8)).isel(z=[3]), tmp_path / "b.png", dpi=300)


@pytest.mark.slow
def test_warnings_of_the_command_line_name_flags(tmp_path, sample):
    done = run("export", "--image", sample.image, tmp_path / "a.tfi")
    assert done.returncode == 2
    assert "memory" not in done.stderr
    assert "(one file)" in done.stderr
    ix.export(A, f"precomputed://{tmp_path}/pc", chunks=(4, 16, 16), levels=1)
    next((tmp_path / "pc").rglob("*-*_*-*_*")).unlink()
    layer = f"precomputed://file://{tmp_path}/pc"
    for how in ([], ["--json"]):
        done = run("export", "--image", layer, tmp_path / "o.zarr", "--on-error", "collect", "--retries", 0, *how)
        assert done.returncode == 3
        assert "--missing fill fills missing chunks with background" in done.stdout
        assert "--missing warn also lists them" in done.stdout
        assert "missing=" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("size", [(0, 0), (24, 100)])
def test_the_progress_bar_appears_in_a_terminal_without_a_size(tmp_path, size):
    """The command `script` and some job schedulers create terminals of size 0."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    code = f"from tests.support.export_jobs import run; run('omezarr', {str(tmp_path)!r}, seconds=0.05)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], stderr=there, env=env, cwd=env["PYTHONPATH"])
    os.close(there)
    seen = b""
    with open(here, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # an OSError is the end
        while piece := terminal.read(1 << 16):
            seen += piece
    assert done.returncode == 0
    assert re.search(rb"o.ome.zarr: 100%.*task/s", seen)


@pytest.mark.parametrize("target", slow_except(["o.ome.zarr", "s/z{z:03d}.png"], "o.ome.zarr"))
def test_the_progress_bar_advances_within_a_region(tmp_path, monkeypatch, capsys, target):
    """With one region, a bar that counts regions would not move before the end."""
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.slab_regions"], "BRICK_VOXELS", 1)
    monkeypatch.setattr(sys.modules["imageryxr.export.run.task"], "bricks", lambda box, *_: tiles(box, (4, 48, 64)))
    storage = sys.modules["imageryxr.export.store.local"]
    write = storage._write
    monkeypatch.setattr(storage, "_write", lambda *file: (time.sleep(0.9 / 36), write(*file)))
    monkeypatch.setattr(sys.modules["imageryxr.export.run.scheduler"], "TICK_SECONDS", 0.2)
    array = array_of(Computed((36, 48, 64), chunks=(64, 64, 64)))
    options = {"square": False} if "png" in target else {"chunks": (1, 48, 64), "levels": 1}
    report = ix.export(array, str(tmp_path / target), workers=1, progress=True, **options)
    assert report.tasks == 1
    shown = capsys.readouterr().err
    seen = [int(n) for n in re.findall(r"(\d+)%\|", shown)]
    assert seen == sorted(seen)
    assert seen[-1] == 100
    assert len({n for n in seen if 10 < n < 90}) >= 2, shown
    assert shown.rstrip().splitlines()[-1].count("| 1/1 [") == 1
