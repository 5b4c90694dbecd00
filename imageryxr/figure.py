"""Pictures: one slice as a Pillow image, several side by side, and a scale bar.

Everything here returns pixels, so everything here computes. Pillow loads inside the functions that need it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.colors import RGBA, parse_color
from imageryxr.errors import GridError, LayerError, OptionError
from imageryxr.grid import DIMS, grid_of

if TYPE_CHECKING:
    from PIL.Image import Image

Position: TypeAlias = Literal["bottom right", "bottom left", "top right", "top left"]

WHITE: RGBA = (255, 255, 255, 255)
BLACK: RGBA = (0, 0, 0, 255)


# --- one slice --------------------------------------------------------------------------------------------


def to_pil(rgba: xr.DataArray) -> Image:
    """Turn one slice into a Pillow image; computes it.

    Parameters
    ----------
    rgba : DataArray
        uint8 with the dims (z, y, x, rgba), as `overlay` and `to_rgba` give it, or uint8 or bool without ``rgba``.
        One of z, y and x is gone or has size 1. Of several with size 1, the first is the one left out.

    Returns
    -------
    PIL.Image.Image
        Mode RGBA with straight alpha; mode L for grey, and for a mask with 0 and 255. The remaining dims are rows
        and columns: (y, x) of a z slice, (z, x) of a y slice, (z, y) of an x slice. A pixel is a voxel, also where
        voxels are not cubes: `regrid` first for true proportions.

    Raises
    ------
    OptionError
        If there is more than one slice, or none.
    LayerError
        If the array holds segment ids, grey values other than uint8, or has other dims.

    Examples
    --------
    >>> volume = xr.DataArray(np.zeros((5, 40, 60), np.uint8), dims=("z", "y", "x"))
    >>> to_pil(volume.isel(z=0)).size
    (60, 40)
    >>> to_pil(volume.isel(y=[7])).size
    (60, 5)
    """
    return picture_of(np.asarray(_plane(rgba).values))


def picture_of(plane: npt.NDArray[Any]) -> Image:
    """Turn rows of pixels into a Pillow image.

    Parameters
    ----------
    plane : array, shape (rows, columns) or (rows, columns, 4)
        uint8, uint16 or bool; with four channels uint8.

    Returns
    -------
    PIL.Image.Image
        Mode RGBA with four channels, else L, or I;16 of uint16. True becomes 255.
    """
    from PIL import Image

    if plane.dtype == np.bool_:
        plane = plane.astype(np.uint8) * 255
    gray = plane.ndim == 2 and plane.dtype in (np.uint8, np.uint16)
    if not gray and not (plane.ndim == 3 and plane.shape[2] == 4 and plane.dtype == np.uint8):
        raise LayerError(
            f"pixels of shape {plane.shape} and dtype {plane.dtype} are no picture; make uint8 RGBA of them"
        )
    return Image.fromarray(np.ascontiguousarray(plane))


def _plane(da: Any) -> xr.DataArray:
    """Check that an array is one picture, and leave out its slice axis; computes nothing."""
    _check_values(da)
    dims = [dim for dim in DIMS if dim in da.dims]
    others = [str(dim) for dim in da.dims if dim not in (*DIMS, "rgba")]
    shape = ", ".join(f"{dim}: {size}" for dim, size in da.sizes.items())
    if others or len(dims) < 2:
        hint = f"take one with .isel({others[0]}=0)" if others else "keep the dropped ones, as with .isel(y=[0])"
        raise LayerError(f"a picture has two of the dims z, y and x, and this array has ({shape}); {hint}")
    if 0 in da.sizes.values():
        raise OptionError(f"the array is empty ({shape}), which is no picture; widen the selection")
    if len(dims) == 3:
        thin = next((dim for dim in dims if da.sizes[dim] == 1), None)
        if thin is None:
            raise OptionError(
                f"the array has {da.sizes['z']} slices ({shape}), and a picture is one. Take one with .isel(z=0), lay "
                "them side by side with montage(array), or write each to a file with "
                "export(array, 'stack/z{z:04d}.png')"
            )
        da = da.isel({thin: 0})
        dims.remove(thin)
    plane: xr.DataArray = da.transpose(*dims, *(["rgba"] if "rgba" in da.dims else []))
    return plane


def _check_values(da: Any) -> None:
    if not isinstance(da, xr.DataArray):
        raise LayerError(
            f"a picture is made of a DataArray with dims such as (z, y, x, rgba), and this is a {type(da).__name__}. "
            "Write xarray.DataArray(values, dims=('y', 'x')) for a NumPy array, or ds.image for a Dataset's variable"
        )
    if "rgba" in da.dims:
        if da.dtype != np.uint8 or da.sizes["rgba"] != 4:
            raise LayerError(
                f"RGBA is uint8 with 4 channels, and this has dtype {da.dtype} and {da.sizes['rgba']}; "
                "overlay(…) and to_rgba(…) make it so"
            )
        return
    if da.dtype == np.bool_:
        return
    if da.attrs.get("layer_type") == "segmentation" or da.dtype in (np.uint64, np.int64):
        raise LayerError(
            f"the array holds segment ids ({da.dtype}), which have no colours yet; "
            "write to_pil(overlay(image, segmentation)), or overlay(None, segmentation, alpha=1) without an image"
        )
    if da.dtype != np.uint8:
        raise LayerError(
            f"grey values of dtype {da.dtype} have no given black and white; "
            "write to_pil(to_rgba(image, contrast_limits=(black, white)))"
        )


# --- several ----------------------------------------------------------------------------------------------


def montage(
    images: xr.DataArray | Iterable[xr.DataArray | Image],
    *,
    columns: int | None = None,
    spacing: int = 10,
    background: Any = "white",
    labels: bool | Sequence[str] | None = None,
    label_size: int | None = None,
    dim: str = "z",
) -> Image:
    """Lay pictures side by side, or in rows and columns; computes them.

    Parameters
    ----------
    images : DataArray, or iterable of DataArray and PIL.Image.Image
        A stack, whose slices along `dim` are the tiles; or the tiles, each as `to_pil` takes it. A stack is
        computed chunk by chunk along `dim`, so that each is read once.
    columns : int, optional
        Tiles in a row; 1 is one below the other. Default: all in one row.
    spacing : int, default 10
        Pixels between tiles.
    background : colour or None, default "white"
        What lies between and behind the tiles; anything that `parse_color` reads. None keeps the tiles' own
        transparency and leaves the gaps transparent.
    labels : None, True or sequence of str, default None
        A text in the upper left corner of each tile. True tells the place of the slice, such as "z = 4,020 nm", or
        its number where there is no coordinate.
    label_size : int, optional
        Height of the text in pixels. Default: a sixteenth of the smallest tile, at least 10. Text that would be
        wider than its tile is made smaller.
    dim : str, default "z"
        The axis of a stack to slice: "z", "y", "x", or another dim of the array, such as "segment".

    Returns
    -------
    PIL.Image.Image
        Mode RGB, or RGBA if the background is None or has transparency. Each column is as wide as its widest tile
        and each row as high as its highest; smaller tiles stand in the middle of their cells.

    Raises
    ------
    OptionError
        If there is no tile, or not one label per tile.

    Examples
    --------
    >>> stack = xr.DataArray(np.zeros((4, 20, 30), np.uint8), dims=("z", "y", "x"))
    >>> montage(stack).size
    (150, 20)
    >>> montage(stack, columns=2, spacing=4, background=None).size
    (64, 44)
    """
    _check_count("spacing", spacing, 0)
    fill = None if background is None else parse_color(background)
    images = images if isinstance(images, xr.DataArray) else _listed(images)
    names = _names(images, dim)
    texts = _label_texts(labels, names)
    columns = len(names) if columns is None else _check_count("columns", columns, 1)
    if label_size is not None:
        _check_count("label_size", label_size, 1)

    tiles = [picture.convert("RGBA") for picture in _pictures(images, dim)]
    if texts:
        size = label_size or max(10, min(min(tile.size) for tile in tiles) // 16)
        tiles = [_labelled(tile, text, size, fill) for tile, text in zip(tiles, texts, strict=True)]
    return _grid_picture(tiles, columns, spacing, fill)


def _check_count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise OptionError(f"{name}={value!r} is not a whole number of at least {least}")
    return int(value)


def _listed(images: Any) -> list[Any]:
    from PIL import Image

    if isinstance(images, (Image.Image, str, bytes, np.ndarray, xr.Dataset)) or not isinstance(images, Iterable):
        raise OptionError(
            f"montage was given a {type(images).__name__}. Write a list of pictures, such as [a, b], or a DataArray, "
            "whose slices become the tiles"
        )
    return list(images)


def _names(images: xr.DataArray | list[Any], dim: str) -> list[str]:
    """Check the tiles and tell where each lies; computes nothing."""
    from PIL import Image

    if not isinstance(images, xr.DataArray):
        tiles = images
    elif dim in images.dims:
        tiles = [images.isel({dim: i}) for i in range(images.sizes[dim])]
    elif dim in DIMS:
        tiles = [images]
    else:
        raise OptionError(f"dim={dim!r} is none of the dims of the array, which are {tuple(map(str, images.dims))}")
    if not tiles:
        raise OptionError("montage was given no pictures; give at least one")
    for tile in tiles:
        if not isinstance(tile, Image.Image):
            _plane(tile)
    return [_place_of(tile, dim, number) for number, tile in enumerate(tiles)]


def _pictures(images: xr.DataArray | list[Any], dim: str) -> Iterator[Image]:
    if not isinstance(images, xr.DataArray):
        yield from (to_pil(image) if isinstance(image, xr.DataArray) else image for image in images)
    elif dim not in images.dims:
        yield to_pil(images)
    else:
        # By chunks, since stored ones are often 64 slices deep: slice by slice would read each of them 64 times.
        start = 0
        for depth in images.chunksizes.get(dim, (images.sizes[dim],)):
            slab = images.isel({dim: slice(start, start + depth)}).compute()
            yield from (to_pil(slab.isel({dim: i})) for i in range(depth))
            start += depth


def _place_of(tile: Any, dim: str, number: int) -> str:
    """Say where a tile lies, from the coordinate of its slice."""
    if not isinstance(tile, xr.DataArray):
        return str(number)
    thin = [d for d in (dim, *DIMS) if d in tile.coords and tile.coords[d].size == 1]
    if not thin:
        return f"{dim} {number}"
    value = tile.coords[thin[0]]
    if value.dtype.kind != "f":
        return f"{thin[0]} {value.values.reshape(-1)[0]}"
    return f"{thin[0]} = {float(value.values.reshape(-1)[0]):,.10g} {value.attrs.get('units', '')}".rstrip()


def _label_texts(labels: Any, names: list[str]) -> list[str]:
    if labels is None or labels is False:
        return []
    if labels is True:
        return names
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise OptionError(f"labels={labels!r} is no list of texts. Write one per tile, or True for the slices' places")
    texts = [str(label) for label in labels]
    if len(texts) != len(names):
        raise OptionError(f"there are {len(texts)} labels for {len(names)} tiles; give one per tile, '' for none")
    return texts


def _grid_picture(tiles: list[Image], columns: int, spacing: int, fill: RGBA | None) -> Image:
    from PIL import Image

    columns = min(columns, len(tiles))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    size = (sum(widths) + spacing * (columns - 1), sum(heights) + spacing * (len(rows) - 1))
    canvas = Image.new("RGBA", size, fill or (0, 0, 0, 0))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for tile, width in zip(row, widths, strict=False):
            at = (left + (width - tile.width) // 2, top + (height - tile.height) // 2)
            if fill is None:
                canvas.paste(tile, at)
            else:
                canvas.alpha_composite(tile, at)
            left += width + spacing
        top += height + spacing
    return canvas.convert("RGB") if fill and fill[3] == 255 else canvas


# --- text -------------------------------------------------------------------------------------------------


def _labelled(tile: Image, text: str, size: int, behind: RGBA | None) -> Image:
    """Write a text into the upper left corner of a copy of a tile."""
    if not text:
        return tile
    margin = max(2, size // 3)
    size = _fitting(text, size, tile.width - 2 * margin)
    width, height = _extent(text, size)
    color = _contrasting(tile.crop((margin, margin, margin + width, margin + height)), behind)
    tile = tile.copy()
    _write(tile, (margin, margin), text, size, color)
    return tile


@lru_cache(maxsize=64)
def _font(size: int) -> Any:
    # Pillow's own font has no µ; Matplotlib brings one that has.
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _stroke(size: int) -> int:
    return max(1, round(size / 14))


def _extent(text: str, size: int) -> tuple[int, int]:
    """Measure a text with its rim: pixels across and down."""
    left, top, right, bottom = _font(size).getbbox(text, stroke_width=_stroke(size))
    return math.ceil(right - left), math.ceil(bottom - top)


def _fitting(text: str, size: int, width: int) -> int:
    """Give the largest size of text that fits, though none that nobody can read."""
    while size > 6 and _extent(text, size)[0] > width:
        size -= 1
    return size


def _write(picture: Image, at: tuple[int, int], text: str, size: int, color: RGBA) -> None:
    """Write a text, with a rim of the opposite tone, which keeps it legible where membranes run under it."""
    from PIL import Image, ImageDraw

    font, stroke = _font(size), _stroke(size)
    left, top, _, _ = font.getbbox(text, stroke_width=stroke)
    rim = BLACK if _luminance(color) > MIDDLE else WHITE
    for ink, width in ((rim, stroke), (color, 0)):
        # Through a mask, for text drawn into RGBA mixes its edges with the colour that transparent pixels hide.
        mask = Image.new("L", picture.size, 0)
        ImageDraw.Draw(mask).text((at[0] - left, at[1] - top), text, fill=ink[3], font=font, stroke_width=width)
        layer = Image.new("RGBA", picture.size, (*ink[:3], 0))
        layer.putalpha(mask)
        picture.alpha_composite(layer)


# The luminance against which black and white have the same contrast (WCAG: (L + .05)² = 1.05 · .05).
MIDDLE = 0.179


def _luminance(color: Sequence[float]) -> float:
    """Give the relative luminance of an sRGB colour: 0 black, 1 white."""
    red, green, blue = (math.pow(part / 255, 2.2) for part in color[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrasting(region: Image, behind: RGBA | None) -> RGBA:
    """Choose black or white, whichever stands out more from a region of a picture."""
    from PIL import Image, ImageStat

    ground = Image.new("RGBA", region.size, behind or WHITE)
    ground.alpha_composite(region)
    return WHITE if _luminance(ImageStat.Stat(ground.convert("RGB")).mean) < MIDDLE else BLACK


# --- scale bar --------------------------------------------------------------------------------------------


def scale_bar(
    image: xr.DataArray | Image,
    *,
    nm_per_pixel: float | None = None,
    length: float | None = None,
    position: Position = "bottom right",
    color: Any = None,
    label: bool = True,
) -> Image:
    """Draw a scale bar onto a copy of a picture; computes the picture.

    Parameters
    ----------
    image : DataArray or PIL.Image.Image
        One slice, as `to_pil` takes it, or a picture.
    nm_per_pixel : float, optional
        Width of a pixel in nm. Default for a DataArray: the resolution of its columns.
        A picture does not know its own, and a resized one has another than its data.
    length : float, optional
        Length of the bar in nm. Default: the longest of 1, 2, 5, 10, 20, … that is at most a quarter of the width.
    position : {"bottom right", "bottom left", "top right", "top left"}, default "bottom right"
        Which corner it stands in.
    color : colour, optional
        Anything that `parse_color` reads. Default: black or white, whichever stands out from what lies under the bar.
    label : bool, default True
        Whether to write the length, such as "500 nm" or "2 µm", next to the bar.

    Returns
    -------
    PIL.Image.Image
        Of the same size. Mode L stays L if the colour is a grey, RGBA stays RGBA, anything else becomes RGB.

    Raises
    ------
    OptionError
        If the size of a pixel is unknown, or the bar does not fit.

    Examples
    --------
    >>> from PIL import Image
    >>> scale_bar(Image.new("L", (400, 300)), nm_per_pixel=4).mode
    'L'
    """
    if position not in get_args(Position):
        raise OptionError(f"position={position!r} is none of {', '.join(map(repr, get_args(Position)))}")
    step = _pixel_size(image, nm_per_pixel)
    picture = to_pil(image) if isinstance(image, xr.DataArray) else image
    length = _nice_below(picture.width * step / 4) if length is None else _check_length("length", length)
    pixels = max(1, round(length / step))
    margin = max(2, min(picture.size) // 30)
    if pixels > picture.width - 2 * margin:
        raise OptionError(
            f"a bar of {_length_text(length)} takes {pixels} pixels of {step:g} nm, and the picture is {picture.width} "
            f"wide; write length={_nice_below(picture.width * step / 4):g}, or leave it out"
        )
    canvas = picture.convert("RGBA")
    ink = _draw_bar(canvas, pixels, margin, position, color, _length_text(length) if label else "")
    if picture.mode == "L" and ink[0] == ink[1] == ink[2]:
        return canvas.convert("L")
    return canvas if picture.mode == "RGBA" else canvas.convert("RGB")


def _draw_bar(canvas: Image, pixels: int, margin: int, position: str, color: Any, text: str) -> RGBA:
    """Draw bar and text into a corner, the bar nearer to the edge; return the colour used."""
    thick = max(2, min(canvas.size) // 80)
    size = _fitting(text, max(10, min(canvas.size) // 22), canvas.width - 2 * margin) if text else 0
    width, height = _extent(text, size) if text else (0, 0)
    gap = max(1, thick // 2) if text else 0
    total, wide = thick + gap + height, max(pixels, width)
    left = margin if position.endswith("left") else canvas.width - margin - wide
    bottom = position.startswith("bottom")
    top = canvas.height - margin - total if bottom else margin
    ink = parse_color(color) if color is not None else None
    if ink is None:
        ink = _contrasting(canvas.crop((left, top, left + wide, top + total)), None)
    if text:
        _write(canvas, (left + (wide - width) // 2, top if bottom else top + thick + gap), text, size, ink)
    _fill_box(canvas, (left + (wide - pixels) // 2, top + height + gap if bottom else top), (pixels, thick), ink)
    return ink


def _fill_box(canvas: Image, at: tuple[int, int], size: tuple[int, int], color: RGBA) -> None:
    from PIL import Image

    canvas.alpha_composite(Image.new("RGBA", size, color), (max(0, at[0]), max(0, at[1])))


def _pixel_size(image: Any, nm_per_pixel: float | None) -> float:
    if nm_per_pixel is not None:
        return _check_length("nm_per_pixel", nm_per_pixel)
    if not isinstance(image, xr.DataArray):
        raise OptionError("a picture does not know how many nm a pixel is wide; write nm_per_pixel=…")
    columns = str([dim for dim in _plane(image).dims if dim != "rgba"][-1])
    try:
        return float(dict(zip(DIMS[::-1], grid_of(image).resolution, strict=True))[columns])
    except GridError as error:
        raise OptionError(
            f"the width of a pixel cannot be read from the array: {error}; or write nm_per_pixel=…"
        ) from None


def _check_length(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        raise OptionError(f"{name}={value!r} is not a length in nm; write a number above 0")
    return float(value)


def _nice_below(length: float) -> float:
    """Give the largest of …, 1, 2, 5, 10, 20, 50, … that is not above a length."""
    decade = math.pow(10, math.floor(math.log10(length)))
    # Decades either side too: the logarithm of 1000 may come out a hair below 3.
    lengths = [m * d for d in (decade / 10, decade, decade * 10) for m in (1, 2, 5)]
    return max(nice for nice in lengths if nice <= length * (1 + 1e-9))


def _length_text(nm: float) -> str:
    for unit, size in (("mm", 1e6), ("µm", 1e3)):
        if nm >= size:
            return f"{nm / size:g} {unit}"
    return f"{nm:g} nm"


def legend(picture: Image, colors: Mapping[int, Sequence[int]], *, width: int = 230) -> Image:
    """Set a list of ids and their colours beside a picture.

    Parameters
    ----------
    picture : PIL.Image.Image
        Any picture.
    colors : mapping
        Id to RGB, 0 to 255, in the order to list; those for which there is no room are left out.
    width : int, default 230
        Pixels that the list takes.

    Returns
    -------
    PIL.Image.Image
        RGB, the picture with the list on white to its right.
    """
    from PIL import Image as PilImage
    from PIL import ImageDraw

    size, step = 15, 30
    out = PilImage.new("RGB", (picture.width + width, picture.height), "white")
    out.paste(picture.convert("RGB"), (0, 0))
    draw = ImageDraw.Draw(out)
    room = max(0, (picture.height - step) // step)
    for row, (number, color) in enumerate(list(colors.items())[:room]):
        y, x = step // 2 + row * step, picture.width + step // 2
        draw.rectangle((x, y, x + size, y + size), fill=(color[0], color[1], color[2]))
        draw.text((x + 2 * size - 6, y - 1), str(number), fill="black", font=_font(size))
    return out
