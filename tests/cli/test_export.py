"""``imageryxr export``: job files, exit codes and JSON output."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

import imageryxr as ix
from tests.support import command_line
from tests.support.processes import python

pytestmark = pytest.mark.slow  # most of these tests start processes or servers

PLACE = ["--center", "4600,2560,130", "--size", "200,100,6", "--resolution", "8,8,40"]


def run(*args):
    return command_line.run("export", *args)


@pytest.fixture
def sources(sample):
    return ["--image", sample.image, "--segmentation", sample.segmentation]


def truth(sample, **kwargs):
    box = ix.BBox.around((4600, 2560, 130), (200, 100, 6), resolution=(8, 8, 40))
    ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=box)
    return ix.overlay(ds.image, ds.segmentation, **kwargs).values


def test_command_line_options_override_a_job_file(tmp_path, sample):
    job = tmp_path / "job.toml"
    job.write_text(
        f"target = '{tmp_path}/o.ome.zarr'\nimage = '{sample.image}'\nsegmentation = '{sample.segmentation}'\n"
        "bbox = [[4500, 2510, 127], [4700, 2610, 133]]\nresolution = [8, 8, 40]\noutline = 3\nalpha = 0.5\n"
        "outline-side = 'in'\nchunks = [2, 64, 64]\nshards = [4, 64, 128]\nlevels = 2\njson = true\n"
    )
    dry = run("--config", job, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    plan = json.loads(dry.stdout)
    assert plan["shards"] == [4, 64, 128]
    assert plan["bytes_to_write"] == 200 * 100 * 6 * 4
    assert not (tmp_path / "o.ome.zarr").exists()
    done = command_line.run_process("export", "--config", job, "--alpha", 0.25)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["complete"]
    assert (report["tasks"], report["regions"]) == (plan["tasks"], plan["regions"])
    assert done.stderr == "", "standard error is not a terminal"
    stored = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")["0"][:]
    expected = truth(sample, alpha=0.25, outline=ix.Outline(3, side="in"))
    np.testing.assert_array_equal(np.moveaxis(stored, 0, -1), expected)
    again = json.loads(run("--config", job, "--alpha", 0.25, "--resume").stdout)
    assert (again["tasks"], again["skipped"]) == (0, plan["tasks"])
    other = run("--config", job)
    assert other.returncode == 1
    assert json.loads(other.stdout)["error"] == "TargetExistsError"
    assert "--overwrite" in other.stderr


def test_a_wrong_job_file_is_an_error(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text("colour = 'red'\n")
    done = run("--config", job, "o.zarr")
    assert done.returncode == 2
    assert "'colour', which is not an option of export" in done.stderr
    job.write_text("outline = \n")
    assert "cannot be read" in run("--config", job, "o.zarr").stderr
    assert run("--config", tmp_path / "none.toml", "o.zarr").returncode == 2
    assert run("--no-such-option").returncode == 2


def test_format_options_are_accepted_on_the_command_line(tmp_path, sample, sources):
    done = run(tmp_path / "o.tif", *sources, *PLACE, "--compression", "none", "--bigtiff", "--scheduler", "threads")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o.tif"), truth(sample, alpha=0.2))
    with tifffile.TiffFile(tmp_path / "o.tif") as tif:
        assert tif.is_bigtiff
    done = run(tmp_path / "o.tif", *sources, *PLACE, "--fps", 3)
    assert done.returncode == 2
    assert "--fps … is not an option" in done.stderr
    done = run(tmp_path / "x.zarr", *sources, *PLACE, "--chunks", "2,x,2")
    assert "--chunks 2,x,2 is not three whole numbers" in done.stderr


def test_failed_regions_are_listed_and_set_the_exit_code(tmp_path, sample):
    shutil.copytree(sample.path / "image", tmp_path / "em")
    scale = next(p for p in (tmp_path / "em").iterdir() if p.name.startswith("8_8"))
    victim = sorted(scale.iterdir())[0]
    kept = victim.read_bytes()
    victim.unlink()
    args = [
        tmp_path / "o.zarr",
        "--image",
        tmp_path / "em",
        "--raw",
        "--on-error",
        "collect",
        "--retries",
        0,
        "--json",
        "--workers",
        2,
    ]
    done = run(*args)
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    assert not report["complete"]
    assert report["failed"]
    assert all("the store has no chunk" in text for text in report["failed"])
    assert not (tmp_path / "o.zarr").exists()
    victim.write_bytes(kept)
    done = run(*args)
    assert done.returncode == 0
    assert json.loads(done.stdout)["skipped"] == report["tasks"]
    np.testing.assert_array_equal(
        zarr.open_group(tmp_path / "o.zarr", mode="r")["0"][:], ix.open_image(sample.image).values
    )


def test_a_dry_run_reports_why_the_export_would_fail(tmp_path, sources):
    done = run(tmp_path / "z{z}.png", *sources, "--dry-run", "--memory", "401 MB")
    assert "regions" in done.stdout
    assert done.returncode == 2
    assert "a worker needs" in done.stderr


def test_outlines_and_other_segments_equal_those_of_python(tmp_path, sample):
    box = ix.BBox.around((4600, 2560, 130), (200, 100, 6), resolution=(8, 8, 40))
    ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=box)
    ids = [int(i) for i in ix.unique_ids(ds.segmentation) if i][:2]
    words = ["--ids", ",".join(map(str, ids)), "--rest-alpha", 0.1, "--outline", 40, "--outline-unit", "nm"]
    sources = ["--image", sample.image, "--segmentation", sample.segmentation]
    done = run(tmp_path / "z{z}.png", *sources, *PLACE, *words, "--outline-alpha", 0.5)
    assert done.returncode == 0, done.stderr
    lines = ix.Outline(40, alpha=0.5, unit="nm")
    expected = ix.overlay(ds.image, ds.segmentation, ids=ids, rest_alpha=0.1, outline=lines).values
    for z in range(len(expected)):
        found = np.asarray(Image.open(tmp_path / f"z{z}.png").convert("RGBA"))
        np.testing.assert_array_equal(found, expected[z])


REFUSALS = {
    "a plan": (["--dry-run", "--memory", "401 MB"], "z{z}.png", "OptionError", "a worker needs"),
    "an export": (["--memory", "401 MB"], "z{z}.png", "OptionError", "a worker needs"),
    "an option": (["--fps", "3"], "o.zarr", "OptionError", "is not an option of"),
    "a source": (["--image", "/no/where"], "o.zarr", "SourceNotFoundError", "no such folder"),
    "memory": ([], "memory://", "OptionError", "is for Python"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_errors_are_printed_as_json(tmp_path, sources, case):
    options, target, kind, words = REFUSALS[case]
    done = run(target if "//" in target else tmp_path / target, *sources, *options, "--json")
    assert done.returncode == (1 if case == "a source" else 2)
    output = json.loads(done.stdout)
    assert output["error"] == kind
    assert words in output["message"]
    assert ("regions" in output) == ("--dry-run" in options)
    assert done.stderr.startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_is_continued(tmp_path, sources, number, code):
    target = tmp_path / "y{y:03d}.png"
    options = [*sources, "--no-square", "--workers", 4, "--json"]
    program = "from imageryxr.cli.main import main; main()"
    process = python("-c", program, "export", target, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(4000):
        if any(len(p.read_bytes().splitlines()) for p in tmp_path.rglob("*.manifest.log")):
            break
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert json.loads(out)["exit_code"] == code
    assert "run the same call again to continue" in err
    assert err.endswith("stopped\n")
    assert not list(tmp_path.glob("*.png"))
    done = run(target, *options)
    report = json.loads(done.stdout)
    assert report["skipped"] > 0
    assert len(list(tmp_path.glob("*.png"))) == 960
