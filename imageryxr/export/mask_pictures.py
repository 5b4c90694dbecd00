"""Masks as picture files, one for each mask and slice."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import xarray as xr
from dask.base import compute

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import DIMS
from imageryxr.core.colors import RGBA, palette, parse_color
from imageryxr.core.colors.ids import parse_id
from imageryxr.core.grid import Axis
from imageryxr.core.validate import check_flag, check_path, to_whole
from imageryxr.errors import GridError, LayerError, OptionError, TargetExistsError, format_value
from imageryxr.export.store.local import replaced_file
from imageryxr.export.targets.stack import fill_pattern
from imageryxr.render.figure import array_to_pil

# Bytes of masks in memory at once, unless one slice of all masks needs more.
_MAX_BYTES = 256_000_000


def save_masks(
    masks: xr.DataArray | Mapping[Any, xr.DataArray] | Iterable[xr.DataArray],
    path: str | os.PathLike[str],
    *,
    colors: Any = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write masks as pictures, one for each mask and slice.

    Computes a few slices of all masks at a time, so that each chunk of their source is read once.

    Parameters
    ----------
    masks : DataArray, mapping or iterable of DataArray
        An array with the dim ``segment``, as `split_masks` returns it, a dict id → mask, or several masks. The id of
        one of several masks is its ``segment`` coordinate, or else its position, from 0. Values are bool or 0 and 1.
    path : str or path
        ``….png`` or ``….tif``, with ``{id}`` for the id and ``{z}`` for the slice, such as ``"out/{z:04d}_{id}.png"``.
        ``{z}`` counts from 0 in the array, ``{z_index}`` is the index in the volume, ``{z_nm:.0f}`` the coordinate;
        ``{y}`` or ``{x}`` slices along that axis. ``{id}`` may be left out for one mask, the slice for one slice.
    colors : dict, palette name or None, default None
        None writes grey pictures with 0 and 255. Otherwise each mask has a colour, in a form that `palette` accepts, on
        a transparent background, as in ImageryClient's files. Masks that a dict leaves out are white.
    overwrite : bool, default False
        Whether to replace files that exist.

    Returns
    -------
    list of Path
        The files, by slice, and by mask within a slice.

    Raises
    ------
    OptionError
        If the path has an unknown ending, or two pictures would have the same name.
    LayerError
        If an array is not a mask.
    IdError
        If the id of a mask, or a key of ``colors``, is neither an integer nor a text.
    TargetExistsError, TargetError
        If a file exists, or cannot be written. Nothing is written if one exists.

    Examples
    --------
    Masks are an array along ``segment``; ``for id, mask in zip(masks.segment.values, masks)`` goes through them as
    ``.items()`` does through a dict.

    >>> import tempfile, imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation)
    >>> part = seg.isel(z=slice(0, 2), y=slice(0, 32), x=slice(0, 32))
    >>> masks = ix.split_masks(part, ix.unique_ids(part)[:1])
    >>> files = ix.save_masks(masks, tempfile.mkdtemp() + "/{z}_{id}.png")
    >>> files[1].name == f"1_{masks.segment.values[0]}.png"
    True
    """
    check_flag("overwrite", overwrite)
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    if not str(text).lower().endswith((".png", ".tif", ".tiff")):
        raise OptionError(
            f"path={format_value(path)} has no picture format of masks; write 'out/{{z}}_{{id}}.png', or .tif"
        )
    check_path("path", text)
    fields = _fields(text)
    named = _masks_by_id(masks)
    axis = _axis_of(fields, [mask for _, mask in named])
    arrays = [(name, mask if axis in mask.dims else mask.expand_dims(axis)) for name, mask in named]
    count = arrays[0][1].sizes[axis]
    along = _axis_along(fields, axis, arrays[0][1])
    files = [[Path(_file_name(text, name, axis, i, along)) for name, _ in arrays] for i in range(count)]
    _check_files(text, [file for row in files for file in row], axis, overwrite)
    mask_colors = _mask_colors([name for name, _ in named], colors)
    values = [mask for _, mask in arrays]
    start = 0
    while start < count:
        depth = _slab_depth(values, axis, start)
        slabs = compute(*(mask.isel({axis: slice(start, start + depth)}) for mask in values))
        for i in range(depth):
            for file, slab, color in zip(files[start + i], slabs, mask_colors, strict=True):
                dims = [dim for dim in DIMS if dim in slab.dims and dim != axis]
                _write(file, np.asarray(slab.isel({axis: i}).transpose(*dims).values) != 0, color)
        start += depth
    return [file for row in files for file in row]


