"""Floor 4: writing volumes out, region by region."""

from __future__ import annotations

import os
import warnings
from typing import Any

import xarray as xr

from imageryxr.align import layer_type_of
from imageryxr.errors import ImageryWarning, LayerError
from imageryxr.export.choosing import choose_target
from imageryxr.export.plan import ExportPlan, make_plan
from imageryxr.export.run import ExportReport, run_plan
from imageryxr.grid import DIMS
from imageryxr.volumes import BoxReader, box_reader


def plan_export(
    da: xr.DataArray, target: str | os.PathLike[str], *, overwrite: bool = False, **options: Any
) -> ExportPlan:
    """Say what an export would do; reads and writes nothing.

    Parameters
    ----------
    da, target, overwrite, **options
        As in `export`.

    Returns
    -------
    ExportPlan
        Regions and bytes.

    Raises
    ------
    OptionError, TargetExistsError, LayerError
        As `export`, before anything is done.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample(sample_path).image, mip=2)
    >>> ix.plan_export(em, "stack/z{z:04d}.png").bytes_to_write == em.size
    True
    """
    return _plan(da, box_reader(_checked(da)), target, overwrite, options)


def export(
    da: xr.DataArray,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> ExportReport:
    """Write an array out as a stack of pictures or an OME-Zarr.

    Computes, region by region: a region is read, drawn and written by one thread, and as many are under way as there
    are threads, so memory does not grow with the array. The result appears at its place when it is complete;
    if anything fails, what was there before is untouched.

    Parameters
    ----------
    da : DataArray
        Dims (z, y, x), or (z, y, x, rgba) as `overlay` gives.
    target : str or path
        ``"stack/z{z:04d}.png"``: a PNG a slice along the axis that is named, ``{z}`` the index in the array,
        ``{z_nm}`` the coordinate; 8- or 16-bit grey values or RGBA. ``"out.ome.zarr"`` or ``"out.zarr"``: OME-Zarr
        0.5 with a pyramid and units, any dtype, RGBA as four channels.
    overwrite : bool, default False
        Whether to replace a target that exists.
    workers : int, optional
        Threads. Default: one a core.
    progress : bool, optional
        Whether to show a bar. Default: if standard error is a terminal.
    **options
        PNG: ``compress_level`` (0 to 9, default 3: little larger than 9 and several times as fast). OME-Zarr:
        ``chunks``
        (z, y, x voxels, default (16, 256, 256)) and ``levels`` (default: halve until a level is one chunk wide).

    Returns
    -------
    ExportReport
        Target, regions, bytes, seconds.

    Raises
    ------
    OptionError
        If the target is of no known format, or cannot hold the values.
    TargetExistsError
        If it exists and ``overwrite`` is False.
    TargetError
        If it cannot be written, for example because the disk is full.
    ChunkReadError
        If a source could not be read.

    Examples
    --------
    >>> import imageryxr as ix, tempfile
    >>> em = ix.open_image(ix.sample(sample_path).image, mip=2).isel(z=slice(0, 3))
    >>> out = tempfile.TemporaryDirectory()
    >>> report = ix.export(em, out.name + "/z{z:02d}.png")
    >>> sorted(os.listdir(out.name))
    ['z00.png', 'z01.png', 'z02.png']
    """
    read = box_reader(_checked(da))
    plan = _plan(da, read, target, overwrite, options)
    return run_plan(plan, read, workers=workers, progress=progress)


def _plan(da: xr.DataArray, read: BoxReader, target: Any, overwrite: bool, options: dict[str, Any]) -> ExportPlan:
    channels = read.tail[0] if read.tail else 0
    volume, dtype = read.volume, read.volume.expr.dtype
    if str(target).rstrip("/").endswith(".zarr"):
        options = {"layer_type": layer_type_of(da) if not channels else "image", **options}
    chosen = choose_target(target, volume.grid, channels, dtype, volume.attrs, **options)
    chosen.refuse(overwrite)
    _warn_of_cut_lines(da, getattr(chosen, "axis", None))
    return make_plan(chosen, volume.expr, volume.grid.shape, dtype, channels)


def _warn_of_cut_lines(da: xr.DataArray, axis: int | None) -> None:
    # Lines that were drawn in one plane are broken into dots and dashes when they are cut along another.
    drawn = da.attrs.get("outline_axis")
    if axis is not None and drawn is not None and drawn != DIMS[axis]:
        warnings.warn(
            f"the outlines were drawn in slices across {drawn}, and the stack is sliced across {DIMS[axis]}: they will "
            f"look broken; draw them with axis={DIMS[axis]!r}",
            ImageryWarning,
            stacklevel=3,
        )


def _checked(da: xr.DataArray) -> xr.DataArray:
    if isinstance(da, xr.DataArray):
        return da
    raise LayerError(
        f"export takes a DataArray, not a {type(da).__name__}; of a Dataset give one variable, or draw it first: "
        "export(overlay(ds.image, ds.segmentation), target)"
    )
