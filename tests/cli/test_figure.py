"""Legends, insets and sizes in print from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imageryxr as ix
from tests.support.command_line import run


@pytest.mark.slow
def test_a_figure_has_the_requested_width_resolution_and_inset(sample, tmp_path):
    sources = ["--image", sample.image, "--segmentation", sample.segmentation, "--resolution", "8,8,40"]
    place = ["--center", "4600,2560,130", "--size", "300,240", "--scale", 2]
    done = run(
        "figure", tmp_path / "a.png", *sources, *place, "--legend", "--inset", "4540,2540:4580,2580", "--width-mm", 85,
        "--dpi", 600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == round(85 / 25.4 * 600)
        assert round(picture.info["dpi"][0]) == 600
    done = run(
        "figure", tmp_path / "b.png", *sources, *place, "--inset", "4540,2540,0:4580,2580,1", "--no-scale-bar"
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    box = ix.BBox.around((4600, 2560, 130), (300, 240), resolution=(8, 8, 40))
    rgba = ix.align(
        ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=box
    ).imagery.overlay()  # fmt: skip
    part = ix.BBox((4540, 2540, 130), (4580, 2580, 131), resolution=(8, 8, 40))
    with Image.open(tmp_path / "b.png") as picture:
        truth = ix.inset(rgba, part, zoom=3, scale=2)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(truth))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--legend"], "--legend lists segments"),
        (["--inset", "1,2"], "--inset 1,2 is not two corners"),
        (["--inset", "1,2:3,4,5,6"], "--inset 3,4,5,6 is not 2 or 3 numbers"),
        (["--width-mm", "0"], "--width-mm 0.0 must be a number of mm above 0"),
        (["--label-pt", "-7"], "--label-pt -7.0 must be a number of points above 0"),
        (["--points", "points.txt"], "--points points.txt is not a table"),
        (["--points", "POINTS", "--points-resolution", "0,1,1"], "--points-resolution 0,1,1 must be positive"),
        (["--points", "POINTS", "--points-column", "a,b,c"], "the table has no column 'a' for --points-column"),
        (["--dpi", "0"], "--dpi 0.0 must be a number of pixels per inch above 0"),
        (
            ["--outline", "2", "--outline-side", "inside"],
            "--outline-side inside must be 'out' or 'in'",
        ),
    ],
)
def test_errors_name_options_as_flags(sample, tmp_path, args, message):
    (tmp_path / "points.csv").write_text("x,y,z\n1,2,3\n")
    args = [tmp_path / "points.csv" if arg == "POINTS" else arg for arg in args]
    failed = run("figure", tmp_path / "a.png", "--image", sample.image, "--image-mip", 2, *args)
    assert failed.returncode == 2
    assert f"error: {message}" in failed.stderr
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(("stored", "scale"), [("columns", 1), ("triples", 3)])
def test_points_of_a_table_are_drawn_as_in_python(sample, tmp_path, stored, scale):
    places = [(4590, 2555, 130), (4610.5, 2570.5, 130.5), (4600, 2560, 131)]
    if stored == "columns":
        rows, column = (
            ["id,px,py,pz", *(f"{2**64 - 1 - i},{x},{y},{z}" for i, (x, y, z) in enumerate(places))],
            "px,py,pz",
        )
    else:
        rows, column = (
            ["id,pt_position", *(f'{i},"[{x}, {y}, {z}]"' for i, (x, y, z) in enumerate(places))],
            "pt_position",
        )
    (tmp_path / "points.csv").write_text("\n".join(rows))
    sources = [
        "--image",
        sample.image,
        "--resolution",
        "8,8,40",
        "--center",
        "4600,2560,130",
        "--size",
        "80,60",
        "--no-scale-bar",
    ]
    some = ["--points", tmp_path / "points.csv", "--points-column", column, "--points-resolution", "8,8,40"]
    done = run("figure", tmp_path / "a.png", *sources, *some, "--scale", scale)
    assert (done.returncode, done.stderr) == (0, "")
    box = ix.BBox.around((4600, 2560, 130), (80, 60), resolution=(8, 8, 40))
    picture = ix.to_pil(ix.to_rgba(ix.crop(ix.open_image(sample.image), box)), scale=scale)
    points = ix.as_annotations(places, resolution=(8, 8, 40))
    truth = ix.annotate(picture, points, size=8 * scale, edgecolor="black", edgewidth=scale)
    with Image.open(tmp_path / "a.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn.convert("RGB")), np.asarray(truth.convert("RGB")))


@pytest.mark.parametrize("command", ["figure", "export", "measure"])
def test_the_help_lists_every_option_in_a_group(command):
    lines = run(command, "--help").stdout.splitlines()
    heads = [line[:-1] for line in lines if line and not line.startswith((" ", "Usage"))]
    assert heads[-1] == "Other"
    assert [head for head in heads if head in ("Sources", "Place")] == ["Sources", "Place"]
    other = lines[lines.index("Other:") + 1 :]
    assert [line.split()[0] for line in other if line.strip()] == ["--help"]


@pytest.mark.parametrize("colors", ["husl", "tab10", "stable"])
@pytest.mark.parametrize("chosen", [False, True], ids=["all", "ids"])
def test_a_palette_draws_the_colours_that_it_draws_in_python(sample, tmp_path, colors, chosen):
    box = ix.BBox.around((4600, 2560, 130), (80, 60), resolution=(8, 8, 40))
    both = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=box)
    ids = ix.unique_ids(both.segmentation)[:3][::-1].tolist() if chosen else None
    sources = ["--image", sample.image, "--segmentation", sample.segmentation, "--resolution", "8,8,40"]
    place = ["--center", "4600,2560,130", "--size", "80,60", "--no-scale-bar", "--colors", colors]
    some = ["--ids", ",".join(map(str, ids))] if ids else []
    done = run("figure", tmp_path / "a.png", *sources, *place, *some)
    assert (done.returncode, done.stderr) == (0, "")
    picture = both.imagery.overlay(colors=colors, ids=ids)
    with Image.open(tmp_path / "a.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn.convert("RGB")), picture.values[0, ..., :3])


def test_missing_chunks_of_a_link_may_be_an_error(tmp_path, sample):
    (tmp_path / "em").mkdir()
    info = Path(sample.image.removeprefix("precomputed://").removeprefix("file://"), "info")
    (tmp_path / "em/info").write_bytes(info.read_bytes())
    state = json.dumps({"layers": [{"type": "image", "name": "em", "source": f"precomputed://file://{tmp_path}/em"}]})
    call = ["figure", state, tmp_path / "a.png", "--allow-local", "--size", "20,20"]
    assert run(*call).returncode == 0
    failed = run(*call, "--overwrite", "--missing", "raise")
    assert failed.returncode == 1
    assert "the store has no chunk" in failed.stderr
