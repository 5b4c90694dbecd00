"""
Outlines inside and outside
===========================

``side="in"`` draws inside each cell, so that neighbours never cover each other. ``side="out"`` leaves all of the cell
visible.
"""

import tissue

import imageryxr as ix

box = ix.BBox((1000, 400, 460), (2500, 1900, 470))
ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION), bbox=box)
cells = {2491: "gold", 60683: "deepskyblue"}


def draw_outlines(side):
    """Return the slice with the cells outlined on one side."""
    line = ix.Outline(4, side=side, merge=False)
    return ix.overlay(ds.image, ds.segmentation, colors=cells, alpha=0, outline=line, contrast_limits=(70, 195))


ix.montage([draw_outlines("in"), draw_outlines("out")], labels=['side="in"', 'side="out"'], scale=3)
