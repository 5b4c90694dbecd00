"""Tests of measurements to files: formats, regions and continuing after an interruption."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.errors import OptionError, TargetError, TargetExistsError
from imageryxr.measure import tables
from imageryxr.measure.tables import plan_measurement, run_measurement
from tests.support.counted_source import READS, array_in_memory, open_counted


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch):
    monkeypatch.setattr(tables, "_REGION_VOXELS", 5000)
    monkeypatch.setattr("imageryxr.graph.to_dask.BLOCK_VOXELS", 2000)


def layers():
    return open_counted(), open_counted(layer_type="image")


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".zarr"])
def test_a_file_contains_what_measure_returns(tmp_path, ending):
    pytest.importorskip("pyarrow")
    seg, em = layers()
    expected = ix.measure(seg, em, percentiles=[5, 50])
    plan = plan_measurement(seg, tmp_path / f"cells{ending}", em, percentiles=[5, 50])
    assert len(plan.regions) > 3
    found = run_measurement(plan)
    xr.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.drop_vars(["mean", "std"]).identical(expected.drop_vars(["mean", "std"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".imageryxr", f"cells{ending}"]
    if ending == ".zarr":
        with xr.open_zarr(plan.target) as again:
            xr.testing.assert_equal(again.load(), found)
        return
    table = pd.read_parquet(plan.target) if ending == ".parquet" else pd.read_csv(plan.target, index_col="segment")
    assert table.index.tolist() == expected.segment.values.tolist()
    pd.testing.assert_frame_equal(
        table, found.imagery.to_dataframe(), check_dtype=ending != ".csv", check_index_type=False
    )


def test_every_chunk_is_read_once_in_all_regions(tmp_path):
    READS.clear()
    run_measurement(plan_measurement(open_counted(), tmp_path / "cells.csv"))
    assert set(READS.values()) == {1}


def test_a_stopped_measurement_continues_with_the_remaining_regions(tmp_path):
    plan = plan_measurement(open_counted(), tmp_path / "cells.csv")

    def stop(done):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_measurement(plan, report=stop)
    assert not plan.target.exists()
    again = plan_measurement(open_counted(), tmp_path / "cells.csv")
    assert len(again.done) == again.to_dict()["regions_done"] == 3
    READS.clear()
    counts = []
    found = run_measurement(again, report=counts.append)
    assert counts == list(range(3, len(plan.regions) + 1))
    assert len(READS) < len(array_in_memory().chunk(z=4, y=16, x=16).data.dask) - 3
    assert found.identical(ix.measure(open_counted()))


KILLED = """
import os, signal, sys
from imageryxr.measure import tables
import imageryxr.graph.to_dask
tables._REGION_VOXELS, imageryxr.graph.to_dask.BLOCK_VOXELS = 5000, 2000
from tests.support.counted_source import open_counted
plan = tables.plan_measurement(open_counted(), sys.argv[1])
tables.run_measurement(plan, report=lambda done: done == 2 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
def test_a_measurement_continues_after_its_process_was_killed(tmp_path):
    target = tmp_path / "cells.csv"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    plan = plan_measurement(open_counted(), target)
    assert len(plan.done) == 2
    assert run_measurement(plan).identical(ix.measure(open_counted()))


def test_an_unfinished_measurement_of_other_options_is_not_continued(tmp_path):
    target = tmp_path / "cells.csv"

    def stop(done):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_measurement(plan_measurement(open_counted(), target), report=stop)
    some = plan_measurement(open_counted(), target, ids=[int(array_in_memory().max())])
    with pytest.raises(TargetExistsError, match="resume=False"):
        run_measurement(some)
    assert run_measurement(some, resume=False).sizes["segment"] == 1


def test_a_target_that_exists_is_replaced_only_with_overwrite(tmp_path):
    target = tmp_path / "cells.zarr"
    plan = plan_measurement(array_in_memory(), target)
    run_measurement(plan)
    other = plan_measurement(array_in_memory() // np.uint64(2), target, ids=[1])
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        run_measurement(other)
    run_measurement(plan_measurement(array_in_memory() // np.uint64(2), target), overwrite=True)
    with xr.open_zarr(target, consolidated=False) as again:
        assert again.segment.values.tolist() == ix.measure(array_in_memory() // np.uint64(2)).segment.values.tolist()


@pytest.mark.parametrize("ending", [".csv", ".zarr"])
def test_a_plan_reports_that_its_target_is_complete(tmp_path, ending):
    target = tmp_path / f"cells{ending}"
    plan = plan_measurement(array_in_memory(), target)
    assert plan.segments is None
    count = run_measurement(plan).sizes["segment"]
    again = plan_measurement(array_in_memory(), target)
    assert again.segments == count
    assert (again.to_dict()["regions_done"], again.to_dict()["complete"]) == (len(plan.regions), True)
    assert "all done: the target is complete" in str(again)
    assert plan_measurement(array_in_memory(), target, ids=[5]).segments is None
    changed = target / "zarr.json" if target.is_dir() else target
    changed.write_text(changed.read_text() + " ")
    assert plan_measurement(array_in_memory(), target).segments is None


def test_sums_beyond_int64_survive_their_file(tmp_path):
    sums = np.array([[2**70 + 3, 5, 2**31]], object)
    one = np.array([[1, 1, 1]], np.int64)
    part = tables.SegmentSums(
        np.array([7], np.uint64), {"voxels": np.array([2**50]), "sums": sums, "first": one, "last": one}, None
    )
    tables._save(part, tmp_path / "part.npz")
    assert tables._load(tmp_path / "part.npz").columns["sums"].tolist() == sums.tolist()


def test_a_plan_states_what_is_read():
    seg, em = layers()
    plan = plan_measurement(seg, "cells.csv", em)
    assert plan.read_bytes == seg.size * 9
    assert f"reads: {seg.size * 9 / 1000:.0f} kB of 2 layers, each chunk once" in str(plan)
    assert sum(box.voxels for box in plan.regions) == seg.size


@pytest.mark.parametrize("target", ["cells.xlsx", "cells", "s3://bucket/cells.csv"])
def test_unsupported_targets_raise(target):
    with pytest.raises(OptionError, match=r"\.parquet, \.csv, \.zarr"):
        plan_measurement(array_in_memory(), target)


def test_a_folder_that_cannot_be_written_is_a_target_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match="cannot be written") as caught:
        run_measurement(plan_measurement(array_in_memory(), tmp_path / "file" / "cells.csv"))
    assert "Errno" not in str(caught.value)


def test_a_measurement_that_a_full_disk_stops_says_so_and_continues(tmp_path, monkeypatch):
    plan = plan_measurement(array_in_memory(), tmp_path / "cells.csv")

    def fill_disk(*args, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", fill_disk)
        with pytest.raises(TargetError, match="the disk is full; free some") as caught:
            run_measurement(plan)
    assert "none of 1 regions" in caught.value.__notes__[0]
    assert run_measurement(plan).sizes["segment"] > 0
