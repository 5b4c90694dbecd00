"""Counts of the requests that opening, drawing and drawing again make. Servers count requests; nothing is timed."""

from __future__ import annotations

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.core.grid import Grid
from tests.support import omezarr, precomputed
from tests.support.latency_server import LatencyServer
from tests.support.recorder import recording
from tests.support.source_suite import noise, serving

GRID = Grid((16, 40, 40), (8, 8, 40), (0, 0, 0))


@pytest.fixture
def layers(tmp_path):
    precomputed.write_layer(tmp_path / "em", [noise(GRID.shape)], [GRID])
    cells = noise(GRID.shape, "uint64") % np.uint64(5)
    precomputed.write_layer(tmp_path / "cells", [cells], [GRID], kind="segmentation")
    image = {"axes": omezarr.axes_of("zyx"), "datasets": [omezarr.level(f"s{i}", (40, 8, 8)) for i in range(3)]}
    omezarr.write_ome(tmp_path / "zarr3", [noise(GRID.shape)] * 3, image)
    omezarr.write_ome(tmp_path / "zarr2", [noise(GRID.shape)] * 3, image, version="0.4")
    with serving(tmp_path) as server:
        server.stamps = ("ETag",)
        yield server


# Metadata of the group and of arrays with the usual names, which are requested before the names are known.
AT_ONCE = {
    *("/zarr.json", "/.zattrs"),
    *(f"/{name}/{key}" for name in ("0", "1", "2", "s0", "s1", "s2") for key in ("zarr.json", ".zarray")),
}


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("names", [["0"], ["s0", "s1", "s2"], ["1", "fine"]])
def test_a_zarr_with_the_usual_names_opens_in_one_round_trip(tmp_path, version, names):
    image = {"axes": omezarr.axes_of("zyx"), "datasets": [omezarr.level(name, (40, 8, 8)) for name in names]}
    omezarr.write_ome(tmp_path, [noise(GRID.shape)] * len(names), image, version=version)
    needed = {f"/{name}/{'zarr.json' if version == '0.5' else '.zarray'}" for name in names}
    needed |= {"/zarr.json"} if version == "0.5" else {"/zarr.json", "/.zattrs"}
    with LatencyServer(tmp_path, latency=0.5) as server:
        tree = ix.open_multiscale(f"zarr://{server.url}")
        assert len(tree.children) == len(names)
        counts = server.counts()
        # Opening does not wait for requests for other names, so some of them may not have arrived yet.
        assert needed <= set(counts["paths"]) <= AT_ONCE | needed
        assert set(counts["paths"].values()) == {1}
        assert counts["peak"] >= len(needed & AT_ONCE) + (version == "0.5")


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("status", [200, 403, 404, 503])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_zarr_opens_if_the_server_sends_a_page_for_files_that_do_not_exist(tmp_path, version, status):
    image = {"axes": omezarr.axes_of("zyx"), "datasets": [omezarr.level(name, (40, 8, 8)) for name in ("s0", "fine")]}
    omezarr.write_ome(tmp_path, [noise(GRID.shape)] * 2, image, version=version)

    def page(request):
        file = tmp_path / request.path.lstrip("/")
        if file.is_file():
            return 200, file.read_bytes(), {}
        # Only a 404 for zarr.json shows that the image is not of version 0.5; a 503 leaves that open.
        is_group = request.path == "/zarr.json"
        return 404 if is_group and status == 503 else status, b"<html>none</html>", {"Content-Type": "text/html"}

    with recording() as server:
        server.answer = page
        for scheme in ("zarr://", ""):
            if not scheme and status == 503:
                continue  # HTTP 503 does not show that the volume has no info, so the format must be given
            tree = ix.open_multiscale(f"{scheme}{server.url()}", connection=ix.Connection(retries=1, backoff=0))
            assert len(tree.children) == 2


