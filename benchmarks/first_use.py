"""Time the import, and the first call of kernels that another process compiled."""

from __future__ import annotations

import compileall
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import imageryxr
from benchmarks import work


def run(code: str) -> str:
    """Run Python code in a separate process and return its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


KERNELS = """
import time, numpy as np, numba
from imageryxr.kernels import color_table, fill, outline
labels = np.arange(64, dtype=np.uint64).reshape(1, 8, 8) // np.uint64(9)
image = np.zeros((1, 8, 8), np.uint8)
table = color_table.build_color_table([1, 2, 3], np.full((3, 4), 255, np.uint8))
began = time.perf_counter()
{call}
print(time.perf_counter() - began)
"""
CALLS = {
    "fill": "outline.paint(labels, image, table, None)",
    "outline in": "outline.paint(labels, None, None, table, limit=2, side='in', merge=False)",
    "outline out, merged": "outline.paint(labels, None, None, table, limit=2)",
    "outline out, unmerged": "outline.paint(labels, None, None, table, limit=2, merge=False)",
}


class Import(work.Work):
    title = "import xarray, dask.array and imageryxr"
    peer_name = "import xarray, dask.array"
    rounds = 5

    def setup(self, *params: Any) -> None:
        # pip does this at installation; without it, the bytecode of a checkout may not be cached.
        compileall.compile_dir(Path(imageryxr.__file__).parent, quiet=1)
        if self.small:
            self.rounds = 1  # type: ignore[misc]

    def ours(self) -> Any:
        return run("import xarray, dask.array, imageryxr")

    def peer(self) -> Any:
        return run("import xarray, dask.array")

    def remark(self) -> str:
        """Return a remark for the title of the row."""
        found = self.measure()
        return f"adds {1e3 * (found.ours - (found.peer or 0)):.0f} ms (target: at most 150)"


def kernel_seconds(call: str) -> float:
    """Return the time of the first call of a kernel in a new process, after another process filled the cache."""
    code = KERNELS.format(call=CALLS[call])
    run(code)
    return min(float(run(code)) for _ in range(2))


class CachedKernel:
    """The time of the first call of a kernel that another process compiled, as a benchmark of asv."""

    params: ClassVar[list[str]] = list(CALLS)
    param_names = ("kernel",)
    unit = "s"

    def track_seconds(self, call: str) -> float:
        return kernel_seconds(call)
