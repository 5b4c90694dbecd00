"""Compare cutouts with one call of CloudVolume or TensorStore for the same box."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

import imageryxr as ix
from benchmarks import pictures, work


class _Cutout(work.Work):
    peer_name = "one CloudVolume.download"
    shape: ClassVar[tuple[int, int, int]] = (16, 1024, 1024)
    layer: ClassVar[str] = "segmentation"
    encoding: ClassVar[str] = ""
    """Encoding of a copy of the segmentation in uncompressed files, which both sides read instead."""

    def setup(self, *params: Any) -> None:
        from cloudvolume import CloudVolume

        self.box_shape = (4, 64, 64) if self.small else self.shape
        whole = (4, 128, 128) if self.small else (16, 1024, 1024)
        self.layers = pictures.layers(whole, 10 if self.small else 300)
        self.path = getattr(self.layers, self.layer)
        if self.encoding:
            self.path = self.path.replace("/seg", f"/{self.encoding}")
            pictures.write_layer(self.path, self.layers.labels(), "segmentation", self.encoding, compress=False)
        self.open = ix.open_image if self.layer == "image" else ix.open_segmentation
        self.volume = CloudVolume(self.path, progress=False, bounded=False)
        self.lo = pictures.OFFSET
        self.hi = tuple(o + n for o, n in zip(self.lo, self.box_shape[::-1], strict=True))

    def nm(self) -> dict[str, slice]:
        """Return the box as slices in nm, for `.sel`."""
        edges = zip("xyz", self.lo, self.hi, pictures.RESOLUTION, strict=True)
        return {d: slice(a * r, b * r) for d, a, b, r in edges}

    def ours(self) -> Any:
        return self.open(self.path).sel(self.nm()).values

    def peer(self) -> Any:
        from cloudvolume import Bbox

        return np.asarray(self.volume.download(Bbox(self.lo, self.hi), mip=0))


class SegmentationCutout(_Cutout):
    title = "open(…).sel(…), 16 Mvoxel of uint64"
    at_least = 1 / 1.1


class ImageCutout(_Cutout):
    title = "open(…).sel(…), 16 Mvoxel of uint8 JPEG"
    layer = "image"
    at_least = 1 / 1.1


class SegmentationBlocks(_Cutout):
    title = "open(…, bbox=…) in dask blocks, 16 Mvoxel of uint64"

    def ours(self) -> Any:
        box = ix.BBox(self.lo, self.hi, resolution=pictures.RESOLUTION)
        return self.open(self.path, bbox=box).values


class ImageBlocks(SegmentationBlocks):
    title = "open(…, bbox=…) in dask blocks, 16 Mvoxel of uint8 JPEG"
    layer = "image"


class SmallCutout(_Cutout):
    title = "open(…).sel(…), 512² of uint64"
    shape = (1, 512, 512)


class RawCutout(_Cutout):
    title = "open(…).sel(…), 16 Mvoxel of raw uint64"
    encoding = "raw"
    at_least = 1.0


class SmallRawCutout(RawCutout):
    title = "open(…).sel(…), 512² of raw uint64"
    shape = (1, 512, 512)


class TensorStoreCutout(_Cutout):
    title = "open(…).sel(…), 16 Mvoxel of uint64"
    peer_name = "TensorStore"
    encoding = "compressed_segmentation"  # TensorStore does not find CloudVolume's gzipped local chunks

    def setup(self, *params: Any) -> None:
        import tensorstore as ts

        super().setup(*params)
        folder = self.path.removeprefix("precomputed://file://")
        spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": folder}}
        self.store = ts.open(spec, open=True, read=True).result()

    def peer(self) -> Any:
        box = tuple(slice(a, b) for a, b in zip(self.lo, self.hi, strict=True))
        return self.store[box].read().result()


class RawTensorStoreCutout(TensorStoreCutout):
    title = "open(…).sel(…), 16 Mvoxel of raw uint64"
    encoding = "raw"
    at_least = 1.0


class SmallRawTensorStoreCutout(RawTensorStoreCutout):
    title = "open(…).sel(…), 512² of raw uint64"
    shape = (1, 512, 512)
