"""``imageryxr measure``: tables, plans and exit codes."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.export.store.local import TargetLock
from imageryxr.measure import tables
from tests.support import command_line

PLACE = ["--center", "4600,2560,130", "--size", "64,48,4", "--resolution", "8,8,40"]


def run(*args):
    return command_line.run("measure", *args)


@pytest.fixture
def sources(sample):
    return ["--image", sample.image, "--segmentation", sample.segmentation]


@pytest.fixture
def expected(sample):
    box = ix.BBox.around((4600, 2560, 130), (64, 48, 4), resolution=(8, 8, 40))
    em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
    return ix.align(em, seg, bbox=box, to="segmentation").imagery.measure(percentiles=[50])


@pytest.mark.slow
def test_a_table_equals_measure_on_the_grid_of_the_segmentation(tmp_path, sources, expected):
    target = tmp_path / "cells.csv"
    done = run(*sources, *PLACE, "--percentiles", 50, "--output", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{expected.sizes['segment']} segments in {target}\n"
    table = pd.read_csv(target, index_col="segment")
    pd.testing.assert_frame_equal(table, expected.imagery.to_dataframe(), check_dtype=False, check_index_type=False)


def test_a_zarr_table_contains_only_the_requested_ids(tmp_path, sources, expected):
    ids = expected.segment.values[:2].tolist()
    done = run(*sources[2:], *PLACE, "--ids", ",".join(map(str, ids)), "--output", tmp_path / "c.zarr", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["segments"] == 2
    with xr.open_zarr(tmp_path / "c.zarr", consolidated=False) as cells:
        assert cells.segment.values.tolist() == ids
        assert cells.voxels.values.tolist() == expected.voxels.values[:2].tolist()


def test_a_complete_table_is_not_measured_again(tmp_path, sources):
    target = tmp_path / "cells.csv"
    command = [*sources[2:], *PLACE, "--output", target]
    first = run(*command)
    before = target.stat().st_mtime_ns
    again = run(*command)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert target.stat().st_mtime_ns == before
    assert "the target is complete" in run(*command, "--dry-run").stdout
    other = run(*command, "--ids", 5)
    assert other.returncode == 1
    assert "give --overwrite" in other.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, sources):
    plan = run(*sources, *PLACE, "--output", tmp_path / "cells.csv", "--dry-run", "--json")
    fields = json.loads(plan.stdout)
    assert (fields["regions"], fields["regions_done"]) == (1, 0)
    assert fields["read_bytes"] == 9 * fields["voxels"]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_measurement_states_what_is_kept_and_continues(tmp_path, sources, monkeypatch):
    target = tmp_path / "cells.csv"
    command = [*sources[2:], "--output", target]
    assert run(*command).returncode == 0
    expected = target.read_text()
    target.unlink()
    monkeypatch.setattr(tables, "_REGION_VOXELS", 1 << 20)
    total = json.loads(run(*command, "--dry-run", "--json").stdout)["regions"]
    save = tables._save
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_save", lambda *args: save(*args) if not list(tmp_path.rglob("*.npz")) else stop())
        stopped = run(*command)
    assert stopped.returncode == 130
    kept = f"1 of {total} regions of {target} are done and kept in {target}.partial: run the same command again to"
    assert stopped.stderr == f"{kept} continue\nstopped\n"
    assert "of which 1 are done" in run(*command, "--dry-run").stdout
    assert run(*command).returncode == 0
    assert target.read_text() == expected


def stop():
    raise KeyboardInterrupt


def test_two_measurements_to_one_target_at_once_are_refused(tmp_path, sources):
    command = [*sources, *PLACE, "--output", tmp_path / "cells.csv"]
    with TargetLock(str(tmp_path / ".cells.csv.lock")).hold():
        done = run(*command)
    assert done.returncode == 1
    assert "another process is exporting to this target" in done.stderr
    assert run(*command).returncode == 0
    assert not list(tmp_path.glob(".*lock"))


def test_an_error_is_one_line_that_names_flags(tmp_path, sources):
    (tmp_path / "cells.csv").write_text("")
    cases = [
        ([*sources, *PLACE, "--output", tmp_path / "cells.csv"], 1, "give --overwrite"),
        ([*sources[:2], *PLACE, "--output", tmp_path / "new.csv"], 2, "give --segmentation SOURCE"),
        ([*PLACE, "--output", tmp_path / "new.csv"], 2, "no source: give"),
        (
            [*sources[2:], *PLACE, "--percentiles", 5, "--output", tmp_path / "new.csv"],
            2,
            "grey values are measured; give --image SOURCE",
        ),
        ([*sources, *PLACE, "--output", tmp_path / "cells.txt"], 2, "ends in .parquet, .csv, .zarr"),
        ([*sources, *PLACE, "--output", tmp_path / "new.csv", "--scheduler", "x"], 2, "tcp://host:8786"),
        ([*sources, *PLACE, "--output", tmp_path / "new.csv", "--workers", 0], 2, "--workers 0 must be"),
        (
            [*sources, *PLACE, "--output", tmp_path / "new.csv", "--percentiles", "a"],
            2,
            "--percentiles 'a' is not a list",
        ),
        ([*sources, *PLACE, "--output", tmp_path / "new.csv", "--percentiles", 101], 2, "e.g. --percentiles 5,95"),
        ([*sources, *PLACE, "--output", tmp_path / "new.csv", "--ids", "a"], 2, "--ids contains 'a'"),
        ([*sources, *PLACE, "--output", "/dev/null/new.csv"], 1, "could not write /dev/null/.new.csv.lock"),
    ]
    for arguments, code, words in cases:
        done = run(*arguments)
        assert done.returncode == code
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
