"""Time opening, cropping and building an overlay of petavoxel volumes, without reading voxels."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle

import imageryxr as ix
from benchmarks import work

SIZE = (240_000, 220_000, 28_000)


def write_huge_layer(folder: Path, kind: str) -> str:
    """Write the info file of a layer of 1.5 petavoxels without chunks; return its address."""
    scale = {
        "chunk_sizes": [[128, 128, 16]],
        "encoding": "raw",
        "key": "4_4_40",
        "resolution": [4, 4, 40],
        "size": list(SIZE),
        "voxel_offset": [0, 0, 0],
    }
    info = {"data_type": "uint8" if kind == "image" else "uint64", "num_channels": 1, "scales": [scale], "type": kind}
    (folder / kind).mkdir()
    (folder / kind / "info").write_text(json.dumps({"@type": "neuroglancer_multiscale_volume", **info}))
    return f"precomputed://file://{folder / kind}"


class Petavoxel(work.Work):
    """Graphs of a figure and of the whole volume: build times, numbers of tasks and pickled sizes."""

    title = "open, crop, align and build an overlay, 1024² of 1.5 Pvoxel"
    peer_name = "xarray.open_dataset of the same voxels as Zarr, and .isel"
    rounds = 5
    figure: ClassVar[Any] = ix.BBox.around((120_000, 110_000, 14_000), (1024, 1024), resolution=(4, 4, 40))

    def setup(self, *params: Any) -> None:
        import zarr

        self.folder = tempfile.TemporaryDirectory(prefix="imageryxr-benchmark-")
        folder = Path(self.folder.name)
        self.image, self.segmentation = write_huge_layer(folder, "image"), write_huge_layer(folder, "segmentation")
        self.zarr = str(folder / "peer.zarr")
        group = zarr.open_group(self.zarr, mode="w")
        for name, dtype in (("image", "uint8"), ("segmentation", "uint64")):
            group.create_array(
                name, shape=SIZE[::-1], chunks=(16, 128, 128), dtype=dtype, dimension_names=("z", "y", "x")
            )

    def teardown(self, *params: Any) -> None:
        self.folder.cleanup()

    def build(self, bbox: ix.BBox | None) -> Any:
        """Build the overlay of a box, or of the whole volume."""
        both = ix.align(ix.open_image(self.image), ix.open_segmentation(self.segmentation), bbox=bbox)
        return ix.overlay(both.image, both.segmentation, outline=3)

    def ours(self) -> Any:
        return self.build(self.figure)

    def peer(self) -> Any:
        import xarray as xr

        # without dask, whose graph of 88 million blocks would take minutes
        opened = xr.open_dataset(self.zarr, engine="zarr", consolidated=False)
        return opened.isel(z=[14_000], y=slice(109_488, 110_512), x=slice(119_488, 120_512))

    def track_tasks_of_a_figure(self, *params: Any) -> int:
        import dask

        return len(dask.optimize(self.build(self.figure))[0].__dask_graph__())

    def track_bytes_of_everything(self, *params: Any) -> int:
        return len(cloudpickle.dumps(self.build(None).data))

    def time_everything(self, *params: Any) -> None:
        self.build(None)

    def remark(self) -> str:
        """Return a remark for the title of the row."""
        began = time.perf_counter()
        everything = self.build(None)
        taken = time.perf_counter() - began
        blocks = everything.data.npartitions
        size = len(cloudpickle.dumps(everything.data))
        return (
            f"{self.track_tasks_of_a_figure()} tasks; the whole volume, {blocks:,} blocks: built in "
            f"{taken * 1e3:.0f} ms, pickled {size / 1e3:.1f} kB"
        )
