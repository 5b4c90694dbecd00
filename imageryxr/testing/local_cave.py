"""Serve a CAVE datastack on this machine, for examples and tests without a network or an account.

The server implements the requests that reading needs: those of the info service, of the chunked graph (roots and
history), and of the storage of both layers. It has one user, whose token is `TOKEN`, and no materializations.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import numpy.typing as npt
import xarray as xr

TOKEN = "0123456789abcdef0123456789abcdef"

_BEGIN = datetime(2023, 11, 14, tzinfo=UTC).timestamp()
_CHUNK = 32  # the chunks of the graph; supervoxels do not extend across their borders
_LAYERS = 4
_TABLE_PATH = "/segmentation/api/v1/table/cells"

Ids = npt.NDArray[np.uint64]


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # clients retry connections beyond the queue only after a second


class LocalCave:
    """Serve an image and its cells as the CAVE datastack ``"sample"``, and edit its graph.

    Each cell is split into supervoxels along chunks of 32 voxels. The history begins on 14 November 2023.

    Parameters
    ----------
    volume : Dataset
        Variables ``image`` and ``segmentation`` on one grid, for example from `align`. They are computed and written to
        a temporary folder.

    Attributes
    ----------
    datastack : str
        The name of the datastack.
    address : str
        The address of its info service.
    table : str
        The ``graphene://`` address of its segmentation.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
    >>> box = ix.BBox.around((4600, 2560, 130), (64, 64, 8), resolution=(8, 8, 40))
    >>> with LocalCave(ix.align(em, seg, bbox=box)) as cave:
    ...     tree = ix.open_datastack(cave.datastack, server_address=cave.address, token=TOKEN)
    ...     len(ix.unique_ids(tree["segmentation/segmentation"])) > 1
    True
    """

    datastack = "sample"

    def __init__(self, volume: xr.Dataset) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._resolution, offset = _placement(volume.segmentation)
        supervoxels, cells = _supervoxels(volume.segmentation.values)
        self._ids = np.unique(supervoxels[supervoxels > 0])
        self._times: dict[int, float] = {}  # the creation time of each root
        self._links: list[tuple[int, int]] = []  # pairs of an old and a new root
        numbers = np.zeros(len(self._ids), np.uint64)
        numbers[np.searchsorted(self._ids, supervoxels[cells > 0])] = cells[cells > 0]
        roots = {int(n): self._new_root(_BEGIN) for n in np.unique(numbers)}
        self._states = [(_BEGIN, np.array([roots[int(n)] for n in numbers], np.uint64))]
        _write_layer(Path(self._folder.name, "image"), "image", volume.image.values, self._resolution, offset)
        self._info = _write_layer(
            Path(self._folder.name, "supervoxels"), "segmentation", supervoxels, self._resolution, offset
        )
        self._server = _Server(("127.0.0.1", 0), _handler_class(self))
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.table = f"graphene://{self.address}/segmentation/table/cells"

    def merge(self, a: int, b: int, timestamp: str) -> int:
        """Merge two roots at a timestamp, and return the new root.

        Parameters
        ----------
        a, b : int
            Current roots.
        timestamp : str
            ISO 8601 with a time zone, later than all previous edits.

        Returns
        -------
        int
            The merged root.
        """
        when = datetime.fromisoformat(timestamp).timestamp()
        before, state = self._states[-1]
        merged = np.isin(state, np.array([a, b], np.uint64))
        if when <= before or len(np.unique(state[merged])) != 2:
            raise ValueError("merge needs two current roots and a timestamp after the last edit")
        root = self._new_root(when)
        self._links += [(int(a), root), (int(b), root)]
        self._states.append((when, np.where(merged, np.uint64(root), state)))
        return root

    def close(self) -> None:
        """Stop the server and remove its files."""
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()

    def __enter__(self) -> LocalCave:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _new_root(self, when: float) -> int:
        root = (_LAYERS << 56) | (len(self._times) + 1)
        self._times[root] = when
        return root

    def _state(self, when: float) -> Ids:
        past = [roots for instant, roots in self._states if instant <= when]
        return past[-1] if past else np.zeros(len(self._ids), np.uint64)

    # --- responses ---

    def _respond(self, path: str, query: dict[str, str], body: bytes) -> Any:
        """Return the response to a request: bytes, a value for JSON, or None for an unknown path."""
        when = float(query.get("timestamp", time.time()))
        responses: dict[str, Callable[[], Any]] = {
            "/info/api/v2/datastack/full/sample": self._datastack_info,
            "/segmentation/table/cells/info": self._table_info,
            "/segmentation/api/versions": lambda: [0, 1],
            "/segmentation/api/version": lambda: "2.21.1",
            "/info/api/versions": lambda: [2],
            "/info/version": lambda: "4.7.2",
            f"{_TABLE_PATH}/roots_binary": lambda: self._roots(np.frombuffer(body, "<u8"), when),
            f"{_TABLE_PATH}/oldest_timestamp": lambda: {"iso": str(datetime.fromtimestamp(_BEGIN, UTC))},
            f"{_TABLE_PATH}/is_latest_roots": lambda: {
                "is_latest": np.isin(np.array(json.loads(body)["node_ids"], np.uint64), self._state(when)).tolist()
            },
            f"{_TABLE_PATH}/root_timestamps": lambda: {
                "timestamp": [self._times[i] for i in json.loads(body)["node_ids"] if i in self._times]
            },
            f"{_TABLE_PATH}/lineage_graph_multiple": lambda: self._lineage(json.loads(body)["root_ids"], query),
        }
        if path in responses:
            return responses[path]()
        file = Path(self._folder.name, path.removeprefix("/data/"))
        if re.fullmatch(r"/data(/[\w-]+)+", path) and file.is_file():
            return file.read_bytes()
        leaves = re.fullmatch(rf"{_TABLE_PATH}/node/(\d+)/leaves", path)
        if leaves:
            root = int(leaves[1])
            members = self._ids[self._state(self._times.get(root, _BEGIN)) == np.uint64(root)]
            return {"leaf_ids": [int(i) for i in members]}
        return None

    def _datastack_info(self) -> dict[str, Any]:
        x, y, z = (float(r) for r in self._resolution)
        return {
            "aligned_volume": {"id": 1, "name": "sample", "image_source": f"precomputed://{self.address}/data/image"},
            "segmentation_source": self.table,
            "local_server": self.address,
            "viewer_resolution_x": x,
            "viewer_resolution_y": y,
            "viewer_resolution_z": z,
        }

    def _table_info(self) -> dict[str, Any]:
        graph = {
            "chunk_size": [_CHUNK] * 3,
            "n_bits_for_layer_id": 8,
            "cv_mip": 0,
            "n_layers": _LAYERS,
            "spatial_bit_masks": {str(layer): 10 for layer in range(1, _LAYERS + 1)},
        }
        return self._info | {
            "data_dir": f"precomputed://{self.address}/data/supervoxels",
            "graph": graph,
            "app": {"supported_api_versions": [0, 1]},
            "chunks_start_at_voxel_offset": True,
        }

    def _roots(self, nodes: npt.NDArray[Any], when: float) -> bytes:
        nodes = nodes.astype(np.uint64)
        place = np.minimum(np.searchsorted(self._ids, nodes), len(self._ids) - 1)
        roots = np.where(self._ids[place] == nodes, self._state(when)[place], np.uint64(0))
        is_root = (nodes >> np.uint64(56)) == _LAYERS
        return np.where(is_root, nodes, roots).astype("<u8").tobytes()

    def _lineage(self, roots: list[int], query: dict[str, str]) -> dict[str, Any]:
        past, future = float(query.get("timestamp_past", 0)), float(query.get("timestamp_future", time.time()))
        found, open_ends = set(roots), list(roots)
        while open_ends:
            root = open_ends.pop()
            near = {new if old == root else old for old, new in self._links if root in (old, new)}
            near = {r for r in near - found if past <= self._times[r] <= future}
            found |= near
            open_ends += near
        links = [{"source": old, "target": new} for old, new in self._links if old in found and new in found]
        nodes = [{"id": r, "timestamp": self._times[r], "operation_id": 1} for r in sorted(found)]
        return {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}


def _placement(array: xr.DataArray) -> tuple[list[float], list[int]]:
    """Return the resolution and the voxel offset of an array (x, y, z)."""
    resolution = [float(r) for r in array.attrs["resolution"]]
    offset = [round(float(array[d][0]) / r - 0.5) for d, r in zip("xyz", resolution, strict=True)]
    return resolution, offset


def _supervoxels(cells: npt.NDArray[Any]) -> tuple[Ids, Ids]:
    """Split cells into supervoxels along the chunks of the graph; return these, and a number for each cell."""
    names, inverse = np.unique(cells, return_inverse=True)
    numbers: Ids = inverse.reshape(cells.shape).astype(np.uint64) + np.uint64(names[0] > 0)
    z, y, x = (i.astype(np.uint64) // np.uint64(_CHUNK) for i in np.indices(cells.shape))
    chunk = (np.uint64(1) << np.uint64(56)) | (x << np.uint64(46)) | (y << np.uint64(36)) | (z << np.uint64(26))
    return np.where(numbers > 0, chunk | numbers, np.uint64(0)), numbers


def _write_layer(
    path: Path, layer_type: str, values: npt.NDArray[Any], resolution: list[float], offset: list[int]
) -> dict[str, Any]:
    """Write an array (z, y, x) as a precomputed layer, and return its ``info``."""
    from cloudvolume import CloudVolume

    scale = {
        "key": "0",
        "size": list(values.shape[::-1]),
        "resolution": resolution,
        "voxel_offset": offset,
        "chunk_sizes": [[_CHUNK] * 3],
        "encoding": "raw",
    }
    info = {"type": layer_type, "data_type": str(values.dtype), "num_channels": 1, "scales": [scale]}
    layer = CloudVolume(f"precomputed://file://{path}", info=info, compress=False, progress=False)
    layer.commit_info()
    layer[:, :, :] = values.T[..., None]
    return info


def _handler_class(cave: LocalCave) -> type[BaseHTTPRequestHandler]:
    """Return the class of the request handler of a datastack."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # otherwise bodies wait 40 ms for an acknowledgement

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if url.path.startswith("/data/") or self.headers.get("Authorization") == f"Bearer {TOKEN}":
                value = cave._respond(url.path, query, body)
                self._send(200 if value is not None else 404, value)
            else:
                self._send(401, {"message": "unknown token"})

        def do_POST(self) -> None:
            self.do_GET()

        def do_HEAD(self) -> None:
            self.do_GET()

        def _send(self, status: int, value: Any) -> None:
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    return Handler
