"""
Synapses with labels
====================

Points, lines and ellipsoids are drawn at their position in nanometres. Labels are moved apart so that no two overlap.
"""

import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION))
picture = ds.imagery.overlay(alpha=0.25, contrast_limits=(73, 194)).isel(z=[36])
table = {
    "x": [60, 118, 131, 205, 150, 40],
    "y": [66, 97, 105, 156, 205, 178],
    "z": [52.5] * 6,
    "kind": ["pre", "pre", "post", "pre", "post", "post"],
    "name": ["T1", "T2", "PSD 2", "T3", "PSD 3", "PSD 1"],
}
points = ix.as_annotations(table, resolution=(10, 10, 10))
figure = ix.scale_bar(picture, scale=3)  # marks and labels have the resolution of the enlarged picture
ix.annotate(figure, points, color="kind", size=27, edgecolor="black", edgewidth=3, labels="name", label_size=27)
