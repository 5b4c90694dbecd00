"""The options of each format, for type checkers; the factories of the formats check the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypedDict


class OmeZarrOptions(TypedDict, total=False):
    """Options of an OME-Zarr."""

    chunks: Sequence[int]
    shards: Sequence[int] | None
    levels: int | None
    compressor: str | None
    version: str
    layer_type: str | None


class PrecomputedOptions(TypedDict, total=False):
    """Options of a precomputed layer."""

    chunks: Sequence[int]
    levels: int | None
    encoding: str | None
    quality: int | None
    gzip: bool
    layer_type: str | None


class PngOptions(TypedDict, total=False):
    """Options of a stack of PNG files."""

    compress_level: int


class TiffOptions(TypedDict, total=False):
    """Options of a TIFF file, and of a stack of TIFF files, which has `compression` only."""

    axis: str
    compression: str | None
    bigtiff: bool


class VideoOptions(TypedDict, total=False):
    """Options of a video; an animated GIF has no `crf`."""

    axis: str
    fps: float
    crf: float


class PageOptions(TypedDict, total=False):
    """Options of a page of cutouts."""

    labels: str | None


class FormatOptions(
    OmeZarrOptions, PrecomputedOptions, PngOptions, TiffOptions, VideoOptions, PageOptions, total=False
):
    """The options of all formats; at run time, only those of the target's format are accepted."""


class DaskClient(Protocol):
    """What an export needs of a `distributed.Client`, a package without complete types."""

    def submit(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a function on a worker."""

    def nthreads(self, workers: Any = None) -> Any:
        """Return the number of threads of each worker."""


Client = Literal["threads", "processes"] | str | DaskClient | None
"""Values of ``client=``."""
