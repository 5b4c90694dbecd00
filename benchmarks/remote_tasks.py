"""Measure tasks of one user on a distant server: ``python -m benchmarks.remote_tasks [TASK ...] [--rounds 5]``.

The server is that of `benchmarks.remote`: 50 ms, 200 MB/s. Each task is compared with a task that bounds it, in turn,
and each measurement uses a server on a new port, so that nothing is warm except what the task itself has read. The
table shows medians of seconds, CPU seconds of the client and requests, the median of the ratios of the rounds, and the
peak memory of the process so far.

| task | compared with | target |
|---|---|---|
| figure of layers of one service, and of two | the slower of its two layers alone | ≤ 1.15 |
| scroll: 64 slices, default cache | one read of the box | ≤ 1.1, each object once |
| again: a second figure of the same layers | the first | ≤ 0.2, no request |
| opening | a round trip | 1 with a scheme, ≤ 2 without |
| export: 512 × 1024² | the same export from the local disk | ≤ 1.11 |
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import imageryxr as ix
from benchmarks import pictures, remote

LATENCY = 0.05
DEEP = (512, 1088, 1088)
SLICE = {"z": slice(32, 33), "y": slice(32, 1056), "x": slice(32, 1056)}
UNCACHED = ix.Connection(memory_cache=0)


class Cost(NamedTuple):
    """The cost of one measurement."""

    wall: float
    cpu: float
    requests: int
    most: int = 0
    """Largest number of requests for one object; ranges of one shard count as one object each."""


def measure_cost(folder: Path, prepare: Callable[[str], Callable[[], object]], *, is_local: bool = False) -> Cost:
    """Return the cost of the function that ``prepare`` returns for the address of the folder."""
    from imageryxr.sources.fetch import memory_cache
    from tests.support.latency_server import LatencyServer

    # Each measurement begins with an empty cache, and takes its memory from the operating system as a new process does.
    memory_cache.cache.clear()
    ctypes.CDLL(None).malloc_trim(0)
    if is_local:
        work = prepare(str(folder))
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return Cost(time.perf_counter() - wall, time.process_time() - cpu, 0)
    with LatencyServer(folder, LATENCY) as server:
        work = prepare(server.url)
        server.counts()
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        counts = server.counts()
        return Cost(wall, cpu, counts["requests"], max(counts["paths"].values(), default=0))


def layers(url: str, connection: ix.Connection, other: str = "") -> tuple[Any, Any]:
    """Return an image on the server, and a segmentation on the same or another one."""
    em = ix.open_image(f"precomputed://{url}/jpeg", connection=connection)
    return em, ix.open_segmentation(f"precomputed://{other or url}/cseg", connection=connection)


# ---------------------------------------------------------------------------------------------------------
# tasks: each yields one round as (name, cost, cost that bounds it)

Round = tuple[str, Cost, Cost]


def figure(folder: Path) -> Iterator[Round]:
    """A figure of two layers of one service and of two, and the slower layer.

    The layers of one service share its 64 requests in flight, so they take at least twice the round trips of one layer.
    """
    from tests.support.latency_server import LatencyServer

    def draw(url: str, other: str = "") -> Callable[[], object]:
        em, cells = layers(url, UNCACHED, other)
        return ix.overlay(em.isel(SLICE), cells.isel(SLICE)).compute

    alone = [measure_cost(folder, lambda url, i=i: layers(url, UNCACHED)[i].isel(SLICE).compute) for i in (0, 1)]
    slower = max(alone, key=lambda cost: cost.wall)
    yield "figure, one service", measure_cost(folder, draw), slower
    with LatencyServer(folder, LATENCY) as server:
        cost = measure_cost(folder, lambda url: draw(url, server.url))
        yield "figure, two services", cost._replace(requests=cost.requests + server.counts()["requests"] - 1), slower


def scroll(folder: Path) -> Iterator[Round]:
    """64 slices one after the other with the default cache, and one read of their box.

    A viewer releases each slice before the next. In the rows "slices kept" all slices stay in memory. That takes
    longer, because the operating system allocates a slice in small pages, but the box in large ones.
    """
    where = {"y": SLICE["y"], "x": SLICE["x"]}

    def slices(url: str, name: str) -> Callable[[], object]:
        em = ix.open_image(f"precomputed://{url}/{name}").isel(where)
        return lambda: [em.isel(z=slice(z, z + 1)).compute() for z in range(64)]

    def view(url: str, name: str) -> Callable[[], object]:
        em = ix.open_image(f"precomputed://{url}/{name}").isel(where)
        return lambda: [em.isel(z=z).values.shape for z in range(64)]

    def box(url: str, name: str) -> Callable[[], object]:
        return ix.open_image(f"precomputed://{url}/{name}").isel(where).compute

    for name in ("raw", "jpeg"):
        whole = measure_cost(folder, lambda url, name=name: box(url, name))
        for row, scrolled in ((f"scroll, {name}", view), (f"scroll, {name}, slices kept", slices)):
            cost = measure_cost(folder, lambda url, f=scrolled, name=name: f(url, name))
            assert cost.most == 1, "an object was requested twice"
            yield row, cost, whole


def repeat_figure(folder: Path) -> Iterator[Round]:
    """A second figure of the same layers, opened again."""
    costs = []

    def draw(url: str) -> Callable[[], object]:
        em, cells = layers(url, ix.Connection())
        return ix.overlay(em.isel(SLICE), cells.isel(SLICE)).compute

    def draw_again(url: str) -> Callable[[], object]:
        wall, cpu, work = time.perf_counter(), time.process_time(), draw(url)
        work()
        costs.append(Cost(time.perf_counter() - wall, time.process_time() - cpu, 0))
        return draw(url)

    second = measure_cost(folder, draw_again)
    assert second.requests == 0, "the second figure made requests"
    yield "again", second, costs[0]


def open_layers(folder: Path) -> Iterator[Round]:
    """Opening with and without a scheme, and one round trip."""
    for scheme, name in (("precomputed://", "raw"), ("zarr://", "zarr05"), ("", "raw"), ("", "zarr05")):
        cost = measure_cost(folder, lambda url, s=scheme, n=name: lambda: ix.open_multiscale(f"{s}{url}/{n}"))
        yield f"opening, {scheme}{name}", cost, Cost(LATENCY, 0, 1)


def export(folder: Path) -> Iterator[Round]:
    """An export of a deep image and segmentation from the server, and from the local disk."""
    for name in ("deepjpeg", "deepcseg"):
        opener = ix.open_image if name == "deepjpeg" else ix.open_segmentation

        def prepare_export(url: str, name: str = name, opener: Any = opener) -> Callable[[], object]:
            part = opener(f"precomputed://{url}/{name}").isel({"y": SLICE["y"], "x": SLICE["x"]})
            target = tempfile.mkdtemp()

            def run() -> None:
                ix.export(part, f"{target}/stack.ome.zarr", levels=1, progress=False)
                shutil.rmtree(target)

            return run

        yield (
            f"export, {name}",
            measure_cost(folder, prepare_export),
            measure_cost(folder, prepare_export, is_local=True),
        )


TASKS = {"figure": figure, "scroll": scroll, "again": repeat_figure, "opening": open_layers, "export": export}


def write_deep(folder: Path) -> None:
    """Write an image and a segmentation of 512 slices, which repeat 64 slices."""
    tiles = (DEEP[0] // remote.WHOLE[0], 1, 1)
    remote.write_precomputed(folder / "deepjpeg", np.tile(pictures.grey(remote.WHOLE), tiles), "jpeg")
    cells = np.tile(pictures.cells(remote.WHOLE, 400), tiles)
    remote.write_precomputed(folder / "deepcseg", cells, "compressed_segmentation")


def table(folder: Path, names: list[str], rounds: int) -> list[str]:
    """Return the lines of the table; the first round imports modules and is not counted."""
    lines = []
    for name in names:
        found: dict[str, list[tuple[Cost, Cost]]] = {}
        for number in range(rounds + 1):
            for row, cost, bound in TASKS[name](folder):
                if number:
                    found.setdefault(row, []).append((cost, bound))
        for row, pairs in found.items():
            wall, cpu, requests, _ = (statistics.median(cost[i] for cost, _ in pairs) for i in range(4))
            base = statistics.median(bound.wall for _, bound in pairs)
            ratio = statistics.median(cost.wall / bound.wall for cost, bound in pairs)
            peak = remote.peak_memory()
            lines.append(f"| {row} | {wall:.2f} | {cpu:.2f} | {requests:.0f} | {base:.2f} | {ratio:.2f} | {peak:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=f"tasks to measure: {json.dumps(list(TASKS))}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder of the written data, kept for the next run")
    given = parser.parse_args()
    names = given.tasks or list(TASKS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.data or Path(temporary)
        remote.write_all(folder, ("raw", "jpeg", "cseg", "zarr05"))
        if "export" in names and not (folder / "deepcseg").exists():
            write_deep(folder)
        print("| task | wall s | CPU s | requests | compared s | ratio | peak MB |\n|---|---|---|---|---|---|---|")
        for name in names:
            print("\n".join(table(folder, [name], given.rounds)), flush=True)


if __name__ == "__main__":
    main()
