"""No codec or chain of codecs decompresses a Zarr chunk to more than the shape of the chunk allows."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import zlib

import numcodecs
import numpy as np
import pytest
import zarr
import zstandard
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

import imageryxr as ix
from imageryxr.sources.fetch.policy import Access
from imageryxr.sources.omezarr.array_metadata import layout_of
from imageryxr.sources.omezarr.bounded_codecs import bounded_metadata, check_bounded
from imageryxr.sources.omezarr.stores import open_local_array, remote_store
from tests.support.hostile import HostileServer, reply
from tests.support.slow import slow_except

MB = 1 << 20
DATA = np.random.default_rng(5).integers(0, 60_000, (16, 16, 16), dtype=np.uint16)
OLD = {"gzip": numcodecs.GZip(), "zlib": numcodecs.Zlib(), "bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA()} | {
    "zstd": numcodecs.Zstd(),
    "blosc": numcodecs.Blosc(),
    "lz4": numcodecs.LZ4(),
}
NEW = {"gzip": GzipCodec(), "zstd": ZstdCodec(), "blosc": BloscCodec()}


def open_array(path):
    """Open an array as the arrays of an OME-Zarr are opened."""
    name, version = ("zarr.json", 3) if (path / "zarr.json").is_file() else (".zarray", 2)
    layout = layout_of(str(path), json.loads((path / name).read_text()), version)
    return open_local_array(f"file://{path}", "", layout.document)[0]


def write_array(path, compressors, version=3, **options):
    array = zarr.create_array(
        path, shape=DATA.shape, dtype=DATA.dtype, compressors=compressors, zarr_format=version, **options
    )
    array[:] = DATA
    return path


def compressed_zeros(make, size=128 * MB):
    """Return `size` zeros, compressed by the compressor that `make` returns."""
    packer = make()
    piece = bytes(4 * MB)
    return b"".join(packer.compress(piece) for _ in range(size // len(piece))) + packer.flush()


MAKERS = {
    "gzip": lambda: zlib.compressobj(9, zlib.DEFLATED, 31),
    "zlib": lambda: zlib.compressobj(9),
    "bz2": bz2.BZ2Compressor,
    "lzma": lambda: lzma.LZMACompressor(preset=1),
}


@pytest.mark.parametrize("kind", OLD)
def test_chunks_of_version_2_decode_to_what_was_written(tmp_path, kind):
    path = write_array(tmp_path / "a.zarr", [OLD[kind]], 2, chunks=(8, 16, 8))
    np.testing.assert_array_equal(open_array(path)[...], DATA)


@pytest.mark.parametrize("shards", [None, (16, 16, 16)])
@pytest.mark.parametrize("kind", NEW)
def test_chunks_of_version_3_decode_to_what_was_written(tmp_path, kind, shards):
    path = write_array(tmp_path / "a.zarr", [NEW[kind]], chunks=(8, 16, 8), shards=shards)
    np.testing.assert_array_equal(open_array(path)[...], DATA)


def test_codecs_in_a_row_decode_to_what_was_written(tmp_path):
    path = write_array(tmp_path / "a.zarr", [BloscCodec(), ZstdCodec(), GzipCodec()], chunks=(8, 16, 8))
    np.testing.assert_array_equal(open_array(path)[...], DATA)


@pytest.mark.parametrize("kind", slow_except(MAKERS, "gzip"))
def test_a_decompression_bomb_in_a_chunk_ends_at_the_limit(tmp_path, kind):
    path = write_array(tmp_path / "a.zarr", [OLD[kind]], 2, chunks=DATA.shape)
    (path / "0.0.0").write_bytes(compressed_zeros(MAKERS[kind]))
    with pytest.raises(ValueError, match="than the limit of 1,114,112 bytes"):
        open_array(path)[...]


def test_a_decompression_bomb_within_another_codec_ends_at_the_limit(tmp_path):
    path = write_array(tmp_path / "a.zarr", [ZstdCodec(), GzipCodec()], chunks=DATA.shape)
    inner = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * MB))
    (path / "c" / "0" / "0" / "0").write_bytes(gzip.compress(inner))
    with pytest.raises(ValueError, match="zstd to more than"):
        open_array(path)[...]


@pytest.mark.parametrize("codec", [BloscCodec(), ZstdCodec()])
def test_a_header_within_another_codec_allocates_no_more_than_the_limit(tmp_path, codec):
    path = write_array(tmp_path / "a.zarr", [codec, GzipCodec()], chunks=DATA.shape)
    frame = numcodecs.Blosc() if isinstance(codec, BloscCodec) else numcodecs.Zstd()
    (path / "c" / "0" / "0" / "0").write_bytes(gzip.compress(frame.encode(bytes(64 * MB))))
    with pytest.raises(ValueError, match="header states 67,108,864 bytes"):
        open_array(path)[...]


def test_truncated_streams_are_errors(tmp_path):
    for kind in ("gzip", "zlib", "bz2", "lzma"):
        path = write_array(tmp_path / f"{kind}.zarr", [OLD[kind]], 2, chunks=DATA.shape)
        chunk = path / "0.0.0"
        chunk.write_bytes(chunk.read_bytes()[:-20])
        with pytest.raises(ValueError, match="truncated|damaged"):
            open_array(path)[...]


def test_each_compressor_of_a_shard_has_a_limit():
    document = {
        "zarr_format": 3,
        "data_type": "uint8",
        "chunk_grid": {"configuration": {"chunk_shape": [64, 64]}},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [32, 32],
                    "codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}],
                    "index_codecs": [{"name": "bytes"}, {"name": "numcodecs.zlib", "configuration": {"level": 1}}],
                },
            },
            {"name": "zstd", "configuration": {}},
        ],
    }
    shard, outer = bounded_metadata(json.dumps(document))["codecs"]
    inner, index = shard["configuration"]["codecs"][1], shard["configuration"]["index_codecs"][1]
    assert inner["configuration"]["limit"] == 8 * 32 * 32 + MB
    assert index["configuration"]["limit"] == 8 * 4 * 16 + MB
    assert outer["configuration"]["limit"] == 8 * 64 * 64 + MB


def test_a_dictionary_of_lzma_beyond_the_limit_is_refused(tmp_path):
    path = write_array(tmp_path / "a.zarr", [numcodecs.LZMA()], 2, chunks=DATA.shape)
    document = json.loads((path / ".zarray").read_text())
    filters = [{"id": int(lzma.FILTER_LZMA2), "dict_size": 1_500_000_000}]
    document["compressor"] = {"id": "lzma", "format": int(lzma.FORMAT_RAW), "filters": filters}
    (path / ".zarray").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="dictionary"):
        open_array(path)[...]


def test_the_largest_chunk_of_a_server_is_bounded():
    size = 2**17
    array = {"zarr_format": 2, "shape": [size, size, 4], "chunks": [size, size, 1], "dtype": "|u1", "order": "C"}
    array |= {"filters": None, "compressor": {"id": "gzip", "level": 1}, "fill_value": 0}
    layout = layout_of("x", array, 2)
    with HostileServer(lambda sock, head: reply(sock, b"\0" * 100)) as server:
        with pytest.raises(ix.errors.ChunkReadError, match="16 GiB; the limit for a server is 4 GiB"):
            remote_store(server.url, None, ix.Connection(retries=0, timeout=5), layout.document)
        assert server.connections == 0


@pytest.mark.slow
def test_a_decompression_bomb_takes_no_memory(tmp_path):
    path = write_array(tmp_path / "a.zarr", [OLD["gzip"]], 2, chunks=DATA.shape)
    (path / "0.0.0").write_bytes(compressed_zeros(MAKERS["gzip"]))
    code = f"""
