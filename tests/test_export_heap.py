"""What a worker keeps between regions, in a process that was started as dask starts its workers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import distributed
import pytest

from imageryxr.export.heap import CHOSEN, GIVEN, Lingering

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's thresholds are those of glibc")

# A page is counted when it is touched for the first time since the system gave it.
FAULTS = """
import json, resource
import numpy as np
from imageryxr.export.heap import give_back, keep_freed

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(1 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

found = [pages()]
keep_freed()
pages()
found.append(pages())
held = [np.ones(1 << 20, np.uint8) for _ in range(50)]
del held
keeping = resident()
give_back()
found += [keeping - resident(), pages()]
print(json.dumps(found))
"""


def _found(**given):
    kept = {k: v for k, v in os.environ.items() if k not in (GIVEN, *CHOSEN)}
    run = subprocess.run([sys.executable, "-c", FAULTS], env={**kept, **given}, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    return json.loads(run.stdout)


@glibc
def test_memory_is_not_mapped_anew_for_each_array():
    before, kept, returned, after = _found(**{GIVEN: "65536"})
    each = 50 * (1 << 20) // os.sysconf("SC_PAGESIZE")
    assert before > 0.9 * each, "dask's setting does that"
    assert kept < 0.1 * each
    assert returned > 20 << 20, "what was kept at the end goes back"
    assert after > 0.9 * each, "as dask wants it"


@glibc
@pytest.mark.parametrize("given", [{}, {GIVEN: "65536", "MALLOC_MMAP_THRESHOLD_": "100000"}])
def test_what_others_chose_stays(given):
    before, kept, _, _ = _found(**given)
    each = 50 * (1 << 20) // os.sysconf("SC_PAGESIZE")
    if "MALLOC_MMAP_THRESHOLD_" in given:
        assert min(before, kept) > 0.9 * each
    else:
        assert kept < 0.1 * each, "glibc learns by itself"


def _environment():
    return dict(os.environ)


@pytest.mark.slow
def test_dask_sets_it_where_it_is_looked_for():
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        (found,) = client.run(_environment).values()
    assert found[GIVEN].isdigit()


def test_it_is_there_while_it_is_used_and_a_while_longer():
    told = []
    kept = Lingering(lambda: told.append("begin"), lambda: told.append("end"), 0.2)
    with kept.used():
        with kept.used():
            pass
        time.sleep(0.4)
        assert told == ["begin"], "somebody is at it"
    with kept.used():
        assert "end" not in told, "before the time is up"
    for timer in [t for t in threading.enumerate() if isinstance(t, threading.Timer) and t.interval == 0.2]:
        timer.join(10)
    assert told == ["begin", "begin", "end"]
    with pytest.raises(KeyError), kept.used():
        raise KeyError
    assert kept._users == 0


def test_many_threads_begin_once():
    told = []
    kept = Lingering(lambda: told.append("begin"), lambda: told.append("end"), 0.05)
    gate = threading.Barrier(8)

    def one(_):
        with kept.used():
            gate.wait(10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert told[:1] == ["begin"]
    assert told.count("begin") == 1
