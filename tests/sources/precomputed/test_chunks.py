"""Raw chunks in local files, against CloudVolume and the voxels that were written."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.errors import ChunkReadError, MissingChunkError, MissingChunkWarning
from imageryxr.sources.precomputed import chunks
from imageryxr.sources.precomputed.chunks import read_box, read_raw
from tests.support.precomputed import Layers, open_layer, write_layer
from tests.support.source_suite import boxes_of, noise

GRID = Grid((19, 35, 37), (4.04, 4.04, 40), (-21, 5, 3))
WHOLE = IndexBox((0, 0, 0), GRID.shape)


@pytest.fixture(params=[1, 3], autouse=True)
def _threads(request, monkeypatch):
    """Run each test with one thread, and with several threads as for large boxes."""
    monkeypatch.setattr(chunks, "LARGE_BOX", 0 if request.param > 1 else 1 << 40)
    monkeypatch.setattr(chunks, "cpu_count", lambda: request.param)


class TestRawFiles(Layers):
    def write(self, folder):
        write_layer(folder, self.truth(), self.grids(), compress=False)


class TestRawIds(Layers):
    KIND, DTYPE = "segmentation", "uint64"

    def write(self, folder):
        write_layer(folder, self.truth(), self.grids(), kind=self.KIND, compress=False)


@pytest.fixture(params=["uint8", "uint16", "uint64", "float32", "3 × uint8"])
def layer(request, tmp_path):
    """Return the voxels of a layer (channel first) and its folder."""
    count, _, dtype = request.param.rpartition(" × ")
    values = np.stack([noise(GRID.shape, dtype, seed) for seed in range(int(count or 1))])
    if dtype == "uint64":
        values[0, :3, :3, :3] = np.uint64(2**64 - 1)
    write_layer(tmp_path / "layer", [values if count else values[0]], [GRID], compress=False)
    return values, tmp_path / "layer"


@pytest.fixture
def chunk(layer):
    """Return the file of the chunk at the lower corner."""
    return next(p for p in layer[1].rglob("-21--5_5-21_3-11"))


def test_every_box_equals_the_written_voxels_and_those_of_cloudvolume(layer, monkeypatch):
    from cloudvolume import Bbox, CloudVolume

    values, folder = layer
    theirs = CloudVolume(f"precomputed://file://{folder}", progress=False, bounded=False)
    offset = np.array(GRID.voxel_offset, int)
    for channel, truth in enumerate(values):
        source = open_layer(folder, channel=channel)
        for box in [*boxes_of(GRID.shape), WHOLE, IndexBox((3, 3, 3), (4, 4, 4)), IndexBox((18, 34, 36), GRID.shape)]:
            inside = box.clip(WHOLE)
            if not inside.voxels:
                continue
            found = read_raw(source, 0, inside)
            assert found is not None
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, truth[inside.slices()])
            bounds = Bbox(offset + inside.start[::-1], offset + inside.stop[::-1])
            peer = np.asarray(theirs.download(bounds)).reshape(*inside.shape[::-1], -1)
            np.testing.assert_array_equal(found, peer[..., channel].T)
            np.testing.assert_array_equal(found, read_box(source, 0, inside))
    monkeypatch.setattr(chunks, "read_box", None)
    np.testing.assert_array_equal(open_layer(folder, channel=0).read(0, WHOLE), values[0])


def test_compressed_chunk_files_are_read_by_the_engine(layer, chunk):
    values, folder = layer
    chunk.with_name(chunk.name + ".gz").write_bytes(gzip.compress(chunk.read_bytes()))
    chunk.unlink()
    source = open_layer(folder, channel=0)
    assert read_raw(source, 0, WHOLE) is None
    np.testing.assert_array_equal(source.read(0, WHOLE), values[0])


@pytest.mark.parametrize("harm", ["short", "long", "empty", "page"])
def test_the_error_names_the_damaged_chunk_file(layer, chunk, harm):
    _, folder = layer
    data = chunk.read_bytes()
    page = b"<!DOCTYPE html>".ljust(len(data))
    chunk.write_bytes({"short": data[:-1], "long": data + b"1", "empty": b"", "page": page}[harm])
    source = open_layer(folder, channel=0)
    assert read_raw(source, 0, WHOLE) is None
    with pytest.raises(ChunkReadError, match=r"-21--5_5-21_3-11.* is (damaged|empty)"):
        source.read(0, WHOLE)
    away = IndexBox((8, 16, 16), (19, 35, 37))
    assert read_raw(source, 0, away) is not None


def test_the_option_missing_applies_to_a_missing_raw_chunk(layer, chunk):
    values, folder = layer
    chunk.unlink()
    assert read_raw(open_layer(folder, channel=0), 0, WHOLE) is None
    with pytest.raises(MissingChunkError, match="has no chunk"):
        open_layer(folder, channel=0).read(0, WHOLE)
    truth = values[0].copy()
    truth[:8, :16, :16] = 0
    with pytest.warns(MissingChunkWarning, match="1 missing chunk"):
        found = open_layer(folder, channel=0, missing="warn").read(0, WHOLE)
    np.testing.assert_array_equal(found, truth)


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows reports a folder in place of a file as a denied permission"
)
def test_a_folder_instead_of_a_chunk_is_an_error(layer, chunk):
    _, folder = layer
    chunk.unlink()
    chunk.mkdir()
    assert read_raw(open_layer(folder, channel=0), 0, WHOLE) is None
    with pytest.raises(ChunkReadError):
        open_layer(folder, channel=0).read(0, WHOLE)


@pytest.mark.parametrize("encoding", ["png", "compressed_segmentation"])
def test_encoded_chunks_are_read_by_the_engine(tmp_path, encoding):
    dtype = "uint64" if "seg" in encoding else "uint8"
    values = noise(GRID.shape, dtype, 0)
    kind = "segmentation" if "seg" in encoding else "image"
    write_layer(tmp_path, [values], [GRID], kind=kind, encoding=encoding, compress=False)
    source = open_layer(tmp_path)
    assert read_raw(source, 0, WHOLE) is None
    np.testing.assert_array_equal(source.read(0, WHOLE), values)
