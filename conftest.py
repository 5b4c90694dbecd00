"""The number of processes that run the tests."""

from __future__ import annotations

import os

import pytest

MOST_PROCESSES = 4  # each takes 1 GB, and dask clusters in tests start more


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes run the tests: one a core for folders, none for single files, which start faster."""
    named = [config.rootpath / argument.partition("::")[0] for argument in config.args]
    if not all(path.is_dir() for path in named):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores == 1 else min(cores, MOST_PROCESSES)
