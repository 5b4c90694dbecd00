"""Floor 4: writing volumes out, region by region."""

from __future__ import annotations

import os
from dataclasses import astuple, replace
from typing import Any, Literal

import xarray as xr

from imageryxr.core.bbox import DIMS
from imageryxr.errors import LayerError, OptionError, warn
from imageryxr.export.commit.manifest import FORMAT
from imageryxr.export.commit.source_overlap import refuse_sources
from imageryxr.export.commit.source_paths import source_places
from imageryxr.export.plan.coverage import outside
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.plan.planner import make_plan
from imageryxr.export.read.buffers import in_native_order
from imageryxr.export.read.spill import check_scratch
from imageryxr.export.report import ExportReport
from imageryxr.export.run.scheduler import run_plan
from imageryxr.export.run.workers import Crew, find_crew, leave_script_of_parent
from imageryxr.export.targets.base import ArrayInfo, Target
from imageryxr.graph.expr import DaskLeaf, Expr, Leaf, LevelLeaf
from imageryxr.graph.labelled import COORDS_ADVICE, BoxReader, Volume, box_reader
from imageryxr.graph.to_dask import exprs_below
from imageryxr.ops.align import layer_type_of
from imageryxr.ops.square_pixels import square_reader
from imageryxr.sources.base import clean_message


def plan_export(
    da: xr.DataArray,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    client: Any = None,
    workers: int | None = None,
    memory: int | str | None = None,
    scratch: str | os.PathLike[str] | Literal[False] | None = None,
    square: bool | None = None,
    **options: Any,
) -> ExportPlan:
    """Say what an export would do; reads no voxel and writes nothing.

    Parameters
    ----------
    da, target, overwrite, client, workers, memory, scratch, square, **options
        As in `export`.

    Returns
    -------
    ExportPlan
        Regions, tasks, bytes to read of each source and to write, requests, peak memory of a worker. Its
        ``validate()`` raises if the export cannot work, which `export` asks before it begins.

    Raises
    ------
    OptionError, TargetExistsError, LayerError
        As `export`, before anything is done.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample(sample_path).image, mip=2)
    >>> plan = ix.plan_export(em, "stack/z{z:04d}.png", workers=2)
    >>> plan.bytes_to_write == em.size
    True
    >>> plan.reads[0].rereads
    1.0
    """
    crew = find_crew(client, workers, memory)
    try:
        return _plan(da, target, crew, overwrite, scratch, square, options)
    finally:
        crew.close()


