"""Reading a shard is an error if the server sends other ranges than the requested ones."""

from __future__ import annotations

import re

import numpy as np
import pytest
import zarr

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.sources.fetch import disk_reads
from imageryxr.sources.resolve import resolve_source
from tests.support.hostile import HostileServer, reply
from tests.support.shards import GRID, spec, write
from tests.support.source_suite import noise

HASTY = ix.Connection(timeout=10, retries=0)
SHAPE = GRID.shape


def zarr_folder(path):
    values = noise(SHAPE, np.uint8)
    group = zarr.open_group(path, mode="w", zarr_format=3)
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.create_array("0", shape=SHAPE, chunks=(8, 8, 8), shards=(32, 80, 80), dtype="u1", compressors=None)[:] = (
        values
    )
    return values


def precomputed_folder(path):
    values = noise(SHAPE, np.uint64)
    write(path, values, spec(data="raw", index="raw"))
    return values


FORMATS = {"zarr": zarr_folder, "precomputed": precomputed_folder}


def answer_shifted(sock, head, folder, shift=0, label=True):
    """Respond to range requests with shifted ranges; the Content-Range states the requested or the sent range."""
    file = folder / head.split()[1].lstrip("/")
    if not file.is_file():
        return reply(sock, status="404 Not Found")
    whole = file.read_bytes()
    range_header = re.search(r"Range: bytes=(\d*)-(\d*)", head)
    if range_header is None:
        return reply(sock, whole)
    first, last = range_header.groups()
    start, stop = (int(first), int(last or len(whole) - 1) + 1) if first else (len(whole) - int(last), len(whole))
    requested = (start, min(stop, len(whole)) - 1)
    start, stop = start + shift, min(stop, len(whole)) + shift
    body = (whole + bytes(abs(shift)))[max(0, start) : stop]
    labelled = requested if label else (start, stop - 1)
    return reply(sock, body, "206 Partial Content", Content_Range=f"bytes {labelled[0]}-{labelled[1]}/{len(whole)}")


@pytest.mark.parametrize("form", FORMATS)
def test_shifted_ranges_are_errors(tmp_path, form):
    values = FORMATS[form](tmp_path)
    shift = [0]
    box = IndexBox((0, 8, 8), (8, 24, 24))
    with HostileServer(lambda sock, head: answer_shifted(sock, head, tmp_path, shift[0], label=False)) as server:
        source = resolve_source(f"{form}://{server.url}", None, connection=HASTY)
        for shift[0] in (64, -64, 1):
            disk_reads.clear()
            with pytest.raises(ix.errors.ChunkReadError, match="instead of|beyond its file|Content-Range"):
                source.read(0, box)
        shift[0] = 0
        np.testing.assert_array_equal(source.read(0, box), values[box.slices()])


@pytest.mark.parametrize("form", FORMATS)
def test_a_server_without_ranges_gives_the_same_voxels(tmp_path, form):
    values = FORMATS[form](tmp_path)
    box = IndexBox((0, 8, 8), (8, 24, 24))
    with HostileServer(lambda sock, head: answer_shifted(sock, head.replace("Range", "Ignored"), tmp_path)) as server:
        disk_reads.clear()
        source = resolve_source(f"{form}://{server.url}", None, connection=HASTY)
        np.testing.assert_array_equal(source.read(0, box), values[box.slices()])