import resource
from pathlib import Path
from tests.security.test_codec_limits import open_array
array = open_array(Path({str(path)!r}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    array[...]
except ValueError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 64


@pytest.mark.parametrize("name", ["imageryxr_bounded", "numcodecs.imageryxr_bounded"])
def test_a_file_cannot_set_the_size_limit_of_its_codecs(name):
    own = {"codec": {"id": "gzip"}, "limit": 2**60}
    array = {"zarr_format": 3, "node_type": "array", "shape": [8], "data_type": "uint8", "fill_value": 0}
    array |= {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8]}}, "chunk_key_encoding": "default"}
    array["codecs"] = [{"name": "bytes"}, {"name": name, "configuration": own}]
    with pytest.raises(ix.errors.CodecError, match="a name that imageryxr reserves"):
        layout_of("x", array, 3)
    old = {"zarr_format": 2, "shape": [8], "chunks": [8], "dtype": "|u1", "order": "C", "filters": None}
    with pytest.raises(ix.errors.CodecError, match="a name that imageryxr reserves"):
        layout_of("x", old | {"compressor": own | {"id": name}, "fill_value": 0}, 2)


@pytest.mark.parametrize("codec", ["imagecodecs_png", "imagecodecs_zlib", "pcodec", "zfpy"])
def test_a_link_does_not_lead_to_a_codec_without_a_limit(codec):
    metadata = json.dumps({"zarr_format": 2, "compressor": {"id": codec}, "filters": None})
    with pytest.raises(ix.errors.CodecError, match=f"the codec '{codec}', which may decompress to any size"):
        check_bounded("x", metadata, Access(from_link=True))
    check_bounded("x", metadata, Access())
    for known in (*OLD, "delta", "crc32"):
        check_bounded("x", metadata.replace(codec, known), Access(from_link=True))
