"""The answer of a server cannot turn a layer into a graph, redirect the token, or read local volumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import imageryxr as ix
from imageryxr.cli.main import app
from tests.security.conftest import TOKEN, graph_info
from tests.support.recorder import recording

HASTY = ix.Connection(retries=0, timeout=5)
TABLE = "/segmentation/table/t"
SPELLINGS = [
    "{}" + TABLE,
    "precomputed://{}" + TABLE,
    "neuroglancer-precomputed://{}" + TABLE,
    "{}" + TABLE + "/|neuroglancer-precomputed:",
    "{}" + TABLE + "|precomputed:",
    "precomputed://{}" + TABLE + "///",
]


def link(source, kind="segmentation"):
    return {"layers": [{"type": kind, "name": "s", "source": source}]}


@pytest.mark.fast_forms(5)
@pytest.mark.filterwarnings("ignore::imageryxr.errors.LinkWarning")
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("variable", [False, True])
def test_a_graph_key_in_an_info_sends_no_token(secrets, stranger, tls, spelling, variable, monkeypatch):
    if variable:
        monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    for server in (stranger, tls):
        graph_info(server, "evil.example", f"precomputed://{server.url('evil.example')}/data")
        source = spelling.format(server.url("evil.example"))
        for way in (ix.open_segmentation, ix.open_image, ix.open_multiscale):
            with pytest.raises(
                ix.errors.SourceError, match=r"open graphene://https?://evil.example:\d+/segmentation/table/t"
            ):
                way(source, connection=HASTY)
        tree = ix.open_neuroglancer(link(source), allow_local=True)
        assert list(tree.children) == []
        assert "open graphene://" in json.loads(tree.attrs["unsupported_layers"])[0]["reason"]
        assert server.requests
        assert not server.secrets
        names = ["info"] if "precomputed" in spelling else ["info", "zarr.json", ".zattrs"]
        assert {r.path for r in server.requests} == {f"{TABLE}/{name}" for name in names}


def test_a_figure_of_a_link_sends_no_token(secrets, stranger, tmp_path, monkeypatch):
    graph_info(stranger, "evil.example", f"precomputed://{stranger.url('evil.example')}/data")
    state = tmp_path / "state.json"
    state.write_text(json.dumps(link(f"precomputed://{stranger.url('evil.example')}{TABLE}")))
    for options in ([], ["--allow-local"]):
        done = CliRunner().invoke(app, ["figure", str(state), str(tmp_path / "a.png"), *options])
        assert done.exit_code != 0
        assert not stranger.secrets


@pytest.mark.parametrize(
    "source",
    [
        "graphene://{}" + TABLE,
        "graphene://middleauth+{}" + TABLE,
        "precomputed://middleauth+{}" + TABLE,
        "middleauth+{}" + TABLE + "|graphene:",
    ],
)
def test_no_token_goes_over_plain_http(secrets, stranger, source):
    stranger.answer = lambda request: (401, b"{}", {})
    for host in ("good.example", "minnie.microns-daf.com"):
        with pytest.raises(ix.errors.AuthError, match="tokens are sent over https only.*write https://"):
            ix.open_segmentation(source.format(stranger.url(host)), connection=HASTY)
        for options in ({}, {"allow_local": True}, {"trusted_hosts": [host]}):
            with pytest.raises(ix.errors.AuthError, match="https only"):
                ix.open_neuroglancer(link(source.format(stranger.url(host))), **options)
    assert stranger.requests
    assert not stranger.secrets


def test_a_graph_at_an_address_of_the_caller_does_not_receive_the_stored_cave_token(secrets, tls):
    graph_info(tls, "good.example", f"precomputed://{tls.url('good.example')}/data")
    tls.answer = lambda request: (401, b"{}", {})
    with pytest.raises(
        ix.errors.AuthError, match=r"not one of CAVE.s servers.*give token=.*good\.example.*cave-secret\.json"
    ):
        ix.open_segmentation(f"graphene://{tls.url('good.example')}{TABLE}", connection=HASTY)
    assert tls.requests
    assert not tls.secrets


def test_a_graph_over_https_receives_the_token_that_the_caller_gave_for_it(secrets, tls):
    graph_info(tls, "good.example", f"precomputed://{tls.url('good.example')}/data")
    for source in ("graphene://{}", "graphene://middleauth+{}", "{}"):
        tls.requests.clear()
        address = source.format(tls.url("good.example")) + TABLE + ("" if "graphene" in source else "|graphene:")
        seg = ix.open_segmentation(address, token=TOKEN, connection=HASTY)
        assert seg.dtype == np.uint64
        assert set(tls.secrets) == {f"Bearer {TOKEN}"}
        assert TOKEN not in str(seg.attrs)


def test_a_graph_of_a_link_needs_a_trusted_host(secrets, tls):
    graph_info(tls, "good.example", f"precomputed://{tls.url('good.example')}/data")
    source = f"graphene://{tls.url('good.example')}{TABLE}"
    for options in ({}, {"trusted_hosts": ["other.example"]}, {"trusted_hosts": [f"good.example:{tls.port + 1}"]}):
        with pytest.raises(ix.errors.AuthError, match="trusted_hosts="):
            ix.open_neuroglancer(link(source), **options)
    assert not tls.requests
    for trusted in ("good.example", f"good.example:{tls.port}"):
        # The name resolves to this machine, so the link also needs allow_local.
        ix.open_neuroglancer(link(source), trusted_hosts=[trusted], allow_local=True)
        assert set(tls.secrets) == {f"Bearer {TOKEN}"}
        tls.requests.clear()


# --- data_dir ---------------------------------------------------------------------------------------------------------

LOCAL = ["file:///etc", "precomputed://file:///etc", "/etc", "../..", "mem://x", "precomputed://http://127.0.0.1:{port}/local",
         "http://localhost:{port}/local", "http://[::1]:{port}/local", "http://127.1:{port}/local", "http://2130706433:{port}/local",
         "s3://http://127.0.0.1:{port}/local", "s3+http://127.0.0.1:{port}/local", "http://intranet:{port}/local", "http://10.0.0.7/local"]  # fmt: skip


@pytest.mark.filterwarnings("ignore::imageryxr.errors.LinkWarning")
@pytest.mark.parametrize("data_dir", LOCAL)
def test_a_graph_server_elsewhere_cannot_refer_to_data_of_this_machine(secrets, tls, data_dir):
    with recording() as local:
        graph_info(tls, "good.example", data_dir.format(port=local.port))
        source = f"graphene://{tls.url('good.example')}{TABLE}"
        with pytest.raises(ix.errors.SourceError, match="good.example.*names .* on this machine or its network"):
            ix.open_segmentation(source, connection=HASTY)
        tree = ix.open_neuroglancer(link(source), trusted_hosts=["good.example"], allow_local=True)
        assert list(tree.children) == []
        assert not local.requests
        assert not [r for r in tls.requests if r.method == "POST"]


def test_a_graph_server_on_this_machine_may_refer_to_data_of_this_machine(secrets, stranger, tmp_path):
    graph_info(stranger, "127.0.0.1", f"file://{tmp_path}")
    assert ix.open_segmentation(f"graphene://{stranger.url()}{TABLE}", connection=HASTY).dtype == np.uint64


# --- datastacks -------------------------------------------------------------------------------------------------------


def stack(server, image, segmentation):
    server.files["/info/api/v2/datastack/full/d"] = {
        "aligned_volume": {"image_source": image},
        "segmentation_source": segmentation,
        "local_server": server.url("good.example"),
    }


@pytest.mark.parametrize("source", LOCAL)
def test_an_info_service_elsewhere_cannot_refer_to_layers_of_this_machine(secrets, tls, source):
    with recording() as local:
        here, there = source.format(port=local.port), "precomputed://gs://bucket/x"
        for image, segmentation in ((here, there), (there, here)):
            stack(tls, image, segmentation)
            with pytest.raises(ix.ImageryError, match="on this machine or its network|could not read|no precomputed"):
                ix.open_datastack("d", server_address=tls.url("good.example"), connection=HASTY)
        assert not local.requests


def test_no_token_is_sent_to_an_info_service_over_plain_http_or_to_its_layers(secrets, stranger, tls):
    graph_info(tls, "evil.example", f"precomputed://{tls.url('evil.example')}/data")
    stack(stranger, f"precomputed://{stranger.url('good.example')}/em", f"graphene://{tls.url('evil.example')}{TABLE}")
    for token in (None, TOKEN):
        with pytest.raises(ix.ImageryError):
            ix.open_datastack("d", server_address=stranger.url("good.example"), token=token, connection=HASTY)
    assert stranger.requests
    assert not stranger.secrets + tls.secrets
