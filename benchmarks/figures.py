"""Compare figures from disk (open, align, overlay, write) with ImageryClient."""

from __future__ import annotations

import io
from typing import Any, ClassVar

import numpy as np

import imageryxr as ix
from benchmarks import pictures, work
from benchmarks.isolated import run_isolated


def our_figure(image: str, segmentation: str, lo: list[int], hi: list[int]) -> int:
    """Draw a figure or a stack of figures, write PNGs to memory, and return their size."""
    box = ix.BBox(lo, hi, resolution=pictures.RESOLUTION)
    both = ix.align(ix.open_image(image), ix.open_segmentation(segmentation), bbox=box)
    picture = ix.overlay(both.image, both.segmentation, alpha=0.3).compute()
    return sum(write_png(ix.to_pil(picture.isel(z=[z]))) for z in range(picture.sizes["z"]))


def their_figure(image: str, segmentation: str, lo: list[int], hi: list[int]) -> int:
    """Do the same as ImageryClient's README: a cutout of both layers, split into masks, and one composite per slice."""
    import imageryclient

    client = imageryclient.ImageryClient(
        image_source=image, segmentation_source=segmentation, resolution=pictures.RESOLUTION
    )
    em, masks = client.image_and_segmentation_cutout([lo, hi], split_segmentations=True)
    if em.ndim == 2:
        return write_png(imageryclient.composite_overlay(masks, imagery=em, alpha=0.3))
    overlays = [
        imageryclient.composite_overlay({i: m[..., z] for i, m in masks.items()}, imagery=em[..., z], alpha=0.3)
        for z in range(em.shape[2])
    ]
    return sum(map(write_png, overlays))


def read_layers(image: str, segmentation: str, lo: list[int], hi: list[int]) -> Any:
    """Open and read both layers with CloudVolume."""
    from cloudvolume import Bbox, CloudVolume

    return [
        np.asarray(CloudVolume(path, progress=False).download(Bbox(lo, hi), mip=0)) for path in (image, segmentation)
    ]


def write_png(picture: Any) -> int:
    """Write a PNG to memory and return its size."""
    to = io.BytesIO()
    picture.save(to, format="PNG", compress_level=1)
    return len(to.getvalue())


def draw_figure(image: str, segmentation: str, lo: list[int], hi: list[int]) -> Any:
    """Draw a figure without writing it."""
    box = ix.BBox(lo, hi, resolution=pictures.RESOLUTION)
    both = ix.align(ix.open_image(image), ix.open_segmentation(segmentation), bbox=box)
    return ix.to_pil(ix.overlay(both.image, both.segmentation, alpha=0.3))


class _Figure(work.Work):
    side: ClassVar[int] = 512
    count: ClassVar[int] = 300
    depth: ClassVar[int] = 1

    def setup(self, *params: Any) -> None:
        shape = (4, 128, 128) if self.small else (max(16, self.depth), self.side, self.side)
        layers = pictures.layers(shape, min(self.count, 10) if self.small else self.count)
        lo = list(pictures.OFFSET)
        size = (shape[2], shape[1], min(self.depth, shape[0]))
        self.arguments = (layers.image, layers.segmentation, lo, [a + b for a, b in zip(lo, size, strict=True)])

    def ours(self) -> Any:
        return our_figure(*self.arguments)


class FigureAgainstReading(_Figure):
    title = "figure from disk, 2048², 300 segments, not written"
    peer_name = "reading both layers with CloudVolume"
    side = 2048
    at_least = 1 / 1.3

    def ours(self) -> Any:
        return draw_figure(*self.arguments)

    def peer(self) -> Any:
        return read_layers(*self.arguments)


class SmallFigure(_Figure):
    title = "figure from disk to PNG, 512², 2 segments"
    peer_name = "ImageryClient 1.0.4"
    count = 2
    at_least = 1
    rounds = 9

    def peer(self) -> Any:
        return their_figure(*self.arguments)


class Figure(_Figure):
    """Figures from disk to PNG, each side in a separate process with a limit of 14 GB and a few minutes."""

    title = "from disk to PNG"
    peer_name = "ImageryClient 1.0.4"
    param_names = ("size", "segments")
    params: ClassVar[Any] = [["512²", "2048²", "64×1024²"], [2, 30, 300, 3000]]
    targets: ClassVar[dict[tuple[str, int], float]] = {("2048²", 300): 80}
    sizes: ClassVar[dict[str, tuple[int, int]]] = {"512²": (1, 512), "2048²": (1, 2048), "64×1024²": (64, 1024)}

    def setup(self, size: str = "512²", segments: int = 2) -> None:  # type: ignore[override]
        self.title = f"from disk to PNG, {size}, {segments:,} segments"
        self.at_least = self.targets.get((size, segments))
        self.depth, self.side = self.sizes[size]
        self.count = segments
        super().setup()

    def measure(self) -> work.Measured:
        ours = run_isolated("benchmarks.figures:our_figure", self.arguments)
        theirs = run_isolated("benchmarks.figures:their_figure", self.arguments)
        if ours.seconds is None:
            raise RuntimeError(f"our figure failed: {ours.reason}")
        ratio = None if theirs.seconds is None else theirs.seconds / ours.seconds
        return work.Measured(ours.seconds, theirs.seconds, ratio, theirs.reason)

    def peer(self) -> Any:
        return their_figure(*self.arguments)
