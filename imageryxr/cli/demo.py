"""The demo: a sample volume, and figures and exports of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.colors import palette
from imageryxr.core.grid import Grid
from imageryxr.core.lazy_import import import_package
from imageryxr.errors import TargetExistsError
from imageryxr.export import export
from imageryxr.export.report import report_progress_to
from imageryxr.export.store.local import disk_errors
from imageryxr.ops.align import align, regrid
from imageryxr.ops.open import open_image, open_segmentation
from imageryxr.render.figure import legend, montage, scale_bar, to_pil
from imageryxr.render.layers import Outline
from imageryxr.render.overlay import overlay
from imageryxr.testing.sample import sample

if TYPE_CHECKING:
    from PIL.Image import Image

PRODUCTS = ("overlay.png", "outline.png", "slices.png", "stack", "overlay.ome.zarr")


def run_demo(folder: Path, *, overwrite: bool) -> None:
    """Write the sample volume, figures and exports into a folder, and print what was written."""
    _prepare_folder(folder, overwrite)
    began = time.perf_counter()
    compiling = _compile_ahead()
    steps = _Steps(5)
    with steps:
        steps.set_description("sample volume")
        volume = sample(folder / "sample")
        compiling.wait()
        both = align(open_image(volume.image), open_segmentation(volume.segmentation))
        steps.update()

        steps.set_description("overlay figure")
        filled = overlay(both.image, both.segmentation, alpha=0.35)
        _overlay_figure(filled, both.segmentation).save(folder / "overlay.png")
        steps.update()

        steps.set_description("outline figures")
        lines = overlay(both.image, both.segmentation, alpha=0, outline=Outline(3, side="in", merge=False))
        _with_bar(lines.isel(z=[_middle(lines)])).save(folder / "outline.png")
        tiles = lines.isel(z=slice(0, None, -(-lines.sizes["z"] // 4)), y=slice(256, 576), x=slice(256, 576))
        montage(tiles, labels=True).save(folder / "slices.png")
        steps.update()

        for name, target in (("PNG stack", "stack/z{z:04d}.png"), ("OME-Zarr", "overlay.ome.zarr")):
            steps.set_description(name)
            with report_progress_to(steps.advance):
                export(filled, folder / target, overwrite=True, progress=False)
            steps.update()
    _print_products(folder, filled.sizes["z"], time.perf_counter() - began)


class _Steps:
    """Progress on standard error: a bar in a terminal, elsewhere a line for each step."""

    def __init__(self, total: int) -> None:
        import_package("tqdm")
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(total=total, bar_format="{desc:<26}{bar} {elapsed}", disable=None)
        self._total, self._done = total, 0

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def set_description(self, text: str) -> None:
        """Show which step begins."""
        numbered = f"{self._done + 1}/{self._total} {text}"
        self._bar.set_description(numbered)
        if self._bar.disable:
            print(numbered, file=sys.stderr, flush=True)

    def advance(self, share: float) -> None:
        """Show which share of the step, from 0 to 1, is done."""
        self._bar.update(max(0.0, self._done + share - self._bar.n))

    def update(self) -> None:
        """Count a step as done."""
        self._done += 1
        self._bar.update(self._done - self._bar.n)


def _overlay_figure(filled: xr.DataArray, segmentation: xr.DataArray) -> Image:
    """Draw the middle slice with a scale bar, and beside it the colours of its largest cells."""
    middle = _middle(filled)
    ids, sizes = np.unique(segmentation.isel(z=middle).values, return_counts=True)
    largest = [int(i) for i in ids[np.argsort(-sizes, kind="stable")] if i][:16]
    return legend(_with_bar(filled.isel(z=[middle])), palette(largest, "stable"))


def _compile_ahead() -> subprocess.Popen[bytes]:
    # On a new machine, compiling the kernels takes as long as writing the sample. Another process compiles them
    # meanwhile, since numba caches compiled kernels on disk.
    code = "from imageryxr.cli.demo import compile_kernels; compile_kernels()"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def compile_kernels() -> None:
    """Compile and cache the kernels that the demo uses, by drawing pictures of a few pixels."""
    grid = Grid((2, 4, 4), (8, 8, 40), (0, 0, 0))
    ids = xr.DataArray(np.ones(grid.shape, np.uint64), dims=("z", "y", "x"), coords=grid.coords())
    overlay(ids.astype(np.uint8), ids, outline=Outline(3, side="in", merge=False)).load()
    regrid(ids, Grid((2, 8, 8), (4, 4, 40), (0, 0, 0))).load()
    regrid(ids.astype(np.float32), (16, 16, 40), method="mean").load()


def _middle(picture: xr.DataArray) -> int:
    return int(picture.sizes["z"]) // 2


def _with_bar(picture: xr.DataArray) -> Image:
    return scale_bar(to_pil(picture), nm_per_pixel=grid_of(picture).resolution[0])


def _prepare_folder(folder: Path, overwrite: bool) -> None:
    there = [folder / name for name in PRODUCTS if (folder / name).exists()]
    if there and not overwrite:
        raise TargetExistsError(f"{there[0]} exists; give --overwrite to replace it, or another folder")
    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)


def _print_products(folder: Path, slices: int, seconds: float) -> None:
    products = {
        "sample": "a volume of EM and its segmentation, as Neuroglancer precomputed layers",
        "overlay.png": "one slice, each cell in a colour of its own",
        "outline.png": "the same slice, each cell outlined",
        "slices.png": "part of four slices, side by side",
        "stack": f"{slices} slices of the overlay, a PNG each",
        "overlay.ome.zarr": "the overlay as OME-Zarr 0.5 with a pyramid",
    }
    print(f"the demo took {seconds:.1f} s and wrote")
    for name, text in products.items():
        print(f"  {folder / name}: {text}")
