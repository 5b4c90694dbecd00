"""
A magnified inset
=================

``inset`` magnifies a box in a free corner and frames the box and its magnified copy. Each has its own scale bar.
"""

import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)).isel(z=[30])
line = ix.Outline(1, side="in", merge=False)
picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=line, contrast_limits=(70, 195))

detail = ix.BBox.around((1100, 850, 465), (500, 500, 10))
ix.inset(picture, detail, zoom=2, scale=3, scale_bar=True)
