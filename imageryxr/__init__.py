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

from imageryxr import accessor as _accessor
from imageryxr import errors
from imageryxr.core.bbox import BBox
from imageryxr.core.colors import load_palette, palette, save_palette
from imageryxr.core.colors.record import colors_of
from imageryxr.core.grid import Grid, grid_of
from imageryxr.errors import (
    AddressError,
    AuthError,
    BoxError,
    ChoiceError,
    ChunkReadError,
    ClockWarning,
    CodecError,
    ColorError,
    ForbiddenError,
    GridError,
    GridMismatchError,
    ImageryError,
    ImageryWarning,
    InvalidTokenError,
    LayerError,
    LinkError,
    LinkServerError,
    LinkWarning,
    ManifestError,
    MipError,
    MissingChunkError,
    MissingChunkWarning,
    MissingIdsWarning,
    MissingTokenError,
    NaiveTimestampWarning,
    NoVolumeError,
    OptionError,
    OutOfVolumeError,
    ScratchError,
    SegmentError,
    ServerError,
    SourceError,
    SourceNotFoundError,
    StaleRootError,
    TargetError,
    TargetExistsError,
    TermsError,
    TimestampError,
    UnitError,
)
from imageryxr.export import export, plan_export
from imageryxr.export.masks import save_masks
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.report import ExportReport
from imageryxr.neuroglancer.link import neuroglancer_link
from imageryxr.neuroglancer.open import open_neuroglancer
from imageryxr.ops.align import align, regrid
from imageryxr.ops.annotations import as_annotations
from imageryxr.ops.datastack import open_datastack
from imageryxr.ops.labels import select_ids, split_masks, unique_ids
from imageryxr.ops.open import crop, open_image, open_multiscale, open_segmentation
from imageryxr.ops.plane import plane
from imageryxr.ops.points import sample_points
from imageryxr.render.figure import inset, legend, montage, save_figure, scale_bar, to_pil
from imageryxr.render.layers import Layer
from imageryxr.render.overlay import Outline, composite, outline, overlay, to_rgba
from imageryxr.render.plot import plot
from imageryxr.render.thumbnail import contrast_limits, thumbnail
from imageryxr.sources.base import Level, Source
from imageryxr.sources.fetch.client import Connection
from imageryxr.testing.sample import Sample, sample

__version__ = "0.1.0"

__all__ = [
    "AddressError",
    "AuthError",
    "BBox",
    "BoxError",
    "ChoiceError",
    "ChunkReadError",
    "ClockWarning",
    "CodecError",
    "ColorError",
    "Connection",
    "ExportPlan",
    "ExportReport",
    "ForbiddenError",
    "Grid",
    "GridError",
    "GridMismatchError",
    "ImageryError",
    "ImageryWarning",
    "InvalidTokenError",
    "Layer",
    "LayerError",
    "Level",
    "LinkError",
    "LinkServerError",
    "LinkWarning",
    "ManifestError",
    "MipError",
    "MissingChunkError",
    "MissingChunkWarning",
    "MissingIdsWarning",
    "MissingTokenError",
    "NaiveTimestampWarning",
    "NoVolumeError",
    "OptionError",
    "OutOfVolumeError",
    "Outline",
    "Sample",
    "ScratchError",
    "SegmentError",
    "ServerError",
    "Source",
    "SourceError",
    "SourceNotFoundError",
    "StaleRootError",
    "TargetError",
    "TargetExistsError",
    "TermsError",
    "TimestampError",
    "UnitError",
    "align",
    "as_annotations",
    "colors_of",
    "composite",
    "contrast_limits",
    "crop",
    "errors",
    "export",
    "grid_of",
    "inset",
    "legend",
    "load_palette",
    "montage",
    "neuroglancer_link",
    "open_datastack",
    "open_image",
    "open_multiscale",
    "open_neuroglancer",
    "open_segmentation",
    "outline",
    "overlay",
    "palette",
    "plan_export",
    "plane",
    "plot",
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

del _accessor


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
