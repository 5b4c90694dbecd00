"""The command line: ``imageryxr info | demo | figure | export | measure | cache``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

import imageryxr as ix
from imageryxr.cli import cache
from imageryxr.cli import export as engine
from imageryxr.cli import figure as drawing
from imageryxr.cli import info as described
from imageryxr.cli import measure as measuring
from imageryxr.cli import options as given
from imageryxr.cli import points as marks
from imageryxr.cli.demo import run_demo
from imageryxr.cli.help_groups import GroupedCommand
from imageryxr.cli.messages import command_text, exit_code
from imageryxr.errors import ImageryError, ImageryWarning, OptionError
from imageryxr.render.figure.files import check_suffix

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Inspect, draw, measure and export connectomics volumes.",
)
app.add_typer(cache.app, name="cache")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"imageryxr {ix.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Inspect, draw and export connectomics volumes."""


@app.command()
def info(
    source: Annotated[
        str, typer.Argument(help="precomputed://…, zarr://…, graphene://…, a URL or path, or a Neuroglancer link.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timestamp: given.Timestamp = None,
    reads: Annotated[
        bool, typer.Option("--read/--no-read", help="Read the middle chunk of each level (not for graphene).")
    ] = True,
    allow_local: Annotated[bool, typer.Option("--allow-local", help="Let a link lead to this machine.")] = False,
) -> None:
    """Print the levels, sizes, resolutions and chunks of a source, or of the layers of a link.

    Levels that are sparse (their middle chunk is missing), damaged or unreadable are marked, and so are levels that are
    listed from coarse to fine. Exit codes: 0 everything can be read; 1 a source, a layer or a level cannot be read.
    """
    if described.is_link(source):
        is_whole = described.show_link(source, allow_local=allow_local, as_json=as_json, reads=reads)
    else:
        is_whole = described.show_source(source, timestamp, as_json=as_json, reads=reads)
    if not is_whole:
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Output folder.")],
    overwrite: given.Overwrite = False,
) -> None:
    """Make a sample volume and from it figures, a PNG stack and an OME-Zarr. Needs no network."""
    run_demo(folder, overwrite=overwrite, say=print)


@app.command(cls=GroupedCommand)
def figure(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="[LINK] OUT", help="A Neuroglancer link or state (optional), and the picture to write."),
    ],
    image: given.Image = None,
    segmentation: given.Segmentation = None,
    bbox: given.Bbox = None,
    center: given.Center = None,
    size: given.Size = None,
    resolution: given.Resolution = "1,1,1",
    image_mip: given.ImageMip = None,
    seg_mip: given.SegMip = None,
    to: given.To = None,
    channel: given.Channel = None,
    time: given.Time = None,
    assume: given.Assume = "center",
    ids: given.Ids = None,
    colors: given.Colors = None,
    alpha: given.AlphaOrTheirs = None,
    outline: given.OutlineWidth = None,
    outline_side: given.Side = "out",
    merge: given.Merge = True,
    outline_alpha: given.LineAlpha = 1.0,
    outline_unit: given.LineUnit = "px",
    rest_alpha: given.RestAlpha = None,
    contrast: given.Contrast = None,
    axis: given.Axis = "z",
    missing: given.MissingChunks = None,
    datastack: given.Datastack = None,
    server_address: given.Server = None,
    timestamp: given.Timestamp = None,
    agglomerate: given.Agglomerate = True,
    scale_bar: drawing.ScaleBar = True,
    legend: drawing.Legend = False,
    inset: drawing.Inset = None,
    inset_zoom: drawing.InsetZoom = 3,
    label_pt: drawing.LabelPt = None,
    width_mm: drawing.WidthMm = None,
    scale: drawing.Scale = 1,
    dpi: drawing.Dpi = None,
    square: drawing.Square = True,
    points: marks.Points = None,
    points_column: marks.PointsColumn = None,
    points_resolution: marks.PointsResolution = "1,1,1",
    table: marks.Table = None,
    link_layers: Annotated[
        str | None, typer.Option("--layers", help="Draw only these layers of a link: name,name,…")
    ] = None,
    link_group: Annotated[
        int | None, typer.Option("--group", help="Panel of a link with several panels to draw, from 0.")
    ] = None,
    allow_local: Annotated[bool, typer.Option("--allow-local", help="Let a link lead to this machine.")] = False,
    max_state_size: Annotated[
        str, typer.Option("--max-state-size", help="The largest state of a link to read, such as '16 MB'.")
    ] = "4 MB",
    overwrite: given.Overwrite = False,
) -> None:
    """Draw one slice: an image with coloured or outlined segments, or the view of a Neuroglancer link.

    Default position: the middle of the volume, or the position of the link. For a link, --center and --size are in
    voxels of the link, and colours, opacities and contrast are those of the link unless they are given.
    """
    link, out = _link_and_target(paths)
    if out.exists() and not overwrite:
        raise ix.errors.TargetExistsError(f"{out} exists; give --overwrite to replace it, or another name")
    check_suffix(out)
    style = drawing.Decoration(scale, scale_bar, legend, inset, inset_zoom, label_pt, width_mm, dpi)
    given.check_outline_options(context, outline)
    lines = given.make_outline(outline, outline_side, merge, outline_alpha, outline_unit)
    options = given.overlay_options(ids, colors, alpha, rest_alpha, lines, contrast, given.check_axis(axis))
    if link is not None:
        _refuse_sources(image, segmentation, bbox, to, channel, time)
        limits: dict[str, Any] = {"allow_local": allow_local, "max_state_size": max_state_size}
        dataset = _link_view(link, center, size, link_layers, group=link_group, **limits)
        tree = None
        rgba, layers = dataset.imagery.overlay(**options), {str(n): v for n, v in dataset.data_vars.items()}
    else:
        opened, tree = given.open_layers(
            image, segmentation, image_mip=image_mip, seg_mip=seg_mip, missing=missing, datastack=datastack,
            server_address=server_address, timestamp=timestamp, agglomerate=agglomerate, channel=channel, time=time,
            assume=assume,
        )  # fmt: skip
        box = given.make_box(bbox, center, size, resolution, axis, given.viewer_resolution(tree))
        layers = given.cut_layers(opened, box, plane=axis, to=to)
        given.check_one_slice(layers, axis)
        rgba = given.draw_layers(layers, options)
    drawing.warn_outside(rgba)
    rgba = drawing.shaped(rgba, axis, square=square)
    annotations = marks.read_points(points, points_column, points_resolution)
    annotations += marks.read_table_rows(rgba, table, ids, points_column, tree)
    unit = given.parse_resolution(resolution, given.viewer_resolution(tree))
    picture = drawing.decorated(rgba, layers.values(), annotations, ids, unit, axis, style)
    drawing.write(picture, out, style, overwrite=overwrite, where=ix.grid_of(rgba).bbox)


