"""Sharded precomputed layers over http, against CloudVolume's writer and reader."""

from __future__ import annotations

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.sources.address import parse_address
from imageryxr.sources.fetch import client, disk_reads
from imageryxr.sources.precomputed.source import open_precomputed
from tests.support.shards import GRID, spec, write
from tests.support.source_suite import SourceSuite, boxes_of, noise, read_padded, serving


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    disk_reads.clear()
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.0)


def open_layer(url, **options):
    return open_precomputed(parse_address(f"precomputed://{url}"), **options)


class TestSharded(SourceSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        path = tmp_path_factory.mktemp("sharded")
        write(path, cls().truth()[0], spec(), "compressed_segmentation")
        with serving(path) as server:
            cls.SERVER = server
            yield path

    def open(self, folder):
        return open_layer(self.SERVER.url)

    def grids(self):
        return [GRID]

    def truth(self):
        return [noise(GRID.shape, "uint64")]

    def open_without_voxels(self, folder, empty):
        self.SERVER.faults = {".shard": 500}
        source = self.open(folder)
        self.SERVER.faults = {}
        return source

    def others(self, folder):
        return [open_layer(self.SERVER.url, missing="fill")]

    def test_a_second_read_requests_chunks_only(self, folder):
        source = open_layer(self.SERVER.url, connection=ix.Connection(memory_cache=0))
        source.read(0, GRID.box)
        first = len(self.SERVER.requested)
        self.SERVER.requested.clear()
        source.read(0, GRID.box)
        assert 0 < len(self.SERVER.requested) < first
        assert (
            len(self.SERVER.requested) <= 8
        )  # one request per minishard, because neighbouring chunks are fetched together
        again = [p for p in self.SERVER.requested if p.endswith("info")]
        assert again == []


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("hashing", ["identity", "murmurhash3_x86_128"])
@pytest.mark.parametrize("data", ["raw", "gzip"])
@pytest.mark.parametrize("sizes", [(0, 0, 0), (0, 3, 2), (2, 1, 5)])
def test_every_shard_layout_is_read(tmp_path, hashing, data, sizes):
    preshift, minishards, bits = sizes
    values = noise(GRID.shape, "uint32")
    write(tmp_path, values, spec(hashing, data, "raw" if data == "raw" else "gzip", preshift, minishards, bits))
    with serving(tmp_path) as server:
        source = open_layer(server.url)
        for box in boxes_of(GRID.shape, 5):
            np.testing.assert_array_equal(source.read(0, box), read_padded(values, box))
    local = open_layer(tmp_path)  # the same shards, without a server
    np.testing.assert_array_equal(local.read(0, GRID.box), values)


class TestHoles:
    SKIP = ((1, 2, 0), (4, 4, 2))

    @pytest.fixture
    def server_with_holes(self, tmp_path):
        values = noise(GRID.shape, "uint32")
        write(tmp_path, values, spec(), skip=self.SKIP)
        for x, y, z in self.SKIP:
            values[8 * z : 8 * z + 8, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = 0
        with serving(tmp_path) as server:
            yield server, values

    def test_missing_chunks_are_an_error_by_default(self, server_with_holes):
        server, values = server_with_holes
        with pytest.raises(
            ix.errors.MissingChunkError, match="has no chunk 8_8_40/-5-11_37-53_3-11|has no chunk 8_8_40/43-46"
        ):
            open_layer(server.url).read(0, GRID.box)
        beside = IndexBox((0, 0, 0), (8, 30, 60))
        np.testing.assert_array_equal(open_layer(server.url).read(0, beside), values[beside.slices()])

    def test_missing_chunks_are_filled_or_warned_about(self, server_with_holes):
        server, values = server_with_holes
        np.testing.assert_array_equal(open_layer(server.url, missing="fill").read(0, GRID.box), values)
        with pytest.warns(ix.errors.MissingChunkWarning, match="2 missing chunks"):
            np.testing.assert_array_equal(open_layer(server.url, missing="warn").read(0, GRID.box), values)

    def test_the_chunks_of_a_missing_shard_are_missing(self, tmp_path):
        values = noise(GRID.shape, "uint32")
        write(tmp_path, values, spec())
        next((tmp_path / "8_8_40").iterdir()).unlink()
        with serving(tmp_path) as server:
            with pytest.raises(ix.errors.MissingChunkError):
                open_layer(server.url).read(0, GRID.box)
            found = open_layer(server.url, missing="fill").read(0, GRID.box)
        assert 0 < (found == 0).sum() < found.size
        np.testing.assert_array_equal(found[found > 0], values[found > 0])


class TestFaults:
    @pytest.fixture
    def served(self, tmp_path):
        values = noise(GRID.shape, "uint32")
        write(tmp_path, values, spec())
        with serving(tmp_path) as server:
            yield server, values

    @pytest.mark.parametrize(
        ("status", "error"),
        [(500, ix.errors.ChunkReadError), (401, ix.errors.AuthError), (0, ix.errors.ChunkReadError)],
    )
    def test_failing_requests_are_errors(self, served, status, error):
        server, _ = served
        source = open_layer(server.url, connection=ix.Connection(retries=1, backoff=0))
        server.faults = {".shard": status}
        with pytest.raises(error, match=server.url):
            source.read(0, GRID.box)

    def test_transient_errors_are_retried(self, served):
        server, values = served
        server.faults = {".shard": [503, 0, 200, 500, 200, 0]}
        np.testing.assert_array_equal(open_layer(server.url).read(0, GRID.box), values)

    @pytest.mark.parametrize("keep", [10, 70, 400, 0.5, 0.99])
    def test_a_truncated_shard_is_an_error(self, served, keep):
        server, _ = served
        for path in (server.folder / "8_8_40").iterdir():
            body = path.read_bytes()
            path.write_bytes(body[: int(keep * len(body)) if keep < 1 else keep])
        with pytest.raises(ix.errors.ChunkReadError, match="mip 0") as caught:
            open_layer(server.url, missing="fill", connection=ix.Connection(retries=0)).read(0, GRID.box)
        assert not isinstance(caught.value, ix.errors.MissingChunkError)

    def test_a_damaged_shard_is_an_error(self, served):
        server, _ = served
        for path in (server.folder / "8_8_40").iterdir():
            body = np.frombuffer(path.read_bytes(), np.uint8).copy()
            body[64:] ^= 0x5A
            path.write_bytes(body.tobytes())
        with pytest.raises(ix.errors.ChunkReadError, match="mip 0"):
            open_layer(server.url, missing="fill").read(0, GRID.box)
