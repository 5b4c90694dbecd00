"""Damaged stores raise errors that name the place; they never return wrong voxels or crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.errors import AuthError, ChunkReadError, CodecError, MissingChunkError, SourceError
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.precomputed import source as precomputed
from imageryxr.sources.resolve import resolve_source
from tests.support.omezarr import axes_of, level, one_level, open_ome, write_ome
from tests.support.precomputed import open_layer, write_layer
from tests.support.source_suite import dead_url, noise, serving

GRID = Grid((8, 16, 16), (8, 8, 40), (3, 4, 5))
PAGE = b"<!DOCTYPE html>\n<html>Please sign in</html>"
LOSSLESS = {"raw": "uint64", "compressed_segmentation": "uint64", "png": "uint8", "jpeg": "uint8"}
WHERE = r"mip 0 .* box \(3, 4, 5\) to \(19, 20, 13\) .*"


def ids() -> np.ndarray:
    small = np.random.default_rng(0).integers(2**60, 2**60 + 40, (2, 4, 4), dtype="uint64")
    return np.kron(small, np.ones((4, 4, 4), "uint64"))


def write_volume(folder: Path, encoding: str) -> tuple[np.ndarray, Path]:
    values = ids() if LOSSLESS[encoding] == "uint64" else noise(GRID.shape)
    write_layer(folder, [values], [GRID], kind="segmentation" if values.itemsize == 8 else "image", encoding=encoding, compress=False)  # fmt: skip
    (file,) = (folder / "8_8_40").iterdir()
    return values, file


@pytest.mark.parametrize("missing", ["raise", "fill"])
@pytest.mark.parametrize("encoding", LOSSLESS)
def test_a_chunk_truncated_at_any_byte_is_an_error(tmp_path, capfd, encoding, missing):
    pytest.importorskip(precomputed.CODECS.get(encoding, ("numpy",))[0])
    _, file = write_volume(tmp_path, encoding)
    whole = file.read_bytes()
    capfd.readouterr()
    for size in sorted({0, 1, 3, 4, 16, len(whole) // 3, len(whole) // 2, len(whole) - 16, len(whole) - 4}):
        file.write_bytes(whole[:size])
        for box in (GRID.box, IndexBox((1, 2, 3), (2, 3, 4))):
            source = open_layer(tmp_path, missing=missing)
            with pytest.raises(ChunkReadError) as caught:
                source.read(0, box)
            assert not isinstance(caught.value, MissingChunkError)
            assert "stored chunk 3-19_4-20_5-13, box (3, 4, 5) to (19, 20, 13), is damaged" in str(caught.value)
            assert str(tmp_path) in str(caught.value)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("encoding", LOSSLESS)
def test_html_instead_of_a_chunk_is_an_error(tmp_path, encoding):
    pytest.importorskip(precomputed.CODECS.get(encoding, ("numpy",))[0])
    _, file = write_volume(tmp_path, encoding)
    for page in (PAGE, PAGE.ljust(file.stat().st_size)):
        file.write_bytes(page)
        with pytest.raises(ChunkReadError, match=WHERE + "it is HTML"):
            open_layer(tmp_path, missing="fill").read(0, GRID.box)


def test_a_picture_of_another_size_is_an_error(tmp_path):
    simplejpeg = pytest.importorskip("simplejpeg")
    _, file = write_volume(tmp_path, "jpeg")
    for shape in ((16, 16, 1), (64, 64, 1)):
        file.write_bytes(simplejpeg.encode_jpeg(np.zeros(shape, "uint8"), colorspace="GRAY", colorsubsampling="GRAY"))
        with pytest.raises(ChunkReadError, match=WHERE + "its header states .* pixels instead of 2048"):
            open_layer(tmp_path).read(0, GRID.box)


@pytest.mark.slow
def test_a_damaged_chunk_does_not_end_the_process(tmp_path):
    write_volume(tmp_path, "compressed_segmentation")[1].write_bytes(b"\x01\0\0\0" + b"\xff\xff\xff\x20" * 40)
    code = (
        "from imageryxr.sources.resolve import resolve_source; from imageryxr.errors import ChunkReadError\n"
        f"source = resolve_source({str(tmp_path)!r}, 'segmentation')\n"
        "try: source.read(0, source.levels[0].grid.box)\n"
        "except ChunkReadError as error: print(error)"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "is damaged" in done.stdout


def test_every_chunk_is_checked_before_it_is_decoded(tmp_path, monkeypatch):
    from imageryxr.sources.codecs import chunk_decoder

    seen = []
    inner = chunk_decoder._chunk_problem
    monkeypatch.setattr(chunk_decoder, "_chunk_problem", lambda *a: seen.append(a[1]) or inner(*a))
    values, _ = write_volume(tmp_path / "a", "png")
    np.testing.assert_array_equal(open_layer(tmp_path / "a").read(0, GRID.box), values)
    np.testing.assert_array_equal(
        open_layer(tmp_path / "a").read(0, IndexBox((1, 2, 3), (2, 3, 4))), values[1:2, 2:3, 3:4]
    )
    write_sharded(tmp_path / "b", ids(), "raw")
    np.testing.assert_array_equal(open_layer(tmp_path / "b").read(0, GRID.box), ids())
    assert seen == ["png"] * 2 + ["raw"] * 8


def test_reading_does_not_change_how_cloudvolume_fills_an_empty_chunk(tmp_path):
    from cloudvolume import CloudVolume

    _, file = write_volume(tmp_path, "raw")
    open_layer(tmp_path).read(0, GRID.box)
    file.write_bytes(b"")
    theirs = CloudVolume(f"file://{tmp_path}", fill_missing=True, progress=False)
    assert not np.asarray(theirs[:]).any()


# ---------------------------------------------------------------------------------------------------------
# shards


def write_sharded(folder: Path, values: np.ndarray, encoding: str = "compressed_segmentation", packed: str = "raw"):
    """Write chunks of 8 × 8 × 4 voxels into one shard and return its file."""
    from cloudvolume import chunks
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    info = write_layer(folder, [values], [GRID], kind="segmentation", encoding=encoding)
    scale = info["scales"][0] | {"chunk_sizes": [[8, 8, 4]]}
    scale["sharding"] = {
        "@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 3, "minishard_bits": 0,
        "shard_bits": 0, "minishard_index_encoding": packed, "data_encoding": packed,
    }  # fmt: skip
    info["scales"] = [scale]
    (folder / "info").write_text(json.dumps(info))
    spec = ShardingSpecification.from_dict(scale["sharding"])
    parts = {}
    for z, y, x in np.ndindex(2, 2, 2):
        part = values[4 * z : 4 * z + 4, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        parts[x + 2 * y + 4 * z] = chunks.encode(np.asfortranarray(part.T[..., None]), encoding, block_size=(8, 8, 8))
    file = folder / "8_8_40" / "0.shard"
    file.write_bytes(spec.synthesize_shard(parts))
    return file


@pytest.mark.parametrize("packed", ["raw", "gzip"])
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_a_shard_truncated_at_any_byte_is_an_error(tmp_path, encoding, packed):
    values = ids()
    file = write_sharded(tmp_path, values, encoding, packed)
    np.testing.assert_array_equal(open_layer(tmp_path).read(0, GRID.box), values)
    whole = file.read_bytes()
    for size in sorted({0, 7, 16, 40, *range(100, len(whole), len(whole) // 20), len(whole) - 24, len(whole) - 1}):
        file.write_bytes(whole[:size])
        with pytest.raises(ChunkReadError, match=WHERE) as caught:
            open_layer(tmp_path, missing="fill").read(0, GRID.box)
        assert not isinstance(caught.value, MissingChunkError)


# ---------------------------------------------------------------------------------------------------------
# metadata


def change_info(folder: Path, change) -> None:
    info = json.loads((folder / "info").read_text())
    change(info)
    (folder / "info").write_text(json.dumps(info))


@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_optional_members_of_an_info_have_defaults(tmp_path, encoding):
    values, _ = write_volume(tmp_path, encoding)

    def strip(info):
        del info["type"], info["num_channels"]
        info["scales"][0]["size"] = [float(n) for n in info["scales"][0]["size"]]
        if encoding == "raw":
            del info["scales"][0]["encoding"]

    change_info(tmp_path, strip)
    source = resolve_source(tmp_path, None)
    assert source.layer_type == "segmentation"
    np.testing.assert_array_equal(source.read(0, GRID.box), values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voxel_offset": [0.5, 0, 0]}, r"scale 0 has the voxel_offset \[0.5, 0, 0\]; it must hold whole numbers"),
        ({"size": [16.5, 16, 8]}, "scale 0 has the size"),
        ({"chunk_sizes": [[0, 16, 8]]}, "scale 0 has the chunk_sizes .* three positive"),
        ({"compressed_segmentation_block_size": None}, "scale 0 has the compressed_segmentation_block_size None"),
        ({"compressed_segmentation_block_size": [8, 8]}, "compressed_segmentation_block_size .* three positive"),
        ({"compressed_segmentation_block_size": [2**31, 2**31, 8]}, r"block_size .*; the limit is 2\^31 voxels"),
        ({"compressed_segmentation_block_size": [1e300, 1, 1]}, r"block_size .*; the limit is 2\^31 voxels"),
    ],
)
def test_invalid_members_of_an_info_are_errors(tmp_path, change, message):
    write_volume(tmp_path, "compressed_segmentation")
    change_info(tmp_path, lambda info: info["scales"][0].update(change))
    with pytest.raises(SourceError, match=message):
        resolve_source(tmp_path, None)


def test_an_unknown_encoding_is_an_error_when_a_layer_is_opened(tmp_path):
    import imageryxr as ix

    write_volume(tmp_path, "raw")
    change_info(tmp_path, lambda info: info["scales"][0].update(encoding="foo"))
    with pytest.raises(CodecError, match="stored as 'foo' at mip 0, but supported are raw, jpeg"):
        ix.open_segmentation(tmp_path)


def test_an_infinite_translation_is_an_error(tmp_path):
    one_level(tmp_path, (40, 8, 8), (0, 0, 0))
    text = (tmp_path / "zarr.json").read_text()
    document = json.loads(text)
    step = document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][1]
    step["translation"][0] = float("inf")
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match="translation along z is inf"):
        open_ome(tmp_path)


# ---------------------------------------------------------------------------------------------------------
# Zarr objects


BOX = IndexBox((0, 0, 0), (8, 16, 16))
FORMS = {
    "v2 blosc": ("0.4", {"compressors": numcodecs.Blosc("lz4"), "chunks": (8, 16, 16)}),
    "v3 blosc": ("0.5", {"compressors": BloscCodec(cname="lz4"), "chunks": (8, 16, 16)}),
    "sharded blosc": ("0.5", {"compressors": BloscCodec(cname="lz4"), "chunks": (4, 8, 8), "shards": (8, 16, 16)}),
    "sharded raw": ("0.5", {"compressors": None, "chunks": (4, 8, 8), "shards": (8, 16, 16)}),
    "sharded zstd": ("0.5", {"chunks": (4, 8, 8), "shards": (8, 16, 16)}),
    "v3 raw": ("0.5", {"compressors": None, "chunks": (8, 16, 16)}),
}


def write_form(folder: Path, form: str) -> tuple[np.ndarray, Path]:
    version, options = FORMS[form]
    values = noise((8, 16, 16), "uint16")
    write_ome(
        folder, [values], {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8))]}, version=version, **options
    )
    (file,) = [
        p for p in (folder / "0").rglob("*") if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs")
    ]
    return values, file


@pytest.mark.parametrize("form", FORMS)
def test_a_zarr_object_truncated_at_any_byte_is_an_error(tmp_path, form):
    values, file = write_form(tmp_path, form)
    part = IndexBox((0, 0, 0), (4, 8, 16))  # this box needs only some chunks of a shard, which are read by ranges
    np.testing.assert_array_equal(open_ome(tmp_path).read(0, part), values[part.slices()])
    whole = file.read_bytes()
    for size in (0, 10, 20, len(whole) // 3, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        file.write_bytes(whole[:size])
        for box in (BOX, part):
            with pytest.raises(ChunkReadError, match="mip 0 .*box") as caught:
                open_ome(tmp_path, missing="fill").read(0, box)
            assert not isinstance(caught.value, MissingChunkError)
    file.write_bytes(PAGE.ljust(len(whole)))
    with pytest.raises(ChunkReadError, match="mip 0 .*box"):
        open_ome(tmp_path, missing="fill").read(0, BOX)


@pytest.mark.parametrize("codecs", ["bytes", "crc"])
@pytest.mark.parametrize("place", ["start", "end"])
def test_intact_shards_of_every_layout_are_read(tmp_path, place, codecs):
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

    index = (BytesCodec(), Crc32cCodec()) if codecs == "crc" else (BytesCodec(),)
    shards = ShardingCodec(chunk_shape=(4, 8, 8), codecs=(BytesCodec(), BloscCodec()), index_codecs=index, index_location=place)  # fmt: skip
    values = noise((8, 16, 16), "uint16")
    values[:4, :8, :8] = 0  # the shard leaves out chunks of the fill value
    write_ome(tmp_path, [values[:4]], {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8))]})
    array = zarr.create_array(str(tmp_path / "0"), shape=values.shape, dtype="uint16", chunks=(8, 16, 16), serializer=shards, compressors=None, overwrite=True)  # fmt: skip
    array[...] = values
    for box in (BOX, IndexBox((0, 0, 0), (4, 8, 16)), IndexBox((5, 9, 9), (6, 10, 10))):
        np.testing.assert_array_equal(open_ome(tmp_path).read(0, box), values[box.slices()])


# ---------------------------------------------------------------------------------------------------------
# over HTTP


@pytest.mark.parametrize("missing", ["raise", "fill"])
def test_denied_requests_are_not_retried(tmp_path, missing):
    write_volume(tmp_path, "raw")
    with serving(tmp_path) as server:
        source = resolve_source(f"precomputed://{server.url}", "segmentation", missing=missing)
        server.requested.clear()
        server.faults = {"8_8_40": 401}
        with pytest.raises(AuthError, match=server.url):
            source.read(0, GRID.box)
        assert len(server.requested) == 1


@pytest.mark.parametrize("missing", ["raise", "fill"])
@pytest.mark.parametrize("form", ["precomputed", "zarr"])
def test_a_redirect_to_a_login_page_is_not_a_missing_chunk(tmp_path, form, missing):
    if form == "zarr":
        write_form(tmp_path, "v3 raw")
    else:
        write_volume(tmp_path, "raw")
    with serving(tmp_path) as server:
        source = resolve_source(f"{form}://{server.url}", None, missing=missing)
        server.moved = {"/8_8_40/": "/login.html", "/0/c/": "/login.html"}
        with pytest.raises(AuthError, match=r"redirected to .*/login\.html, which may be a login page") as caught:
            source.read(0, source.levels[0].grid.box)
        assert "asked-for" not in str(caught.value)
        (tmp_path / "login.html").write_bytes(PAGE)
        with pytest.raises(ChunkReadError, match="HTML"):
            source.read(0, source.levels[0].grid.box)


def test_a_redirect_to_another_store_is_followed(tmp_path):
    values, file = write_volume(tmp_path, "raw")
    (tmp_path / "store").mkdir()
    with serving(tmp_path) as server:
        uncached = Connection(memory_cache=0)
        source = resolve_source(f"precomputed://{server.url}", "segmentation", connection=uncached)
        server.moved = {"/8_8_40/": "/store/5f2a"}
        (tmp_path / "store" / "5f2a").write_bytes(file.read_bytes())
        np.testing.assert_array_equal(source.read(0, GRID.box), values)
        server.moved = {"/8_8_40/": f"/store/{file.name}"}
        with pytest.raises(MissingChunkError):
            source.read(0, GRID.box)


def test_network_errors_state_the_cause_without_internal_names():
    for url, words in (
        ("https://no-such-host.invalid", "its host was not found"),
        (dead_url(), "connection was refused"),
    ):
        with pytest.raises(ChunkReadError, match=words) as caught:
            resolve_source(f"precomputed://{url}/em", "image", connection=Connection(retries=1, backoff=0))
        for raw in ("HTTPSConnectionPool", "urllib3", "Errno", "object at"):
            assert raw not in str(caught.value)
