"""Boxes whose chunks are in the memory cache are read again, as a scroll through slices does; compared with numpy."""

from __future__ import annotations

import json
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.sources.address import parse_address
from imageryxr.sources.fetch import memory_cache
from imageryxr.sources.fetch.memory_cache import MemoryCache, Stored
from imageryxr.sources.omezarr.open import open_omezarr
from imageryxr.sources.precomputed.source import open_precomputed
from tests.support import omezarr, precomputed, shards
from tests.support.source_suite import boxes_of, noise, read_padded, serving

GRID = Grid((19, 35, 37), (8, 8, 40), (-21, 5, 3))  # chunks of 8 × 16 × 16 voxels, cut off at the end


def write_precomputed(folder: Path, encoding: str, dtype: str, *, channels: int = 0) -> np.ndarray:
    values = noise(GRID.shape, dtype)
    stored = np.stack([values[::-1], values]) if channels else values
    kind = "segmentation" if "seg" in encoding else "image"
    precomputed.write_layer(folder, [stored], [GRID], kind=kind, encoding=encoding)
    return (
        precomputed.open_layer(folder, channel=1).read(0, GRID.box)
        if channels
        else (
            precomputed.open_layer(folder).read(0, GRID.box)  # the voxels after a lossy compression
        )
    )


def write_shards(folder: Path, encoding: str) -> np.ndarray:
    values = noise(shards.GRID.shape, "uint64")
    shards.write(folder, values, shards.spec(), encoding)
    return values


def write_zarr(folder: Path, *, axes: str = "zyx", **options) -> np.ndarray:
    values = noise(GRID.shape, "uint16")
    shape = [3 if axis == "c" else values.shape["zyx".index(axis)] for axis in axes]
    stored = np.zeros(shape, values.dtype)
    stored[tuple(1 if axis == "c" else slice(None) for axis in axes)] = values
    image = {"axes": omezarr.axes_of(axes), "datasets": [omezarr.level("s0", [1 if a == "c" else 8 for a in axes])]}
    omezarr.write_ome(folder, [stored], image, **options)
    return values


FORMS = {
    "raw": lambda folder: write_precomputed(folder, "raw", "uint8"),
    "raw, two channels": lambda folder: write_precomputed(folder, "raw", "uint16", channels=2),
    "jpeg": lambda folder: write_precomputed(folder, "jpeg", "uint8"),
    "segmentation": lambda folder: write_precomputed(folder, "compressed_segmentation", "uint64"),
    "sharded": lambda folder: write_shards(folder, "raw"),
    "sharded segmentation": lambda folder: write_shards(folder, "compressed_segmentation"),
    "zarr2": lambda folder: write_zarr(folder, version="0.4"),
    "zarr2 fortran": lambda folder: write_zarr(folder, version="0.4", order="F"),
    "zarr3": lambda folder: write_zarr(folder, chunks=(5, 7, 11)),
    "zarr3, whole slices": lambda folder: write_zarr(folder, chunks=(1, 64, 64)),
    "zarr3, channels": lambda folder: write_zarr(folder, axes="czyx", chunks=(2, 4, 16, 8)),
    "zarr3, channels last": lambda folder: write_zarr(folder, axes="zyxc", version="0.4", chunks=(4, 16, 8, 2)),
    "zarr3 shards": lambda folder: write_zarr(folder, chunks=(4, 8, 8), shards=(8, 16, 16)),
}


def open_form(form: str, url: str, **options):
    if form.startswith("zarr"):
        return open_omezarr(parse_address(f"zarr://{url}"), **({"channel": 1} if "channels" in form else {}), **options)
    return open_precomputed(
        parse_address(f"precomputed://{url}"), **({"channel": 1} if "channels" in form else {}), **options
    )


@pytest.fixture
def small_cache(monkeypatch):
    """Replace the cache of the process by an empty one; the next connection sets its size."""
    monkeypatch.setattr(memory_cache, "cache", MemoryCache())


@pytest.fixture(scope="module")
def volume_writer(tmp_path_factory):
    """Return a function that writes each kind of volume once and returns its folder and voxels."""

    @cache
    def write(form: str) -> tuple[Path, np.ndarray]:
        folder = tmp_path_factory.mktemp("volume")
        return folder, FORMS[form](folder)

    return write


@pytest.fixture(params=FORMS)
def volume(request, volume_writer):
    folder, truth = volume_writer(request.param)
    with serving(folder) as server:
        yield request.param, server, truth


def slices_of(shape, start=0) -> list[IndexBox]:
    return [IndexBox((z, 3, 2), (z + 1, shape[1], shape[2] - 1)) for z in range(start, shape[0])]


def count_chunk_requests(requested: list[str]) -> Counter:
    """Return the number of requests for each chunk or shard."""
    return Counter(path for path in requested if not path.endswith(("info", ".json", ".zarray", ".zattrs", ".zgroup")))


