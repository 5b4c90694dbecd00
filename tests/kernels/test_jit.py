"""The disk cache of compiled kernels: concurrent processes, damaged files, full disks and read-only folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numba.core.compiler_lock import global_compiler_lock

import imageryxr
from imageryxr.kernels.jit import compile_kernel
from tests.support.processes import python, succeeds_in_fork

PACKAGE = Path(imageryxr.__file__).parent

# Kernels that compile in a fraction of a second: one calls the other, and both are compiled once per dtype.
KERNELS = """
from imageryxr.kernels.jit import compile_kernel

@compile_kernel
def twice(value):
    return value + value

@compile_kernel
def double(values, out):
    for i in range(values.size):
        out[i] = twice(values[i])
"""

CALL = """
import sys
import numba
import numpy as np
numba.config.CACHE_DIR = sys.argv[1]
sys.path.insert(0, sys.argv[2])
import small_kernels
values = np.arange(100, dtype=sys.argv[3])
out = np.empty_like(values)
small_kernels.double(values, out)
assert out.tolist() == [2 * i for i in range(100)], out
print(sum(small_kernels.double.stats.cache_misses.values()), "compiled")
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Return a folder that contains the module `small_kernels`."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "small_kernels.py").write_text(KERNELS)
    return folder


@pytest.fixture
def start(modules):
    def start(cache, dtype="u8", before=""):
        return python("-c", before + CALL, cache, modules, dtype, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


def end(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return int(out.split()[0])


AT_ONCE = """
import time
from pathlib import Path
from numba.core.caching import IndexDataCacheFile as File
save = File._save_index

def save_with_the_others(self, overloads):
    Path(self._index_path).with_suffix(".ready").touch()
    while len(list(Path(self._index_path).parent.glob("small_kernels.double*.ready"))) < 4 and "double" in self._index_path:
        time.sleep(0.01)
    save(self, overloads)

File._save_index = save_with_the_others
"""


@pytest.mark.slow
def test_processes_that_compile_at_once_all_store_their_kernels(tmp_path, start):
    """The last step of a save waits until each process has reached it."""
    dtypes = ["u1", "u2", "u4", "u8"]
    assert sum(end(p) for p in [start(tmp_path, d, AT_ONCE) for d in dtypes]) == 4
    assert sum(end(p) for p in [start(tmp_path, d) for d in dtypes]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "left"), [(".nbi", 0), (".nbc", 0.5)])
def test_damaged_cache_files_are_replaced(tmp_path, start, suffix, left):
    end(start(tmp_path))
    files = [p for p in tmp_path.rglob("*") if p.suffix == suffix]
    assert len(files) == 2
    for path in files:
        path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    assert end(start(tmp_path)) == 1
    assert end(start(tmp_path)) == 0


@pytest.mark.slow
def test_a_full_disk_does_not_stop_kernels(tmp_path, start):
    pytest.importorskip("resource")
    full = (
        "import resource, signal, sys\nsys.dont_write_bytecode = True\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    )
    assert end(start(tmp_path, before=full)) == 1


CALLER = """
import numpy as np
from imageryxr.kernels.color_table import first_probe
from imageryxr.kernels.jit import compile_kernel

@compile_kernel
def probe(key):
    return first_probe(key, 1 << 20)

print(sum(probe.stats.cache_misses.values()) if probe(np.uint64(3)) else None, int(probe(np.uint64(3))))
"""


@pytest.mark.slow
def test_a_kernel_is_compiled_again_if_a_function_that_it_calls_changes(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "imageryxr", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "caller.py").write_text(CALLER)
    changed = tmp_path / "imageryxr" / "kernels" / "color_table.py"
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    env["PYTHONDONTWRITEBYTECODE"] = "1"  # Python would take bytecode of a file of the same second and size
    gamma = 0x9E3779B97F4A7C15
    for factor, misses in ((gamma, 1), (gamma, 0), (gamma + 2**50, 1)):
        changed.write_text(changed.read_text().replace(f"0x{gamma:X}", f"0x{factor:X}"))
        command = [sys.executable, "-c", "import caller"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(misses), str((3 * factor % 2**64 >> 32 << 20) >> 32)]


NOWHERE = """
import numba.core.caching as caching
for locator in (caching.InTreeCacheLocator, caching.InTreeCacheLocatorFsAgnostic, caching.UserWideCacheLocator):
    def refuse(self):
        raise OSError("read-only")
    locator.ensure_cache_path = refuse
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners of folders")
@pytest.mark.parametrize("whose", ["nobody's", "open to all", "a link"])
def test_without_writable_cache_folders_kernels_are_stored_in_a_private_temporary_folder(tmp_path, start, whose):
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
    for i, v in enumerate(a):
        found[v] = i
    return np.sort(a)[::-1].sum() + len(found) + np.sqrt(4.0)
assert both(np.array([3, 1, 3])) == 7 + 2 + 2
assert times
small_kernels.double(np.arange(5, dtype=np.int16), short := np.empty(5, np.int16))
assert short.tolist() == [0, 2, 4, 6, 8]
"""


@pytest.mark.slow
def test_numba_can_compile_after_kernels_were_loaded(tmp_path, modules, start):
    """Loading a kernel does not initialize numba's registry of functions, so a later compilation must do so."""
    end(start(tmp_path))
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", GATHERED + CALL + AFTER, str(tmp_path), str(modules), "u8"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "0"


@pytest.mark.slow
def test_a_child_forked_while_a_thread_compiles_a_kernel_compiles_it_as_well():
    @compile_kernel
    def first(values):
        return values.sum()

    @compile_kernel
    def second(values):
        return values.max()

    values = np.arange(3.0)
    thread = threading.Thread(target=first, args=(values,))
    thread.start()
    while global_compiler_lock._lock.acquire(blocking=False):  # until the thread compiles
        global_compiler_lock._lock.release()
        if not thread.is_alive():
            break
    assert succeeds_in_fork(lambda: first(values) + second(values))
    thread.join()


def test_a_fork_waits_for_a_lock_that_a_thread_holds():
    code = """
import os, threading, time
from imageryxr.core.fork import hold_during_forks
lock, held = threading.RLock(), threading.Event()
hold_during_forks(lock)
def hold():
    with lock:
        held.set()
        time.sleep(0.3)
threading.Thread(target=hold).start()
held.wait()
pid = os.fork()
if not pid:
    os._exit(not lock.acquire(timeout=10))
assert lock.acquire(timeout=10)
assert os.waitpid(pid, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
