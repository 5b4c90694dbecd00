"""Chunks of remote Zarr arrays, against zarr-python on the same files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import ShardingCodec

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.errors import ChunkReadError, MissingChunkError
from imageryxr.sources.address import parse_address
from imageryxr.sources.fetch import memory_cache
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.object_stores import LocalFolder
from imageryxr.sources.omezarr import chunks
from imageryxr.sources.omezarr.open import open_omezarr
from imageryxr.sources.precomputed.source import open_precomputed
from tests.support.omezarr import axes_of, level, write_ome
from tests.support.precomputed import write_layer
from tests.support.source_suite import boxes_of, noise, read_padded, serving
from tests.support.zarr_arrays import ARRAYS, SHAPE, RecordingFolder, metadata_of, read_slices, write

SHARDED = (16, 32, 32)
"""Shape of an array with the chunks (8, 16, 16) and the shards (16, 32, 32) or (8, 32, 32)."""


def slices(*edges: tuple[int, int]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in edges)


def read_and_list_requests(array: zarr.Array, folder: Path, where: tuple[slice, ...]) -> list[tuple[str, object]]:
    """Read a box, compare its voxels with zarr-python's, and return the requests to the store."""
    RecordingFolder.requested = []
    found, absent = read_slices(RecordingFolder(str(folder)), "", metadata_of(folder), where)
    np.testing.assert_array_equal(found, array[where])
    assert not absent
    return RecordingFolder.requested


def shard_requests(server) -> list[str]:
    """Return the requests for shards, without those for metadata, which may arrive after a source was opened."""
    return [path for path in server.requested if "/c/" in path]


def create(folder: Path, shape: tuple[int, ...] = (8, 16, 32), **options) -> zarr.Array:
    array = zarr.create_array(folder, shape=shape, **{"chunks": (4, 8, 16), "dtype": "uint16", **options})
    array[...] = noise(shape, "uint16")
    return array


def test_missing_objects_are_reported_and_missing_chunks_of_a_shard_are_not(tmp_path):
    whole = tuple(slice(0, n) for n in SHAPE)
    write(tmp_path / "a")
    _, absent = read_slices(LocalFolder(str(tmp_path)), "a", metadata_of(tmp_path / "a"), whole)
    assert absent == {f"a/c/{z}/{y}/{x}": False for z in range(4) for y in range(5) for x in range(2) if z >= 2}
    write(tmp_path / "b", shards=(8, 16, 32))
    _, absent = read_slices(LocalFolder(str(tmp_path)), "b", metadata_of(tmp_path / "b"), whole)
    assert absent == {f"b/c/1/{y}/0": False for y in range(3)}


def test_neighbouring_chunks_of_a_shard_are_joined_into_one_request(tmp_path):
    array = create(tmp_path, shards=(8, 16, 32))
    requested = read_and_list_requests(array, tmp_path, slices((4, 8), (0, 16), (0, 32)))
    assert len(requested) == 2  # the index, and the four chunks together
    assert all(part is not None for _, part in requested)


def test_a_damaged_index_is_an_error(tmp_path):
    write(tmp_path, shards=(8, 16, 32))
    file = tmp_path / "c" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[-12] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"(?i)checksum|crc|states a chunk|ends before"):
        read_slices(LocalFolder(str(tmp_path)), "", metadata_of(tmp_path), (slice(0, 4), slice(0, 8), slice(0, 16)))


def test_a_shard_whose_chunks_are_all_needed_is_read_with_one_request(tmp_path):
    array = create(tmp_path, shards=(8, 16, 32))
    assert read_and_list_requests(array, tmp_path, slices((0, 8), (0, 16), (0, 32))) == [("c/0/0/0", None)]
    # The box is small, but it overlaps every chunk of the shard.
    assert read_and_list_requests(array, tmp_path, slices((3, 5), (7, 9), (15, 17))) == [("c/0/0/0", None)]


@pytest.mark.parametrize("where", ["start", "end"])
def test_a_shard_that_extends_beyond_the_array_is_read_with_one_request(tmp_path, where):
    codec = ShardingCodec(chunk_shape=(4, 8, 16), index_location=where)
    array = create(tmp_path, (9, 17, 33), chunks=(8, 16, 32), serializer=codec, compressors=None)
    requested = read_and_list_requests(array, tmp_path, slices((8, 9), (16, 17), (32, 33)))  # one voxel
    assert requested == [("c/1/1/1", None)]
    requested = read_and_list_requests(array, tmp_path, slices((0, 9), (0, 17), (0, 33)))
    assert sorted(requested) == [(f"c/{z}/{y}/{x}", None) for z in (0, 1) for y in (0, 1) for x in (0, 1)]


