"""A CAVE deployment on 127.0.0.1: info service, chunked graph, materialization, storage and faults.

The real caveclient and cloud-volume can use it. The graph is that of FIB-25 if its file lies beside the checkout,
otherwise of the sample volume. Its first roots are made at `BEGIN`, two of them are merged at `MERGE`, and the result
is split at `SPLIT`; a test may edit it further. The server does not run PyChunkedGraph, but its responses equal
recorded responses of real servers, including unusual ones.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
import struct
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd

from tests.support.cave_tables import Tables

# Timestamps have fractions of a second, so that tests fail if code rounds them.
BEGIN, MERGE, SPLIT = 1_700_000_000.125, 1_700_100_000.25, 1_700_200_000.5
LAYERS = 4
OFFSET = (640, 512, 320)
EM_SIZE, SEG_SIZE, VIEWER = (10, 10, 10), (10, 10, 10), (5, 5, 10)
TOKEN, FORBIDDEN, NO_TERMS = "0123456789abcdef0123456789abcdef", "f" * 32, "e" * 32
DATASTACK, TABLE = "fib25_public", "fib25_table"


# ---------------------------------------------------------------------------------------------------------
# tissue


@dataclass
class Tissue:
    """Voxels (z, y, x), and the supervoxels of each body."""

    em: np.ndarray
    supervoxels: np.ndarray
    """Graph ids: layer 1, coordinates of the chunk, number within the chunk."""
    ids: np.ndarray
    """All supervoxel ids in ascending order."""
    bodies: np.ndarray
    """Number of the body of each supervoxel, from 1; 0 for a supervoxel that belongs to no body."""

    @cached_property
    def places(self) -> np.ndarray:
        """1 + the index in ``ids`` of each voxel's supervoxel; 0 for background."""
        known = np.concatenate([[np.uint64(0)], self.ids])
        places = np.searchsorted(known, self.supervoxels)
        assert np.array_equal(known[places], self.supervoxels)
        return places.astype(np.int32)

    def spread(self, values: np.ndarray, box: tuple[slice, slice, slice] = (slice(None),) * 3) -> np.ndarray:
        """Return voxels (z, y, x), each with the value of its supervoxel; background is 0."""
        return np.concatenate([[values.dtype.type(0)], values])[self.places[box]]


