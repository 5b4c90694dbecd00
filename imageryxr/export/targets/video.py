"""Films with a frame per slice: videos, written with PyAV, and animated GIFs, written with Pillow."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from imageryxr.core.validate import check_number, check_whole
from imageryxr.errors import CodecError, Message, OptionError
from imageryxr.export.store.bucket import Place
from imageryxr.export.targets.base import (
    COARSER,
    DRAW_ADVICE,
    ArrayInfo,
    SingleFile,
    shown_values,
    single_file_axis,
    target_root,
)
from imageryxr.graph.expr import Array

if TYPE_CHECKING:
    from PIL.Image import Image

CODECS = {"mp4": "libx264", "webm": "libvpx-vp9"}
# Memory of the encoder: bytes per pixel of a buffered frame, number of frames besides those of threads, other bytes.
FRAME_BYTES = 3.5
FRAMES = 52
ENCODER_BYTES = 64_000_000
# Rows of a frame that are converted at a time; must be even.
BAND_ROWS = 64


@dataclass(frozen=True)
class Film(SingleFile):
    """A film whose frames are slices."""

    fps: float = 12.0

    noun: ClassVar[str]
    """Name of the format in errors, in the plural."""
    largest: ClassVar[int]
    """Pixels that a side of a frame may have."""

    def problems(self) -> list[str]:
        """Return an error for frames that are larger than the format allows."""
        rows, columns = self.picture_shape
        if max(rows, columns) <= self.largest:
            return []
        problem = f"a frame would be {columns} × {rows} pixels; {self.noun} have at most {self.largest}: "
        return [Message(problem, "export a smaller box, or ", COARSER)]

    def frame(self, plane: Array) -> Array:
        """Return grey values, or colours over black where they are transparent, because films have no alpha."""
        plane = shown_values(plane)
        if not self.layer.channels:
            return plane
        if (plane[..., 3] == 255).all():
            return plane[..., :3]
        return np.asarray(((plane[..., :3].astype(np.uint16) * plane[..., 3:] + 127) // 255).astype(np.uint8))

    def read_frames(self, place: Place, shape: tuple[int, ...]) -> Iterator[Array]:
        """Iterate over the pixels of the temporary files, each of a shape."""
        for data in self.read_pages(place):
            yield np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)


def check_film(layer: ArrayInfo, what: str, fps: Any, most: float, advice: str = "") -> float:
    """Return the frames per second; raise `OptionError` if the values or the rate do not suit a film.

    ``what`` is the name of the film's format in messages.
    """
    if layer.channels not in (0, 4):
        raise OptionError(f"{layer.channels} channels of dtype {layer.dtype} cannot be frames of {what}: give RGBA")
    if layer.dtype not in (np.uint8, np.bool_):
        raise OptionError(f"values of dtype {layer.dtype} cannot be frames of {what}; ", DRAW_ADVICE)
    expected = f"frames per second, above 0 and up to {most}{advice}"
    return float(check_number("fps", fps, 0, most, above=0, expected=expected))


# ---------------------------------------------------------------------------------------------------------
# videos


@dataclass(frozen=True)
class Video(Film):
    """A video whose frames are slices."""

    crf: int = 18

    noun = "videos"
    largest = 16384  # the limit of H.264, VP9 and players

    @property
    def container(self) -> str:
        """The container format, from the ending."""
        return self.place.lower().rpartition(".")[2]

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {"format": self.container, "axis": self.axis, "fps": self.fps, "crf": self.crf}

    @property
    def page_bytes(self) -> int:
        """Bytes of a frame in each stage of its conversion: slice, RGB, padded, YUV and compressed."""
        rows, columns = self.picture_shape
        return 16 * rows * columns

    @property
    def assembling_bytes(self) -> int:
        """Memory of the encoder, which buffers frames, and more of them with more threads."""
        rows, columns = self.picture_shape
        frames = min(self.layer.grid.shape[self.axis], FRAMES + 3 * (os.cpu_count() or 1))
        return int(FRAME_BYTES * frames * rows * columns) + ENCODER_BYTES

    def page(self, plane: Array) -> bytes:
        """Return the frame's colours as YUV."""
        frame = self.frame(plane)
        if not self.layer.channels:
            frame = np.repeat(frame[..., np.newaxis], 3, axis=-1)
        rows, columns = self.picture_shape
        # colours are stored per 2 × 2 pixels, so the last row or column of an odd side is repeated
        even = np.pad(frame, ((0, rows % 2), (0, columns % 2), (0, 0)), mode="edge")
        return zlib.compress(yuv420(even).tobytes(), 1)

    def assemble(self, place: Place, path: str) -> None:
        """Encode the frames, in order."""
        import av

        rows, columns = (n + n % 2 for n in self.picture_shape)
        # "bitexact" leaves out random identifiers, the time and the version of the encoder
        with av.open(path, "w", format=self.container, options={"fflags": "bitexact"}) as film:
            stream: Any = film.add_stream(CODECS[self.container], rate=Fraction(self.fps).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
            # BT.709, from 16 to 235; without these fields, players guess the colour space from the frame size
            context = stream.codec_context
            context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
            rate = {"b:v": "0"} if self.container == "webm" else {}
            stream.options = {"crf": str(self.crf), "flags": "bitexact", **rate}
            for pixels in self.read_frames(place, (rows * 3 // 2, columns)):
                frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
                for packet in stream.encode(frame):
                    film.mux(packet)
            for packet in stream.encode(None):
                film.mux(packet)


def yuv420(rgb: Array) -> Array:
    """Convert a picture of even size to YUV 4:2:0 (BT.709).

    FFmpeg's own conversion rounds differently depending on the alignment of memory.
    """
    rows, columns, _ = rgb.shape
    out = np.empty(rows * columns * 3 // 2, np.uint8)
    y = out[: rows * columns].reshape(rows, columns)
    colors = out[rows * columns :].reshape(2, rows // 2, columns // 2)
    # a few rows at a time, because floats need many times the memory of the frame
    for top in range(0, rows, BAND_ROWS):
        band = slice(top, top + BAND_ROWS)
        half = slice(top // 2, (top + BAND_ROWS) // 2)
        y[band], colors[0, half], colors[1, half] = map(_round_to_uint8, _yuv(rgb[band]))
    return out.reshape(rows * 3 // 2, columns)


def _yuv(rgb: Array) -> tuple[Array, Array, Array]:
    rows, columns, _ = rgb.shape
    r, g, b = (rgb[..., i].astype(np.float32) for i in range(3))
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    halves = []
    for color, scale in ((b, 1.8556), (r, 1.5748)):
        difference = ((color - y) / scale).reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
        halves.append(128 + difference * (224 / 255))
    return 16 + y * (219 / 255), halves[0], halves[1]


def _round_to_uint8(values: Array) -> Array:
    return np.asarray(np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8))


def video(place: str, layer: ArrayInfo, *, axis: str = "z", fps: Any = 12.0, crf: Any = 18) -> Video:
    """Return the video at a path; raise `OptionError`, or `CodecError` without PyAV."""
    if find_spec("av") is None:
        raise CodecError("videos need PyAV, which is not installed; run pip install 'imageryxr[video]'")
    rate = check_film(layer, "a video", fps, 1000)
    crf = check_whole("crf", crf, 0, 51, expected="a whole number from 0 (best) to 51 (smallest)")
    return Video(place, target_root(place), layer, single_file_axis(axis), rate, crf)


# ---------------------------------------------------------------------------------------------------------
# animated GIFs


@dataclass(frozen=True)
class Gif(Film):
    """An animated GIF whose frames are slices."""

    noun = "GIFs"
    largest = 65535  # the format has 16-bit sizes

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {"format": "gif", "axis": self.axis, "fps": self.fps}

    def page(self, plane: Array) -> bytes:
        """Return the frame's grey values or colours."""
        return zlib.compress(np.ascontiguousarray(self.frame(plane)).tobytes(), 1)

    def assemble(self, place: Place, path: str) -> None:
        """Write the frames in order, repeated for ever, with at most 256 colours per frame."""
        frames = self._frames(place)
        first = next(frames)
        first.save(
            path, format="GIF", save_all=True, append_images=frames, duration=round(1000 / self.fps), loop=0,
            optimize=False, disposal=1,
        )  # fmt: skip

    def _frames(self, place: Place) -> Iterator[Image]:
        from PIL import Image

        shape = (*self.picture_shape, 3) if self.layer.channels else self.picture_shape
        for pixels in self.read_frames(place, shape):
            frame = Image.fromarray(pixels)
            yield frame.quantize(256) if self.layer.channels else frame


def gif(place: str, layer: ArrayInfo, *, axis: str = "z", fps: Any = 12.0) -> Gif:
    """Return the animated GIF at a path, or raise `OptionError`."""
    rate = check_film(layer, "a GIF", fps, 50, ", the limit of viewers")
    return Gif(place, target_root(place), layer, single_file_axis(axis), rate)
