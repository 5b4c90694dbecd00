"""Links to states and data on a server."""

from __future__ import annotations

import json
import os
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.neuroglancer import fetch
from imageryxr.sources.fetch.policy import Access
from tests.support.links import NEW

TOKEN = "0123456789abcdef0123456789abcdef"


class Handler(BaseHTTPRequestHandler):
    """Record requests and send the response that the server computes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        status, body, headers = server.answer(self.path, self.headers)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class StateServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections beyond the queue are retried after a second

    def __init__(self, folder, host="127.0.0.1"):
        super().__init__((host, 0), Handler)
        self.folder, self.seen, self.states, self.redirects = Path(folder), [], {}, {}
        self.url = f"http://{host}:{self.server_port}"

    def answer(self, path, headers):
        if path == "/elsewhere":
            return 302, b"", {"Location": self.url + "/nglstate/api/v1/1"}
        if path in self.redirects:
            return 302, b"", {"Location": self.redirects[path]}
        if path == "/page":
            return 200, b"<!doctype html><title>moved</title>", {"Content-Type": "text/html"}
        if path == "/binary":
            return 200, b"\xff\xfe\x00", {}
        if path == "/huge":
            return 200, b"{" + b" " * (1 << 20), {}
        if path.startswith("/nglstate/api/v1/"):
            if headers.get("Authorization") != f"Bearer {TOKEN}":
                return 401, b"{}", {}
            state = self.states.get(path.rsplit("/", 1)[1])
            return (404, b"", {}) if state is None else (200, json.dumps(state).encode(), {})
        if path.startswith("/public/"):
            return 200, json.dumps(self.states["public"]).encode(), {}
        file = self.folder / path.lstrip("/")
        packed = file.with_name(file.name + ".gz")
        if packed.exists():
            return 200, packed.read_bytes(), {"Content-Encoding": "gzip"}
        return (200, file.read_bytes(), {}) if file.is_file() else (404, b"", {})


@pytest.fixture
def server(sample):
    with StateServer(sample.path) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        text = json.dumps(NEW).replace('"IMAGE"', f'"precomputed://{running.url}/image"')
        running.states["1"] = json.loads(text.replace('"SEGMENTATION"', f'"precomputed://{running.url}/segmentation"'))
        running.states["public"] = running.states["1"]
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def token():
    """Save a token as caveclient does, for the home directory of the tests."""
    folder = Path(os.environ["HOME"]) / ".cloudvolume" / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cave-secret.json").write_text(json.dumps({"token": TOKEN}))
    yield
    (folder / "cave-secret.json").unlink()


@pytest.fixture
def own_token(server):
    """Save a token that is only for the state server."""
    folder = Path(os.environ["HOME"]) / ".cloudvolume" / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"127.0.0.1:{server.server_port}-cave-secret.json"
    file.write_text(json.dumps({"token": TOKEN}))
    yield
    file.unlink()


def headers_of_requests(server, path):
    return [headers for seen, headers in server.seen if seen == path]


@pytest.mark.filterwarnings("ignore:.*is left out:imageryxr.errors.LinkWarning")
@pytest.mark.parametrize("form", ["https://spelunker.cave-explorer.org/#!{0}", "{0}", "https://old.site/?json_url={0}"])
def test_a_state_that_requires_a_token_is_read(server, token, form, sample):
    tree = ix.open_neuroglancer(form.format(f"{server.url}/nglstate/api/v1/1"), allow_local=True)
    assert list(tree.children) == ["em", "cells"]
    ds = tree.imagery.view(size=(40, 30))
    box = ix.BBox.around((4600.5, 2560.5, 130.5), (40, 30), resolution=(8, 8, 40))
    np.testing.assert_array_equal(ds.em.values, ix.open_image(sample.image, bbox=box).values)
    # Only the state service received the token.
    paths_with_token = [path for path, headers in server.seen if "Authorization" in headers or TOKEN in str(headers)]
    assert paths_with_token == ["/nglstate/api/v1/1"]
    assert TOKEN not in ix.neuroglancer_link(tree, allow_local=True)
    assert TOKEN not in str(tree) + str(tree.attrs) + str(ds.attrs)


def test_a_state_that_requires_a_token_raises_without_one(server):
    with pytest.raises(ix.errors.AuthError, match="requires a valid token"):
        ix.open_neuroglancer(f"{server.url}/nglstate/api/v1/1", allow_local=True)


@pytest.mark.filterwarnings("ignore:.*is left out:imageryxr.errors.LinkWarning")
def test_requests_to_untrusted_hosts_have_no_token(server, token):
    text = fetch._download(f"{server.url}/public/a.json", None, Access(), 10**6)[0]
    assert json.loads(text) == server.states["public"]
    (headers,) = headers_of_requests(server, "/public/a.json")
    assert TOKEN not in str(headers)
    assert "Authorization" not in headers
    assert "Cookie" not in headers


@pytest.mark.parametrize(
    "url",
    ["middleauth+https://evil.example.com/nglstate/api/v1/1", "https://x/#!middleauth+https://evil.example.com/1"],
)
def test_a_middleauth_state_at_an_untrusted_host_raises(url, token):
    with pytest.raises(ix.errors.AuthError, match="evil.example.com"):
        ix.open_neuroglancer(url)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/nglstate/api/v1/9", ix.errors.LinkError, "status 404"),
        ("/elsewhere", ix.errors.AuthError, "status 302"),
        ("/binary", ix.errors.LinkError, "is not text"),
        ("/huge", ix.errors.LinkError, r"is larger than the limit of 500,000 .* max_state_size='2 MB'"),
    ],
)
def test_states_that_cannot_be_loaded_raise(server, token, path, error, message):
    with pytest.raises(error, match=message):
        ix.open_neuroglancer(server.url + path, allow_local=True, max_state_size=500_000)
    assert not any(seen == "/nglstate/api/v1/1" for seen, _ in server.seen)


def test_a_state_on_this_machine_is_an_error(server):
    with pytest.raises(ix.errors.LinkError, match="allow_local=True"):
        ix.open_neuroglancer(f"https://site/#!{server.url}/nglstate/api/v1/1")
    assert server.seen == []


@pytest.mark.filterwarnings("ignore:.*is left out:imageryxr.errors.LinkWarning")
def test_a_short_link_is_followed(server, own_token):
    """A short link redirects, possibly several times, to a link that holds the state or its URL."""
    viewer = "https://spelunker.cave-explorer.org/"
    inline = urllib.parse.quote(json.dumps(server.states["1"]))
    places = {
        "/a": f"{viewer}#!{inline}",
        "/b": f"{viewer}?x=1#!{server.url}/nglstate/api/v1/1",
        "/c": f"{viewer}#%21{inline}",
        "/d": "/b",
        "/e": f"{server.url}/public/state.json",
        "/f": f"{viewer}?json_url={server.url}/nglstate/api/v1/1",
    }
    with StrangerServer() as stranger:
        stranger.redirects = places | {"/d": f"{stranger.url}/b"}
        for path in places:
            tree = ix.open_neuroglancer(stranger.url + path, allow_local=True)
            assert list(tree.children) == ["em", "cells"], path
        assert not any(TOKEN in str(headers) for _, headers in stranger.seen)
    paths_with_token = {path for path, headers in server.seen if TOKEN in str(headers)}
    # the token is sent to the address in a link, but not to the target of a redirect
    assert paths_with_token == {"/nglstate/api/v1/1"}


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("{url}/short", ix.errors.LinkError, "more than 5 times"),
        ("ftp://elsewhere/state", ix.errors.AuthError, "status 302"),
        ("http://h ost/x", ix.errors.LinkError, "is invalid"),
        ("http://a\\@b/x", ix.errors.LinkError, "is invalid"),
        ("{url}/page", ix.errors.LinkError, "a web page instead of a state; open it in a browser"),
        ("https://site/", ix.errors.LinkError, "could not be fetched"),
        ("{url}/binary", ix.errors.LinkError, "is not text"),
        ("{state}", ix.errors.AuthError, "requires a valid token"),
    ],
)
def test_a_short_link_without_a_valid_target_raises(server, own_token, place, error, message):
    with StrangerServer() as stranger:
        stranger.redirects = {"/short": place.format(url=stranger.url, state=f"{server.url}/nglstate/api/v1/1")}
        with pytest.raises(error, match=message):
            ix.open_neuroglancer(f"{stranger.url}/short", allow_local=True)
        assert not any(TOKEN in str(headers) for _, headers in [*stranger.seen, *server.seen])


def test_a_short_link_may_not_lead_to_this_machine(server, monkeypatch):
    replies = iter([("", f"{server.url}/public/a.json")])
    monkeypatch.setattr(fetch, "_download", lambda *args: next(replies))
    with pytest.raises(ix.errors.LinkError, match="allow_local=True"):
        ix.open_neuroglancer("https://short.example.com/a")
    assert server.seen == []


class StrangerServer(StateServer):
    """A second server, for which no token is saved."""

    def __init__(self):
        super().__init__(".", "127.0.0.2")

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


def test_an_unreachable_server_raises():
    with pytest.raises(ix.errors.LinkError, match="could not be fetched"):
        ix.open_neuroglancer("http://127.0.0.1:9/state.json", allow_local=True)


def test_an_absent_layer_is_skipped(server, token):
    link = f"{server.url}/nglstate/api/v1/1"
    server.states["1"]["layers"][0]["source"] = f"precomputed://{server.url}/nowhere"
    for visible in (True, False):
        server.states["1"]["layers"][0]["visible"] = visible
        with pytest.warns(ix.errors.LinkWarning) as caught:
            tree = ix.open_neuroglancer(link, allow_local=True)
        assert "the layer 'em' of the link is left out: " in str(caught[0].message)
        assert "nowhere" in str(caught[0].message)
        assert list(tree.children) == ["cells"]
        assert [u["name"] for u in json.loads(tree.attrs["unsupported_layers"])] == ["em", "notes"]
    assert list(ix.open_neuroglancer(link, allow_local=True, layers=["cells"]).children) == ["cells"]
    with pytest.raises(
        ix.errors.SourceNotFoundError, match=r"the layer 'em' .*nowhere.*omit this layer from layers=\[…\]"
    ):
        ix.open_neuroglancer(link, allow_local=True, layers=["em", "cells"])
