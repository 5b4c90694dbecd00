"""The options of exports, for type checkers and the command line; the factories of the formats check the values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol, TypedDict

from imageryxr.core.option import Option

_LAYER_TYPE = Option("'image' or 'segmentation'.")
_CHUNKS = Option("Chunk size: z,y,x voxels.")
_LEVELS = Option("Levels of the pyramid; 1 for none.")


class OmeZarrOptions(TypedDict, total=False):
    """Options of an OME-Zarr."""

    chunks: Annotated[Sequence[int], _CHUNKS]
    shards: Annotated[
        Sequence[int] | None, Option("Shard size: z,y,x voxels, multiples of the chunk size; 'none': no shards.")
    ]
    levels: Annotated[int | None, _LEVELS]
    compressor: Annotated[str | None, Option("OME-Zarr: zstd, lz4, gzip (e.g. zstd:5) or none.")]
    version: Annotated[str, Option("OME-Zarr: 0.5 or 0.4.", flag="ome_version")]
    layer_type: Annotated[str | None, _LAYER_TYPE]


class PrecomputedOptions(TypedDict, total=False):
    """Options of a precomputed layer."""

    chunks: Annotated[Sequence[int], _CHUNKS]
    levels: Annotated[int | None, _LEVELS]
    encoding: Annotated[str | None, Option("precomputed: raw, jpeg, png or compressed_segmentation.")]
    quality: Annotated[int | None, Option("precomputed as JPEG: 1 to 100.")]
    gzip: Annotated[bool, Option("precomputed: smaller files, for buckets.")]
    layer_type: Annotated[str | None, _LAYER_TYPE]


class PngOptions(TypedDict, total=False):
    """Options of a stack of PNG files."""

    compress_level: Annotated[int, Option("PNG: 0 to 9.")]


class TiffOptions(TypedDict, total=False):
    """Options of a TIFF file, and of a stack of TIFF files, which has `compression` only."""

    axis: str
    compression: Annotated[str | None, Option("TIFF: zlib or none.")]
    bigtiff: Annotated[bool, Option("TIFF: allow more than 4 GiB.")]


class VideoOptions(TypedDict, total=False):
    """Options of a video; an animated GIF has no `crf`."""

    axis: str
    fps: Annotated[float, Option("Video: frames per second.")]
    crf: Annotated[int, Option("Video: 0 (best) to 51 (smallest).")]


class PageOptions(TypedDict, total=False):
    """Options of a page of cutouts."""

    labels: str | None


class CutoutPictureOptions(TypedDict, total=False):
    """Options of pictures of cutouts, and of a page of them."""

    scale: int


class FormatOptions(
    OmeZarrOptions,
    PrecomputedOptions,
    PngOptions,
    TiffOptions,
    VideoOptions,
    PageOptions,
    CutoutPictureOptions,
    total=False,
):
    """The options of all formats; at run time, only those of the target's format are accepted."""


class DaskClient(Protocol):
    """The methods of a `distributed.Client` that exports call, because distributed has no complete types."""

    def submit(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a function on a worker."""

    def nthreads(self, workers: Any = None) -> Any:
        """Return the number of threads of each worker."""


Client = Literal["threads", "processes"] | str | DaskClient | None
"""Values of ``client=``."""


class RunOptions(TypedDict, total=False):
    """The options of `imageryxr.export` for all formats."""

    overwrite: Annotated[bool, Option("Replace a target that exists.", default=False)]
    resume: Annotated[bool, Option("Continue an unfinished export of the same call, or start again.", default=True)]
    client: Annotated[
        Client,
        Option(
            "The workers: 'threads' (default), 'processes', or a dask scheduler's address, tcp://host:8786.",
            flag="scheduler",
        ),
    ]
    workers: Annotated[int | None, Option("Number of threads or processes; of a cluster, regions in progress.")]
    memory: Annotated[int | str | None, Option("Memory of a worker, such as '4 GB'; default: the available memory.")]
    scratch: Annotated[
        str | os.PathLike[str] | Literal[False] | None,
        Option(
            "Folder on a local disk for scratch files of wide slices; default: TMPDIR, or a dask worker's own folder; "
            "'none': no scratch files, chunks are read repeatedly."
        ),
    ]
    retries: Annotated[int, Option("Number of retries of a failed region.", default=3)]
    on_error: Annotated[
        Literal["raise", "collect"],
        Option("'raise': stop at a failed region; 'collect': continue and list all of them.", default="raise"),
    ]
    progress: Annotated[bool | None, Option("Show a progress bar; default: in a terminal.")]
    square: Annotated[bool | None, Option("Resample slices to square pixels, or write one per voxel.")]
