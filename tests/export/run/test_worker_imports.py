"""Workers without the package are found before they get a region."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.errors import TargetError
from tests.conftest import volume
from tests.support.export_jobs import cluster_of

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "imageryxr":
            raise ModuleNotFoundError("No module named 'imageryxr'", name="imageryxr")
sys.meta_path.insert(0, Block())
"""
IMAGE = volume(np.arange(512, dtype=np.uint16).reshape(8, 8, 8))


@contextmanager
def worker_without_package(address: str, folder: Path) -> Iterator[None]:
    """Run a worker that cannot import the package."""
    (folder / "sitecustomize.py").write_text(BLOCK)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
    with (folder / "worker.txt").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("others", [0, 1])
def test_a_worker_without_the_package_is_named_before_the_export(tmp_path, others):
    with (
        cluster_of(others) as client,
        worker_without_package(client.scheduler.address, tmp_path),
    ):
        client.wait_for_workers(others + 1, timeout=60)
        with pytest.raises(
            TargetError, match=r"worker tcp://.* cannot import imageryxr .*install the same version there"
        ):
            ix.export(IMAGE, tmp_path / "out.zarr", client=client)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.slow
def test_a_worker_without_the_package_that_joins_later_is_named(tmp_path):
    with (
        cluster_of(0) as client,
        worker_without_package(client.scheduler.address, tmp_path),
        pytest.raises(TargetError, match="cannot import imageryxr"),
    ):
        ix.export(IMAGE, tmp_path / "out.zarr", client=client)


@pytest.mark.slow
def test_query_planning_of_dask_is_refused():
    code = """
import numpy as np, imageryxr as ix
grid = ix.Grid((4, 4, 4), (8, 8, 8), (0, 0, 0))
import xarray as xr
image = xr.DataArray(np.zeros((4, 4, 4), np.uint8), dims=("z", "y", "x"), coords=grid.coords())
for verb in (lambda: ix.outline(image.astype("uint64")), lambda: ix.export(image, "memory://")):
    try:
        verb()
    except ix.errors.OptionError as error:
        print(error)
"""
    environment = {**os.environ, "DASK_ARRAY__QUERY_PLANNING": "True", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.count("DASK_ARRAY__QUERY_PLANNING=False") == 2, done.stderr
