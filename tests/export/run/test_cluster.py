"""Exports in other processes give the same bytes, also if workers or the scheduler are lost."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

import imageryxr as ix
from imageryxr.export.run.task import Job, pickle_job
from tests.conftest import volume
from tests.support.export_jobs import Computed, array_of, cluster_of, digest, picture
from tests.support.processes import python, run_python, spawned_workers
from tests.support.volumes import FINE, IMAGE

pytestmark = pytest.mark.slow  # most of these tests start processes or servers

ROOT = Path(__file__).parents[3]
OPTIONS = {"chunks": (2, 16, 16)}
# `dask scheduler` and `dask worker`
SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
WORKER = "from distributed.cli.dask_worker import main; main()"


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2) as client:
        yield client


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch):
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 11)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    ix.export(picture(), folder / "o.zarr", **OPTIONS)
    return digest(folder)


@pytest.mark.slow
def test_exports_on_a_cluster_and_in_processes_have_equal_bytes(tmp_path, cluster, truth):
    report = ix.export(picture(), tmp_path / "a" / "o.zarr", client=cluster, **OPTIONS)
    assert report.complete
    assert digest(tmp_path / "a") == truth
    assert ix.export(picture(), tmp_path / "a" / "o.zarr", client="threads", **OPTIONS).regions == 0
    report = ix.export(picture(), tmp_path / "b" / "o.zarr", client=cluster.scheduler.address, **OPTIONS)
    assert digest(tmp_path / "b") == truth
    assert cluster.status == "running"
    ix.export(picture(), tmp_path / "c" / "o.zarr", client="processes", workers=2, **OPTIONS)
    assert digest(tmp_path / "c") == truth


ARRAYS = {
    "a source": lambda: picture(),
    "numpy": lambda: ix.overlay(IMAGE, FINE, alpha=0.4),
    "foreign dask": lambda: ix.overlay(IMAGE.chunk(z=1, y=13), FINE.chunk(x=7), alpha=0.4, outline=1),
    "of both": lambda: ix.overlay(IMAGE.chunk(z=2), FINE, alpha=0.4),
    "a source in memory": lambda: ix.regrid(ix.open_segmentation(FINE), (12, 12, 40)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_every_kind_of_array_is_exported_by_workers(cluster, name):
    array = ARRAYS[name]()
    report = ix.export(array, "memory://", client=cluster)
    np.testing.assert_array_equal(report.result.values, array.values)


def test_a_task_contains_only_the_voxels_of_its_region(cluster, tmp_path):
    big = volume(np.zeros((64, 256, 256), np.uint8), layer_type="image")
    sent = []
    submit = cluster.submit

    class Spy:
        def __getattr__(self, name):
            return getattr(cluster, name)

        def submit(self, *args, **kwargs):
            sent.append(len(pickle.dumps(args)))
            return submit(*args, **kwargs)

    from imageryxr.export.run.cluster import ClusterExecutor
    from imageryxr.export.run.workers import find_workers
    from imageryxr.graph.labelled import box_reader

    plan = ix.plan_export(big, tmp_path / "z{z}.png")
    job = Job(plan.target, None, box_reader(big))
    workers = ClusterExecutor(job, Spy(), None)
    futures = [workers.submit(i, 0, plan.regions[i]) for i in range(4)]
    assert sum(f.result().values.sum() for f in futures) == 0
    largest = max(plan.regions[i].voxels for i in range(4))
    assert max(sent) < largest + 20_000
    assert find_workers(cluster, None, None).workers == 2


def test_the_job_of_a_million_tasks_pickles_to_a_few_kilobytes():
    huge = array_of(Computed((10_000, 100_000, 100_000)))
    seg = array_of(Computed((10_000, 100_000, 100_000), layer_type="segmentation"))
    plan = ix.plan_export(ix.overlay(huge, seg, outline=3), "/tmp/nothing-there/o.ome.zarr")
    assert plan.tasks > 1_000_000
    assert len(pickle_job(Job(plan.target, plan.workspace.data, plan.read))) < 10_000


def _kill_workers_soon(pids, folder, done=3):
    """Start a thread that kills the workers that `pids` returns as soon as some tasks are done."""

    def kill():
        for _ in range(6000):
            if any(len(p.read_bytes().splitlines()) >= done for p in folder.rglob("*.manifest.log")):
                break
            time.sleep(0.005)
        for pid in pids():
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_killed_worker_of_a_cluster_loses_only_its_regions(tmp_path, cluster, truth):
    (tmp_path / "a").mkdir()
    killer = _kill_workers_soon(lambda: list(cluster.run(os.getpid).values())[:1], tmp_path / "a")
    report = ix.export(picture(seconds=0.05), tmp_path / "a" / "o.zarr", client=cluster, **OPTIONS)
    killer.join()
    assert report.complete
    assert digest(tmp_path / "a") == truth


@pytest.mark.slow
def test_killed_processes_lose_only_their_regions(tmp_path, truth):
    import psutil

    (tmp_path / "a").mkdir()
    before = set(psutil.Process().children())

    def workers():
        new = set(psutil.Process().children()) - before
        return [child.pid for child in new if any("spawn_main" in part for part in child.cmdline())]

    killer = _kill_workers_soon(workers, tmp_path / "a", done=1)
    with spawned_workers():
        report = ix.export(picture(seconds=1), tmp_path / "a" / "o.zarr", client="processes", workers=2, **OPTIONS)
    killer.join()
    assert report.retries > 0
    assert report.complete
    assert digest(tmp_path / "a") == truth


@contextmanager
def killed_at_start(number):
    """Kill the first worker processes that this process starts, while they start; yield the list of their ids."""
    import psutil

    before, killed, ended = set(psutil.Process().children()), list[int](), threading.Event()

    def kill():
        while not ended.wait(0.02):
            for child in set(psutil.Process().children()) - before:
                is_worker = child.pid not in killed and any("spawn_main" in part for part in child.cmdline())
                if is_worker and len(killed) < number:
                    child.kill()
                    killed.append(child.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def test_processes_that_are_killed_while_they_start_are_started_again(tmp_path, truth):
    with spawned_workers(), killed_at_start(3) as killed:
        report = ix.export(picture(), tmp_path / "a" / "o.zarr", client="processes", workers=2, **OPTIONS)
    assert len(killed) == 3
    assert report.complete
    assert digest(tmp_path / "a") == truth


def test_processes_that_are_always_killed_while_they_start_are_an_error(tmp_path):
    with (
        spawned_workers(),
        killed_at_start(100),
        pytest.raises(ix.errors.TargetError, match="were killed while they started; probably .* too little memory"),
    ):
        ix.export(picture(), tmp_path / "o.zarr", client="processes", workers=2, **OPTIONS)
    assert not (tmp_path / "o.zarr").exists()


def test_errors_of_workers_keep_their_type(tmp_path, cluster):
    with pytest.raises(ix.errors.ChunkReadError, match="broken disk") as caught:
        ix.export(picture(fail_above=7), tmp_path / "o.zarr", client=cluster, retries=0, **OPTIONS)
    assert any("in task" in note for note in caught.value.__notes__)
    report = ix.export(
        picture(fail_above=7), tmp_path / "o.zarr", client=cluster, retries=0, on_error="collect", **OPTIONS
    )
    assert report.failed
    assert report.skipped > 0


def test_the_plan_uses_the_memory_limit_of_the_workers(tmp_path, cluster):
    plan = ix.plan_export(picture(), tmp_path / "o.zarr", client=cluster)
    info = cluster.scheduler_info(n_workers=-1)["workers"]
    assert plan.pool.memory == min(w["memory_limit"] for w in info.values())
    assert "2 × 1 cluster" in repr(plan)


def test_a_worker_is_requested_again_if_the_task_that_requests_it_fails():
    """Without a task, adaptive clusters start no workers, so the export would wait for ever."""
    from imageryxr.export.run.cluster import ImportProbe

    with cluster_of(0) as client:
        probe = ImportProbe(client)
        assert not probe.is_passed()
        (failed,) = client.futures
        client.cancel([probe._waiting])
        assert not probe.is_passed()
        assert set(client.futures) - {failed}, "a new task"


def test_an_unreachable_scheduler_is_an_error():
    with pytest.raises(ix.errors.TargetError, match="no scheduler answers at tcp://127.0.0.1:9"):
        ix.plan_export(IMAGE, "o.zarr", client="tcp://127.0.0.1:9")


@pytest.mark.filterwarnings("ignore")
def test_a_closed_client_is_an_imagery_error_at_every_step(tmp_path):
    from distributed import Client, LocalCluster

    from imageryxr.export.run.cluster import ClusterExecutor

    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        plan = ix.plan_export(IMAGE, tmp_path / "o.zarr", client=client)
        executor = ClusterExecutor(Job(plan.target, None, plan.read), client, None)
    with pytest.raises(ix.errors.TargetError, match="client=… is not connected to a scheduler"):
        ix.export(IMAGE, tmp_path / "o.zarr", client=client)
    executor._probe._checked.add("a worker that has left")
    for step in (executor.check, executor.slots, lambda: executor.submit(0, 0, plan.regions[0])):
        with pytest.raises(
            ix.errors.TargetError, match=f"the scheduler at {cluster.scheduler_address} no longer responds"
        ):
            step()
    assert executor.missing_workers_message() == ""
    assert not executor.avoid_worker(0, "a worker")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_driver_leaves_no_worker_processes(tmp_path):
    code = (
        "from tests.support.export_jobs import picture\nimport imageryxr as ix, multiprocessing, sys, threading, time\n"
        "import imageryxr.export\nsys.modules['imageryxr.export.plan.regions'].START_VOXELS = 1 << 11\n"
        "def tell():\n    while len(multiprocessing.active_children()) < 2: time.sleep(.01)\n"
        "    time.sleep(1); print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n"
        "if __name__ == '__main__':\n    threading.Thread(target=tell, daemon=True).start()\n"
        f"    ix.export(picture(seconds=5), {str(tmp_path / 'o.zarr')!r}, client='processes', workers=2, chunks=(2, 16, 16))\n"
    )
    (tmp_path / "job.py").write_text(code)
    driver = python(tmp_path / "job.py", stdout=subprocess.PIPE)
    pids = [int(p) for p in driver.stdout.readline().split()]
    assert len(pids) >= 2
    driver.kill()
    driver.wait()
    for _ in range(1200):
        alive = [
            p for p in pids if Path(f"/proc/{p}").exists() and Path(f"/proc/{p}/stat").read_text().split()[2] != "Z"
        ]
        if not alive:
            break
        time.sleep(0.05)
    assert not alive
    report = ix.export(picture(), tmp_path / "o.zarr", **OPTIONS)
    assert report.complete


def test_a_users_dask_graph_is_computed_region_by_region(tmp_path):
    calls = []

    def block(block_info=None):
        calls.append(block_info)
        return np.ones((2, 8, 8), np.uint8)

    data = da.map_blocks(block, chunks=((2, 2), (8, 8), (8, 8)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    array = volume(np.zeros((4, 16, 16), np.uint8), layer_type="image").copy(data=data)
    ix.plan_export(array, tmp_path / "o.zarr")
    assert calls == []
    ix.export(array, tmp_path / "o.zarr", levels=1)
    assert len(calls) == 8


def test_a_script_without_a_main_guard_is_an_error(tmp_path):
    """Each worker process would run the script again. One error, without a retry, states how to change the script."""
    script = tmp_path / "script.py"
    script.write_text(
        "import imageryxr as ix\nfrom tests.support.export_jobs import picture\nprint('begun', flush=True)\n"
        f"ix.export(picture(), {str(tmp_path / 'o.zarr')!r}, client='processes', workers=2, progress=False)\n"
    )
    done = run_python(script)
    assert done.returncode == 1
    assert done.stdout.count("begun") <= 3, "the workers are started only once"
    assert done.stderr.count("Traceback") == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("put the script's code under `if __name__ == '__main__':`")
    assert "memory" not in last
    assert not (tmp_path / "o.zarr").exists()


def test_a_script_without_a_main_guard_can_plan(tmp_path):
    script = tmp_path / "script.py"
    target = str(tmp_path / "o.zarr")
    script.write_text(
        "import imageryxr as ix\nfrom tests.support.export_jobs import picture\n"
        f"plan = ix.plan_export(picture(), {target!r}, client='processes', workers=1)\n"
        f"if __name__ == '__main__':\n    ix.export(picture(), {target!r}, client='processes', workers=1)\n"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_export_waits_for_workers_with_one_message(tmp_path, truth):
    """An export that waits reports that once and continues when a worker connects."""
    code = (
        "import sys\nimport imageryxr as ix\nfrom tests.support.export_jobs import picture\n"
        "sys.modules['imageryxr.export.plan.regions'].START_VOXELS = 1 << 11\n"
        f"ix.export(picture(), {str(tmp_path / 'a' / 'o.zarr')!r}, client=sys.argv[1], progress=False, chunks=(2, 16, 16))\n"
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    place = tmp_path / "scheduler.json"
    options = ["--port", "0", "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(place)]
    running = [python("-c", SCHEDULER, *options, **quiet)]
    try:
        for _ in range(1200):
            if place.exists() and place.stat().st_size:
                break
            time.sleep(0.05)
        address = json.loads(place.read_text())["address"]
        export = python("-c", code, address, stderr=subprocess.PIPE)
        running.append(export)
        first_line = export.stderr.readline()
        assert first_line == (
            f"the scheduler {address} has no worker yet: waiting for one, such as `dask worker {address}` starts\n"
        )
        options = ["--no-dashboard", "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path / "worker")]
        running.append(python("-c", WORKER, address, *options, **quiet))
        _, rest = export.communicate(timeout=300)
        assert (export.returncode, rest) == (0, "")
        assert digest(tmp_path / "a") == truth
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_killed_scheduler_is_one_error_message(tmp_path):
    """The command line prints no traceback, does not wait for ever, and keeps finished regions."""
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", tmp_path / "scheduler.json"]
    scheduler = python("-c", SCHEDULER, *options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    address = next(m[0] for line in scheduler.stderr if (m := re.search(r"tcp://127\.0\.0\.1:\d+", line)))
    threading.Thread(target=scheduler.stderr.read, daemon=True).start()
    options = ["--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--local-directory", tmp_path / "worker"]
    worker = python("-c", WORKER, address, *options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    target = tmp_path / "o.zarr"
    code = (
        "import sys, imageryxr.export\nfrom imageryxr.cli.messages import fail\n"
        "from imageryxr.cli.export import JobOptions, _run_export\nfrom tests.support.export_jobs import picture\n"
        "sys.modules['imageryxr.export.plan.regions'].START_VOXELS = 1 << 11\n"
        "try:\n"
        f"    run = {{'client': {address!r}, 'workers': 2, 'retries': 3, 'on_error': 'raise', 'progress': False, 'scratch': None}}\n"
        "    chunks = {'chunks': (2, 16, 16)}\n"
        f"    _run_export(picture(0.3, shape=(96, 48, 64)), {str(target)!r}, run, chunks, JobOptions())\n"
        "except Exception as error:\n    fail(error, as_json=False)\n"
    )
    driver = python("-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        log = tmp_path / "o.zarr.manifest.log"
        deadline = time.monotonic() + 60
        while not (log.exists() and log.stat().st_size > 100):
            assert driver.poll() is None, driver.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        scheduler.kill()
        out, err = driver.communicate(timeout=60)
    finally:
        for process in (driver, worker, scheduler):
            process.kill()
            process.wait()
    assert driver.returncode == 1
    assert out == ""
    # a message about a missing worker comes first if the worker starts later than the driver
    kept, error = (line for line in err.splitlines() if "has no worker yet" not in line)
    assert "tasks of" in kept
    assert "are done and kept: run the same call again to continue" in kept
    assert error.startswith(f"error: the scheduler at {address} no longer responds; restart it")
    assert not target.exists()
