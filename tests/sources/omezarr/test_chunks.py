"""Chunks of remote Zarr arrays, against zarr-python on the same files."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import ClassVar

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.sources.address import parse_address
from imageryxr.sources.fetch.object_stores import LocalFolder
from imageryxr.sources.omezarr import chunks
from imageryxr.sources.omezarr.array_metadata import layout_of
from imageryxr.sources.omezarr.open import open_omezarr
from imageryxr.sources.precomputed.source import open_precomputed
from tests.support.omezarr import axes_of, level, write_ome
from tests.support.precomputed import write_layer
from tests.support.source_suite import boxes_of, noise, padded, serving

SHAPE, CHUNK = (13, 33, 29), (4, 8, 16)
STOP = threading.Event()

ARRAYS = {
    "v2": {"zarr_format": 2},
    "v2 slash": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2 fortran": {"zarr_format": 2, "order": "F"},
    "v2 no compressor": {"zarr_format": 2, "compressors": None},
    "v2 big-endian": {"zarr_format": 2, "dtype": ">u2"},
    "v2 filter": {"zarr_format": 2, "filters": [numcodecs.Delta("<u2")]},
    "v3": {},
    "v3 blosc": {"compressors": BloscCodec(cname="lz4")},
    "v3 gzip": {"compressors": GzipCodec()},
    "v3 checksum": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "v3 raw": {"compressors": None},
    "v3 fill": {"fill_value": 7},
    "v3 transposed": {"filters": [TransposeCodec(order=(2, 0, 1))]},
    "v3 big-endian": {"serializer": BytesCodec(endian="big")},
    "v3 dots": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "sharded": {"shards": (8, 16, 32)},
    "sharded, one row": {"shards": (4, 8, 32)},
    "sharded, transposed": {"shards": (8, 16, 32), "filters": [TransposeCodec(order=(2, 0, 1))]},
}


def write(folder: Path, **options) -> zarr.Array:
    array = zarr.create_array(folder, shape=SHAPE, chunks=CHUNK, **{"dtype": "uint16", **options})
    array[:8, :, :20] = noise(SHAPE, "uint16")[:8, :, :20]  # some chunks are missing
    return array


def metadata_of(folder: Path) -> str:
    name, version = ("zarr.json", 3) if (folder / "zarr.json").is_file() else (".zarray", 2)
    return layout_of(str(folder), json.loads((folder / name).read_text()), version).document


class Counted(LocalFolder):
    """A local folder that records requests."""

    asked: ClassVar[list] = []

    def get(self, key, part, limit, stop):
        self.asked.append((key, part))
        return super().get(key, part, limit, stop)


def read_slices(store, path: str, metadata: str, where: tuple[slice, ...]):
    """Return a box of an array with the axes z, y and x, and its missing objects."""
    box = IndexBox(tuple(s.start for s in where), tuple(s.stop for s in where))
    return chunks.read_box(store, path, metadata, ("z", "y", "x"), box, ix.Connection())


@pytest.mark.fast_forms(6)
@pytest.mark.parametrize("form", ARRAYS)
def test_boxes_equal_those_of_zarr(tmp_path, form):
    array = write(tmp_path, **ARRAYS[form])
    rng, text, store = np.random.default_rng(1), metadata_of(tmp_path), LocalFolder(str(tmp_path))
    for _ in range(12):
        low = [int(rng.integers(0, n)) for n in SHAPE]
        where = tuple(slice(a, int(rng.integers(a + 1, n + 1))) for a, n in zip(low, SHAPE, strict=True))
        found, _ = read_slices(store, "", text, where)
        np.testing.assert_array_equal(found, array[where])
        assert found.dtype == array.dtype


@pytest.mark.parametrize("form", ARRAYS)
def test_frequent_codecs_are_decoded_without_zarr_and_equally(tmp_path, form):
    array = write(tmp_path, **ARRAYS[form])
    if "shards" in ARRAYS[form]:
        return
    layout = chunks._layout(metadata_of(tmp_path))
    assert (layout.plain is None) == (form in ("v2 filter", "v3 checksum", "v3 transposed"))
    body = (tmp_path / array.metadata.encode_chunk_key((0, 0, 0))).read_bytes()
    found = chunks._decode(layout.array, body, layout.plain)
    np.testing.assert_array_equal(found, array[:4, :8, :16])
    np.testing.assert_array_equal(found, chunks._decode_with_zarr(layout.array, body))


@pytest.mark.parametrize("form", ["v2", "v3", "v3 raw"])
def test_a_chunk_that_decompresses_to_another_size_is_an_error(tmp_path, form):
    write(tmp_path, **ARRAYS[form])
    layout = chunks._layout(metadata_of(tmp_path))
    assert layout.plain is not None
    body = bytes(layout.chunk_bytes + 2)
    if layout.plain.compressor is not None:
        body = numcodecs.get_codec({"id": "zstd"}).encode(body)
    with pytest.raises(ValueError, match=r"size|shape|reshape"):
        chunks._decode(layout.array, body, layout.plain)


def test_missing_objects_are_reported_and_missing_chunks_of_a_shard_are_not(tmp_path):
    whole = tuple(slice(0, n) for n in SHAPE)
    write(tmp_path / "a")
    _, absent = read_slices(LocalFolder(str(tmp_path)), "a", metadata_of(tmp_path / "a"), whole)
    assert absent == {f"a/c/{z}/{y}/{x}": False for z in range(4) for y in range(5) for x in range(2) if z >= 2}
    write(tmp_path / "b", shards=(8, 16, 32))
    _, absent = read_slices(LocalFolder(str(tmp_path)), "b", metadata_of(tmp_path / "b"), whole)
    assert absent == {f"b/c/1/{y}/0": False for y in range(3)}


def test_neighbouring_chunks_of_a_shard_take_one_request(tmp_path):
    array = zarr.create_array(tmp_path, shape=(8, 16, 32), chunks=(4, 8, 16), shards=(8, 16, 32), dtype="uint16")
    array[:] = noise((8, 16, 32), "uint16")
    Counted.asked = []
    whole = (slice(0, 8), slice(0, 16), slice(0, 32))
    found, _ = read_slices(Counted(str(tmp_path)), "", metadata_of(tmp_path), whole)
    np.testing.assert_array_equal(found, array[:])
    assert len(Counted.asked) == 2  # the index, and all chunks together


def test_a_damaged_index_is_an_error(tmp_path):
    write(tmp_path, shards=(8, 16, 32))
    file = tmp_path / "c" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[-12] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"(?i)checksum|crc|states a chunk|ends before"):
        read_slices(LocalFolder(str(tmp_path)), "", metadata_of(tmp_path), (slice(0, 4), slice(0, 8), slice(0, 16)))


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
        for box in boxes_of((9 if "z" in axes else 1, 21, 17), 6) * 2:  # from the server, and from memory
            np.testing.assert_array_equal(source.read(0, box), padded(truth[None] if truth.ndim < 3 else truth, box))


def ome(folder: Path, shape, **options) -> None:
    write_ome(folder, [noise(shape)], {"axes": axes_of("zyx"), "datasets": [level("s0", (40, 8, 8))]}, **options)


@pytest.mark.parametrize("form", ["precomputed", "0.4", "0.5", "0.5 sharded"])
def test_a_scroll_requests_each_object_once(tmp_path, form):
    shape = (16, 32, 32)
    if form == "precomputed":
        write_layer(tmp_path, [noise(shape)], [Grid(shape, (8, 8, 40), (0, 0, 0))])
    else:
        more = {"shards": (16, 32, 32)} if "sharded" in form else {}
        ome(tmp_path, shape, version=form[:3], **more)
    with serving(tmp_path) as server:
        scheme = "precomputed" if form == "precomputed" else "zarr"
        opener = open_precomputed if form == "precomputed" else open_omezarr
        source = opener(parse_address(f"{scheme}://{server.url}"))
        box = source.levels[0].grid.box

        def count() -> int:
            return sum(not path.endswith(("info", ".json", "/.zarray", "/.zattrs")) for path in server.asked)

        found = [source.read(0, type(box)((z, 0, 0), (z + 1, 32, 32))) for z in range(shape[0])]
        np.testing.assert_array_equal(np.concatenate(found), noise(shape))
        # The shard has an index and two layers of chunks.
        assert count() == (3 if "sharded" in form else 8)
        source.read(0, box)
        assert count() == (3 if "sharded" in form else 8)


def test_both_versions_are_requested_at_once(tmp_path):
    ome(tmp_path, (8, 16, 16), version="0.4")
    with serving(tmp_path) as server:
        few = ix.Connection(concurrency=2)  # too few to request arrays before the group names them
        ix.open_image(f"zarr://{server.url}", connection=few)
        asked = [path.rpartition("/")[2] for path in server.asked]
        assert sorted(asked[:2]) == [".zattrs", "zarr.json"]
        assert asked[2:] == [".zarray"]


def test_a_bare_address_requests_both_formats_at_once(tmp_path):
    ome(tmp_path, (8, 16, 16))
    with serving(tmp_path) as server:
        ix.open_image(server.url)
        asked = [path.rpartition("/")[2] for path in server.asked]
        assert sorted(asked) == [".zattrs", "info", "zarr.json", "zarr.json"]
