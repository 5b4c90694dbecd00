"""
Selected cells, the others faint
================================

``ids`` selects cells and ``rest_alpha`` shows the others faintly. ``colors`` and ``names`` keep picture and legend
consistent.
"""

import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)).isel(z=[30])
names = {56811: "neurite A", 60683: "neurite B", 24720: "neurite C"}
colors = ix.palette(names, "colorblind")

picture = ix.overlay(
    ds.image,
    ds.segmentation,
    ids=names,
    colors=colors,
    alpha=0.5,
    rest_alpha=0.08,
    outline=ix.Outline(1, side="in", merge=False),
    contrast_limits=(70, 195),
)
ix.legend(ix.scale_bar(picture, scale=3), colors, names=names, label_size=20)