def _fields(text: str) -> set[str]:
    try:
        found = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise OptionError(f"path={text!r} is not a valid pattern: {error}; write 'out/{{z}}_{{id}}.png'") from None
    known = {"id", *DIMS, *(f"{dim}_{kind}" for dim in DIMS for kind in ("index", "nm"))}
    if found - known:
        raise OptionError(
            f"path={text!r} has the unknown field {{{min(found - known)}}}; write {{id}} for the mask, and {{z}}, "
            "{z_index} or {z_nm}, or the same of y or x, for the slice"
        )
    return found


def _masks_by_id(masks: Any) -> list[tuple[Any, xr.DataArray]]:
    """Return pairs of id and mask, in order."""
    if isinstance(masks, xr.DataArray):
        if "segment" not in masks.dims:
            masks = [masks]
        else:
            ids = masks.coords["segment"].values if "segment" in masks.coords else range(masks.sizes["segment"])
            masks = {_mask_id(value): masks.isel(segment=i, drop=True) for i, value in enumerate(ids)}
    if isinstance(masks, Mapping):
        named = [(_mask_id(key), mask) for key, mask in masks.items()]
    elif isinstance(masks, Iterable) and not isinstance(masks, str | bytes | np.ndarray | xr.Dataset):
        named = [(_mask_id_in_list(mask, i), mask) for i, mask in enumerate(masks)]
    else:
        raise LayerError(
            f"a {type(masks).__name__} is not a collection of masks; give the result of split_masks, a dict id → mask, "
            "or a list"
        )
    if not named:
        raise OptionError("save_masks received no masks; give at least one")
    for name, mask in named:
        _check_mask(name, mask)
    return named


def _mask_id(key: Any, what: str = "masks") -> Any:
    number = to_whole(key)
    if number is not None:
        return number
    if not isinstance(key, str):
        return parse_id(key, what)
    name = str(key)
    if not re.fullmatch(r"[^/\\\0]+", name) or name in (".", ".."):
        raise OptionError(f"the mask {name!r} cannot be part of a file name; use an id, or a name without / and \\")
    return name


def _mask_id_in_list(mask: Any, place: int) -> Any:
    segment = mask.coords.get("segment") if isinstance(mask, xr.DataArray) else None
    return _mask_id(segment.values.reshape(-1)[0]) if segment is not None and segment.size == 1 else place


def _check_mask(name: Any, mask: Any) -> None:
    if not isinstance(mask, xr.DataArray):
        raise LayerError(f"the mask {name!r} is a {type(mask).__name__}; give a DataArray with the dims z, y and x")
    ids = mask.attrs.get("layer_type") == "segmentation" and mask.dtype != np.bool_
    if ids or mask.dtype.kind not in "biu" or mask.dtype.itemsize > 4:
        raise LayerError(
            f"the mask {name!r} has dtype {mask.dtype} instead of bool; write split_masks(segmentation, ids), or "
            "segmentation == id"
        )
    if not {"y", "x", "z"} >= set(mask.dims) or len(mask.dims) < 2:
        raise LayerError(f"the mask {name!r} has the dims {tuple(map(str, mask.dims))} instead of z, y and x")
    if 0 in mask.shape:
        raise OptionError(f"the mask {name!r} is empty {mask.shape}; widen the selection")


