"""Secrets in addresses appear in no message, no chained exception, no traceback and no log line."""

from __future__ import annotations

import json
import logging
import traceback
import warnings

import pytest

import imageryxr as ix
from tests.security.conftest import TOKEN, graph_info
from tests.support.slow import slow_except
from tests.support.source_suite import dead_url

SECRET = "".join(["hunter", "2"])  # composed, because tracebacks show lines of this file
SECRETS = (SECRET, TOKEN)
HASTY = ix.Connection(retries=1, timeout=3, backoff=0)
ANSWERS = {
    "nothing": (404, b"", {}),
    "refused": (403, b"no", {}),
    "login": (401, b"{}", {}),
    "broken": (500, b"boom", {}),
    "a page": (200, b"<html>Sign in</html>", {"Content-Type": "text/html"}),
    "no JSON": (200, b"{", {}),
    "a list": (200, b"[1]", {}),
    "no text": (200, b"\xff\xfe\x00", {}),
    "odd gzip": (200, b"{}", {"Content-Encoding": "gzip"}),
    "too short": (200, b"{}", {"Content-Length": "50", "Connection": "close"}),
    "another place": (302, b"", {"Location": f"http://127.0.0.1:9/login?back={SECRET}"}),
    "a circle": (302, b"", {"Location": f"?again={SECRET}"}),
    "an odd place": (302, b"", {"Location": f"http://me:{SECRET}@[::1/x"}),
}


def visible_text_of(error: BaseException) -> str:
    """Return all texts that show an error and its causes to a user."""
    texts, seen, todo = ["".join(traceback.format_exception(error))], set(), [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        texts += [str(one), repr(one), repr(one.args), " ".join(getattr(one, "__notes__", []))]
        todo += [one.__cause__, one.__context__]
    return "\n".join(texts)


def output_of(way, caplog) -> str:
    """Run a function that fails or warns; return all texts that the user may see."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = str(way())
        except ix.ImageryError as error:
            found = visible_text_of(error)
    return "\n".join([found, caplog.text, *(str(w.message) for w in warned)])


def leaks(output: str) -> list[str]:
    return [line for line in output.splitlines() if any(secret in line for secret in SECRETS)]


WAYS = {
    "state": lambda url: ix.open_neuroglancer(f"{url}/state.json?sig={SECRET}", allow_local=True),
    "state behind #!": lambda url: ix.open_neuroglancer(f"https://site/#!{url}/state.json?sig={SECRET}", allow_local=True),
    "json_url": lambda url: ix.open_neuroglancer(f"https://site/?json_url={url}/state.json?sig={SECRET}", allow_local=True),
    "middleauth state": lambda url: ix.open_neuroglancer(f"middleauth+{url}/1?sig={SECRET}", allow_local=True),
    "state with a password": lambda url: ix.open_neuroglancer(f"{with_password(url)}/1?sig={SECRET}", allow_local=True),
    "precomputed": lambda url: ix.open_image(f"precomputed://{with_password(url)}/x", connection=HASTY),
    "zarr": lambda url: ix.open_image(f"zarr://{with_password(url)}/x", connection=HASTY),
    "bare": lambda url: ix.open_image(f"{with_password(url)}/x", connection=HASTY),
    "pipeline": lambda url: ix.open_image(f"{with_password(url)}/x/|zarr2:a", connection=HASTY),
    "query": lambda url: ix.open_image(f"zarr://{url}/x?sig={SECRET}", connection=HASTY),
    "graphene": lambda url: ix.open_segmentation(f"graphene://{with_password(url)}/segmentation/table/t", connection=HASTY),
    "datastack": lambda url: ix.open_datastack("d", server_address=with_password(url), connection=HASTY),
    "datastack with a query": lambda url: ix.open_datastack("d", server_address=f"{url}/?sig={SECRET}", connection=HASTY),
    "datastack with a token": lambda url: ix.open_datastack("d", server_address=url, token=TOKEN, connection=HASTY),
    "layer of a link": lambda url: ix.open_neuroglancer({"layers": [{"type": "image", "name": "x", "source": f"zarr://{with_password(url)}/x"}]}, allow_local=True),
}  # fmt: skip


def with_password(url: str) -> str:
    return url.replace("://", f"://me:{SECRET}@")


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize("way", slow_except(WAYS, "state", "zarr", "graphene", "datastack"))
@pytest.mark.usefixtures("hasty_links")
def test_errors_of_servers_show_no_secret(secrets, stranger, way, caplog):
    for answer in ANSWERS.values():
        stranger.answer = lambda request, answer=answer: answer
        output = output_of(lambda: WAYS[way](stranger.url()), caplog)
        assert not leaks(output)
    for url in (dead_url(), "http://no.such.host.invalid", "http://127.0.0.1:99999", "http://[::1", "http://a b"):
        output = output_of(lambda url=url: WAYS[way](url), caplog)
        assert not leaks(output)


def test_addresses_that_a_service_returns_show_no_secret(secrets, stranger, caplog):
    bad = f"precomputed://https://me:{SECRET}@h:port/x"
    stack = "/info/api/v2/datastack/full/d"
    for image, segmentation, local in (
        (bad, bad, ""),
        ("precomputed://gs://b/x", f"graphene://https://me:{SECRET}@h/segmentation/table/t?sig={SECRET}", ""),
        ("precomputed://gs://b/x", "precomputed://gs://b/x", f"https://me:{SECRET}@h"),
        (f"precomputed://http://me:{SECRET}@127.0.0.1:{stranger.port}/x", bad, ""),
    ):
        stranger.files[stack] = {"aligned_volume": {"image_source": image}, "segmentation_source": segmentation, "local_server": local}  # fmt: skip
        output = output_of(lambda: ix.open_datastack("d", server_address=stranger.url(), connection=HASTY), caplog)
        assert not leaks(output)
    for data_dir in (
        bad,
        f"https://me:{SECRET}@h?sig={SECRET}",
        f"http://me:{SECRET}@127.0.0.1:{stranger.port}/x|zarr:",
    ):
        graph_info(stranger, "127.0.0.1", data_dir)
        output = output_of(
            lambda: ix.open_segmentation(f"graphene://{stranger.url()}/segmentation/table/t", connection=HASTY), caplog
        )
        assert not leaks(output)


@pytest.mark.slow
def test_reading_shows_no_secret(secrets, stranger, caplog):
    scale = {"key": "8", "size": [8, 8, 8], "resolution": [8, 8, 40], "chunk_sizes": [[8, 8, 8]], "encoding": "raw"}
    stranger.files["/x/info"] = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [scale]}
    zarray = {"zarr_format": 2, "shape": [8, 8, 8], "chunks": [8, 8, 8], "dtype": "|u1", "compressor": None, "filters": None, "fill_value": 0, "order": "C"}  # fmt: skip
    axes = [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
    step = [{"type": "scale", "scale": [40, 8, 8]}]
    stranger.files["/z/.zattrs"] = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": step}]}]}  # fmt: skip
    stranger.files["/z/0/.zarray"] = zarray
    held = dict(stranger.files)
    for place in ("precomputed://{}/x", "zarr://{}/z"):
        for answer in ANSWERS.values():
            stranger.files, stranger.answer = dict(held), lambda request: None
            image = ix.open_image(place.format(with_password(stranger.url())), connection=HASTY)
            assert SECRET not in json.dumps(image.attrs, default=str)
            stranger.files, stranger.answer = {}, lambda request, answer=answer: answer
            output = output_of(lambda image=image: image.compute(), caplog)
            assert not leaks(output)
