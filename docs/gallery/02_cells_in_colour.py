"""
Cells in colour, with a legend
==============================

Every cell has a colour that depends on its id alone. The legend lists the ten largest cells.
"""

import numpy as np
import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)).isel(z=[30])
picture = ix.overlay(ds.image, ds.segmentation, alpha=0.35, contrast_limits=(70, 195))

ids, voxels = ix.unique_ids(ds.segmentation, counts=True)
largest = ids[np.argsort(-voxels)][:10]
ix.legend(ix.scale_bar(picture, scale=3), ix.colors_of(picture, largest), title="cell", label_size=18)
