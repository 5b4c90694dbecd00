"""Import all modules of a worker and load the kernels, in the process that forks the workers of dask clusters."""

from __future__ import annotations

import distributed.http
import distributed.nanny
import distributed.worker  # noqa: F401

import imageryxr.export.run.cluster  # noqa: F401
from tests.support.warm import load

load()