def test_a_connection_of_few_requests_requests_only_the_metadata_that_are_needed(layers):
    ix.open_multiscale(f"zarr://{layers.url}/zarr3", connection=ix.Connection(concurrency=4))
    assert set(layers.requested) <= {f"/zarr3{key}" for key in ("/zarr.json", "/.zattrs")} | set(LEVELS["zarr3"])


LEVELS = {"zarr3": [f"/zarr3/s{i}/zarr.json" for i in range(3)], "zarr2": [f"/zarr2/s{i}/.zarray" for i in range(3)]}
FIRST = {"precomputed": ["info"], "bare": [".zattrs", "info", "zarr.json"]}


@pytest.mark.parametrize(
    ("scheme", "name"),
    [("precomputed", "em"), ("bare", "zarr3"), ("bare", "zarr2"), ("bare", "em")],
)
def test_opening_requests_the_metadata_of_the_group_and_then_of_all_levels(layers, scheme, name):
    place = f"{layers.url}/{name}"
    ix.open_multiscale(place if scheme == "bare" else f"{scheme}://{place}")
    first = sorted(f"/{name}/{key}" for key in FIRST[scheme])
    assert sorted(layers.requested[: len(first)]) == first
    # No further request is made for a format that the volume does not have.
    assert sorted(layers.requested[len(first) :]) == LEVELS.get(name, [])


def test_drawing_a_figure_again_makes_no_request(layers):
    em = ix.open_image(f"precomputed://{layers.url}/em")
    cells = ix.open_segmentation(f"precomputed://{layers.url}/cells")
    picture = ix.overlay(em.isel(z=slice(3, 4)), cells.isel(z=slice(3, 4)))
    layers.requested.clear()
    first = picture.compute()
    assert len(layers.requested) == len(set(layers.requested)) == 2 * 9  # chunks of 8 × 16 × 16 voxels
    layers.requested.clear()
    np.testing.assert_array_equal(picture.compute(), first)
    # Another slice of the same chunks, of layers that are opened again, makes no request either.
    em = ix.open_image(f"precomputed://{layers.url}/em")
    cells = ix.open_segmentation(f"precomputed://{layers.url}/cells")
    layers.requested.clear()
    ix.overlay(em.isel(z=slice(5, 6)), cells.isel(z=slice(5, 6))).compute()
    assert layers.requested == []


def test_a_scroll_through_a_figure_requests_each_object_once(layers):
    em = ix.open_image(f"precomputed://{layers.url}/em")
    cells = ix.open_segmentation(f"precomputed://{layers.url}/cells")
    layers.requested.clear()
    for z in range(GRID.shape[0]):
        ix.overlay(em.isel(z=slice(z, z + 1)), cells.isel(z=slice(z, z + 1))).compute()
    assert len(layers.requested) == len(set(layers.requested)) == 2 * 2 * 9


@pytest.mark.slow
def test_layers_and_blocks_of_a_computation_are_read_concurrently(tmp_path):
    precomputed.write_layer(tmp_path / "em", [noise(GRID.shape)], [GRID])
    cells = noise(GRID.shape, "uint64") % np.uint64(5)
    precomputed.write_layer(tmp_path / "cells", [cells], [GRID], kind="segmentation")
    with LatencyServer(tmp_path, latency=0.5) as server:
        em = ix.open_image(f"precomputed://{server.url}/em").isel(z=slice(3, 4))
        cells = ix.open_segmentation(f"precomputed://{server.url}/cells").isel(z=slice(3, 4))
        server.counts()
        ix.overlay(em, cells).compute()
        assert server.counts()["peak"] == 2 * 9
        em = ix.open_image(f"precomputed://{server.url}/em", chunks=(8, 16, 40))
        two = em.isel(z=slice(8, 16), y=slice(0, 32))
        assert two.data.npartitions == 2
        two.compute(scheduler="threads", num_workers=2)
        assert server.counts()["peak"] == 2 * 3
