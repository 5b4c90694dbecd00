from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from cloudvolume import CloudVolume

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.errors import (
    AuthError,
    ChoiceError,
    ChunkReadError,
    CodecError,
    LayerError,
    MissingChunkError,
    MissingChunkWarning,
    SourceError,
    SourceNotFoundError,
)
from imageryxr.sources.address import parse_address
from imageryxr.sources.base import default_level
from imageryxr.sources.fetch import attempt, client
from imageryxr.sources.precomputed import source as precomputed
from imageryxr.sources.precomputed.source import open_precomputed
from imageryxr.sources.resolve import resolve_source
from tests.support.precomputed import Layers, open_layer, scale, write_layer
from tests.support.source_suite import boxes_of, dead_url, noise, read_padded, serving


class TestRaw(Layers):
    def others(self, folder):
        return [*super().others(folder), resolve_source(self.open(folder), "segmentation")]

    def test_levels_may_be_offset_by_half_a_voxel(self, source):
        # The format stores whole voxels: 5 voxels of 4.04 nm are 20.2 nm, 2 voxels of 8.08 nm are 16.16 nm.
        edges = [level.grid.bbox.lo_nm[1] for level in source.levels]
        np.testing.assert_allclose(edges, [20.2, 16.16])
        assert source.levels[1].grid.voxel_offset == (-11, 2, 3)

    def test_the_repr_of_a_source_does_not_contain_its_metadata(self, source, folder):
        assert source.name == f"precomputed://file://{folder}"
        assert "info_text" not in repr(source)


class TestIds(Layers):
    KIND, DTYPE, ENCODING = "segmentation", "uint64", "compressed_segmentation"

    def test_ids_near_the_end_of_uint64_are_exact(self, source):
        assert source.read(0, source.levels[0].grid.box).max() == np.uint64(2**64 - 2)


class TestFloat(Layers):
    DTYPE = "float32"
    GRIDS = (Grid((9, 17, 16), (10, 20, 30), (0, 0, 0)),)


