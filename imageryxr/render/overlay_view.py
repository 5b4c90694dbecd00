"""Draw all layers of a Dataset over each other, with the annotations of a link."""

from __future__ import annotations

from typing import Unpack

import xarray as xr

from imageryxr.ops.tree_annotations import annotations_of_view
from imageryxr.render.annotate import annotate
from imageryxr.render.overlay import OverlayOptions, overlay_dataset


def overlay_view(
    dataset: xr.Dataset, *, contrast_limits: tuple[float, float] | None = None, **options: Unpack[OverlayOptions]
) -> xr.DataArray:
    """Draw all layers of a Dataset over each other, as in the viewer.

    Lazy: reads nothing. The image is drawn below the segmentation; the order of the variables does not matter, because
    merging or writing to Zarr changes it. ``attrs["layer_order"]`` of the Dataset (names from bottom to top) overrides
    this order and is required if there are several layers of one kind; ``view`` sets it. Layers that are switched off
    in their attrs are not drawn. The first image is opaque; later images have the opacity in their attrs, as in
    Neuroglancer. ``options``, as in `overlay`, apply to all segmentations, and ``contrast_limits`` to all images.
    Annotations of a view of a link are drawn on top, in their colours; `annotate` draws others.

    Parameters
    ----------
    dataset : Dataset
        Images and segmentations on the same grid; a boolean variable is drawn like a segmentation with one segment.
    contrast_limits, **options
        As in `overlay`.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba).

    Raises
    ------
    LayerError
        If there is no layer to draw, or the order of several layers of one kind is not defined.
    ImageryError
        As `overlay`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> ds.imagery.overlay(alpha=0.3).sizes["rgba"]
    4
    """
    picture = overlay_dataset(dataset, contrast_limits=contrast_limits, **options)
    for part, color, colors in annotations_of_view(dataset):
        if colors is None:
            picture = annotate(picture, part, color=color)
        else:
            picture = annotate(picture, part, color="color", colors={c: c for c in colors})
    return picture