# ---------------------------------------------------------------------------------------------------------
# sources


@pytest.mark.fast_forms(4)
def test_slices_and_boxes_that_are_read_again_equal_the_stored_voxels(volume):
    form, server, truth = volume
    source = open_form(form, server.url)
    for box in slices_of(truth.shape):
        np.testing.assert_array_equal(source.read(0, box), read_padded(truth, box))
    counted = count_chunk_requests(server.requested)
    assert "shard" in form or set(counted.values()) == {1}
    server.requested.clear()
    # These include boxes that extend beyond the volume, boxes of one voxel, and the whole volume.
    boxes = [*slices_of(truth.shape)[::-1], *boxes_of(truth.shape, 30), IndexBox.of_shape(truth.shape)]
    for box in boxes * 2:
        found = source.read(0, box)
        np.testing.assert_array_equal(found, read_padded(truth, box))
        assert found.flags.writeable
        found[...] = 0  # the caller may change the array: the cache does not contain it
    assert all(number == 1 for path, number in count_chunk_requests(server.requested).items() if "shard" not in form)
    assert set(count_chunk_requests(server.requested)) & set(counted) == set() or "shard" in form


@pytest.mark.fast_forms(3)
def test_a_cached_box_is_read_without_looking_up_its_chunks(volume, monkeypatch):
    form, server, truth = volume
    source = open_form(form, server.url)
    first, second = slices_of(truth.shape)[:2]
    if "whole slices" not in form:
        source.read(0, first)
    source.read(0, second)
    monkeypatch.setattr(MemoryCache, "get", None)
    monkeypatch.setattr(MemoryCache, "get_decoded", None)
    server.requested.clear()
    before = ix.sources.fetch.traffic.traffic()
    np.testing.assert_array_equal(source.read(0, second), read_padded(truth, second))
    assert server.requested == []
    assert ix.sources.fetch.traffic.traffic().since(before).in_memory > 0


@pytest.mark.fast_forms(5)
@pytest.mark.parametrize("limit", [3_000, 40_000])
@pytest.mark.usefixtures("small_cache")
def test_a_cache_that_drops_chunks_between_slices_returns_the_stored_voxels(volume, limit):
    form, server, truth = volume
    source = open_form(form, server.url, connection=ix.Connection(memory_cache=limit))
    near = IndexBox((1, 3, 2), (12, 20, 30))  # overlaps four chunks of most volumes
    boxes = [near.with_axis(0, z, z + 1) for z in range(1, 12, 2)] + boxes_of(truth.shape, 3)
    for box in [*boxes, *boxes[::-1], *(box for box in boxes[:2] for _ in range(3))]:
        np.testing.assert_array_equal(source.read(0, box), read_padded(truth, box))
        check_bound(memory_cache.cache, limit)


def check_bound(cache: MemoryCache, limit: int) -> None:
    """Fail if the cache, or the chunks that its boxes refer to, take more memory than the limit."""
    assert cache.size <= limit
    stored = [value.stored.body for value, *_ in cache._encoded._values.values()]
    decoded = [values for values, *_ in cache._decoded._values.values()]
    views = [view for value, *_ in cache._encoded._values.values() for view in value.views.values()]
    kept = dict(map(owner_of, [*stored, *decoded, *views]))
    assert sum(kept.values()) <= cache.size
    for box in cache._boxes.values():
        for chunk in box.chunks:
            assert chunk.strides == (0,) * chunk.ndim or owner_of(chunk)[0] in kept  # strides of 0: fill values


def owner_of(values) -> tuple[int, int]:
    """Return the identity and the size of the object that owns the memory of an array or of bytes."""
    while isinstance(values, np.ndarray | memoryview):
        inner = values.obj if isinstance(values, memoryview) else values.base
        if inner is None:
            return id(values), values.nbytes
        values = inner
    return id(values), len(values)


@pytest.mark.fast_forms(5)
@pytest.mark.parametrize("limit", [20_000, 1 << 20])
@pytest.mark.usefixtures("small_cache")
def test_two_threads_that_scroll_at_once_read_the_stored_voxels(volume, limit):
    form, server, truth = volume
    source = open_form(form, server.url, connection=ix.Connection(memory_cache=limit))
    up = [IndexBox((z, 3, 2), (z + 1, 20, 30)) for z in range(1, 12, 2)] * 3
    start = threading.Barrier(2)

    def scroll(boxes):
        start.wait()
        return [(box, source.read(0, box)) for box in boxes]

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(scroll, [up, up[::-1]]):
            for box, values in found:
                np.testing.assert_array_equal(values, read_padded(truth, box))
    check_bound(memory_cache.cache, limit)


