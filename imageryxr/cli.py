"""The command line: ``imageryxr info | demo | figure | export``."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

import imageryxr as ix
from imageryxr import cli_export as engine
from imageryxr.boxes import show_triple
from imageryxr.demo import run_demo
from imageryxr.errors import ChoiceError, ImageryError, ImageryWarning, OptionError
from imageryxr.export.square import square_pixels
from imageryxr.figure.saving import check_suffix
from imageryxr.sources.base import Source
from imageryxr.sources.resolve import resolve_source

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Connectomics volumes: what they are, pictures of them, exports.",
)

_CORNERS = "Corners, upper one exclusive: x0,y0,z0:x1,y1,z1 in units of --resolution."
Bbox = Annotated[str | None, typer.Option(help=_CORNERS)]
Center = Annotated[str | None, typer.Option(help="Middle of the box: x,y,z in units of --resolution.")]
Size = Annotated[str | None, typer.Option(help="Its size: w,h (one plane) or w,h,d, in units of --resolution.")]
Resolution = Annotated[
    str, typer.Option(help="nm per unit of those numbers: x,y,z, or 'viewer' for a datastack's. 1,1,1: they are nm.")
]
Image = Annotated[str | None, typer.Option("--image", help="Source of the image.")]
Segmentation = Annotated[str | None, typer.Option("--segmentation", help="Source of the segmentation.")]
ImageMip = Annotated[int | None, typer.Option(help="Level of the image; default: the finest.")]
SegMip = Annotated[int | None, typer.Option(help="Level of the segmentation; default: the finest.")]
Ids = Annotated[str | None, typer.Option(help="Draw these segments only: id,id,…")]
Colors = Annotated[str | None, typer.Option(help="A palette's name, or a JSON object id → colour.")]
Alpha = Annotated[float, typer.Option(help="How opaque the fill is, 0 to 1.")]
AlphaOrTheirs = Annotated[
    float | None, typer.Option("--alpha", help="How opaque the fill is; default 0.2, or the link's.")
]
OutlineWidth = Annotated[float | None, typer.Option("--outline", help="Width of outlines in pixels; none if left out.")]
Side = Annotated[str, typer.Option("--outline-side", help="'out' or 'in'.")]
Merge = Annotated[bool, typer.Option("--merge/--no-merge", help="Outline segments that touch as one, or each.")]
LineAlpha = Annotated[float, typer.Option("--outline-alpha", help="How opaque outlines are, 0 to 1.")]
LineUnit = Annotated[str, typer.Option("--outline-unit", help="What --outline counts in: 'px' or 'nm'.")]
RestAlpha = Annotated[float | None, typer.Option(help="With --ids: how opaque the other segments are; default: not.")]
Contrast = Annotated[str | None, typer.Option(help="Grey values that become black and white: low,high.")]
Axis = Annotated[str, typer.Option(help="The axis across the slices: z, y or x.")]
MissingChunks = Annotated[str, typer.Option("--missing", help="Chunks the store lacks: 'raise', 'fill' or 'warn'.")]
Datastack = Annotated[str | None, typer.Option(help="A CAVE datastack, in the place of --image and --segmentation.")]
Server = Annotated[str | None, typer.Option(help="Its info service; default: the one that caveclient uses.")]
Timestamp = Annotated[str | None, typer.Option(help="Instant of a graphene segmentation, ISO 8601; default: now.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a target that exists.")]


@app.command()
def info(
    source: Annotated[str, typer.Argument(help="precomputed://…, zarr://…, graphene://…, or a URL or path.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    timestamp: Timestamp = None,
) -> None:
    """Print the levels, sizes, resolutions and chunks of a source."""
    layer, choices = _described(source, timestamp)
    if as_json:
        print(json.dumps(_description(layer), indent=2))
        return
    first = layer.levels[0].grid
    print(f"{layer.name}\n{layer.layer_type}, {layer.dtype}, {_count(len(layer.levels), 'level')}, {_extent(first)}")
    for what, count in choices.items():
        print(f"{_count(count, what)}, {what}=0 to {what}={count - 1}")
    for key, value in layer.attrs.items():
        print(f"{key}: {value}")
    rows = [("mip", "size (x × y × z)", "resolution (nm)", "offset (x, y, z)", "chunk (x × y × z)", "encoding")]
    for level in layer.levels:
        grid = level.grid
        encoding = level.encoding + (", placeholder" if level.placeholder else "")
        offset = ", ".join(f"{o:,}" for o in grid.voxel_offset)
        sizes = (show_triple(grid.shape[::-1]), show_triple(grid.resolution), offset, show_triple(level.chunks[::-1]))
        rows.append((str(level.mip), *sizes, encoding))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Make a sample volume and run the whole pipeline on it: figures, a PNG stack, an OME-Zarr. Needs no network."""
    run_demo(folder, overwrite=overwrite, say=print)


