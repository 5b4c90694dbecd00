"""Types that type checkers infer for the public functions. mypy checks this file; nothing runs it.

An unused ``type: ignore`` is an error of mypy's strict mode, so each of them states that its line must be rejected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import xarray as xr
from PIL.Image import Image

import imageryxr as ix
from imageryxr.accessor import ImageryArray, ImageryDataset, ImageryTree


def functions_keep_the_kind_of_their_argument(array: xr.DataArray, dataset: xr.Dataset, box: ix.BBox) -> None:
    assert_type(ix.crop(array, box), xr.DataArray)
    assert_type(ix.crop(dataset, box), xr.Dataset)
    assert_type(ix.plane(array, (1, 2, 3), (4, 5)), xr.DataArray)
    assert_type(ix.plane(dataset, (1, 2, 3), (4, 5)), xr.Dataset)
    assert_type(ix.sample_points(dataset, [(1, 2, 3)]), xr.Dataset)
    ix.crop("em.zarr", box)  # type: ignore[type-var]
    ix.crop(array, bbox=(1, 2, 3))  # type: ignore[arg-type]


def volumes_and_pictures_are_arrays(values: npt.NDArray[np.uint8], path: Path) -> None:
    em = assert_type(ix.open_image(values), xr.DataArray)
    seg = assert_type(ix.open_segmentation(path, mip=2, chunks="auto"), xr.DataArray)
    ds = assert_type(ix.align(em, seg), xr.Dataset)
    picture = assert_type(ix.overlay(ds.image, ds.segmentation, colors={1: "red"}, outline=True), xr.DataArray)
    assert_type(ix.to_pil(picture), Image)
    ix.overlay(em, seg, colors=5)  # type: ignore[arg-type]
    ix.overlay(em, seg, alhpa=0.2)  # type: ignore[call-arg]
    ix.open_image(3.5)  # type: ignore[arg-type]


def methods_have_the_types_of_the_functions(
    array: ImageryArray, dataset: ImageryDataset, tree: ImageryTree, box: ix.BBox
) -> None:
    assert_type(array.crop(box), xr.DataArray)
    assert_type(dataset.crop(box), xr.Dataset)
    assert_type(array.plane((1, 2, 3), (4, 5)), xr.DataArray)
    assert_type(tree.plane((4, 5)), xr.Dataset)
    assert_type(array.unique_ids(), npt.NDArray[np.uint64])
    assert_type(array.unique_ids(counts=True), tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]])
    assert_type(dataset.overlay(alpha=0.3), xr.DataArray)
    assert_type(dataset.align(to="coarsest"), xr.Dataset)
    assert_type(array.cutouts([(1, 2, 3)], (4, 5)), xr.DataArray)
    assert_type(tree.cutouts([(1, 2, 3)], (4, 5)), xr.Dataset)
    assert_type(dataset.outline(width=2), xr.DataArray)
    assert_type(array.export("o.zarr", levels=1), ix.ExportReport)
    array.crop(cnter=(1, 2, 3))  # type: ignore[call-arg]
    dataset.overlay(alhpa=0.3)  # type: ignore[call-arg]
    dataset.to_pil()  # type: ignore[attr-defined]


def options_of_exports_are_typed(array: xr.DataArray, client: Any) -> None:
    assert_type(ix.export(array, "o.zarr", client=client, chunks=(16, 256, 256), compressor=None), ix.ExportReport)
    ix.plan_export(array, "o.mp4", client="processes", fps=12, crf=18)
    ix.export(array, "o.zarr", client=3.5)  # type: ignore[arg-type]
    ix.export(array, "o.zarr", compresor=1)  # type: ignore[call-arg]
    ix.export(array, "o.zarr", levels="2")  # type: ignore[arg-type]
    ix.plan_export(array, "o.zarr", compresor=1)  # type: ignore[call-arg]


def unknown_names_are_errors() -> None:
    ix.opn_image()  # type: ignore[attr-defined]
    ix.MipError()  # type: ignore[attr-defined]
