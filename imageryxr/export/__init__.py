"""Export arrays to files, buckets or memory, region by region."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, Unpack

import xarray as xr

from imageryxr.core.array_labels import has_cutouts
from imageryxr.core.validate import check_choice, check_flag, check_whole
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.plan.planner import plan_array
from imageryxr.export.report import ExportReport
from imageryxr.export.run.scheduler import run_plan
from imageryxr.export.run.workers import exit_if_spawned, find_workers
from imageryxr.export.targets.format_options import Client, FormatOptions

if TYPE_CHECKING:
    from imageryxr.export.cutouts.jobs import CutoutPlan


def plan_export(
    da: xr.DataArray | xr.Dataset,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    client: Client = None,
    workers: int | None = None,
    memory: int | str | None = None,
    scratch: str | os.PathLike[str] | Literal[False] | None = None,
    square: bool | None = None,
    **options: Unpack[FormatOptions],
) -> ExportPlan | CutoutPlan:
    """Plan an export without running it. Reads no voxels and writes nothing.

    Parameters
    ----------
    da, target, overwrite, client, workers, memory, scratch, square, **options
        As in `export`.

    Returns
    -------
    ExportPlan or, for cutouts, CutoutPlan
        Regions, tasks, bytes to read from each source, bytes to write, requests, peak memory of a worker. Its
        ``validate()`` raises an error if the export cannot succeed; `export` checks the same first.

    Raises
    ------
    OptionError, TargetExistsError, LayerError
        As `export`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image, mip=2)
    >>> plan = ix.plan_export(em, "stack/z{z:04d}.png", workers=2)
    >>> plan.bytes_to_write == em.size
    True
    >>> plan.reads[0].rereads
    1.0
    """
    overwrite = check_flag("overwrite", overwrite)
    if has_cutouts(da):
        from imageryxr.export.cutouts.jobs import plan_cutout_export

        others = {"memory": memory, "scratch": scratch, "square": square}
        return plan_cutout_export(da, target, overwrite=overwrite, client=client, workers=workers, **options, **others)
    pool = find_workers(client, workers, memory)
    try:
        return plan_array(da, target, pool, overwrite=overwrite, scratch=scratch, square=square, options={**options})
    finally:
        pool.close()


def export(
    da: xr.DataArray | xr.Dataset,
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = True,
    client: Client = None,
    workers: int | None = None,
    memory: int | str | None = None,
    scratch: str | os.PathLike[str] | Literal[False] | None = None,
    retries: int = 3,
    on_error: Literal["raise", "collect"] = "raise",
    progress: bool | None = None,
    square: bool | None = None,
    **options: Unpack[FormatOptions],
) -> ExportReport:
    """Write an array as OME-Zarr, precomputed, pictures, TIFF or video, on this machine or on a cluster.

    Computes region by region: one worker reads, draws and writes a region, and only a few regions are in progress at a
    time, so memory does not grow with the array. The result is published when it is complete; until then, an existing
    target stays unchanged. A journal beside the target records the finished regions: after an interruption, the same
    call continues and remakes damaged regions. If the target is complete, the call checks that no file is missing.

    Parameters
    ----------
    da : DataArray
        Dims (z, y, x), or (z, y, x, rgba) as `overlay` returns, or `cutouts` (see ``target``). Each block of a dask
        array of your own is computed once if memory allows; the plan shows how often. A sliced or rechunked picture is
        exported like the picture itself. Persisted blocks are read from their workers.
    target : str or path
        On local disk, or in a bucket (``s3://…``, ``gs://…``):

        ``"out.ome.zarr"`` or ``"out.zarr"``
            OME-Zarr with a pyramid and units, any dtype, RGBA as four channels: for large volumes, and for napari,
            Fiji, Neuroglancer.
        ``"precomputed://…"``
            Neuroglancer precomputed with a pyramid; RGBA as four channels, segmentations with their ids.
        ``"stack/z{z:04d}.png"``, ``"stack/z{z:04d}.tif"``
            One picture per slice along the named axis: ``{z}`` is the index in the array, from 0, ``{z_index}`` the
            index in the volume, in voxels of the array's size, and ``{z_nm}`` the coordinate.
            PNG: 8- or 16-bit grey values or RGBA. TIFF: any numbers.
        ``"out.tif"``, ``"out.ome.tif"``
            One file, with the voxel size in ImageJ's metadata or in OME-XML.
        ``"out.mp4"``, ``"out.webm"``, ``"out.gif"``
            A video with one slice per frame.
        ``"memory://"``
            The report's ``result``, a DataArray.

        Cutouts: ``"boxes.zarr"``, a group with an array per variable, the columns of the table, and one chunk per
        cutout; ``"gallery/{cutout:05d}.png"`` or ``"gallery/{id}.png"``, a picture of the slice through each centre,
        named by columns of the table (or ``.jpg``); ``"gallery.html"``, one page with all pictures, which can be sorted
        by the columns (``labels=`` names the column of the captions). Cutouts are written in one pass that reads each
        chunk once; ``client`` may also be a `distributed.Client`. ``overwrite=True`` deletes previous pictures, and a
        previous group in a bucket, before the new ones are written.
    overwrite : bool, default False
        Whether to replace a target that another call has written or begun to write. When the new stack is complete,
        files of the old one that it does not replace are deleted, as listed in the old manifest. An unfinished export
        of the same call is continued; a complete one is made again, so omit ``overwrite`` in jobs that may be requeued.
    resume : bool, default True
        Whether to continue an unfinished export of the same call. False starts again, even if the target is complete;
        this needs no ``overwrite``, because the target belongs to the same call.
    client : optional
        The workers. None or ``"threads"``: threads of this process. ``"processes"``: processes of this machine, for
        work that holds Python's lock. A `distributed.Client`, or the address of a scheduler (``"tcp://host:8786"``):
        the workers of a cluster, which need access to the sources and the target only.
    workers : int, optional
        Number of threads or processes; with a cluster, number of regions in progress. Default: one per core; with a
        cluster, two per thread.
    memory : int or str, optional
        Memory of a worker (a process with all its threads) in bytes, or such as ``"4 GB"``. Default: the available
        memory, or the limit of the cluster's workers. Blocks of your own dask arrays are counted whole; temporary
        memory of your own functions is unknown and not counted.
    scratch : str, path or False, optional
        Folder on a local disk for scratch files. They are used for stacks, TIFFs and videos if a worker's memory cannot
        hold as many slices as a source's chunks are deep, so that each chunk is still read once. The files have no
        name and are deleted with their process. Default: a dask worker's own folder, dask's ``temporary-directory``, or
        the system's folder for temporary files (``TMPDIR``). False: no scratch files; chunks are then read repeatedly.
    retries : int, default 3
        How often a failed region is retried. After transient errors, such as those of a network, the delays are 2, 15
        and 60 seconds.
    on_error : {"raise", "collect"}, default "raise"
        What happens when a region fails after all retries: raise the error, or continue and list all failed regions in
        the report. In both cases finished regions are kept and the target is unchanged.
    progress : bool, optional
        Whether to show a progress bar. Default: in a notebook, and if standard error is a terminal.
    square : bool, optional
        For slices whose pixels are not square (x or y slices of anisotropic voxels). True resamples them to the finer
        side: images and pictures linearly, segmentations to the nearest id. False writes one pixel per voxel; None does
        the same with a warning. Volumes (OME-Zarr, precomputed, memory) keep their voxels, and True is an error.
    **options
        OME-Zarr: ``chunks`` and ``shards`` (z, y, x voxels; default (16, 256, 256) and none: give shards if many small
        files are a problem), ``compressor`` ("zstd", "lz4", "gzip", with a level as in "zstd:5", or None), ``levels``
        (default: until the longest side is at most that of a chunk, or twice that in precomputed; 1 for no pyramid; NaN
        is left out of means), ``version`` ("0.5", or "0.4" for older readers), ``layer_type``. Precomputed: ``chunks``,
        ``levels``, ``encoding`` ("raw", "jpeg", "png", "compressed_segmentation"), ``quality`` (of JPEG, default 85),
        ``gzip`` (for "raw" and "compressed_segmentation"; default False, which any reader and any web server supports.
        True makes a segmentation some 4 times smaller, a raw image 1.2 times, and is meant for buckets: objects are
        marked as gzipped, and CloudVolume, TensorStore and browsers decompress them. On a local disk, file names then
        end in ``.gz``, and only CloudVolume and imageryxr find them), ``layer_type``. PNG: ``compress_level`` (0 to 9,
        default 3: little larger than 9 and several times as fast). TIFF: ``compression`` ("zlib" or None); for a single
        file also ``axis`` ("z", "y", "x") and ``bigtiff``. Video: ``axis``, ``fps`` (default 12), ``crf`` (default 18;
        smaller is better). Cutouts: ``scale`` (pixels per voxel of pictures and pages, default 1), ``quality`` (of
        JPEG; a page has PNG without it), ``labels``, and ``compressor`` of Zarr.

        Booleans become uint8: 0 and 255 in slices (PNG, TIFF, video), which are viewed; 0 and 1 in volumes (OME-Zarr,
        precomputed), which are counted. ``"memory://"`` keeps booleans.

    Returns
    -------
    ExportReport
        Target, regions done, skipped and failed, bytes, seconds, missing chunks.

    Raises
    ------
    OptionError
        If the format of the target is unknown or cannot hold the values, a worker has too little memory, or blocks of
        a persisted array are lost.
    TargetExistsError
        If another call has written or is writing the target, and ``overwrite`` is False. If the target is, contains or
        lies inside a source of the array, even with ``overwrite``.
    TargetError
        If the target cannot be written, for example because the disk is full or another process is writing it.
    LayerError
        If ``da`` is a Dataset of layers or another object that is not one array.
    ChunkReadError
        If a source cannot be read.

    Examples
    --------
    >>> import os, tempfile, imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image, mip=2).isel(z=slice(0, 3))
    >>> out = tempfile.TemporaryDirectory()
    >>> report = ix.export(em, out.name + "/stack/z{z:02d}.png")
    >>> sorted(os.listdir(out.name + "/stack"))
    ['.imageryxr', 'z00.png', 'z01.png', 'z02.png']
    """
    check_tries(retries, on_error)
    overwrite, resume = check_flag("overwrite", overwrite), check_flag("resume", resume)
    if progress is not None:
        progress = check_flag("progress", progress, "True, False or None")
    if has_cutouts(da):
        from imageryxr.export.cutouts.jobs import export_cutouts

        call: dict[str, Any] = {
            "overwrite": overwrite,
            "resume": resume,
            "client": client,
            "workers": workers,
            "progress": progress,
        }
        return export_cutouts(da, target, **call, memory=memory, scratch=scratch, square=square, **options)
    pool = find_workers(client, workers, memory)
    exit_if_spawned(pool)
    try:
        plan = plan_array(da, target, pool, overwrite=overwrite, scratch=scratch, square=square, options={**options})
        plan.check_resources()
        plan.warn_of_rereads()
        return run_plan(plan, overwrite=overwrite, resume=resume, retries=retries, on_error=on_error, progress=progress)
    finally:
        pool.close()


def check_tries(retries: Any, on_error: Any) -> None:
    """Raise `OptionError` if `retries` or `on_error` is invalid."""
    expected = "'raise' (stop at the first region that fails) or 'collect' (list them all)"
    check_choice("on_error", on_error, ("raise", "collect"), expected=expected)
    check_whole("retries", retries)
