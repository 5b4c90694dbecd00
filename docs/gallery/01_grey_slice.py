"""
A slice with a scale bar
========================

``contrast_limits`` reads the coarsest level and returns the grey values that become black and white. ``scale_bar``
chooses a round length and takes the size of a pixel from the coordinates.
"""

import tissue

import imageryxr as ix

em = ix.open_image(tissue.IMAGE)
slice_ = em.isel(z=[30])
picture = ix.to_rgba(slice_, contrast_limits=ix.contrast_limits(em))
ix.scale_bar(picture, scale=3)