@app.command()
def figure(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="[LINK] OUT", help="A Neuroglancer link or state, if any; the picture to write."),
    ],
    image: Image = None,
    segmentation: Segmentation = None,
    bbox: Bbox = None,
    center: Center = None,
    size: Size = None,
    resolution: Resolution = "1,1,1",
    image_mip: ImageMip = None,
    seg_mip: SegMip = None,
    ids: Ids = None,
    colors: Colors = None,
    alpha: AlphaOrTheirs = None,
    outline: OutlineWidth = None,
    outline_side: Side = "out",
    merge: Merge = True,
    outline_alpha: LineAlpha = 1.0,
    outline_unit: LineUnit = "px",
    rest_alpha: RestAlpha = None,
    contrast: Contrast = None,
    axis: Axis = "z",
    missing: MissingChunks = "raise",
    datastack: Datastack = None,
    server_address: Server = None,
    timestamp: Timestamp = None,
    scale_bar: Annotated[bool, typer.Option("--scale-bar/--no-scale-bar", help="Draw one.")] = True,
    scale: Annotated[int, typer.Option(help="Pixels per voxel.")] = 1,
    dpi: Annotated[float, typer.Option(help="Pixels per inch in print.")] = 300,
    square: engine.Square = False,
    link_layers: Annotated[
        str | None, typer.Option("--layers", help="Of a link, draw these layers only: name,name,…")
    ] = None,
    allow_local: Annotated[bool, typer.Option("--allow-local", help="Let a link lead to this machine.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw one slice: the image, with segments coloured or outlined over it; or what a Neuroglancer link shows.

    Without --bbox or --center: the middle of the volume, or the position of the link. A link's --center and --size
    count in its own voxels, and it has its own colours, alphas and contrast unless they are given.
    """
    link, out = _link_and_target(paths)
    if out.exists() and not overwrite:
        raise ix.TargetExistsError(f"{out} exists; give --overwrite to replace it, or another name")
    check_suffix(out)
    lines = _lines(outline, outline_side, merge, outline_alpha, outline_unit)
    if link is not None:
        _refuse_sources(image, segmentation, bbox)
        dataset = _link_view(link, center, size, link_layers, allow_local)
        options = _overlay_options(ids, colors, alpha, rest_alpha, lines, contrast, _check_axis(axis))
        rgba = dataset.imagery.overlay(**options)
    else:
        opened, unit = _open(image, segmentation, image_mip, seg_mip, missing, datastack, server_address, timestamp)
        box = _box(bbox, center, size, resolution, axis, unit)
        layers = _layers(opened, box, plane=_check_axis(axis))
        _check_one_slice(layers, axis)
        rgba = _draw(layers, ids, colors, alpha, rest_alpha, lines, contrast, axis)
    rgba = square_pixels(rgba, axis) if square else rgba
    across = ix.grid_of(rgba).resolution[{"z": 0, "y": 0, "x": 1}[axis]] / scale
    picture = ix.to_pil(rgba, scale=scale)
    if scale_bar:
        picture = ix.scale_bar(picture, nm_per_pixel=across)
    ix.save_figure(picture, out, dpi=dpi, nm_per_pixel=across, overwrite=overwrite)
    print(f"wrote {out}: {picture.width} × {picture.height} pixels, {ix.grid_of(rgba).bbox}")


def _link_and_target(paths: list[str]) -> tuple[str | None, Path]:
    if len(paths) > 2:
        raise OptionError(
            f"figure takes a link and a picture to write, or a picture only; {len(paths)} arguments were given"
        )
    return (paths[0] if len(paths) == 2 else None), Path(paths[-1])


def _refuse_sources(*given: str | None) -> None:
    if any(given):
        raise OptionError("a link says what is drawn and where; leave out --image, --segmentation and --bbox")


def _link_view(link: str, center: str | None, size: str | None, layers: str | None, allow_local: bool) -> xr.Dataset:
    names = None if layers is None else [name.strip() for name in layers.split(",")]
    tree = ix.open_neuroglancer(link, allow_local=allow_local, layers=names)
    shape = (512, 512) if size is None else _numbers(size, "--size", (2, 3))
    point = None if center is None else _numbers(center, "--center", (3,))
    dataset: xr.Dataset = tree.imagery.view(size=shape, center=point)
    return dataset


@app.command()
def export(
    target: Annotated[
        str, typer.Argument(help="'stack/z{z:04d}.png', or what ends in .ome.zarr, .tif, .mp4 …; precomputed://….")
    ],
    config: engine.Config = None,
    image: Image = None,
    segmentation: Segmentation = None,
    bbox: Bbox = None,
    center: Center = None,
    size: Size = None,
    resolution: Resolution = "1,1,1",
    image_mip: ImageMip = None,
    seg_mip: SegMip = None,
    ids: Ids = None,
    colors: Colors = None,
    alpha: Alpha = 0.2,
    outline: OutlineWidth = None,
    outline_side: Side = "out",
    merge: Merge = True,
    outline_alpha: LineAlpha = 1.0,
    outline_unit: LineUnit = "px",
    rest_alpha: RestAlpha = None,
    contrast: Contrast = None,
    axis: Annotated[str | None, typer.Option(help="The axis across which outlines are drawn: z, y or x.")] = None,
    missing: MissingChunks = "raise",
    datastack: Datastack = None,
    server_address: Server = None,
    timestamp: Timestamp = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Export the voxels of the one source given, not a picture.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    overwrite: Overwrite = False,
    resume: engine.Resume = True,
    scheduler: engine.Scheduler = None,
    workers: engine.WorkerCount = None,
    memory: engine.Memory = None,
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
    compress_level: engine.CompressLevel = None,
    compression: engine.Compression = None,
    bigtiff: engine.BigTiff = None,
    fps: engine.Fps = None,
    crf: engine.Crf = None,
) -> None:
    """Write an OME-Zarr, a precomputed layer, a stack of pictures, a TIFF or a video, and continue where it stopped.

    Exit codes: 0 done, 1 an error, 2 a wrong command line, 3 regions failed (--on-error collect), 130 interrupted.
    Without --bbox or --center: all that the sources cover. A stack of pictures is sliced along the axis that its
    pattern names, and outlines are drawn across it.
    """
    with engine.errors_as_json(as_json):
        lines = _lines(outline, outline_side, merge, outline_alpha, outline_unit)
        one_file = target.lower().endswith((".tif", ".tiff", ".mp4", ".webm")) and "{" not in target
        options = engine.format_options(
            axis if one_file else None, ome_version, chunks=chunks, shards=shards, levels=levels, compressor=compressor,
            layer_type=layer_type, encoding=encoding, quality=quality, compress_level=compress_level,
            compression=compression, bigtiff=bigtiff, fps=fps, crf=crf,
        )  # fmt: skip
        axis = _check_axis(axis or _axis_of(target))
        opened, unit = _open(image, segmentation, image_mip, seg_mip, missing, datastack, server_address, timestamp)
        layers = _layers(opened, _box(bbox, center, size, resolution, axis, unit))
        if raw and len(layers) != 1:
            raise OptionError("--raw exports one source; give --image or --segmentation, not both")
        one = next(iter(layers.values()))
        array = one if raw else _draw(layers, ids, colors, alpha, rest_alpha, lines, contrast, axis)
        engine.run_export(
            array, target, dry_run=dry_run, as_json=as_json, overwrite=overwrite, resume=resume, scheduler=scheduler,
            workers=workers, memory=memory, retries=retries, on_error=on_error, progress=progress, square=square,
            options=options,
        )  # fmt: skip


def _open(
    image: str | None,
    segmentation: str | None,
    image_mip: int | None,
    seg_mip: int | None,
    missing: Any,
    datastack: str | None,
    server_address: str | None,
    timestamp: str | None,
) -> tuple[dict[str, xr.DataArray], Any]:
    if datastack is not None:
        if image or segmentation:
            raise OptionError("--datastack says what to open; leave --image and --segmentation out")
        mips: dict[str, Any] = {"image_mip": image_mip, "segmentation_mip": seg_mip}
        tree = ix.open_datastack(datastack, server_address=server_address, timestamp=timestamp, missing=missing, **mips)
        layers = {name: tree[name][name] for name in ("image", "segmentation")}
        return layers, tree.attrs.get("viewer_resolution")  # type: ignore[return-value]
    opened = {}
    if image:
        opened["image"] = ix.open_image(image, mip=image_mip, missing=missing)
    if segmentation:
        opened["segmentation"] = ix.open_segmentation(segmentation, mip=seg_mip, missing=missing, timestamp=timestamp)
    if not opened:
        raise OptionError("nothing to draw: give --image SOURCE, --segmentation SOURCE or both, or --datastack NAME")
    return opened, None


def _layers(opened: dict[str, xr.DataArray], box: ix.BBox | None, plane: str | None = None) -> dict[str, xr.DataArray]:
    if plane is not None and box is None:
        # of two layers what both cover: a figure of one and the frame of the other is nobody's wish
        both = ix.align(opened["image"], opened["segmentation"]) if len(opened) == 2 else next(iter(opened.values()))
        box = _middle(ix.grid_of(both), plane)
    if len(opened) == 2:
        together = ix.align(opened["image"], opened["segmentation"], bbox=box)
        return {"image": together["image"], "segmentation": together["segmentation"]}
    return {name: array if box is None else ix.crop(array, box) for name, array in opened.items()}


def _middle(grid: ix.Grid, plane: str) -> ix.BBox:
    size = [min(1024, n) for n in grid.shape[::-1]]
    size["xyz".index(plane)] = 1
    center = [o + n / 2 for o, n in zip(grid.voxel_offset, grid.shape[::-1], strict=True)]
    return ix.BBox.around(center, size, resolution=grid.resolution)


def _draw(
    layers: dict[str, xr.DataArray],
    ids: str | None,
    colors: str | None,
    alpha: float | None,
    rest_alpha: float | None,
    lines: ix.Outline | None,
    contrast: str | None,
    axis: str,
) -> xr.DataArray:
    options = _overlay_options(ids, colors, alpha, rest_alpha, lines, contrast, axis)
    if "segmentation" not in layers:
        if ids or colors or lines:
            raise OptionError("--ids, --colors and --outline need segments: give --segmentation SOURCE, too")
        return ix.to_rgba(layers["image"], contrast_limits=options["contrast_limits"])
    return ix.overlay(layers.get("image"), layers["segmentation"], **options)


def _overlay_options(
    ids: str | None,
    colors: str | None,
    alpha: float | None,
    rest_alpha: float | None,
    lines: ix.Outline | None,
    contrast: str | None,
    axis: str,
) -> dict[str, Any]:
    limits = None if contrast is None else _numbers(contrast, "--contrast", (2,))
    return {
        "ids": None if ids is None else [i.strip() for i in ids.split(",")],
        "colors": _palette(colors),
        "alpha": alpha,
        "rest_alpha": rest_alpha,
        "outline": lines,
        "contrast_limits": None if limits is None else (limits[0], limits[1]),
        "axis": axis,
    }


def _lines(width: float | None, side: Any, merge: bool, alpha: float, unit: Any) -> ix.Outline | None:
    return None if width is None else ix.Outline(width, side=side, merge=merge, alpha=alpha, unit=unit)


def _palette(colors: str | None) -> Any:
    if colors is None or not colors.lstrip().startswith("{"):
        return colors
    try:
        return json.loads(colors)
    except json.JSONDecodeError as error:
        raise OptionError(f'--colors {colors} is no JSON object ({error}); write \'{{"12": "red"}}\'') from None


def _box(
    bbox: str | None, center: str | None, size: str | None, resolution: str, axis: str, viewer: Any
) -> ix.BBox | None:
    if resolution == "viewer" and viewer is None:
        raise OptionError(
            "--resolution viewer is that of a datastack's viewer; give --datastack, or nm per unit: x,y,z"
        )
    unit = list(viewer) if resolution == "viewer" else _numbers(resolution, "--resolution", (3,))
    if bbox is not None:
        if center is not None or size is not None:
            raise OptionError("--bbox says all; leave --center and --size out")
        corners = bbox.split(":")
        if len(corners) != 2:
            raise OptionError(f"--bbox {bbox} is not two corners; write x0,y0,z0:x1,y1,z1")
        lo, hi = (_numbers(c, "--bbox", (3,)) for c in corners)
        return ix.BBox(lo, hi, resolution=unit)
    if center is None:
        if size is not None:
            raise OptionError("--size needs --center x,y,z")
        return None
    if size is None:
        raise OptionError("--center needs --size w,h or w,h,d")
    sizes = _numbers(size, "--size", (2, 3))
    if len(sizes) == 2:
        sizes.insert("xyz".index(axis), 1)
    return ix.BBox.around(_numbers(center, "--center", (3,)), sizes, resolution=unit)


def _numbers(text: str, option: str, count: tuple[int, ...]) -> list[float]:
    try:
        values = [float(part) if "." in part or "e" in part.lower() else int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in count:
        shape = " or ".join(",".join("xyz"[:n]) for n in count)
        raise OptionError(f"{option} {text} is not {' or '.join(map(str, count))} numbers {shape}, divided by commas")
    return values


def _check_axis(axis: str) -> str:
    if axis not in ("z", "y", "x"):
        raise OptionError(f"--axis {axis} is none of z, y and x: the axis across the slices")
    return axis


def _axis_of(pattern: str) -> str:
    """Return the axis that a name pattern slices along; z for what is no stack of pictures."""
    named = re.findall(r"{([xyz])(?:_nm)?[:}]", pattern)
    return str(named[0]) if named else "z"


def _check_one_slice(layers: dict[str, xr.DataArray], axis: str) -> None:
    count = next(iter(layers.values())).sizes[axis]
    if count > 1:
        raise OptionError(
            f"the box is {count} slices deep along {axis}, and a figure is one slice; give --center and --size w,h, or "
            "for a picture a slice: imageryxr export"
        )


def _described(source: str, timestamp: str | None) -> tuple[Source, dict[str, int]]:
    """Open a source to be described, of several channels or times the first, and tell how many there are of each."""
    choices: dict[str, int] = {}
    while True:
        try:
            first: dict[str, Any] = dict.fromkeys(choices, 0)
            return resolve_source(source, None, timestamp=timestamp, **first), choices
        except ChoiceError as error:
            choices[error.what] = error.count


def _description(layer: Any) -> dict[str, Any]:
    return {
        "source": layer.name,
        "layer_type": layer.layer_type,
        "dtype": str(layer.dtype),
        "attrs": layer.attrs,
        "levels": [
            {
                "mip": level.mip,
                "size": level.grid.shape[::-1],
                "resolution": level.grid.resolution,
                "voxel_offset": level.grid.voxel_offset,
                "chunk": level.chunks[::-1],
                "encoding": level.encoding,
                "placeholder": level.placeholder,
            }
            for level in layer.levels
        ],
    }


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _extent(grid: ix.Grid) -> str:
    return f"{show_triple([round(s / 1000, 3) for s in grid.bbox.size_nm])} µm"


# What messages say for Python, as the command line spells it.
_SPELLINGS = {
    r"overwrite=True": "--overwrite",
    r"square=True": "--square",
    r"square=False": "--no-square",
    r"missing='(\w+)'": r"--missing \1",
    r"resolution=\(([^()]*)\)": r"--resolution \1",
    r"contrast_limits=\(([^()]*)\)": r"--contrast \1",
    r"imageryxr\.open_(image|segmentation)": r"--\1",
    r"imageryxr\.BBox\(": "--bbox (",
}


def _as_options(message: str) -> str:
    for python, option in _SPELLINGS.items():
        message = re.sub(python, lambda found, o=option: found.expand(o).replace(", ", ","), message)  # type: ignore[misc]
    return message


def _warn(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    print(f"warning: {_as_options(str(message))}", file=sys.stderr)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", ImageryWarning)
            warnings.showwarning = _warn
            yield
    except ImageryError as error:
        print(f"error: {_as_options(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def main() -> None:
    """Run the command line; our errors end it with one line and exit code 1."""
    with _plain_errors():
        app()


if __name__ == "__main__":
    main()
