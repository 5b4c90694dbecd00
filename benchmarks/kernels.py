"""Compare kernels on one core with a copy of their input or output, the lower bound set by memory."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from benchmarks import pictures, work
from imageryxr.core.axis_mapping import LinearMap, OverlapMap
from imageryxr.core.colors import palette
from imageryxr.kernels import color_table, downsample, fill, interpolate, isin, outline


def make_color_table(labels: Any, alpha: int) -> color_table.ColorTable:
    """Return a colour table with a different colour for each id of a picture."""
    ids = [int(i) for i in np.unique(labels) if i]
    rgb = np.array(list(palette(ids, "husl").values()), np.uint8)
    return color_table.build_color_table(
        np.array(ids, np.uint64), np.column_stack([rgb, np.full(len(ids), alpha, np.uint8)])
    )


class Kernel(work.Work):
    """A kernel on slices with 300 cells, ids beyond 2**53, compared with ``numpy.copyto`` of the labels."""

    title: ClassVar[str] = ""
    peer_name = "numpy.copyto of the labels"

    def setup(self, *params: Any) -> None:
        shape = (2, 128, 128) if self.small else (4, 1024, 1024)
        self.labels = pictures.cells(shape, 10 if self.small else 300)
        self.image = pictures.grey(shape)
        self.copy = np.empty_like(self.labels)
        self.prepare()

    def prepare(self) -> None:
        """Create the other inputs of the kernel; not timed."""

    def peer(self) -> None:
        np.copyto(self.copy, self.labels)


class Fill(Kernel):
    title = "fill over an image, 300 ids"
    at_least = 0.4

    def prepare(self) -> None:
        self.table = make_color_table(self.labels, 51)

    def ours(self) -> Any:
        return outline.paint(self.labels, self.image, self.table, None)


class FillByHash(Fill):
    title = "fill over an image, colours by hash"

    def prepare(self) -> None:
        colors = np.random.default_rng(0).integers(0, 256, (512, 4), np.uint8)
        self.table = color_table.build_color_table(fallback=colors)


class _Lines(Kernel):
    side: ClassVar[Literal["in", "out"]] = "in"
    merge: ClassVar[bool] = True
    width: ClassVar[float] = 10

    def prepare(self) -> None:
        self.table = make_color_table(self.labels, 255)

    def ours(self) -> Any:
        return outline.paint(self.labels, None, None, self.table, limit=self.width, side=self.side, merge=self.merge)


class InnerMerged(_Lines):
    title = "outline in, merged, width 10"
    at_least = 0.1


class InnerUnmerged(_Lines):
    title = "outline in, unmerged, width 10"
    merge = False
    at_least = 0.1


class OuterMerged(_Lines):
    title = "outline out, merged, width 10"
    side = "out"
    at_least = 0.1


class OuterUnmerged(_Lines):
    title = "outline out, unmerged, width 10"
    side = "out"
    merge = False
    at_least = 0.02


class InnerWide(_Lines):
    title = "outline in, unmerged, width 40"
    merge = False
    width = 40


class OuterWide(_Lines):
    title = "outline out, merged, width 40"
    side = "out"
    width = 40


class FillAndLine(Kernel):
    title = "fill and outline in, unmerged, width 3, in one pass"

    def prepare(self) -> None:
        self.filling, self.line = make_color_table(self.labels, 51), make_color_table(self.labels, 255)

    def ours(self) -> Any:
        return outline.paint(self.labels, self.image, self.filling, self.line, limit=3, side="in", merge=False)


class Background(Kernel):
    title = "fill and outline of background only"

    def prepare(self) -> None:
        self.table = make_color_table(self.labels, 255)
        self.labels = np.zeros_like(self.labels)

    def ours(self) -> Any:
        return outline.paint(self.labels, self.image, self.table, self.table, limit=10)


class Select(Kernel):
    title = "select 30 of 300 ids"

    def prepare(self) -> None:
        self.ids = np.unique(self.labels)[1::10]

    def ours(self) -> Any:
        return isin.select(self.labels, self.ids)


class Contrast(Kernel):
    title = "contrast of a uint16 image"
    peer_name = "numpy.copyto of the image"

    def prepare(self) -> None:
        self.wide = self.image.astype(np.uint16) * 257
        self.wide_copy = np.empty_like(self.wide)

    def ours(self) -> Any:
        return fill.to_uint8(self.wide, 2000, 60000)

    def peer(self) -> None:
        np.copyto(self.wide_copy, self.wide)


class AlphaOver(Kernel):
    title = "one RGBA layer over another"
    peer_name = "numpy.copyto of a layer"

    def prepare(self) -> None:
        self.bottom = fill.gray_to_rgba(self.image)
        self.top = outline.paint(self.labels, None, make_color_table(self.labels, 90), None)
        self.layer = np.empty_like(self.top)

    def ours(self) -> Any:
        return fill.alpha_over(self.bottom, self.top)

    def peer(self) -> None:
        np.copyto(self.layer, self.top)


class _Regrid(Kernel):
    peer_name = "numpy.copyto of the result"

    def peer(self) -> None:
        # into new memory, like the kernel
        np.copyto(np.empty_like(self.result), self.result)


def _twice(n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(2 * n, dtype=np.int64) // 2


class NearestTwice(_Regrid):
    title = "regrid uint64 nearest, ×2 in-plane"
    at_least = 0.5

    def prepare(self) -> None:
        depth, height, width = self.labels.shape
        self.index = (np.arange(depth, dtype=np.int64), _twice(height), _twice(width))
        self.result = self.ours()

    def ours(self) -> Any:
        return interpolate.resample_nearest(self.labels, *self.index)


class LinearTwice(_Regrid):
    title = "regrid uint8 linear, ×2 in-plane"

    def prepare(self) -> None:
        def along(n: int) -> LinearMap:
            at = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
            low = np.floor(at).astype(np.int64)
            return LinearMap(low, np.minimum(low + 1, n - 1), at - low)

        depth, height, width = self.image.shape
        plane = np.arange(depth, dtype=np.int64)
        self.axes = (LinearMap(plane, plane, np.zeros(depth)), along(height), along(width))
        self.result = self.ours()

    def ours(self) -> Any:
        return interpolate.resample_linear(self.image, self.axes)


def _halves(n: int, by: int) -> OverlapMap:
    count = n // by
    return OverlapMap(np.arange(count) * by, np.arange(count + 1) * by, np.ones(count * by, np.int64))


class MeanHalf(Kernel):
    title = "regrid uint8 mean, ÷2 in-plane"
    peer_name = "numpy.copyto of the image"

    def prepare(self) -> None:
        self.axes = tuple(_halves(n, by) for n, by in zip(self.image.shape, (1, 2, 2), strict=True))
        self.image_copy = np.empty_like(self.image)

    def ours(self) -> Any:
        return downsample.mean(self.image, self.axes)  # type: ignore[arg-type]

    def peer(self) -> None:
        np.copyto(self.image_copy, self.image)


class MeanHalfRgba(MeanHalf):
    title = "regrid RGBA mean, ÷2 in-plane"
    peer_name = "numpy.copyto of the picture"

    def prepare(self) -> None:
        super().prepare()
        self.image = outline.paint(self.labels, self.image, make_color_table(self.labels, 90), None)
        self.image_copy = np.empty_like(self.image)

    def ours(self) -> Any:
        return downsample.mean_rgba(self.image, self.axes)  # type: ignore[arg-type]


class ModeHalf(Kernel):
    title = "regrid uint64 mode, ÷2 in-plane"

    def prepare(self) -> None:
        self.axes = tuple(_halves(n, by) for n, by in zip(self.labels.shape, (1, 2, 2), strict=True))

    def ours(self) -> Any:
        return downsample.mode(self.labels, self.axes)  # type: ignore[arg-type]
