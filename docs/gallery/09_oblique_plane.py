"""
An oblique plane
================

``plane`` cuts image and segmentation at any angle, with square pixels. Ids stay exact. The dark corners lie outside
the volume.
"""

import tissue

import imageryxr as ix

em, seg = ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)
cut = ix.plane(ix.align(em, seg), (1250, 1250, 520), (600, 300), normal=(0.2, 1, 1.6), nm_per_pixel=4)
picture = ix.overlay(
    cut.image, cut.segmentation, alpha=0.3, outline=ix.Outline(1, side="in", merge=False), contrast_limits=(70, 195)
)
ix.scale_bar(picture, label_size=18)
