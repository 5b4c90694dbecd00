"""The disk cache of compiled kernels: concurrent processes, damaged files, full disks and read-only folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import imageryxr

PACKAGE = Path(imageryxr.__file__).parent

CALL = """
import sys
import numpy as np
from imageryxr.kernels import isin
labels = np.repeat(np.arange(200, dtype=sys.argv[1]), 3)
kept = isin.select(labels, [5, 7])
assert kept.tolist() == [i if i in (5, 7) else 0 for i in labels.tolist()], kept.tolist()
print(sum(isin._select.stats.cache_misses.values()), "compiled")
"""


def start(cache, dtype="u8", before="", path=None):
    path = path or PACKAGE.parent
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", before + CALL, dtype]
    return subprocess.Popen(command, cwd=path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return int(out.split()[0])


@pytest.mark.slow
def test_processes_that_compile_at_once_all_store_their_kernels(tmp_path):
    # Delay the last step of a save, so that all processes save at the same time.
    slow = (
        "import time\nfrom numba.core.caching import IndexDataCacheFile as File\nsave = File._save_index\n"
        "def late(self, overloads):\n    time.sleep(2)\n    save(self, overloads)\nFile._save_index = late\n"
    )
    dtypes = ["u1", "u2", "u4", "u8"]
    assert sum(end(p) for p in [start(tmp_path, d, slow) for d in dtypes]) == 4
    assert sum(end(p) for p in [start(tmp_path, d) for d in dtypes]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "left"), [(".nbi", 0), (".nbc", 0.5)])
def test_damaged_cache_files_are_replaced(tmp_path, suffix, left):
    end(start(tmp_path))
    files = [p for p in tmp_path.rglob("*") if p.suffix == suffix]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    assert end(start(tmp_path)) == 1
    assert end(start(tmp_path)) == 0


@pytest.mark.slow
def test_a_full_disk_does_not_stop_kernels(tmp_path):
    pytest.importorskip("resource")
    full = (
        "import resource, signal, sys\nsys.dont_write_bytecode = True\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    )
    assert end(start(tmp_path, before=full)) == 1


@pytest.mark.slow
def test_a_kernel_is_compiled_again_if_a_function_that_it_calls_changes(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "imageryxr", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import numpy as np\nfrom imageryxr.kernels import relabel\n"
        "assert relabel.distinct_ids(np.array([3, 3, 2**63 + 1], 'u8')).tolist() == [3, 2**63 + 1]\n"
        "assert sum(relabel._distinct_ids.stats.cache_misses.values()) == 1\n"
    )
    assert end(start(tmp_path / "cache", before=code, path=tmp_path)) == 1
    changed = tmp_path / "imageryxr" / "kernels" / "color_table.py"
    changed.write_text(changed.read_text().replace("0x9E3779B97F4A7C15", "0x9E3779B97F4A7C17"))
    assert end(start(tmp_path / "cache", before=code, path=tmp_path)) == 1


NOWHERE = """
import numba.core.caching as caching
for locator in (caching.InTreeCacheLocator, caching.InTreeCacheLocatorFsAgnostic, caching.UserWideCacheLocator):
    def refuse(self):
        raise OSError("read-only")
    locator.ensure_cache_path = refuse
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owners on this platform")
@pytest.mark.parametrize("whose", ["nobody's", "open to all", "a link"])
def test_without_writable_cache_folders_kernels_are_stored_in_a_private_temporary_folder(tmp_path, whose):
    """Simulate a container with read-only folders; the temporary folder must belong to this user alone."""
    folder = tmp_path / f"imageryxr-kernels-{os.getuid()}"
    if whose == "open to all":
        folder.mkdir()
        folder.chmod(0o777)
    elif whose == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    before = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}" + NOWHERE
    found = [end(start("", before=before)) for _ in range(2)]
    assert found == ([1, 0] if whose == "nobody's" else [1, 1])
    assert bool(list(tmp_path.rglob("*.nbi"))) == (whose == "nobody's")


GATHERED = """
from numba.core.cpu import CPUContext
times, refresh = [], CPUContext.refresh
CPUContext.refresh = lambda self: (times.append(1), refresh(self))[1]
"""

AFTER = """
assert not times, "loading a kernel initialized numba's registry"
from numba import njit
@njit
def both(a):
    found = {}
    for i, v in enumerate(np.unique(a)):
        found[v] = i
    return np.sort(a)[::-1].sum() + len(found) + np.sqrt(4.0)
assert both(np.array([3, 1, 3])) == 11
assert times
assert isin.select(np.arange(5, dtype=np.int16), [2]).tolist() == [0, 0, 2, 0, 0]
"""


@pytest.mark.slow
def test_numba_can_compile_after_kernels_were_loaded(tmp_path):
    """Loading a kernel does not initialize numba's registry of functions; a later compilation must."""
    end(start(tmp_path))
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", GATHERED + CALL + AFTER, "u8"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "0"
