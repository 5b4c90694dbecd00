"""Compare cutouts of a graphene segmentation with reads of its supervoxels, and with CloudVolume.

The CAVE deployment of the tests serves the segmentation in a separate process.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import work
from imageryxr.core.bbox import IndexBox
from imageryxr.sources.cave import root_cache
from imageryxr.sources.resolve import resolve_source

_beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "fib25" / "fib25_medulla_250.npz"
FIB25 = Path(os.environ.get("IMAGERYXR_FIB25", _beside))
WHEN = 1_760_000_000


def tissue(side: int) -> Any:
    """Return 20,000 supervoxels in 256³ voxels: those of FIB-25 if its file exists, otherwise deformed cubes."""
    from tests.support.cave_server import Tissue, encode_ids, fib25_tissue

    if side == 256 and FIB25.exists():
        real = fib25_tissue(FIB25)
        em, voxels = (np.pad(a, ((0, 6),) * 3, mode="wrap") for a in (real.em, real.supervoxels))
        return Tissue(em, voxels, real.ids, real.bodies)
    z, y, x = np.indices((side, side, side), np.float32)
    bent = [(a + 2 * np.sin(b / 5) + 2 * np.sin(c / 7)) // 9.4 + 1 for a, b, c in ((z, y, x), (y, x, z), (x, z, y))]
    labels = ((bent[0] * 64 + bent[1]) * 64 + bent[2]).astype(np.uint64)
    voxels, ids, old = encode_ids(labels)
    return Tissue((labels % np.uint64(251)).astype(np.uint8), voxels, ids, old.astype(np.int64) // 40 + 1)


def serve(side: int, connection: Any) -> None:
    """Serve the segmentation until the parent process ends; send the address."""
    from tests.support.cave_server import CaveServer, write_layers

    with tempfile.TemporaryDirectory() as folder:
        cells = tissue(side)
        server = CaveServer(Path(folder), cells, write_layers(Path(folder), cells))
        connection.send(server.url)
        server.serve_forever()


@lru_cache(maxsize=2)
def deployment(side: int) -> tuple[str, Any]:
    """Return the address of a deployment, and its process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=serve, args=(side, sender), daemon=True)
    process.start()
    return receiver.recv(), process


class _Joined(work.Work):
    def setup(self, *params: Any) -> None:
        from tests.support.cave_server import OFFSET, TABLE, TOKEN

        self.side = 64 if self.small else 256
        url, _ = deployment(self.side)
        self.table = f"graphene://{url}/segmentation/table/{TABLE}"
        self.joined = resolve_source(self.table, None, token=TOKEN, timestamp=WHEN)
        self.stored = resolve_source(self.table, None, token=TOKEN, agglomerate=False)
        self.box = IndexBox.of_shape((self.side,) * 3)
        self.place, self.token = tuple(slice(o, o + self.side) for o in OFFSET), TOKEN

    def ours(self) -> Any:
        root_cache.clear_roots()  # otherwise only the first round would request roots
        return self.joined.read(0, self.box)


class JoinedBesideStored(_Joined):
    title = "roots of 256³ voxels, 20,000 supervoxels"
    peer_name = "the same read without roots"
    at_least = 1 / 1.3
    rounds = 15

    def peer(self) -> Any:
        return self.stored.read(0, self.box)


class JoinedBesideCloudVolume(_Joined):
    title = "roots of 256³ voxels, 20,000 supervoxels"
    peer_name = "CloudVolume.download(agglomerate=True)"

    def setup(self, *params: Any) -> None:
        from cloudvolume import CloudVolume

        super().setup(*params)
        self.volume = CloudVolume(self.table, secrets=self.token, use_https=True, progress=False, bounded=False)

    def peer(self) -> Any:
        return np.asarray(self.volume.download(self.place, agglomerate=True, timestamp=WHEN))