def export(
    da: xr.DataArray,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = True,
    client: Any = None,
    workers: int | None = None,
    memory: int | str | None = None,
    scratch: str | os.PathLike[str] | Literal[False] | None = None,
    retries: int = 3,
    on_error: Literal["raise", "collect"] = "raise",
    progress: bool | None = None,
    square: bool | None = None,
    **options: Any,
) -> ExportReport:
    """Write an array out: OME-Zarr, precomputed, pictures, TIFF, video; on this machine or on a cluster.

    Computes, region by region: a region is read, drawn and written by one worker, and few are under way at a time, so
    memory does not grow with the array. The result appears at its place when it is complete, and what was there before
    is untouched until then. What is done is kept in a manifest beside the target: the same call continues
    where it was stopped, by whatever, and makes again what is torn; on a target that is complete it checks that all is
    there.

    Parameters
    ----------
    da : DataArray
        Dims (z, y, x), or (z, y, x, rgba) as `overlay` gives. Of a dask array of your own each block is computed once
        where memory allows, as the plan tells; slices and rechunkings of a picture are exported as the picture is, and
        what was persisted is taken from where it is.
    target : str or path
        On local disk, or in a bucket (``s3://…``, ``gs://…``):

        ``"out.ome.zarr"`` or ``"out.zarr"``
            OME-Zarr with a pyramid and units, any dtype, RGBA as four channels: for large volumes, and for napari,
            Fiji, Neuroglancer.
        ``"precomputed://…"``
            Neuroglancer precomputed with a pyramid; RGBA as four channels, segmentations with their ids.
        ``"stack/z{z:04d}.png"``, ``"stack/z{z:04d}.tif"``
            A picture a slice along the axis that is named: ``{z}`` is the index in the array, from 0, ``{z_index}``
            the index in the volume, of the array's voxel size, and ``{z_nm}`` the coordinate.
            PNG: 8- or 16-bit grey values or RGBA. TIFF: any numbers.
        ``"out.tif"``, ``"out.ome.tif"``
            One file, with the voxel size as ImageJ reads it, or as OME-XML.
        ``"out.mp4"``, ``"out.webm"``, ``"out.gif"``
            A video, a slice a frame.
        ``"memory://"``
            The report's ``result``, a DataArray.
    overwrite : bool, default False
        Whether to replace a target that exists, or is being written, of another call. Of a longer stack, what its
        manifest lists and the new one does not have goes, too, when the new one is complete. What the same call has
        begun is continued, and what it has completed is made anew: leave it away in jobs that are queued again.
    resume : bool, default True
        Whether to continue what an earlier run of the same call has begun; False begins anew, also where the target is
        complete, which needs no ``overwrite`` as it is the same call's.
    client : optional
        Who works. None or ``"threads"``: threads of this process. ``"processes"``: processes of this machine, where
        work holds Python's lock. A `distributed.Client`, or the address of a scheduler (``"tcp://host:8786"``): the
        workers of a cluster, which need nothing in common but the sources and the target.
    workers : int, optional
        Threads or processes; with a cluster, how many regions are under way. Default: one a core; with a cluster two
        for each of its threads.
    memory : int or str, optional
        Bytes that a worker may take, a process with all its threads, such as ``"4 GB"``. Default: what is free, or the
        limit of a cluster's workers. Blocks of dask arrays of your own are counted whole, as they are computed; what
        your functions take on the way from block to block cannot be known, and comes on top.
    scratch : str, path or False, optional
        For stacks, TIFFs and videos whose slices are so wide that a worker's memory does not hold as many of them as a
        source's chunks are deep: the folder on a local disk where what was read waits for its slice, so that each
        chunk is read once. Its files have no name, and are gone when the process is. Default: a dask worker's own
        folder, dask's ``temporary-directory``, or the system's folder for temporary files (``TMPDIR``). False: none;
        the same chunks are read again and again then.
    retries : int, default 3
        How often a region is tried again that failed. Where that may pass, as with a network, there are 2, 15 and
        60 seconds between.
    on_error : {"raise", "collect"}, default "raise"
        What to do about a region that failed for good: stop and raise, or go on and list all of them in the report;
        either way what is done is kept, and the target is not touched.
    progress : bool, optional
        Whether to show a bar. Default: in a notebook, and if standard error is a terminal.
    square : bool, optional
        For slices whose pixels are not square (x or y slices of anisotropic voxels): True resamples them to the finer
        side, images and pictures linearly, segmentations to the nearest id; False keeps a voxel a pixel, as does None,
        which warns of it. A volume (OME-Zarr, precomputed, memory) keeps its voxels: there True is refused.
    **options
        OME-Zarr: ``chunks`` and ``shards`` (z, y, x voxels; default (16, 256, 256) and none: give shards where many
        small files hurt), ``compressor`` ("zstd", "lz4", "gzip", with a level as in "zstd:5", or None), ``levels``
        (default: halve until a level is one chunk wide; 1 for no pyramid; NaN is left out of means), ``version``
        ("0.5", or "0.4" for older readers), ``layer_type``. Precomputed: ``chunks``, ``levels``, ``encoding`` ("raw",
        "jpeg", "png", "compressed_segmentation"), ``quality`` (of JPEG, default 85), ``gzip`` (of "raw" and
        "compressed_segmentation"; default False: files that any reader and any web server finds. True makes a
        segmentation some 4 times smaller, a raw image 1.2 times, for a bucket: objects there are marked as gzipped, and
        CloudVolume, TensorStore and browsers unpack them. On a local disk names then end in ``.gz``, and only
        CloudVolume and imageryxr find them), ``layer_type``. PNG: ``compress_level`` (0 to 9, default 3: little larger
        than 9 and several times as fast). TIFF: ``compression`` ("zlib" or None); of one file also ``axis`` ("z", "y",
        "x") and ``bigtiff``. Video: ``axis``, ``fps`` (default 12), ``crf`` (default 18; smaller is better).

        Booleans become uint8: 0 and 255 in slices (PNG, TIFF, video), where they are looked at; 0 and 1 in volumes
        (OME-Zarr, precomputed), where they are counted. ``"memory://"`` keeps them.

    Returns
    -------
    ExportReport
        Target, regions done, skipped and failed, bytes, seconds, holes.

    Raises
    ------
    OptionError
        If the target is of no known format or cannot hold the values, a worker has too little memory, or blocks of a
        persisted array are lost.
    TargetExistsError
        If it exists, or is being written, of another call, and ``overwrite`` is False. If it is, contains or lies
        inside a source of the array, whatever ``overwrite`` is.
    TargetError
        If it cannot be written, for example because the disk is full, or another process is writing it.
    ChunkReadError
        If a source could not be read.

    Examples
    --------
    >>> import imageryxr as ix, tempfile
    >>> em = ix.open_image(ix.sample(sample_path).image, mip=2).isel(z=slice(0, 3))
    >>> out = tempfile.TemporaryDirectory()
    >>> report = ix.export(em, out.name + "/stack/z{z:02d}.png")
    >>> sorted(os.listdir(out.name + "/stack"))
    ['.imageryxr', 'z00.png', 'z01.png', 'z02.png']
    """
    check_tries(retries, on_error)
    _check_flag("resume", resume)
    crew = find_crew(client, workers, memory)
    leave_script_of_parent(crew)
    try:
        plan = _plan(da, target, crew, overwrite, scratch, square, options)
        plan.validate()
        plan.warn_of_rereads()
        return run_plan(plan, overwrite=overwrite, resume=resume, retries=retries, on_error=on_error, progress=progress)
    finally:
        crew.close()


