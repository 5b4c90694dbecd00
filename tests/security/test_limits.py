"""Responses have size limits, before and after decompression."""

from __future__ import annotations

import gzip
import itertools
import json
import tracemalloc
import zlib
from contextlib import contextmanager

import brotli
import numpy as np
import pytest
import zstandard

import imageryxr as ix
from imageryxr.sources.fetch import client
from imageryxr.sources.fetch.decompress import TooLargeError, decompress
from tests.support.hostile import HostileServer, reply

HASTY = ix.Connection(timeout=10, retries=0)
OK = b"HTTP/1.1 200 OK\r\n"
PACK = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": zstandard.compress,
}


@contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def endless(server, sock, start=OK + b"\r\n", piece=b"x" * 65536):
    sock.sendall(start)
    while not server.stopped.is_set():
        sock.sendall(piece)


ENDLESS = {
    "until it closes": (OK + b"\r\n", b"x" * 65536),
    "in chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    "in tiny chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10000),
    "in a chunk of negative size": (OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", b"x" * 65536),
    "in a chunk of huge size": (OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffff\r\n", b"x" * 65536),
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow) if "tiny" in way else way for way in ENDLESS]
)
def test_reading_ends_at_the_limit(way):
    start, piece = ENDLESS[way]
    with HostileServer(lambda sock, head: endless(server, sock, start, piece)) as server:
        with (
            little_memory(),
            pytest.raises(ix.errors.ServerError, match="1,000,000 bytes|answer exceeds the limit|non-negative"),
        ):
            client.send_interruptible_request("GET", server.url, HASTY, limit=1_000_000)
        assert len(server.requests) == 1


def test_a_body_that_is_too_large_by_its_header_is_not_read():
    with (
        HostileServer(lambda sock, head: sock.sendall(OK + b"Content-Length: 1000001\r\n\r\n")) as server,
        pytest.raises(ix.errors.ServerError, match="has 1,000,001 bytes.*limit for this request is 1,000,000"),
    ):
        client.send_interruptible_request("GET", server.url, HASTY, limit=1_000_000)


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "200 OK"])
def test_an_endless_error_page_is_an_error_page(status):
    start = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\n\r\n".encode()
    with HostileServer(lambda sock, head: endless(server, sock, start)) as server:
        if status == "200 OK":
            with pytest.raises(ix.errors.ServerError, match="more than 67,108,864"):
                client.send_interruptible_request("GET", server.url, ix.Connection(timeout=60, retries=0))
            return
        found = client.send_interruptible_request("GET", server.url, HASTY)
        assert (found.status, len(found.body)) == (int(status[:3]), 1 << 20)


@pytest.mark.parametrize("lengths", [["5", "6"], ["-1"], ["+5"], ["5_0"], ["0x5"], ["9" * 30], ["5, 5"]])
def test_an_invalid_content_length_is_an_error(lengths):
    head = OK + b"".join(b"Content-Length: %s\r\n" % length.encode() for length in lengths) + b"\r\n"
    with (
        HostileServer(lambda sock, _: sock.sendall(head + b"hello")) as server,
        pytest.raises(ix.errors.ServerError, match="Content-Length is not valid"),
    ):
        client.send_interruptible_request("GET", server.url, HASTY)


@pytest.mark.parametrize("encoding", ["gzip, chunked", "gzip", "identity"])
def test_an_unknown_transfer_encoding_is_an_error(encoding):
    head = OK + f"Transfer-Encoding: {encoding}\r\n\r\n".encode() + b"5\r\nhello\r\n0\r\n\r\n"
    with (
        HostileServer(lambda sock, _: sock.sendall(head)) as server,
        pytest.raises(ix.errors.ServerError, match="transfer encoding"),
    ):
        client.send_interruptible_request("GET", server.url, HASTY)


