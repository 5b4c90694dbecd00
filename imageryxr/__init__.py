"""Open connectomics volumes as lazy, labelled xarray objects, and draw segmentations over images.

>>> import imageryxr as ix
>>> sample = ix.sample("sample")
>>> em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
>>> box = ix.BBox.around((4600, 2560, 130), (512, 512), resolution=(8, 8, 40))
>>> ds = ix.align(em, seg, bbox=box)
>>> picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=ix.Outline(2, side="in", merge=False))
>>> ix.to_pil(picture).size
(512, 512)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import xarray as xr

from imageryxr import errors as errors
from imageryxr.errors import ImageryError as ImageryError
from imageryxr.errors import ImageryWarning as ImageryWarning

if TYPE_CHECKING:
    from imageryxr.core.array_labels import grid_of as grid_of
    from imageryxr.core.bbox import BBox as BBox
    from imageryxr.core.colors import load_palette as load_palette
    from imageryxr.core.colors import palette as palette
    from imageryxr.core.colors import save_palette as save_palette
    from imageryxr.core.display import colors_of as colors_of
    from imageryxr.core.grid import Grid as Grid
    from imageryxr.export import export as export
    from imageryxr.export import plan_export as plan_export
    from imageryxr.export.mask_pictures import save_masks as save_masks
    from imageryxr.export.plan.plan import ExportPlan as ExportPlan
    from imageryxr.export.report import ExportReport as ExportReport
    from imageryxr.measure import measure as measure
    from imageryxr.measure.contacts import contacts as contacts
    from imageryxr.measure.cutouts import cutouts as cutouts
    from imageryxr.measure.overlaps import overlaps as overlaps
    from imageryxr.neuroglancer.link import neuroglancer_link as neuroglancer_link
    from imageryxr.neuroglancer.open import open_neuroglancer as open_neuroglancer
    from imageryxr.ops.align import align as align
    from imageryxr.ops.align import regrid as regrid
    from imageryxr.ops.annotation_tables import as_annotations as as_annotations
    from imageryxr.ops.crop import crop as crop
    from imageryxr.ops.datastack import open_datastack as open_datastack
    from imageryxr.ops.labels import select_ids as select_ids
    from imageryxr.ops.labels import split_masks as split_masks
    from imageryxr.ops.labels import unique_ids as unique_ids
    from imageryxr.ops.open import open_image as open_image
    from imageryxr.ops.open import open_multiscale as open_multiscale
    from imageryxr.ops.open import open_segmentation as open_segmentation
    from imageryxr.ops.open_annotations import open_annotations as open_annotations
    from imageryxr.ops.plane import plane as plane
    from imageryxr.ops.points import sample_points as sample_points
    from imageryxr.ops.progress import progress as progress
    from imageryxr.ops.skeletons import open_skeletons as open_skeletons
    from imageryxr.render.annotate import annotate as annotate
    from imageryxr.render.figure import inset as inset
    from imageryxr.render.figure import legend as legend
    from imageryxr.render.figure import montage as montage
    from imageryxr.render.figure import save_figure as save_figure
    from imageryxr.render.figure import scale_bar as scale_bar
    from imageryxr.render.figure import to_pil as to_pil
    from imageryxr.render.layers import Layer as Layer
    from imageryxr.render.layers import Outline as Outline
    from imageryxr.render.overlay import composite as composite
    from imageryxr.render.overlay import outline as outline
    from imageryxr.render.overlay import overlay as overlay
    from imageryxr.render.overlay import to_rgba as to_rgba
    from imageryxr.render.plot import plot as plot
    from imageryxr.render.thumbnail import contrast_limits as contrast_limits
    from imageryxr.render.thumbnail import thumbnail as thumbnail
    from imageryxr.sources.base import Level as Level
    from imageryxr.sources.base import Source as Source
    from imageryxr.sources.fetch.connection import Connection as Connection
    from imageryxr.testing.sample import Sample as Sample
    from imageryxr.testing.sample import sample as sample

__version__ = "0.1.0"

del annotations  # the feature of __future__ is not part of the package

# Modules load when a name is first used, so that the import stays fast.
_MODULES = {
    name: f"imageryxr.{module}"
    for module, names in {
        "core.array_labels": ["grid_of"],
        "core.bbox": ["BBox"],
        "core.colors": ["load_palette", "palette", "save_palette"],
        "core.display": ["colors_of"],
        "core.grid": ["Grid"],
        "export": ["export", "plan_export"],
        "export.mask_pictures": ["save_masks"],
        "export.plan.plan": ["ExportPlan"],
        "export.report": ["ExportReport"],
        "measure": ["measure"],
        "measure.contacts": ["contacts"],
        "measure.cutouts": ["cutouts"],
        "measure.overlaps": ["overlaps"],
        "neuroglancer.link": ["neuroglancer_link"],
        "neuroglancer.open": ["open_neuroglancer"],
        "ops.align": ["align", "regrid"],
        "ops.annotation_tables": ["as_annotations"],
        "ops.crop": ["crop"],
        "ops.datastack": ["open_datastack"],
        "ops.labels": ["select_ids", "split_masks", "unique_ids"],
        "ops.open": ["open_image", "open_multiscale", "open_segmentation"],
        "ops.open_annotations": ["open_annotations"],
        "ops.plane": ["plane"],
        "ops.points": ["sample_points"],
        "ops.progress": ["progress"],
        "ops.skeletons": ["open_skeletons"],
        "render.annotate": ["annotate"],
        "render.figure": ["inset", "legend", "montage", "save_figure", "scale_bar", "to_pil"],
        "render.layers": ["Layer", "Outline"],
        "render.overlay": ["composite", "outline", "overlay", "to_rgba"],
        "render.plot": ["plot"],
        "render.thumbnail": ["contrast_limits", "thumbnail"],
        "sources.base": ["Level", "Source"],
        "sources.fetch.connection": ["Connection"],
        "testing.sample": ["Sample", "sample"],
    }.items()
    for name in names
}
__all__ = sorted(["ImageryError", "ImageryWarning", "errors", *_MODULES])


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


def _accessor(name: str) -> Callable[[Any], Any]:
    """Return a function that creates an accessor of an object; its module loads with the first one."""
    return lambda obj: getattr(import_module("imageryxr.accessor"), name)(obj)


xr.register_dataarray_accessor("imagery")(_accessor("ImageryArray"))
xr.register_dataset_accessor("imagery")(_accessor("ImageryDataset"))
xr.register_datatree_accessor("imagery")(_accessor("ImageryTree"))
