"""Open connectomics volumes as lazy, labelled xarray objects, and draw segmentations over images.

>>> import imageryxr as ix
>>> sample = ix.sample(sample_path)
>>> em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
>>> box = ix.BBox.around((4600, 2560, 130), (512, 512), resolution=(8, 8, 40))
>>> ds = ix.align(em, seg, bbox=box)
>>> picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=ix.Outline(2, side="in", merge=False))
>>> ix.to_pil(picture).size
(512, 512)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import xarray as xr

from imageryxr import errors
from imageryxr.errors import ImageryError, ImageryWarning

if TYPE_CHECKING:
    from imageryxr.accessor import ImageryArray, ImageryDataset, ImageryTree
    from imageryxr.core.array_labels import grid_of
    from imageryxr.core.bbox import BBox
    from imageryxr.core.colors import load_palette, palette, save_palette
    from imageryxr.core.display import colors_of
    from imageryxr.core.grid import Grid
    from imageryxr.export import export, plan_export
    from imageryxr.export.masks import save_masks
    from imageryxr.export.plan.plan import ExportPlan
    from imageryxr.export.report import ExportReport
    from imageryxr.measure import measure
    from imageryxr.measure.contacts import contacts
    from imageryxr.measure.cutouts import cutouts
    from imageryxr.measure.overlaps import overlaps
    from imageryxr.neuroglancer.link import neuroglancer_link
    from imageryxr.neuroglancer.open import open_neuroglancer
    from imageryxr.ops.align import align, regrid
    from imageryxr.ops.annotations import as_annotations
    from imageryxr.ops.crop import crop
    from imageryxr.ops.datastack import open_datastack
    from imageryxr.ops.labels import select_ids, split_masks, unique_ids
    from imageryxr.ops.open import open_image, open_multiscale, open_segmentation
    from imageryxr.ops.open_annotations import open_annotations
    from imageryxr.ops.plane import plane
    from imageryxr.ops.points import sample_points
    from imageryxr.ops.progress import progress
    from imageryxr.ops.skeletons import open_skeletons
    from imageryxr.render.annotate import annotate
    from imageryxr.render.figure import inset, legend, montage, save_figure, scale_bar, to_pil
    from imageryxr.render.layers import Layer, Outline
    from imageryxr.render.overlay import composite, outline, overlay, to_rgba
    from imageryxr.render.plot import plot
    from imageryxr.render.thumbnail import contrast_limits, thumbnail
    from imageryxr.sources.base import Level, Source
    from imageryxr.sources.fetch.connection import Connection
    from imageryxr.testing.sample import Sample, sample

__version__ = "0.1.0"

__all__ = [
    "BBox",
    "Connection",
    "ExportPlan",
    "ExportReport",
    "Grid",
    "ImageryError",
    "ImageryWarning",
    "Layer",
    "Level",
    "Outline",
    "Sample",
    "Source",
    "align",
    "annotate",
    "as_annotations",
    "colors_of",
    "composite",
    "contacts",
    "contrast_limits",
    "crop",
    "cutouts",
    "errors",
    "export",
    "grid_of",
    "inset",
    "legend",
    "load_palette",
    "measure",
    "montage",
    "neuroglancer_link",
    "open_annotations",
    "open_datastack",
    "open_image",
    "open_multiscale",
    "open_neuroglancer",
    "open_segmentation",
    "open_skeletons",
    "outline",
    "overlaps",
    "overlay",
    "palette",
    "plan_export",
    "plane",
    "plot",
    "progress",
    "regrid",
    "sample",
    "sample_points",
    "save_figure",
    "save_masks",
    "save_palette",
    "scale_bar",
    "select_ids",
    "split_masks",
    "thumbnail",
    "to_pil",
    "to_rgba",
    "unique_ids",
]

# Modules load when a name is first used, so that the import stays fast.
_MODULES = {
    "BBox": "imageryxr.core.bbox",
    "Connection": "imageryxr.sources.fetch.connection",
    "ExportPlan": "imageryxr.export.plan.plan",
    "ExportReport": "imageryxr.export.report",
    "Grid": "imageryxr.core.grid",
    "Layer": "imageryxr.render.layers",
    "Level": "imageryxr.sources.base",
    "Outline": "imageryxr.render.layers",
    "Sample": "imageryxr.testing.sample",
    "Source": "imageryxr.sources.base",
    "align": "imageryxr.ops.align",
    "annotate": "imageryxr.render.annotate",
    "as_annotations": "imageryxr.ops.annotations",
    "colors_of": "imageryxr.core.display",
    "composite": "imageryxr.render.overlay",
    "contacts": "imageryxr.measure.contacts",
    "contrast_limits": "imageryxr.render.thumbnail",
    "crop": "imageryxr.ops.crop",
    "cutouts": "imageryxr.measure.cutouts",
    "export": "imageryxr.export",
    "grid_of": "imageryxr.core.array_labels",
    "inset": "imageryxr.render.figure",
    "legend": "imageryxr.render.figure",
    "load_palette": "imageryxr.core.colors",
    "measure": "imageryxr.measure",
    "montage": "imageryxr.render.figure",
    "neuroglancer_link": "imageryxr.neuroglancer.link",
    "open_annotations": "imageryxr.ops.open_annotations",
    "open_datastack": "imageryxr.ops.datastack",
    "open_image": "imageryxr.ops.open",
    "open_multiscale": "imageryxr.ops.open",
    "open_neuroglancer": "imageryxr.neuroglancer.open",
    "open_segmentation": "imageryxr.ops.open",
    "open_skeletons": "imageryxr.ops.skeletons",
    "outline": "imageryxr.render.overlay",
    "overlaps": "imageryxr.measure.overlaps",
    "overlay": "imageryxr.render.overlay",
    "palette": "imageryxr.core.colors",
    "plan_export": "imageryxr.export",
    "plane": "imageryxr.ops.plane",
    "plot": "imageryxr.render.plot",
    "progress": "imageryxr.ops.progress",
    "regrid": "imageryxr.ops.align",
    "sample": "imageryxr.testing.sample",
    "sample_points": "imageryxr.ops.points",
    "save_figure": "imageryxr.render.figure",
    "save_masks": "imageryxr.export.masks",
    "save_palette": "imageryxr.core.colors",
    "scale_bar": "imageryxr.render.figure",
    "select_ids": "imageryxr.ops.labels",
    "split_masks": "imageryxr.ops.labels",
    "thumbnail": "imageryxr.render.thumbnail",
    "to_pil": "imageryxr.render.figure",
    "to_rgba": "imageryxr.render.overlay",
    "unique_ids": "imageryxr.ops.labels",
}


if not TYPE_CHECKING:  # a type checker would accept every name

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            globals()[name] = getattr(import_module(_MODULES[name]), name)
            return globals()[name]
        if isinstance(getattr(errors, name, None), type):
            raise AttributeError(f"imageryxr has no attribute {name!r}; write imageryxr.errors.{name}", name=name)
        raise AttributeError(f"module 'imageryxr' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class _Package(ModuleType):
    """A package whose public functions are not replaced by subpackages of the same name, such as `export`."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Python assigns a subpackage to its parent after the subpackage was imported.
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _array_accessor(array: xr.DataArray) -> ImageryArray:
    from imageryxr.accessor import ImageryArray

    return ImageryArray(array)


def _dataset_accessor(dataset: xr.Dataset) -> ImageryDataset:
    from imageryxr.accessor import ImageryDataset

    return ImageryDataset(dataset)


def _tree_accessor(tree: xr.DataTree) -> ImageryTree:
    from imageryxr.accessor import ImageryTree

    return ImageryTree(tree)


xr.register_dataarray_accessor("imagery")(_array_accessor)
xr.register_dataset_accessor("imagery")(_dataset_accessor)
xr.register_datatree_accessor("imagery")(_tree_accessor)
