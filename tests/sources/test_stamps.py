"""Stamps (ETag and Last-Modified) show that a volume was rewritten while its chunks are in the memory cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.sources.address import parse_address
from imageryxr.sources.annotations.folder import open_folder
from imageryxr.sources.base import stamp_of
from imageryxr.sources.precomputed.source import open_precomputed
from tests.support import omezarr, precomputed, shards
from tests.support.source_suite import noise, serving

GRID = Grid((8, 20, 18), (8, 8, 40), (0, 0, 0))
STAMPS = {
    "ETag": ("ETag",), "Last-Modified": ("Last-Modified",), "both": ("ETag", "Last-Modified"), "neither": (),
}  # fmt: skip


def write_precomputed(folder: Path, seed: int) -> np.ndarray:
    values = noise(GRID.shape, seed=seed)
    precomputed.write_layer(folder, [values], [GRID])
    return values


def write_sharded(folder: Path, seed: int) -> np.ndarray:
    # The chunks change size with the seed, so that a stale index of the shard would return wrong bytes.
    values = noise(shards.GRID.shape, "uint64", seed)
    values[: 4 * seed] = 7
    shards.write(folder, values, shards.spec())
    return values


def write_zarr(folder: Path, seed: int, **options) -> np.ndarray:
    values = noise(GRID.shape, seed=seed)
    image = {"axes": omezarr.axes_of("zyx"), "datasets": [omezarr.level("s0", (40, 8, 8))]}
    omezarr.write_ome(folder, [values], image, **options)
    return values


def write_zarr_shards(folder: Path, seed: int) -> np.ndarray:
    return write_zarr(folder, seed, chunks=(8, 4, 4), shards=(8, 20, 20))


def write_zarr2(folder: Path, seed: int) -> np.ndarray:
    return write_zarr(folder, seed, version="0.4")


WRITERS = {
    "precomputed": write_precomputed, "sharded": write_sharded, "zarr3": write_zarr, "zarr shards": write_zarr_shards,
    "zarr2": write_zarr2,
}  # fmt: skip


def rewrite(folder: Path, form: str, seed: int, *, seconds: float = 0) -> np.ndarray:
    """Replace a volume by new files, whose modification times are moved forward by `seconds`."""
    shutil.rmtree(folder, ignore_errors=True)
    values = WRITERS[form](folder, seed)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        then = path.stat().st_mtime + seconds
        os.utime(path, (then, then))
    return values


def open_form(form: str, url: str):
    if form.startswith("zarr"):
        return omezarr.open_ome(url)
    return open_precomputed(parse_address(f"precomputed://{url}"))


def read_all(source) -> np.ndarray:
    return source.read(0, IndexBox.of_shape(source.levels[0].grid.shape))


@pytest.mark.fast_forms(5)
@pytest.mark.parametrize("stamps", STAMPS)
@pytest.mark.parametrize("form", WRITERS)
def test_a_rewritten_volume_that_is_opened_again_shows_its_new_voxels(tmp_path, form, stamps):
    folder = tmp_path / "volume"
    before = rewrite(folder, form, 1)
    with serving(folder) as server:
        server.stamps = STAMPS[stamps]
        np.testing.assert_array_equal(read_all(open_form(form, server.url)), before)
        after = rewrite(folder, form, 2, seconds=10)
        np.testing.assert_array_equal(read_all(open_form(form, server.url)), after)


@pytest.mark.parametrize("form", WRITERS)
def test_an_unchanged_volume_that_is_opened_again_makes_no_request_for_chunks(tmp_path, form):
    rewrite(tmp_path / "volume", form, 1)
    with serving(tmp_path / "volume") as server:
        server.stamps = STAMPS["both"]
        read_all(open_form(form, server.url))
        again = open_form(form, server.url)
        server.requested.clear()
        read_all(again)
        # Opening does not wait for all requests for metadata, so some may still arrive.
        assert [
            path for path in server.requested if not path.endswith(("zarr.json", ".zarray", ".zattrs", ".zgroup"))
        ] == []


def test_chunks_of_a_server_without_stamps_are_requested_once_per_opening(tmp_path):
    rewrite(tmp_path / "volume", "precomputed", 1)
    with serving(tmp_path / "volume") as server:
        source = open_form("precomputed", server.url)
        first = read_all(source)
        server.requested.clear()
        np.testing.assert_array_equal(read_all(source), first)
        assert server.requested == []
        read_all(open_form("precomputed", server.url))
        assert len(server.requested) == 1 + 4


def test_tokens_and_equality_do_not_depend_on_the_stamp(tmp_path):
    # An export must resume even if the server sends another ETag, or none.
    from dask.base import tokenize

    for form in ("precomputed", "zarr3"):
        rewrite(tmp_path / form, form, 1)
        with serving(tmp_path / form) as server:
            first, second = open_form(form, server.url), open_form(form, server.url)
            assert first == second
            assert tokenize(first) == tokenize(second)


def test_indexes_of_rewritten_skeletons_are_read_again(tmp_path):
    (tmp_path / "info").write_text('{"@type": "neuroglancer_skeletons"}')
    with serving(tmp_path) as server:
        server.stamps = ("ETag",)
        first = open_folder(server.url, None, None)[0]
        os.utime(tmp_path / "info", (1, 1))
        assert first._store().identity != open_folder(server.url, None, None)[0]._store().identity


def test_a_stamp_consists_of_etag_and_last_modified():
    assert stamp_of({"etag": '"a"', "last-modified": "now", "date": "x"}) == '"a" now'
    assert stamp_of({"etag": '"a"'}) == '"a"'
    assert stamp_of({"etag": ""}) == ""
