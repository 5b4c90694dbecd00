"""Roots of supervoxels on a disk: a new process does not request them again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.sources.cave import root_cache
from imageryxr.sources.cave.root_cache import RootMemory, disk_of
from imageryxr.sources.cave.timestamp import Instant
from imageryxr.sources.fetch import disk_cache, memory_cache
from tests.support.cave import BOX, NOW, PART
from tests.support.cave_server import SPLIT, TOKEN

TABLE = ("https://graph.example", "segmentation", "cells")


def read(cave, when, folder, box=BOX):
    """Read a box as a new process does."""
    root_cache.clear_roots()
    memory_cache.cache.clear()
    disk_cache._caches.clear()
    connection = ix.Connection(retries=0, disk_cache=folder)
    return ix.open_segmentation(cave.table, timestamp=when, token=TOKEN, bbox=box, connection=connection).values


def test_a_new_process_requests_no_root_again(cave, tmp_path):
    expected = cave.truth(NOW, PART)
    np.testing.assert_array_equal(read(cave, NOW, tmp_path), expected)
    assert cave.count("roots_binary") > 0
    cave.log.clear()
    np.testing.assert_array_equal(read(cave, NOW, tmp_path), expected)
    assert cave.count("roots_binary") == 0


def test_roots_are_stored_separately_for_each_instant(cave, tmp_path):
    read(cave, NOW, tmp_path)
    before = SPLIT - 1
    np.testing.assert_array_equal(read(cave, before, tmp_path), cave.truth(before, PART))


def test_the_token_is_not_stored(cave, tmp_path):
    read(cave, NOW, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if TOKEN.encode() in path.read_bytes() or TOKEN in str(path)]


ID = st.integers(1, 2**64 - 1)


@given(st.lists(st.dictionaries(ID | st.integers(2**60, 2**60 + 50), ID, max_size=20), max_size=4))
def test_loaded_roots_equal_the_stored_ones(tmp_path_factory, tables):
    folder = tmp_path_factory.mktemp("cache")
    disk = disk_of(TABLE, Instant(1), ix.Connection(disk_cache=folder))
    truth = {}
    for table in tables:
        ids = np.array(sorted(table), np.uint64)
        truth |= table
        disk.store(ids, np.array([truth[i] for i in sorted(table)], np.uint64))
    memory, ids = RootMemory(), np.array(sorted(truth), np.uint64)
    disk.load(ids, memory)
    known, roots = memory.look_up(ids)
    assert known.all()
    assert roots.tolist() == [truth[int(i)] for i in ids]
    other = disk_of(TABLE, Instant(2), ix.Connection(disk_cache=folder))
    other.load(ids, memory := RootMemory())
    assert len(memory) == 0


def test_ids_in_many_chunks_are_not_stored(tmp_path):
    disk = disk_of(TABLE, Instant(1), ix.Connection(disk_cache=tmp_path))
    ids = np.arange(1, 1000, dtype=np.uint64) << np.uint64(30)
    disk.store(ids, ids)
    disk.load(ids, memory := RootMemory())
    assert len(memory) == 0


@pytest.mark.parametrize("folder", [None, False])
def test_without_a_folder_there_is_no_disk_cache(folder, monkeypatch):
    monkeypatch.delenv(disk_cache.VARIABLE, raising=False)
    assert disk_of(TABLE, Instant(1), ix.Connection(disk_cache=folder)) is None