@pytest.mark.usefixtures("small_cache")
def test_a_cached_chunk_does_not_keep_a_response_with_several_chunks_in_memory(tmp_path):
    sizes = {"chunks": (4, 8, 8), "shards": (20, 40, 40), "compressors": None}
    truth = write_zarr(tmp_path, **sizes)
    with serving(tmp_path) as server:
        source = open_form("zarr3", server.url)
        for box in (*slices_of(truth.shape)[:1], *boxes_of(truth.shape, 3)):
            np.testing.assert_array_equal(source.read(0, box), read_padded(truth, box))
            check_bound(memory_cache.cache, source.connection.cache_bytes)
        count = len(memory_cache.cache._encoded._values)
        assert memory_cache.cache.size == count * 4 * 8 * 8 * truth.itemsize


def test_scales_that_share_a_folder_are_not_confused(tmp_path):
    truth = FORMS["raw"](tmp_path)
    info = json.loads((tmp_path / "info").read_text())
    first = info["scales"][0]
    (x, *offset), (width, *size) = first["voxel_offset"], first["size"]
    other = {"voxel_offset": [x + 16, *offset], "size": [width - 16, *size], "resolution": [16, 16, 80]}
    info["scales"].append({**first, **other})
    (tmp_path / "info").write_text(json.dumps(info))
    with serving(tmp_path) as server:
        source, box = open_form("raw", server.url), IndexBox((0, 1, 2), (3, 30, 16))
        for _ in range(2):
            np.testing.assert_array_equal(source.read(0, box), read_padded(truth, box))
            np.testing.assert_array_equal(source.read(1, box), read_padded(truth[..., 16:], box))


@pytest.mark.fast_forms(3)
def test_a_connection_without_a_cache_does_not_use_cached_boxes(volume):
    form, server, truth = volume
    box = IndexBox((0, 0, 0), (2, 20, 20))
    for _ in range(2):
        open_form(form, server.url).read(0, box)
    without = open_form(form, server.url, connection=ix.Connection(memory_cache=0))
    for _ in range(2):
        server.requested.clear()
        np.testing.assert_array_equal(without.read(0, box), read_padded(truth, box))
        assert count_chunk_requests(server.requested)


@pytest.mark.parametrize("missing", ["fill", "warn"])
@pytest.mark.filterwarnings("ignore::imageryxr.errors.MissingChunkWarning")
def test_a_missing_chunk_is_requested_again_by_the_next_read(tmp_path, missing):
    truth = FORMS["raw"](tmp_path)
    chunk = next(tmp_path.rglob("-5-11_21-37_3-11*"))
    body, holed = chunk.read_bytes(), truth.copy()
    chunk.unlink()
    holed[:8, 16:32, 16:32] = 0
    with serving(tmp_path) as server:
        source = open_form("raw", server.url, missing=missing)
        for box in slices_of(truth.shape)[:4]:
            np.testing.assert_array_equal(source.read(0, box), read_padded(holed, box))
        chunk.write_bytes(body)
        for box in slices_of(truth.shape):
            np.testing.assert_array_equal(source.read(0, box), read_padded(truth, box))


def test_chunks_that_a_shard_leaves_out_are_the_fill_value(tmp_path):
    truth = np.full(GRID.shape, 9, "uint16")
    truth[:8, :16, :16] = noise((8, 16, 16), "uint16")
    image = {"axes": omezarr.axes_of("zyx"), "datasets": [omezarr.level("s0", (40, 8, 8))]}
    sizes = {"chunks": (4, 8, 8), "shards": (8, 16, 16), "fill_value": 9}
    omezarr.write_ome(tmp_path, [truth], image, **sizes)
    with serving(tmp_path) as server:
        source = open_form("zarr3", server.url)
        inside = [IndexBox((z, 2, 1), (z + 1, 16, 15)) for z in range(8)]
        for _ in range(2):
            for box in inside:
                np.testing.assert_array_equal(source.read(0, box), read_padded(truth, box))
        assert len(count_chunk_requests(server.requested)) == 1
        for box in slices_of(truth.shape):  # other shards do not exist
            np.testing.assert_array_equal(source.read(0, box), read_padded(truth, box))


@pytest.mark.parametrize("form", ["raw", "segmentation", "zarr3"])
def test_a_source_that_is_opened_after_objects_were_replaced_reads_the_new_ones(tmp_path, form):
    before = FORMS[form](tmp_path)
    with serving(tmp_path) as server:
        server.stamps = ("ETag",)
        source, boxes = open_form(form, server.url), slices_of(before.shape)
        for box in boxes:
            source.read(0, box)
        chunks = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".json",))
        chunks = [path for path in chunks if path.name not in ("info", "provenance")]
        bodies = {path: path.read_bytes() for path in chunks}
        # Two chunks of equal shape exchange their files.
        first, second = [p for p in chunks if _is_whole(p, form)][:2]
        first.write_bytes(bodies[second])
        second.write_bytes(bodies[first])
        for name in ("info", "zarr.json"):
            for path in tmp_path.rglob(name):
                path.write_bytes(path.read_bytes())
        after = open_form(form, server.url)
        found = [after.read(0, box) for box in boxes]
        expected = [open_form(form, str(tmp_path)).read(0, box) for box in boxes]
        np.testing.assert_array_equal(found, expected)
        assert not np.array_equal(found, [read_padded(before, box) for box in boxes])
        for box in boxes:  # an open source shows the state at its opening
            np.testing.assert_array_equal(source.read(0, box), read_padded(before, box))


