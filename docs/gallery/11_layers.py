"""
Several layers
==============

Each ``Layer`` has options of its own and is drawn over the layers before it: all cells faintly, two cells opaque, and
one outline in nanometres.
"""

import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)).isel(z=[30])
picture = ix.overlay(
    ds.image,
    [
        ix.Layer(ds.segmentation, alpha=0.12),
        ix.Layer(ds.segmentation, colors={60683: "orange", 24720: "deepskyblue"}, alpha=0.7),
        ix.Layer(
            ds.segmentation, colors={2491: "white"}, alpha=0, outline=ix.Outline(40, side="in", unit="nm", merge=False)
        ),
    ],
    contrast_limits=(70, 195),
)
ix.scale_bar(picture, scale=3)
