"""
Palettes
========

``palette`` returns a dict from id to colour. ``"stable"`` depends on the id alone; the other palettes spread their
colours over the ids of the figure.
"""

import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)).isel(z=[30])
ids = ix.unique_ids(ds.segmentation)
names = ["stable", "neuroglancer", "husl", "glasbey", "colorblind", "viridis"]
pictures = [
    ix.overlay(ds.image, ds.segmentation, colors=ix.palette(ids, name), alpha=0.55, contrast_limits=(70, 195))
    for name in names
]
ix.montage(pictures, columns=3, labels=names, label_size=18)
