"""Compare remote reads with CloudVolume, TensorStore and zarr-python: ``python -m benchmarks.remote [WORD ...]``.

A server in another process answers each request after 50 ms, at 200 MB/s altogether. The tools read in turn, each from
a new port and without a cache, so that no connection or chunk is warm. The table shows medians of wall seconds, CPU
seconds of the client, requests, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import pictures

WHOLE, CHUNK = (64, 1088, 1088), (64, 64, 64)  # 17 × 17 chunks = 289
BOXES = {
    "slice": (32, 33, 32, 1056, 32, 1056), "cube": (0, 64, 288, 800, 288, 800),
    "large": (0, 128, 64, 2112, 64, 2112),
}  # fmt: skip
"""Boxes as (z, z, y, y, x, x): a 1024² slice that touches 289 chunks, 512×512×64, and 2048²×128 of larger data."""
NGFF = {"zarr04": 2, "zarr05": 3, "zarr05sharded": 3}
LAYOUTS = ("raw", "raw64", "jpeg", "cseg", "sharded", *NGFF)
TOOLS = ("ours", "cloudvolume", "tensorstore", "zarr")


# ---------------------------------------------------------------------------------------------------------
# data


def write_all(folder: Path, layouts: Sequence[str] = LAYOUTS, repeats: int = 1) -> None:
    """Write the image or the segmentation, repeated along each axis, in each layout that the folder does not have."""
    encodings = {"raw": "raw", "raw64": "raw", "jpeg": "jpeg", "cseg": "compressed_segmentation"}
    for name in layouts:
        if (folder / name).exists():
            continue
        is_image = name in NGFF or name in ("raw", "jpeg")
        values = np.tile(pictures.grey(WHOLE) if is_image else pictures.cells(WHOLE, 400), (repeats,) * 3)
        if name in encodings:
            write_precomputed(folder / name, values, encodings[name])
        elif name in NGFF:
            write_zarr(folder / name, values, NGFF[name], is_sharded=name.endswith("sharded"))
        else:
            write_sharded(folder / name, values)


def _info(values: NDArray[Any], encoding: str) -> dict[str, Any]:
    scale = {
        "key": "s0", "size": list(values.shape[::-1]), "resolution": [8, 8, 40], "voxel_offset": [0, 0, 0],
        "chunk_sizes": [list(CHUNK)], "encoding": encoding,
    }  # fmt: skip
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    kind = "segmentation" if values.dtype.itemsize > 1 else "image"
    return {
        "@type": "neuroglancer_multiscale_volume", "type": kind, "data_type": str(values.dtype), "num_channels": 1,
        "scales": [scale],
    }  # fmt: skip


def write_precomputed(folder: Path, values: NDArray[Any], encoding: str) -> None:
    """Write an unsharded precomputed layer."""
    from cloudvolume import CloudVolume

    volume = CloudVolume(f"precomputed://file://{folder}", info=_info(values, encoding), compress=False, progress=False)
    volume.commit_info()
    volume[:, :, :] = values.T[..., None]


def write_sharded(folder: Path, values: NDArray[Any]) -> None:
    """Write a precomputed layer of compressed_segmentation with four shards."""
    from cloudvolume import chunks
    from cloudvolume.datasource.precomputed.common import compressed_morton_code
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, synthesize_shard_files

    info = _info(values, "compressed_segmentation")
    info["scales"][0]["sharding"] = {
        "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 5, "hash": "identity", "minishard_bits": 2,
        "shard_bits": 2, "minishard_index_encoding": "gzip", "data_encoding": "gzip",
    }  # fmt: skip
    counts = [-(-n // c) for n, c in zip(values.shape[::-1], CHUNK, strict=True)]
    bodies = {}
    for point in np.ndindex(*counts):
        cut = tuple(slice(p * c, (p + 1) * c) for p, c in zip(point, CHUNK, strict=True))
        part = np.asfortranarray(values.T[cut][..., None])
        bodies[int(compressed_morton_code(point, counts))] = chunks.encode(
            part, info["scales"][0]["encoding"], (8,) * 3
        )
    spec = ShardingSpecification.from_dict(info["scales"][0]["sharding"])
    (folder / "s0").mkdir(parents=True)
    (folder / "info").write_text(json.dumps(info))
    for name, body in synthesize_shard_files(spec, bodies).items():
        (folder / "s0" / name).write_bytes(body)


def write_zarr(folder: Path, values: NDArray[Any], version: int, *, is_sharded: bool) -> None:
    """Write an OME-Zarr image of one level."""
    import zarr

    options: dict[str, Any] = {"shards": (64, 512, 512)} if is_sharded else {}
    if version == 2:
        options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    group: Any = zarr.open_group(str(folder), mode="w", zarr_format=version)  # type: ignore[arg-type]
    stored = group.create_array("0", shape=values.shape, dtype=values.dtype, chunks=CHUNK, **options)
    stored[...] = values
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    steps = [{"type": "scale", "scale": [40, 8, 8]}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    if version == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [{**image, "version": "0.4"}]


# ---------------------------------------------------------------------------------------------------------
# tools: each returns the sum of the voxels, opening included


def read_ours(url: str, layout: str, box: tuple[int, ...]) -> int:
    import imageryxr as ix

    z0, z1, y0, y1, x0, x1 = box
    where = {"z": slice(z0, z1), "y": slice(y0, y1), "x": slice(x0, x1)}
    scheme = "zarr" if layout in NGFF else "precomputed"
    tree = ix.open_multiscale(f"{scheme}://{url}/{layout}", connection=_connection())
    values: Any = next(iter(tree["0"].data_vars.values())).isel(where).values
    return int(values.sum(dtype=np.uint64))


def _connection() -> Any:
    import imageryxr as ix

    try:
        return ix.Connection(memory_cache=0)  # type: ignore[call-arg, unused-ignore]
    except TypeError:
        return ix.Connection()


def read_cloudvolume(url: str, layout: str, box: tuple[int, ...]) -> int:
    from cloudvolume import CloudVolume

    z0, z1, y0, y1, x0, x1 = box
    volume = CloudVolume(f"precomputed://{url}/{layout}", progress=False, cache=False)
    return int(np.asarray(volume[x0:x1, y0:y1, z0:z1]).sum(dtype=np.uint64))


def read_tensorstore(url: str, layout: str, box: tuple[int, ...]) -> int:
    import tensorstore as ts

    z0, z1, y0, y1, x0, x1 = box
    drivers = {"zarr04": "zarr", "zarr05": "zarr3", "zarr05sharded": "zarr3"}
    driver = drivers.get(layout, "neuroglancer_precomputed")
    path = f"{url}/{layout}/0" if layout in NGFF else f"{url}/{layout}"
    spec: dict[str, Any] = {"driver": driver, "kvstore": {"driver": "http", "base_url": path}}
    if driver == "zarr":
        spec["metadata"] = {"dimension_separator": "/"}
    array = ts.open(spec, read=True, context=ts.Context()).result()
    whole = array[z0:z1, y0:y1, x0:x1] if layout in NGFF else array[x0:x1, y0:y1, z0:z1, 0]
    return int(whole.read().result().sum(dtype=np.uint64))


def read_zarr(url: str, layout: str, box: tuple[int, ...]) -> int:
    import zarr
    from obstore.store import HTTPStore
    from zarr.storage import ObjectStore

    z0, z1, y0, y1, x0, x1 = box
    store: Any = HTTPStore.from_url(f"{url}/{layout}/0", client_options={"allow_http": True})
    array: Any = zarr.open_array(ObjectStore(store, read_only=True), mode="r")
    return int(array[z0:z1, y0:y1, x0:x1].sum(dtype=np.uint64))


READERS: dict[str, Callable[[str, str, tuple[int, ...]], int]] = {
    "ours": read_ours, "cloudvolume": read_cloudvolume, "tensorstore": read_tensorstore, "zarr": read_zarr,
}  # fmt: skip


def can_read(tool: str, layout: str) -> bool:
    """Return whether a tool reads a layout."""
    return {"cloudvolume": layout not in NGFF, "zarr": layout in NGFF}.get(tool, True)


# ---------------------------------------------------------------------------------------------------------
# measurement


def worker(tool: str) -> None:
    """Read what each line of the input states, and print the seconds, the CPU seconds and the sum."""
    for line in sys.stdin:
        url, layout, box = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        total = READERS[tool](url, layout, tuple(box))
        found = [time.perf_counter() - wall, time.process_time() - cpu, total]
        print(json.dumps([*found, peak_memory()]), flush=True)


def peak_memory() -> float:
    """Return the largest memory of this process so far in MB."""
    # `resource` reports the peak of the parent process before the start of this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


class Tool:
    """A process that reads with one tool."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.remote", "--worker", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self, url: str, layout: str, box: tuple[int, ...]) -> list[float]:
        """Return wall and CPU seconds, the sum of the voxels, and the peak memory so far in MB."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([url, layout, list(box)]) + "\n")
        self.process.stdin.flush()
        found: list[float] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def measure(folder: Path, layout: str, box: tuple[int, ...], rounds: int) -> list[str]:
    """Return a line of the table per tool."""
    from tests.support.latency_server import LatencyServer

    tools = [Tool(name) for name in TOOLS if can_read(name, layout)]
    rows: dict[str, list[list[float]]] = {tool.name: [] for tool in tools}
    for number in range(rounds + 1):  # the first round imports modules
        # On a virtual machine the first tool may take seconds longer for memory that the host hands out again.
        first = number % len(tools)
        for tool in tools[first:] + tools[:first]:
            with LatencyServer(folder) as server:
                found = tool.read(server.url, layout, box)
                rows[tool.name].append([*found, server.counts()["requests"]])
    for tool in tools:
        tool.close()
    assert len({row[2] for found in rows.values() for row in found}) == 1, "the tools read different voxels"
    ours, lines = rows["ours"][1:], []
    for name, found in rows.items():
        wall, cpu, _, memory, requests = (statistics.median(row[i] for row in found[1:]) for i in range(5))
        ratio = statistics.median(a[0] / b[0] for a, b in zip(ours, found[1:], strict=True))
        lines.append(f"| {name} | {wall:.2f} | {cpu:.2f} | {requests:.0f} | {memory:.0f} | {ratio:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="layouts to measure; default: all")
    parser.add_argument("--box", choices=BOXES, default="slice")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder of the written data, kept for the next run")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, is_large = given.data or Path(temporary), given.box == "large"
        folder = folder / "large" if is_large else folder
        write_all(folder, given.words or LAYOUTS, 2 if is_large else 1)
        print("| tool | wall s | CPU s | requests | peak MB | ours / tool |\n|---|---|---|---|---|---|")
        for layout in given.words or LAYOUTS:
            print(f"| **{layout}**, {given.box} | | | | | |", flush=True)
            print("\n".join(measure(folder, layout, BOXES[given.box], given.rounds)), flush=True)


if __name__ == "__main__":
    main()
