"""The number of processes that run the tests, and what doctests see."""

from __future__ import annotations

import functools
import gc
import inspect
import os
from pathlib import Path

import pytest

import imageryxr as ix
from imageryxr.accessor import ImageryArray, ImageryDataset, ImageryTree
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


@functools.cache
def public_names() -> tuple[str, ...]:
    """Return the full names of all that users call: the public names, and the methods of the accessors."""
    values = [getattr(ix, name) for name in ix.__all__ if name != "errors"]
    for accessor in (ImageryArray, ImageryDataset, ImageryTree):
        values += [accessor, *(value for value in vars(accessor).values() if inspect.isfunction(value))]
    return ("imageryxr", *{f"{value.__module__}.{value.__qualname__}" for value in values})


@pytest.fixture(autouse=True)
def _new_session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the examples of public functions as in a new session, without the names of their modules.

    They write the sample volume into the current folder; here it exists.
    """
    if not isinstance(request.node, pytest.DoctestItem):
        return
    test = request.node.dtest
    if test.name in public_names() or test.name.rpartition(".")[0] in public_names():
        test.globs.clear()
    if 'ix.sample("sample")' in "".join(example.source for example in test.examples):
        monkeypatch.chdir(session_sample(request).path.parent)
