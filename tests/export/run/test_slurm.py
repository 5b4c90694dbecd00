"""The export that the documentation of clusters shows runs in jobs of a SLURM cluster on this machine."""

from __future__ import annotations

import re
import sys
import threading
import time
from pathlib import Path

import pytest

import imageryxr as ix
from tests.support.export_jobs import digest, picture
from tests.support.slurm import MISSING, running_jobs, slurm, slurm_cluster

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING is not None, reason=f"SLURM is not installed: there is no {MISSING}"),
]

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "clusters.md").read_text()
TARGET, JOBS = '"/scratch/overlay.ome.zarr"', "_jobs=20"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 11)  # many regions
    with slurm_cluster(tmp_path / "slurm") as configuration:
        monkeypatch.setenv("SLURM_CONF", str(configuration))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))  # jobs inherit the environment
        monkeypatch.chdir(tmp_path)  # jobs write their output into the working folder
        yield


def _export_as_documented(image, folder, jobs):
    """Run the code of the section on SLURM in the documentation, with another image, target and number of jobs."""
    section = PAGE.split("## SLURM")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert TARGET in code
    assert code.count(JOBS) == 2
    code = code.replace(TARGET, repr(str(folder / "o.ome.zarr"))).replace(JOBS, f"_jobs={jobs}")
    names = {"picture": image, "ix": ix}
    try:
        exec(code, names)  # a page of this repository
    finally:
        names["cluster"].close()


@pytest.mark.parametrize("cancelled", [0, 1])
def test_the_documented_export_runs_in_slurm_jobs(tmp_path, cancelled):
    """If a job is cancelled during the export, the workers of another one compute its regions."""
    shape = (320, 128, 128)  # 20 chunks of the documented target
    ix.export(picture(shape=shape), tmp_path / "truth" / "o.ome.zarr")
    jobs = set()

    def cancel():
        while len(jobs) < cancelled and not (tmp_path / "done").exists():
            if any(log.stat().st_size > 100 for log in (tmp_path / "slurm_export").rglob("*.manifest.log")):
                jobs.add(job := running_jobs()[0])
                slurm("scancel", job)
            time.sleep(0.02)

    (tmp_path / "slurm_export").mkdir()
    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        _export_as_documented(picture(seconds=cancelled, shape=shape), tmp_path / "slurm_export", jobs=1 + cancelled)
    finally:
        (tmp_path / "done").touch()
        thread.join()
    assert len(jobs) == cancelled
    assert digest(tmp_path / "slurm_export") == digest(tmp_path / "truth")