def check_tries(retries: Any, on_error: Any) -> None:
    """Raise `OptionError` if it is not said sensibly what to do about regions that fail."""
    if on_error not in ("raise", "collect"):
        raise OptionError(
            f"on_error={on_error!r} must be 'raise' (stop at the first region that fails) or 'collect' (list them all)"
        )
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise OptionError(f"retries={retries!r} must be a whole number from 0")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r} must be True or False")


def _plan(
    da: xr.DataArray,
    target: Any,
    crew: Crew,
    overwrite: bool,
    scratch: Any,
    square: bool | None,
    options: dict[str, Any],
) -> ExportPlan:
    _check_flag("overwrite", overwrite)
    folder = check_scratch(scratch)
    if square is not None and not isinstance(square, bool):
        raise OptionError(f"square={square!r} must be True, False or None")
    # The formats are loaded by whoever exports.
    from imageryxr.export.targets.registry import choose_target

    array = _checked(da)
    layer_type = layer_type_of(array)
    read = in_native_order(box_reader(array))
    read = replace(read, volume=replace(read.volume, splits=None))  # which may be long, and no region needs
    beyond = outside(read.volume.expr, read.volume.grid)
    if beyond:
        warn(beyond)
    if square:
        axis = options.get("axis") or next((d for d in "zyx" if f"{{{d}" in str(target)), "z")
        read = square_reader(read, axis, layer_type)
    channels = read.tail[0] if read.tail else 0
    volume = read.volume
    contrast = volume.attrs.get("contrast_limits")
    layer = ArrayInfo(
        volume.grid,
        channels,
        volume.expr.dtype,
        "image" if channels else layer_type,
        None if contrast is None or channels else (float(contrast[0]), float(contrast[1])),
    )
    chosen = choose_target(target, layer, **options)
    places = source_places(volume.expr, *volume.dask_inputs.values(), array.variable._data)
    refuse_sources(chosen, places)
    _check_square(chosen, square)
    _warn_of_cut_lines(array, getattr(chosen, "axis", None))
    what = _what(chosen, volume)
    token = _token(chosen, read)
    shown = tuple(clean_message(place) if "://" in place else place for place in places)
    return make_plan(chosen, read, crew, token, what, overwrite=overwrite, scratch=folder, sources=shown)


