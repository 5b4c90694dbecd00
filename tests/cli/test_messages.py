"""Messages of the command line name flags that can be typed, and errors set the exit code."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import pickle
import re
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import typer.main

import imageryxr as ix
from imageryxr.cli import main
from imageryxr.cli.commands import FLAGS
from imageryxr.cli.messages import command_text
from imageryxr.cli.options import DrawingOptions
from imageryxr.errors import Message, OptionError, Wording, param
from imageryxr.export.targets.base import COARSER
from imageryxr.export.targets.format_options import RunOptions
from imageryxr.export.targets.registry import PATHS, PATTERNS, precomputed
from tests.conftest import volume
from tests.support.command_line import PLACE

COMMANDS = typer.main.get_command(main.app).commands
# Python parameters without a flag. The command line cannot cause messages about them.
NEVER_TYPED = {"stale", "token", "connection", "da", "link", "like"}
NEVER_TYPED |= {"overlap", "image", "segmentation", "trusted_hosts", "chunks_", "options"}


def keywords():
    calls = [ix.export, ix.overlay, ix.Outline, ix.open_image, ix.open_segmentation, ix.open_neuroglancer, ix.BBox]
    calls += [precomputed, *PATHS.values(), *PATTERNS.values()]
    names = {name for call in calls for name in inspect.signature(call).parameters}
    return names - NEVER_TYPED - {"place", "root", "layer", "self"}


def messages():
    """Yield the file and the text of each string with spaces in the package; values of f-strings are placeholders."""
    root = Path(ix.__file__).parent
    for file in root.rglob("*.py"):
        tree = ast.parse(file.read_text())
        named = (ast.Module, ast.FunctionDef, ast.ClassDef)
        docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, named) and isinstance(n.body[0], ast.Expr)}
        parts = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
        for node in ast.walk(tree):
            if id(node) in docs or id(node) in parts:
                continue
            if isinstance(node, ast.JoinedStr):
                yield (
                    file.name,
                    "".join(
                        v.value if isinstance(v, ast.Constant) else ("'thing'" if v.conversion == ord("r") else "thing")
                        for v in node.values
                    ),
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield file.name, node.value


def python_in(text):
    return re.findall(rf"\b({'|'.join(sorted(keywords()))})=", text)


# Modules whose texts are Python code, or messages of functions that the command line does not call.
PYTHON_ONLY = {
    "jobs.py",
    "mask_pictures.py",
    "masks.py",
    "annotation_tables.py",
    "centers.py",
    "cutout_columns.py",
    "cutout_verbs.py",
    "cutouts.py",
    "dask_inputs.py",
    "mark_colors.py",
    "materialization.py",
    "other_formats.py",
    "points.py",
    "source_writer.py",
    "xarray_engine.py",
}
CODE = re.compile(r"\w+\([^()]*(\([^()]*\)[^()]*)*\)")


@pytest.mark.slow
def test_messages_name_parameters_only_with_errors_param():
    """The command line replaces a parameter by its flag only if the message marks it with `imageryxr.errors.param`."""
    texts = [(name, text) for name, text in messages() if " " in text and "<" not in text and "``" not in text]
    plain = [(name, text) for name, text in texts if name not in PYTHON_ONLY and python_in(CODE.sub("", text))]
    assert [text for name, text in plain if name == "state_layers.py"] == [
        "layers=thing is not a list of layers"
    ]  # a message about a member of a JSON state, which is not a parameter
    wordings = "outline=Outline(2, side='in', merge=False)", "it may have expired; give timestamp= instead"
    assert not [text for name, text in plain if name not in ("state_layers.py", "source.py") and text not in wordings]


@pytest.mark.slow
def test_every_marked_parameter_has_a_flag():
    names = set()
    for file in Path(ix.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "param"
                and isinstance(node.args[0], ast.Constant)
            ):
                names.add(node.args[0].value)
    assert len(names) > 40
    only_python = {"orientation", "requester_pays"}
    assert names - set(FLAGS) - only_python == {"target", "source", "path", "lo", "hi", "mip"}


def test_every_flag_in_the_table_exists():
    typed = {flag for command in COMMANDS.values() for param in command.params for flag in param.opts}
    assert set(FLAGS.values()) - typed == set()
    assert set(inspect.signature(ix.export).parameters) - set(FLAGS) == {"da", "target", "options"}


def test_options_of_the_command_line_have_the_defaults_of_python():
    """The command line and the signature of a function each declare the default of an option that they share."""
    signature = inspect.signature(ix.export).parameters
    declared = {name: hint.__metadata__[0] for name, hint in get_type_hints(RunOptions, include_extras=True).items()}
    assert {name: one.default for name, one in declared.items()} == {
        name: one.default for name, one in signature.items() if one.kind is one.KEYWORD_ONLY
    }
    styles = {field.name: field.default for field in dataclasses.fields(DrawingOptions)}
    outline = inspect.signature(ix.Outline).parameters
    for flag, name in {
        "outline_side": "side",
        "merge": "merge",
        "outline_alpha": "alpha",
        "outline_unit": "unit",
    }.items():
        assert styles[flag] == outline[name].default


@pytest.mark.parametrize(
    ("parts", "python", "typed"),
    [
        (("give ", param("overwrite", True)), "give overwrite=True", "give --overwrite"),
        (("with ", param("square", False), " a"), "with square=False a", "with --no-square a"),
        ((param("client", "tcp://a:1"), " is none"), "client='tcp://a:1' is none", "--scheduler tcp://a:1 is none"),
        (("give ", param("chunks", (16, 256, 256))), "give chunks=(16, 256, 256)", "give --chunks 16,256,256"),
        (("give ", param("size", text="(x, y, z)")), "give size=(x, y, z)", "give --size x,y,z"),
        ((param("memory", "4 GB"), " is little"), "memory='4 GB' is little", "--memory '4 GB' is little"),
        (
            (param("compression", "x"), Wording(" or None", " or 'none'")),
            "compression='x' or None",
            "--compression x or 'none'",
        ),
        ((param("target", "{q}.png"), " is odd"), "target='{q}.png' is odd", "the target '{q}.png' is odd"),
        (
            (param("scratch", ...), ", ", param("scratch", False)),
            "scratch=…, scratch=False",
            "--scratch …, --scratch none",
        ),
        ((param("mip", 9), " is absent"), "mip=9 is absent", "mip 9 is absent"),
        ((COARSER,), "a coarser level (mip=…)", "a coarser level (--image-mip or --seg-mip)"),
        (("leave ", param("version"), " out"), "leave version out", "leave --ome-version out"),
        ((param("stale", "keep"), " works"), "stale='keep' works", "stale='keep' works"),
        (("a plain text with alpha=3",), "a plain text with alpha=3", "a plain text with alpha=3"),
    ],
)
def test_python_names_in_a_message_become_flags(parts, python, typed):
    error = pickle.loads(pickle.dumps(OptionError("so: ", Message(*parts))))
    assert str(error) == f"so: {python}"
    assert command_text(error) == f"so: {typed}"


# Arguments after `export TARGET`, in which IM and SEG stand for the sources, and words of the message.
WRONG = {
    "no source": ([], ["--image SOURCE"]),
    "a box": (["--image", "IM", "--bbox", "1,2:3"], ["--bbox 1,2 is not 3 numbers x,y,z"]),
    "an inverted box": (["--image", "IM", "--bbox", "9,9,9:1,1,1"], ["from 9,9,9 to 1,1,1", "lower corner first"]),
    "an empty box": (["--image", "IM", "--bbox", "1,1,1:1,2,2"], ["is empty along x", "--center and --size"]),
    "a box outside": (["--image", "IM", "--bbox", "0,0,0:9,9,9"], ["wholly outside"]),
    "a box of voxels": (["--image", "IM", "--bbox", "4200,2200,110:4300,2300,111"], ["--resolution 8,8,40"]),
    "a box of z, y, x": (
        ["--image", "IM", "--bbox", "110,2200,4200:112,2300,4300", "--resolution", "8,8,40"],
        ["z, y, x"],
    ),
    "one number": (["--image", "IM", "--resolution", "8"], ["--resolution 8 is not 3 numbers x,y,z"]),
    "a size": (["--image", "IM", "--center", "1,1,1", "--size", "0,4"], ["--size 0,4,1"]),
    "a scheduler": (["--image", "IM", "--scheduler", "foo"], ["--scheduler foo must be a scheduler's address"]),
    "on error": (["--image", "IM", "--on-error", "what"], ["--on-error what must be 'raise'"]),
    "retries": (["--image", "IM", "--retries", "-1"], ["--retries -1"]),
    "workers": (["--image", "IM", "--workers", "0"], ["--workers 0 must be", "or be left out"]),
    "memory": (["--image", "IM", "--memory", "plenty"], ["--memory plenty must be"]),
    "little memory": (["--image", "IM", "--memory", "1MB"], ["a worker needs", "the process itself"]),
    "alpha": (["--image", "IM", "--segmentation", "SEG", "--alpha", "3"], ["--alpha 3"]),
    "outline": (["--image", "IM", "--segmentation", "SEG", "--outline", "-1"], ["--outline -1"]),
    "a side": (
        ["--image", "IM", "--segmentation", "SEG", "--outline", "2", "--outline-side", "up"],
        ["--outline-side up"],
    ),
    "a unit": (
        ["--image", "IM", "--segmentation", "SEG", "--outline", "2", "--outline-unit", "m"],
        ["--outline-unit m"],
    ),
    "colours": (["--image", "IM", "--segmentation", "SEG", "--colors", "tab11"], ["no palette 'tab11'"]),
    "JSON colours": (["--segmentation", "SEG", "--colors", "{3:"], ["--colors {3:"]),
    "a colour": (["--segmentation", "SEG", "--colors", '{"3": "rde"}'], ["'rde'"]),
    "ids": (["--segmentation", "SEG", "--ids", "one"], ["one"]),
    "contrast": (["--image", "IM", "--contrast", "9,9"], ["--contrast 9,9"]),
    "an axis": (["--image", "IM", "--axis", "w"], ["--axis w"]),
    "missing": (["--image", "IM", "--missing", "hide"], ["--missing hide"]),
    "a mip": (["--image", "IM", "--image-mip", "7"], ["mip 7"]),
    "a scheme": (["--image", "ftp://host/em"], ["the source ftp://host/em has the unknown scheme"]),
    "a time": (["--segmentation", "SEG", "--timestamp", "2024-05-01T12:00:00Z"], ["--timestamp"]),
    "ids as image": (["--image", "SEG"], ["--segmentation"]),
    "raw of two": (["--image", "IM", "--segmentation", "SEG", "--raw"], ["--raw"]),
    "another's option": (["--image", "IM", "--fps", "3"], ["--fps … is not an option", "--shards", "--ome-version"]),
    "chunks": (["--image", "IM", "--chunks", "0,1,1"], ["--chunks 0,1,1"]),
    "words as chunks": (["--image", "IM", "--chunks", "a"], ["--chunks a"]),
    "shards": (["--image", "IM", "--chunks", "2,8,8", "--shards", "3,8,8"], ["--shards 3,8,8", "--chunks 2,8,8"]),
    "old shards": (["--image", "IM", "--shards", "3,8,8", "--ome-version", "0.4"], ["--ome-version 0.5"]),
    "a version": (["--image", "IM", "--ome-version", "7"], ["--ome-version 7"]),
    "levels": (["--image", "IM", "--levels", "0"], ["--levels 0"]),
    "a compressor": (["--image", "IM", "--compressor", "rar"], ["--compressor rar", "'none'"]),
    "a type": (["--image", "IM", "--layer-type", "mesh"], ["--layer-type mesh"]),
    "square volumes": (["--image", "IM", "--square"], ["--square is for slices", "leave --square out"]),
    "in memory": (["memory://", "--image", "IM"], ["memory://"]),
    "a format": (["o.doc", "--image", "IM"], ["the target o.doc has no format"]),
    "a bucket's scheme": (["az://b/o.zarr", "--image", "IM"], ["the scheme 'az'"]),
    "a pattern": (["{w}.png", "--image", "IM"], ["the target '{w}.png' must name one axis"]),
    "ids as PNG": (["{z}.png", "--segmentation", "SEG", "--raw"], ["leave --raw out"]),
    "ids as a film": (["o.mp4", "--segmentation", "SEG", "--raw"], ["leave --raw out"]),
    "PNG's level": (["{z}.png", "--image", "IM", "--compress-level", "11"], ["--compress-level 11"]),
    "a TIFF's axis": (["o.tif", "--image", "IM", "--axis", "w"], ["--axis w"]),
    "a TIFF's compression": (["o.tif", "--image", "IM", "--compression", "rar"], ["--compression rar", "'none'"]),
    "frames": (["o.mp4", "--image", "IM", "--fps", "0"], ["--fps 0"]),
    "film quality": (["o.mp4", "--image", "IM", "--crf", "99"], ["--crf 99"]),
    "an encoding": (["precomputed://pc", "--image", "IM", "--encoding", "webp"], ["--encoding webp"]),
    "quality of raw": (["precomputed://pc", "--image", "IM", "--raw", "--quality", "80"], ["leave --quality out"]),
    "gzip of jpeg": (["precomputed://pc", "--image", "IM", "--raw", "--encoding", "jpeg", "--gzip"], ["--gzip is for"]),
    "a job file": (["--config", "none.toml"], ["--config none.toml cannot be read"]),
    "a job file's key": (["--config", "typo.toml"], ["'targt'", "did you mean 'target'?", "outline-side", "json"]),
    "a job file's keys": (["--config", "twice.toml"], ["outline-side twice"]),
    "no datastack": (["--datastack", "d", "--image", "IM"], ["omit --image and --segmentation"]),
    "viewer": (["--image", "IM", "--resolution", "viewer"], ["--resolution viewer"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_options_exit_with_2(tmp_path, sample, command, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    Path("typo.toml").write_text("targt = 'o.zarr'\n")
    Path("twice.toml").write_text("outline-side = 'in'\noutline_side = 'out'\n")
    typed, words = WRONG[case]
    typed = [{"IM": sample.image, "SEG": sample.segmentation}.get(t, t) for t in typed]
    target = [] if typed and not typed[0].startswith("--") else ["o.ome.zarr"]
    place = [] if any(t in ("--bbox", "--size", "--resolution") for t in typed) else PLACE
    code, out, err = command("export", *target, *typed, *place, "--json")
    assert code == 2, err
    output = json.loads(out)
    assert output["exit_code"] == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line == f"error: {output['message']}"
    assert not [word for word in words if word not in line]
    assert not python_in(line)
    assert "Client" not in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["twice.toml", "typo.toml"]


def test_errors_of_the_option_parser_exit_with_2(command):
    for typed in (["--no-such-flag"], [], ["o.zarr", "--retries", "many"]):
        assert command("export", *typed)[0] == 2


def test_a_wrong_type_in_a_job_file_is_an_error(tmp_path, command):
    (tmp_path / "job.toml").write_text("outline = 'three'\n")
    assert command("export", "--config", tmp_path / "job.toml", "o.zarr")[0] == 2


@pytest.mark.slow
def test_errors_while_reading_or_writing_exit_with_1(tmp_path, sample, command):
    image = ["--image", sample.image, *PLACE]
    (tmp_path / "there.tif").write_bytes(b"old")
    (tmp_path / "file").write_bytes(b"")
    cases = [
        ([tmp_path / "o.zarr", "--image", tmp_path / "none", *PLACE], "SourceNotFoundError"),
        ([tmp_path / "o.zarr", *image, "--scheduler", "tcp://127.0.0.1:1"], "TargetError"),
        ([tmp_path / "there.tif", *image], "TargetExistsError"),
        ([tmp_path / "file" / "o.zarr", *image], "TargetError"),
    ]
    for typed, kind in cases:
        code, out, err = command("export", *typed, "--json")
        output = json.loads(out)
        assert (code, output["error"], output["exit_code"]) == (1, kind, 1), err
        assert not python_in(output["message"])
    link = tmp_path / "link.json"
    link.write_text("{]")
    assert command("figure", link, tmp_path / "a.png")[0] == 2
    link.write_text(json.dumps({"layers": []}))
    assert command("figure", "https://127.0.0.1:1/#!https://127.0.0.1:1/state/1", "a.png", "--allow-local")[0] == 1


def test_options_of_a_job_file_for_another_target_are_ignored(tmp_path, sample, command):
    job = tmp_path / "job.toml"
    job.write_text(
        f"target = '{tmp_path}/o.ome.zarr'\nimage = '{sample.image}'\nbbox = [[4500, 2510, 127], [4700, 2610, 129]]\n"
        "resolution = [8, 8, 40]\nchunks = [2, 64, 64]\nshards = [2, 64, 128]\n"
    )
    code, _, err = command("export", "--config", job, tmp_path / "z{z}.png", "--compress-level", 1)
    assert code == 0, err
    assert (
        err
        == f"note: --chunks, --shards of the job file do not apply to the target {tmp_path}/z{{z}}.png and are ignored\n"
    )
    assert (tmp_path / "z1.png").exists()
    # options on the command line are not ignored, and neither are options of the file for its own target
    code, _, err = command("export", "--config", job, tmp_path / "y{y}.png", "--shards", "2,64,64")
    assert code == 2
    assert "--shards … is not an option of a target of .png slices" in err
    job.write_text(job.read_text() + "fps = 3\n")
    assert "--fps … is not an option" in command("export", "--config", job)[2]
    # `square` applies to slices, not to volumes
    job.write_text(job.read_text().replace("fps = 3", "square = true").replace("o.ome.zarr", "y{y}.tif"))
    code, _, err = command("export", "--config", job, tmp_path / "v.ome.zarr", "--dry-run")
    assert code == 0, err
    assert "--square of the job file does not apply" in err
    assert "chunks" not in err


def test_warnings_name_options_as_flags(tmp_path, command):
    array = volume(np.zeros((4, 8, 8), np.uint8), (8, 8, 40), layer_type="image")
    ix.export(array, f"precomputed://{tmp_path}/em")
    code, _, err = command("export", tmp_path / "y{y}.png", "--image", tmp_path / "em")
    assert code == 0
    assert "give --square to resample them, or --no-square" in err
