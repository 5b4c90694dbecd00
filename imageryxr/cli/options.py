"""What is drawn, as it is typed: options that `figure` and `export` share, and the layers and boxes they stand for."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import typer
import xarray as xr

import imageryxr as ix
from imageryxr.errors import OptionError

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
MissingChunks = Annotated[
    str | None,
    typer.Option(
        "--missing",
        help="Chunks the store lacks: 'raise', 'fill' or 'warn'. Default: the fill value in Zarr, else an error.",
    ),
]
To = Annotated[
    str | None,
    typer.Option(help="Voxels of the result: 'finest' (default), 'coarsest', 'image', 'segmentation', or nm x,y,z."),
]
Channel = Annotated[int | None, typer.Option(help="Which channel of the image, from 0, where it has several.")]
Time = Annotated[int | None, typer.Option(help="Which of its times, from 0, where it has several.")]
Assume = Annotated[str, typer.Option(help="What an OME-Zarr translation is the place of: 'center' or 'corner'.")]
Agglomerate = Annotated[
    bool, typer.Option("--agglomerate/--no-agglomerate", help="Of a graphene segmentation: root ids, or supervoxels.")
]
Datastack = Annotated[str | None, typer.Option(help="A CAVE datastack, in the place of --image and --segmentation.")]
Server = Annotated[str | None, typer.Option(help="Its info service; default: the one that caveclient uses.")]
Timestamp = Annotated[str | None, typer.Option(help="Instant of a graphene segmentation, ISO 8601; default: now.")]
LINES = {
    "outline_side": "--outline-side",
    "merge": "--merge/--no-merge",
    "outline_alpha": "--outline-alpha",
    "outline_unit": "--outline-unit",
}
"""How outlines look."""
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a target that exists.")]


def open_layers(
    image: str | None,
    segmentation: str | None,
    *,
    image_mip: int | None,
    seg_mip: int | None,
    missing: Any,
    datastack: str | None,
    server_address: str | None,
    timestamp: str | None,
    agglomerate: bool,
    **choices: Any,
) -> tuple[dict[str, xr.DataArray], Any]:
    """Return the layers that were named, opened, and the voxel size of a datastack's viewer, if it is one.

    Which channel and time, and what an OME-Zarr means by its place, is said of the image; without one, of the
    segmentation.
    """
    if datastack is not None:
        if image or segmentation:
            raise OptionError("--datastack says what to open; leave --image and --segmentation out")
        if (choices.get("channel"), choices.get("time")) != (None, None):
            raise OptionError("--channel and --time are of an --image; the layers of a datastack have one of each")
        return _of_datastack(
            datastack, image_mip=image_mip, segmentation_mip=seg_mip, missing=missing, server_address=server_address,
            timestamp=timestamp, agglomerate=agglomerate,
        )  # fmt: skip
    opened = {}
    if image:
        opened["image"] = ix.open_image(image, mip=image_mip, missing=missing, **choices)
    if segmentation:
        opened["segmentation"] = ix.open_segmentation(
            segmentation, mip=seg_mip, missing=missing, timestamp=timestamp, agglomerate=agglomerate,
            **({} if image else choices),
        )  # fmt: skip
    if not opened:
        raise OptionError("nothing to draw: give --image SOURCE, --segmentation SOURCE or both, or --datastack NAME")
    return opened, None


def _of_datastack(name: str, **options: Any) -> tuple[dict[str, xr.DataArray], Any]:
    tree = ix.open_datastack(name, **options)
    layers = {name: tree[name][name] for name in ("image", "segmentation")}
    return layers, tree.attrs.get("viewer_resolution")  # type: ignore[return-value]


def cut_layers(
    opened: dict[str, xr.DataArray], box: ix.BBox | None, *, plane: str | None = None, to: str | None = None
) -> dict[str, xr.DataArray]:
    """Return what a box holds of the layers, on one grid."""
    grid = _voxels(to, len(opened))
    if len(opened) == 1 and isinstance(grid, tuple):
        opened = {name: ix.regrid(array, grid) for name, array in opened.items()}
    if plane is not None and box is None:
        # of two layers what both cover: a figure of one and the frame of the other is nobody's wish
        box = _middle(ix.grid_of(next(iter(_together(opened, None, grid).values()))), plane)
    return _together(opened, box, grid)


def _together(opened: dict[str, xr.DataArray], box: ix.BBox | None, to: Any) -> dict[str, xr.DataArray]:
    if len(opened) == 2:
        both = ix.align(opened["image"], opened["segmentation"], to=to, bbox=box)
        return {"image": both["image"], "segmentation": both["segmentation"]}
    return {name: array if box is None else ix.crop(array, box) for name, array in opened.items()}


def _voxels(to: str | None, layers: int) -> Any:
    if to is None:
        return "finest"
    if to[:1].isalpha():
        if layers == 1:
            raise OptionError(f"--to {to} is a choice between two layers, and there is one; give nm, --to x,y,z")
        return to
    x, y, z = numbers_of(to, "--to", (3,))
    return x, y, z


def _middle(grid: ix.Grid, plane: str) -> ix.BBox:
    size = [min(1024, n) for n in grid.shape[::-1]]
    size["xyz".index(plane)] = 1
    center = [o + n / 2 for o, n in zip(grid.voxel_offset, grid.shape[::-1], strict=True)]
    return ix.BBox.around(center, size, resolution=grid.resolution)


def drawn(layers: dict[str, xr.DataArray], options: dict[str, Any]) -> xr.DataArray:
    """Return the picture of the layers, lazily, with options as `overlay_options` returns them."""
    if "segmentation" not in layers:
        if options["ids"] or options["colors"] or options["outline"]:
            raise OptionError("--ids, --colors and --outline need segments: give --segmentation SOURCE, too")
        return ix.to_rgba(layers["image"], contrast_limits=options["contrast_limits"])
    return ix.overlay(layers.get("image"), layers["segmentation"], **options)


def overlay_options(
    ids: str | None,
    colors: str | None,
    alpha: float | None,
    rest_alpha: float | None,
    lines: ix.Outline | None,
    contrast: str | None,
    axis: str,
) -> dict[str, Any]:
    """Return the options of `imageryxr.overlay` that were given."""
    limits = None if contrast is None else numbers_of(contrast, "--contrast", (2,))
    return {
        "ids": None if ids is None else [i.strip() for i in ids.split(",")],
        "colors": _palette(colors),
        "alpha": alpha,
        "rest_alpha": rest_alpha,
        "outline": lines,
        "contrast_limits": None if limits is None else (limits[0], limits[1]),
        "axis": axis,
    }


def lines_of(width: float | None, side: Any, merge: bool, alpha: float, unit: Any) -> ix.Outline | None:
    """Return the outlines that were asked for."""
    return None if width is None else ix.Outline(width, side=side, merge=merge, alpha=alpha, unit=unit)


def check_lines(context: typer.Context, width: float | None) -> None:
    """Raise `OptionError` if it was typed how outlines look, and no width; a job file may always say it."""
    typed = [
        flag
        for name, flag in LINES.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    ]
    if width is None and typed:
        raise OptionError(f"{', '.join(typed)} without --outline draws nothing: give --outline WIDTH, too")


def _palette(colors: str | None) -> Any:
    if colors is None or not colors.lstrip().startswith("{"):
        return colors
    try:
        return json.loads(colors)
    except json.JSONDecodeError as error:
        raise OptionError(f'--colors {colors} is no JSON object ({error}); write \'{{"12": "red"}}\'') from None


def box_of(
    bbox: str | None, center: str | None, size: str | None, resolution: str, axis: str, viewer: Any
) -> ix.BBox | None:
    """Return the box that was given by its corners or its middle, or None."""
    unit = unit_of(resolution, viewer)
    if bbox is not None:
        if center is not None or size is not None:
            raise OptionError("--bbox says all; leave --center and --size out")
        corners = bbox.split(":")
        if len(corners) != 2:
            raise OptionError(f"--bbox {bbox} is not two corners; write x0,y0,z0:x1,y1,z1")
        lo, hi = (numbers_of(c, "--bbox", (3,)) for c in corners)
        return ix.BBox(lo, hi, resolution=unit)
    if center is None:
        if size is not None:
            raise OptionError("--size needs --center x,y,z")
        return None
    if size is None:
        raise OptionError("--center needs --size w,h or w,h,d")
    sizes = numbers_of(size, "--size", (2, 3))
    if len(sizes) == 2:
        sizes.insert("xyz".index(axis), 1)
    return ix.BBox.around(numbers_of(center, "--center", (3,)), sizes, resolution=unit)


def unit_of(resolution: str, viewer: Any) -> list[float]:
    """Return the nm per unit of what was typed: three numbers, or those of a datastack's viewer."""
    if resolution == "viewer" and viewer is None:
        raise OptionError(
            "--resolution viewer is that of a datastack's viewer; give --datastack, or nm per unit: x,y,z"
        )
    return list(viewer) if resolution == "viewer" else numbers_of(resolution, "--resolution", (3,))


