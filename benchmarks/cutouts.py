"""Compare thousands of cutouts of a volume on a server with latency with a loop of CloudVolume downloads."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import multiprocessing
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import dask
import numpy as np
import xarray as xr

import imageryxr as ix
from benchmarks import work

RESOLUTION = (8, 8, 40)
LATENCY = 0.05
THREADS = 4


async def _answer(folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the GET requests of one connection with files of a folder, each after the latency."""
    with contextlib.suppress(ConnectionError):
        while (line := await reader.readline()).strip():
            while (await reader.readline()).strip():
                pass
            await asyncio.sleep(LATENCY)
            file = folder / line.split()[1].decode().lstrip("/")
            is_file = file.is_file()
            body = file.read_bytes() if is_file else b""
            status = "200 OK" if is_file else "404 Not Found"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
    writer.close()


def _serve(folder: str, connection: Any) -> None:
    async def run() -> None:
        server = await asyncio.start_server(functools.partial(_answer, Path(folder)), "127.0.0.1", 0, backlog=1024)
        connection.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@lru_cache(maxsize=2)
def remote_volume(shape: tuple[int, int, int]) -> str:
    """Return the address of an image (z, y, x) of 64³ raw chunks on a server of another process, with latency."""
    folder = tempfile.mkdtemp(prefix="imageryxr-cutouts-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 64), dtype=np.uint8)
    values = np.tile(noise, [-(-n // 64) for n in shape])[: shape[0], : shape[1], : shape[2]]
    values += (np.arange(shape[2]) // 64).astype(np.uint8)
    array = xr.DataArray(values, ix.Grid(shape, RESOLUTION, (0, 0, 0)).coords(), ("z", "y", "x"), "image")
    ix.export(array, f"precomputed://{folder}/image", chunks=(64, 64, 64), levels=1, progress=False)
    mine, other = multiprocessing.get_context("spawn").Pipe()
    multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, other), daemon=True).start()
    return f"http://127.0.0.1:{mine.recv()}/image"


class Cutouts(work.Work):
    title = "cutouts of 128 × 128 × 16 from a server with 50 ms latency, 4 threads"
    peer_name = "a loop of CloudVolume downloads in 4 threads"
    at_least = 5.0
    rounds = 1
    count: ClassVar[int] = 400
    shape: ClassVar[tuple[int, int, int]] = (256, 1024, 1024)
    size: ClassVar[tuple[int, int, int]] = (128, 128, 16)

    def setup(self, *params: Any) -> None:
        from cloudvolume import CloudVolume

        if self.small:
            self.count, self.shape, self.size = 4, (64, 128, 128), (32, 32, 4)  # type: ignore[misc]
        self.url = remote_volume(self.shape)
        self.volume = CloudVolume(f"precomputed://{self.url}", progress=False, bounded=False, fill_missing=True)
        low, high = np.array(self.size) // 2, np.array(self.shape[::-1]) - np.array(self.size) // 2
        self.centers = np.random.default_rng(1).integers(low, high + 1, (self.count, 3))
        image = ix.open_image(f"precomputed://{self.url}", connection=ix.Connection(concurrency=64))
        self.boxes = ix.cutouts(image, self.centers, self.size, resolution=RESOLUTION)

    def ours(self) -> Any:
        with dask.config.set(scheduler="threads", num_workers=THREADS):
            return self.boxes.compute().values

    def peer(self) -> Any:
        from cloudvolume import Bbox

        def one(center: Any) -> Any:
            low = center - np.array(self.size) // 2
            return np.asarray(self.volume.download(Bbox(low, low + self.size), mip=0))[..., 0].T

        with ThreadPoolExecutor(THREADS) as pool:
            return np.stack(list(pool.map(one, self.centers)))

    def measure(self) -> work.Measured:
        """Time both once: a round of the peer takes minutes."""
        ours, peer = work.mean_seconds(self.ours), work.mean_seconds(self.peer)
        return work.Measured(ours, peer, peer / ours)


if __name__ == "__main__":
    one = Cutouts()
    one.setup()
    print(ix.plan_export(one.boxes, "boxes.zarr", workers=THREADS))
    print(one.measure())