def _axis_of(fields: set[str], masks: list[xr.DataArray]) -> str:
    """Return the axis across the slices; raise `OptionError` unless all masks have the same slices."""
    axes = {field[0] for field in fields - {"id"}}
    if len(axes) > 1:
        raise OptionError(f"the path has fields for {' and '.join(sorted(axes))}; use one axis, such as {{z}}")
    first = masks[0]
    axis = axes.pop() if axes else next((d for d in DIMS if first.sizes.get(d, 1) == 1), "z")
    for mask in masks:
        if dict(mask.sizes) != dict(first.sizes):
            raise OptionError(
                f"masks have different sizes, {dict(first.sizes)} and {dict(mask.sizes)}; give masks of equal size"
            )
        if (axis not in mask.dims and len(mask.dims) == 3) or (axis in mask.dims and len(mask.dims) == 2):
            raise OptionError(f"a slice across {axis} of the dims {tuple(map(str, mask.dims))} is not a picture")
    return axis


def _axis_along(fields: set[str], axis: str, mask: xr.DataArray) -> Axis:
    """Return the axis with the positions of the slices; these are arbitrary if the path has no field for them."""
    if not fields & {f"{axis}_index", f"{axis}_nm"}:
        return Axis(mask.sizes[axis], 1.0, 0)
    try:
        return grid_of(mask).axes[DIMS.index(axis)]
    except GridError as error:
        raise OptionError(f"the masks do not have the position of a slice: {error}; or write {{{axis}}}") from None


def _file_name(text: str, name: Any, axis: str, number: int, along: Axis) -> str:
    try:
        return fill_pattern(text, axis, number, along, id=name)
    except (ValueError, LookupError, AttributeError) as error:
        raise OptionError(f"path={text!r} cannot be filled for the mask {name!r}: {error}") from None


def _check_files(text: str, files: list[Path], axis: str, overwrite: bool) -> None:
    if len(set(files)) < len(files):
        raise OptionError(
            f"path={text!r} gives two pictures the same name; write {{id}} for the id and {{{axis}}} for the slice, "
            f"such as 'out/{{{axis}}}_{{id}}.png'"
        )
    existing = [] if overwrite else [file for file in files if os.path.exists(file)]
    if existing:
        more, it = (f" and {len(existing) - 1:,} more exist", "them") if len(existing) > 1 else (" exists", "it")
        raise TargetExistsError(f"{existing[0]}{more}; give overwrite=True to replace {it}, or another name")


def _mask_colors(names: list[Any], colors: Any) -> list[RGBA | None]:
    if colors is None:
        return [None] * len(names)
    if isinstance(colors, Mapping):
        chosen = {str(_mask_id(key, "colors")): color for key, color in colors.items()}  # ids may be digits
        return [parse_color(chosen.get(str(name), "white")) for name in names]
    ids = [name for name in names if isinstance(name, int) and name > 0]
    if len(ids) < len(names):
        raise OptionError(
            f"colors={format_value(colors)} needs ids, but a mask has the name {names[0]!r}; give a dict name → colour"
        )
    found = palette(ids, colors)
    return [parse_color(found[i]) for i in names]


def _slab_depth(masks: list[xr.DataArray], axis: str, start: int) -> int:
    """Return the number of slices to compute together: up to the end of a block, if memory allows."""
    ends = np.cumsum(masks[0].chunksizes.get(axis, (masks[0].sizes[axis],)))
    in_block = int(ends[np.searchsorted(ends, start, side="right")]) - start
    slice_bytes = sum(mask.nbytes // mask.sizes[axis] for mask in masks)
    return max(1, min(in_block, _MAX_BYTES // max(1, slice_bytes)))


def _write(file: Path, mask: Any, color: RGBA | None) -> None:
    """Write one picture atomically."""
    pixels: Any = mask
    if color is not None:
        pixels = np.zeros((*mask.shape, 4), np.uint8)
        pixels[mask] = color
    options = {} if file.suffix.lower() == ".png" else {"compression": "tiff_deflate"}
    with replaced_file(file) as beside:
        array_to_pil(pixels).save(beside, **options)
