"""Memory that a worker keeps between regions, in a process that is started as dask starts its workers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import distributed
import pytest

import imageryxr as ix
from imageryxr.export.run.malloc import MMAP_BYTES, TRIM_VARIABLE, USER_VARIABLES, DelayedCleanup, initial_environment
from imageryxr.export.run.task import WORKER_MEMORY
from tests.support.processes import succeeds_in_fork

pytestmark = pytest.mark.slow  # most of these tests start processes or servers

JOB, READER, SWEEP = (sys.modules[f"imageryxr.export.{name}"] for name in ("run.task", "read.reader", "read.sweep"))

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's thresholds are those of glibc")

# A page fault is counted at the first access to a page.
FAULTS = """
import json, resource
import numpy as np
from imageryxr.export.run.malloc import raise_thresholds, restore_thresholds

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(1 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

found = [pages()]
raise_thresholds()
pages()
found.append(pages())
held = [np.ones(1 << 20, np.uint8) for _ in range(40)]
del held
keeping = resident()
restore_thresholds()
found += [keeping - resident(), pages()]
print(json.dumps(found))
"""


def _run_program(first="", **given):
    kept = {k: v for k, v in os.environ.items() if k not in (TRIM_VARIABLE, *USER_VARIABLES)}
    command = [sys.executable, "-c", first + FAULTS]
    run = subprocess.run(command, env={**kept, **given}, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    return json.loads(run.stdout)


@glibc
def test_large_arrays_reuse_mapped_memory():
    before, kept, returned, after = _run_program(**{TRIM_VARIABLE: "65536"})
    assert before > 50, "with dask's setting, each array is mapped anew"
    assert kept < before / 10
    assert returned > 20 << 20, "kept memory is returned to the system"
    assert after > before / 2, "dask's setting is restored"


@glibc
@pytest.mark.parametrize("other", [{"MALLOC_MMAP_THRESHOLD_": "100000"}, {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}])
def test_a_malloc_threshold_of_the_user_is_kept(other):
    before, kept, _, after = _run_program(**{TRIM_VARIABLE: "65536"}, **other)
    assert before > 50
    assert min(kept, after) > before / 2


@glibc
@pytest.mark.parametrize("given", ["", "²", str(2**70)])
def test_invalid_malloc_thresholds_are_ignored(given):
    _run_program(**{TRIM_VARIABLE: given})


@glibc
def test_the_process_that_starts_a_cluster_keeps_its_malloc_settings():
    """dask sets the variable in ``os.environ`` of the process that started the cluster, whose malloc has not read it."""
    _, kept, _, after = _run_program("import os; os.environ['MALLOC_TRIM_THRESHOLD_'] = '65536'")
    each = 50 * (1 << 20) // os.sysconf("SC_PAGESIZE")
    assert max(kept, after) < each / 10, "glibc raises its thresholds by itself"


@pytest.mark.slow
def test_the_malloc_setting_of_dask_is_recognised():
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        (found,) = client.run(initial_environment).values()
    assert found[TRIM_VARIABLE].isdigit()


def test_memory_is_kept_for_a_while_after_its_last_use():
    calls = []
    kept = DelayedCleanup(lambda: calls.append("begin"), lambda: calls.append("end"), 1000)
    with kept.hold():
        with kept.hold():
            pass
        kept._end_if_idle()  # a timer that fires late
        assert calls == ["begin"], "the resource is in use"
    first = kept._timer
    with kept.hold():
        assert first.finished.is_set()
        assert calls == ["begin", "begin"]
    with pytest.raises(KeyError), kept.hold():
        raise KeyError
    kept._timer.cancel()
    kept._end_if_idle()
    assert calls[-1] == "end"
    short = DelayedCleanup(lambda: None, lambda: calls.append("in time"), 0.01)
    with short.hold():
        pass
    short._timer.join(60)
    assert calls[-1] == "in time"


def test_memory_is_freed_at_once_if_no_timer_can_be_started(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    calls = []
    kept = DelayedCleanup(lambda: calls.append("begin"), lambda: calls.append("end"), 1000)
    monkeypatch.setattr(threading.Timer, "start", start)
    with kept.hold():
        pass
    assert calls == ["begin", "end"]


def test_a_resource_that_failed_to_start_is_started_by_the_next_use():
    tries = []

    def begin():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("not now")

    kept = DelayedCleanup(begin, lambda: None, 0.01)
    with pytest.raises(OSError, match="not now"), kept.hold():
        pass
    with kept.hold():
        pass
    assert len(tries) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_can_keep_memory():
    def use():
        with WORKER_MEMORY.hold():
            pass

    with WORKER_MEMORY._lock:  # held by the parent during the fork
        assert succeeds_in_fork(use)


def test_a_worker_frees_its_kept_memory(sample, monkeypatch):
    monkeypatch.setattr(READER, "KEPT_BYTES", 1000)
    monkeypatch.setattr(SWEEP, "KEPT_BYTES", 1000)
    calls = []
    kept = DelayedCleanup(lambda: calls.append("begin"), JOB._free_memory, 1000)
    monkeypatch.setattr(JOB, "WORKER_MEMORY", kept)
    plan = ix.plan_export(ix.open_segmentation(sample.segmentation), "memory://")
    JOB.run_task(JOB.pickle_job(JOB.Job(plan.target, None, plan.read)), 0, 0, tuple(plan.regions[0]))
    assert calls == ["begin"]
    assert READER.BUFFERS._held
    kept._timer.cancel()
    kept._end_if_idle()
    assert READER.BUFFERS._held == []


def test_reused_arrays_are_larger_than_the_mmap_threshold():
    assert MMAP_BYTES < READER.KEPT_BYTES


def test_threads_that_hold_a_resource_at_once_begin_it_once():
    calls = []
    kept = DelayedCleanup(lambda: calls.append("begin"), lambda: calls.append("end"), 0.05)
    gate = threading.Barrier(8)

    def one(_):
        with kept.hold():
            gate.wait(10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert calls[:1] == ["begin"]
    assert calls.count("begin") == 1