def encode_ids(labels: np.ndarray, chunk: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replace labels by graph ids; return the voxels, the ids in ascending order, and the label of each id."""
    where, known = pd.factorize(labels.ravel(), sort=True)  # np.unique would sort all voxels, which takes seconds
    first = np.empty(len(known), np.intp)
    first[where[::-1]] = np.arange(where.size)[::-1]  # reversed, so that each label keeps the index of its first voxel
    z, y, x = (np.asarray(i, np.uint64) // np.uint64(chunk) for i in np.unravel_index(first, labels.shape))
    ids = (np.uint64(1) << np.uint64(56)) | (x << np.uint64(46)) | (y << np.uint64(36)) | (z << np.uint64(26))
    ids = ids | np.arange(1, len(known) + 1, dtype=np.uint64)
    ids[known == 0] = 0
    order = np.argsort(ids)
    keep = ids[order] > 0
    return ids[where].reshape(labels.shape), ids[order][keep], known[order][keep]


def fib25_tissue(path: Path) -> Tissue:
    """Return the tissue of FIB-25: 21,317 supervoxels in 526 bodies."""
    data = np.load(path)
    voxels, ids, old = encode_ids(data["supervoxels"].astype(np.uint64))
    table = dict(data["sv_to_body"].tolist())
    bodies = np.unique([table.get(int(sv), 0) for sv in old], return_inverse=True)
    return Tissue(data["em"], voxels, ids, bodies[1] + (bodies[0][0] != 0))


def sample_tissue(sample: Any) -> Tissue:
    """Return a part of the sample volume, whose cells are cut into cubes as supervoxels."""
    import imageryxr as ix

    em = ix.open_image(sample.image)
    box = ix.BBox.around((4600, 2560, 132), (192, 192, 64), resolution=(8, 8, 40))
    ds = ix.align(em, ix.open_segmentation(sample.segmentation), to="image", bbox=box)
    cells = ds.segmentation.values
    z, y, x = (i // 16 for i in np.indices(cells.shape))
    pieces = np.where(
        cells > 0, cells.astype(np.uint64) * np.uint64(4096) + (z * 256 + y * 16 + x).astype(np.uint64), 0
    )
    voxels, ids, old = encode_ids(pieces)
    return Tissue(ds.image.values, voxels, ids, np.unique(old // np.uint64(4096), return_inverse=True)[1] + 1)


def write_layers(folder: Path, tissue: Tissue) -> dict[str, Any]:
    """Write the image and the supervoxels as precomputed layers; return the ``info`` of the supervoxels."""
    from cloudvolume import CloudVolume

    def write(
        name: str, kind: str, encoding: str, volumes: list[np.ndarray], sizes: list[tuple], compress: Any
    ) -> dict:
        path = f"precomputed://file://{folder}/{name}"
        scales = []
        for values, size in zip(volumes, sizes, strict=True):
            shrunk = [s // b for s, b in zip(size, sizes[0], strict=True)]
            offset = [o // s for o, s in zip(OFFSET, shrunk, strict=True)]
            scale = {"key": "_".join(map(str, size)), "size": list(values.shape[::-1]), "resolution": list(size)}
            scale |= {"voxel_offset": offset, "chunk_sizes": [[64, 64, 32]], "encoding": encoding}
            if encoding == "compressed_segmentation":
                scale["compressed_segmentation_block_size"] = [8, 8, 8]
            scales.append(scale)
        info = {"type": kind, "data_type": str(volumes[0].dtype), "num_channels": 1, "scales": scales}
        for mip, values in enumerate(volumes):
            layer = CloudVolume(path, mip=mip, info=info, compress=compress, progress=False)
            layer.commit_info()
            layer[:, :, :] = values.T[..., None]
        return info

    write("em", "image", "raw", [tissue.em], [EM_SIZE], False)
    coarse = tuple(2 * s for s in SEG_SIZE)
    levels = [tissue.supervoxels, np.ascontiguousarray(tissue.supervoxels[1::2, 1::2, 1::2])]
    return write("ws", "segmentation", "compressed_segmentation", levels, [SEG_SIZE, coarse], "gzip")


def tiles(tissue: Tissue) -> int:
    """Return the number of whole chunks of 64 voxels along x and y."""
    return min(tissue.em.shape[1:]) // 64


def wide(info: dict[str, Any]) -> dict[str, Any]:
    """Return the ``info`` of a layer, 1024 voxels wide and high, that repeats the chunks of another layer."""
    scale = info["scales"][0]
    return {**info, "scales": [{**scale, "size": [1024, 1024, scale["size"][2]]}]}


# ---------------------------------------------------------------------------------------------------------
# the graph


class Graph:
    """Root of each supervoxel over time; edits create new roots and retire old ones."""

    def __init__(self, tissue: Tissue) -> None:
        self.ids = tissue.ids
        self.lock = threading.Lock()
        self.made: dict[int, float] = {}
        self.oldest = BEGIN
        self.links: list[tuple[int, int]] = []
        self._next = 1
        first = np.zeros(len(tissue.ids), np.uint64)
        for body in np.unique(tissue.bodies):
            members = np.flatnonzero(tissue.bodies == body)
            for group in [members] if body else [[m] for m in members]:
                first[group] = self._new(BEGIN)
        self.states: list[tuple[float, np.ndarray]] = [(BEGIN, first)]
        largest = np.unique(first, return_counts=True)
        a, b = (int(r) for r in largest[0][np.argsort(largest[1])[[-2, -3]]])
        self.merged_from = (a, b)
        self.merged = self.merge(a, b, MERGE)
        members = self.ids[self.states[-1][1] == self.merged]
        self.split_into = self.split(self.merged, members[: len(members) // 3], SPLIT)

    def copy(self) -> Graph:
        """Return a graph with the same history, whose edits do not change this one."""
        other = copy.copy(self)
        other.lock, other.made = threading.Lock(), dict(self.made)
        other.links, other.states = list(self.links), list(self.states)
        return other

    def _new(self, when: float) -> int:
        root = (LAYERS << 56) | self._next
        self._next += 1
        self.made[root] = when
        return root

    def merge(self, a: int, b: int, when: float | None = None) -> int:
        """Merge two roots and return the new root."""
        return self._edit([a, b], when, lambda roots: [np.isin(roots, np.array([a, b], np.uint64))])[0]

    def split(self, root: int, supervoxels: np.ndarray, when: float | None = None) -> tuple[int, int]:
        """Split supervoxels off a root and return the two new roots."""
        inside = np.isin(self.ids, supervoxels)
        a, b = self._edit([root], when, lambda roots: [(roots == root) & inside, (roots == root) & ~inside])
        return a, b

    def _edit(self, old: list[int], when: float | None, parts: Any) -> list[int]:
        with self.lock:
            when = round(time.time(), 3) if when is None else when
            assert when > self.states[-1][0]
            roots = self.states[-1][1].copy()
            new = []
            for part in parts(self.states[-1][1]):
                assert part.any()
                new.append(self._new(when))
                roots[part] = new[-1]
            self.links += [(o, n) for o in old for n in new]
            self.states.append((when, roots))
            return new

    def state(self, when: float) -> np.ndarray | None:
        """Return the roots of all supervoxels at a timestamp; an edit applies from its own timestamp on."""
        held = [roots for made, roots in self.states if made <= when]
        return held[-1] if held else None

    def roots(self, supervoxels: np.ndarray, when: float) -> np.ndarray:
        """Return roots as PyChunkedGraph does: supervoxels unchanged before the first state, 0 for unknown ids."""
        state = self.state(when)
        if state is None:
            return supervoxels
        at = np.minimum(np.searchsorted(self.ids, supervoxels), len(self.ids) - 1)
        return np.where(self.ids[at] == supervoxels, state[at], np.uint64(0))

    def lineage(self, roots: list[int], past: float, future: float) -> dict[str, Any]:
        """Return the ancestors and descendants of roots within a range of timestamps."""
        found, links = set(roots), []
        for forward in (True, False):
            todo = list(roots)
            while todo:
                root = todo.pop()
                for old, new in self.links:
                    here, there = (old, new) if forward else (new, old)
                    if here == root and past <= self.made[there] <= future:
                        links.append({"source": old, "target": new})
                        found.add(there)
                        todo.append(there)
        nodes = [{"id": r, "timestamp": self.made[r], "operation_id": 1} for r in sorted(found)]
        return {"directed": True, "graph": {}, "links": links, "multigraph": False, "nodes": nodes}


# ---------------------------------------------------------------------------------------------------------
# faults


@dataclass
class Fault:
    """A fault of requests whose ``METHOD path`` matches a pattern."""

    pattern: str
    kind: str
    """status, delay, drop, truncate, short, corrupt, missing, login, page or garbage."""
    status: int = 500
    times: int | None = None
    """Number of requests that fail; None for all."""
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    done: int = 0


@dataclass(frozen=True)
class Request:
    """A logged request."""

    method: str
    path: str
    query: dict[str, str]
    token: str | None
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class CaveServer(ThreadingHTTPServer):
    """All services on one port of 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 128  # connections beyond the queue are retried after a second

    def __init__(self, folder: Path, tissue: Tissue, info: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.tissue, self.ws_info = folder, tissue, info
        self.first_graph, self.first_tables = Graph(tissue), Tables(tissue, OFFSET)
        self.graph, self.tables = self.first_graph.copy(), self.first_tables.copy()
        self.versions = dict(VERSIONS)
        self.parent_version: int | None = None
        """``parent_version`` in the metadata of each version: a version of another datastack."""
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.busy = self.peak = 0
        self.before_roots: Any = None
        """Function that is called before each response with roots."""
        self.tokens = {TOKEN: "ok", FORBIDDEN: "forbidden", NO_TERMS: "terms"}
        self.secret_data = False
        """Whether the storage also requires tokens."""
        self.date_shift = 0.0
        """Seconds by which the clock of the server is ahead."""
        self.without: set[str] = set()
        """Endpoints that the server lacks, as older servers do."""
        self.zips = False
        """Whether responses are compressed although the client did not request that, as by some proxies."""

    @property
    def url(self) -> str:
        """URL of the server, without a trailing slash."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def table(self) -> str:
        """Address of the segmentation."""
        return f"graphene://{self.url}/segmentation/table/{TABLE}"

    @property
    def image(self) -> str:
        """Address of the image."""
        return f"precomputed://{self.url}/data/em"

    def fault(self, pattern: str, kind: str, **options: Any) -> Fault:
        """Let requests whose ``METHOD path`` matches a pattern fail."""
        self.faults.append(Fault(pattern, kind, **options))
        return self.faults[-1]

    def reset(self) -> None:
        """Clear faults and the log, and restore the first graph, tables and options."""
        self.faults.clear()
        self.log.clear()
        self.graph, self.tables = self.first_graph.copy(), self.first_tables.copy()
        self.versions, self.parent_version = dict(VERSIONS), None
        self.before_roots, self.secret_data, self.date_shift, self.without = None, False, 0.0, set()
        self.zips = False
        self.peak = 0

    def truth(self, when: float, box: tuple[slice, slice, slice] = (slice(None),) * 3) -> np.ndarray:
        """Return the roots of voxels (z, y, x) at a timestamp, looked up voxel by voxel."""
        return self.tissue.spread(self.graph.state(when), box)

    def count(self, pattern: str) -> int:
        """Return the number of logged requests that match a pattern."""
        return sum(re.search(pattern, str(line)) is not None for line in self.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do not report clients that disconnect."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: CaveServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        requested = Request(self.command, parts.path, query, token, body)
        with self.server.lock:
            self.server.log.append(requested)
            self.server.busy += 1
            self.server.peak = max(self.server.peak, self.server.busy)
            fault = next(
                (f for f in self.server.faults if re.search(f.pattern, str(requested)) and f.times != f.done), None
            )
            if fault is not None:
                fault.done += 1
        self.counted = True
        try:
            self._answer(requested, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:
            self._send(500, {"message": repr(error)})
        finally:
            self._leave()

    do_POST = do_HEAD = do_GET

    def _leave(self) -> None:
        with self.server.lock:
            self.server.busy -= self.counted
            self.counted = False

    def _answer(self, requested: Request, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        made = {
            "status": (
                fault.status if fault else 0,
                {"message": f"a fault, {requested.token}"},
                fault.headers if fault else {},
            ),
            "missing": (404, b"<xml>NoSuchKey</xml>", {"Content-Type": "application/xml"}),
            "login": (302, b"", {"Location": f"{self.server.url}/auth/login"}),
            "page": (200, b"<html>Sign in</html>", {"Content-Type": "text/html"}),
            "garbage": (200, b"\x00garbage{", {}),
        }
        if kind == "delay":
            time.sleep(fault.seconds)
        if kind == "drop":
            self.close_connection = True
            self._leave()
        elif kind in made:
            self._send(*made[kind])
        else:
            status, value, headers = self._route(requested)
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            body = body[: len(body) // 2] if kind == "short" else body
            body = bytes(b ^ 0x5A for b in body) if kind == "corrupt" else body
            if self.server.zips and not requested.path.startswith("/data/"):
                body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
            self._send(status, body, headers, cut=kind == "truncate")

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        self.send_response(status)
        for key, text in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        self._leave()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self.close_connection = True

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Return the time for the Date header."""
        return super().date_time_string(time.time() + self.server.date_shift if timestamp is None else timestamp)

    def log_message(self, *args: object) -> None:
        """Do not log."""

    # -----------------------------------------------------------------------------------------------------

    def _route(self, requested: Request) -> tuple[int, Any, dict[str, str]]:
        path = requested.path
        if path == "/auth/login":
            return 200, b"<html>Sign in with your account</html>", {"Content-Type": "text/html"}
        if path.startswith("/data/"):
            refused = self._refusal(requested) if self.server.secret_data else None
            return refused or self._file(path.removeprefix("/data/"))
        if path.endswith(("/api/version", "/api/versions", "/materialize/version", "/info/version")):
            values = {
                "/segmentation/api/versions": [0, 1],
                "/segmentation/api/version": "2.21.1",
                "/info/version": "4.7.2",
                "/materialize/version": "5.14.0",
            }
            return 200, values.get(path, [2, 3] if path.endswith("versions") else "5.0.0"), JSON
        refused = self._refusal(requested)
        if refused:
            return refused
        for pattern, function in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and path.rpartition("/")[2] not in self.server.without:
                return function(self, requested, *found.groups())
        return 404, {"message": "no such place"}, JSON

    def _refusal(self, requested: Request) -> tuple[int, Any, dict[str, str]] | None:
        if requested.token is None:  # real servers redirect requests without a token to their login page
            return 302, b"", {"Location": f"{self.server.url}/auth/login"}
        known = self.server.tokens.get(requested.token)
        if known is None:
            return 401, {"message": f"Unknown token {requested.token}"}, JSON
        if known == "forbidden":
            return 403, {"message": f"missing permission: view, token {requested.token}"}, JSON
        if known == "terms":
            data = {"tos_form_url": f"{self.server.url}/auth/tos/1"}
            return 403, {"error": "missing_tos", "message": "Terms of Service not accepted", "data": data}, JSON
        return None

    def _file(self, name: str) -> tuple[int, Any, dict[str, str]]:
        layer, _, rest = name.partition("/")
        if layer.startswith("wide-"):
            return self._wide(layer.removeprefix("wide-"), rest)
        plain = self.server.folder / name
        zipped = plain.with_name(plain.name + ".gz")
        if zipped.is_file():
            return 200, zipped.read_bytes(), {"Content-Encoding": "gzip"}
        if not plain.is_file():
            return 404, b"<xml>NoSuchKey</xml>", {"Content-Type": "application/xml"}
        body = plain.read_bytes()
        return 200, body, {"x-goog-hash": f"crc32c=AAAAAA==,md5={b64encode(md5(body).digest()).decode()}"}

    def _wide(self, layer: str, rest: str) -> tuple[int, Any, dict[str, str]]:
        # The first chunks of the layer are repeated, so that a layer 1024 voxels wide needs no further files.
        if rest == "info":
            return 200, wide(json.loads((self.server.folder / layer / "info").read_text())), JSON
        spans = [int(n) for n in re.findall(r"\d+", rest.rpartition("/")[2])]
        starts = [o + (a - o) % (64 * tiles(self.server.tissue)) for o, a in zip(OFFSET[:2], spans[:4:2], strict=True)]
        place = "_".join(f"{a}-{a + 64}" for a in starts)
        return self._file(f"{layer}/{rest.rpartition('/')[0]}/{place}_{spans[4]}-{spans[5]}")

    def datastack(self, requested: Request, name: str) -> tuple[int, Any, dict[str, str]]:
        if name != DATASTACK:
            return 404, {"message": f"datastack {name} not found"}, JSON
        volume = {"id": 1, "name": "fib25", "image_source": self.server.image, "description": ""}
        x, y, z = VIEWER
        found = {"aligned_volume": volume, "segmentation_source": self.server.table, "local_server": self.server.url}
        found |= {"viewer_resolution_x": float(x), "viewer_resolution_y": float(y), "viewer_resolution_z": float(z)}
        found |= {"viewer_site": None, "synapse_table": None, "soma_table": None, "analysis_database": None}
        return 200, found | {"description": "", "skeleton_source": None}, JSON

    def table_info(self, requested: Request, table: str) -> tuple[int, Any, dict[str, str]]:
        if table not in (TABLE, f"wide_{TABLE}"):
            return 500, {"message": f"unknown table {table}"}, JSON
        bits = {"1": 10, "2": 10, "3": 1, "4": 1}
        graph = {
            "chunk_size": [64, 64, 64],
            "n_bits_for_layer_id": 8,
            "cv_mip": 0,
            "n_layers": LAYERS,
            "spatial_bit_masks": bits,
        }
        layer = "ws" if table == TABLE else "wide-ws"
        more = {
            "data_dir": f"precomputed://{self.server.url}/data/{layer}",
            "graph": graph,
            "app": {"supported_api_versions": [0, 1]},
        }
        stored = self.server.ws_info if table == TABLE else wide(self.server.ws_info)
        return (
            200,
            {**stored, **more, "chunks_start_at_voxel_offset": True, "sharded_mesh": True, "verify_mesh": False},
            JSON,
        )

    def roots(self, requested: Request, table: str) -> tuple[int, Any, dict[str, str]]:
        if self.server.before_roots is not None:
            self.server.before_roots()
        body = gzip.decompress(requested.body) if self.headers.get("Content-Encoding") == "gzip" else requested.body
        ids = np.frombuffer(body, "<u8").astype(np.uint64)
        layer = ids >> np.uint64(56)
        found = self.server.graph.roots(ids, self._when(requested))
        if (layer == LAYERS).any():
            found = np.where(layer == LAYERS, ids, found)
        return 200, found.astype("<u8").tobytes(), {}

    def root(self, requested: Request, table: str, node: str) -> tuple[int, Any, dict[str, str]]:
        return (
            200,
            {"root_id": int(self.server.graph.roots(np.array([int(node)], np.uint64), self._when(requested))[0])},
            JSON,
        )

    def leaves(self, requested: Request, table: str, node: str) -> tuple[int, Any, dict[str, str]]:
        graph = self.server.graph
        state = graph.state(graph.made.get(int(node), BEGIN))
        return 200, {"leaf_ids": [int(i) for i in graph.ids[state == np.uint64(int(node))]]}, JSON

    def latest(self, requested: Request, table: str) -> tuple[int, Any, dict[str, str]]:
        state = self.server.graph.state(self._when(requested))
        current = set() if state is None else set(np.unique(state).tolist())
        return 200, {"is_latest": [i in current for i in json.loads(requested.body)["node_ids"]]}, JSON

    def timestamps(self, requested: Request, table: str) -> tuple[int, Any, dict[str, str]]:
        made = self.server.graph.made
        return 200, {"timestamp": [made[i] for i in json.loads(requested.body)["node_ids"] if i in made]}, JSON

    def oldest(self, requested: Request, table: str) -> tuple[int, Any, dict[str, str]]:
        return 200, {"iso": str(datetime.fromtimestamp(self.server.graph.oldest, UTC))}, JSON

    def lineage(self, requested: Request, table: str) -> tuple[int, Any, dict[str, str]]:
        past, future = (
            float(requested.query.get(f"timestamp_{w}", d)) for w, d in (("past", 0), ("future", time.time()))
        )
        return 200, self.server.graph.lineage(json.loads(requested.body)["root_ids"], past, future), JSON

    def version_numbers(self, requested: Request, name: str) -> tuple[int, Any, dict[str, str]]:
        return 200, sorted(self.server.versions), JSON

    def version(self, requested: Request, name: str, number: str) -> tuple[int, Any, dict[str, str]]:
        if int(number) not in self.server.versions:
            return 404, {"message": "version not found"}, JSON
        return 200, self._version_entry(name, int(number)), JSON

    def all_versions(self, requested: Request, name: str) -> tuple[int, Any, dict[str, str]]:
        return 200, [self._version_entry(name, number) for number in self.server.versions], JSON

    def _version_entry(self, name: str, number: int) -> dict[str, Any]:
        when = datetime.fromtimestamp(self.server.versions[number], UTC).replace(tzinfo=None)
        found = {"version": number, "time_stamp": when.isoformat(timespec="microseconds"), "valid": True, "id": number}
        found |= {"expires_on": "2121-01-01T00:00:00.000001", "is_merged": True, "status": "AVAILABLE"}
        return found | {"datastack": name, "parent_version": self.server.parent_version}

    def rows(self, requested: Request, name: str, number: str, place: str) -> tuple[int, Any, dict[str, str]]:
        return self.server.tables.answer(self.server, requested, place, int(number), self.server.versions)

    def live_rows(self, requested: Request, name: str) -> tuple[int, Any, dict[str, str]]:
        return self.server.tables.query_live(self.server, json.loads(requested.body))

    def _when(self, requested: Request) -> float:
        return float(requested.query.get("timestamp", time.time()))


JSON = {"Content-Type": "application/json"}
# Materialization versions: one between the two edits, one after both.
VERSIONS = {7: MERGE + 0.125, 9: SPLIT + 10}
_TABLE = "/segmentation/api/v1/table/([^/]+)"
ROUTES = [
    ("/info/api/v2/datastack/full/([^/]+)", Handler.datastack),
    ("/segmentation/table/([^/]+)/info", Handler.table_info),
    (f"{_TABLE}/roots_binary", Handler.roots),
    (f"{_TABLE}/node/(\\d+)/root", Handler.root),
    (f"{_TABLE}/node/(\\d+)/leaves", Handler.leaves),
    (f"{_TABLE}/is_latest_roots", Handler.latest),
    (f"{_TABLE}/root_timestamps", Handler.timestamps),
    (f"{_TABLE}/oldest_timestamp", Handler.oldest),
    (f"{_TABLE}/lineage_graph_multiple", Handler.lineage),
    ("/materialize/api/v3/datastack/([^/]+)/versions", Handler.version_numbers),
    ("/materialize/api/v3/datastack/([^/]+)/metadata", Handler.all_versions),
    ("/materialize/api/v3/datastack/([^/]+)/query", Handler.live_rows),
    ("/materialize/api/v[23]/datastack/([^/]+)/version/(\\d+)/(.+)", Handler.rows),
    ("/materialize/api/v3/datastack/([^/]+)/version/(\\d+)", Handler.version),
]


@contextmanager
def serving_cave(folder: Path, tissue: Tissue, info: dict[str, Any]) -> Iterator[CaveServer]:
    """Run a CAVE deployment on 127.0.0.1."""
    server = CaveServer(folder, tissue, info)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def stall_forever() -> tuple[Any, str]:
    """Return a socket that accepts connections and never responds, and its URL."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"
