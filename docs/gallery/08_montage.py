"""
A montage along z
=================

``labels=True`` writes the position of each slice.
"""

import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION))
slices = ds.isel(z=slice(0, 72, 9))
line = ix.Outline(1, side="in", merge=False)
picture = ix.overlay(slices.image, slices.segmentation, alpha=0.3, outline=line, contrast_limits=(70, 195))
ix.montage(picture, rows=2, labels=True, label_size=20)