def _is_whole(path: Path, form: str) -> bool:
    if form == "zarr3":
        return path.parts[-3] in "012" and path.parts[-2] in "012" and path.parts[-1] in "012"
    return path.name.startswith(("-21--5_5-21_3-11", "-21--5_5-21_11-19"))


def test_a_callback_receives_all_voxels_of_a_box_that_is_read_again(tmp_path):
    truth = FORMS["segmentation"](tmp_path)
    with serving(tmp_path) as server:
        source = open_form("segmentation", server.url)
        for box in slices_of(truth.shape)[:3] * 2:
            parts = []
            found = source.read_inside(0, box, lambda part, parts=parts: parts.append(part.copy()))
            np.testing.assert_array_equal(found, read_padded(truth, box))
            assert sum(part.size for part in parts) == found.size
            assert set(np.unique(np.concatenate([p.ravel() for p in parts]))) == set(np.unique(found))


# ---------------------------------------------------------------------------------------------------------
# the cache


def filled_cache(limit: int, count: int, *, decoded: bool = True) -> MemoryCache:
    """Return a cache of chunks of 10 bytes, with their decoded voxels as copies or as views of those bytes."""
    cache = MemoryCache()
    for key in range(count):
        body = bytes([key]) * 10
        cache.put(key, Stored(body), limit)
        values = np.frombuffer(body, "u1")
        cache.put_decoded(key, "", values.copy() if decoded else values)
    return cache


def pairs(*keys: int) -> list[tuple[int, str]]:
    return [(key, "") for key in keys]


def test_a_cached_box_lists_its_chunks_in_the_given_order():
    cache = filled_cache(1000, 4)
    cache.put_box("box", [*pairs(3, 1), None], np.zeros(10, "u1"))
    assert [chunk[0] for chunk in cache.get_box("box").chunks] == [3, 1, 0]
    assert cache.get_box("other") is None
    cache.put_box("incomplete", pairs(0, 9))
    assert cache.get_box("incomplete") is None
    cache.clear()
    assert cache.get_box("box") is None


@pytest.mark.parametrize("decoded", [True, False])
def test_a_box_with_a_dropped_chunk_is_dropped(decoded):
    limit = 80 if decoded else 60
    cache = filled_cache(limit, 4, decoded=decoded)
    cache.put_box("box", pairs(0, 1))
    cache.put_box("same", pairs(0, 1))
    cache.put_box("other", pairs(2, 3))
    cache.get_box("other")
    kept = weakref.ref(cache.get_box("box").chunks[0])
    assert kept() is not None
    cache.get_box("other")
    for key in (7, 8, 9, 10):
        cache.put(key, Stored(bytes(10)), limit)
    assert cache.get_box("box") is cache.get_box("same") is None
    assert kept() is None
    assert (
        cache.get_box("other") is None
    ) == decoded  # decoded copies take memory, so the chunks of the other box are dropped as well
    assert not any("box" in names for names in cache._boxes_of.values())


def test_the_chunks_of_a_used_box_are_the_most_recently_used():
    cache = filled_cache(50, 5, decoded=False)
    cache.put_box("box", pairs(0, 2))
    for key in (1, 0, 3, 2, 4):
        cache.get(key)
    cache.get_box("box")
    for key in (10, 11, 12):
        cache.put(key, Stored(bytes(10)), 50)
    assert [key for key in (0, 1, 2, 3, 4) if cache.get(key)] == [0, 2]
    assert cache.get_box("box") is not None


def test_storing_a_chunk_again_drops_its_boxes():
    cache = filled_cache(1000, 2)
    cache.put_box("box", pairs(0, 1))
    cache.put(0, Stored(bytes(10)), 1000)
    assert cache.get_box("box") is None


def test_the_number_of_chunks_in_boxes_is_bounded(monkeypatch):
    monkeypatch.setattr(memory_cache, "_LISTED", 10)
    cache = filled_cache(1000, 4)
    for name in range(8):
        cache.put_box(name, pairs(0, 1, 2, 3))
        cache.get_box(0)
    assert [name for name in range(8) if cache.get_box(name)] == [0, 7]
    cache.put_box("large", pairs(*[0] * 11))
    assert cache.get_box("large") is None
    assert cache._listed == 8