def test_one_read_fetches_whole_shards_and_ranges_of_other_shards(tmp_path):
    array = create(tmp_path, (8, 16, 64), shards=(8, 16, 32))
    requested = read_and_list_requests(array, tmp_path, slices((0, 8), (0, 16), (0, 40)))
    assert requested.count(("c/0/0/0", None)) == 1
    assert {key for key, part in requested if part is not None} == {"c/0/0/1"}


def test_the_index_of_a_large_shard_is_read_first(tmp_path, monkeypatch):
    array = create(tmp_path, shards=(8, 16, 32))
    monkeypatch.setattr(chunks, "LARGEST_SHARD", 8 * 16 * 32 * 2 - 1)
    requested = read_and_list_requests(array, tmp_path, slices((0, 8), (0, 16), (0, 32)))
    assert len(requested) == 2
    assert all(part is not None for _, part in requested)


def test_the_index_of_a_shard_with_chunks_of_other_channels_is_read_first(tmp_path):
    values = noise((2, 8, 16, 16), "uint16")
    image = {"axes": axes_of("czyx"), "datasets": [level("s0", (1, 40, 8, 8))]}
    write_ome(tmp_path, [values], image, chunks=(1, 4, 8, 8), shards=(2, 8, 16, 16))
    with serving(tmp_path) as server:
        source = open_omezarr(parse_address(f"zarr://{server.url}"), channel=1)
        np.testing.assert_array_equal(source.read(0, source.levels[0].grid.box), values[1])
        assert shard_requests(server) == ["/s0/c/0/0/0/0"] * 2


def test_missing_chunks_of_a_whole_shard_are_the_fill_value(tmp_path):
    array = zarr.create_array(
        tmp_path, shape=(8, 16, 32), chunks=(4, 8, 16), shards=(8, 16, 32), dtype="uint16", fill_value=9
    )
    array[2:3, 9:11, 3:30] = 5
    assert read_and_list_requests(array, tmp_path, slices((0, 8), (0, 16), (0, 32))) == [("c/0/0/0", None)]


@pytest.mark.parametrize("compressors", ["auto", None])
def test_a_truncated_whole_shard_is_an_error(tmp_path, compressors):
    create(tmp_path, shards=(8, 16, 32), compressors=compressors)
    file = tmp_path / "c/0/0/0"
    body, whole = file.read_bytes(), slices((0, 8), (0, 16), (0, 32))
    for length in [0, 1, 50, len(body) - 200, len(body) - 133, len(body) - 132, len(body) - 4, len(body) - 1]:
        file.write_bytes(body[:length])
        with pytest.raises(ValueError, match=r"(?i)truncated|checksum|crc|states a chunk"):
            read_slices(LocalFolder(str(tmp_path)), "", metadata_of(tmp_path), whole)
    file.write_bytes(b"<!DOCTYPE html><html>" + body)
    with pytest.raises(ValueError, match="is HTML"):
        read_slices(LocalFolder(str(tmp_path)), "", metadata_of(tmp_path), whole)


def test_a_whole_shard_with_a_chunk_beyond_its_end_is_an_error(tmp_path):
    codec = ShardingCodec(chunk_shape=(4, 8, 16), index_codecs=[zarr.codecs.BytesCodec()])
    create(tmp_path, chunks=(8, 16, 32), serializer=codec, compressors=None)
    file = tmp_path / "c/0/0/0"
    body = bytearray(file.read_bytes())
    for number, value in ((0, 1 << 63), (0, len(body)), (1, 1 << 40), (1, len(body) + 1)):
        index = np.frombuffer(body[-128:], "<u8").copy()
        index[number] = value
        file.write_bytes(body[:-128] + index.tobytes())
        with pytest.raises(ValueError, match=r"its index refers to byte|states a chunk"):
            read_slices(LocalFolder(str(tmp_path)), "", metadata_of(tmp_path), slices((0, 8), (0, 16), (0, 32)))


