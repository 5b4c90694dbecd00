"""The progress display counts bytes, requests and cached chunks, and is shown only within its block."""

from __future__ import annotations

import re
import threading
import time

import pytest

import imageryxr as ix
from imageryxr.core.grid import Grid
from tests.support.precomputed import write_layer
from tests.support.recorder import recording
from tests.support.source_suite import noise


@pytest.fixture
def served(tmp_path):
    values = noise((16, 32, 32), "uint8")
    write_layer(
        tmp_path / "layer", [values], [Grid(values.shape, (8, 8, 40), (0, 0, 0))], encoding="raw", compress=False
    )
    with recording() as server:
        server.answer = lambda request: (200, (tmp_path / "layer" / request.path.lstrip("/")).read_bytes(), {})
        yield server


def test_bytes_requests_and_cached_chunks_are_shown(served, capsys):
    image = ix.open_image(f"precomputed://{served.url()}", chunks=(8, 16, 16))
    assert len(served.requests) == 1
    for expected in ("16.4 kB received, 8 requests", "0 B received, 0 requests, 8 chunks from memory"):
        with ix.progress():
            image.compute()
        last = re.split(r"[\r\n]+", capsys.readouterr().err.strip())[-1]
        assert re.search(rf"reading: 100%.* (\d+)/\1 tasks \[.*, {expected}\]", last), last


def test_arrays_without_dask_chunks_show_bytes(served, capsys):
    image = ix.open_image(f"precomputed://{served.url()}")
    with ix.progress():
        image.load()
    last = re.split(r"[\r\n]+", capsys.readouterr().err.strip())[-1]
    assert re.fullmatch(r"reading:? +\[00:0\d, 16.4 kB received, 8 requests\]", last.strip()), last


@pytest.mark.slow
def test_nothing_is_shown_outside_the_block_and_no_thread_is_left(served, capsys):
    with ix.progress():
        pass
    capsys.readouterr()
    ix.open_image(f"precomputed://{served.url()}").compute()
    assert capsys.readouterr().err == ""
    assert not [t for t in threading.enumerate() if t.name == "imageryxr-progress"]


def test_an_error_ends_the_display(served, capsys):
    image = ix.open_image(f"precomputed://{served.url()}", connection=ix.Connection(retries=0))
    served.answer = lambda request: (500, b"", {})
    with pytest.raises(ix.errors.ChunkReadError), ix.progress():
        image.compute()
    assert not [t for t in threading.enumerate() if t.name == "imageryxr-progress"]
    assert capsys.readouterr().err.endswith("\n")


@pytest.mark.slow
def test_the_numbers_grow_while_bodies_arrive(served, capsys):
    whole = served.answer

    def slow(request):
        time.sleep(0.25)
        return whole(request)

    served.answer = slow
    image = ix.open_image(f"precomputed://{served.url()}", connection=ix.Connection(concurrency=2))
    with ix.progress():
        image.compute()
    received = re.findall(r"([\d.]+) k?B received", capsys.readouterr().err)
    assert len(set(received)) > 3
