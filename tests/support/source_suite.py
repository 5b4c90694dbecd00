"""A base class with tests that every kind of source must pass, and a web server for files."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import formatdate
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from dask.base import tokenize

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.sources.base import Source


def noise(shape: tuple[int, int, int], dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Return random voxels, none of which is 0."""
    values = np.random.default_rng(seed).integers(1, 2**8 if dtype == "uint8" else 2**16, shape, dtype="uint64")
    if dtype == "uint64":
        values = np.uint64(2**64 - 1) - values
    return values.astype(dtype)


def read_padded(truth: np.ndarray, box: IndexBox) -> np.ndarray:
    """Return the voxels of a box of an array, with 0 outside of the array, without code of the package."""
    axes = [np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)]
    inside = [(i >= 0) & (i < n) for i, n in zip(axes, truth.shape, strict=True)]
    values = truth[np.ix_(*(np.clip(i, 0, n - 1) for i, n in zip(axes, truth.shape, strict=True)))]
    return np.where(inside[0][:, None, None] & inside[1][:, None] & inside[2], values, 0).astype(truth.dtype)


def boxes_of(shape: tuple[int, ...], count: int = 12) -> list[IndexBox]:
    """Return boxes inside, partly outside and wholly outside of an array, of one voxel, and of the whole array."""
    z, y, x = shape
    found = [
        IndexBox.of_shape(shape),
        IndexBox((0, 0, 0), (1, 1, 1)),
        IndexBox((z - 1, y - 1, x - 1), (z, y, x)),
        IndexBox((-3, -2, -5), (2, 3, 4)),
        IndexBox((z - 2, y - 3, x - 4), (z + 3, y + 2, x + 1)),
        IndexBox((-1, -2, -3), (z + 1, y + 2, x + 3)),
        IndexBox((z, 0, 0), (z + 2, 2, 2)),
        IndexBox((0, -9, 0), (2, -4, 3)),
        IndexBox((1, 1, 1), (1, 4, 4)),
    ]
    rng = np.random.default_rng(7)
    for _ in range(count):
        start = [int(rng.integers(-4, n)) for n in shape]
        stop = [a + int(rng.integers(1, n + 4)) for a, n in zip(start, shape, strict=True)]
        found.append(IndexBox(tuple(start), tuple(stop)))
    return found


class SourceSuite(ABC):
    """The tests that all sources share."""

    small = True
    """Whether a pickle of the source must be small; False for arrays in memory."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Store the layer."""

    @abstractmethod
    def open(self, folder: Path) -> Source:
        """Open the layer that `write` stored, as a new source at each call."""

    @abstractmethod
    def truth(self) -> list[np.ndarray]:
        """Return the voxels (z, y, x) of each level."""

    @abstractmethod
    def grids(self) -> list[Grid]:
        """Return the grid of each level."""

    @abstractmethod
    def open_without_voxels(self, folder: Path, empty: Path) -> Source:
        """Open a layer whose voxels cannot be read."""

    @abstractmethod
    def others(self, folder: Path) -> list[Source]:
        """Return sources, each of which differs in one property from the source that `open` returns."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("layer")
        cls().write(path)
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, folder: Path) -> Source:
        return cls().open(folder)

    def test_an_open_source_implements_the_source_protocol(self, source):
        assert isinstance(source, Source)
        assert source.layer_type in ("image", "segmentation")
        assert "://" in source.name
        assert source.dtype.isnative

    def test_levels_have_the_written_grids(self, source):
        assert [level.mip for level in source.levels] == list(range(len(self.grids())))
        for level, grid, truth in zip(source.levels, self.grids(), self.truth(), strict=True):
            assert level.grid == grid
            assert level.grid.shape == truth.shape
            assert len(level.chunks) == 3
            assert min(level.chunks) > 0
            for axis in level.grid.axes:
                np.testing.assert_array_equal(
                    axis.centers(), (np.arange(axis.size) + axis.offset + 0.5) * axis.resolution
                )

    def test_opening_reads_no_voxel(self, folder, tmp_path):
        source = self.open_without_voxels(folder, tmp_path)
        assert [level.grid for level in source.levels] == self.grids()
        assert (source.dtype, source.attrs) == (self.truth()[0].dtype, source.attrs)
        source.check(0)

    def test_any_box_equals_the_stored_voxels_and_is_0_outside(self, source):
        for mip, truth in enumerate(self.truth()):
            for box in boxes_of(truth.shape):
                found = source.read(mip, box)
                assert type(found) is np.ndarray
                assert (found.dtype, found.shape) == (truth.dtype, box.shape)
                assert found.dtype.isnative
                assert found.flags.c_contiguous
                np.testing.assert_array_equal(found, read_padded(truth, box), err_msg=f"mip {mip}, {box}")

    def test_threads_share_a_source(self, folder):
        source, truth = self.open(folder), self.truth()
        jobs = [(mip, box) for mip, t in enumerate(truth) for box in boxes_of(t.shape, 20)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda job: source.read(*job), jobs))
        for (mip, box), values in zip(jobs, found, strict=True):
            np.testing.assert_array_equal(values, read_padded(truth[mip], box))

    def test_an_unpickled_source_is_equal_and_reads_equal_voxels(self, folder):
        source = self.open(folder)
        for use in (False, True):
            if use:
                source.read(0, IndexBox((0, 0, 0), (2, 2, 2)))
            blob = pickle.dumps(source)
            again = pickle.loads(blob)
            assert not self.small or len(blob) < 20_000
            assert again == source
            assert hash(again) == hash(source)
            assert tokenize(again) == tokenize(source)
        box = IndexBox((-1, 0, 0), (3, 5, 6))
        np.testing.assert_array_equal(again.read(0, box), read_padded(self.truth()[0], box))

    def test_sources_are_equal_if_and_only_if_their_tokens_are_equal(self, folder):
        first, again = self.open(folder), self.open(folder)
        assert first == again
        assert tokenize(first) == tokenize(again)
        everyone = [first, *self.others(folder)]
        assert len({tokenize(s) for s in everyone}) == len(everyone)
        assert all(a != b for i, a in enumerate(everyone) for b in everyone[:i])

    def test_another_process_reads_an_unpickled_source(self, folder):
        box = IndexBox((-1, 2, 3), (9, 15, 12))
        token, found = other_process().submit(read_elsewhere, pickle.dumps(self.open(folder)), box).result(timeout=60)
        assert token == tokenize(self.open(folder))
        np.testing.assert_array_equal(found, read_padded(self.truth()[0], box))


@lru_cache(maxsize=1)
def other_process() -> ProcessPoolExecutor:
    """Return a pool of one spawned process."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def read_elsewhere(blob: bytes, box: IndexBox) -> tuple[str, np.ndarray]:
    """Unpickle a source and read it, as a worker does."""
    source = pickle.loads(blob)
    return tokenize(source), source.read(0, box)


