"""Fixtures of all tests: a temporary home folder, the sample volume, servers; and Hypothesis profiles."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.support.folders import temporary_folder

# cloud-volume creates a folder in the home directory when it is imported, and caveclient searches it for tokens.
os.environ["HOME"] = temporary_folder("home")

os.environ["CAVE_TOKEN"] = os.environ["CLOUD_VOLUME_DIR"] = ""

# Without bytecode, each process that a test starts compiles every module of the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, settings

import imageryxr as ix
from imageryxr.export.store.lease import Lease
from imageryxr.render import paint
from imageryxr.sources.cave import root_cache
from imageryxr.sources.fetch import client, disk_reads, memory_cache
from tests.support import cave_server, s3_server
from tests.support.processes import forked_workers as forked_workers_of_dask
from tests.support.sample_volume import session_sample

# Without bytecode, each process rewrites the assertions of all test modules again, which takes 10 s. numba writes into
# the same folders anyway.
sys.dont_write_bytecode = False

settings.register_profile(
    "default", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)  # fmt: skip
settings.register_profile("ci", settings.get_profile("default"), max_examples=200)
settings.load_profile("ci" if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else "default")

# If the file is in another place, the variable IMAGERYXR_FIB25 names it.
_beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "fib25" / "fib25_medulla_250.npz"
FIB25 = Path(os.environ.get("IMAGERYXR_FIB25", _beside))


# If Python is started in the background, as by `nohup pytest &`, it and all its child processes ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _reset_warnings_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test receive the warnings that a process issues only once."""
    monkeypatch.setattr(paint, "_HAS_WARNED", [])


@pytest.fixture(autouse=True)
def _shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry requests as often as usual, but with short pauses."""
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.01)


@pytest.fixture(autouse=True)
def _skip_disk_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not flush files to the disk, which would matter only after a power failure."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True)
def _clear_memory_cache() -> None:
    """Let each test request its own chunks and indexes."""
    memory_cache.cache.clear()
    disk_reads.clear()


@pytest.fixture(scope="session")
def sample(request: pytest.FixtureRequest) -> ix.Sample:
    """Return the sample volume of the tests, which the doctests also use."""
    return session_sample(request)


@pytest.fixture(scope="session")
def cave_everywhere(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest):
    """Return the CAVE deployment of this session."""
    if FIB25.exists():
        tissue = cave_server.fib25_tissue(FIB25)
    else:
        tissue = cave_server.sample_tissue(request.getfixturevalue("sample"))
    folder = tmp_path_factory.mktemp("cave")
    with cave_server.serving_cave(folder, tissue, cave_server.write_layers(folder, tissue)) as server:
        yield server


@pytest.fixture
def cave(cave_everywhere: cave_server.CaveServer) -> Iterator[cave_server.CaveServer]:
    """Yield the CAVE deployment in its initial state: no faults, an empty log, the first graph, and no cached roots."""
    cave_everywhere.reset()
    root_cache.clear_roots()
    yield cave_everywhere
    cave_everywhere.reset()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Return the address of the S3 server of this session."""
    with s3_server.serving_s3() as address:
        yield address


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> s3_server.Bucket:
    """Return a new bucket of the S3 server."""
    return s3_server.fresh_bucket(s3, monkeypatch)


@pytest.fixture
def forked_workers() -> Iterator[None]:
    """Fork the worker processes of dask clusters; without this fixture, they are new interpreters."""
    with forked_workers_of_dask():
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the heartbeat of leases, and the time after which they expire."""
    monkeypatch.setattr(Lease, "BEAT", 0.2)
    monkeypatch.setattr(Lease, "DEAD", 1.0)


@pytest.fixture
def hasty_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry the requests for layers of links as often as usual, but without a pause."""
    monkeypatch.setattr("imageryxr.neuroglancer.open.Connection", partial(ix.Connection, backoff=0))


@contextmanager
def no_compute() -> Iterator[None]:
    """Fail if dask computes anything in this context."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("dask computed although everything should stay lazy")

    with dask.config.set(scheduler=refuse):
        yield


def volume(values: np.ndarray, resolution=(8, 8, 40), offset=(0, 0, 0), **attrs) -> xr.DataArray:
    """Return values (z, y, x) as a labelled array."""
    grid = ix.Grid(values.shape, resolution, offset)
    return xr.DataArray(
        values, dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": grid.resolution, **attrs}
    )
