"""
Masks that overlap
==================

Masks are boolean arrays, and they may overlap. This mask of dark cytoplasm and organelles is a threshold on the
smoothed image; the other mask is a cell.
"""

import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)).isel(z=[30]).load()
smooth = ds.image.astype(float).rolling(x=7, y=7, center=True, min_periods=1).mean()
masks = {"dark": smooth < 100, "neurite": ds.segmentation == 2491}

picture = ix.overlay(
    ds.image, masks, colors={"dark": "crimson", "neurite": "gold"}, alpha=0.4, contrast_limits=(70, 195)
)
ix.legend(ix.scale_bar(picture, scale=3), ix.colors_of(picture), label_size=20)
