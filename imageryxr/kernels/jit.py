"""Compiled kernels on disk: made once a machine, whoever comes first.

numba's own files are keyed by function: two processes that save one function for two dtypes at once may each lose what
the other wrote, or worse take it for their own; a file that is damaged, or a disk that is full, stops the call that
needs the kernel; and a function stays as it was when another module's, compiled into it, changes. Here each
kernel and signature has a file of its own, named after all sources of the kernels, and what cannot be read or written
is compiled instead.
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
from numba.core.runtime.nrt import rtsys

__all__ = ["compiled"]

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compile `function` with numba, without the GIL and with a cache on disk where one can be written."""
    kernel: Any = njit(nogil=True)(function)
    kernel._cache = _cache_of(function) or kernel._cache
    return cast(_F, kernel)


def _cache_of(function: Callable[..., Any]) -> _KernelCache | None:
    """Return where a kernel is kept, or None if it can be kept nowhere."""
    config: Any = numba.config
    for folder in (lambda: config.CACHE_DIR, _temporary):
        given, config.CACHE_DIR = config.CACHE_DIR, folder()
        try:
            return _KernelCache(function)  # type: ignore[no-untyped-call]
        except RuntimeError:
            continue  # neither the package nor the user's cache directory can be written: a container, say
        finally:
            config.CACHE_DIR = given
    return None


@cache
def _temporary() -> str:
    """Return a folder for temporary files that is this user's alone, since what lies there is run; or nothing."""
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
    """What numba asks for kernels that it has compiled before."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kernel for a signature, or None for one that has to be compiled."""
        # What numba knows of Python's and numpy's functions takes it 0.2 s to gather, of all threads; it does so before
        # it compiles. What is compiled needs its memory functions, and names that are there since it was imported.
        rtsys.initialize(target_context)
        entry, key = self._entry(sig, target_context.codegen())
        try:
            data = entry.load(key)
            return None if data is None else self._impl.rebuild(target_context, data)
        except Exception:
            return None  # a damaged file, whatever it makes of unpickling

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled kernel, if that can be done."""
        if not self._impl.check_cachable(data):
            return
        entry, key = self._entry(sig, data.codegen)
        try:
            self._impl.locator.ensure_cache_path()
            reduced = self._impl.reduce(data)
            try:
                entry.save(key, reduced)
            except Exception:
                entry.flush()  # the index was damaged
                entry.save(key, reduced)
        except Exception:
            return  # a full disk, say: the kernel is in memory

    def _entry(self, sig: Any, codegen: Any) -> tuple[Any, Any]:
        key = self._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        name = blake2b(repr((key, numba.__version__)).encode(), digest_size=8).hexdigest()
        sources = _sources(getfile(self._py_func))
        stamp = sources or self._impl.locator.get_source_stamp()
        base = f"{self._impl.filename_base}-{sources}-{name}"
        return IndexDataCacheFile(self.cache_path, base, stamp), key  # type: ignore[no-untyped-call]


@cache
def _sources(file: str) -> str:
    """Return what tells the sources of a file and of all kernels from others; nothing if they cannot be read."""
    found = blake2b(digest_size=8)
    try:
        for path in (Path(file), *sorted(Path(__file__).parent.glob("*.py"))):
            found.update(path.read_bytes())
    except OSError:
        return ""
    return found.hexdigest()
