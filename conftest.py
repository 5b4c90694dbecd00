"""The number of processes that run the tests, and what doctests see."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_volume import session_sample

# It loads the kernels, and is imported only by the process that forks the workers of clusters.
collect_ignore = ["tests/support/preload.py"]

MOST_PROCESSES = 4  # each takes 1 GB, and dask clusters in tests start more


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes run the tests: none for single files, and three on two cores for folders.

    Single files start faster without. Tests wait a third of their time, for servers and for other processes.
    """
    named = [config.rootpath / argument.partition("::")[0] for argument in config.args]
    if not all(path.is_dir() for path in named):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores == 1 else min(cores * 3 // 2, MOST_PROCESSES)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the forms of a test as slow, except as many as its `fast_forms` says, which are spread evenly."""
    forms: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("fast_forms")
        if mark and not item.get_closest_marker("slow"):
            forms.setdefault((item.nodeid.partition("[")[0], mark.args[0]), []).append(item)
    for (_, count), found in forms.items():
        fast = {round(n * (len(found) - 1) / max(count - 1, 1)) for n in range(count)}
        for n, item in enumerate(found):
            if n not in fast:
                item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Exempt all that exists now from garbage collections, each of which would take half a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def sample_path(request: pytest.FixtureRequest) -> Path:
    """Return the folder of the sample volume of the tests."""
    return session_sample(request).path


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        doctest_namespace["os"] = os
        if "sample_path" in "".join(e.source for e in request.node.dtest.examples):
            doctest_namespace["sample_path"] = request.getfixturevalue("sample_path")