def _check_square(chosen: Target, square: bool | None) -> None:
    from imageryxr.export.targets.slices import SliceTarget, Stack

    if square and not isinstance(chosen, SliceTarget):
        raise OptionError(
            f"square=True is for slices (a stack of pictures, a TIFF, a video), and {chosen.place} is a volume, whose "
            "voxels keep their size; leave square out, or bring the array onto another grid first with "
            "regrid(array, resolution)"
        )
    if square is None and isinstance(chosen, Stack):
        axes = chosen.layer.grid.axes
        rows, columns = (axes[a].resolution for a in range(3) if a != chosen.axis)
        if rows != columns:
            warn(
                f"the pixels of slices across {DIMS[chosen.axis]} are {columns:g} × {rows:g} nm, and programs show "
                "them as squares: give square=True to resample them, or square=False for a voxel a pixel",
            )


def _warn_of_cut_lines(da: xr.DataArray, axis: int | None) -> None:
    # Lines that were drawn in one plane are broken into dots and dashes when they are cut along another.
    drawn = da.attrs.get("outline_axis")
    if axis is not None and drawn is not None and drawn != DIMS[axis]:
        warn(
            f"the outlines were drawn in slices across {drawn}, and the stack is sliced across {DIMS[axis]}: they will "
            f"look broken; draw them with axis={DIMS[axis]!r}",
        )


def _token(target: Target, read: BoxReader) -> str:
    from dask.base import tokenize

    layer = target.layer
    place = astuple(layer.grid)
    return str(tokenize("imageryxr.export", FORMAT, read.volume.expr, place, layer.channels, target.identity()))


def _what(target: Target, volume: Volume) -> dict[str, Any]:
    """Return the call in words, for the manifest and for those who meet another's export."""
    sources = sorted(set(_sources(volume.expr, volume.dask_inputs)))
    return {**target.describe(), "sources": sources, "box": str(volume.grid.bbox)}


def _sources(expr: Expr, dask_inputs: dict[str, Any]) -> list[str]:
    if isinstance(expr, LevelLeaf):
        when = expr.source.attrs.get("timestamp")
        return [f"{expr.source.name}, mip {expr.mip}{f', at {when}' if when else ''}"]
    if isinstance(expr, DaskLeaf):
        return [_dask_array(dask_inputs.get(expr.name))]
    if isinstance(expr, Leaf):
        return ["an array in memory"]
    return [name for child in expr.inputs for name in _sources(child, dask_inputs)]


def _dask_array(array: Any) -> str:
    below = [] if array is None else exprs_below(array)
    names = sorted({name for expr in below for name in _sources(expr, {})})
    return f"a dask array of {' and '.join(names)}" if names else "a dask array"


def _checked(da: Any) -> xr.DataArray:
    if isinstance(da, xr.DataArray):
        _check_colors(da)
        return da
    advice = "give one as open_image, open_segmentation and the verbs return it"
    if isinstance(da, xr.Dataset):
        advice = "give one variable, or draw it first: export(overlay(ds.image, ds.segmentation), target)"
    elif isinstance(da, str | os.PathLike):
        advice = "the array comes first, then the target: export(array, target)"
    elif hasattr(da, "__array__"):
        advice = COORDS_ADVICE
    raise LayerError(f"export takes an xarray.DataArray, not a {type(da).__name__}; {advice}")


def _check_colors(da: xr.DataArray) -> None:
    # Formats tell colours by their number alone: those that a file cannot hold, its target refuses.
    if "rgba" not in da.dims or "rgba" not in da.coords:
        return
    names = [str(name) for name in da["rgba"].values]
    if names != list("rgba")[: len(names)]:
        raise LayerError(
            f"files hold colours in the order r, g, b, a, and this array has {', '.join(names)}: give "
            "array.sel(rgba=['r', 'g', 'b', 'a']), or one by itself as grey values, such as "
            "array.sel(rgba='r', drop=True)"
        )
