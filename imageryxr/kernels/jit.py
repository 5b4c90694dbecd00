"""Compile kernels with numba and cache them on disk.

numba's own cache has one index file per function, which causes three problems: two processes that compile a function
for different dtypes can corrupt the index; a damaged file or a full disk makes the call fail; and an entry stays valid
when a function of another module changes that is compiled into the kernel. Here each kernel and signature has its own
file, whose name contains a hash of the sources of all kernels. If that file cannot be read, the kernel is compiled.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from inspect import getfile
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime.nrt import rtsys

from imageryxr.core.fork import hold_during_forks

# numba holds this lock while it compiles or loads a kernel, which may take seconds.
hold_during_forks(global_compiler_lock)

_F = TypeVar("_F", bound=Callable[..., Any])


def compile_kernel(function: _F) -> _F:
    """Compile a function with numba, without the GIL, and with a cache on disk if one is writable."""
    kernel: Any = njit(nogil=True)(function)
    kernel._cache = _make_cache(function) or kernel._cache
    return cast(_F, kernel)


def _make_cache(function: Callable[..., Any]) -> _KernelCache | None:
    """Return the disk cache of a kernel, or None if no folder is writable."""
    config: Any = numba.config
    for folder in (lambda: config.CACHE_DIR, _private_temp_folder):
        given, config.CACHE_DIR = config.CACHE_DIR, folder()
        try:
            return _KernelCache(function)  # type: ignore[no-untyped-call]
        except RuntimeError:
            continue  # neither the package nor the user's cache directory is writable, for example in a container
        finally:
            config.CACHE_DIR = given
    return None


@cache
def _private_temp_folder() -> str:
    """Return a temporary folder that only this user can write to, or an empty string if there is none.

    The cached files contain code that is executed, so other users must not be able to replace them.
    """
    if not hasattr(os, "getuid"):
        return ""
    folder = Path(tempfile.gettempdir()) / f"imageryxr-kernels-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return ""
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return str(folder) if private else ""


class _KernelCache(FunctionCache):
    """A cache of compiled kernels with one file per signature."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kernel for a signature, or None if it must be compiled."""
        # numba would load its registry of typed functions here, which takes 0.2 s and blocks all threads. A compiled
        # kernel does not need the registry, only the runtime's memory functions.
        rtsys.initialize(target_context)
        entry, key = self._entry(sig, target_context.codegen())
        try:
            data = entry.load(key)
            return None if data is None else self._impl.rebuild(target_context, data)
        except Exception:
            return None  # unpickling a damaged file may raise any exception

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled kernel if possible."""
        if not self._impl.check_cachable(data):
            return
        entry, key = self._entry(sig, data.codegen)
        try:
            self._impl.locator.ensure_cache_path()
            reduced = self._impl.reduce(data)
            try:
                entry.save(key, reduced)
            except Exception:
                entry.flush()  # replaces a damaged index
                entry.save(key, reduced)
        except Exception:
            return  # for example, the disk is full; the kernel remains in memory

    def _entry(self, sig: Any, codegen: Any) -> tuple[Any, Any]:
        key = self._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        name = blake2b(repr((key, numba.__version__)).encode(), digest_size=8).hexdigest()
        sources = _source_hash(getfile(self._py_func))
        stamp = sources or self._impl.locator.get_source_stamp()
        base = f"{self._impl.filename_base}-{sources}-{name}"
        return IndexDataCacheFile(self.cache_path, base, stamp), key  # type: ignore[no-untyped-call]


@cache
def _source_hash(file: str) -> str:
    """Return a hash of the sources of a file and of all kernels, or an empty string if they cannot be read."""
    found = blake2b(digest_size=8)
    try:
        for path in (Path(file), *sorted(Path(__file__).parent.glob("*.py"))):
            found.update(path.read_bytes())
    except OSError:
        return ""
    return found.hexdigest()