class TestOverHttp(Layers):
    """The suite over HTTP. Other processes read from the server, so it serves all tests of the class."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        path = tmp_path_factory.mktemp("layer")
        cls().write(path)
        with serving(path) as server:
            cls.SERVER = server
            yield path

    def open(self, folder):
        found = open_precomputed(parse_address(f"precomputed://{self.SERVER.url}"))
        return found if folder == self.SERVER.folder else open_layer(folder)

    def test_a_box_requests_only_its_chunks(self, folder):
        source = self.open(folder)
        self.SERVER.requested.clear()
        source.read(0, IndexBox((0, 0, 0), (8, 16, 17)))
        assert sorted(self.SERVER.requested) == [
            "/4.04_4.04_40/-21--5_5-21_3-11",
            "/4.04_4.04_40/-5-11_5-21_3-11",
        ]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_has_connections_of_its_own(self, folder):
        source, truth = self.open(folder), self.truth()[0]
        source.read(0, IndexBox((0, 0, 0), (8, 16, 17)))
        before = attempt._state
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            code = 1
            try:
                same = np.array_equal(source.read(0, IndexBox((0, 0, 0), (8, 16, 17))), truth[:8, :16, :17])
                code = 0 if same and attempt._state is not before else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_jpeg_is_close_to_the_written_values(tmp_path):
    grid = Grid((8, 32, 32), (8, 8, 40), (1, 2, 3))
    z, y, x = np.indices(grid.shape)
    smooth = (60 + 2 * x + y + 4 * z).astype("uint8")
    write_layer(tmp_path, [smooth], [grid], encoding="jpeg")
    found = open_layer(tmp_path).read(0, grid.box)
    assert open_layer(tmp_path).levels[0].encoding == "jpeg"
    assert np.abs(found.astype(int) - smooth).max() <= 8


@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_segmentations_of_uint32_are_read(tmp_path, encoding):
    grid = Grid((9, 17, 18), (8, 8, 40), (1, 2, 3))
    ids = noise(grid.shape, "uint32")
    write_layer(tmp_path, [ids], [grid], kind="segmentation", encoding=encoding)
    np.testing.assert_array_equal(open_layer(tmp_path).read(0, grid.box), ids)


def test_the_selected_channel_is_read(tmp_path):
    grid = Grid((5, 20, 18), (8, 8, 40), (0, -3, 0))
    values = np.stack([noise(grid.shape, seed=s) for s in range(3)])
    write_layer(tmp_path, [values], [grid])
    with pytest.raises(ChoiceError, match="3 channels; choose one with channel=0 to channel=2"):
        open_layer(tmp_path)
    for channel in range(3):
        np.testing.assert_array_equal(open_layer(tmp_path, channel=channel).read(0, grid.box), values[channel])
    assert open_layer(tmp_path, channel=1) != open_layer(tmp_path, channel=2)
    for wrong in (3, -1, "red", True):
        with pytest.raises(SourceError, match="its channels are 0 to 2"):
            open_layer(tmp_path, channel=wrong)


def test_a_scale_whose_key_is_a_placeholder_is_a_level_without_voxels(tmp_path, capsys):
    grids = [Grid((9, 34, 36), (4, 4, 40), (0, 0, 0)), Grid((9, 17, 18), (8, 8, 40), (0, 0, 0))]
    info = write_layer(tmp_path, [noise(g.shape) for g in grids], grids)
    info["scales"][0]["key"] = "placeholder_0"
    (tmp_path / "info").write_text(json.dumps(info))
    capsys.readouterr()
    source = open_layer(tmp_path)
    assert [level.placeholder for level in source.levels] == [True, False]
    assert default_level(source).mip == 1
    np.testing.assert_array_equal(source.read(1, grids[1].box), noise(grids[1].shape))
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------------------------------
# missing and damaged chunks


@pytest.fixture
def layer(tmp_path):
    """Write an uncompressed layer of 2 × 3 × 3 chunks; return its folder, grid and voxels."""
    grid = Grid((16, 48, 48), (8, 8, 40), (-16, 16, 5))
    values = noise(grid.shape)
    write_layer(tmp_path, [values], [grid], compress=False)
    return tmp_path, grid, values


def chunk_file(folder: Path, index=(0, 1, 1)) -> Path:
    z, y, x = index[0] * 8 + 5, index[1] * 16 + 16, index[2] * 16 - 16
    return folder / "8_8_40" / f"{x}-{x + 16}_{y}-{y + 16}_{z}-{z + 8}"


HOLE = (slice(0, 8), slice(16, 32), slice(16, 32))
WHERE = r"mip 0 \(8 × 8 × 40 nm\), box \(-16, 16, 5\) to \(32, 64, 21\) in voxels of 8 × 8 × 40 nm"


class TestMissing:
    def test_missing_chunks_are_an_error_by_default(self, layer):
        folder, grid, values = layer
        chunk_file(folder).unlink()
        source = open_layer(folder)
        with pytest.raises(MissingChunkError, match=WHERE) as caught:
            source.read(0, grid.box)
        assert "0-16_32-48_5-13" in str(caught.value)
        assert "missing='fill'" in str(caught.value)
        assert str(folder) in str(caught.value)
        assert isinstance(caught.value, FileNotFoundError | ChunkReadError)
        beside = IndexBox((0, 0, 0), (16, 16, 48))
        np.testing.assert_array_equal(source.read(0, beside), values[beside.slices()])

    def test_missing_chunks_are_filled(self, layer):
        folder, grid, values = layer
        chunk_file(folder).unlink()
        values[HOLE] = 0
        source = open_layer(folder, missing="fill")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for box in boxes_of(grid.shape):
                np.testing.assert_array_equal(source.read(0, box), read_padded(values, box))

    def test_missing_warn_names_the_boxes(self, layer):
        folder, grid, values = layer
        for x in range(3):
            chunk_file(folder, (0, 1, x)).unlink()
        chunk_file(folder, (1, 0, 0)).unlink()
        values[:8, 16:32], values[8:, :16, :16] = 0, 0
        where = r"4 missing chunks .*: \(-16, 32, 5\) to \(0, 48, 13\) in voxels of 8 × 8 × 40 nm; .*and 1 more"
        with pytest.warns(MissingChunkWarning, match=where):
            found = open_layer(folder, missing="warn").read(0, grid.box)
        np.testing.assert_array_equal(found, values)

    @pytest.mark.parametrize("missing", ["raise", "fill", "warn"])
    def test_an_empty_file_is_not_a_missing_chunk(self, layer, missing):
        folder, grid, _ = layer
        chunk_file(folder).write_bytes(b"")
        with pytest.raises(ChunkReadError, match=r"empty \(0 bytes\)") as caught:
            open_layer(folder, missing=missing).read(0, grid.box)
        assert not isinstance(caught.value, MissingChunkError)
        assert "box (0, 32, 5) to (16, 48, 13)" in str(caught.value)

    @pytest.mark.parametrize("missing", ["raise", "fill", "warn"])
    def test_a_truncated_chunk_is_an_error(self, layer, missing, capsys):
        folder, grid, _ = layer
        chunk_file(folder).write_bytes(chunk_file(folder).read_bytes()[:1000])
        with pytest.raises(ChunkReadError, match=WHERE) as caught:
            open_layer(folder, missing=missing).read(0, grid.box)
        assert not isinstance(caught.value, MissingChunkError)
        assert str(folder) in str(caught.value)
        assert "\x1b" not in str(caught.value)

    @pytest.mark.parametrize("missing", ["raise", "fill"])
    def test_a_damaged_gzip_stream_is_an_error(self, tmp_path, missing, capfd):
        grid = Grid((8, 16, 16), (8, 8, 40), (0, 0, 0))
        write_layer(tmp_path, [noise(grid.shape)], [grid])
        (file,) = (tmp_path / "8_8_40").iterdir()
        assert file.suffix == ".gz"
        file.write_bytes(file.read_bytes()[:100])
        capfd.readouterr()
        with pytest.raises(ChunkReadError, match="mip 0"):
            open_layer(tmp_path, missing=missing).read(0, grid.box)
        assert capfd.readouterr().out == ""


class TestInfo:
    def test_a_missing_layer_is_an_error(self, tmp_path):
        with pytest.raises(SourceNotFoundError, match="there is no volume at .*there is no such folder"):
            resolve_source(tmp_path / "absent", "image")
        with pytest.raises(SourceNotFoundError) as caught:
            resolve_source(tmp_path, "image")
        for looked_for in ("/info", "/zarr.json", "/.zattrs"):
            assert f"{tmp_path}{looked_for}" in str(caught.value)
        with pytest.raises(SourceNotFoundError, match="/info does not exist.*zarr://"):
            open_layer(tmp_path)
        assert issubclass(SourceNotFoundError, FileNotFoundError)

    @pytest.mark.parametrize("text", ["<html>log in</html>", "", "{"])
    def test_an_info_that_is_not_json_is_an_error(self, tmp_path, text):
        (tmp_path / "info").write_text(text)
        with pytest.raises(SourceError, match="/info is not JSON.*login page"):
            resolve_source(tmp_path, "image")

    @pytest.mark.parametrize("text", ["[1, 2]", '"volume"', "3"])
    def test_an_info_that_is_not_an_object_is_an_error(self, tmp_path, text):
        (tmp_path / "info").write_text(text)
        with pytest.raises(SourceError, match="instead of a JSON object"):
            resolve_source(tmp_path, "image")

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("neuroglancer_skeletons", "holds skeletons"),
            ("neuroglancer_legacy_mesh", "holds meshes"),
            ("neuroglancer_multilod_draco", "multilod_draco"),
            ("neuroglancer_annotations_v1", "holds annotations"),
            ("neuroglancer_segment_properties", "holds properties of segments"),
        ],
    )
    def test_other_kinds_of_layers_are_named(self, tmp_path, kind, message):
        (tmp_path / "info").write_text(json.dumps({"@type": kind}))
        with pytest.raises(SourceError, match=message):
            resolve_source(tmp_path, "image")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"scales": []}, "lacks scales"),
            ({"scales": [3]}, "scale 0 is 3, which is not an object"),
            ({"scales": [{"key": "a"}]}, "scale 0 lacks size and resolution and chunk_sizes"),
            ({"data_type": "uint7"}, "uint7"),
            ({"data_type": "object"}, "object"),
            ({"num_channels": 0}, "0 channels"),
            ({"size": [0, 5, 5]}, "positive"),
            ({"size": [5, 5]}, r"scale 0 has the size \[5, 5\]; it must hold three"),
            ({"resolution": [4, 4, 0]}, "positive"),
            ({"chunk_sizes": []}, r"scale 0 has the chunk_sizes \[\]; it must hold three"),
        ],
    )
    def test_invalid_metadata_are_errors(self, tmp_path, change, message):
        info = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [scale(Grid((5, 5, 5), (4, 4, 40), (0, 0, 0)))]}  # fmt: skip
        within = {k: v for k, v in change.items() if k in info["scales"][0]}
        info["scales"][0].update(within)
        info.update({k: v for k, v in change.items() if k not in within})
        (tmp_path / "info").write_text(json.dumps(info))
        with pytest.raises(SourceError, match=message):
            resolve_source(tmp_path, "image")

    def test_the_info_of_a_graph_without_its_server_is_an_error(self, tmp_path):
        (tmp_path / "info").write_text(json.dumps({"graph": {}, "scales": [], "app": {}}))
        with pytest.raises(
            SourceError, match="not the address of a table on a graph server; write graphene://https://HOST"
        ):
            resolve_source(tmp_path, "segmentation")


class TestKinds:
    GRID = Grid((8, 16, 16), (8, 8, 40), (0, 0, 0))

    def write(self, folder, kind, dtype):
        write_layer(folder, [noise(self.GRID.shape, dtype)], [self.GRID], kind=kind)
        return f"precomputed://{folder}"

    def test_a_segmentation_does_not_open_as_an_image(self, tmp_path):
        path = self.write(tmp_path, "segmentation", "uint64")
        assert resolve_source(path, None).layer_type == "segmentation"
        with pytest.raises(LayerError, match="open_segmentation"):
            resolve_source(path, "image")

    def test_an_integer_image_opens_as_a_segmentation(self, tmp_path):
        path = self.write(tmp_path, "image", "uint16")
        assert resolve_source(path, None).layer_type == "image"
        assert resolve_source(path, "segmentation").layer_type == "segmentation"

    def test_floats_do_not_open_as_ids(self, tmp_path):
        with pytest.raises(LayerError, match="float32, but ids are integers"):
            resolve_source(self.write(tmp_path, "image", "float32"), "segmentation")

    def test_a_time_other_than_0_is_an_error(self, tmp_path):
        path = self.write(tmp_path, "image", "uint8")
        assert resolve_source(path, "image", time=0).layer_type == "image"
        with pytest.raises(SourceError, match="no time=1: it has one time"):
            resolve_source(path, "image", time=1)


@pytest.mark.parametrize("encoding", sorted(precomputed.CODECS))
def test_a_codec_that_is_not_installed_is_an_error(tmp_path, monkeypatch, encoding):
    (tmp_path / "info").write_text(json.dumps({
        "type": "image", "data_type": {**KINDS, "kempressed": "float32"}.get(encoding, "uint8"), "num_channels": 1,
        "scales": [scale(Grid((5, 5, 5), (4, 4, 40), (0, 0, 0)), encoding)],
    }))  # fmt: skip
    source = open_layer(tmp_path)
    monkeypatch.setattr(precomputed, "find_spec", lambda module: None)
    with pytest.raises(CodecError, match=f"'{encoding}'.*pip install {precomputed.CODECS[encoding][1]}"):
        source.check(0)
    monkeypatch.setattr(precomputed, "find_spec", lambda module: sys)
    source.check(0)


# ---------------------------------------------------------------------------------------------------------
# over HTTP


@pytest.fixture
def no_waits(monkeypatch):
    """Remove the waits between retries."""
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.0)


@pytest.fixture
def served(layer, no_waits):
    with serving(layer[0]) as server:
        yield server, f"precomputed://{server.url}", layer[1], layer[2]


class TestHttp:
    def test_failing_info_requests_are_errors(self, served):
        server, url, *_ = served
        for status, error in (
            (404, SourceNotFoundError),
            (403, SourceNotFoundError),
            (401, AuthError),
            (500, ChunkReadError),
        ):
            server.faults = {"/info": status}
            with pytest.raises(error) as caught:
                resolve_source(url, "image")
            assert server.url in str(caught.value)
            assert "\x1b" not in str(caught.value)

    def test_an_address_without_a_format_tries_both_formats(self, served):
        server, *_ = served
        assert resolve_source(server.url, "image").name == f"precomputed://{server.url}"
        server.faults = {"/info": 404}
        with pytest.raises(SourceNotFoundError, match=r"/info \(precomputed\).*/zarr.json.*/.zattrs"):
            resolve_source(server.url, "image")

    def test_failing_chunk_requests_are_errors(self, served):
        server, url, grid, _ = served
        for status, error in (
            (404, MissingChunkError),
            (403, MissingChunkError),
            (401, AuthError),
            (500, ChunkReadError),
        ):
            server.faults = {"0-16_32-48_5-13": status}
            with pytest.raises(error, match=server.url):
                resolve_source(url, "image").read(0, grid.box)

    def test_transient_errors_are_retried(self, served):
        server, url, grid, values = served
        server.faults = {"0-16_32-48_5-13": [503, 500, 0]}
        np.testing.assert_array_equal(resolve_source(url, "image").read(0, grid.box), values)
        assert sum("0-16_32-48_5-13" in path for path in server.requested) == 4

    def test_a_transfer_that_is_interrupted_at_every_attempt_is_an_error(self, served):
        server, url, grid, _ = served
        server.faults = {"0-16_32-48_5-13": 0}
        with pytest.raises(ChunkReadError, match="mip 0"):
            resolve_source(url, "image", missing="fill").read(0, grid.box)

    @pytest.mark.parametrize("status", [404, 403])
    def test_missing_chunks_are_filled(self, served, status):
        server, url, grid, values = served
        server.faults = {"0-16_32-48_5-13": status}
        values[HOLE] = 0
        np.testing.assert_array_equal(resolve_source(url, "image", missing="fill").read(0, grid.box), values)

    def test_lost_permissions_are_an_error_and_not_filled(self, served):
        server, url, grid, _ = served
        source = resolve_source(url, "image", missing="fill")
        server.faults = {"/": 403}
        with pytest.raises(AuthError, match="access to .* was denied"):
            source.read(0, grid.box)

    def test_an_empty_object_is_an_error(self, served):
        server, url, grid, _ = served
        chunk_file(server.folder).write_bytes(b"")
        with pytest.raises(ChunkReadError, match="0 bytes"):
            resolve_source(url, "image", missing="fill").read(0, grid.box)

    def test_a_refused_connection_is_an_error(self, no_waits):
        url = dead_url()
        with pytest.raises(ChunkReadError, match=f"could not read {url}/info"):
            resolve_source(f"precomputed://{url}", "image")

    def test_passwords_are_never_shown(self, served):
        server, _, grid, _ = served
        secret = server.url.replace("http://", "precomputed://http://me:verysecret@")
        server.faults = {"0-16_32-48_5-13": 500}
        source = resolve_source(secret, "image")
        with pytest.raises(ChunkReadError) as caught:
            source.read(0, grid.box)
        assert "verysecret" not in str(caught.value) + repr(source) + source.name

    def test_passwords_are_sent(self, served):
        server, _, grid, values = served
        server.needs = "Basic bWU6dmVyeSBzZWNyZXQ="
        secret = server.url.replace("http://", "precomputed://http://me:very%20secret@")
        np.testing.assert_array_equal(resolve_source(secret, "image").read(0, grid.box), values)

    def test_a_login_page_is_not_an_info(self, served):
        server, url, *_ = served
        (server.folder / "info").write_text("<html>Sign in</html>")
        with pytest.raises(SourceError, match="not JSON"):
            resolve_source(url, "image")


# ---------------------------------------------------------------------------------------------------------
# damaged stored chunks

GRID = Grid((8, 32, 32), (8, 8, 40), (0, 0, 0))
PAGE = b"<!DOCTYPE html>\n<html><body>Please sign in</body></html>"
KINDS = {
    "raw": "uint8", "jpeg": "uint8", "png": "uint8", "compressed_segmentation": "uint64", "compresso": "uint64",
    "crackle": "uint64", "fpzip": "float32", "zfpc": "float32",
}  # fmt: skip


def cells(dtype: str) -> np.ndarray:
    """Return voxels (z, y, x) that every encoding supports: blocks of equal values below 200."""
    small = np.random.default_rng(5).integers(1, 200, (2, 8, 8)).astype(dtype)
    return np.kron(small, np.ones((4, 4, 4), dtype))


def write_encoded(folder: Path, encoding: str, sharded: bool) -> list[Path]:
    """Write `cells` in 4 chunks, as files or in shards; return the files."""
    kind = "segmentation" if KINDS[encoding] == "uint64" else "image"
    if not sharded:
        write_layer(folder, [cells(KINDS[encoding])], [GRID], kind=kind, encoding=encoding, compress=False)
        return sorted((folder / "8_8_40").iterdir())
    from cloudvolume import chunks
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    rules = {"@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 1, "hash": "identity", "minishard_bits": 1}
    rules |= {"shard_bits": 0, "minishard_index_encoding": "gzip", "data_encoding": "raw"}
    info = {"type": kind, "data_type": KINDS[encoding], "num_channels": 1}
    (folder / "info").write_text(json.dumps({**info, "scales": [{**scale(GRID, encoding), "sharding": rules}]}))
    voxels = cells(KINDS[encoding])
    stored = {}
    for code, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):  # Morton order, x first
        part = voxels[:, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].T[..., None]
        stored[code] = chunks.encode(np.asfortranarray(part), encoding, block_size=(8, 8, 8))
    (folder / "8_8_40").mkdir()
    for name, data in ShardingSpecification.from_dict(rules).synthesize_shards(stored).items():
        (folder / "8_8_40" / name).write_bytes(data)
    return sorted((folder / "8_8_40").iterdir())


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("encoding", sorted(KINDS))
class TestDamage:
    def test_undamaged_chunks_are_read(self, tmp_path, encoding, sharded):
        write_encoded(tmp_path, encoding, sharded)
        found = open_layer(tmp_path).read(0, GRID.box)
        np.testing.assert_allclose(found, cells(KINDS[encoding]), atol=40 if encoding == "jpeg" else 1e-3)
        one = open_layer(tmp_path).read(0, IndexBox((3, 20, 9), (4, 21, 10)))
        np.testing.assert_array_equal(one, found[3:4, 20:21, 9:10])

    @pytest.mark.fast_forms(40)
    @pytest.mark.parametrize("missing", ["raise", "fill"])
    @pytest.mark.parametrize("damage", ["cut", "short", "empty", "page"])
    def test_damage_is_an_error_and_nothing_is_printed(self, tmp_path, encoding, sharded, damage, missing, capfd):
        file = write_encoded(tmp_path, encoding, sharded)[0]
        data = file.read_bytes()
        cuts = {"cut": data[: len(data) * 3 // 5], "short": data[:9], "empty": b"", "page": PAGE}
        file.write_bytes(cuts[damage])
        capfd.readouterr()
        for box in (GRID.box, IndexBox((7, 14, 14), (8, 15, 15))):
            with pytest.raises(ChunkReadError, match="mip 0") as caught:
                open_layer(tmp_path, missing=missing).read(0, box)
            assert not isinstance(caught.value, MissingChunkError)
            assert str(tmp_path) in str(caught.value)
        assert capfd.readouterr().out == ""


@pytest.mark.parametrize("cut", [4, 40, 400])
def test_a_truncated_segmentation_chunk_returns_no_wrong_ids(tmp_path, cut):
    for file in write_encoded(tmp_path, "compressed_segmentation", False):
        file.write_bytes(file.read_bytes()[:-cut])
        with pytest.raises(ChunkReadError, match=r"the stored chunk .*is damaged: .*end"):
            open_layer(tmp_path).read(0, GRID.box)


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
@pytest.mark.parametrize("size", [(8, 8, 4), (16, 16, 4), (16, 16, 16)])
def test_a_picture_of_another_size_is_damage(tmp_path, encoding, size):
    from cloudvolume import chunks

    file = write_encoded(tmp_path, encoding, False)[0]
    file.write_bytes(chunks.encode(np.full((*size, 1), 100, "uint8", order="F"), encoding))
    with pytest.raises(ChunkReadError, match="is damaged"):
        open_layer(tmp_path, missing="fill").read(0, GRID.box)


def test_a_picture_of_another_shape_with_as_many_pixels_is_read(tmp_path):
    """A JPEG or PNG may have any width and height whose product is the number of voxels of the chunk."""
    from PIL import Image

    write_encoded(tmp_path, "png", False)
    for file in (tmp_path / "8_8_40").iterdir():
        part = np.asarray(Image.open(file))
        Image.fromarray(part.reshape(64, -1)).save(file, format="png")
    np.testing.assert_array_equal(open_layer(tmp_path).read(0, GRID.box), cells("uint8"))


def test_cloudvolume_still_fills_an_empty_chunk_after_a_read(tmp_path):
    from cloudvolume import CloudVolume

    write_encoded(tmp_path, "raw", False)[0].write_bytes(b"")
    open_layer(tmp_path).read(0, IndexBox((0, 16, 16), (8, 32, 32)))
    theirs = CloudVolume(f"precomputed://file://{tmp_path}", fill_missing=True, progress=False)
    assert not np.asarray(theirs[0:16, 0:16, 0:8]).any()


def test_a_single_voxel_has_all_channels(tmp_path):
    grid = Grid((8, 16, 16), (8, 8, 40), (0, 0, 0))
    values = np.stack([noise(grid.shape, seed=s) for s in range(3)])
    write_layer(tmp_path, [values], [grid])
    for channel in range(3):
        found = open_layer(tmp_path, channel=channel).read(0, IndexBox((3, 4, 5), (4, 5, 6)))
        np.testing.assert_array_equal(found, values[channel, 3:4, 4:5, 5:6])


class TestOptionalMembers:
    """Optional and required members of an ``info``."""

    def write(self, folder: Path, dtype: str, change=None, **more) -> np.ndarray:
        values = noise((8, 16, 16), dtype)
        info = write_layer(folder, [values], [Grid((8, 16, 16), (8, 8, 40), (0, 0, 0))], kind="segmentation")
        for key in ("type", "num_channels"):
            info.pop(key)
        for key in ("encoding", "voxel_offset"):
            info["scales"][0].pop(key)
        info["scales"][0].update(change or {})
        (folder / "info").write_text(json.dumps({**info, **more}))
        return values

    @pytest.mark.parametrize(("dtype", "kind"), [("uint8", "image"), ("uint64", "segmentation"), ("float32", "image")])
    def test_optional_members_have_defaults(self, tmp_path, dtype, kind):
        values = self.write(tmp_path, dtype)
        source = open_layer(tmp_path)
        assert source.layer_type == kind
        assert source.levels[0].encoding == "raw"
        assert source.levels[0].grid.voxel_offset == (0, 0, 0)
        np.testing.assert_array_equal(source.read(0, source.levels[0].grid.box), values)

    def test_integral_floats_are_integers(self, tmp_path):
        change = {"voxel_offset": [0.0, 0.0, 0.0], "size": [16.0, 16.0, 8.0], "chunk_sizes": [[16.0, 16.0, 8.0]]}
        values = self.write(tmp_path, "uint8", change, num_channels=1.0)
        np.testing.assert_array_equal(open_layer(tmp_path).read(0, IndexBox.of_shape(values.shape)), values)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"voxel_offset": [0.5, 0, 0]}, r"voxel_offset \[0\.5, 0, 0\]; it must hold whole numbers"),
            ({"size": [16.5, 16, 8]}, "size .*it must hold whole numbers"),
            ({"chunk_sizes": [[16, 16, 7.5]]}, "chunk_sizes .*it must hold whole numbers"),
            ({"chunk_sizes": [[16, 16, 0]]}, "chunk_sizes .*it must hold three positive numbers"),
            ({"encoding": "compressed_segmentation"}, "compressed_segmentation_block_size None"),
            ({"voxel_offset": None}, "scale 0|voxel_offset|NoneType"),
        ],
    )
    def test_invalid_values_of_members_are_errors(self, tmp_path, change, message):
        self.write(tmp_path, "uint64", change)
        with pytest.raises(SourceError, match=message):
            open_layer(tmp_path)

    def test_an_unknown_encoding_is_an_error(self, tmp_path):
        self.write(tmp_path, "uint8", {"encoding": "zupfgeige"})
        for use in (lambda s: s.check(0),):
            with pytest.raises(CodecError, match="stored as 'zupfgeige' at mip 0, but supported are raw, jpeg"):
                use(open_layer(tmp_path))


@pytest.mark.parametrize("compress", [None, "", "gzip", "br"])
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_a_layer_that_cloudvolume_keeps_in_memory_is_read(encoding, compress):
    values = np.arange(40 * 30 * 20, dtype=np.uint64).reshape(20, 30, 40) // 7
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", encoding, (8, 8, 40), (0, 0, 0), (40, 30, 20), chunk_size=(16, 16, 16)
    )
    url = f"mem://tests/{encoding}-{compress}"
    volume = CloudVolume(url, info=info, compress=compress, progress=False)
    volume.commit_info()
    volume[:] = values.T[..., None]
    source = resolve_source(f"precomputed://{url}", "segmentation")
    np.testing.assert_array_equal(source.read(0, source.levels[0].grid.box), values)