@pytest.mark.parametrize("status", ["102 Processing", "103 Early Hints", "101 Switching Protocols"])
def test_an_interim_status_does_not_shift_later_answers(status):
    def answer(sock, head):
        path = head.split()[1].encode()
        sock.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
        return reply(sock, path)

    with HostileServer(answer) as server:
        for path in ("/a", "/b"):
            if status.startswith("101"):
                with pytest.raises(ix.errors.ServerError, match="HTTP 10"):
                    client.send_interruptible_request("GET", server.url + path, HASTY)
            else:
                assert client.send_interruptible_request("GET", server.url + path, HASTY).body == path.encode()


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_decompression_gives_what_was_compressed(encoding, size):
    whole = np.random.default_rng(size).integers(0, 9, size).astype("u1").tobytes()
    packed = PACK[encoding](whole)
    assert decompress(packed, encoding, size) == whole
    assert decompress(packed, encoding.upper(), size + 1) == whole
    if size:
        with pytest.raises(ValueError, match="decompresses|damaged"):
            decompress(packed, encoding, size - 1)
    for cut in {0, len(packed) // 2, len(packed) - 1}:
        with pytest.raises(ValueError, match="damaged"):
            decompress(packed[:cut], encoding, size)


@pytest.mark.slow
def test_concatenated_streams_are_joined():
    assert decompress(gzip.compress(b"a") + gzip.compress(b"b") + b"\0" * 10, "gzip", 2) == b"ab"
    assert decompress(zstandard.compress(b"a") + zstandard.compress(b"b"), "zstd", 2) == b"ab"
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0xyz"
    assert decompress(skipped + zstandard.compress(b"b"), "zstd", 2) == b"b"
    for encoding in ("gzip", "zstd"):
        with pytest.raises(TooLargeError, match="more than the limit of 1,000 bytes"):
            decompress(PACK[encoding](b"x" * 600) * 2, encoding, 1000)
        with pytest.raises(ValueError, match="more than 100,000"):
            decompress(PACK[encoding](b"") * 100_001, encoding, 1000)


def test_raw_deflate_is_decompressed():
    packer = zlib.compressobj(wbits=-15)
    assert decompress(packer.compress(b"abc") + packer.flush(), "deflate", 3) == b"abc"


@pytest.mark.parametrize("encodings", list(itertools.permutations(PACK, 2)), ids=", ".join)
def test_data_compressed_twice_are_decompressed(encodings):
    first, second = encodings
    assert decompress(PACK[second](PACK[first](b"abc" * 999)), f"{first}, {second}", 3000) == b"abc" * 999
    with pytest.raises(ValueError, match="compressed 4 times"):
        decompress(b"", "gzip, gzip, gzip, gzip", 10)


@pytest.mark.parametrize("encoding", ["compress", "gzip;q=1", "aws-chunked"])
def test_an_unknown_content_encoding_is_an_error(encoding):
    with pytest.raises(ValueError, match="is unknown"):
        decompress(b"abc", encoding, 10)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", PACK)
def test_a_decompression_bomb_takes_no_memory(encoding):
    bomb = PACK[encoding](b"\0" * (200 << 20))
    with little_memory(), pytest.raises(ValueError, match="more than the limit of 1,048,576 bytes"):
        decompress(bomb, encoding, 1 << 20)


def layer(server, shape=(16, 16, 16)):
    scale = {
        "key": "k",
        "size": list(shape),
        "resolution": [1, 1, 1],
        "chunk_sizes": [list(shape)],
        "encoding": "raw",
        "voxel_offset": [0, 0, 0],
    }
    return {
        "type": "image",
        "data_type": "uint8",
        "num_channels": 1,
        "scales": [scale],
        "@type": "neuroglancer_multiscale_volume",
    }


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize("encoding", PACK)
def test_a_decompression_bomb_in_place_of_a_chunk_is_refused(encoding):
    bomb = PACK[encoding](b"\0" * (64 << 20))

    def answer(sock, head):
        if "/info" in head:
            return reply(sock, json.dumps(layer(server)).encode())
        return reply(sock, bomb, Content_Encoding=encoding)

    with HostileServer(answer) as server:
        em = ix.open_image(f"precomputed://{server.url}", connection=HASTY)
        with pytest.raises(ix.errors.ChunkReadError, match="more than the limit of 1,064,960 bytes"):
            em.load()


def test_a_decompression_bomb_in_place_of_metadata_is_refused():
    bomb = gzip.compress(b" " * (70 << 20))
    with (
        HostileServer(lambda sock, head: reply(sock, bomb, Content_Encoding="gzip")) as server,
        pytest.raises(ix.ImageryError, match="more than the limit of 67,108,864 bytes"),
    ):
        ix.open_image(f"precomputed://{server.url}", connection=HASTY)


def test_a_chunk_that_never_ends_is_refused():
    def answer(sock, head):
        return reply(sock, json.dumps(layer(server)).encode()) if "/info" in head else endless(server, sock)

    with HostileServer(answer) as server:
        em = ix.open_image(f"precomputed://{server.url}", connection=HASTY)
        with pytest.raises(ix.errors.ChunkReadError, match="more than 1,064,960 bytes"):
            em.load()
