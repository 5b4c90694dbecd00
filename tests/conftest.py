"""What every test stands on: a home of its own, the sample volume, Hypothesis profiles."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# cloud-volume makes a folder in the home directory when it is imported, and caveclient looks for tokens there.
os.environ["HOME"] = tempfile.mkdtemp(prefix="imageryxr-home-")

os.environ["CAVE_TOKEN"] = os.environ["CLOUD_VOLUME_DIR"] = ""

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, settings

import imageryxr as ix
from imageryxr.export.store.lease import Lease
from imageryxr.render import paint
from imageryxr.sources.cave import chunkedgraph
from tests.support import cave_server, s3_server
from tests.support.sample_volume import session_sample

settings.register_profile(
    "default", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)  # fmt: skip
settings.register_profile("ci", settings.get_profile("default"), max_examples=200)
settings.load_profile("ci" if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else "default")

# Elsewhere in a second checkout of this repository: IMAGERYXR_FIB25 names the file then.
_beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "fib25" / "fib25_medulla_250.npz"
FIB25 = Path(os.environ.get("IMAGERYXR_FIB25", _beside))


# Started in the background, as by `nohup pytest &`, Python ignores Ctrl-C and so do all processes that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _warnings_shown_once_are_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test see the warnings that a process shows once, whichever tests ran before it."""
    monkeypatch.setattr(paint, "_MERGED", [])


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> ix.Sample:
    """The sample volume of this session, which the doctests use too."""
    return session_sample(tmp_path_factory)


@pytest.fixture(scope="session")
def cave_everywhere(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest):
    """A CAVE deployment for this session."""
    if FIB25.exists():
        tissue = cave_server.fib25_tissue(FIB25)
    else:
        tissue = cave_server.sample_tissue(request.getfixturevalue("sample"))
    folder = tmp_path_factory.mktemp("cave")
    with cave_server.serving_cave(folder, tissue, cave_server.write_layers(folder, tissue)) as server:
        yield server


@pytest.fixture
def cave(cave_everywhere: cave_server.CaveServer) -> Iterator[cave_server.CaveServer]:
    """The deployment as new: no faults, an empty log, its first history; and nothing remembered of it here."""
    cave_everywhere.reset()
    chunkedgraph.forget_roots()
    yield cave_everywhere
    cave_everywhere.reset()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server for this session."""
    with s3_server.serving_s3() as address:
        yield address


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> s3_server.Bucket:
    """A fresh bucket: its client and address."""
    return s3_server.fresh_bucket(s3, monkeypatch)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders of leases give signs of life more often, and are given up sooner."""
    monkeypatch.setattr(Lease, "BEAT", 0.2)
    monkeypatch.setattr(Lease, "DEAD", 1.0)


@contextmanager
def no_compute() -> Iterator[None]:
    """Fail if dask computes anything inside."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("dask computed, where everything should stay lazy")

    with dask.config.set(scheduler=refuse):
        yield


def volume(values: np.ndarray, resolution=(8, 8, 40), offset=(0, 0, 0), **attrs) -> xr.DataArray:
    """Return values (z, y, x) as a labelled array."""
    grid = ix.Grid(values.shape, resolution, offset)
    return xr.DataArray(
        values, dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": grid.resolution, **attrs}
    )
