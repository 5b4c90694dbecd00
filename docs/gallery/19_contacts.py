"""
Where two cells touch
=====================

`contacts` returns the pairs of segments that share faces, with their area and position. The circles are the contacts of
the red cell, in proportion to their area, at the centre of the part that lies within four sections.
"""

import matplotlib.pyplot as plt
import tissue

import imageryxr as ix

em, seg = ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)
cell = 2491
ds = ix.align(em, seg).isel(z=slice(32, 36))
touching = ix.contacts(ds.segmentation, ids=[cell]).imagery.to_dataframe()
touching["neighbour"] = touching["segment_a"].where(touching["segment_a"] != cell, touching["segment_b"])
largest = touching.nlargest(8, "area")

colors = {cell: "crimson"} | ix.palette(list(largest["neighbour"]), "glasbey_cool")
picture = ix.overlay(ds.image, ds.segmentation, colors=colors, alpha=0.45, contrast_limits=(70, 195)).isel(z=[1])

figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
picture.imagery.plot(ax=axes, scale_bar=True)
size = 4000 * largest["area"] / largest["area"].sum()
center = largest[["centroid_x", "centroid_y"]] / 1000  # µm
axes.scatter(*center.to_numpy().T, size, facecolors="none", edgecolors="white", lw=2)