def test_reading_a_whole_shard_caches_its_chunks_and_its_index(tmp_path):
    values = noise(SHARDED)
    image = {"axes": axes_of("zyx"), "datasets": [level("s0", (40, 8, 8))]}
    write_ome(tmp_path, [values], image, chunks=(8, 16, 16), shards=(8, 32, 32))
    with serving(tmp_path) as server:
        source = open_omezarr(parse_address(f"zarr://{server.url}"))
        box = source.levels[0].grid.box
        np.testing.assert_array_equal(source.read(0, box), values)
        assert sorted(shard_requests(server)) == ["/s0/c/0/0/0", "/s0/c/1/0/0"]
        one = type(box)((3, 4, 5), (4, 5, 6))
        np.testing.assert_array_equal(source.read(0, one), values[3:4, 4:5, 5:6])
        np.testing.assert_array_equal(source.read(0, box), values)
        assert len(shard_requests(server)) == 2
        memory_cache.cache.clear()
        np.testing.assert_array_equal(source.read(0, one), values[3:4, 4:5, 5:6])
        assert shard_requests(server)[2:] == [
            "/s0/c/0/0/0"
        ]  # one request suffices, because the index of the shard is cached
        np.testing.assert_array_equal(source.read(0, box), values)


def write_without_checksum(folder: Path) -> np.ndarray:
    """Write a volume of uncompressed shards whose indexes have no checksum; return its voxels."""
    values = noise(SHARDED)
    image = {"axes": axes_of("zyx"), "datasets": [level("s0", (40, 8, 8))]}
    codec = ShardingCodec(chunk_shape=(8, 16, 16), index_codecs=[zarr.codecs.BytesCodec()])
    write_ome(folder, [values], image, chunks=(8, 32, 32), serializer=codec, compressors=None)
    return values


def test_a_damaged_index_of_a_whole_shard_is_fetched_again(tmp_path):
    values = write_without_checksum(tmp_path)
    file = tmp_path / "s0/c/1/0/0"
    body = file.read_bytes()
    with serving(tmp_path) as server:
        source = open_omezarr(parse_address(f"zarr://{server.url}"))
        file.write_bytes(body[:-8] + b"\0\0\0\0\1\0\0\0")
        with pytest.raises(ChunkReadError, match="states a chunk"):
            source.read(0, source.levels[0].grid.box)
        file.write_bytes(body)
        np.testing.assert_array_equal(source.read(0, source.levels[0].grid.box), values)


@pytest.mark.parametrize("is_on_disk", [False, True])
@pytest.mark.parametrize("place", [-8, -13])
def test_a_damaged_index_that_was_read_alone_is_fetched_again(tmp_path, place, is_on_disk):
    values = write_without_checksum(tmp_path / "v")
    file = tmp_path / "v/s0/c/1/0/0"
    body, date = file.read_bytes(), file.stat().st_mtime_ns
    damaged = bytearray(body)
    damaged[place] ^= 16  # the size of the last chunk, or its offset, which is then beyond the end of the file
    connection = Connection(disk_cache=tmp_path / "cache" if is_on_disk else None)
    with serving(tmp_path / "v") as server:
        source = open_omezarr(parse_address(f"zarr://{server.url}"), connection=connection)
        box = IndexBox((9, 17, 17), (10, 18, 18))
        file.write_bytes(damaged)
        os.utime(file, ns=(date, date))  # the server's validator of the file does not change
        with pytest.raises(ChunkReadError):
            source.read(0, box)
        file.write_bytes(body)
        os.utime(file, ns=(date, date))
        np.testing.assert_array_equal(source.read(0, box), values[box.slices()])


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_shard_with_large_gaps_is_read_by_ranges(tmp_path, is_remote):
    values = write_without_checksum(tmp_path)
    file = tmp_path / "s0/c/1/0/0"
    body = file.read_bytes()
    index = np.frombuffer(body[-64:], "<u8").reshape(-1, 2).copy()
    start, size = index[3].tolist()
    index[3, 0] = len(body) + (2 << 20)
    file.write_bytes(body[:-64] + bytes(2 << 20) + bytes(64) + body[start : start + size] + index.tobytes())
    with serving(tmp_path) as server:
        source = open_omezarr(parse_address(f"zarr://{server.url if is_remote else tmp_path}"))
        np.testing.assert_array_equal(source.read(0, source.levels[0].grid.box), values)


@pytest.mark.parametrize("missing", [None, "raise"])
def test_the_option_missing_applies_to_missing_shards(tmp_path, missing):
    values = noise(SHARDED)
    image = {"axes": axes_of("zyx"), "datasets": [level("s0", (40, 8, 8))]}
    write_ome(tmp_path, [values], image, chunks=(8, 16, 16), shards=(8, 32, 32))
    (tmp_path / "s0/c/1/0/0").unlink()
    with serving(tmp_path) as server:
        source = open_omezarr(parse_address(f"zarr://{server.url}"), missing=missing)
        box = source.levels[0].grid.box
        if missing == "raise":
            with pytest.raises(MissingChunkError):
                source.read(0, box)
        else:
            values[8:] = 0
            np.testing.assert_array_equal(source.read(0, box), values)


