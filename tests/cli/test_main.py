"""The commands ``figure``, ``export``, ``info`` and ``demo``: their results, output and exit codes."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from tqdm import tqdm

import imageryxr as ix
from imageryxr.cli.demo import _Steps
from imageryxr.export.report import report_progress_to
from tests.support.cave import utc
from tests.support.cave_server import DATASTACK, OFFSET, TOKEN, VERSIONS
from tests.support.command_line import run, run_process


@pytest.mark.slow
def test_info_prints_the_levels_of_a_source(sample):
    done = run_process("info", sample.image)
    assert done.returncode == 0, done.stderr
    for text in ("uint8", "1,024 × 1,024 × 64", "32 × 32 × 40", "raw", "4,096, 2,048, 100"):
        assert text in done.stdout
    levels = json.loads(run("info", "--json", sample.segmentation).stdout)["levels"]
    assert levels[1]["resolution"] == [32, 32, 40]


@pytest.mark.slow
def test_a_figure_and_an_export_equal_those_of_python(sample, tmp_path):
    sources = ["--image", sample.image, "--segmentation", sample.segmentation]
    place = ["--center", "4600,2560,130", "--size", "200,100", "--resolution", "8,8,40"]
    outlined = [*sources, *place, "--outline", 2, "--alpha", 0.4, "--no-scale-bar"]
    done = run("figure", tmp_path / "a.png", *outlined)
    assert done.returncode == 0, done.stderr
    box = ix.BBox.around((4600, 2560, 130), (200, 100), resolution=(8, 8, 40))
    ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=box)
    # opaque pictures are written without alpha
    truth = ix.overlay(ds.image, ds.segmentation, alpha=0.4, outline=2).values[0, ..., :3]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), truth)
    again = run("figure", tmp_path / "a.png", *sources, *place)
    assert again.returncode == 1
    assert "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr
    stack = run("export", tmp_path / "z{z:02d}.png", *sources, *place)
    assert stack.returncode == 0, stack.stderr
    assert (tmp_path / "z00.png").exists()
    assert "regions" in run("export", tmp_path / "y{y}.png", *sources, *place, "--dry-run").stdout


@pytest.mark.slow
def test_a_figure_along_y_has_outlines_along_the_same_axis(sample, tmp_path):
    sources = ["--image", sample.image, "--segmentation", sample.segmentation, "--resolution", "8,8,40", "--outline", 2]
    place = ["--center", "4600,2560,130"]
    side = [*sources, *place, "--size", "200,20", "--axis", "y", "--no-scale-bar"]
    done = run("figure", tmp_path / "a.png", *side, "--no-square")
    assert done.returncode == 0, done.stderr
    assert "8 × 40 nm but are drawn as squares" in done.stderr
    box = ix.BBox.around((4600, 2560, 130), (200, 1, 20), resolution=(8, 8, 40))
    ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=box)
    truth = ix.overlay(ds.image, ds.segmentation, outline=2, axis="y").values[:, 0, :, :3]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), truth)
    # voxels are five times as long along z
    done = run("figure", tmp_path / "b.png", *side)
    assert (done.returncode, done.stderr) == (0, "")
    assert Image.open(tmp_path / "b.png").size == (200, 100)
    drawn = ix.overlay(ds.image, ds.segmentation, outline=2, axis="y")
    report = ix.export(drawn, tmp_path / "sq" / "{y}.png", square=True)
    assert report.complete
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "b.png")), np.asarray(Image.open(tmp_path / "sq" / "0.png").convert("RGB"))
    )
    stack = run("export", tmp_path / "y{y}.png", *sources, *place, "--size", "200,1,20")
    assert stack.returncode == 0, stack.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "y0.png"))[..., :3], truth)


def test_a_figure_beyond_the_edge_of_the_volume_warns(sample, tmp_path):
    place = ["--image", sample.image, "--resolution", "8,8,40", "--size", "64,64"]
    done = run("figure", tmp_path / "a.png", *place, "--center", "4096,2560,130")
    assert done.returncode == 0
    assert "the other 50 % are drawn as 0" in done.stderr
    assert run("figure", tmp_path / "b.png", *place, "--center", "4600,2560,130").stderr == ""


@pytest.mark.parametrize("scale", ["0", "-1", "101"])
def test_a_scale_outside_1_to_100_is_refused(sample, tmp_path, scale):
    failed = run("figure", tmp_path / "a.png", "--image", sample.image, "--scale", scale)
    assert failed.returncode == 2
    assert f"error: --scale {scale} must be a whole number of pixels per voxel from 1 to 100" in failed.stderr


@pytest.mark.slow
def test_ids_are_accepted_with_spaces(sample, tmp_path):
    seg = ix.open_segmentation(sample.segmentation)
    ids, counts = np.unique(
        seg.isel(z=seg.sizes["z"] // 2, x=slice(100, 300), y=slice(100, 300)).values, return_counts=True
    )
    one = int(ids[counts.argmax()])
    done = run("figure", tmp_path / "a.png", "--segmentation", sample.segmentation, "--ids", f"{one}, 5", "--alpha", 1)
    assert done.returncode == 0, done.stderr
    assert "warning: 1 of the 2 requested ids" in done.stderr
    assert "not in the data: 5" in done.stderr


@pytest.mark.slow
def test_info_lists_the_channels_of_an_image(tmp_path):
    grid = ix.Grid((2, 8, 8), (8, 8, 40), (0, 0, 0))
    rgba = ix.to_rgba(xr.DataArray(np.zeros(grid.shape, np.uint8), dims=("z", "y", "x"), coords=grid.coords()))
    ix.export(rgba, tmp_path / "a.ome.zarr")
    done = run("info", tmp_path / "a.ome.zarr")
    assert done.returncode == 0, done.stderr
    assert "4 channels, channel=0 to channel=3" in done.stdout


@pytest.mark.slow
def test_one_of_several_channels_is_exported(tmp_path):
    grid = ix.Grid((2, 8, 8), (8, 8, 40), (0, 0, 0))
    grey = xr.DataArray(np.arange(128, dtype=np.uint8).reshape(grid.shape), dims=("z", "y", "x"), coords=grid.coords())
    alpha = np.uint8(255)
    ix.export(ix.to_rgba(grey, contrast_limits=(0, 255)), tmp_path / "a.ome.zarr")
    for channel, truth in (("1", grey.values), ("3", np.full(grid.shape, alpha))):
        target = tmp_path / f"{channel}.ome.zarr"
        done = run("export", target, "--image", tmp_path / "a.ome.zarr", "--channel", channel, "--raw")
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(ix.open_image(target).values, truth)
    done = run("export", tmp_path / "b.ome.zarr", "--image", tmp_path / "a.ome.zarr", "--channel", "4")
    assert done.returncode == 2
    assert "has no --channel 4: its channels are 0 to 3; give --channel 0 to --channel 3" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("to", ["32,32,40", "coarsest", "segmentation"])
def test_the_exported_voxels_equal_those_of_python(sample, tmp_path, to):
    sources = ["--image", sample.image, "--segmentation", sample.segmentation, "--seg-mip", 1]
    place = ["--center", "4600,2560,130", "--size", "200,100,3", "--resolution", "8,8,40"]
    done = run("export", tmp_path / "a.ome.zarr", *sources, *place, "--to", to, "--outline", 2, "--levels", 1)
    assert done.returncode == 0, done.stderr
    em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation, mip=1)
    box = ix.BBox.around((4600, 2560, 130), (200, 100, 3), resolution=(8, 8, 40))
    ds = ix.align(em, seg, to=(32, 32, 40) if to[0].isdigit() else to, bbox=box)
    truth = ix.overlay(ds.image, ds.segmentation, outline=2)
    assert truth.shape == (3, 25, 50, 4)
    for channel in range(4):
        found = ix.open_image(tmp_path / "a.ome.zarr", channel=channel)
        np.testing.assert_array_equal(found.values, truth.values[..., channel])
        np.testing.assert_allclose(found.x, truth.x)


@pytest.mark.slow
def test_raw_exports_the_voxels_of_one_layer(sample, tmp_path):
    place = ["--center", "4600,2560,130", "--size", "200,100,3", "--resolution", "8,8,40"]
    alone = ["--segmentation", sample.segmentation, "--raw", *place]
    done = run("export", tmp_path / "a.ome.zarr", *alone, "--to", "40,40,40", "--levels", 1)
    assert done.returncode == 0, done.stderr
    box = ix.BBox.around((4600, 2560, 130), (200, 100, 3), resolution=(8, 8, 40))
    truth = ix.crop(ix.regrid(ix.open_segmentation(sample.segmentation), (40, 40, 40)), box)
    np.testing.assert_array_equal(ix.open_segmentation(tmp_path / "a.ome.zarr").values, truth.values)
    done = run("export", tmp_path / "b.ome.zarr", *alone, "--to", "image")
    assert done.returncode == 2
    assert "--to image is a choice between two layers, and there is one; give nm, --to x,y,z" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jpg", "wrote"),
        ("a.tif", "wrote"),
        ("a.pdf", "wrote"),
        ("a", "no supported picture format"),
        ("a.xyz", "no supported picture format"),
        ("a.png", "wrote"),
    ],
)
def test_figures_are_written_in_each_format(sample, tmp_path, name, message):
    (tmp_path / name).write_bytes(b"old")
    done = run("figure", tmp_path / name, "--image", sample.image, "--image-mip", 2, "--overwrite")
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(f.name for f in tmp_path.iterdir()) == [name]
    assert ((tmp_path / name).read_bytes() == b"old") == (message != "wrote")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure", "a.png", "--image", "IM", "--axis", "w"], "--axis w must be 'z', 'y' or 'x'"),
        (["figure", "a.png", "--image", "IM", "--outline", "2"], "--segmentation SOURCE"),
        (["figure", "a.png", "--image", "IM", "--bbox", "1,1,1:9,9,2"], "--resolution 8,8,40"),
        (
            ["figure", "a.png", "--image", "IM", "--bbox", "4200,2200,110:4300,2300,120", "--resolution", "8,8,40"],
            "10 slices deep",
        ),
        (["figure", "a.png", "--image", "SEG"], "--segmentation"),
        (["export", "a.ome.zarr", "--image", "IM", "--image-mip", "7"], "open one of mip 0"),
        (
            ["figure", "{}", "a.png", "--to", "8,8,40"],
            "a link defines the layers, the position and its unit; omit --to",
        ),
        (
            ["figure", "{}", "a.png", "--channel", "0"],
            "a link defines the layers, the position and its unit; omit --channel",
        ),
        (["export", "a.ome.zarr", "--datastack", "d", "--channel", "0"], "--channel and --time need --image"),
    ],
)
def test_messages_name_options_as_flags(sample, tmp_path, arguments, message):
    given = [
        {"IM": sample.image, "SEG": sample.segmentation, "a.png": str(tmp_path / "a.png")}.get(a, a) for a in arguments
    ]
    done = run(*given)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_demo_compiles_the_kernels_that_it_uses():
    # the demo runs this code in another process and ignores errors there
    code = "from imageryxr.cli.demo import compile_kernels; compile_kernels()"
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("target", ["stack/z{z:04d}.png", "a.ome.zarr"])
def test_the_progress_bar_of_the_demo_includes_its_exports(sample, tmp_path, target):
    picture = ix.open_image(sample.image).isel(z=slice(0, 24)).imagery.to_rgba()
    steps, seen = _Steps(3), []
    steps._bar = tqdm(total=3, file=io.StringIO(), disable=False)
    steps.update()

    def advance(share):
        steps.advance(share)
        seen.append((share, steps._bar.n))

    with report_progress_to(advance):
        ix.export(picture, tmp_path / target, progress=False)
    steps.update()
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len({share for share in shares if 0 < share < 1}) >= 1
    assert [n for _, n in seen] == pytest.approx([1 + share for share in shares])
    assert steps._bar.n == 2
    seen.clear()
    ix.export(picture.isel(z=[0]), tmp_path / "b{z}.png", progress=False)
    assert not seen


class TestCave:
    @pytest.fixture(autouse=True)
    def token(self, monkeypatch):
        monkeypatch.setenv("CAVE_TOKEN", TOKEN)

    @pytest.mark.slow
    def test_info_prints_the_instant_of_a_graphene_table(self, cave):
        done = run("info", cave.table, "--timestamp", "2023-11-16T02:00:00.250Z")
        assert done.returncode == 0, done.stderr
        assert f"{cave.table}\nsegmentation, uint64, 2 levels" in done.stdout
        assert "timestamp: 2023-11-16T02:00:00.250000+00:00" in done.stdout
        assert json.loads(run("info", "--json", cave.table).stdout)["attrs"]["agglomerate"] is True
        assert TOKEN not in done.stdout + done.stderr

    @pytest.mark.slow
    def test_a_figure_of_a_datastack_equals_the_overlay_in_python(self, cave, tmp_path):
        x, y, z = (2 * OFFSET[0] + 101, 2 * OFFSET[1] + 81, OFFSET[2] + 11)
        stack = ["--datastack", DATASTACK, "--server-address", cave.url, "--timestamp", "2023-11-16T02:00:00.250Z"]
        place = ["--center", f"{x},{y},{z}", "--size", "80,60", "--resolution", "viewer"]
        done = run("figure", tmp_path / "a.png", *stack, *place, "--alpha", 0.4, "--no-scale-bar")
        assert done.returncode == 0, done.stderr
        tree = ix.open_datastack(DATASTACK, server_address=cave.url, timestamp="2023-11-16T02:00:00.250Z")
        ds = tree.imagery.align(bbox=tree.imagery.around((x, y, z), (80, 60)))
        drawn = ds.imagery.overlay(alpha=0.4).values[0, ..., :3]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), drawn)
        box = ["--center", "70,60,40", "--size", "10,10", "--resolution", "viewer"]
        for wrong, message in (
            ([*stack, "--image", cave.image], "omit --image and --segmentation"),
            (["--image", cave.image, *box], "--datastack, or nm per unit"),
        ):
            failed = run("figure", tmp_path / "b.png", *wrong)
            assert failed.returncode == 2
            assert message in failed.stderr

    @pytest.mark.slow
    def test_the_rows_of_a_table_are_drawn_on_a_figure_of_a_datastack(self, cave, tmp_path):
        x, y, z = (2 * OFFSET[0] + 301, 2 * OFFSET[1] + 251, OFFSET[2] + 11)
        when = utc(VERSIONS[9]).isoformat()
        stack = ["--datastack", DATASTACK, "--server-address", cave.url, "--timestamp", when]
        place = ["--center", f"{x},{y},{z}", "--size", "400,300", "--resolution", "viewer", "--no-scale-bar"]
        table = ["--table", "synapses", "--points-column", "ctr_pt"]
        before = cave.count("datastack/full")
        done = run("figure", tmp_path / "a.png", *stack, *place, *table)
        assert done.returncode == 0, done.stderr
        # The datastack is opened once, so that cells and rows have the same timestamp. The second request for its info
        # is that of the table.
        assert cave.count("datastack/full") == before + 2
        tree = ix.open_datastack(DATASTACK, server_address=cave.url, timestamp=when)
        ds = tree.imagery.align(bbox=tree.imagery.around((x, y, z), (400, 300)))
        rows = tree.imagery.table("synapses", bbox=ix.grid_of(ds.image).bbox, position="ctr_pt")
        assert rows.sizes["annotation"] > 0
        drawn = ds.imagery.overlay().imagery.annotate(rows, edgecolor="black").values[0, ..., :3]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), drawn)
        failed = run("figure", tmp_path / "b.png", *stack, *place, *table[:2])
        assert failed.returncode == 2
        assert "several position columns; give --points-column" in failed.stderr
        failed = run("figure", tmp_path / "b.png", "--image", cave.image, *table)
        assert "also give --datastack NAME" in failed.stderr

    @pytest.mark.slow
    def test_a_figure_of_a_graphene_table_takes_the_token_of_the_environment(self, cave, tmp_path, monkeypatch):
        place = ["--center", "660,570,330", "--size", "90,80", "--resolution", "10,10,10"]
        done = run("figure", tmp_path / "a.png", "--segmentation", cave.table, *place, "--no-scale-bar")
        assert done.returncode == 0, done.stderr
        monkeypatch.delenv("CAVE_TOKEN")
        failed = run("figure", tmp_path / "b.png", "--segmentation", cave.table, *place)
        assert failed.returncode == 1
        assert "none was found" in failed.stderr
        assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_the_demo_writes_its_products(sample, tmp_path):
    shutil.copytree(
        sample.path, tmp_path / "out" / "sample"
    )  # without this copy, the demo would generate an equal sample
    done = run_process("demo", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for name in ("overlay.png", "outline.png", "slices.png"):
        assert Image.open(tmp_path / "out" / name).width > 400
    assert len(list((tmp_path / "out" / "stack").glob("*.png"))) == 60
    assert run("demo", tmp_path / "out").returncode == 1


@pytest.mark.slow
def test_a_link_is_drawn_as_a_figure(sample, tmp_path):
    state = {
        "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
        "position": [4600.5, 2560.5, 130.5],
        "layers": [
            {
                "type": "image",
                "name": "em",
                "source": sample.image,
                "shaderControls": {"normalized": {"range": [40, 220]}},
            },
            {"type": "segmentation", "name": "cells", "source": sample.segmentation, "colorSeed": 3},
        ],
    }
    link = tmp_path / "link.txt"
    link.write_text("https://neuroglancer-demo.appspot.com/#!" + json.dumps(state))
    refused = run("figure", link, tmp_path / "a.png")
    assert refused.returncode == 2
    assert "--allow-local" in refused.stderr
    done = run("figure", link, tmp_path / "a.png", "--allow-local", "--size", "120,80", "--no-scale-bar", "--scale", 3)
    assert done.returncode == 0, done.stderr
    ds = ix.open_neuroglancer(state, allow_local=True).imagery.view(size=(120, 80))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["nm_per_pixel"] == f"{8 / 3:g}"
        assert round(picture.info["dpi"][0]) == 300
        np.testing.assert_array_equal(np.asarray(picture)[::3, ::3], ds.imagery.overlay().values[0, ..., :3])
    one = run("figure", json.dumps(state), tmp_path / "b.png", "--allow-local", "--layers", "em", "--size", "64,64")
    assert one.returncode == 0, one.stderr
    assert "omit --image" in run("figure", link, tmp_path / "c.png", "--image", sample.image).stderr
