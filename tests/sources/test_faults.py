"""Volumes of every format and encoding are read from a faulty server with the right values or with an `ImageryError`.

`IMAGERYXR_FAULT_RUNS` is the number of runs of all cases together (default 60), and `IMAGERYXR_FAULT_SEED` the seed of
the first: ``IMAGERYXR_FAULT_RUNS=500 pytest tests/sources/test_faults.py``. A failure prints its seed.

A bit that flips on the way from the disk of the server must cause an error if the store or the format has a checksum.
Without one, only the chunk or shard whose bytes changed may have wrong values.
"""

from __future__ import annotations

import os
import random
import re
import stat
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.core.grid import Grid
from imageryxr.sources.cave import root_cache
from imageryxr.sources.fetch import attempt, disk_cache, disk_reads, memory_cache
from imageryxr.sources.omezarr import chunk_layout
from tests.support import shards
from tests.support.annotations import random_annotations, write_levels
from tests.support.cave import BOX, NOW
from tests.support.cave_server import TOKEN
from tests.support.fault_server import FaultServer
from tests.support.omezarr import axes_of, level, write_ome
from tests.support.precomputed import write_layer
from tests.support.source_suite import noise

RUNS = int(os.environ.get("IMAGERYXR_FAULT_RUNS", "60"))
FIRST = int(os.environ.get("IMAGERYXR_FAULT_SEED", "0"))
TIMEOUT, RETRIES = 0.4, 3
LONGEST = 60
"""Seconds after which a run counts as stuck. A run makes few requests in sequence, each with all its retries."""
GRID = Grid((16, 32, 32), (8, 8, 40), (0, 0, 0))
Values = np.ndarray | xr.Dataset


@dataclass(frozen=True)
class Case:
    """A volume, how it is written, how it is read, and which bytes have checksums."""

    write: Callable[[Path], object]
    read: Callable[[str, ix.Connection], Values]
    has_checksums: bool = False
    """Whether the format has a checksum of each chunk."""
    region: Callable[[str], tuple[slice, ...] | None] = lambda path: None
    """Return the voxels that the object of a path holds, or None if it may affect any voxel."""
    stalls: bool = True
    """Whether responses may stall; links have the default timeout, which is long."""


