"""Compare thousands of cutouts of a volume on a server with latency with a loop of CloudVolume downloads."""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import functools
import json
import multiprocessing
import re
import resource
import shutil
import tempfile
import threading
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import dask
import dask.array as da
import numpy as np
import psutil
import xarray as xr

import imageryxr as ix
from benchmarks import work

RESOLUTION = (8, 8, 40)
LATENCY = 0.05
_CHUNK = re.compile(r"(\d+-\d+)_\d+-\d+_\d+-\d+$")
THREADS = 4
REQUESTS = "requests"
"""The path at which the server answers with the number of chunks that it has sent."""


async def _answer(folder: Path, sent: Counter[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the GET requests of one connection with files of a folder, each after the latency."""
    with contextlib.suppress(ConnectionError):
        while (line := await reader.readline()).strip():
            while (await reader.readline()).strip():
                pass
            name = line.split()[1].decode().lstrip("/")
            if name == REQUESTS:
                body: bytes | None = str(sum(sent.values())).encode()
            else:
                await asyncio.sleep(LATENCY)
                body = _read(folder, name)
                sent[name] += _CHUNK.search(name) is not None
            status = "404 Not Found" if body is None else "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body or b'')}\r\n\r\n".encode() + (body or b""))
            await writer.drain()
    writer.close()


def _read(folder: Path, name: str) -> bytes | None:
    """Return a file. The chunks of all y and z are those of the first, so that the folder is small."""
    file = folder / _CHUNK.sub(r"\1_0-64_0-64", name)
    return file.read_bytes() if file.is_file() else None


def _serve(folder: str, connection: Any) -> None:
    async def run() -> None:
        server = await asyncio.start_server(
            functools.partial(_answer, Path(folder), Counter()), "127.0.0.1", 0, backlog=1024
        )
        connection.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@lru_cache(maxsize=2)
def remote_volume(shape: tuple[int, int, int]) -> str:
    """Return the address of an image of 64³ raw chunks on a server of another process, with latency.

    Parameters
    ----------
    shape : tuple of 3 int
        Voxels (z, y, x), multiples of 64.
    """
    folder = tempfile.mkdtemp(prefix="imageryxr-cutouts-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 64), dtype=np.uint8)
    values = np.tile(noise, (1, 1, shape[2] // 64))
    values += (np.arange(shape[2]) // 64).astype(np.uint8)
    array = xr.DataArray(values, ix.Grid(values.shape, RESOLUTION, (0, 0, 0)).coords(), ("z", "y", "x"), "image")
    ix.export(array, f"precomputed://{folder}/image", chunks=(64, 64, 64), levels=1, progress=False)
    info = Path(folder, "image", "info")
    described = json.loads(info.read_text())
    described["scales"][0]["size"] = list(shape[::-1])
    info.write_text(json.dumps(described))
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


class _Sink:
    """A target of `dask.array.store` that keeps nothing and prints the memory of the process."""

    def __init__(self, steps: set[int]) -> None:
        self.steps, self.count, self.lock = steps, 0, threading.Lock()

    def __setitem__(self, index: Any, block: np.ndarray[Any, Any]) -> None:
        with self.lock:
            for _ in range(len(block)):
                self.count += 1
                if self.count in self.steps:
                    used = psutil.Process().memory_info().rss / 1e6
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
                    print(f"{self.count:,} cutouts: {used:,.0f} MB in use, peak {peak:,.0f} MB", flush=True)


def _requests(url: str) -> int:
    with urllib.request.urlopen(f"{url.rpartition('/')[0]}/{REQUESTS}") as answer:
        return int(answer.read())


def main(count: int, compared: int) -> None:
    """Print the plan of many cutouts, the memory and the requests while they are computed, and the time of the peer.

    The peer cuts out the first boxes only; the times per cutout are compared.
    """
    one = Cutouts()
    # As dense as 400 cutouts in 256 × 1024 × 1024 voxels.
    side = max(1024, 256 * round((count / 400) ** (1 / 3) * 4))
    one.count, one.shape = count, (side // 4, side, side)  # type: ignore[misc]
    one.setup()
    plan = ix.plan_export(one.boxes, "boxes.zarr", workers=THREADS)
    print(f"{plan}\n{plan.requests:,} requests planned, {psutil.Process().memory_info().rss / 1e6:,.0f} MB before")
    sink = _Sink({count // 10, count // 2, count})
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        ours = work.mean_seconds(lambda: da.store(one.boxes.data, sink, lock=False)) / count
    sent = _requests(one.url)
    print(f"{sent:,} requests sent; {count} cutouts in {ours * count:.1f} s")
    one.centers = one.centers[:compared]
    peer = work.mean_seconds(one.peer) / compared
    print(f"CloudVolume: {compared} cutouts in {peer * compared:.1f} s, {_requests(one.url) - sent:,} requests")
    print(f"{ours * 1e3:.1f} and {peer * 1e3:.1f} ms per cutout: {peer / ours:.2f} times as fast")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="number of cutouts")
    parser.add_argument("--compared", type=int, default=400, help="number of cutouts of the peer")
    chosen = parser.parse_args()
    main(chosen.count, min(chosen.count, chosen.compared))
