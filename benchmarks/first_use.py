"""Before the first picture: imports, and kernels that another process has compiled already."""

from __future__ import annotations

import compileall
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import imageryxr
from benchmarks import work


def run(code: str) -> str:
    """Run Python code in a process of its own and return what it prints."""
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
    "fill": "fill.fill(labels, image, table)",
    "outline in": "outline.outline(labels, table, limit=2, side='in', merge=False)",
    "outline out, merged": "outline.outline(labels, table, limit=2)",
    "outline out, unmerged": "outline.outline(labels, table, limit=2, merge=False)",
}


class Import(work.Work):
    title = "import xarray, dask.array and imageryxr"
    peer_name = "import xarray, dask.array"
    rounds = 5

    def setup(self, *params: Any) -> None:
        # As pip does when it installs: an environment may forbid Python to keep the bytecode of a checkout.
        compileall.compile_dir(Path(imageryxr.__file__).parent, quiet=1)
        if self.small:
            self.rounds = 1  # type: ignore[misc]

    def ours(self) -> Any:
        return run("import xarray, dask.array, imageryxr")

    def peer(self) -> Any:
        return run("import xarray, dask.array")

    def told(self) -> str:
        """Return what the table says beside the times."""
        found = self.measure()
        return f"adds {1e3 * (found.ours - (found.peer or 0)):.0f} ms (asked: at most 150)"


def kernel_seconds(call: str) -> float:
    """Return how long the first call of a kernel takes in a new process, of which another has filled the cache."""
    code = KERNELS.format(call=CALLS[call])
    run(code)
    return min(float(run(code)) for _ in range(2))


class CachedKernel:
    """Seconds until a kernel has drawn its first pixels in a process that finds it compiled."""

    params: ClassVar[list[str]] = list(CALLS)
    param_names = ("kernel",)
    unit = "s"

    def track_seconds(self, call: str) -> float:
        return kernel_seconds(call)