def ids(shape: tuple[int, ...], dtype: str = "uint64") -> np.ndarray:
    small = np.random.default_rng(3).integers(1, 250, [n // 4 for n in shape], dtype=dtype)
    return np.kron(small, np.ones((4, 4, 4), dtype))


def second_channel_of(url: str, connection: ix.Connection) -> np.ndarray:
    return ix.open_image(url, channel=1, connection=connection).compute(scheduler="threads").values


def voxels_of(url: str, connection: ix.Connection) -> np.ndarray:
    opened = ix.open_multiscale(url, connection=connection)
    level = opened["scale0"] if "scale0" in opened else next(iter(opened.children.values()))
    return next(iter(level.data_vars.values())).compute(scheduler="threads").values


def named_region(path: str) -> tuple[slice, ...] | None:
    """Return the box in the name of a precomputed chunk."""
    found = re.search(r"/(\d+)-(\d+)_(\d+)-(\d+)_(\d+)-(\d+)$", path)
    if found is None:
        return None
    x0, x1, y0, y1, z0, z1 = map(int, found.groups())
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


def zarr_region(path: str) -> tuple[slice, ...] | None:
    """Return the box of a Zarr chunk of 8 × 16 × 16 voxels."""
    found = re.search(r"/(?:c/)?(\d+)[./](\d+)[./](\d+)$", path)
    return (
        None
        if found is None
        else tuple(slice(int(i) * c, int(i) * c + c) for i, c in zip(found.groups(), (8, 16, 16), strict=True))
    )


def precomputed_case(
    values: np.ndarray, encoding: str, *, kind: str = "image", compress: bool = False, **more: Any
) -> Case:
    def write(folder: Path) -> object:
        return write_layer(folder, [values], [GRID], kind=kind, encoding=encoding, compress=compress)

    return Case(write, voxels_of if values.ndim == 3 else second_channel_of, region=named_region, **more)


def zarr_case(version: str, *, region: Any = zarr_region, has_checksums: bool = False, **options: Any) -> Case:
    def write(folder: Path) -> None:
        multiscale = {"axes": axes_of("zyx"), "datasets": [level("s0", (40, 8, 8))]}
        write_ome(folder, [noise(GRID.shape, "uint16")], multiscale, version=version, chunks=(8, 16, 16), **options)

    return Case(write, voxels_of, has_checksums, region)


def annotation_case(sharding: dict[str, Any] | None) -> Case:
    def read(url: str, connection: ix.Connection) -> xr.Dataset:
        return ix.open_annotations(url, bbox=ix.BBox((-100, -150, -900), (150, 200, 1000)), connection=connection)

    return Case(lambda folder: write_levels(folder, "point", random_annotations("point"), sharding), read)


def write_link(folder: Path) -> None:
    write_layer(folder / "em", [noise(GRID.shape, "uint8")], [GRID], encoding="raw", compress=False)
    write_layer(folder / "seg", [ids(GRID.shape)], [GRID], kind="segmentation", encoding="raw", compress=False)


def read_link(url: str, connection: ix.Connection) -> xr.Dataset:
    layers = [
        {"type": "image", "name": "em", "source": f"precomputed://{url}/em"},
        {"type": "segmentation", "name": "seg", "source": f"precomputed://{url}/seg"},
    ]
    state = {
        "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
        "position": [16.5, 16.5, 8.5],
        "layers": layers,
    }
    tree = ix.open_neuroglancer(state, allow_local=True)
    return tree.imagery.view(size=(24, 20)).compute(scheduler="threads")


GZIPPED = shards.spec()
PLAIN = shards.spec(data="raw", index="raw")
CRC = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
CASES: dict[str, Case] = {
    "raw": precomputed_case(noise(GRID.shape, "uint8"), "raw"),
    "raw, three channels": precomputed_case(noise((3, *GRID.shape), "uint8"), "raw"),
    "raw ids, gzip": precomputed_case(ids(GRID.shape), "raw", kind="segmentation", compress=True),
    "jpeg": precomputed_case(noise(GRID.shape, "uint8"), "jpeg"),
    "png": precomputed_case(noise(GRID.shape, "uint8"), "png", has_checksums=True),
    "compressed_segmentation": precomputed_case(ids(GRID.shape), "compressed_segmentation", kind="segmentation"),
    "compresso": precomputed_case(ids(GRID.shape), "compresso", kind="segmentation"),
    "crackle": precomputed_case(ids(GRID.shape), "crackle", kind="segmentation"),
    "fpzip": precomputed_case(noise(GRID.shape, "uint8").astype("float32"), "fpzip"),
    "zfpc": precomputed_case(noise(GRID.shape, "uint8").astype("float32"), "zfpc"),
    "jxl": precomputed_case(noise(GRID.shape, "uint8"), "jxl"),
    "shards, gzip": Case(lambda folder: shards.write(folder, noise(shards.GRID.shape, "uint64"), GZIPPED), voxels_of),
    "shards, raw": Case(lambda folder: shards.write(folder, noise(shards.GRID.shape, "uint64"), PLAIN), voxels_of),
    "shards, compressed_segmentation": Case(
        lambda folder: shards.write(folder, noise(shards.GRID.shape, "uint64") % 7, GZIPPED, "compressed_segmentation"),
        voxels_of,
    ),
    "zarr 0.4, blosc": zarr_case("0.4"),
    "zarr 0.4, raw": zarr_case("0.4", compressors=None),
    "zarr 0.5, zstd": zarr_case("0.5"),
    "zarr 0.5, crc32c": zarr_case("0.5", compressors={"name": "crc32c"}, has_checksums=True),
    "zarr 0.5, shards": zarr_case("0.5", shards=(16, 32, 32), region=lambda path: None),
    "annotations": annotation_case(None),
    "annotations, shards": annotation_case({**GZIPPED, "minishard_bits": 1}),
    "link": Case(write_link, read_link, stalls=False),
}
RATES = (0.02, 0.1, 0.3, 0.6)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Write all volumes, and read each without faults. Yield the server and the values by case."""
    root = tmp_path_factory.mktemp("volumes")
    expected = {}
    for number, case in enumerate(CASES.values()):
        (root / str(number)).mkdir()
        case.write(root / str(number))
    with FaultServer(root) as server:
        server.begin("none", 0.0)
        for number, (name, case) in enumerate(CASES.items()):
            expected[name] = case.read(f"{server.url}/{number}", ix.Connection())
        yield server, expected


def run(server: FaultServer, url: str, case: Case, expected: Values, seed: int, folder: Path) -> str:
    """Read a volume; return "right", "error", or how the result is wrong."""
    rng = random.Random(seed)
    rate, checksums = rng.choice(RATES), rng.random() < 0.5
    connection = ix.Connection(
        timeout=TIMEOUT, retries=RETRIES, backoff=0.002, concurrency=rng.choice([None, 1, 3]),
        memory_cache=rng.choice([0, "1 MB"]), disk_cache=folder if rng.random() < 0.5 else False,
    )  # fmt: skip
    server.begin(seed, rate, checksums=checksums, stalls=case.stalls)
    for reset in (memory_cache.cache.clear, disk_reads.clear, disk_cache._caches.clear, root_cache.clear_roots):
        reset()
    outcome: list[Any] = []

    def read() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", ix.ImageryWarning)
                for _ in range(2):  # the second pass reads partly from the caches
                    outcome[:] = [case.read(url, connection)]
        except (ix.ImageryError, ix.ImageryWarning) as error:
            outcome[:] = [error]
        except BaseException as error:
            outcome[:] = [f"raised {type(error).__name__}: {error}"]

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(LONGEST)
    if thread.is_alive():
        return f"was not done after {LONGEST} s"
    if isinstance(outcome[0], Exception):
        return "error"
    if isinstance(outcome[0], str):
        return outcome[0]
    flipped = [path.removeprefix("/moved") for path, kind in server.log() if kind == "flip"]
    return difference(case, outcome[0], expected, [] if case.has_checksums else flipped, checksums=checksums)


def difference(case: Case, found: Values, expected: Values, flipped: list[str], *, checksums: bool) -> str:
    """Return "right", or a description of differences that the flipped bits do not explain."""
    unchecked = [path for path in flipped if not checksums or re.search(r"\.shard$|roots_binary", path)]
    metadata = [path for path in unchecked if case.region(path) is None]
    if metadata:  # changed metadata, or a changed index, may change any voxel
        return "right"
    if isinstance(found, xr.Dataset):
        return "right" if found.identical(expected) or unchecked else "differs"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"has shape {found.shape} and type {found.dtype}"
    differs = np.asarray(found != expected)
    for path in unchecked:
        differs[..., *case.region(path)] = False
    return "right" if not differs.any() else f"differs in {int(differs.sum())} voxels"


def count_sockets() -> int:
    """Close idle connections and event loops, and return the number of open sockets of this process."""
    attempt._state.connections.close()
    chunk_layout.close_loops()
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += stat.S_ISSOCK(os.stat(f"/proc/self/fd/{name}").st_mode)
        except OSError:
            continue
    return count


def check_nothing_is_left(before: int) -> None:
    """Wait until cancelled requests have ended; fail if their threads or sockets remain."""
    for _ in range(100):
        threads = [t.name for t in threading.enumerate() if t.name.startswith("imageryxr-web")]
        if not threads and count_sockets() <= before:
            return
        time.sleep(0.1)
    raise AssertionError(f"left: {threads}, {count_sockets() - before} sockets")


def runs(number: int, cases: int) -> range:
    """Return the seeds of a case, so that all cases together have `RUNS` runs."""
    return range(FIRST + number, FIRST + max(RUNS, cases), cases)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts sockets")
@pytest.mark.parametrize("name", CASES)
def test_faulty_responses_give_the_right_values_or_an_error(volumes, tmp_path, name):
    server, expected = volumes
    number = list(CASES).index(name)
    before, outcomes = count_sockets(), {}
    for seed in runs(number, len(CASES) + 1):
        outcomes[seed] = run(server, f"{server.url}/{number}", CASES[name], expected[name], seed, tmp_path / str(seed))
    print(outcomes)
    assert not {seed: o for seed, o in outcomes.items() if o not in ("right", "error")}
    check_nothing_is_left(before)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts sockets")
def test_faulty_responses_of_a_graph_server_give_the_right_roots_or_an_error(cave, tmp_path):
    def read(url: str, connection: ix.Connection) -> np.ndarray:
        segmentation = ix.open_segmentation(url, timestamp=NOW, token=TOKEN, bbox=BOX, connection=connection)
        return segmentation.compute(scheduler="threads").values

    case, outcomes = Case(lambda folder: None, read), {}
    with FaultServer(tmp_path / "none", cave.server_port) as server:
        url = cave.table.replace(f":{cave.server_port}", f":{server.port}")
        server.begin("none", 0.0)
        expected = read(url, ix.Connection())
        before = count_sockets()
        for seed in runs(len(CASES), len(CASES) + 1):
            outcomes[seed] = run(server, url, case, expected, seed, tmp_path / str(seed))
        print(outcomes)
        assert not {seed: o for seed, o in outcomes.items() if o not in ("right", "error")}
        check_nothing_is_left(before)
