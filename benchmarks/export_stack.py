"""Benchmarks of exports: throughput, memory, re-reads, processes, resuming, and a comparison with ImageryClient.

    python benchmarks/export_stack.py FOLDER [--slices 512] [--only throughput,memory,processes,resume,peer]

A stack of EM and segmentation, with slices of 1024² pixels and about 300 cells, is written once to FOLDER as
precomputed layers (raw, chunks of 64³). The exported array is an overlay with outlines.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

import imageryxr as ix
from imageryxr.core.grid import Grid
from imageryxr.export.read.reader import BUFFERS, SweepReader, draw
from imageryxr.export.read.sweep import bricks, whole_sweep
from imageryxr.export.store.local import Folder
from imageryxr.graph.evaluate import required_boxes
from imageryxr.graph.expr import LevelLeaf
from imageryxr.graph.labelled import box_reader, lazy_array
from imageryxr.sources.base import Level

SIDE = 1024
CELL = 59


@dataclass(frozen=True)
class Tissue:
    """A source that computes the requested boxes: noise, and cells that move from slice to slice."""

    slices: int
    layer_type: str

    name = "computed://tissue"
    attrs = {}  # noqa: RUF012

    @property
    def dtype(self):
        return np.dtype(np.uint8 if self.layer_type == "image" else np.uint64)

    @property
    def levels(self):
        return (Level(0, Grid((self.slices, SIDE, SIDE), (8, 8, 40), (0, 0, 0)), (64, 64, 64)),)

    def check(self, mip):
        pass

    def read(self, mip, box):
        z, y, x = np.ogrid[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))]
        if self.layer_type == "image":
            rng = np.random.default_rng(box.start)
            return rng.normal(128, 30, box.shape).clip(0, 255).astype(np.uint8)
        wave = (6 * np.sin(y / 17) + z // 9).astype(np.int64)
        ids = ((x + wave) // CELL + 40 * (y // CELL) + 2000 * (z // 60) + 1).astype(np.uint64)
        return ids * np.uint64(864691135)

    def __dask_tokenize__(self):
        return ("tissue", self.slices, self.layer_type)


def layers(folder: Path, slices: int) -> tuple[str, str]:
    """Write the stack unless it exists; return the addresses of image and segmentation."""
    places = [f"precomputed://{folder}/{name}-{slices}" for name in ("em", "seg")]
    for kind, place in zip(("image", "segmentation"), places, strict=True):
        source = Tissue(slices, kind)
        array = lazy_array(LevelLeaf(source, 0), source.levels[0].grid, {"layer_type": kind}, kind)
        ix.export(array, place, levels=1, encoding="raw", chunks=(64, 64, 64))
    return places[0], places[1]


def overlay(folder: Path, slices: int, *, depth: int | None = None):
    em, seg = layers(folder, slices)
    depth = depth or slices
    image = ix.open_image(em).isel(z=slice(0, depth))
    return ix.overlay(image, ix.open_segmentation(seg).isel(z=slice(0, depth)), alpha=0.3, outline=3)


def _time_parallel(act, count: int, threads: int | None = None) -> float:
    from concurrent.futures import ThreadPoolExecutor

    began = time.perf_counter()
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        list(pool.map(act, range(count)))
    return time.perf_counter() - began


def throughput(folder: Path, slices: int) -> dict[str, float]:
    """Compare an export with its slowest part: reading, drawing or writing alone, on all cores.

    Each part runs as in the export engine: region by region, in reused memory. If all parts use all cores, an export
    takes at least the sum of their times. "slowest part / export" can then at most reach "slowest part / sum of parts",
    and "sum of parts / export" shows the overhead of the engine. The slowest part on one core, and reads with plain
    calls, are timed as well.
    """
    drawn = overlay(folder, slices)
    plan = ix.plan_export(drawn, folder / "plan.ome.zarr", levels=1)
    read, regions = box_reader(drawn), plan.regions

    def read_region(i: int) -> SweepReader:
        sources = SweepReader(read.volume.expr, whole_sweep(read.volume.expr, regions[i]))
        sources.advance(0)
        return sources

    def read_with_plain_calls(i: int) -> None:
        for leaf, boxes in required_boxes(read.volume.expr, regions[i]).items():
            for box in boxes:
                leaf.read(box)

    held = read_region(0).readings(regions[0])
    first = draw(read.volume.expr, regions[0], lambda _: held).copy()

    def draw_region(_: int) -> None:
        for piece in bricks(regions[0], plan.target.granule):
            draw(read.volume.expr, piece, lambda _: held)

    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    for name in ("data", "new"):
        (scratch / name).mkdir(parents=True)
    place = Folder(str(scratch / "data"), str(scratch / "new"))

    def write_region(i: int) -> None:
        place.put((f"{i}-{k}", v) for k, v in plan.target.encode(0, regions[0], first))

    parts = {"read": read_region, "draw": draw_region, "write": write_region}
    found = {name: min(_time_parallel(part, len(regions)) for _ in range(3)) for name, part in parts.items()}
    alone = _time_parallel(max(parts.items(), key=lambda part: found[part[0]])[1], len(regions), 1)
    plain = _time_parallel(read_with_plain_calls, len(regions))
    shutil.rmtree(scratch)
    BUFFERS.clear()
    times = []
    for _ in range(3):
        _remove(folder / "whole.ome.zarr")
        times.append(ix.export(drawn, folder / "whole.ome.zarr", levels=1).seconds)
    slowest, whole = max(found.values()), sum(found.values())
    found["export"] = min(times)
    found["slowest part / export"] = slowest / found["export"]
    found["slowest part / sum of parts"] = slowest / whole
    found["sum of parts / export"] = whole / found["export"]
    found["slowest part on one core"] = alone
    found["slowest part on one core / export"] = alone / found["export"]
    found["read with plain calls"] = plain
    found["MB/s of RGBA"] = drawn.nbytes / 1e6 / found["export"]
    found["re-reads"] = max(r.rereads for r in plan.reads)
    return found


def _run_code(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def memory(folder: Path, slices: int) -> dict[str, float]:
    """Compare the peak of a process between 128 and 1024 slices."""
    found = {}
    for depth in (128, 1024):
        layers(folder, depth)
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, '.')\n"
            "from benchmarks.export_stack import overlay; import imageryxr as ix\n"
            f"folder = Path({str(folder)!r})\n"
            f"ix.export(overlay(folder, {depth}), folder / 'm.ome.zarr', overwrite=True)\n"
            # `getrusage` would include the peak of the process from which this one was forked
            "peak = next(x for x in open('/proc/self/status') if x.startswith('VmHWM'))\n"
            "print(int(peak.split()[1]) * 1024)"
        )
        found[f"MB at {depth}"] = float(_run_code(code)) / 1e6
    found["ratio"] = found["MB at 1024"] / found["MB at 128"]
    return found


def processes(folder: Path, slices: int) -> dict[str, float]:
    """Compare one with two worker processes of one thread each, without their start-up time.

    The limit of this machine is measured with two independent processes, each with one half of the stack, compared with
    one independent process with the whole stack. The four cases alternate four times, because the load of a shared
    machine varies; the fastest run of each counts.
    """
    found, seconds = {}, dict[str, list[float]]()
    with ExitStack() as stack:
        halves = [stack.enter_context(_ExportProcess(folder, slices, part)) for part in ((0, 0.5), (0.5, 1))]
        whole = stack.enter_context(_ExportProcess(folder, slices, (0, 1)))
        for _ in range(4):
            for count in (1, 2):
                seconds.setdefault(f"with {count}", []).append(_export_with_workers(folder, slices, count))
            seconds.setdefault("one process", []).append(_run_together([whole]))
            seconds.setdefault("two processes", []).append(_run_together(halves))
    for name, taken in seconds.items():
        found[name] = min(taken)
        found[f"{name}, median"] = float(np.median(taken))
    found["speed-up"] = found["with 1"] / found["with 2"]
    found["speed-up, median"] = found["with 1, median"] / found["with 2, median"]
    found["limit of speed-up"] = found["one process"] / found["two processes"]
    found["limit of speed-up, median"] = found["one process, median"] / found["two processes, median"]
    return found


def _export_with_workers(folder: Path, slices: int, count: int) -> float:
    from distributed import Client, LocalCluster

    drawn, target = overlay(folder, slices), folder / "p.ome.zarr"
    with (
        patch.dict(os.environ),  # dask does not restore the variables that it sets for its workers
        LocalCluster(n_workers=count, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        # the first export makes all workers import and compile before the measured one
        for part in (drawn.isel(z=slice(0, 128)), drawn):
            _remove(target)
            report = ix.export(part, target, client=client, levels=1)
    return report.seconds


class _ExportProcess:
    """A process of one thread that exports a part of the stack on each `start`."""

    def __init__(self, folder: Path, slices: int, part: tuple[float, float]) -> None:
        low, high = (int(slices * share) for share in part)
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, '.')\nimport imageryxr as ix\n"
            "from benchmarks.export_stack import _remove, overlay\n"
            f"folder = Path({str(folder)!r}); target = folder / 'apart-{low}-{high}.ome.zarr'\n"
            f"drawn = overlay(folder, {slices}).isel(z=slice({low}, {high}))\n"
            "for _ in sys.stdin:\n"
            "    ix.export(drawn, target, levels=1, workers=1, progress=False)\n"
            "    print('done', flush=True)\n"
            "    _remove(target)\n"
            "    print('ready', flush=True)\n"
        )
        command = [sys.executable, "-c", code]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self) -> None:
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)

    def wait(self) -> None:
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise RuntimeError("the process failed")

    def __enter__(self) -> _ExportProcess:
        self.start()
        self.wait()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def _run_together(parts: list[_ExportProcess]) -> float:
    began = time.perf_counter()
    for part in parts:
        part.start()
    for part in parts:
        part.wait()
    took = time.perf_counter() - began
    for part in parts:
        part.wait()
    return took


def resume(folder: Path, slices: int) -> dict[str, float]:
    """Compare resuming an export that was killed at half with a whole export; the fastest of three runs each.

    The target is removed before each run, so that the time to remove it is not measured.
    """
    layers(folder, slices)
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, '.')\nimport imageryxr as ix\n"
        f"from benchmarks.export_stack import overlay; folder = Path({str(folder)!r})\n"
        f"print(ix.export(overlay(folder, {slices}), folder / 'r.ome.zarr', levels=1, overwrite={{}}).seconds)"
    )
    whole, rest = [], []
    for _ in range(3):
        _remove(folder / "r.ome.zarr")
        whole.append(float(_run_code(code.format(True))))
        _remove(folder / "r.ome.zarr")
        _kill_at_half(folder, slices, code.format(True))
        rest.append(float(_run_code(code.format(False))))
    return {"seconds": min(whole), "after a kill at half": min(rest), "share": min(rest) / min(whole)}


def _remove(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for path in target.parent.glob(f"{target.name}.manifest.*"):
        path.unlink()


def _kill_at_half(folder: Path, slices: int, code: str) -> None:
    target = folder / "r.ome.zarr"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    began = time.perf_counter()
    plan = ix.plan_export(overlay(folder, slices), target, levels=1)
    log = target.with_name(target.name + ".manifest.log")
    header = target.with_name(target.name + ".manifest.json")
    while process.poll() is None:
        begun = header.exists() and json.loads(header.read_text())["phase"] == "writing"
        if begun and len(log.read_bytes().splitlines()) >= plan.tasks // 2:
            break
        if time.perf_counter() - began > 600:
            raise RuntimeError("the export did not reach half of its tasks within 600 s")
        time.sleep(0.01)
    if process.poll() is not None:
        raise RuntimeError("the export ended before it was killed")
    process.send_signal(signal.SIGKILL)
    process.wait()


def peer(folder: Path, slices: int) -> dict[str, float]:
    """Compare with a loop of ImageryClient over slices that saves PNGs, with about 300 cells in each."""
    import imageryclient as ic
    from cloudvolume import CloudVolume
    from PIL import Image

    count = 4
    em, seg = layers(folder, slices)
    report = ix.export(overlay(folder, slices), folder / "png" / "z{z:04d}.png", overwrite=True)
    image, labels = (CloudVolume(p.replace("precomputed://", "file://"), progress=False) for p in (em, seg))
    client = ic.ImageryClient(image_source=image.cloudpath, segmentation_source=labels.cloudpath, resolution=(8, 8, 40))
    (folder / "theirs").mkdir(exist_ok=True)
    began = time.perf_counter()
    for z in range(count):
        bounds = [[0, 0, z], [SIDE, SIDE, z + 1]]
        picture, masks = client.image_and_segmentation_cutout(bounds, split_segmentations=True)
        drawn = ic.composite_overlay(
            segs=masks, imagery=picture, alpha=0.3, outline=True, width=3, merge_outline=False, palette="husl"
        )
        (drawn if isinstance(drawn, Image.Image) else Image.fromarray(drawn)).save(folder / "theirs" / f"{z}.png")
    theirs = (time.perf_counter() - began) / count
    ours = report.seconds / slices
    return {"cells in a slice": len(masks), "ours, s a slice": ours, "theirs": theirs, "times as fast": theirs / ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slices", type=int, default=512)
    parser.add_argument("--only", default="throughput,memory,processes,resume,peer")
    given = parser.parse_args()
    given.folder = given.folder.absolute()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.only.split(","):
        figures = globals()[name](given.folder, given.slices)
        print(name, ", ".join(f"{k}: {v:.3g}" for k, v in figures.items()), flush=True)


if __name__ == "__main__":
    main()
