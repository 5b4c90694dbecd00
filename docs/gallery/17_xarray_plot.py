"""
Facets with xarray
==================

An opened volume is an xarray array with coordinates in nm. Everything that xarray plots works, facets included.
"""

import tissue

import imageryxr as ix

em = ix.open_image(tissue.IMAGE)
slices = em.sel(z=slice(160, 880)).isel(z=slice(0, None, 18))
slices.plot.imshow(col="z", cmap="gray", robust=True, yincrease=False, aspect=1, size=3, add_colorbar=False)
