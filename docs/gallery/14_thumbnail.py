"""
Thumbnails of a volume
======================

``thumbnail`` reads one slice of the coarsest level that is large enough. The cost is bounded whatever the size of the
volume.
"""

import tissue

import imageryxr as ix

em, seg = ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)
ix.montage([volume.imagery.thumbnail(250) for volume in (em, seg, ix.align(em, seg))])
