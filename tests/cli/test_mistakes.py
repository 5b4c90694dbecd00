"""Mistakes on the command line or in a job file are reported at once, with exit code 2, and with --json as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import imageryxr as ix
from tests.support.command_line import PLACE, run
from tests.support.export_jobs import Computed, array_of


@pytest.fixture
def job(tmp_path, sample):
    """Return a function that writes a job file and returns its path."""

    def write(lines, target="o.ome.zarr"):
        path = tmp_path / "job.toml"
        path.write_text(
            f"target = '{tmp_path}/{target}'\nimage = '{sample.image}'\nsegmentation = '{sample.segmentation}'\n"
            f"bbox = [[4500, 2510, 127], [4600, 2590, 131]]\nresolution = [8, 8, 40]\n{lines}\n"
        )
        return path

    return write


@pytest.mark.parametrize("typed", [["--workers", "two"], ["--nosuch", "3"], ["--retries", "many"]])
def test_errors_of_the_option_parser_are_printed_as_json(command, typed):
    code, out, err = command("export", "o.zarr", *typed, "--json")
    output = json.loads(out)
    assert (code, output["exit_code"], set(output)) == (2, 2, {"error", "message", "exit_code"})
    assert typed[0] in output["message"]
    assert typed[0] in err
    code, out, err = command("export", "o.zarr", *typed)
    assert (code, out) == (2, "")


@pytest.mark.parametrize("lines", ["outline = 'three'", "workers = 'two'", "outline = 'three'\njson = true"])
def test_a_wrong_type_in_a_job_file_is_printed_as_json(command, job, lines):
    more = [] if "json" in lines else ["--json"]
    code, out, _ = command("export", "--config", job(lines), *more)
    assert (code, json.loads(out)["exit_code"]) == (2, 2)


@pytest.mark.parametrize(
    "lines", ["outline = true", "workers = true", "levels = true", "retries = true", "compress-level = true",
              "memory = true", "scratch = true", "scratch = 3", "scratch = ['a']", "scratch = ''"],
)  # fmt: skip
def test_a_job_file_value_of_another_type_is_an_error(command, job, lines):
    code, out, err = command("export", "--config", job(lines), "--json")
    assert code == 2, err
    assert lines.split(" = ")[0] in json.loads(out)["message"]


@pytest.mark.parametrize(
    ("content", "code"), [(b"\xff\xfe", 2), (b"\xef\xbb\xbflevels = 1", 0), (b"levels = 1\x00", 2)]
)
def test_a_job_file_may_begin_with_a_byte_order_mark_and_must_be_text(tmp_path, sample, command, content, code):
    (tmp_path / "job.toml").write_bytes(content)
    call = ["export", tmp_path / "o.zarr", "--image", sample.image, *PLACE, "--config", tmp_path / "job.toml"]
    found, _, err = command(*call, "--dry-run")
    assert found == code
    assert ("job.toml cannot be read" in err) == bool(code)


def test_scratch_false_in_a_job_file_is_accepted(command, job):
    code, _, err = command("export", "--config", job("scratch = false"), "--dry-run")
    assert code == 0, err


def test_shards_none_on_the_command_line_overrides_the_job_file(command, job):
    path = job("chunks = [2, 64, 64]\nshards = [2, 64, 128]")
    assert json.loads(command("export", "--config", path, "--dry-run", "--json")[1])["shards"] == [2, 64, 128]
    code, out, err = command("export", "--config", path, "--dry-run", "--json", "--shards", "none")
    assert code == 0, err
    assert "shards" not in json.loads(out)


@pytest.mark.parametrize("typed", [["--on-error", "maybe"], ["--retries", "-3"]])
def test_a_dry_run_raises_the_errors_of_the_export(tmp_path, sample, command, typed):
    results = []
    for dry in ([], ["--dry-run"]):
        target = tmp_path / "o.zarr"
        results.append(command("export", target, "--image", sample.image, *PLACE, *typed, *dry, "--json"))
    assert results[0] == results[1]
    assert results[0][0] == 2


@pytest.mark.parametrize(
    "typed", [["--outline-side", "in"], ["--merge"], ["--no-merge"], ["--outline-alpha", "1"], ["--outline-unit", "nm"]]
)
def test_outline_options_without_outlines_are_refused(tmp_path, sample, command, job, typed):
    sources = ["--image", sample.image, "--segmentation", sample.segmentation, *PLACE]
    for verb, target in (("export", "o.zarr"), ("figure", "o.png")):
        code, _, err = command(verb, tmp_path / target, *sources, *typed)
        assert code == 2
        assert "also give --outline WIDTH" in err
    # The option is allowed in a job file, because the command line may add the width of the outline.
    lines = "outline-side = 'in'\nmerge = false"
    assert command("export", "--config", job(lines), "--dry-run")[0] == 0


IDLE = {
    "figure": [
        (["--layers", "em"], "--layers needs a link: write imageryxr figure LINK"),
        (["--group", "1", "--allow-local"], "--group, --allow-local need a link"),
        (["--max-state-size", "1 MB"], "--max-state-size needs a link"),
        (["--points-column", "pt"], "--points-column has no effect by itself: also give --points FILE or --table NAME"),
        (["--points-resolution", "8,8,40"], "also give --points FILE"),
        (["--inset-zoom", "2"], "also give --inset"),
        (["--seg-mip", "1"], "--seg-mip has no effect by itself: also give --segmentation SOURCE"),
        (["--alpha", "0.5"], "--alpha draws segments: also give --segmentation SOURCE"),
    ],
    "export": [
        (["--server-address", "https://a.b"], "--server-address has no effect by itself: also give --datastack NAME"),
        (["--timestamp", "2024-01-01"], "--timestamp has no effect by itself: also give --segmentation SOURCE"),
        (["--no-agglomerate"], "--agglomerate has no effect by itself"),
        (["--rest-alpha", "0.5"], "--rest-alpha draws segments"),
    ],
    "measure": [
        (["--seg-mip", "1", "--timestamp", "2024-01-01"], "--seg-mip, --timestamp have no effect by themselves"),
    ],
}


@pytest.mark.parametrize(("verb", "case"), [(verb, case) for verb, cases in IDLE.items() for case in cases])
def test_an_option_without_effect_is_refused(tmp_path, sample, command, verb, case):
    typed, message = case
    target = {"figure": ["o.png"], "export": ["o.ome.zarr"], "measure": ["--output", "o.csv"]}[verb]
    place = [*PLACE[:3], "64,48", *PLACE[4:]] if verb == "figure" else PLACE
    code, out, err = command(verb, *target[:-1], tmp_path / target[-1], "--image", sample.image, *place, *typed)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--image", "--segmentation", "--datastack", "--to"])
def test_an_empty_value_is_not_taken_for_an_absent_option(tmp_path, sample, command, flag):
    other = ["--segmentation", sample.segmentation] if flag == "--image" else ["--image", sample.image]
    code, out, err = command("export", tmp_path / "o.zarr", *other, flag, "", *PLACE, "--dry-run")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


@pytest.mark.parametrize("typed", [["--image", "IM"], ["--resolution", "8,8,40"], ["--datastack", "a"], ["--table", "b"],
                                   ["--seg-mip", "1", "--segmentation", "SEG"]])  # fmt: skip
def test_options_of_sources_are_refused_with_a_link(tmp_path, command, typed):
    code, out, err = command("figure", "{}", tmp_path / "o.png", *typed)
    assert (code, out) == (2, "")
    assert f"a link defines the layers, the position and its unit; omit {', '.join(sorted(typed[::2])[::-1])}" in err


def test_measure_checks_the_scheduler_before_it_reuses_a_table(tmp_path, sample, command):
    call = ["measure", "--output", tmp_path / "o.csv", "--segmentation", sample.segmentation, *PLACE]
    assert command(*call)[0] == 0
    for more in ([], ["--dry-run"]):
        code, _, err = command(*call, "--scheduler", "thread", *more)
        assert code == 2
        assert "--scheduler thread is none of threads, processes" in err


@pytest.mark.parametrize("value", [True, 4, "4"])
def test_memory_without_a_unit_is_refused(tmp_path, value):
    with pytest.raises(ix.errors.OptionError, match="'4 GB'"):
        ix.plan_export(array_of(Computed()), tmp_path / "o.zarr", memory=value)


def test_square_must_be_true_or_false(tmp_path):
    with pytest.raises(ix.errors.OptionError, match="square='yes' must be True, False or None"):
        ix.plan_export(array_of(Computed()), tmp_path / "z{z}.png", square="yes")


LONG = ["a" * 300 + ".tif", "a" * 240 + ".tif", "a" * 240 + "{z}.png", "{z:0300d}.png", "ü" * 120 + ".zarr",
        "x" * 256 + "/o.zarr", "/".join(["y" * 200] * 22) + "/o.tif", "a" * 260 + "/z{z}.png"]  # fmt: skip


@pytest.mark.parametrize("name", [*LONG, "{z:099999999d}.png", "a\0b.tif", "a\0b{z}.png", "{z:c}.png"])
def test_file_names_that_are_too_long_or_contain_nul_bytes_are_refused(tmp_path, name):
    with pytest.raises(ix.errors.OptionError, match="too long for file systems|NUL byte|thousands of characters"):
        ix.export(array_of(Computed()), f"{tmp_path}/{name}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "target", ["precomputed://", "precomputed:///", "precomputed://file://", "precomputed://s3://"]
)
def test_a_target_without_a_location_is_refused(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ix.errors.OptionError, match="has no location"):
        ix.export(array_of(Computed()), target, overwrite=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["precomputed://.", "{here}", "../o.zarr", "precomputed://.."])
def test_the_working_folder_is_not_replaced(tmp_path, monkeypatch, target):
    here = tmp_path / "o.zarr"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ix.errors.OptionError, match="is the working folder .* or contains it"):
        ix.export(array_of(Computed()), target.format(here=here), overwrite=True)
    assert here.samefile(".")
    assert ix.export(array_of(Computed()), "precomputed://new").complete


@pytest.mark.slow
def test_a_full_disk_behind_standard_output_is_an_error_in_one_line(sample):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "imageryxr", "info", sample.image], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        1,
        "error: standard output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("name", ["a" * 224 + ".tif", "a" * 210 + "{z}.png"])
def test_file_names_of_the_maximum_length_are_accepted(tmp_path, name):
    assert ix.export(array_of(Computed()), f"{tmp_path}/{name}").complete


@pytest.mark.slow
def test_python_m_imageryxr_equals_the_command_line(sample):
    command = [sys.executable, "-m", "imageryxr", "info", sample.image]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert made.stdout == run("info", sample.image).stdout
    assert "levels" in made.stdout
