"""Python processes that tests start, stop and kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import dask

from tests.support.forkserver import Forked

ROOT = Path(__file__).parents[2]
METHOD = "distributed.worker.multiprocessing-method"


@contextmanager
def forked_workers() -> Iterator[None]:
    """Fork the worker processes of dask clusters from a process that has imported the package, so that they start fast.

    Without this context, workers are new interpreters, as for users.
    """
    if sys.platform != "linux":
        yield
        return
    from distributed.utils import get_mp_context

    # forks inherit the environment that the forking process had when it started, so the current one is passed
    with dask.config.set({METHOD: "forkserver", "distributed.nanny.environ": dict(os.environ)}):
        get_mp_context()  # sets the preload modules of dask, which the next line replaces
        multiprocessing.set_forkserver_preload(["tests.support.preload"])
        with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
            forkserver.ensure_running()
        yield


def spawned_workers() -> dask.config.set:
    """Start the worker processes of dask clusters as new interpreters, as for users."""
    import distributed  # noqa: F401 - sets its options, which the end of the context would remove with this one

    return dask.config.set({METHOD: "spawn"})


def python(*args, stdout=None, stderr=None, session=False):
    """Start a Python process: on Linux a fork of the fork server, unless a module is run (-m); otherwise a new interpreter."""
    env, command = {**os.environ, "PYTHONPATH": str(ROOT)}, [str(arg) for arg in args]
    if sys.platform == "linux" and command[0] != "-m":
        return Forked(command, env, stdout, stderr, session)
    return subprocess.Popen(
        [sys.executable, *command],
        env=env,
        cwd=ROOT,
        text=True,
        stdout=stdout,
        stderr=stderr,
        start_new_session=session,
    )


def run_python(*args, timeout=300) -> subprocess.CompletedProcess[str]:
    """Run a program or script in a process that `python` starts; return its exit code and output."""
    process = python(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def succeeds_in_fork(function: Callable[[], object]) -> bool:
    """Return whether a function returns within 20 s in a forked child of this process."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(20)
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _wait_for(folder, pattern, lines):
    for _ in range(6000):
        found = [p for p in folder.rglob(pattern) if len(p.read_bytes().splitlines()) > lines]
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"no {pattern} in {folder}")