def _link_and_target(paths: list[str]) -> tuple[str | None, Path]:
    if len(paths) > 2:
        raise OptionError(
            f"figure takes a link and a picture to write, or a picture only; {len(paths)} arguments were given"
        )
    return (paths[0] if len(paths) == 2 else None), Path(paths[-1])


def _refuse_sources(*given: Any) -> None:
    if any(value is not None for value in given):
        raise OptionError(
            "a link defines the layers and the position; omit --image, --segmentation, --bbox, --to, --channel and "
            "--time"
        )


def _link_view(link: str, center: str | None, size: str | None, layers: str | None, **options: Any) -> xr.Dataset:
    names = None if layers is None else [name.strip() for name in layers.split(",")]
    tree = ix.open_neuroglancer(link, layers=names, **options)
    shape = (512, 512) if size is None else given.parse_numbers(size, "--size", (2, 3))
    point = None if center is None else given.parse_numbers(center, "--center", (3,))
    dataset: xr.Dataset = tree.imagery.view(size=shape, center=point)
    return dataset


@app.command(cls=GroupedCommand)
def export(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(help="'stack/z{z:04d}.png', precomputed://…, or a path that ends in .ome.zarr, .tif, .mp4 …"),
    ],
    config: engine.Config = None,
    image: given.Image = None,
    segmentation: given.Segmentation = None,
    bbox: given.Bbox = None,
    center: given.Center = None,
    size: given.Size = None,
    resolution: given.Resolution = "1,1,1",
    image_mip: given.ImageMip = None,
    seg_mip: given.SegMip = None,
    to: given.To = None,
    channel: given.Channel = None,
    time: given.Time = None,
    assume: given.Assume = "center",
    ids: given.Ids = None,
    colors: given.Colors = None,
    alpha: given.Alpha = 0.2,
    outline: given.OutlineWidth = None,
    outline_side: given.Side = "out",
    merge: given.Merge = True,
    outline_alpha: given.LineAlpha = 1.0,
    outline_unit: given.LineUnit = "px",
    rest_alpha: given.RestAlpha = None,
    contrast: given.Contrast = None,
    axis: Annotated[
        str | None, typer.Option(help="Axis that the slices of a TIFF or video, and outlines, are perpendicular to.")
    ] = None,
    missing: given.MissingChunks = None,
    datastack: given.Datastack = None,
    server_address: given.Server = None,
    timestamp: given.Timestamp = None,
    agglomerate: given.Agglomerate = True,
    raw: Annotated[bool, typer.Option("--raw", help="Export the voxels of the only source, not a picture.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    overwrite: given.Overwrite = False,
    resume: engine.Resume = True,
    scheduler: engine.Scheduler = None,
    workers: engine.WorkerCount = None,
    memory: engine.Memory = None,
    scratch: engine.Scratch = None,
    retries: engine.Retries = 3,
    on_error: engine.OnErrorOption = "raise",
    progress: engine.ShowProgress = None,
    square: engine.Square = None,
    as_json: engine.AsJson = False,
    chunks: engine.Chunks = None,
    shards: engine.Shards = None,
    levels: engine.Levels = None,
    compressor: engine.Compressor = None,
    ome_version: engine.OmeVersion = None,
    layer_type: engine.LayerTypeOption = None,
    encoding: engine.Encoding = None,
    quality: engine.Quality = None,
    gzip: engine.Gzip = None,
    compress_level: engine.CompressLevel = None,
    compression: engine.Compression = None,
    bigtiff: engine.BigTiff = None,
    fps: engine.Fps = None,
    crf: engine.Crf = None,
) -> None:
    """Write an OME-Zarr, a precomputed layer, a stack of pictures, a TIFF or a video; continue after an interruption.

    Exit codes: 0 done; 1 an error of a source, a server or a disk, or the target exists; 2 an invalid option or job
    file; 3 regions failed (--on-error collect); 130 interrupted; 143 terminated. Default box: the whole extent of the
    sources. A stack of pictures is sliced along the axis in its pattern, and outlines are drawn in these slices.
    """
    with engine.errors_as_json(as_json):
        given.check_outline_options(context, outline)
        lines = given.make_outline(outline, outline_side, merge, outline_alpha, outline_unit)
        one_file = target.lower().endswith((".tif", ".tiff", ".mp4", ".webm", ".gif")) and "{" not in target
        options = engine.format_options(
            axis if one_file else None, ome_version, chunks=chunks, shards=shards, levels=levels, compressor=compressor,
            layer_type=layer_type, encoding=encoding, quality=quality, gzip=gzip, compress_level=compress_level,
            compression=compression, bigtiff=bigtiff, fps=fps, crf=crf,
        )  # fmt: skip
        options, square = engine.drop_unsupported(context, target, options, square)
        axis = given.check_axis(axis or given.slicing_axis(target))
        opened, tree = given.open_layers(
            image, segmentation, image_mip=image_mip, seg_mip=seg_mip, missing=missing, datastack=datastack,
            server_address=server_address, timestamp=timestamp, agglomerate=agglomerate, channel=channel, time=time,
            assume=assume,
        )  # fmt: skip
        unit = given.viewer_resolution(tree)
        layers = given.cut_layers(opened, given.make_box(bbox, center, size, resolution, axis, unit), to=to)
        if raw and len(layers) != 1:
            raise OptionError("--raw exports one source; give --image or --segmentation, not both")
        one = next(iter(layers.values()))
        look = given.overlay_options(ids, colors, alpha, rest_alpha, lines, contrast, axis)
        array = one if raw else given.draw_layers(layers, look)
        engine.run_export(
            array, target, dry_run=dry_run, as_json=as_json, overwrite=overwrite, resume=resume, scheduler=scheduler,
            workers=workers, memory=memory, scratch=scratch, retries=retries, on_error=on_error, progress=progress,
            square=square, options=options,
        )  # fmt: skip


@app.command(cls=GroupedCommand)
def measure(
    output: measuring.Output,
    image: given.Image = None,
    segmentation: given.Segmentation = None,
    bbox: given.Bbox = None,
    center: given.Center = None,
    size: given.Size = None,
    resolution: given.Resolution = "1,1,1",
    image_mip: given.ImageMip = None,
    seg_mip: given.SegMip = None,
    to: measuring.To = None,
    channel: given.Channel = None,
    time: given.Time = None,
    assume: given.Assume = "center",
    ids: measuring.Ids = None,
    percentiles: measuring.Percentiles = None,
    missing: given.MissingChunks = None,
    datastack: given.Datastack = None,
    server_address: given.Server = None,
    timestamp: given.Timestamp = None,
    agglomerate: given.Agglomerate = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and measure nothing.")] = False,
    overwrite: given.Overwrite = False,
    resume: measuring.Resume = True,
    scheduler: measuring.Scheduler = None,
    workers: measuring.WorkerCount = None,
    progress: engine.ShowProgress = None,
    as_json: engine.AsJson = False,
) -> None:
    """Write a table of the segments: size, position and, with an image, grey values; continue after an interruption.

    Exit codes: 0 done; 1 an error of a source, a server or a disk, or the target exists; 2 an invalid option;
    130 interrupted; 143 terminated. Default box: the whole extent of the sources.
    """
    with engine.errors_as_json(as_json):
        opened, tree = given.open_layers(
            image, segmentation, image_mip=image_mip, seg_mip=seg_mip, missing=missing, datastack=datastack,
            server_address=server_address, timestamp=timestamp, agglomerate=agglomerate, channel=channel, time=time,
            assume=assume,
        )  # fmt: skip
        unit = given.viewer_resolution(tree)
        to = to or ("segmentation" if len(opened) == 2 else None)
        layers = given.cut_layers(opened, given.make_box(bbox, center, size, resolution, "z", unit), to=to)
        plan = measuring.make_plan(layers, output, ids, percentiles)
        measuring.run_measure(
            plan, dry_run=dry_run, as_json=as_json, progress=progress, scheduler=scheduler, workers=workers,
            overwrite=overwrite, resume=resume,
        )  # fmt: skip


def _warn(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    print(f"warning: {command_text(message)}", file=sys.stderr)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", ImageryWarning)
            warnings.showwarning = _warn
            yield
    except ImageryError as error:
        if "--json" in sys.argv[1:]:
            engine.print_as_json(error)
        print(f"error: {command_text(error)}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from None
    except KeyboardInterrupt as error:
        print("stopped", file=sys.stderr)
        raise SystemExit(engine.stopped_code(error)) from None


# Errors of the option parser; typer exposes only this subclass of their base class.
_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Run the command line; errors of imageryxr are printed in one line and set the exit code."""
    with _plain_errors():
        try:
            code = app(standalone_mode=False)
        except _USAGE as error:
            in_file = getattr(getattr(error, "ctx", None), "default_map", None) or {}
            if "--json" in sys.argv[1:] or in_file.get("as_json") is True:
                engine.print_error(type(error).__name__, error.format_message(), error.exit_code)
            error.show()
            raise SystemExit(error.exit_code) from None
        except typer.Abort:
            raise KeyboardInterrupt from None
        if code in (engine.INTERRUPTED, engine.TERMINATED):
            raise engine.Terminated if code == engine.TERMINATED else KeyboardInterrupt
        if code:
            raise SystemExit(code)


if __name__ == "__main__":
    main()
