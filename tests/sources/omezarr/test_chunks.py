"""Chunks of remote Zarr arrays, against zarr-python on the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.core.grid import Grid
from imageryxr.sources.address import parse_address
from imageryxr.sources.fetch.object_stores import LocalFolder
from imageryxr.sources.omezarr.open import open_omezarr
from imageryxr.sources.precomputed.source import open_precomputed
from tests.support.omezarr import axes_of, level, write_ome
from tests.support.precomputed import write_layer
from tests.support.source_suite import boxes_of, noise, read_padded, serving
from tests.support.zarr_arrays import ARRAYS, SHAPE, metadata_of, read_slices, write


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