@pytest.mark.fast_forms(6)
@pytest.mark.parametrize("form", ARRAYS)
def test_boxes_equal_those_of_zarr_python(tmp_path, form):
    array = write(tmp_path, **ARRAYS[form])
    rng, text, store = np.random.default_rng(1), metadata_of(tmp_path), LocalFolder(str(tmp_path))
    for _ in range(12):
        low = [int(rng.integers(0, n)) for n in SHAPE]
        where = tuple(slice(a, int(rng.integers(a + 1, n + 1))) for a, n in zip(low, SHAPE, strict=True))
        found, _ = read_slices(store, "", text, where)
        np.testing.assert_array_equal(found, array[where])
        assert found.dtype == array.dtype


@pytest.mark.parametrize("axes", ["yx", "yxc", "tczyx", "xzy", "cyxz"])
def test_axes_in_any_order_are_read_as_z_y_x(tmp_path, axes):
    sizes = {"t": (3, 2), "c": (4, 2), "z": (9, 4), "y": (21, 8), "x": (17, 6)}
    values = noise([sizes[a][0] for a in axes], "uint16")
    image = {"axes": axes_of(axes), "datasets": [level("s0", [1 if a in "tc" else 8 for a in axes])]}
    write_ome(tmp_path, [values], image, chunks=tuple(sizes[a][1] for a in axes))
    kept = [a for a in axes if a in "zyx"]
    truth = values[tuple({"t": 2, "c": 3}.get(a, slice(None)) for a in axes)].reshape([sizes[a][0] for a in kept])
    truth = np.moveaxis(truth, [kept.index(a) for a in "zyx" if a in kept], range(len(kept)))
    with serving(tmp_path) as server:
        picks = {"time": 2 if "t" in axes else None, "channel": 3 if "c" in axes else None}
        source = open_omezarr(parse_address(f"zarr://{server.url}"), **picks)
        for box in boxes_of((9 if "z" in axes else 1, 21, 17), 6) * 2:  # the second pass reads from the memory cache
            np.testing.assert_array_equal(
                source.read(0, box), read_padded(truth[None] if truth.ndim < 3 else truth, box)
            )


def write_image(folder: Path, shape, **options) -> None:
    write_ome(folder, [noise(shape)], {"axes": axes_of("zyx"), "datasets": [level("s0", (40, 8, 8))]}, **options)


@pytest.mark.parametrize("form", ["precomputed", "0.4", "0.5", "0.5 sharded"])
def test_a_scroll_requests_each_object_once(tmp_path, form):
    shape = (16, 32, 32)
    if form == "precomputed":
        write_layer(tmp_path, [noise(shape)], [Grid(shape, (8, 8, 40), (0, 0, 0))])
    else:
        more = {"shards": (16, 32, 32)} if "sharded" in form else {}
        write_image(tmp_path, shape, version=form[:3], **more)
    with serving(tmp_path) as server:
        scheme = "precomputed" if form == "precomputed" else "zarr"
        opener = open_precomputed if form == "precomputed" else open_omezarr
        source = opener(parse_address(f"{scheme}://{server.url}"))
        box = source.levels[0].grid.box

        def count() -> int:
            return sum(not path.endswith(("info", ".json", "/.zarray", "/.zattrs")) for path in server.requested)

        found = [source.read(0, type(box)((z, 0, 0), (z + 1, 32, 32))) for z in range(shape[0])]
        np.testing.assert_array_equal(np.concatenate(found), noise(shape))
        # One request for the index of the shard, and one for each of its two layers of chunks.
        assert count() == (3 if "sharded" in form else 8)
        source.read(0, box)
        assert count() == (3 if "sharded" in form else 8)


def test_metadata_of_both_zarr_versions_are_requested_at_once(tmp_path):
    write_image(tmp_path, (8, 16, 16), version="0.4")
    with serving(tmp_path) as server:
        few = ix.Connection(concurrency=2)  # too few to request arrays by their usual names before the group lists them
        ix.open_image(f"zarr://{server.url}", connection=few)
        requested = [path.rpartition("/")[2] for path in server.requested]
        assert sorted(requested[:2]) == [".zattrs", "zarr.json"]
        assert requested[2:] == [".zarray"]


def test_a_bare_address_requests_both_formats_at_once(tmp_path):
    write_image(tmp_path, (8, 16, 16))
    with serving(tmp_path) as server:
        ix.open_image(server.url)
        requested = [path.rpartition("/")[2] for path in server.requested]
        assert sorted(requested) == [".zattrs", "info", "zarr.json", "zarr.json"]
