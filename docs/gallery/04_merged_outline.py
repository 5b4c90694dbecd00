"""
One outline around several cells
================================

With ``merge=True`` cells that touch are outlined as one. Use it for a few cells. Where cells fill the picture, set
``merge=False``.
"""

import tissue

import imageryxr as ix

box = ix.BBox((1000, 400, 460), (2500, 1900, 470))
ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION), bbox=box)
colors = {2491: "gold", 60683: "gold", 24720: "gold"}


def draw_outlines(merge):
    """Return the slice with the three cells outlined."""
    line = ix.Outline(2, side="out", merge=merge)
    return ix.overlay(ds.image, ds.segmentation, colors=colors, alpha=0.2, outline=line, contrast_limits=(70, 195))


ix.montage([draw_outlines(False), draw_outlines(True)], labels=["merge=False", "merge=True"], scale=3)
