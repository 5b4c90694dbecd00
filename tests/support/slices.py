"""Stacks of slices that count how often each slice is drawn."""

from __future__ import annotations

import imageryxr as ix
from imageryxr.sources.base import report_missing_chunks
from tests.support.export_jobs import Computed, array_of

# chunks thicker than the stack, so that it is one region
THICK = {"shape": (70, 48, 33), "chunks": (128, 64, 64)}


class Holed(Computed):
    """A source with a missing chunk in every read."""

    missing = "fill"

    def read(self, mip, box):
        report_missing_chunks(self, mip, ["0-64"], "background")
        return super().read(mip, box)


def drawn():
    em, seg = Holed(**THICK), Computed(layer_type="segmentation", **THICK)
    picture = ix.overlay(array_of(em), array_of(seg), outline=2)
    del picture.attrs["outline_axis"]
    return picture


def export(target, **kwargs):
    return ix.export(drawn(), target, square=False, **kwargs)


def counting(page, pages):
    def counted(self, plane):
        pages.append(plane.shape)
        return page(self, plane)

    return counted
