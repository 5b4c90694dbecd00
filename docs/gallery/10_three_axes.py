"""
Three sections through a point
==============================

``axis`` is the axis of the sections, so that outlines lie in their plane. The voxels here are cubes; elsewhere
``align(…, to=(8, 8, 8))`` makes cubes.
"""

import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION))


def section(axis, position):
    """Return the section of the tissue at a position in nm."""
    line = ix.Outline(1, side="in", merge=False)
    picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=line, contrast_limits=(70, 195), axis=axis)
    return picture.sel({axis: [position]}, method="nearest")


sides = [section("y", 1080), section("x", 1470)]
right = ix.montage(sides, columns=1, scale=2, labels=["y = 1,080 nm", "x = 1,470 nm"], label_size=18)
ix.montage([ix.scale_bar(section("z", 465), scale=2), right])
