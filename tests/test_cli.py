"""The command line, as a user's shell runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import imageryxr as ix


def run(*args):
    return subprocess.run([sys.executable, "-m", "imageryxr.cli", *map(str, args)], capture_output=True, text=True)


def test_info(sample):
    done = run("info", sample.image)
    assert done.returncode == 0, done.stderr
    for text in ("uint8", "1,024 × 1,024 × 64", "32 × 32 × 40", "raw", "4,096, 2,048, 100"):
        assert text in done.stdout
    levels = json.loads(run("info", "--json", sample.segmentation).stdout)["levels"]
    assert levels[1]["resolution"] == [32, 32, 40]


def test_figure_and_export(sample, tmp_path):
    sources = ["--image", sample.image, "--segmentation", sample.segmentation]
    place = ["--center", "4600,2560,130", "--size", "200,100", "--resolution", "8,8,40"]
    done = run("figure", tmp_path / "a.png", *sources, *place, "--outline", 2, "--alpha", 0.4, "--no-scale-bar")
    assert done.returncode == 0, done.stderr
    box = ix.BBox.around((4600, 2560, 130), (200, 100), resolution=(8, 8, 40))
    ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=box)
    truth = ix.overlay(ds.image, ds.segmentation, alpha=0.4, outline=2).values[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), truth)
    again = run("figure", tmp_path / "a.png", *sources, *place)
    assert again.returncode == 1
    assert "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr
    stack = run("export", tmp_path / "z{z:02d}.png", *sources, *place)
    assert stack.returncode == 0, stack.stderr
    assert (tmp_path / "z00.png").exists()
    assert "regions" in run("export", tmp_path / "y{y}.png", *sources, *place, "--dry-run").stdout


def test_what_the_demo_compiles_ahead_is_what_it_draws_with():
    # the demo runs this in a process whose failure it would not see
    code = "from imageryxr.demo import compile_kernels; compile_kernels()"
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_demo(tmp_path):
    done = run("demo", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for name in ("overlay.png", "outline.png", "slices.png"):
        assert Image.open(tmp_path / "out" / name).width > 400
    assert len(list((tmp_path / "out" / "stack").glob("*.png"))) == 60
    assert run("demo", tmp_path / "out").returncode == 1


def test_the_figure_of_a_link(sample, tmp_path):
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
    assert refused.returncode == 1
    assert "allow_local" in refused.stderr
    done = run("figure", link, tmp_path / "a.png", "--allow-local", "--size", "120,80", "--no-scale-bar", "--scale", 3)
    assert done.returncode == 0, done.stderr
    ds = ix.open_neuroglancer(state, allow_local=True).imagery.view(size=(120, 80))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["nm_per_pixel"] == f"{8 / 3:g}"
        assert round(picture.info["dpi"][0]) == 300
        np.testing.assert_array_equal(np.asarray(picture)[::3, ::3], ds.imagery.overlay().values[0])
    one = run("figure", json.dumps(state), tmp_path / "b.png", "--allow-local", "--layers", "em", "--size", "64,64")
    assert one.returncode == 0, one.stderr
    assert "leave out" in run("figure", link, tmp_path / "c.png", "--image", sample.image).stderr
