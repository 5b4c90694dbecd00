"""Reading in threads, dask workers, and spawned and forked processes; interruption of a read."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import imageryxr as ix
from imageryxr import errors
from imageryxr.core.bbox import IndexBox
from imageryxr.ops import segment_ids as segments
from imageryxr.sources.cave import root_cache
from imageryxr.sources.fetch import attempt
from imageryxr.sources.resolve import resolve_source
from tests.support.cave import BOX, HASTY, NOW, PART, utc
from tests.support.cave_server import MERGE, SPLIT, TOKEN, stall_forever
from tests.support.slow import slow_except


def source_of(cave, when=NOW):
    return resolve_source(cave.table, None, token=TOKEN, timestamp=utc(when), connection=HASTY)


def boxes(cave, count=24, seed=0):
    rng = np.random.default_rng(seed)
    shape = cave.tissue.em.shape
    found = []
    for _ in range(count):
        start = tuple(int(rng.integers(-5, n - 20)) for n in shape)
        stop = tuple(a + int(rng.integers(1, 40)) for a in start)
        found.append(IndexBox(start, stop))
    return found


def truth(cave, when, box):
    out = np.zeros(box.shape, np.uint64)
    inside = box.clip(IndexBox.of_shape(cave.tissue.em.shape))
    out[inside.slices(box)] = cave.truth(when, inside.slices())
    return out


def read(blob, box):
    return pickle.loads(blob).read(0, box)


def read_job(args):
    return read(*args)


def fork_while_locked(*locks):
    """Fork while other threads hold locks, which are never released in the child."""
    for lock in locks:
        lock.acquire()
    child = os.fork()
    if child:
        for lock in locks:
            lock.release()
    return child


def exit_code_of(child, seconds=60):
    """Return the exit code of a forked child; kill it if it hangs."""
    for _ in range(20 * seconds):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def test_threads_read_several_instants(cave):
    times = (MERGE - 0.1, MERGE + 0.1, SPLIT + 0.1)
    sources = {when: source_of(cave, when) for when in times}
    jobs = [(when, box) for when in times for box in boxes(cave)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: sources[job[0]].read(0, job[1]), jobs))
    for (when, box), values in zip(jobs, found, strict=True):
        np.testing.assert_array_equal(values, truth(cave, when, box))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_processes_of_every_start_method_read_the_right_voxels(cave, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    source = source_of(cave)
    source.read(0, boxes(cave)[0])  # the parent has open connections and cached chunks when a child is forked
    jobs = [(pickle.dumps(source), box) for box in boxes(cave, 12, seed=1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context(method)) as pool:
            found = list(pool.map(read_job, jobs))
    for (_, box), values in zip(jobs, found, strict=True):
        np.testing.assert_array_equal(values, truth(cave, NOW, box))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_while_requests_of_its_parent_run(cave):
    source = source_of(cave)
    cave.fault("/data/ws", "delay", seconds=0.05)
    everything = boxes(cave, 8, seed=2)
    graph = source.graph
    roots = root_cache.memory_of((graph.server, graph.service, graph.table), source.instant)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(source.read, 0, box) for box in everything]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            # the child has none of the threads that hold the locks of the requests and of the root cache
            child = fork_while_locked(attempt._state.budgets._lock, roots._lock)
        if child == 0:
            code = 1
            try:
                code = 0 if np.array_equal(source.read(0, everything[0]), truth(cave, NOW, everything[0])) else 2
            finally:
                os._exit(code)
        assert exit_code_of(child) == 0
        for box, future in zip(everything, waiting, strict=True):
            np.testing.assert_array_equal(future.result(timeout=60), truth(cave, NOW, box))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_although_its_parent_held_a_lock(cave):
    whole = cave.truth(NOW, PART)
    wanted = np.unique(whole)[[1, 2]]
    seg = ix.open_segmentation(
        cave.table, token=TOKEN, timestamp=utc(NOW), connection=HASTY, ids=wanted, bbox=BOX, chunks=(8, 32, 32)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = fork_while_locked(segments._TALLIES._lock)  # a thread that has just read a block holds this lock
    if child == 0:
        code = 1
        try:
            values = seg.compute(scheduler="synchronous").values
            code = 0 if np.array_equal(values, np.where(np.isin(whole, wanted), whole, 0)) else 2
        finally:
            os._exit(code)
    assert exit_code_of(child, 20) == 0


@pytest.mark.slow
def test_distributed_workers_read_the_right_voxels(cave):
    from distributed import Client, LocalCluster

    seg = ix.open_segmentation(cave.table, token=TOKEN, timestamp=utc(MERGE + 0.1), bbox=BOX, chunks=(4, 32, 64))
    em = ix.open_image(cave.image, bbox=BOX, chunks=(4, 32, 64))
    picture = ix.overlay(em, seg, outline=1)
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster),
    ):
        cave.log.clear()
        labels = seg.compute()
        drawn = picture.compute()
        assert cave.count("info|oldest|provenance") == 0
    np.testing.assert_array_equal(labels.values, cave.truth(MERGE + 0.1, PART))
    np.testing.assert_array_equal(drawn.values, picture.compute(scheduler="synchronous").values)


@pytest.mark.slow
def test_an_error_of_a_worker_is_raised_by_the_caller(cave):
    from distributed import Client, LocalCluster

    seg = ix.open_segmentation(cave.table, token=TOKEN, timestamp=utc(NOW), bbox=BOX, connection=HASTY)
    em = ix.open_image(cave.image, bbox=BOX, connection=HASTY)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster),
    ):
        cave.fault("/data/em/10_10_10", "missing")
        with pytest.raises(ix.errors.MissingChunkError, match="mip 0"):
            em.compute()
        cave.fault("roots", "status", status=401)
        with pytest.raises(ix.errors.InvalidTokenError, match="rejected the token from token="):
            seg.compute()


@pytest.mark.parametrize(
    "kind", [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, ix.ImageryError)]
)
def test_every_error_can_be_pickled(kind):
    from tblib import pickling_support

    pickling_support.install()  # distributed uses it to send errors
    given = {errors.ChoiceError: {"what": "channel", "count": 2}}.get(kind, {})
    if kind is errors.ScratchError:
        given = {"folder": "/scratch", "reason": "it is full", "full": True, "worker": "tcp://a:1"}
    error = kind("what was given", **given)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, "what was given", vars(error))


def test_the_pickled_graph_is_small(cave):
    import cloudpickle

    seg = ix.open_segmentation(cave.table, token=TOKEN, timestamp=utc(NOW), chunks=(1, 8, 8))
    assert seg.data.npartitions > 10_000
    assert len(cloudpickle.dumps(seg.data.dask)) < 10_000


SCRIPT = """
    import sys, dask, imageryxr as ix
    image, table, mode = sys.argv[1:]
    em = ix.open_image(image, chunks=None if mode == "lazily" else (8, 64, 64))
    if mode == "overlay":
        box = ix.BBox((640, 512, 320), (700, 600, 321), resolution=(10, 10, 10))
        seg = ix.open_segmentation(table, token="{TOKEN}", bbox=box)
        em = ix.overlay(ix.open_image(image, bbox=box), seg)
    print("reading", flush=True)
    try:
        if mode == "lazily":
            em[:20, :100, :100].values
        else:
            em.data.compute(scheduler="synchronous" if mode == "overlay" else mode)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        raise SystemExit(130)
    print("read", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("mode", slow_except(["lazily", "threads", "synchronous", "overlay"], "threads"))
def test_ctrl_c_interrupts_a_read_at_once(cave, mode):
    # Every chunk takes ten minutes, so the read can only end early if the interrupt ends it.
    fault = cave.fault("/data/../10_10_10", "delay", seconds=600)
    code = textwrap.dedent(SCRIPT).replace("{TOKEN}", TOKEN)
    process = subprocess.Popen(
        [sys.executable, "-c", code, cave.image, cave.table, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "reading\n"
        while fault.done < 1:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(
            timeout=30
        )  # stopping takes a fraction of a second; requests time out after 60 s
    finally:
        process.kill()
    assert "stopped" in out, err
    assert process.returncode == 130, err


@pytest.mark.slow
def test_a_silent_server_times_out():
    listener, url = stall_forever()
    with listener:
        short = ix.Connection(timeout=0.2, retries=1, backoff=0)
        with pytest.raises(ix.errors.ServerError, match="after 2 attempts: no answer within the timeout"):
            ix.open_segmentation(f"graphene://{url}/segmentation/table/t", token=TOKEN, connection=short)
        with pytest.raises(ix.errors.ServerError, match="no answer within the timeout"):
            ix.open_datastack("x", server_address=url, token=TOKEN, connection=short)
        with pytest.raises(ix.errors.ChunkReadError, match="no answer within the timeout"):
            ix.open_image(f"precomputed://{url}/em", connection=short)
