"""The engine reads many objects at once, joins neighbouring ranges, and uses the memory cache."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.sources.fetch import engine, memory_cache
from imageryxr.sources.fetch.engine import LARGEST_GAP, LARGEST_RANGE, ObjectRequest, join_ranges, read_objects
from imageryxr.sources.fetch.memory_cache import MemoryCache, Stored
from imageryxr.sources.fetch.object_stores import LocalFolder, WebFolder
from imageryxr.sources.fetch.policy import Access

WHOLE = np.random.default_rng(0).bytes(1_000_000)


@dataclass
class Folder:
    """A store in memory that records requests."""

    files: dict[str, bytes]
    identity: str | None = "here"
    width: int = 4
    requested: list = field(default_factory=list)
    disk_place: None = None

    def get(self, key, part, limit, stop):
        self.requested.append((key, part and (part.start, part.stop)))
        body = self.files.get(key)
        return None if body is None else Stored(body if part is None else part.cut(body))


def read(store, requests, **options):
    found, lock = {}, threading.Lock()

    def use(request, voxels):
        with lock:
            found[request.key, request.span] = None if voxels is None else voxels.tobytes()

    read_objects(store, requests, decode, use, ix.Connection(**options))
    return found


def decode(request, stored):
    return np.frombuffer(stored.body, "u1").copy()


def ranges(*spans):
    return [ObjectRequest("f", 1 << 20, 100, span) for span in spans]


def test_each_object_is_passed_to_the_callback_and_a_missing_one_as_none():
    store = Folder({"a": b"1", "b": b"2"})
    requests = [ObjectRequest(key, 10, 10) for key in "abc"]
    assert read(store, requests) == {("a", None): b"1", ("b", None): b"2", ("c", None): None}


def test_a_second_read_requests_only_missing_objects():
    store = Folder({"a": b"1"})
    requests = [ObjectRequest(key, 10, 10) for key in "ac"]
    first = read(store, requests)
    store.requested.clear()
    assert read(store, requests) == first
    assert store.requested == [("c", None)]


@pytest.mark.parametrize("change", ["no identity", "memory_cache=0"])
def test_nothing_is_cached_for_a_store_without_identity_or_a_connection_without_cache(change):
    store = Folder({"a": b"1"}, identity=None if change == "no identity" else "here")
    options = {} if change == "no identity" else {"memory_cache": 0}
    for _ in range(2):
        read(store, [ObjectRequest("a", 10, 10)], **options)
    assert len(store.requested) == 2


def test_an_object_that_cannot_be_decoded_is_not_cached():
    store = Folder({"a": b"1"})

    def fail(request, stored):
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        read_objects(store, [ObjectRequest("a", 10, 10)], fail, print, ix.Connection())
    read(store, [ObjectRequest("a", 10, 10)])
    assert len(store.requested) == 2


def test_reading_once_caches_encoded_objects_only():
    store, requests = Folder({"a": b"1", "b": b"2"}), [ObjectRequest(key, 10, 10) for key in "ab"]
    with engine.reading_once():
        first = read(store, requests)
    assert memory_cache.cache.size == 2, "only the encoded objects are cached"
    assert read(store, requests) == first
    assert len(store.requested) == 2
    assert memory_cache.cache.size == 4
    with engine.reading_once():
        assert read(store, requests) == first, "cached decoded chunks are used"


def test_neighbouring_ranges_take_one_request():
    store = Folder({"f": WHOLE})
    spans = [(0, 100), (100, 250), (300, 400), (500_000, 500_100)]
    found = read(store, ranges(*spans))
    assert found == {("f", span): WHOLE[slice(*span)] for span in spans}
    assert sorted(store.requested) == [("f", (0, 400)), ("f", (500_000, 500_100))]


def test_cached_ranges_are_not_requested_again():
    store = Folder({"f": WHOLE})
    read(store, ranges((0, 100), (100, 200)))
    store.requested.clear()
    assert read(store, ranges((0, 100), (100, 200), (200, 300)))["f", (100, 200)] == WHOLE[100:200]
    assert store.requested == [("f", (200, 300))]


def test_a_truncated_object_is_an_error():
    store = Folder({"f": WHOLE[:150]})
    with pytest.raises(ValueError, match="f ends before byte 200"):
        read(store, ranges((0, 100), (100, 200)))


@given(st.lists(st.tuples(st.integers(0, 50 << 20), st.integers(1, 3 << 20)), min_size=1, max_size=40))
def test_joined_ranges_contain_each_range_once(pairs):
    requests = ranges(*((start, start + size) for start, size in pairs))
    groups = list(join_ranges(requests))
    assert sorted(id(r) for group in groups for r in group) == sorted(map(id, requests))
    for group in groups:
        spans = [r.span for r in group]
        assert spans == sorted(spans)
        start, end = spans[0][0], max(b for _, b in spans)
        assert end - start <= LARGEST_RANGE or len(group) == 1
        reached = spans[0][1]
        for low, high in spans[1:]:
            assert low - reached <= LARGEST_GAP
            reached = max(reached, high)


def test_the_cache_drops_the_least_recently_used_object():
    cache = MemoryCache()
    for key in "abc":
        cache.put(key, Stored(b"x" * 10), 30)
    assert cache.get("a")
    cache.put("d", Stored(b"x" * 10), 30)
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    cache.put("e", Stored(b"x" * 100), 30)
    assert cache.get("e") is None
    assert cache.size == 30
    cache.put("a", Stored(b"xy"), 30)
    assert cache.size == 22


def test_decoded_chunks_use_the_memory_that_encoded_chunks_leave():
    cache = MemoryCache()
    cache.put("a", Stored(b"x" * 10), 100)
    for key in "abcd":
        cache.put_decoded(key, "", np.zeros(40, "u1"))
    assert [key for key in "abcd" if cache.get_decoded([(key, "")])[0] is not None] == ["c", "d"]
    cache.put("b", Stored(b"x" * 70), 100)
    assert cache.get_decoded([("d", "")])[0] is None
    assert cache.get("a")
    assert cache.get("b")
    assert cache.size == 80


def scroll(cache, keys, size, decoded):
    """Look up and store chunks as the engine does; return how many were fetched and how many were decoded."""
    fetched = made = 0
    for key in keys:
        if cache.get_decoded([(key, "")])[0] is not None:
            continue
        if cache.get(key) is None:
            fetched += 1
            cache.put(key, Stored(b"x" * size), 100)
        made += 1
        cache.put_decoded(key, "", np.zeros(decoded, "u1"))
    return fetched, made


def test_decoded_chunks_of_a_scroll_displace_chunks_of_earlier_volumes():
    cache = MemoryCache()
    for key in range(10):
        cache.put(key, Stored(b"x" * 10), 100)  # fills the cache
    passes = [scroll(cache, "abc", 10, 20) for _ in range(12)]
    assert passes[0] == (3, 3)
    assert [fetched for fetched, _ in passes[1:]] == [0] * 11
    assert passes[-1] == (0, 0)
    assert cache.size <= 100


@pytest.mark.parametrize("count", [1, 5, 9, 10])
def test_decoded_chunks_never_displace_encoded_chunks_of_the_same_scroll(count):
    cache = MemoryCache()
    passes = [scroll(cache, range(count), 10, 40) for _ in range(20)]
    assert passes[0] == (count, count)
    assert all(fetched == 0 for fetched, _ in passes[1:])
    assert cache.size <= 100


def test_a_cached_chunk_is_not_decoded_again_and_cannot_be_changed():
    store, decoded = Folder({"a": b"1"}), []

    def count(request, stored):
        decoded.append(request.key)
        return decode(request, stored)

    def change(request, voxels):
        voxels[:] = 0

    request = ObjectRequest("a", 10, 10)
    read_objects(store, [request], count, lambda *given: None, ix.Connection())
    read_objects(store, [request], count, lambda *given: None, ix.Connection())
    assert decoded == ["a"]
    with pytest.raises(ValueError, match="read-only"):
        read_objects(store, [request], count, change, ix.Connection())
    channel = ObjectRequest("a", 10, 10, form=1)
    read_objects(store, [channel], count, lambda *given: None, ix.Connection())
    assert decoded == ["a", "a"]
    assert len(store.requested) == 1


def test_sources_with_other_credentials_or_access_do_not_share_entries():
    class Secret:
        def __init__(self, value):
            self.value = value

        def header_for(self, url, access):
            return f"Bearer {self.value}"

    closed = ix.Connection(access=Access(allow_local=False, from_link=True))
    folders = [
        WebFolder("https://server.example/em", ix.Connection()),
        WebFolder("https://server.example/em", ix.Connection(), Secret("one")),
        WebFolder("https://server.example/em", ix.Connection(), Secret("two")),
        WebFolder("https://server.example/em", closed),
        WebFolder("https://server.example/em", ix.Connection(), version="another"),
    ]
    keys = [folder.identity for folder in folders]
    assert len(set(keys)) == len(keys)
    assert not any(secret in repr(keys) for secret in ("one", "two", "Bearer"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_local_file_is_found_with_and_without_the_suffix_gz(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"12345")
    found = LocalFolder(str(tmp_path)).get("a", None, 10, threading.Event())
    assert found == Stored(b"12345", "gzip" if suffix else "")
    assert LocalFolder(str(tmp_path)).get("b", None, 10, threading.Event()) is None
    with pytest.raises(ValueError, match="the limit is 4"):
        LocalFolder(str(tmp_path)).get("a", None, 4, threading.Event())


def test_memory_of_chunks_in_flight_is_bounded(monkeypatch):
    monkeypatch.setattr(engine._state, "memory", engine.ByteBudget(1000))
    store = Folder({str(i): b"1" for i in range(50)}, width=16)
    read(store, [ObjectRequest(str(i), 10, 300) for i in range(50)])
    assert engine._state.memory.peak <= 1000
    assert engine._state.memory.used == 0
    assert memory_cache.cache.size == 2 * 50  # encoded and decoded


def test_decoded_views_of_encoded_bytes_do_not_count_as_memory():
    cache, body = memory_cache.MemoryCache(), bytes(range(100))
    cache.put("a", Stored(body), 150)
    voxels = np.frombuffer(body, np.uint8).reshape(10, 10)[2:].T
    cache.put_decoded("a", 0, voxels)
    assert cache.size == 100
    found = cache.get_decoded([("a", 0), ("a", 1)])
    assert found[0] is voxels
    assert found[1] is None
    cache.put("b", Stored(bytes(100)), 150)  # drops both forms of a
    assert cache.get_decoded([("a", 0)]) == [None]
    copied = np.frombuffer(bytes(40), np.uint8)
    cache.put_decoded("b", 0, copied)
    assert cache.size == 140
