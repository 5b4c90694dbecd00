"""Montages: several pictures in rows and columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from dask.base import compute

from imageryxr.core.annotation_values import column_texts
from imageryxr.core.array_labels import CUTOUT, grid_of, has_cutouts
from imageryxr.core.bbox import DIMS
from imageryxr.core.colors import RGBA, parse_color
from imageryxr.core.validate import check_whole, to_items
from imageryxr.errors import OptionError, format_value
from imageryxr.graph.labelled import as_dask, is_lazy
from imageryxr.ops.cutout_verbs import central_slices
from imageryxr.render.figure.picture import (
    Text,
    attach_geometry,
    geometry_of,
    shift_rect,
    smallest_text,
    squeeze_slice,
    to_pil,
)
from imageryxr.render.figure.print_size import check_label_size, label_pixels
from imageryxr.render.figure.text import contrasting_color, draw_text, fit_text_size, text_extent, text_top

if TYPE_CHECKING:
    from PIL.Image import Image

# More tiles are arranged in a square by default, because one row would be an illegible strip.
_MOST_IN_A_ROW = 30


def montage(
    images: xr.DataArray | Iterable[xr.DataArray | Image],
    *,
    columns: int | None = None,
    rows: int | None = None,
    spacing: int = 10,
    background: Any = "white",
    labels: bool | Sequence[str] | None = None,
    label_size: int | None = None,
    label_pt: float | None = None,
    width_mm: float | None = None,
    dim: str = "z",
    scale: int = 1,
) -> Image:
    """Arrange pictures side by side or in rows and columns; computes them.

    Parameters
    ----------
    images : DataArray, or iterable of DataArray and PIL.Image.Image
        `cutouts`, each of which is a tile that shows the slice through its centre; a stack, whose slices along `dim`
        are the tiles; or a list of tiles, each as in `to_pil`. A stack is computed chunk by chunk along `dim`, so that
        each chunk is read once. Tiles in a list are computed together, so that those of the same region share their
        reads.
    columns : int, optional
        Number of tiles per row; 1 stacks the tiles vertically. Default: all in one row, or as many rows as columns if
        there are more than 30 tiles.
    rows : int, optional
        Number of rows, instead of `columns`.
    spacing : int, default 10
        Pixels between tiles.
    background : colour or None, default "white"
        Colour between and behind the tiles, in any form that `parse_color` reads. None keeps the tiles' transparency
        and makes the gaps transparent.
    labels : None, True, "slice", name of a coordinate, or sequence of str, default None
        Text in the upper left corner of each tile. True: the coordinate of the slice, such as "z = 4,020 nm", or its
        number if it has no coordinate. "slice": its index as in Neuroglancer, such as "z 100". A name: the values of
        this coordinate along `dim`, such as "id" for `cutouts`.
    label_size : int, optional
        Height of the text in pixels. Default: 1/16 of the smallest tile, at least 10. Text that is wider than its tile
        is made smaller.
    label_pt : float, optional
        Height of the text in points at the printed width of the whole montage, instead of ``label_size``.
    width_mm : float, optional
        Printed width of the montage, for ``label_pt``. Default: its width at 300 pixels per inch.
    dim : str, default "z"
        The axis of a stack to slice: "z", "y", "x", or another dim of the array, such as "segment".
    scale : int, default 1
        Pixels per voxel of arrays, as in `to_pil`.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, or RGBA if the background is None or transparent. Each column is as wide as its widest tile and each
        row as high as its highest tile; smaller tiles are centred. If all tiles have the same pixel size, the
        picture's metadata contain it.

    Raises
    ------
    OptionError
        If there is no tile, or the number of labels differs from that of the tiles.

    Warns
    -----
    ImageryWarning
        If a label is omitted because it would be illegible on a small tile.

    Examples
    --------
    >>> import numpy as np, xarray as xr, imageryxr as ix
    >>> stack = xr.DataArray(np.zeros((4, 20, 30), np.uint8), dims=("z", "y", "x"))
    >>> ix.montage(stack).size
    (150, 20)
    >>> ix.montage(stack, columns=2, spacing=4, background=None).size
    (64, 44)
    """
    spacing = check_whole("spacing", spacing, 0, 10_000, unit="pixels")
    scale = check_whole("scale", scale, 1, 100, unit="pixels per voxel")
    if not isinstance(dim, str):
        raise OptionError(f"dim={format_value(dim)} must be the name of a dim, such as 'z'")
    if has_cutouts(images) and dim == "z":
        images, dim = _central_pictures(images), CUTOUT
    if isinstance(labels, str) and labels != "slice":
        labels = _column_texts(images, dim, labels)
    fill = None if background is None else parse_color(background)
    images = images if isinstance(images, xr.DataArray) else _list_images(images)
    names = _tile_names(images, dim, as_index=isinstance(labels, str) and labels == "slice")
    texts = _label_texts(True if isinstance(labels, str) and labels == "slice" else labels, names)
    columns = _column_count(columns, rows, len(names))
    label_size = None if label_size is None else check_label_size(label_size)

    pictures = list(_iter_pictures(images, dim, scale))
    geometries = [geometry_of(picture) for picture in pictures]
    tiles = [picture.convert("RGBA") for picture in pictures]
    written = [one.text for one in geometries]
    if texts:
        width = _arrange_tiles(tiles, columns, spacing, fill)[0].width if label_pt is not None else 0
        size = label_pixels(label_size, label_pt, width_mm, width)
        size = size or max(10, min(min(tile.size) for tile in tiles) // 16)
        tiles = [_label_tile(tile, text, size, fill) for tile, text in zip(tiles, texts, strict=True)]
        written += [geometry_of(tile).text for tile in tiles]
    whole, places = _arrange_tiles(tiles, columns, spacing, fill)
    placed = list(zip(geometries, places, strict=True))
    views = [view.shift(*at) for one, at in placed for view in one.views]
    taken = [shift_rect(rect, *at) for one, at in placed for rect in one.taken]
    sizes = {one.nm for one in geometries}
    nm = sizes.pop() if len(sizes) == 1 else None  # tiles may differ in the size of their pixels
    return attach_geometry(whole, nm, taken, smallest_text(*written), views)


def _central_pictures(cutouts: Any) -> xr.DataArray:
    """Return the slice through the centre of each cutout; computed in one pass, so that each chunk is read once."""
    if isinstance(cutouts, xr.Dataset):
        raise OptionError(
            "montage was given a Dataset of cutouts; draw it first: montage(overlay(boxes.image, boxes.segmentation))"
        )
    computed: xr.DataArray = central_slices(cutouts).transpose(CUTOUT, ...).compute()
    return computed


def _column_texts(images: Any, dim: str, name: str) -> list[str]:
    """Return the texts of a coordinate along the dim of a stack."""
    columns = [str(n) for n, c in images.coords.items() if c.dims == (dim,)] if isinstance(images, xr.DataArray) else []
    if name not in columns:
        known = f"{', '.join(map(repr, columns))}, a list of texts, " if columns else "a list of texts, "
        raise OptionError(f"labels={name!r} is not a column of the tiles; give {known}True or 'slice'")
    return column_texts(images.coords[name].values)


def _column_count(columns: int | None, rows: int | None, count: int) -> int:
    if columns is not None and rows is not None:
        raise OptionError(
            f"columns={format_value(columns)} and rows={format_value(rows)} cannot be combined; give one of them"
        )
    if rows is not None:
        return -(-count // check_whole("rows", rows, 1))
    if columns is None:
        return count if count <= _MOST_IN_A_ROW else math.ceil(math.sqrt(count))
    return check_whole("columns", columns, 1)


def _list_images(images: Any) -> list[Any]:
    from PIL import Image

    if isinstance(images, (Image.Image, str, bytes, np.ndarray, xr.Dataset)) or not isinstance(images, Iterable):
        raise OptionError(
            f"montage was given a {type(images).__name__}; give a list of pictures, such as [a, b], or a DataArray, "
            "whose slices become the tiles"
        )
    return list(images)


def _tile_names(images: xr.DataArray | list[Any], dim: str, *, as_index: bool) -> list[str]:
    """Check the tiles and return the name of each, as in `_tile_name`; computes nothing."""
    from PIL import Image

    if not isinstance(images, xr.DataArray):
        tiles = images
    elif dim in images.dims:
        tiles = [images.isel({dim: i}) for i in range(images.sizes[dim])]
    elif dim in DIMS:
        tiles = [images]
    else:
        raise OptionError(
            f"dim={format_value(dim)} is not a dim of the array, which has {tuple(map(str, images.dims))}"
        )
    if not tiles:
        raise OptionError("montage was given no pictures; give at least one")
    for tile in tiles:
        if not isinstance(tile, Image.Image):
            squeeze_slice(tile)
    return [_tile_name(tile, dim, number, as_index) for number, tile in enumerate(tiles)]


def _iter_pictures(images: xr.DataArray | list[Any], dim: str, scale: int) -> Iterator[Image]:
    if not isinstance(images, xr.DataArray):
        if scale != 1 and not all(isinstance(image, xr.DataArray) for image in images):
            raise OptionError(
                f"scale={format_value(scale)} only enlarges arrays, but some tiles are pictures; give arrays"
            )
        # All tiles are computed together, so that data that they share are read once.
        computed = compute(*(_to_blocks(image) for image in images))
        yield from (to_pil(image, scale=scale) if isinstance(image, xr.DataArray) else image for image in computed)
    elif dim not in images.dims:
        yield to_pil(images, scale=scale)
    else:
        # Stored chunks are often 64 slices deep and would be read 64 times if slices were computed one by one.
        start = 0
        for depth in images.chunksizes.get(dim, (images.sizes[dim],)):
            slab = images.isel({dim: slice(start, start + depth)}).compute()
            yield from (to_pil(slab.isel({dim: i}), scale=scale) for i in range(depth))
            start += depth


def _to_blocks(image: Any) -> Any:
    """Return a lazy array as a dask array, so that tiles can be computed together; other tiles unchanged."""
    if not isinstance(image, xr.DataArray):
        return image
    plane = squeeze_slice(image)
    return as_dask(plane) if is_lazy(plane) else plane


def _tile_name(tile: Any, dim: str, number: int, as_index: bool) -> str:
    """Return the name of a tile: the coordinate or, with `as_index`, the index of its slice; otherwise its number."""
    if not isinstance(tile, xr.DataArray):
        return str(number)
    thin = [d for d in (dim, *DIMS) if d in tile.coords and tile.coords[d].size == 1]
    if not thin:
        return f"{dim} {number}"
    value = tile.coords[thin[0]]
    if as_index and thin[0] in DIMS:
        axis = grid_of(tile.expand_dims([d for d in DIMS if d not in tile.dims and d in tile.coords])).axes[
            DIMS.index(str(thin[0]))
        ]
        return f"{thin[0]} {math.floor(axis.offset + 1e-6):,}"
    if value.dtype.kind != "f":
        return f"{thin[0]} {value.values.reshape(-1)[0]}"
    return f"{thin[0]} = {float(value.values.reshape(-1)[0]):,.10g} {value.attrs.get('units', '')}".rstrip()


def _label_texts(labels: Any, names: list[str]) -> list[str]:
    if labels is None or labels is False:
        return []
    if labels is True:
        return names
    given = labels.values if isinstance(labels, xr.DataArray) else labels
    items = list(given) if isinstance(given, Iterator) else to_items(given)
    if not (items or isinstance(given, Sized)) or isinstance(given, str | bytes | Mapping) or np.ndim(given) > 1:
        raise OptionError(
            f"labels={format_value(labels)} is not a list of texts; give one per tile, True for the slices' "
            "coordinates, or 'slice' for their numbers"
        )
    texts = column_texts(items)
    if len(texts) != len(names):
        raise OptionError(f"there are {len(texts)} labels for {len(names)} tiles; give one per tile, '' for none")
    return texts


def _arrange_tiles(
    tiles: list[Image], columns: int, spacing: int, fill: RGBA | None
) -> tuple[Image, list[tuple[int, int]]]:
    """Return the tiles as one picture, and the left and top edge of each."""
    from PIL import Image

    columns = min(columns, len(tiles))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    size = (sum(widths) + spacing * (columns - 1), sum(heights) + spacing * (len(rows) - 1))
    canvas = Image.new("RGBA", size, fill or (0, 0, 0, 0))
    top, places = 0, []
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for tile, width in zip(row, widths, strict=False):
            at = (left + (width - tile.width) // 2, top + (height - tile.height) // 2)
            places.append(at)
            if fill is None:
                canvas.paste(tile, at)
            else:
                canvas.alpha_composite(tile, at)
            left += width + spacing
        top += height + spacing
    return (canvas.convert("RGB") if fill and fill[3] == 255 else canvas), places


def _label_tile(tile: Image, text: str, size: int, behind: RGBA | None) -> Image:
    """Return a copy of a tile with a text in its upper left corner."""
    if not text:
        return tile
    margin = max(2, size // 3)
    size = fit_text_size(text, size, tile.width - 2 * margin, tile.height - 2 * margin)
    if not size:
        return tile
    width, height = text_extent(text, size)
    color = contrasting_color(tile.crop((margin, margin, margin + width, margin + height)), behind)
    tile = tile.copy()
    # All labels have the same baseline, whatever the height of their letters.
    draw_text(tile, (margin, margin + text_top(text, size) - text_top("d", size)), text, size, color)
    return attach_geometry(tile, None, (), Text(size, "montage"))
