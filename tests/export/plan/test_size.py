"""The memory of an export does not grow with its size, in the workers and in the scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

import imageryxr as ix
from imageryxr.core.array_labels import grid_of
from imageryxr.export.plan.planner import make_plan
from imageryxr.export.plan.regions import Stages
from imageryxr.export.report import ExportReport
from imageryxr.export.run.cluster import ClusterExecutor
from imageryxr.export.run.scheduler import _Scheduler, _Tally, run_plan
from imageryxr.export.run.task import Job
from imageryxr.export.run.workers import find_workers
from imageryxr.export.targets.base import ArrayInfo, Target
from imageryxr.graph.labelled import box_reader
from tests.support.export_jobs import Computed, array_of

ROOT = Path(__file__).parents[3]


class Flat(Computed):
    """A source whose voxels take memory but almost no time to compute."""

    def read(self, mip, box):
        return np.full(box.shape, 1 + box.start[0] % 250, np.uint8)


@dataclass(frozen=True)
class OneByte(Target):
    """A target that writes one byte per region, so that an export spends its time on reading."""

    granule = (64, 256, 256)

    def describe(self):
        return {"format": "one byte"}

    def keys(self, stage, box):
        return ["_".join(map(str, box.start))]

    def encode(self, stage, box, values):
        yield self.keys(stage, box)[0], bytes([values.max()])


def plan_of(shape, folder, workers=2):
    array = array_of(Flat(shape, chunks=(64, 256, 256)))
    target = OneByte(f"{folder}/out", f"{folder}/out", ArrayInfo(grid_of(array), 0, array.dtype, "image"))
    return make_plan(target, box_reader(array), find_workers(None, workers, "1 GB"), str(shape), {}, overwrite=False)


def peak_of(shape, folder):
    """Return the number of regions of an export and the peak memory of this process, after a small first export."""
    import resource

    run_plan(
        plan_of((64, 256, 256), f"{folder}/warm"),
        overwrite=False,
        resume=True,
        retries=0,
        on_error="raise",
        progress=False,
    )
    plan = plan_of(shape, folder)
    report: ExportReport = run_plan(plan, overwrite=False, resume=True, retries=0, on_error="raise", progress=False)
    return report.regions, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_ten_gigabytes_take_no_more_memory_than_one(tmp_path):
    peaks = []
    for depth in (960, 9600):
        code = f"import json; from tests.export.plan.test_size import peak_of; print(json.dumps(peak_of(({depth}, 1024, 1024), {str(tmp_path / str(depth))!r})))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        regions, peak = json.loads(done.stdout)
        assert regions == depth // 64 * 16
        assert len(os.listdir(tmp_path / str(depth) / "out")) == regions
        peaks.append(peak)
    assert 9600 * 1024 * 1024 > 10e9
    assert peaks[1] < 1.1 * peaks[0], peaks


@pytest.mark.slow
def test_the_load_of_the_scheduler_does_not_grow_with_the_regions(tmp_path):
    from distributed import Client, LocalCluster

    tasks, grown = {}, {}
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for shape in ((64, 256 * 10, 256 * 10), (64 * 1000, 256 * 10, 256 * 10)):
            plan = plan_of(shape, tmp_path / str(shape[0]), workers=1)
            (tmp_path / str(shape[0])).mkdir()
            with plan.workspace.open_session(overwrite=False, resume=True):
                workers = ClusterExecutor(Job(plan.target, plan.workspace.data, plan.read), client, None)
                loop = _Scheduler(
                    workers,
                    Stages((plan.regions,)),
                    plan,
                    _Tally(),
                    0,
                    "raise",
                )
                most, memory = 0, []
                outcomes = loop.outcomes(np.arange(len(plan.regions)))
                for done, _ in zip(range(100), outcomes, strict=False):
                    most = max(most, len(cluster.scheduler.tasks))
                    if done in (20, 99):
                        memory.append(psutil.Process().memory_info().rss)
                outcomes.close()
            tasks[len(plan.regions)], grown[len(plan.regions)] = most, memory[1] - memory[0]
    assert set(tasks) == {100, 100_000}
    assert tasks[100_000] <= tasks[100] + 4 <= 12
    assert grown[100_000] < 20e6


def test_a_new_format_needs_only_one_class(tmp_path):
    # the target of the tests above has no code for manifests, retries or workers
    plan = plan_of((128, 512, 256), tmp_path)
    report = run_plan(plan, overwrite=False, resume=True, retries=0, on_error="raise", progress=False)
    assert report.regions == 4
    assert sorted(os.listdir(tmp_path / "out")) == ["0_0_0", "0_256_0", "64_0_0", "64_256_0"]
    with pytest.raises(ix.errors.TargetExistsError):
        run_plan(
            plan_of((128, 512, 512), tmp_path),
            overwrite=False,
            resume=True,
            retries=0,
            on_error="raise",
            progress=False,
        )
