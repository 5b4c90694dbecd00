"""A stack of slices in one region, and a count of the slices that are drawn."""

from __future__ import annotations

import imageryxr as ix
from imageryxr.sources.base import report_missing_chunks
from tests.support.export_jobs import Computed, array_of

# The chunks are thicker than the stack, so that the stack is exported as one region.
THICK = {"shape": (70, 48, 33), "chunks": (128, 64, 64)}


class MissingChunkSource(Computed):
    """A source that reports a missing chunk at every read."""

    missing = "fill"

    def read(self, mip, box):
        report_missing_chunks(self, mip, ["0-64"], "background")
        return super().read(mip, box)


def draw_stack():
    em, seg = MissingChunkSource(**THICK), Computed(layer_type="segmentation", **THICK)
    picture = ix.overlay(array_of(em), array_of(seg), outline=2)
    del picture.attrs["outline_axis"]
    return picture


def export(target, **kwargs):
    return ix.export(draw_stack(), target, square=False, **kwargs)


def count_pages(page, pages):
    def count_page(self, plane):
        pages.append(plane.shape)
        return page(self, plane)

    return count_page
