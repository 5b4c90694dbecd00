"""Malformed responses raise an `ImageryError`, and a link is opened in bounded time."""

from __future__ import annotations

import json
import time

import pytest
from typer.testing import CliRunner

import imageryxr as ix
from imageryxr.cli.main import app
from imageryxr.neuroglancer import open_layers as link_layers
from tests.security.conftest import graph_info
from tests.support.hostile import HostileServer

HASTY = ix.Connection(retries=0, timeout=5)
TABLE = "/segmentation/table/t"
DEEP = b"[" * 100_000


@pytest.mark.parametrize("status", [200, 302, 401, 403, 404, 500])
def test_deeply_nested_json_is_an_imagery_error(secrets, stranger, status):
    stranger.answer = lambda request: (status, DEEP, {"Content-Type": "application/json"})
    url = stranger.url()
    for source in ("graphene://{}" + TABLE, "precomputed://{}/x", "precomputed://middleauth+{}/x", "zarr://{}/x"):
        with pytest.raises(ix.ImageryError):
            ix.open_segmentation(source.format(url), connection=HASTY)
    with pytest.raises(ix.ImageryError):
        ix.open_datastack("stack", server_address=url, connection=HASTY)
    with pytest.raises(ix.ImageryError):
        ix.open_neuroglancer(f"https://viewer.example/#!{url}/state", allow_local=True)


@pytest.mark.parametrize("value", ["x", 1e400, float("nan"), [1], {}, True, -3, 0, 10**30, 2.5])
@pytest.mark.parametrize("name", ["n_layers", "n_bits_for_layer_id"])
def test_the_layer_numbers_of_a_graph_are_checked(secrets, stranger, name, value):
    graph_info(stranger, "x", f"precomputed://{stranger.url()}/data")
    stranger.files[f"{TABLE}/info"]["graph"][name] = value
    with pytest.raises(ix.errors.SourceError, match=f"has {name} "):
        ix.open_segmentation(f"graphene://{stranger.url()}{TABLE}", connection=HASTY)


@pytest.mark.parametrize("nodes", [[1], [{}], [{"id": "x"}], [{"id": -1}], [{"id": 1e400}], [{"id": 2**64}], [None]])
def test_a_lineage_without_ids_is_an_imagery_error(secrets, stranger, nodes):
    graph_info(stranger, "x", f"precomputed://{stranger.url()}/data")
    answers = {"is_latest": {"is_latest": [False]}, "root_timestamps": {"timestamp": [1.6e9]}}
    answers["lineage"] = {"nodes": nodes}

    def answer(request):
        found = [value for key, value in answers.items() if key in request.path]
        return (200, json.dumps(found[0]).encode(), {}) if found else None

    stranger.answer = answer
    with pytest.raises(ix.errors.ServerError, match="whose nodes have no ids"):
        ix.open_segmentation(f"graphene://{stranger.url()}{TABLE}", connection=HASTY, ids=[4 << 56 | 1])


@pytest.mark.parametrize("versions", [5, ["a", 1], {"a": 1}, None, [[1]]])
def test_versions_that_are_not_a_list_are_an_imagery_error(secrets, stranger, versions):
    layer = f"precomputed://{stranger.url()}/x"
    info = {"aligned_volume": {"image_source": layer}, "segmentation_source": layer}
    stranger.files["/info/api/v2/datastack/full/stack"] = info
    stranger.files["/materialize/api/v3/datastack/stack/versions"] = versions
    with pytest.raises(ix.errors.SourceNotFoundError, match="there is no materialization 3"):
        ix.open_datastack("stack", server_address=stranger.url(), version=3, connection=HASTY)


@pytest.mark.slow
def test_a_link_of_servers_that_never_answer_is_opened_in_bounded_time(monkeypatch):
    monkeypatch.setattr(link_layers, "LINK_SECONDS", 2)
    monkeypatch.setattr(link_layers, "LAYER_SECONDS", 0.5)
    with HostileServer(lambda sock, head: server.stopped.wait()) as server:
        sources = [[f"precomputed://{server.url}/{i}/{j}" for j in range(16)] for i in range(200)]
        layers = [{"type": "image", "name": str(i), "source": source} for i, source in enumerate(sources)]
        began = time.monotonic()
        with pytest.raises(ix.ImageryError, match="did not respond in time"):
            ix.open_neuroglancer({"layers": layers}, allow_local=True)
        result = CliRunner().invoke(app, ["info", json.dumps({"layers": layers}), "--allow-local"])
        assert result.exit_code == 1
        assert time.monotonic() - began < 60
