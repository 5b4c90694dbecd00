"""OME-Zarr in a local zip archive (``.ozx``, ``.zarr.zip``).

A path may continue within the archive: ``/data/em.ozx/labels/cells``.
"""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from imageryxr.core.lazy_import import import_package
from imageryxr.errors import SourceError
from imageryxr.sources.omezarr.object_check import DamagedObjectError

_MOST_METADATA = 2**26
_MOST_OBJECT = 2**32
"""Largest decompressed size of an entry: a small archive may state any number."""
_METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray")


class Archive(NamedTuple):
    """A folder in a zip archive."""

    file: str
    """Path of the archive."""
    prefix: str
    """Path of the folder in the archive: empty, or ending in a slash."""


def find_archive(path: str | os.PathLike[str]) -> Archive | None:
    """Return the zip archive that a local path names, and the folder in it; None if the path contains no archive.

    Only the end of the file is read. If the archive contains one Zarr folder, the path of the archive names that
    folder.

    Raises
    ------
    SourceError
        If the archive is damaged.
    """
    whole = Path(path)
    if whole.is_dir():
        return None
    for file in (whole, *whole.parents):
        if file.is_dir():
            return None
        if file.is_file():
            break
    else:
        return None
    if file.suffix.lower() == ".npz" or not zipfile.is_zipfile(file):  # NumPy's archives contain no Zarr
        return None
    inner = "/".join(whole.parts[len(file.parts) :])
    return Archive(str(file), f"{inner}/" if inner else _root(str(file)))


def _root(file: str) -> str:
    names = _names(file, os.stat(file).st_mtime_ns)
    if any(name in names for name in _METADATA):
        return ""
    roots = {name.rpartition("/")[0] for name in names if name.count("/") == 1 and name.endswith(_METADATA)}
    return f"{roots.pop()}/" if len(roots) == 1 else ""


@lru_cache(maxsize=64)
def _names(file: str, mtime: int) -> frozenset[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return frozenset(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SourceError(f"the archive {file} cannot be read: {error}; check that it is complete") from error


def read_entry(place: Archive, key: str) -> bytes:
    """Return the metadata at a key of an archive.

    Raises
    ------
    FileNotFoundError
        If there is no such entry.
    SourceError
        If the entry is damaged, encrypted or too large.
    """
    name = place.prefix + key
    try:
        with zipfile.ZipFile(place.file) as archive:
            if archive.getinfo(name).file_size > _MOST_METADATA:
                raise SourceError(f"{name} in {place.file} exceeds the limit of {_MOST_METADATA:,} bytes of metadata")
            return archive.read(name)
    except KeyError:
        raise FileNotFoundError(name) from None
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, EOFError) as error:
        # zipfile raises RuntimeError for encrypted entries and NotImplementedError for unknown compressions.
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{name} in the archive {place.file} cannot be read: {error}") from error


def open_archive(place: Archive) -> Any:
    """Return the read-only Zarr store of a folder in an archive; one store per process."""
    return _open_store(place, os.stat(place.file).st_mtime_ns, os.getpid())


@lru_cache(maxsize=16)
def _open_store(place: Archive, mtime: int, pid: int) -> Any:
    store = _store_class()(place.file, place.prefix)
    store._sync_open()
    return store


@lru_cache(maxsize=1)
def _store_class() -> Any:
    import_package("zarr")
    from zarr.storage import ZipStore

    class ArchiveStore(ZipStore):
        """A Zarr store of a folder in a zip archive."""

        def __init__(self, file: str, prefix: str) -> None:
            super().__init__(file, mode="r", read_only=True)
            self.prefix = prefix

        async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            try:
                if self._zf.getinfo(self.prefix + key).file_size > _MOST_OBJECT:
                    raise DamagedObjectError(f"the entry {key} exceeds the limit of {_MOST_OBJECT:,} bytes")
            except KeyError:
                return None
            return await super().get(self.prefix + key, *args, **kwargs)

    return ArchiveStore
