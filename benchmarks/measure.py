"""Compare measurements of segmentations with a copy of the labels, with scikit-image and with cc3d."""

from __future__ import annotations

from typing import Any, ClassVar

import dask
import numpy as np
import xarray as xr

import imageryxr as ix
from benchmarks import pictures, work


class _Measurement(work.Work):
    """Cells with 2,000 ids of uint64 in memory, and an image; one thread."""

    title: ClassVar[str] = ""
    peer_name = "numpy.copyto of the labels"
    depth = 16

    def setup(self, *params: Any) -> None:
        shape = (2, 64, 64) if self.small else (self.depth, 1024, 1024)
        self.labels, self.image = pictures.cells(shape, 10 if self.small else 2000), pictures.grey(shape)
        self.copy = np.empty_like(self.labels)
        coords = ix.Grid(shape, (8, 8, 40), (0, 0, 0)).coords()
        attrs = {"resolution": (8.0, 8.0, 40.0), "layer_type": "segmentation"}
        self.seg = xr.DataArray(self.labels, coords, ("z", "y", "x"), attrs=attrs)
        self.em = self.seg.copy(data=self.image).assign_attrs(layer_type="image")
        # scikit-image and cc3d need ids from 1.
        self.small_ids = np.unique(self.labels, return_inverse=True)[1].reshape(shape).astype(np.uint32)

    def run(self) -> Any:
        """Measure with imageryxr."""
        return ix.measure(self.seg)

    def ours(self) -> Any:
        with dask.config.set(scheduler="synchronous"):
            return self.run()

    def peer(self) -> Any:
        np.copyto(self.copy, self.labels)


class Measure(_Measurement):
    title = "measure, 2,000 ids"
    at_least = 0.25


class MeasureGrey(_Measurement):
    title = "measure with an image, 2,000 ids"

    def run(self) -> Any:
        return ix.measure(self.seg, self.em)


class Contacts(_Measurement):
    title = "contacts, 2,000 ids"
    at_least = 0.1

    def run(self) -> Any:
        return ix.contacts(self.seg)


class Overlaps(_Measurement):
    title = "overlaps, 2,000 ids"

    def run(self) -> Any:
        return ix.overlaps(self.seg, self.seg)


class MeasureAndRegionprops(MeasureGrey):
    peer_name = "skimage.measure.regionprops_table of the same properties"
    at_least = 5
    rounds = 3

    def peer(self) -> Any:
        from skimage.measure import regionprops_table

        grey = [f"intensity_{name}" for name in ("mean", "std", "min", "max")]
        return regionprops_table(self.small_ids, self.image, properties=("label", "area", "centroid", "bbox", *grey))


class MeasureAndCc3d(_Measurement):
    peer_name = "cc3d.statistics"
    title = "measure, 2,000 ids"
    at_least = 1

    def peer(self) -> Any:
        import cc3d

        return cc3d.statistics(self.small_ids)


class ContactsAndCc3d(Contacts):
    peer_name = "cc3d.contacts"
    at_least = 1

    def peer(self) -> Any:
        import cc3d

        return cc3d.contacts(self.small_ids, connectivity=6)


class _TwoCores(_Measurement):
    """A deep stack, because a core that was idle for 0.1 s starts 10 to 30 ms late."""

    peer_name = "the same, one thread"
    at_least = 1.7
    depth = 64

    def ours(self) -> Any:
        with dask.config.set(scheduler="threads", num_workers=2):
            return self.run()

    def peer(self) -> Any:
        with dask.config.set(scheduler="synchronous"):
            return self.run()


class MeasureOnTwoCores(_TwoCores):
    title = "measure, two threads"


class MeasureGreyOnTwoCores(_TwoCores, MeasureGrey):
    title = "measure with an image, two threads"


class ContactsOnTwoCores(_TwoCores, Contacts):
    title = "contacts, two threads"
