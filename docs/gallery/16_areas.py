"""
Areas through the stack
=======================

A segmentation is an xarray array, so counting voxels per slice is one comparison and one sum. The colours are those of
the overlay.
"""

import matplotlib.pyplot as plt
import tissue

import imageryxr as ix

em, seg = ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)
ds = ix.align(em, seg)
cells = [2491, 56811, 60683, 24720]
colors = ix.palette(cells, "colorblind")
picture = ix.overlay(ds.image, ds.segmentation, colors=colors, alpha=0.5, contrast_limits=(70, 195)).isel(z=[30])

masks = ix.split_masks(ds.segmentation, cells)
area = masks.sum(("y", "x")) * 0.01**2  # µm² per voxel face

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
picture.imagery.plot(ax=left, scale_bar=True)
for cell in cells:
    right.plot(area.z / 1000, area.sel(segment=cell), color=[c / 255 for c in colors[cell]], label=str(cell), lw=2)
right.set(xlabel="z (µm)", ylabel="area in the section (µm²)", ylim=(0, None))
right.legend(title="cell", frameon=False)