def numbers_of(text: str, option: str, count: tuple[int, ...]) -> list[float]:
    """Return numbers that were typed with commas between them."""
    try:
        values = [float(part) if "." in part or "e" in part.lower() else int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in count:
        shape = " or ".join(",".join("xyz"[:n]) for n in count)
        raise OptionError(f"{option} {text} is not {' or '.join(map(str, count))} numbers {shape}, divided by commas")
    return values


def check_axis(axis: str) -> str:
    """Return the name of an axis, or raise `OptionError`."""
    if axis not in ("z", "y", "x"):
        raise OptionError(f"--axis {axis} is none of z, y and x: the axis across the slices")
    return axis


def axis_of(pattern: str) -> str:
    """Return the axis that a name pattern slices along; z for what is no stack of pictures."""
    named = re.findall(r"{([xyz])(?:_nm)?[:}]", pattern)
    return str(named[0]) if named else "z"


def check_one_slice(layers: dict[str, xr.DataArray], axis: str) -> None:
    """Raise `OptionError` if a figure would be of several slices."""
    count = next(iter(layers.values())).sizes[axis]
    if count > 1:
        raise OptionError(
            f"the box is {count} slices deep along {axis}, and a figure is one slice; give --center and --size w,h, or "
            "for a picture a slice: imageryxr export"
        )