# ---------------------------------------------------------------------------------------------------------
# a web server


class FileServer(ThreadingHTTPServer):
    """Serve a folder as object stores do, with lengths, ranges, ``NAME.gz`` as ``NAME``, and optional faults."""

    daemon_threads = True
    request_queue_size = 128  # connections beyond the queue are retried after a second

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, int | list[int]] = {}
        """Status by a part of the path, or a list for the next responses; 0 closes the connection amid the body."""
        self.requested: list[str] = []
        """Paths of the received requests, in order."""
        self.moved: dict[str, str] = {}
        """Targets of redirects by a part of the path."""
        self.needs: str | None = None
        """Required Authorization header; other requests receive 401."""
        self.stamps: tuple[str, ...] = ()
        """Headers that are sent to state the version of a file: ETag and Last-Modified."""

    @property
    def url(self) -> str:
        """URL of the server, without a trailing slash."""
        return f"http://127.0.0.1:{self.server_port}"

    def status(self, path: str) -> int:
        """Return the status of the next response for a path: 200 without a fault."""
        fault = next((f for part, f in self.faults.items() if part in path), 200)
        if isinstance(fault, list):
            return fault.pop(0) if fault else 200
        return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do not report clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True  # otherwise the end of a body waits 40 ms for the client's acknowledgement
    server: FileServer

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        place = next((to for part, to in self.server.moved.items() if part in self.path), None)
        if place is not None and place != self.path:
            self._answer(302, b"", {"Location": place})
            return
        status = self.server.status(self.path)
        if self.server.needs and self.headers.get("Authorization") != self.server.needs:
            status = 401
        plain = self.server.folder / unquote(self.path).lstrip("/")
        zipped = plain.with_name(plain.name + ".gz")
        found = next((p for p in (plain, zipped) if p.is_file()), None)
        if status not in (200, 0) or found is None:
            self._answer(status if status not in (200, 0) else 404, b"<html>no</html>", {})
            return
        headers = {"Content-Encoding": "gzip"} if found == zipped else {}
        time = found.stat().st_mtime_ns
        versions = {"ETag": f'"{time:x}"', "Last-Modified": formatdate(time // 10**9, usegmt=True)}
        self._send_file(found, status == 0, headers | {name: versions[name] for name in self.server.stamps})

    do_HEAD = do_GET

    def _send_file(self, found: Path, cut: bool, headers: dict[str, str]) -> None:
        body, size = found.read_bytes(), found.stat().st_size
        status = 200
        if "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            a, b = (int(first), int(last or size - 1) + 1) if first else (max(0, size - int(last)), size)
            body, status = body[a:b], 206
            headers["Content-Range"] = f"bytes {a}-{min(b, size) - 1}/{size}"
        self._answer(status, body, headers, cut)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Do not log."""


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """Serve a folder on 127.0.0.1."""
    server = FileServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def dead_url() -> str:
    """Return a URL of a port on which no server listens."""
    with serving(Path()) as server:
        return server.url
