"""Compare overlays and outlines of one picture with ImageryClient, scikit-image and xarray."""

from __future__ import annotations

from typing import Any, ClassVar

import imageryclient
import numpy as np
from imageryclient.utils import segmentation_masks

from benchmarks import kernels, pictures, work
from imageryxr.kernels import interpolate, outline


class _Picture(work.Work):
    """A slice of 512 x 512 pixels with 300 cells, on one core; ImageryClient splits it into masks first."""

    rounds = 2
    peer_name = "ImageryClient 1.0.4"

    def setup(self, *params: Any) -> None:
        side, count = (96, 8) if self.small else (512, 300)
        self.labels = pictures.cells((1, side, side), count)
        self.image = pictures.grey((1, side, side))
        self.turned = np.ascontiguousarray(self.labels[0].T)
        rng = np.random.default_rng(0)
        self.colors = {i: tuple(rng.random(3)) for i in np.unique(self.labels) if i}
        self.table = kernels.make_color_table(self.labels, 51)
        self.solid = kernels.make_color_table(self.labels, 255)


class FillImageryClient(_Picture):
    title = "fill over an image, 512², 300 ids"
    at_least = 2000

    def ours(self) -> Any:
        return outline.paint(self.labels, self.image, self.table, None)

    def peer(self) -> Any:
        masks = segmentation_masks(self.turned, False)
        return imageryclient.composite_overlay(masks, self.colors, alpha=0.2, imagery=self.image[0].T)


class _LinesImageryClient(_Picture):
    at_least = 500
    side: ClassVar[Any] = "in"
    merge: ClassVar[bool] = True

    def ours(self) -> Any:
        return outline.paint(self.labels, None, None, self.solid, limit=10, side=self.side, merge=self.merge)

    def peer(self) -> Any:
        masks = segmentation_masks(self.turned, False)
        return imageryclient.composite_overlay(
            masks, self.colors, alpha=1.0, outline=True, width=10, side=self.side, merge_outline=self.merge
        )


class InnerImageryClient(_LinesImageryClient):
    title = "outline in, unmerged, width 10, 512², 300 ids"
    merge = False


class OuterMergedImageryClient(_LinesImageryClient):
    title = "outline out, merged, width 10, 512², 300 ids"
    side = "out"


class OuterImageryClient(_LinesImageryClient):
    title = "outline out, unmerged, width 10, 512², 300 ids"
    side = "out"
    merge = False
    at_least = 150


class FillScikitImage(_Picture):
    title = "fill over an image, 512², 300 ids"
    peer_name = "scikit-image label2rgb (ids renumbered for it)"

    def prepare_peer(self) -> Any:
        return np.unique(self.labels[0], return_inverse=True)[1].reshape(self.labels[0].shape)

    def setup(self, *params: Any) -> None:
        super().setup(*params)
        self.small_labels = self.prepare_peer()

    def ours(self) -> Any:
        return outline.paint(self.labels, self.image, self.table, None)

    def peer(self) -> Any:
        from skimage.color import label2rgb

        return label2rgb(self.small_labels, self.image[0], alpha=0.2, bg_label=0)


class LinesScikitImage(FillScikitImage):
    title = "outline in, unmerged, width 1, 512², 300 ids"
    peer_name = "scikit-image mark_boundaries (one colour)"

    def ours(self) -> Any:
        return outline.paint(self.labels, self.image, None, self.solid, limit=1, side="in", merge=False)

    def peer(self) -> Any:
        from skimage.segmentation import mark_boundaries

        return mark_boundaries(self.image[0], self.small_labels, mode="inner")


class NearestReindex(work.Work):
    title = "regrid uint64 nearest, ×2 in-plane"
    peer_name = "xarray reindex(method='nearest')"
    at_least = 1
    rounds = 3

    def setup(self, *params: Any) -> None:
        import xarray as xr

        side = 64 if self.small else 1024
        self.labels = pictures.cells((2, side, side), 10 if self.small else 300)
        centers = (np.arange(side) + 0.5) * 8
        self.array = xr.DataArray(self.labels, dims=("z", "y", "x"), coords={"y": centers, "x": centers})
        self.fine = (np.arange(2 * side) + 0.5) * 4
        self.index = (np.arange(2), *(np.arange(2 * side) // 2,) * 2)

    def ours(self) -> Any:
        return interpolate.resample_nearest(self.labels, *self.index)

    def peer(self) -> Any:
        return self.array.reindex(y=self.fine, x=self.fine, method="nearest")


class NearestInterp(NearestReindex):
    title = "regrid uint64 nearest, ×2 in-plane (here wrong: ids become floats)"
    peer_name = "xarray interp(method='nearest')"
    at_least = None

    def peer(self) -> Any:
        return self.array.interp(y=self.fine, x=self.fine, method="nearest")
